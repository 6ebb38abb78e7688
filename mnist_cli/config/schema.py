"""The schema of a config: frozen, strict, complete. A new model or optimizer is a new class here.

Names are torch's own wherever torch has one, and mean what torch means by them. A section that has
variants is chosen by its `name`; each variant lists its own settings, so a setting that belongs to
another variant is an error and not a value that nothing reads.
"""

import ast
import inspect
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from functools import cache
from itertools import pairwise
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    model_validator,
)

from mnist_cli.config.space import parse_space

# A seed is hashed together with what it is for, so any non-negative 63-bit integer is a good one.
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Positive = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Probability = Annotated[float, Field(ge=0, le=1)]
Factor = Annotated[float, Field(ge=0.1, le=10)]
NonNegative = Annotated[float, Field(ge=0)]
UpToOne = Annotated[float, Field(ge=0, le=1)]
Betas = Annotated[tuple[Fraction, Fraction], Field(strict=False)]
LearningRate = Annotated[float, Field(gt=0, description="Learning rate.")]
Interval = Annotated[
    Literal["epoch", "step"], Field(description="What the schedule counts: epochs or steps.")
]

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$"
TEXT_PATTERN = r"^[^\x00-\x1f\x7f-\x9f\u2028\u2029\ufffe\uffff]*$"
IDENTIFIER_PATTERN = r"^[A-Za-z_][A-Za-z0-9_]{0,63}$"
DEVICE_PATTERN = r"^(auto|cpu|cuda(:\d{1,3})?)$"


def _describe(json_schema: dict[str, Any], section: type[BaseModel]) -> None:
    """Describes settings by the strings below them (pydantic's own way reads them at import)."""
    for kind in section.__mro__[-3::-1]:  # without `object` and `BaseModel`
        for node, below in pairwise(ast.walk(ast.parse(inspect.getsource(kind)))):
            match node, below:
                case ast.AnnAssign(target=ast.Name(name)), ast.Expr(ast.Constant(str(text))):
                    json_schema["properties"][name]["description"] = inspect.cleandoc(text)


class Section(BaseModel):
    """A part of a config: immutable, no unknown keys, no silent conversion, no NaN or infinity."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        defer_build=True,  # a command that only prints its help needs no schema
        json_schema_extra=_describe,
    )


# ---------------------------------------------------------------------------------------- data


def _absolute(path: str) -> str:
    return os.path.abspath(os.path.expanduser(path))  # noqa: PTH100, PTH111 - a Path's raises


def _square(size: object) -> object:
    return (size, size) if isinstance(size, int) else size


OwnPath = Annotated[str, Field(pattern=TEXT_PATTERN, min_length=1), AfterValidator(_absolute)]


class _DataBase(Section):
    name: str
    split: Literal["pooled", "holdout", "official"] = "pooled"
    """`pooled`: all images shuffled, then 80/10/10 for train/val/test. `holdout`: the last official
    training images validate. `official`: the official test set validates. A `folder` or `npz` keeps
    the splits it comes in; those it lacks are a tenth of its training images each, drawn by `seed`;
    with `official` its test images validate."""
    seed: Seed = 0
    """Seed of the `pooled` shuffle (and of the images, for `synthetic`). The same for every run of
    a sweep, so that runs differ in what is compared and not in their data."""
    batch_size: Positive = 64
    """Images per training batch; the last batch of an epoch may be smaller."""
    shuffle: bool = True
    """Whether training images are shuffled anew each epoch."""
    normalize: bool = True
    """Whether pixels are scaled from 0..255 to 0..1."""


class ImageData(_DataBase):
    """A published data set of images."""

    name: Literal["mnist", "fashion_mnist", "kmnist", "cifar10"] = "mnist"
    """Which data set."""


class SyntheticData(_DataBase):
    """Small learnable images generated from `seed`, for tests and for work without data."""

    name: Literal["synthetic"]
    size: Annotated[int, Field(ge=70, le=1_000_000)] = 7000
    """Images in all; six of seven are training images."""


class OwnData(_DataBase):
    """Images of a user's own."""

    path: OwnPath
    """Where the images are: absolute, or relative to the working directory; `~` is your home."""


