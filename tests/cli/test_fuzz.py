"""Whatever is typed or lies in a file: a code of the contract, one sentence, never a traceback.

MNIST_FUZZ=5000 tries so many of each, other ones each time.
"""

import contextlib
import io
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from hypothesis import HealthCheck, event, example, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from PIL import Image

from mnist_cli import cli
from mnist_cli.cli import run_command
from mnist_cli.config import SECTIONS
from mnist_cli.config.schema import variants

CODES = {0, 1, 2, 3, 4, 5}
ASKED = int(os.environ.get("MNIST_FUZZ", "0"))


def fuzz(examples: int) -> Callable[[Any], Any]:
    return settings(
        max_examples=ASKED or examples,
        derandomize=not ASKED,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


# ------------------------------------------------------------------------------------- the oracle


def check(argv: list[str]) -> None:
    """Runs a command line and holds what it does against the contract."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run_command(argv)
    written, shown = out.getvalue(), err.getvalue()
    about = f"{argv}: {code}\n{written}\n{shown}"
    assert code in CODES, about
    assert "Traceback" not in written + shown, about
    assert "this should not happen" not in shown, about
    errors = re.findall("^error: ", shown, re.MULTILINE)
    if code == 0:
        assert not errors, about
        if "--json" in argv and not {"--help", "-h"} & {*argv} and written:
            json.loads(written, parse_constant=pytest.fail)
    elif "Usage: mnist" in shown or (re.search(r"^\S.*: ", shown, re.MULTILINE) and not errors):
        assert code == 2, about  # a group of commands alone; a config, each problem with its place
    else:
        # Of pictures and of configs there may be several.
        assert len(errors) == 1 or argv[0] == "predict" or argv[:2] == ["config", "check"], about
    event(f"{argv[0]}: {code}")


# ------------------------------------------------------------------------------- what is typed

# Nothing in between: what is small is quickly done, and what is huge is refused at once.
NUMBERS = ["0", "1", "2", "3", "-1", "1.5", "1e-3", "0.1", "1e38", "1e400", ".inf", ".nan", "-0"]
HUGE = [str(10**30), "-" + "9" * 40]
WORDS = ["null", "true", "mlp", "cnn", "logistic", "scratch", "tensor_net", "sgd", "adam", "adamw"]
WORDS += ["rmsprop", "scratch_sgd", "constant", "step", "multistep", "cosine", "epoch", "nll"]
WORDS += ["scratch_nll", "sum", "mean", "pooled", "holdout", "official", "loss", "acc", "fp64"]
WORDS += ["bf16", "tf32", "relu", "tanh", "cpu", "cuda:7", "auto", "mnist", "cifar10", "", "~", "é"]
LISTS = ["[]", "[1]", "[1, 2]", "[2, 3, 4]", "[0.5, 0.9]", "[[1]]", "1,2", "1..3", "3..1", "1..",
         "log:1e-3:1e-1:2", "log:0:1:3", "log:1e-1:1e-3:2", ",", "a,b", "{}", "{a: 1}"]  # fmt: skip
MAPS = ["{name: sgd, lr: 0.1, momentum: 0.9}", "{name: step, step_size: 1, gamma: 1e38}",
        "{name: step, step_size: 1, gamma: 0}", "{name: cosine, T_max: 1}", "{name: mlp, depth: 3}",
        "{name: mlp, hidden: [3, 2], dropout: 0.5}", "{name: cnn, channels: [2, 2]}",
        "{name: synthetic, size: 70}", "{name: synthetic, size: 71, batch_size: 100}",
        "{name: synthetic, size: 70, split: holdout}", "{name: kmnist}", "{", "{a: &b 1, c: *b}",
        "!!python/object:os.system", "- 1\n- 2", "\x00", "'", "? a"]  # fmt: skip
values = st.one_of(*map(st.sampled_from, (NUMBERS, WORDS, LISTS, MAPS)), st.text(max_size=6))
KEYS = [
    f"{section}.{key}"
    for section in SECTIONS
    for kind in variants(section).values()
    for key in kind.model_fields
]
keys = st.sampled_from(
    [*KEYS, *SECTIONS, "name", "sweep", "reference", "a.b", "model.", ".", "", "lr"]
)
# What may be huge without being slow, as it cannot be had at all.
huge = st.tuples(
    st.sampled_from(["model.width", "optimizer.lr", "train.seed", "data.seed", "train.steps"]),
    st.sampled_from(HUGE),
).filter(lambda pair: pair != ("train.steps", HUGE[0]))
# What is taken for itself, and not always together.
sound = st.sampled_from(
    ["optimizer=sgd", "optimizer=rmsprop", "optimizer.lr=1e38", "optimizer={name: sgd, lr: 1e38}",
     "optimizer={name: adam, eps: 0, amsgrad: true}", "optimizer={name: scratch_sgd, lr: 1e30}",
     "model=logistic", "model=scratch", "model={name: cnn, channels: [2, 2]}", "model.hidden=[]",
     "model={name: tensor_net, hidden: [2]}", "model={name: mlp, depth: 1}", "model.dropout=0.9",
     "loss=nll", "loss=scratch_nll", "loss={name: cross_entropy, reduction: sum}",
     "scheduler={name: step, step_size: 1, gamma: 1e308, interval: step}",
     "scheduler={name: cosine, T_max: 1, interval: step}", "train.clip_grad_norm=1e-300",
     "train.clip_grad_norm=1e300", "train.precision=bf16", "train.precision=fp64",
     "train.select=loss", "train.eval_train=true", "data.batch_size=100000", "data.batch_size=1",
     "data.shuffle=false", "data.normalize=false", "data.split=official", "data.split=holdout"]
)  # fmt: skip
odd = st.one_of(
    st.tuples(keys, values).map("=".join),
    huge.map("=".join),
    st.text(max_size=8),
)


def mostly(common: SearchStrategy[Any], rare: SearchStrategy[Any]) -> SearchStrategy[Any]:
    """`one_of` with weights: nine of ten are of the first kind."""
    return st.integers(0, 9).flatmap(lambda number: rare if number == 9 else common)


overrides = mostly(sound, odd)
SMALL = ("data={name: synthetic, size: 70}", "train={steps: 2}")
ENOUGH = ("train.steps=2", "train.epochs=null")

names = st.sampled_from(
    ["mlp-0001", "mlp-sweep-0001", "mlp-sweep-0001/trials/000", "mlp", "", ".", "..", "/", "nul"]
)
paths = st.sampled_from(
    ["best.pt", "good.pt", "half.pt", "empty", "text.txt", "picture.png", "half.png", "good.yaml",
     "bad.yaml", "folder", "loop", "gone", "gone/gone", "", "/dev/null", "weights.npz", "x" * 300,
     "runs/mlp-0001/best.pt", "runs/mlp-0001/last.pt", "runs/mlp-0001/meta.json", "é\n"]
)  # fmt: skip
grid = st.sampled_from(
    ["model=cnn,mlp", "scheduler.gamma=1,1e300", "train.clip_grad_norm=null,1", "data.seed=1,2",
     "train.precision=fp32,bf16,fp64", "optimizer=sgd,adam", "model.depth=1..3",
     "data.batch_size=1,50", "train.steps=1,3", "train.device=cpu,auto,cuda:7"]
)  # fmt: skip
configs = st.one_of(st.sampled_from(["mlp", "logistic", "cnn", "nowhere"]), paths)
# What is typed for a parameter, by its name; for all others, any value.
TYPED = {
    **dict.fromkeys(("checkpoint", "images", "weights", "target", "output", "runs_dir"), paths),
    **dict.fromkeys(("config", "files", "name"), configs),
    "run": names,
    "source": st.sampled_from(["folder", "gone"]),
    "names": st.sampled_from(["mnist", "cifar10", "x", ""]),
    "overrides": overrides,
    "changes": overrides,
    "epochs": st.sampled_from(["0", "-1", "1", "3", "x"]),
    "workers": st.sampled_from(["1", "2", "0", "x"]),
    "fuse": st.sampled_from(["on", "off", "x"]),
    "lrs": st.sampled_from(["1e-2,1e38", "1e37,1e38", "log:1e-3:1:3", "log:0:1:3", ",", "1..3"]),
    "seeds": st.sampled_from(["1", "2", "0,5", "x"]),
    "grid": mostly(grid, st.tuples(keys, st.one_of(values, st.sampled_from(LISTS))).map("=".join)),
    "split": st.sampled_from(["train", "val", "test", "x"]),
}


def leaves(group: Any, *path: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command that does something, with the words that call it."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from leaves(command, *path, name)
        elif name != "bench":
            yield (*path, name), command


@st.composite
def line(draw: st.DrawFn) -> list[str]:
    """A command line: a command with a few of its options, made small enough to be quick."""
    path, command = draw(st.sampled_from(COMMANDS))
    argv = list(path)
    for param in command.params:
        value = TYPED.get(param.name, values)
        if param.param_type_name == "argument":
            argv += draw(st.lists(value, min_size=draw(mostly(st.just(1), st.just(0))), max_size=2))
        elif draw(st.integers(0, 9)) == 9:  # the least is none
            argv += [param.opts[0]] if param.is_flag else [param.opts[0], draw(value)]
    if path[0] in ("train", "sweep"):
        argv[1:1] = SMALL
        argv += ENOUGH
    return argv


COMMANDS = [
    leaf
    for leaf in leaves(typer.main.get_command(cli.app))
    for _ in range(6 if leaf[0][0] in ("train", "sweep", "resume", "eval", "predict") else 1)
]
stray = st.one_of(
    st.sampled_from(["train", "runs", "config", "-h", "--json", "-", "--", "--debugs", "-x"]),
    st.text(max_size=5),
)
commands = mostly(line(), st.lists(stray, min_size=1, max_size=3))


@pytest.fixture(scope="module")
def home(_trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what command lines speak of: runs, checkpoints, pictures, configs."""
    home = tmp_path_factory.mktemp("fuzz")
    shutil.copytree(_trained, home / "runs")
    whole = (home / "runs" / "mlp-0001" / "best.pt").read_bytes()
    picture = io.BytesIO()
    Image.new("L", (9, 9), 200).save(picture, "png")
    for name, content in {
        "good.pt": whole,
        "half.pt": whole[: len(whole) // 2],
        "empty": b"",
        "text.txt": b"hello\n",
        "picture.png": picture.getvalue(),
        "half.png": picture.getvalue()[:40],
        "good.yaml": b"model: logistic\nsweep: {optimizer.lr: [0.1, 0.01]}\n",
        "bad.yaml": b"modle: x\noptimizer: {lr: -1}\ntrain: [\n",
        "weights.npz": b"PK\x03\x04",
    }.items():
        (home / name).write_bytes(content)
    (home / "folder").mkdir()
    (home / "loop").symlink_to("loop")
    return home


@pytest.fixture
def there(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it to stand in, for this test alone."""
    place = tmp_path / "there"
    shutil.copytree(home, place, symlinks=True)
    monkeypatch.chdir(place)
    monkeypatch.setenv("MNIST_RUNS_DIR", "runs")
    return place


@fuzz(100)
@given(argv=commands)
@example(argv=["train", *SMALL, "model.width=" + HUGE[0]])
def test_command_lines(argv: list[str], there: Path) -> None:
    check(argv)


# ------------------------------------------------------------------------------ what lies in files


def damaged(places: list[tuple[float, int]], end: float, twice: bool) -> Callable[[bytes], bytes]:
    """What changes some bytes, cuts them off, or writes them twice."""

    def damage(content: bytes) -> bytes:
        found = bytearray(content)
        for place, byte in places:
            found[int(place * (len(found) - 1))] = byte
        return bytes(found[: int(end * len(found))]) * (1 + twice)

    return damage


fraction = st.floats(0, 1)
changes = st.lists(st.tuples(fraction, st.integers(0, 255)), max_size=3)
damage = st.builds(damaged, changes, st.just(1.0) | fraction, st.booleans())
FILES = ["best.pt", "last.pt", "meta.json", "summary.json", "metrics.jsonl", "config.yaml"]
USES = ["runs list", "runs list --json", "runs show mlp-0001", "runs show mlp-0001 --json", "eval",
        "resume mlp-0001", "resume mlp-0001 --epochs 3", "plot mlp-0001",
        "eval --checkpoint runs/mlp-0001/best.pt"]  # fmt: skip
# Sound JSON of another form, for whoever only looks whether it can be read.
ODD = ["{}", "[]", "null", "3", '{"status": []}', '{"status": "running", "pid": null}', "[" * 9999,
       '{"status": "interrupted"}', '{"best": 3}', '{"trials": [1]}', '{"epochs": {}}',
       '{"status": "finished", "seconds": "x"}', '{"versions": 1, "started": {}}',
       '{"status": "waiting", "versions": 3, "resumed": 3, "stacks": 3}']  # fmt: skip


@fuzz(40)
@given(st.sampled_from(FILES), damage, st.none() | st.sampled_from(ODD), st.sampled_from(USES))
def test_damaged_runs(
    there: Path, name: str, damage: Callable[[bytes], bytes], odd: str | None, use: str
) -> None:
    """A run in which a file is not what it was."""
    file = there / "runs" / "mlp-0001" / name
    kept = {path: path.read_bytes() for path in file.parent.glob("*") if path.is_file()}
    try:
        file.write_bytes(damage(kept[file]) if odd is None else odd.encode())
        check(use.split())
    finally:
        shutil.rmtree(file.parent)
        (file.parent / "plots").mkdir(parents=True)
        for path, content in kept.items():
            path.write_bytes(content)
