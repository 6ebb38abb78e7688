"""A run as one plain-PyTorch script, for whoever leaves: same network, data, batches and steps.

The network is written from the module itself: its layers as torch prints them, and its forward pass
as `torch.fx` traces it. What the script would train otherwise than the run is refused.
"""

import re
from collections.abc import Iterator
from string import Template
from typing import TYPE_CHECKING, Any

from mnist_cli.config import Config
from mnist_cli.config.schema import ImageData
from mnist_cli.data.catalog import DATASETS
from mnist_cli.data.seeds import derive
from mnist_cli.errors import UsageError

if TYPE_CHECKING:
    from torch import nn

OPTIMIZERS = {  # of torch.optim
    "sgd": "SGD",
    "scratch_sgd": "SGD",
    "adam": "Adam",
    "adamw": "AdamW",
    "nadam": "NAdam",
    "rmsprop": "RMSprop",
}
SCHEDULERS = {  # of torch.optim.lr_scheduler
    "constant": "ConstantLR",
    "step": "StepLR",
    "multistep": "MultiStepLR",
    "cosine": "CosineAnnealingLR",
    "linear": "LinearLR",
    "one_cycle": "OneCycleLR",
}

SCRIPT = Template('''"""What `mnist` trained as $name, in PyTorch alone: written by `mnist eject`.

Same initial weights, images and batches, so on a CPU the same figures up to rounding$but.
The images are read from a folder, or fetched into it: python train.py [FOLDER]
"""

import hashlib
import sys

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from torch import nn


def derive(*purpose):
    """A seed for one purpose, independent of the others."""
    digest = hashlib.blake2b("/".join(map(str, purpose)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def read(folder, train):
    data = torchvision.datasets.$dataset(folder, train=train, download=True)
    return np.asarray(data.data), np.asarray(data.targets)


device = "cuda" if torch.cuda.is_available() else "cpu"
parts = [read(sys.argv[1] if len(sys.argv) > 1 else "data", train) for train in (True, False)]
images = torch.from_numpy(np.concatenate([part[0] for part in parts])).to(device)
images = images.reshape(len(images), *images.shape[1:3], -1).permute(0, 3, 1, 2)
images = images.to($dtype) / $scale
labels = torch.from_numpy(np.concatenate([part[1] for part in parts])).to(device)
count = len(parts[0][0])
$split

torch.manual_seed($weights)
$model
model = model.to(device, $dtype)
optimizer = torch.optim.$optimizer
$scheduler
for epoch in range($epochs):
    model.train()
$order
    for batch in torch.from_numpy(train)[order].split($batch_size):
        batch = batch.to(device)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images[batch]), labels[batch]$loss)
        loss.backward()
$step
    model.eval()
    with torch.no_grad():
        logits = torch.cat([model(each) for each in images[val].split(1000)])
    loss = F.cross_entropy(logits, labels[val]$smoothing)
    accuracy = (logits.argmax(1) == labels[val]).double().mean()
    print(f"epoch {epoch + 1}: val loss {loss:.5f}, val acc {accuracy:.5f}")
torch.save(model.state_dict(), "model.pt")
''')


def script(name: str, config: Config, epochs: int) -> str:
    """The script of a run.

    Args:
        name: what the run is called.
        config: its config.
        epochs: how many it has trained.

    Raises:
        UsageError: it would come to something else.
    """
    if other := [*_not_written(config)]:
        raise UsageError(f"{name}: a script would not train {', '.join(other)}")
    assert isinstance(config.data, ImageData)
    from mnist_cli.models.modules import dropouts

    spec, seed = DATASETS[config.data.name], config.train.seed
    model, own = _model(config, name)
    dtype = "torch.float64" if config.train.precision == "fp64" else "torch.float32"
    smoothing = config.loss.label_smoothing
    smooth = f", label_smoothing={smoothing}" if smoothing else ""
    return SCRIPT.substitute(
        name=re.sub(r"[^\w./-]", "_", name),  # of a folder: it may be anything
        but=", but for dropout, whose masks are others" if dropouts(own) else "",
        dataset=spec.torchvision,
        dtype=dtype,
        scale=255 if config.data.normalize else 1,
        split=_split(config.data, spec.holdout),
        weights=derive(seed, "weights"),
        model=model,
        optimizer=f"{OPTIMIZERS[config.optimizer.name]}(\n    model.parameters()"
        f"{_keywords(config.optimizer, 'name')}\n)",
        scheduler=_scheduler(config.scheduler, config.optimizer.lr),
        epochs=epochs,
        order=_order(seed) if config.data.shuffle else "    order = torch.arange(len(train))",
        batch_size=config.data.batch_size,
        loss=f', reduction="sum"{smooth}' if config.loss.reduction == "sum" else smooth,
        smoothing=smooth,
        step=_step(config),
    )