class FolderData(OwnData):
    """A folder with a folder of pictures for each class, or with such in `train/ val/ test/`."""

    name: Literal["folder"]
    size: (
        Annotated[
            tuple[Positive, Positive],
            Field(strict=False),
            BeforeValidator(_square, json_schema_input_type=Positive | tuple[Positive, Positive]),
        ]
        | None
    ) = None
    """Pixels that every image is resized to: the side of a square, or [height, width]. Without it
    all must be of one size."""
    grey: bool = False
    """Whether images are in grey (one channel), and not in colour (three)."""


class NpzData(OwnData):
    """An `.npz` file of arrays by Keras's names: `x_train y_train x_test y_test`.

    Images are uint8 of shape (n, height, width) or (n, height, width, channels); labels are
    integers from 0.
    """

    name: Literal["npz"]


# ------------------------------------------------------------------------------------- augment


class AugmentConfig(Section):
    """Training images changed at random, each in its own way at every step (off by default).

    An image is flipped, sheared, scaled, rotated and shifted about its centre, then deformed and
    partly erased, all by what torchvision's transforms of these names do. What comes from outside
    is black.
    """

    translate: Annotated[int, Field(ge=0, le=1000)] = 0
    """Shift: up to so many whole pixels along each axis, either way."""
    rotate: Annotated[float, Field(ge=0, le=180)] = 0.0
    """Rotation: up to so many degrees, either way."""
    scale: Annotated[tuple[Factor, Factor], Field(strict=False)] = (1.0, 1.0)
    """The least and the largest factor by which an image is made larger."""
    shear: Annotated[float, Field(ge=0, le=80)] = 0.0
    """Shear along x: up to so many degrees, either way."""
    flip: Probability = 0.0
    """Probability that left and right are exchanged."""
    erase: Probability = 0.0
    """Probability that a rectangle is made black; its sides have a ratio from 1:3.3 to 3.3:1."""
    erase_area: Annotated[tuple[Probability, Probability], Field(strict=False)] = (0.02, 0.33)
    """The least and the largest part of the image that such a rectangle covers."""
    elastic: Annotated[float, Field(ge=0, le=1000)] = 0.0
    """Elastic deformation: alpha of torchvision's `ElasticTransform`. Each pixel is fetched from
    alpha/2 pixels times smooth noise away: of -1 to 1, blurred by a Gaussian."""
    elastic_sigma: Annotated[float, Field(gt=0, le=100)] = 5.0
    """Standard deviation of that Gaussian, in pixels."""

    @model_validator(mode="after")
    def _least_first(self) -> Self:
        for key in ("scale", "erase_area"):
            least, largest = getattr(self, key)
            if least > largest:
                raise ValueError(
                    f"{key} is from the least to the largest, got {least} to {largest}"
                )
        return self

    @property
    def active(self) -> bool:
        """Whether there is anything to do."""
        amounts = (self.translate, self.rotate, self.shear, self.flip, self.erase, self.elastic)
        return any(amounts) or self.scale != (1.0, 1.0)


# --------------------------------------------------------------------------------------- model


class LogisticModel(Section):
    """Logistic (softmax) regression: one linear layer."""

    name: Literal["logistic"]


