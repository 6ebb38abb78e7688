"""Imports form a line: a file imports only from the lines above its own."""

import ast
from pathlib import Path

import pytest

import mnist_cli

PACKAGE = Path(mnist_cli.__file__).parent

# Lowest first; a file may import from its own line's package and from earlier lines.
LINE = [
    ("errors", "interrupts", "seeds", "files", "stats"),
    ("config",),
    ("store",),
    ("scratch",),
    ("data", "losses", "models", "optim", "pictures", "capture", "workers"),
    ("batched",),
    ("stack",),
    ("train", "plan"),
    ("checkpoint",),
    ("run",),
    ("measure", "steps"),
    ("executors", "foreign", "bench"),
    ("sweep",),
    ("report",),
    ("plots", "display"),
    ("cli",),
    ("__main__",),
]
RANK = {name: rank for rank, names in enumerate(LINE) for name in names}
NO_TORCH = {
    "errors",
    "interrupts",
    "seeds",
    "files",
    "stats",
    "config",
    "store",
    "pictures",
    "report",
    "plots",
    "cli",
    "__main__",
}
NO_RICH = {name for name in RANK if RANK[name] < RANK["report"]}


def files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def unit(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imports(path: Path) -> set[str]:
    """Modules imported when the file is, and not only for the type checker or inside a function."""
    found: set[str] = set()
    pending: list[ast.AST] = list(ast.parse(path.read_text()).body)
    while pending:
        node = pending.pop()
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                continue
            case ast.If(test=ast.Name("TYPE_CHECKING")):
                continue
            case ast.Import():
                found |= {alias.name for alias in node.names}
            case ast.ImportFrom(module=str(module)):
                found |= {f"{module}.{alias.name}" for alias in node.names}
            case _:
                pending.extend(ast.iter_child_nodes(node))
    return found


@pytest.mark.parametrize("path", files(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_form_a_line(path: Path) -> None:
    me = unit(path)
    if me == "__init__":
        return
    assert me in RANK, f"{me} has no place in the line"
    for module in imports(path):
        parts = module.split(".")
        if parts[0] == "mnist_cli" and len(parts) > 1 and not parts[1].startswith("__"):
            other = parts[1]
            assert other == me or RANK[other] < RANK[me], f"{me} must not import {other}"
        if me in NO_TORCH:
            assert parts[0] not in {"torch", "torchvision"}, f"{me} must not import {parts[0]}"
        if me in NO_RICH:
            assert parts[0] not in {"rich", "typer"}, f"{me} must not import {parts[0]}"


def test_every_name_in_the_line_is_a_file() -> None:
    assert set(RANK) == {unit(path) for path in files()} - {"__init__"}
