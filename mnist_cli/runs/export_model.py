"""A checkpoint's model as a program that runs without mnist: ONNX, or torch's own `.pt2`."""

import io
import warnings
from importlib.util import find_spec
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from mnist_cli.config import Config
from mnist_cli.data.dataset import scale
from mnist_cli.errors import CheckpointError, UsageError, in_words
from mnist_cli.runs.checkpoint import Checkpoint
from mnist_cli.runs.evaluate import module

Format = Literal["onnx", "pt2"]
ONNX = ("onnx", "onnxscript", "onnxruntime")
TOLERANCE = 1e-4  # of the largest logit


def export(state: Checkpoint, config: Config, to: Format) -> tuple[bytes, float]:
    """A program that takes images as the module does, any number at once, and gives its logits.

    It is loaded again and run on images of noise, one at a time and several.

    Returns:
        The file, and the largest difference from the module's logits.

    Raises:
        CheckpointError: the weights are not those of the config's model, or cannot be exported, or
            the program gives other logits.
        UsageError: a package is missing.
    """
    if missing := [name for name in ONNX if to == "onnx" and find_spec(name) is None]:
        hint = "pip install 'mnist-cli[onnx]'"
        raise UsageError(f"ONNX needs {' and '.join(missing)}, not installed here", hint)
    model = module(state, config).eval()
    dtype = next(model.parameters()).dtype
    noise = np.random.default_rng(0).integers(0, 256, (5, *state.form[0]))
    images = torch.from_numpy(noise).to(dtype) / scale(config.data)
    with torch.no_grad(), warnings.catch_warnings(action="ignore"):
        expected = model(images)
        try:
            shapes = ({0: torch.export.Dim("batch")},)
            program = torch.export.export(model, (images,), dynamic_shapes=shapes)
            content, found = (_onnx if to == "onnx" else _pt2)(program, images)
        except Exception as error:  # whatever of these packages it is
            raise CheckpointError(f"it cannot be exported: {in_words(error)}") from error
    difference = float((found - expected).abs().max())
    if not difference <= TOLERANCE * max(1.0, float(expected.abs().max())):
        raise CheckpointError(f"the exported program is off by {difference:.2g} in a logit")
    return content, difference


def _pt2(program: torch.export.ExportedProgram, images: Tensor) -> tuple[bytes, Tensor]:
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    again = torch.export.load(io.BytesIO(buffer.getvalue())).module()
    return buffer.getvalue(), torch.cat([again(images[:1]), again(images[1:])])


def _onnx(program: torch.export.ExportedProgram, images: Tensor) -> tuple[bytes, Tensor]:
    import onnxruntime  # noqa: PLC0415 - an extra

    made = torch.onnx.export(program, dynamo=True, verbose=False, input_names=["images"])
    assert made is not None
    content: bytes = made.model_proto.SerializeToString()
    session = onnxruntime.InferenceSession(content)
    parts = [session.run(None, {"images": x.numpy()})[0] for x in (images[:1], images[1:])]
    return content, torch.from_numpy(np.concatenate(parts))