class MlpModel(Section):
    """A multi-layer perceptron."""

    name: Literal["mlp"] = "mlp"
    depth: Positive = 2
    """Number of linear layers."""
    width: Positive = 32
    """Units of the first hidden layer; each further one has half as many."""
    hidden: Annotated[tuple[Positive, ...], Field(strict=False)] | None = None
    """Hidden widths one by one, instead of `depth` and `width`."""
    activation: Literal["relu", "sigmoid", "tanh"] = "relu"
    """Nonlinearity after every hidden layer."""
    dropout: Fraction = 0.0
    """Probability of dropping a unit before the last linear layer."""

    @model_validator(mode="after")
    def _one_shape(self) -> Self:
        if self.hidden is None and self.depth > 1 and self.width >> (self.depth - 2) == 0:
            raise ValueError(
                f"width {self.width} halved for each of {self.depth - 1} hidden layers "
                "leaves none for the last"
            )
        # `hidden` takes the place of the other two; said twice and differently, it is a mistake.
        shape = () if self.hidden is None else (len(self.hidden) + 1, *self.hidden[:1])
        for key, value in zip(("depth", "width"), shape, strict=False):
            if key in self.model_fields_set and getattr(self, key) != value:
                raise ValueError(
                    f"hidden {list(self.widths)} makes {key} {value}, "
                    f"but {key} is {getattr(self, key)}; give one of the two"
                )
            object.__setattr__(self, key, value)
        return self

    @property
    def widths(self) -> tuple[int, ...]:
        """Units of each hidden layer, first to last."""
        if self.hidden is not None:
            return self.hidden
        return tuple(self.width >> i for i in range(self.depth - 1))


class CnnModel(Section):
    """Three 3x3 convolutions of stride 2, ReLU after each, then the mean over the last map."""

    name: Literal["cnn", "cnn_sequential"]
    """`cnn_sequential` is the same network, written as one `nn.Sequential`."""
    channels: Annotated[tuple[Positive, Positive], Field(strict=False)] = (16, 16)
    """Channels after the first and the second convolution; the third has one per class."""


class LenetModel(Section):
    """LeNet-5: two convolutions with pooling, three linear layers."""

    name: Literal["lenet"]
    variant: Literal["classic", "modern"] = "classic"
    """`classic`: tanh and average pooling, as published in 1998. `modern`: ReLU and max-pooling."""


class ResnetModel(Section):
    """A residual network with batch normalisation: three stages, each narrower and deeper."""

    name: Literal["resnet"]
    depth: Annotated[int, Field(ge=8)] = 8
    """Number of layers with weights on the longest path: 6n + 2, with n blocks in each stage."""
    width: Positive = 16
    """Channels of the first stage; the second has twice and the third four times as many."""

    @model_validator(mode="after")
    def _whole_blocks(self) -> Self:
        if self.depth % 6 != 2:
            near = max(8, self.depth - (self.depth - 2) % 6)
            raise ValueError(f"depth must be 6n + 2, such as {near} or {near + 6}")
        return self


class VggModel(Section):
    """Five 3x3 convolutions with batch normalisation and max-pooling, and one linear layer."""

    name: Literal["vgg"]
    width: Positive = 16
    """Channels at first; twice as many after each pooling."""


class ScratchModel(Section):
    """The network of `logistic`, by tensor operations alone."""

    name: Literal["scratch"]


class TensorNetModel(Section):
    """A multi-layer perceptron by tensor operations alone, a sigmoid after every hidden layer."""

    name: Literal["tensor_net"]
    hidden: Annotated[tuple[Positive, ...], Field(strict=False)] = (50, 100)
    """Hidden widths one by one."""


def _plain(value: object) -> object:
    for item in value if isinstance(value, list | tuple) else [value]:
        finite = not isinstance(item, float) or math.isfinite(item)
        if not finite or not isinstance(item, bool | int | float | str | None):
            raise ValueError(
                f"must be a number, text, true, false, null or a list, got {value!r:.60}"
            )
    return value


class FileModel(Section):
    """A user's own model, made in a Python file; other settings are keywords of its factory."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[
        Annotated[str, Field(pattern=IDENTIFIER_PATTERN)], Annotated[Any, AfterValidator(_plain)]
    ]

    name: Literal["file"]
    path: OwnPath
    """The file: absolute, or relative to the working directory; `~` is your home."""
    factory: Annotated[str, Field(pattern=IDENTIFIER_PATTERN)] | None = None
    """The function or class in it that makes an `nn.Module` of `(shape, classes, **settings)`; a
    shape is (channels, height, width). Not needed if only one takes `shape` and `classes`."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    """The sum of the file's text: with any other it is not run. Without it, that of now."""