def _not_written(config: Config) -> Iterator[str]:
    if not isinstance(config.data, ImageData):
        yield f"the data {config.data.name}"
    if config.augment.active:
        yield "with augment"
    if config.optimizer.name not in OPTIMIZERS:
        yield f"with the optimizer {config.optimizer.name}"
    if config.scheduler.name not in SCHEDULERS:
        yield f"with the scheduler {config.scheduler.name}"
    if config.train.precision not in ("fp32", "fp64"):
        yield f"in {config.train.precision}"
    if config.train.ema is not None:
        yield "with train.ema"
    if config.train.steps is not None:
        yield "by train.steps"


def _keywords(section: Any, *leave: str) -> str:
    return "".join(f", {key}={value!r}" for key, value in section if key not in leave)


def _order(seed: int) -> str:
    generator = f'    generator = torch.Generator().manual_seed(derive({seed}, "order", epoch))'
    return f"{generator}\n    order = torch.randperm(len(train), generator=generator)"


def _split(data: ImageData, holdout: int) -> str:
    places = "np.arange(len(images))"
    if data.split == "official":
        return f"train, val = np.split({places}, [count])"
    if data.split == "holdout":
        return f"train, val, _ = np.split({places}, [count - {holdout}, count])"
    return (
        f"order = np.random.default_rng({derive(data.seed, 'split')}).permutation(len(images))\n"
        "tenth = len(images) // 10\n"
        "train, val, _ = np.split(order, [len(images) - 2 * tenth, len(images) - tenth])"
    )


def _scheduler(scheduler: Any, lr: float) -> str:
    """The lines that make the scheduler, after its warm-up if it has one."""
    make = "scheduler = torch.optim.lr_scheduler"
    own = _keywords(scheduler, "name", "warmup", "interval")
    own += {"one_cycle": f", max_lr={lr}, cycle_momentum=False", "constant": ", factor=1.0"}.get(
        scheduler.name, ""
    )
    lines = [f"{make}.{SCHEDULERS[scheduler.name]}(optimizer{own})"]
    if warmup := getattr(scheduler, "warmup", 0):
        first = f"torch.optim.lr_scheduler.LinearLR(optimizer, 0.01, total_iters={warmup})"
        lines.append(f"{make}.SequentialLR(optimizer, [{first}, scheduler], [{warmup}])")
    return "\n".join(lines)


def _step(config: Config) -> str:
    clip = config.train.clip_grad_norm
    lines = [f"        nn.utils.clip_grad_norm_(model.parameters(), {clip})"] if clip else []
    lines.append("        optimizer.step()")
    lines.append(f"{' ' * (8 if config.scheduler.interval == 'step' else 4)}scheduler.step()")
    return "\n".join(lines)


def _model(config: Config, name: str) -> "tuple[str, nn.Module]":
    """The code that makes the network, seen to make the run's own initial weights; and the network.

    Raises:
        UsageError: it does not.
    """
    import torch
    from torch import nn
    from torch.fx import GraphModule, Tracer

    from mnist_cli.data.dataset import form
    from mnist_cli.models.modules import build

    class Outline(Tracer):
        """Traces what a module does with its layers, and not what they do."""

        def is_leaf_module(self, *_: object) -> bool:
            return True

    shape, classes = form(config.data)
    own = build(config.model, shape, len(classes), config.train.seed)
    if isinstance(own, nn.Sequential):
        code = f"model = {_layer(own, 0)}"
    else:
        lines = [
            f"        self.{child} = {_layer(layer, 8)}" for child, layer in own.named_children()
        ]
        traced = GraphModule(own, Outline().trace(own)).code.strip()
        forward = re.sub(r";\s+[\w = ]+ = None", "", traced)
        body = "\n".join(f"    {line}".rstrip() for line in forward.splitlines())
        start = ["class Model(nn.Module):", "    def __init__(self):", "        super().__init__()"]
        code = "\n".join(["", *start, *lines, "", body, "", "", "model = Model()"])
    scope: dict[str, Any] = {"torch": torch, "nn": nn}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(config.train.seed, "weights"))
        try:
            exec(code, scope)  # noqa: S102 - written here, from layers of torch
            made = scope["model"].state_dict()
            same = made.keys() == own.state_dict().keys()
            same = same and all(torch.equal(made[k], v) for k, v in own.state_dict().items())
        except Exception:  # noqa: BLE001 - then it cannot be written
            same = False
    if not same:
        what = f"the model {config.model.name} is not of torch.nn's layers as they begin"
        raise UsageError(f"{name}: {what}, so a script would train another")
    return code, own


def _layer(layer: "nn.Module", indent: int) -> str:
    """What makes a layer, with everything in it, where it begins so far into a line."""
    from torch import nn

    from mnist_cli.models.modules import Dropout, Reshape

    if isinstance(layer, nn.Sequential):
        space = " " * indent
        inside = "".join(f"{space}    {_layer(each, indent + 4)},\n" for each in layer)
        return f"nn.Sequential(\n{inside}{space})"
    if isinstance(layer, Reshape):  # images have their shape
        return "nn.Identity()"
    return f"nn.Dropout({layer.p})" if isinstance(layer, Dropout) else f"nn.{layer}"
