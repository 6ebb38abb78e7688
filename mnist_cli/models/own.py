"""Models of a user's own: a Python file that makes them, and what a module must be to be trained.

Nothing here runs a file because a checkpoint, a run folder or a shipped config asks for it: it runs
when its user has named it on a command line, or in a config given there, with the text that it has
now at the place where it is now. That is noted by `allow`, in the user's own state directory.
"""

import copy
import hashlib
import os
import random
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from mnist_cli.config.own_model import HINT, read
from mnist_cli.config.schema import FileModel
from mnist_cli.errors import UsageError, in_words
from mnist_cli.models.shapes import Shape


def allow(model: FileModel) -> None:
    """Notes that the user has named a file, with the text that it has now.

    Raises:
        OSError: it cannot be noted.
    """
    note = _note(model)
    note.parent.mkdir(parents=True, exist_ok=True)
    note.write_text(model.path)


def load(model: FileModel) -> Callable[..., nn.Module]:
    """What makes the module of `(shape, classes)`; the file runs once in a process.

    Raises:
        UsageError: the file may not be run or cannot.
    """
    if not _note(model).exists():
        raise UsageError(f"{model.path}: its code runs only for a user who has named it", HINT)
    factory: Any = getattr(_run(model.path, model.sha256 or ""), model.factory or "", None)

    def make(shape: Shape, classes: int) -> nn.Module:
        with _explained(model.path, f"{model.factory} fails"):
            module = factory(shape, classes, **(model.model_extra or {}))
            if not isinstance(module, nn.Module):
                raise _UnfitError(f"it makes {type(module).__name__}, no nn.Module")
        return module

    return make


def check(model: FileModel, module: nn.Module, shape: Shape, classes: int) -> None:
    """Makes a module ready, and sees to it that it is one which a run can train.

    Raises:
        UsageError: it is none.
    """
    what = f"{model.factory} cannot be trained"
    with _explained(model.path, what), torch.random.fork_rng(devices=[]), torch.no_grad():
        module.eval()(torch.rand(2, *shape))  # lazy layers take on their sizes
        _check_parameters(module)
        _check_forward(copy.deepcopy(module).train(), shape, classes)


class _UnfitError(Exception):
    """A module that cannot be trained, and why."""


def _note(model: FileModel) -> Path:
    state = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    place = f"{os.path.realpath(model.path)}\0{model.sha256}".encode(errors="surrogateescape")
    return Path(state).expanduser() / "mnist" / "models" / hashlib.sha256(place).hexdigest()


@cache
def _run(path: str, sha256: str) -> ModuleType:
    """Runs a file with that text; modules beside it can be imported, and stay its own."""
    text, folder = read(path, sha256), str(Path(path).parent)
    module = ModuleType(f"mnist_own_model_{sha256}")
    module.__file__ = path
    before = set(sys.modules)
    sys.modules[module.__name__] = module  # where classes look for themselves
    sys.path.insert(0, folder)
    try:
        with _explained(path, "it cannot be imported"):
            exec(compile(text, path, "exec"), vars(module))  # noqa: S102 - the user named it
    finally:
        sys.path.remove(folder)
        for name in sys.modules.keys() - before - {module.__name__}:
            if str(getattr(sys.modules[name], "__file__", "")).startswith(f"{folder}/"):
                del sys.modules[name]  # that of the next file may have the same name
    return module


@contextmanager
def _explained(path: str, what: str) -> Iterator[None]:
    """Says of an error in the code of a file which it is, and on which line.

    Raises:
        UsageError: there was one.
    """
    try:
        yield
    except (Exception, SystemExit) as error:
        frames = traceback.walk_tb(error.__traceback__)
        lines = [line for frame, line in frames if frame.f_code.co_filename == path]
        place = f"{path}:{lines[-1]}" if lines else path
        kind = "" if isinstance(error, _UnfitError) else f"{type(error).__name__}: "
        hint = "--debug shows the traceback" if kind else None
        raise UsageError(f"{place}: {what}: {kind}{in_words(error)}", hint) from error


def _check_parameters(module: nn.Module) -> None:
    names = [name for name, _ in module.named_parameters(remove_duplicate=False)]
    parameters = dict(module.named_parameters())
    if not parameters:
        raise _UnfitError("it has no parameters")
    if shared := [name for name in names if name not in parameters]:
        raise _UnfitError(f"{shared[0]} is also a parameter of another name")
    if fixed := [name for name, value in parameters.items() if not value.requires_grad]:
        raise _UnfitError(f"{fixed[0]} is not to be trained: make it a buffer (register_buffer)")


def _check_forward(module: nn.Module, shape: Shape, classes: int) -> None:
    images = torch.rand(3, *shape)
    attributes, drawn = _attributes(module), _random_state()
    found = []
    for n in (3, 2, 3):
        logits = module(images[:n])
        is_real = isinstance(logits, Tensor) and logits.is_floating_point()
        if not is_real or logits.shape != (n, classes):
            has = tuple(getattr(logits, "shape", [type(logits).__name__]))
            raise _UnfitError(f"of {n} images it makes {has}, not logits of shape {(n, classes)}")
        found.append(logits)
    if _random_state() != drawn:
        raise _UnfitError("it draws random numbers: only nn.Dropout can, by the seed of the run")
    changed = [key for key, value in _attributes(module).items() if attributes.get(key) != value]
    if changed:
        what = f"it changes {changed[0]}: what is kept from one batch to the next is a buffer"
        raise _UnfitError(f"{what} (register_buffer)")
    if not torch.allclose(found[0], found[2], equal_nan=True):
        raise _UnfitError("of the same images it makes something else each time")


def _random_state() -> tuple[Any, ...]:
    return torch.get_rng_state().tolist(), random.getstate()


def _attributes(module: nn.Module) -> dict[str, str]:
    """What the layers of a module hold besides parameters and buffers, as text."""
    usual = vars(nn.Module())
    return {
        f"{name}.{key}".lstrip("."): repr(value)
        for name, layer in module.named_modules()
        for key, value in vars(layer).items()
        if key not in usual
    }