# ---------------------------------------------------------------------------------------- loss


class LossConfig(Section):
    """The loss of a batch."""

    name: Literal["cross_entropy", "nll", "scratch_nll", "scratch_cross_entropy"] = "cross_entropy"
    """`cross_entropy` on logits, or `nll` on their log-softmax: the same numbers. `scratch_nll` is
    `nll` by tensor operations alone; `scratch_cross_entropy` is on their softmax, likewise."""
    reduction: Literal["mean", "sum"] = "mean"
    """What the gradient is of: the mean over the batch or the sum. Reported losses are means."""
    label_smoothing: Annotated[float, Field(ge=0, le=1)] = 0.0
    """With `cross_entropy`, the share of a target that is spread evenly over all classes, as torch
    does it: in the losses of training and of evaluation."""

    @model_validator(mode="after")
    def _smoothing_is_of_cross_entropy(self) -> Self:
        if self.label_smoothing and self.name != "cross_entropy":
            raise ValueError("label_smoothing is a setting of cross_entropy alone")
        return self


# ----------------------------------------------------------------------------------- optimizer


class SgdOptimizer(Section):
    """`torch.optim.SGD`."""

    name: Literal["sgd"]
    lr: LearningRate = 1e-3
    momentum: NonNegative = 0.0
    dampening: float = 0.0
    weight_decay: NonNegative = 0.0
    nesterov: bool = False

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> Self:
        if self.nesterov and (self.momentum <= 0 or self.dampening != 0):
            raise ValueError("nesterov needs a momentum above 0 and a dampening of 0")
        return self


class _AdamLike(Section):
    name: str
    lr: LearningRate = 1e-3
    betas: Betas = (0.9, 0.999)
    eps: NonNegative = 1e-8
    weight_decay: NonNegative = 0.0
    amsgrad: bool = False


class AdamOptimizer(_AdamLike):
    """`torch.optim.Adam`."""

    name: Literal["adam"] = "adam"


class AdamWOptimizer(_AdamLike):
    """`torch.optim.AdamW`."""

    name: Literal["adamw"]
    weight_decay: NonNegative = 1e-2


class NadamOptimizer(Section):
    """`torch.optim.NAdam`."""

    name: Literal["nadam"]
    lr: LearningRate = 2e-3
    betas: Betas = (0.9, 0.999)
    eps: NonNegative = 1e-8
    weight_decay: NonNegative = 0.0
    momentum_decay: NonNegative = 4e-3
    decoupled_weight_decay: bool = False


class MuonOptimizer(Section):
    """`torch.optim.Muon` for the matrices of hidden layers, `torch.optim.AdamW` for the rest.

    AdamW has the last layer, a first layer that is a convolution, and whatever is no matrix.
    """

    name: Literal["muon"]
    lr: LearningRate = 1e-3
    weight_decay: NonNegative = 0.1
    momentum: UpToOne = 0.95
    nesterov: bool = True
    ns_coefficients: Annotated[tuple[float, float, float], Field(strict=False)] = (
        3.4445,
        -4.775,
        2.0315,
    )
    eps: Annotated[float, Field(gt=0)] = 1e-7
    ns_steps: Annotated[int, Field(ge=1, lt=100)] = 5
    adjust_lr_fn: Literal["original", "match_rms_adamw", "spectral_unclamped"] = "original"
    adamw_lr: LearningRate = 1e-3
    adamw_betas: Betas = (0.9, 0.999)
    adamw_eps: NonNegative = 1e-8
    adamw_weight_decay: NonNegative = 1e-2


class RmspropOptimizer(Section):
    """`torch.optim.RMSprop`."""

    name: Literal["rmsprop"]
    lr: LearningRate = 1e-2
    alpha: Fraction = 0.99
    eps: NonNegative = 1e-8
    weight_decay: NonNegative = 0.0
    momentum: NonNegative = 0.0
    centered: bool = False


