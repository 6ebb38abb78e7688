"""What the text of a user's own model says of its factory; it is read here, and never run."""

import ast
import hashlib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from mnist_cli.config.document import Problem, quoted
from mnist_cli.config.schema import FileModel, meant
from mnist_cli.errors import UsageError, in_words

MAX_BYTES = 1_000_000
HINT = "name it: --model FILE; the run's folder has the text that it was trained with, in model.py"


class Factory(NamedTuple):
    """A function, or a class by its `__init__`, at the top level of a file."""

    line: int
    arguments: list[str]
    """What is given by position; the first two stand for the shape and the classes."""
    defaults: dict[str, object]
    """Of its keywords; `...` for one that has none, None for one that is no constant."""
    takes_any: bool
    """Whether it has `**keywords`."""


def read(path: str, sha256: str | None = None) -> bytes:
    """The text of a model's file, as it is encoded.

    Args:
        path: the file.
        sha256: the sum that it must have.

    Raises:
        UsageError: it cannot be read, is no Python file, or has another sum.
    """
    try:
        if not Path(path).is_file() or Path(path).stat().st_size > MAX_BYTES:
            raise UsageError(f"{path} is no Python file", HINT)
        text = Path(path).read_bytes()
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read: {in_words(error)}", HINT) from error
    if sha256 not in (None, hashlib.sha256(text).hexdigest()):
        raise UsageError(f"{path} has changed since, and is no longer that of the run", HINT)
    return text


def resolve(model: FileModel) -> tuple[FileModel, list[Problem]]:
    """A model with the sum of its file and the name of its factory, and what is wrong with it.

    One that has the sum already is as it was found then: its file may be on another machine.
    """
    if model.sha256:
        return model, []
    try:
        text = read(model.path)
        factories = _factories(text, model.path)
    except UsageError as error:
        return model, [Problem(("model", "path"), error.message)]
    usual = [n for n, each in factories.items() if each.arguments[:2] == ["shape", "classes"]]
    name = model.factory or (usual[0] if len(usual) == 1 else "")
    if name not in factories or len(factories[name].arguments) < 2:
        what = f"{model.path} has no function or class {name!r} that takes (shape, classes)"
        if not name:
            what = f"{model.path} has {len(usual)} functions or classes that take (shape, classes)"
        known = ", ".join(usual or factories) or "none at all"
        return model, [Problem(("model", "path"), f"{what}; model.factory may be: {known}")]
    found = {"factory": name, "sha256": hashlib.sha256(text).hexdigest()}
    return model.model_copy(update=found), [*_misfits(model, name, factories[name])]


def _misfits(model: FileModel, name: str, factory: Factory) -> Iterator[Problem]:
    """What is wrong with the settings of a model, by the signature of its factory."""
    place, settings = f"{name} ({model.path}:{factory.line})", model.model_extra or {}
    for key, value in settings.items():
        default = factory.defaults.get(key)
        if key not in factory.defaults and not factory.takes_any:
            has = ", ".join(factory.defaults) or "none"
            what = f"{place} has the keywords {has}{meant(key, factory.defaults)}"
            yield Problem(("model", key), f"unknown setting: {what}", "extra_forbidden")
        elif default not in (None, ...) and _kind(value) != _kind(default):
            what = f"must be {_kind(default)}, as in {place}, got {quoted(value)}"
            yield Problem(("model", key), what)
        elif default is ... and value is None:
            yield Problem(("model", key), f"must not be null: {place} has no default")
    for key, default in factory.defaults.items():
        if default is ... and key not in settings:
            yield Problem(("model", key), f"is missing: {place} has no default", "missing")


def _kind(value: object) -> str:
    kinds = {bool: "true or false", int: "a number", float: "a number", str: "text"}
    return kinds.get(type(value), "a list" if isinstance(value, list | tuple) else "null")


@lru_cache  # every run of a sweep asks
def _factories(text: bytes, path: str) -> dict[str, Factory]:
    """The functions and classes at the top level of a file, by name.

    Raises:
        UsageError: it is not Python.
    """
    try:
        body = ast.parse(text, path).body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = getattr(error, "lineno", None) or 1
        raise UsageError(f"{path}:{line}: {getattr(error, 'msg', in_words(error))}") from error
    found: dict[str, Factory] = {}
    for node in body:
        if isinstance(node, ast.FunctionDef):
            found[node.name] = _factory(node.lineno, node.args, bound=0)
        elif isinstance(node, ast.ClassDef):
            for part in node.body:
                if isinstance(part, ast.FunctionDef) and part.name == "__init__":
                    found[node.name] = _factory(node.lineno, part.args, bound=1)
    return found


def _factory(line: int, arguments: ast.arguments, bound: int) -> Factory:
    """A signature, of which so many arguments are given by Python itself."""
    names = [argument.arg for argument in (*arguments.posonlyargs, *arguments.args)]
    only = [argument.arg for argument in arguments.kwonlyargs]
    given = dict(zip(names[::-1], arguments.defaults[::-1], strict=False))
    given |= {n: d for n, d in zip(only, arguments.kw_defaults, strict=True) if d is not None}
    keywords = [n for n in (*names[bound + 2 :], *only) if n not in FileModel.model_fields]
    defaults = {name: _constant(given.get(name)) for name in keywords}
    return Factory(line, names[bound:], defaults, takes_any=arguments.kwarg is not None)


def _constant(default: ast.expr | None) -> object:
    try:
        return ... if default is None else ast.literal_eval(default)
    except ValueError:
        return None
