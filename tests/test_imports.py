"""Imports go one way: a folder imports only from folders below its own."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import mnist_cli

PACKAGE = Path(mnist_cli.__file__).parent

# Lowest first. `errors` is below them all.
FOLDERS = ("errors", "config", "data", "models", "engine", "runs", "sweeps", "report", "api", "cli")
RANK = {name: rank for rank, name in enumerate((*FOLDERS, "__main__"))}
NO_TORCH = {
    *("errors", "config", "report", "api", "cli", "__main__"),
    *("data.seeds", "data.durable", "data.own", "data.pictures", "data.prepared", "data.sources"),
    *("runs.store", "runs.interrupts", "sweeps.stats"),
}
NO_TERMINAL = set(FOLDERS[: FOLDERS.index("report")])


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


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


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_one_way(path: Path) -> None:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    folder, name = parts[0], ".".join(parts)
    if folder == "__init__":
        return
    assert folder in RANK, f"{folder} has no place in the order"
    for module in imports(path):
        root, _, rest = module.partition(".")
        if root == "mnist_cli" and rest and not rest.startswith("__"):
            other = rest.partition(".")[0]
            assert other == folder or RANK[other] < RANK[folder], f"{name} imports {module}"
        if folder in NO_TORCH or name in NO_TORCH:
            assert root not in {"torch", "torchvision"}, f"{name} imports {root}"
        if folder in NO_TERMINAL:
            assert root not in {"rich", "typer"}, f"{name} imports {root}"


def test_the_order_names_every_folder() -> None:
    found = {path.relative_to(PACKAGE).with_suffix("").parts[0] for path in modules()}
    assert set(RANK) == found - {"__init__"}


@pytest.mark.parametrize("argv", [["--help"], ["train", "--config", "bad.yaml"]], ids=" ".join)
def test_help_and_errors_come_at_once(argv: list[str], tmp_path: Path) -> None:
    """Each of these takes longer to import than all else that such a command does."""
    (tmp_path / "bad.yaml").write_text("modle: mlp\n")
    code = f"import sys, mnist_cli.cli; mnist_cli.cli.run_command({argv})"
    slow = "torch", "torchvision", "numpy", "matplotlib", "rich"
    code += f"; print('imported:', *set({slow}) & sys.modules.keys())"
    environment = {"PYTHONPATH": str(PACKAGE.parent)}
    ended = subprocess.run(
        [sys.executable, "-c", code],
        check=True, capture_output=True, text=True, cwd=tmp_path, env=environment,
    )  # fmt: skip
    assert ended.stdout.splitlines()[-1] == "imported:"