class ScratchSgdOptimizer(Section):
    """Plain gradient descent, the update written out."""

    name: Literal["scratch_sgd"]
    lr: LearningRate = 1e-3


# ----------------------------------------------------------------------------------- scheduler


class _Schedule(Section):
    name: str
    warmup: Annotated[int, Field(ge=0)] = 0
    """Steps or epochs (by `interval`) in which the learning rate first rises from a hundredth of
    itself, by `LinearLR`; the schedule counts from there, as in `SequentialLR`."""
    interval: Interval = "epoch"


class ConstantScheduler(_Schedule):
    """The learning rate stays as it is."""

    name: Literal["constant"] = "constant"


class StepScheduler(_Schedule):
    """`torch.optim.lr_scheduler.StepLR`."""

    name: Literal["step"]
    step_size: Positive
    gamma: NonNegative = 0.1


class MultiStepScheduler(_Schedule):
    """`torch.optim.lr_scheduler.MultiStepLR`."""

    name: Literal["multistep"]
    milestones: Annotated[tuple[Positive, ...], Field(strict=False, min_length=1)]
    gamma: NonNegative = 0.1


class CosineScheduler(_Schedule):
    """`torch.optim.lr_scheduler.CosineAnnealingLR`."""

    name: Literal["cosine"]
    T_max: Positive
    eta_min: NonNegative = 0.0


class LinearScheduler(_Schedule):
    """`torch.optim.lr_scheduler.LinearLR`."""

    name: Literal["linear"]
    start_factor: Annotated[float, Field(gt=0, le=1)] = 1 / 3
    end_factor: UpToOne = 1.0
    total_iters: Positive = 5


class OneCycleScheduler(Section):
    """`torch.optim.lr_scheduler.OneCycleLR`, the optimizer's `lr` its `max_lr`.

    Momentum is not cycled (`cycle_momentum=False`). After `total_steps` the learning rate stays at
    its lowest.
    """

    name: Literal["one_cycle"]
    total_steps: Positive
    """Steps or epochs of the whole cycle."""
    pct_start: UpToOne = 0.3
    anneal_strategy: Literal["cos", "linear"] = "cos"
    div_factor: Annotated[float, Field(gt=0)] = 25.0
    final_div_factor: Annotated[float, Field(gt=0)] = 1e4
    three_phase: bool = False
    interval: Interval = "step"


class WsdScheduler(_Schedule):
    """Warm-up, stable, decay.

    After `warmup` the learning rate stays for `stable` steps or epochs and then falls for `decay`
    of them, to `end_factor` of itself, where it stays.

    Sources: Hu et al., MiniCPM, 2024, arXiv 2404.06395; for the shapes Hägele et al., 2024, arXiv
    2405.18392.
    """

    name: Literal["wsd"]
    stable: Annotated[int, Field(ge=0)]
    decay: Positive
    shape: Literal["linear", "1-sqrt"] = "1-sqrt"
    """How it falls over the share t of `decay`: as 1 - t, or as 1 - sqrt(t)."""
    end_factor: UpToOne = 0.0


# --------------------------------------------------------------------------------------- train

Measured = Literal["train/loss", "train/acc", "val/loss", "val/acc"]


class EarlyStop(Section):
    """When a run that no longer gets better stops."""

    patience: Positive = 3
    """After how many epochs in a row that are no better, by `train.select`, than the best."""
    min_delta: NonNegative = 0.0
    """By how much the accuracy or loss of an epoch must be better to count."""


class TrainConfig(Section):
    """How long, from which seed, and on what."""

    epochs: Positive | None = None
    """Passes over the training images (4, if neither this nor `steps` is given)."""
    steps: Positive | None = None
    """Batches, instead of `epochs`."""
    seed: Seed = 0
    """Seed of the initial weights, the order of batches and dropout."""
    select: Literal["acc", "loss"] = "acc"
    """What makes an epoch the best: the highest validation accuracy (of equal ones the lowest
    loss), or the lowest validation loss."""
    eval_train: bool = False
    """Whether loss and accuracy on the training images are measured once more at the end, with the
    final weights; those of an epoch are running means over weights that change."""
    precision: Literal["fp32", "fp64", "bf16", "tf32"] = "fp32"
    """Floating-point type of weights and activations. With `bf16` products are computed in bfloat16
    as torch's autocast decides, and weights kept and updated in fp32; with `tf32` a GPU multiplies
    fp32 numbers with fewer bits."""
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    """The decay of an exponential moving average of the weights, by every step. Where it is given,
    the average is what is validated, selected, kept in `best.pt` and evaluated."""
    clip_grad_norm: Annotated[float, Field(gt=0)] | None = None
    """The largest norm of a run's gradient: a longer one is scaled down to it, as
    `torch.nn.utils.clip_grad_norm_` does."""
    early_stop: EarlyStop | None = None
    """A run that stops is finished, and its best epoch counts as ever; so with the next two."""
    target: Annotated[dict[Measured, float], Field(min_length=1)] | None = None
    """Figures at which a run stops, once an epoch has reached them all, e.g. {val/acc: 0.99}."""
    max_seconds: Annotated[float, Field(gt=0)] | None = None
    """Seconds after which a run stops: at the end of the epoch in which its epochs, of all
    sessions, have taken longer, evaluation included."""
    compile: bool = False
    """Has no effect any more: the engine calls its kernels one by one, and nothing is left to
    compile. Accepted so that configs of earlier runs stay valid."""
    device: Annotated[str, Field(pattern=DEVICE_PATTERN)] = "auto"
    """`auto` takes a GPU when there is one; else `cpu`, `cuda` or `cuda:N`."""

    @model_validator(mode="after")
    def _epochs_or_steps(self) -> Self:
        if self.epochs is not None and self.steps is not None:
            raise ValueError("epochs and steps are both given; set one of them to null")
        if self.epochs is None and self.steps is None:
            object.__setattr__(self, "epochs", 4)
        return self


# ----------------------------------------------------------------------------------- reference

Metric = Literal["train/loss", "train/acc", "val/loss", "val/acc", "test/loss", "test/acc"]
Published = dict[Metric, float | Annotated[tuple[float, ...], Field(strict=False, min_length=1)]]


def _is_setting(key: str, info: ValidationInfo) -> str:
    if not is_setting(key, info.data.get("model")):
        raise ValueError(f"is no setting{meant(key, setting_keys())}")
    return key


SettingKey = Annotated[str, AfterValidator(_is_setting)]


class ReferenceRun(Section):
    """The published figures of one run: a number is the last epoch's, a list has one per epoch."""

    when: dict[SettingKey, Any] = {}
    """Settings by which a run is recognised as this one, e.g. {optimizer.lr: 1e-3}."""
    figures: Published
    tolerance: dict[Metric, NonNegative] | None = None
    """How far a measured figure may lie from the published one, if not as in the whole reference.
    An empty mapping: the figures are shown and not judged."""
    spread: dict[Metric, NonNegative] = {}
    """As in the whole reference, where this run's is another."""


class Reference(Section):
    """Published figures of this experiment, shown beside the measured ones."""

    source: Annotated[str, Field(pattern=TEXT_PATTERN)]
    """Where the figures come from."""
    tolerance: dict[Metric, NonNegative] = {}
    """How far the mean over seeds may lie from the published figure (absolute)."""
    spread: dict[Metric, NonNegative] = {}
    """Standard deviation over seeds, where it is so wide that one run may lie further off."""
    epochs: Positive | None = None
    """Of which epoch figures without a list are, if not of the last."""
    runs: Annotated[tuple[ReferenceRun, ...], Field(strict=False)] = ()
    best: Published = {}
    """Figures of the sweep's winner."""


# --------------------------------------------------------------------------------------- whole


def _kinds(union: object) -> dict[str, type[Section]]:
    kinds: dict[str, type[Section]] = {}
    for kind in get_args(union) or (union,):
        name = kind.model_fields.get("name")
        kinds |= dict.fromkeys(get_args(name.annotation) if name else ("",), kind)
    return kinds


def _named(default: str, union: object) -> BeforeValidator:
    """Lets a section be its bare name (`model: logistic`), and names a section that has no name."""

    def fill(value: object) -> object:
        if isinstance(value, str):
            return {"name": value}
        return {"name": default, **value} if isinstance(value, dict) else value

    name = Annotated[str, Field(json_schema_extra={"enum": [*_kinds(union)]})]
    return BeforeValidator(fill, json_schema_input_type=name | union)


_Data = ImageData | SyntheticData | FolderData | NpzData
_Model = (
    LogisticModel
    | MlpModel
    | CnnModel
    | LenetModel
    | ResnetModel
    | VggModel
    | ScratchModel
    | TensorNetModel
    | FileModel
)
_Optimizer = (
    SgdOptimizer
    | AdamOptimizer
    | AdamWOptimizer
    | NadamOptimizer
    | MuonOptimizer
    | RmspropOptimizer
    | ScratchSgdOptimizer
)
_Scheduler = (
    ConstantScheduler
    | StepScheduler
    | MultiStepScheduler
    | CosineScheduler
    | LinearScheduler
    | OneCycleScheduler
    | WsdScheduler
)
_NAME = Field(discriminator="name")

DataConfig = Annotated[_Data, _NAME, _named("mnist", _Data)]
ModelConfig = Annotated[_Model, _NAME, _named("mlp", _Model)]
LossSection = Annotated[LossConfig, _named("cross_entropy", LossConfig)]
OptimizerConfig = Annotated[_Optimizer, _NAME, _named("adam", _Optimizer)]
SchedulerConfig = Annotated[_Scheduler, _NAME, _named("constant", _Scheduler)]

SECTIONS = ("data", "augment", "model", "loss", "optimizer", "scheduler", "train")
"""The sections that hold the settings of an experiment; the rest of a config is about them."""


@cache
def setting_keys() -> tuple[str, ...]:
    """The whole sections, and the dotted key of every setting of every variant."""
    kinds = [(section, kind) for section in SECTIONS for kind in variants(section).values()]
    keys = [f"{section}.{name}" for section, kind in kinds for name in kind.model_fields]
    return (*SECTIONS, *dict.fromkeys(keys))


def is_setting(key: str, model: object) -> bool:
    """Whether a dotted key is that of a setting; with a model from a file, also one of its own."""
    return key in setting_keys() or (isinstance(model, FileModel) and key.startswith("model."))


def nearest(word: object, known: Iterable[str]) -> list[str]:
    """The most similar of some words, if one is similar."""
    return get_close_matches(str(word)[:100], [*known], n=1)


def meant(word: object, known: Iterable[str]) -> str:
    """A clause that names the most similar word, or those that are the same but for a section."""
    words = [*known]
    found = [other for other in words if other.rpartition(".")[2] == word] or nearest(word, words)
    return f"; did you mean {' or '.join(map(repr, found))}?" if found else ""


def _is_space(given: str | tuple[Any, ...]) -> str | tuple[Any, ...]:
    parse_space(given)
    return given


_Choices = Annotated[tuple[Any, ...], Field(strict=False)]
_Space = Annotated[str | _Choices, AfterValidator(_is_space)]


class SearchConfig(Section):
    """Which settings `mnist search` searches, how, and for how long."""

    space: dict[str, _Space] = {}
    """Dotted settings and what each may be: a range (`lin:0:0.5`, `0..0.5`, `log:1e-4:1e-1`) or a
    list. A setting that only some variants of its section have is searched where they are."""
    trials: Positive = 64
    """How many points of the space are tried."""
    seeds: Positive = 1
    """With how many seeds each trial is trained, from `train.seed` on; their mean counts."""
    sampler: Literal["tpe", "random", "qmc", "gp"] = "tpe"
    """Optuna's sampler of that name."""
    seed: Seed = 0
    """Seed of the sampler."""
    batch: Positive = 16
    """How many trials are asked for, and trained, at a time."""
    pruner: Literal["halving", "median", "none"] = "halving"
    """What ends trials early. `halving`: of each batch the best part goes on at each rung, one in
    `reduction_factor`; rungs are `min_epochs` times powers of it. `median`: from `min_epochs` on a
    trial ends that is worse than the median of the finished trials of earlier batches (five at
    least) after as many epochs."""
    reduction_factor: Annotated[int, Field(ge=2)] = 4
    """One in how many trials goes on (`halving`)."""
    min_epochs: Positive = 1
    """After how many epochs the first trials may end."""
    max_epochs: Positive | None = None
    """No batch begins once all runs together have trained so many epochs."""
    max_seconds: Annotated[float, Field(gt=0)] | None = None
    """No batch begins after so many seconds."""


_Axis = Annotated[tuple[Any, ...], Field(strict=False, min_length=1)]


class Config(Section):
    """One whole experiment."""

    name: Annotated[str, Field(pattern=NAME_PATTERN)] | None = None
    """What its runs are called (the file's name, if not given)."""
    data: DataConfig = Field({}, validate_default=True)
    augment: AugmentConfig = Field({}, validate_default=True)
    model: ModelConfig = Field({}, validate_default=True)
    loss: LossSection = Field({}, validate_default=True)
    optimizer: OptimizerConfig = Field({}, validate_default=True)
    scheduler: SchedulerConfig = Field({}, validate_default=True)
    train: TrainConfig = Field({}, validate_default=True)
    sweep: dict[SettingKey, _Axis] = {}
    """Dotted settings and the values each takes; `mnist sweep` runs every combination. A
    setting that only some variants of its section have is swept where they are."""
    zip: Annotated[
        tuple[Annotated[tuple[SettingKey, ...], Field(strict=False)], ...], Field(strict=False)
    ] = ()
    """Settings of the sweep that move together, e.g. [[optimizer.lr, data.batch_size]]."""
    added: Annotated[tuple[dict[SettingKey, _Axis], ...], Field(strict=False)] = ()
    """Values that were added to the sweep later; their runs come after those that there were."""
    nuisance: Annotated[tuple[SettingKey, ...], Field(strict=False)] = ()
    """Swept settings that have to be right for a fair comparison but are not what is compared: the
    ranking takes the best over them for each value of the others."""
    search: SearchConfig | None = None
    reference: Reference | None = None

    def alone(self, sweep: Mapping[str, tuple[object, ...]] | None = None) -> Self:
        """The config without what is swept or searched in it, or with this sweep instead."""
        nothing: dict[str, object] = {"zip": (), "added": (), "search": None}
        return self.model_copy(update={"sweep": dict(sweep or {}), **nothing})

    def resolved(self) -> dict[str, Any]:
        """The config as plain values, defaults filled in: itself a config that means the same."""
        return self.model_dump(mode="json", exclude_none=True)

    def steps(self, images: int) -> int:
        """How many steps its training has, given how many images there are to train on."""
        per_epoch = -(-images // self.data.batch_size)
        return self.train.steps or (self.train.epochs or 0) * per_epoch

    def settings(self) -> Iterator[tuple[str, Any]]:
        """Every setting of the experiment as (dotted key, value), in the order of the schema."""
        for section, values in self.resolved().items():
            if section in SECTIONS:
                for key, value in values.items():
                    yield f"{section}.{key}", value


def variants(section: str) -> dict[str, type[Section]]:
    """What a section of an experiment may be: classes by name (`train` has no name: one, by "")."""
    return _kinds(Config.model_fields[section].annotation)
