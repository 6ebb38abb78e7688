"""A user's own model through the command line: what it can do, what is refused, what never runs."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

import mnist_cli
from mnist_cli.config import presets
from mnist_cli.runs import checkpoint
from mnist_cli.runs.store import RunDirectory
from tests.conftest import Ended, Mnist
from tests.reliability.harness import contents

SMALL = ("data={name: synthetic, size: 140}", "--epochs", "2")
HEAD = "import itertools, torch\nfrom torch import nn\nCOUNTER = itertools.count()\n"
# A layer with a rule, dropout, and a part that differs; the class begins on line 4.
TEXT = (
    HEAD
    + """class Net(nn.Module):
    def __init__(self, shape, classes, width=4, p=0.5):
        super().__init__()
        self.first = nn.Linear(shape[1] * shape[2], width)
        self.drop = nn.Dropout(p)
        self.last = nn.Linear(width, classes)
        self.calls = 0

    def forward(self, images):
        x = torch.relu(self.first(images.flatten(1)))
        {forward}
"""
)
FORWARDS = {
    "rules": "return self.last(self.drop(x))",
    "functions": "return self.last(self.drop(torch.atan(x)))",
    "shapes": "return self.last(self.drop(x)) + x[x > 0.3].sum()",
    "flow": "return self.last(self.drop(x if x.mean() > 0.2 else 2 * x))",
}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative paths are of an empty folder."""
    monkeypatch.chdir(tmp_path)


def write(forward: str = FORWARDS["rules"], path: str = "net.py", text: str = TEXT) -> Path:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text.replace("{forward}", forward))
    return Path(path)


def weights(run: Path) -> dict[str, torch.Tensor]:
    return checkpoint.load(run / "last.pt").model


def refused(ended: Ended, *words: str) -> None:
    """A command that was wrong said so in these words, and what to do about it."""
    assert ended.code == 2
    for word in words:
        assert word in ended.err


# --------------------------------------------------------------------------------- what works


def test_it_trains_and_is_used_like_any_other(mnist: Mnist, tmp_path: Path) -> None:
    net = write()
    assert mnist("train", "--model", "net.py", *SMALL, "model.width=6").code == 0
    run = tmp_path / "runs" / "net-0001"
    sha256 = hashlib.sha256(net.read_bytes()).hexdigest()
    assert (run / "model.py").read_bytes() == net.read_bytes()
    known = {"path": str(tmp_path / "net.py"), "sha256": sha256}
    assert RunDirectory(run).meta()["model"] == known
    saved = checkpoint.load(run / "best.pt").config["model"]
    assert saved == {"name": "file", **known, "factory": "Net", "width": 6}
    assert weights(run)["first.weight"].shape == (6, 784)
    assert net.read_text() not in (run / "best.pt").read_bytes().decode(errors="replace")
    evaluated = mnist("eval", "--checkpoint", "net-0001", "--json")
    assert 0 <= evaluated.json["acc"] <= 1
    assert "net.py, unchanged" in evaluated.err
    again = mnist("train", "--config", str(run / "config.yaml"))  # the resolved config repeats it
    assert again.code == 0
    assert weights(tmp_path / "runs" / "net-0002").keys() == weights(run).keys()
    for name, value in weights(tmp_path / "runs" / "net-0002").items():
        assert torch.equal(value, weights(run)[name])


@pytest.mark.parametrize("kind", FORWARDS)
def test_a_replica_is_the_run_alone(mnist: Mnist, tmp_path: Path, kind: str) -> None:
    write(FORWARDS[kind])
    common = ("--model", "net.py", *SMALL, "train.precision=fp64")
    swept = ("--grid", "model.width=4,7", "--lrs", "0.1,0.01", "--seeds", "2")
    dry = mnist("sweep", *common, *swept, "--dry-run")
    said = {
        "rules": "by rules alone",
        "functions": "without a rule: atan",
        "flow": "as a whole",
        "shapes": "as a whole",
    }
    assert said[kind] in dry.err
    result = mnist("sweep", *common, *swept, "--workers", "1", "--json").json
    assert {trial["model.width"] for trial in result["trials"]} == {4, 7}
    for trial in result["trials"][1::3]:
        settings = [f"{key}={trial[key]}" for key in ("optimizer.lr", "train.seed", "model.width")]
        alone = mnist("train", *common, *settings, "--json").json
        assert alone["best"]["val/loss"] == pytest.approx(trial["val/loss"], rel=1e-9)
        stacked = weights(tmp_path / "runs" / trial["run"])
        for name, value in weights(tmp_path / "runs" / alone["run"]).items():
            torch.testing.assert_close(stacked[name], value, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", ["rules", "flow"])
def test_it_goes_on_to_the_same_bits(mnist: Mnist, tmp_path: Path, kind: str) -> None:
    write(FORWARDS[kind])
    command = ("sweep", "--model", "net.py", SMALL[0], "--seeds", "2", "--lrs", "0.01")
    assert mnist(*command, "--epochs", "4", "--workers", "1").code == 0
    assert mnist(*command, "--epochs", "2", "--workers", "1").code == 0
    assert mnist("resume", "net-sweep-0002", "--epochs", "4").code == 0
    whole, cut = (contents(tmp_path / "runs" / f"net-sweep-000{n}") for n in (1, 2))
    for index in ("000", "001"):
        for what in ("metrics", "last"):
            assert whole["trials"][index][what] == cut["trials"][index][what]


def test_dropout_drops_others_at_each_step_and_in_each_run(mnist: Mnist, tmp_path: Path) -> None:
    """As a whole or by rules it is the same dropout; without it the weights are others."""
    found = {}
    for kind, forward in {
        **FORWARDS,
        "flow": "return self.last(self.drop(x if x.sum() else x))",
    }.items():
        write(forward)
        for p in (0.0, 0.5):
            run = mnist("train", "--model", "net.py", *SMALL, f"model.p={p}", "--json").json["run"]
            found[kind, p] = weights(tmp_path / "runs" / run)["first.weight"]
    torch.testing.assert_close(found["flow", 0.5], found["rules", 0.5])
    assert not torch.allclose(found["rules", 0.0], found["rules", 0.5])


def test_modules_beside_it_are_its_own(mnist: Mnist, tmp_path: Path) -> None:
    """Two files of two folders import two modules of one name, in one process."""
    text = HEAD + "from parts import width\ndef net(shape, classes):\n    {forward}\n"
    linear = "return nn.Sequential(nn.Flatten(), nn.Linear(784, width), nn.Linear(width, classes))"
    for folder, width in (("a", 3), ("b", 5)):
        write(linear, f"{folder}/net.py", text)
        Path(folder, "parts.py").write_text(f"width = {width}")
        ended = mnist("train", "--model", f"{folder}/net.py", "--name", folder, *SMALL)
        assert ended.code == 0
        assert len(weights(tmp_path / "runs" / f"{folder}-0001")["1.weight"]) == width


def test_the_example_of_the_readme_works(mnist: Mnist) -> None:
    readme = Path(mnist_cli.__file__).parents[1] / "README.md"
    blocks = re.findall(r"```python\n(.*?)```", readme.read_text(), re.DOTALL)
    write(text=next(block for block in blocks if "(self, shape, classes" in block))
    ended = mnist("sweep", "--model", "net.py", "model.width=4,8", *SMALL, "--lrs", "0.01")
    assert ended.code == 0
    assert "by rules alone" in ended.err


# ------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ("widht: 3", ("a.yaml:2:35: model.widht", "net.py:4", "did you mean 'width'?")),
        ("width: wide", ("a.yaml:2:42: model.width: must be a number", "net.py:4")),
        ("p: null", ("model.p: must be a number",)),
        ("factory: Nett", ("model.path", "'Nett'", "Net")),
        ("p: {a: 1}", ("a.yaml:2:35: model.p: must be",)),
    ],
)
def test_a_setting_is_held_against_the_signature(
    mnist: Mnist, settings: str, words: tuple[str, ...]
) -> None:
    write()
    Path("a.yaml").write_text(f"data: synthetic\nmodel: {{name: file, path: net.py, {settings}}}")
    for command in (("config", "check", "a.yaml"), ("train", "--config", "a.yaml")):
        refused(mnist(*command), *words)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("def net(shape, classes):\n    return (", ("net.py:2", "'('")),
        ("x = 1", ("none at all",)),
        ("def a(shape, classes): ...\ndef b(shape, classes): ...", ("2 functions", "a, b")),
        ("def net(shape, classes, width): ...", ("model.width: is missing", "net (", "net.py:1")),
    ],
)
def test_a_file_is_read_before_it_is_run(mnist: Mnist, text: str, words: tuple[str, ...]) -> None:
    write(text=text)
    refused(
        mnist("config", "show", "--config", "mlp", "model.name=file", "model.path=net.py"), *words
    )
    refused(mnist("train", "--model", "net.py", *SMALL), *words)
    refused(mnist("train", "--model", "nett.py", *SMALL), "nett.py")


@pytest.mark.parametrize(
    ("forward", "words"),
    [
        ("return x", ("of 3 images it makes (3, 4)", "(3, 10)")),
        ("return self.last(x), x", ("it makes",)),
        ("return self.last(x).argmax(1)", ("it makes (3,)",)),
        ("self.calls += 1; return self.last(x) * self.calls", ("it changes calls",)),
        ("return self.last(x + torch.rand(1))", ("random numbers",)),
        ("return self.last(torch.dropout(x, 0.5, self.training))", ("random numbers",)),
        ("self.calls += 1; return self.last(x)[:, :10 - self.calls // 2]", ("it makes (3, 9)",)),
        ("return self.last(x) * next(COUNTER)", ("something else each time",)),
        ("raise KeyError(images.shape)", ("net.py:14", "KeyError")),
        ("return self.last(images)", ("net.py:14", "RuntimeError")),
    ],
)
def test_a_module_that_cannot_be_trained(
    mnist: Mnist, tmp_path: Path, forward: str, words: tuple[str, ...]
) -> None:
    write(forward)
    for command in (("train",), ("sweep", "--lrs", "0.1"), ("sweep", "--lrs", "0.1", "--dry-run")):
        refused(mnist(*command, "--model", "net.py", *SMALL), "net.py", *words)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("import nowhere\ndef net(shape, classes): ...", ("net.py:1", "nowhere")),
        ("def net(shape, classes): ...\nraise SystemExit(3)", ("net.py:2", "SystemExit")),
        ("def net(shape, classes):\n    return 1 / 0", ("net.py:2", "ZeroDivisionError")),
        ("def net(shape, classes): ...", ("makes NoneType",)),
        (HEAD + "def net(shape, classes): return nn.Flatten()", ("has no parameters",)),
    ],
)
def test_code_that_fails(mnist: Mnist, tmp_path: Path, text: str, words: tuple[str, ...]) -> None:
    write(text=text)
    refused(mnist("train", "--model", "net.py", *SMALL), *words)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ("self.last.weight = self.first.weight", "last.weight is also"),
        ("self.last.requires_grad_(False)", "last.weight is not to be trained"),
    ],
)
def test_parameters_that_a_stack_cannot_hold(mnist: Mnist, change: str, word: str) -> None:
    square = TEXT.replace("self.calls = 0", change).replace("classes)\n", "784)\n", 1)
    write("return self.last(x)[:, :10]", text=square)
    refused(mnist("train", "--model", "net.py", *SMALL, "model.width=784"), word)


def test_settings_of_other_models_mean_nothing_here(mnist: Mnist) -> None:
    """The shipped config's own are left out; `hidden` and `width` may go together."""
    write(text="def net(shape, classes, hidden=(1,), width=2): ...")
    words = ("model.name=file", "model.path=net.py", "model.hidden=[3]", "model.width=4")
    shown = mnist("config", "show", *words)
    assert "hidden: [3]" in shown.out
    assert "width: 4" in shown.out
    assert "depth" not in shown.out
    Path("a.yaml").write_text("model: {name: file, path: net.py, hidden: [3]}")
    assert "hidden: [3]" in mnist("config", "show", "--config", "a.yaml", "model.width=4").out
    refused(mnist("train", "--model", "cnn"), "model=cnn")
    built_in = mnist("train", *SMALL)
    assert built_in.code == 0
    refused(mnist("eval", "--checkpoint", "mlp-0001", "--model", "net.py"), "is from no file")


# ------------------------------------------------------------------------------ what never runs


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of somebody who trained net-0001 with `net.py`, which makes `ran` when it runs.

    It was trained in another process: in this one the file has not run yet.
    """
    folder = tmp_path_factory.mktemp("theirs")
    text = f"open({str(folder / 'ran')!r}, 'w').close()\n{TEXT}"
    (folder / "net.py").write_text(text.replace("{forward}", FORWARDS["rules"]))
    command = [sys.executable, "-m", "mnist_cli", "train", "--model", "net.py", *SMALL]
    own = {"XDG_STATE_HOME": str(folder / "state"), "MNIST_RUNS_DIR": str(folder / "runs")}
    env = {**os.environ, **own, "PYTHONPATH": str(Path(mnist_cli.__file__).parents[1])}
    subprocess.run(command, cwd=folder, env=env, check=True, capture_output=True)
    return folder


@pytest.fixture
def run(theirs: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of their run, of whose model this user has named no file; their code does not run."""
    (theirs / "ran").unlink(missing_ok=True)
    run = shutil.copytree(theirs / "runs" / "net-0001", tmp_path / "runs" / "net-0001")
    yield run
    assert not (theirs / "ran").exists()


def uses(run: Path) -> list[tuple[str, ...]]:
    """The commands that want the model of a run."""
    picture = Image.new("L", (28, 28), 255)
    picture.paste(0, (9, 4, 14, 24))
    picture.save("picture.png")
    return [
        ("eval", "--checkpoint", str(run)),
        ("eval", "--ensemble", str(run)),
        ("predict", "picture.png", "--checkpoint", str(run / "last.pt")),
        ("plot", str(run)),
        ("resume", str(run), "--epochs", "3"),
    ]


def test_no_checkpoint_and_no_run_brings_code_to_run(mnist: Mnist, run: Path) -> None:
    before = contents(run)
    looks = [
        ("runs", "list"),
        ("runs", "show", str(run)),
        ("config", "check", str(run / "config.yaml")),
        ("config", "show", "--config", str(run / "config.yaml")),
    ]
    for look in looks:  # having been looked at is not having been named
        assert mnist(*look).code == 0
    for use in uses(run):
        refused(mnist(*use), "named it", "--model FILE", "model.py")
    assert contents(run) == before


def test_a_report_does_without_the_model(mnist: Mnist, run: Path) -> None:
    pytest.importorskip("plotly")
    ended = mnist("report", str(run))
    assert ended.code == 0
    assert "no mistakes" in ended.err
    assert "named it" in ended.err


@pytest.mark.skipif(not Path("/proc/self/cwd").exists(), reason="a path that is where one is")
def test_a_run_cannot_bring_the_file_that_it_names(
    mnist: Mnist, run: Path, theirs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even if the user has named this very text elsewhere, beside other modules."""
    monkeypatch.setenv("XDG_STATE_HOME", str(theirs / "state"))
    for name in ("best.pt", "last.pt"):
        state = checkpoint.load(run / name)
        state.config["model"]["path"] = "/proc/self/cwd/runs/net-0001/model.py"
        checkpoint.save(run / name, state)
    text = (run / "config.yaml").read_text()
    path = "path: /proc/self/cwd/runs/net-0001/model.py"
    (run / "config.yaml").write_text(re.sub(r"path: [^\s,]+", path, text))
    for use in uses(run):
        refused(mnist(*use), "/proc/self/cwd", "named it")


def test_an_import_runs_no_code(mnist: Mnist, run: Path, theirs: Path) -> None:
    torch.save(weights(run), "weights.pt")
    shutil.rmtree(run.parent)
    model = ("--model", str(theirs / "net.py"), SMALL[0])
    assert mnist("import", "weights.pt", *model).code == 0
    imported = run.parent / "net-imported-0001"
    assert (imported / "model.py").read_bytes() == (theirs / "net.py").read_bytes()
    refused(mnist("eval", "--checkpoint", str(imported)), "named it")


def test_a_shipped_config_names_no_code(
    mnist: Mnist, run: Path, theirs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = json.dumps({"name": "file", "path": str(theirs / "net.py")})
    for text in (f"model: {model}", f"sweep: {{model: [{model}]}}"):
        Path("evil.yml").write_text(text)
        monkeypatch.setattr(presets, "presets", lambda: {"evil": Path("evil.yml")})
        for command in ("train", "sweep"):
            refused(mnist(command, "--config", "evil", *SMALL), "evil names code")


def test_another_text_at_a_named_place_does_not_run(
    mnist: Mnist, run: Path, theirs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(theirs / "state"))  # this user is who named it
    net = theirs / "net.py"
    before = net.read_text()
    net.write_text(before + "# changed")
    for use in uses(run):
        refused(mnist(*use), "net.py has changed", "--model FILE")
    state = checkpoint.load(run / "best.pt")
    state.config["model"]["sha256"] = hashlib.sha256(net.read_bytes()).hexdigest()
    checkpoint.save(run / "best.pt", state)
    refused(mnist("eval", "--checkpoint", str(run)), "named it")
    net.unlink()
    refused(mnist("eval", "--checkpoint", str(run / "last.pt")), "no Python file", "--model FILE")
    net.write_text(before)


# ----------------------------------------------------------------------------- named once more


def test_a_file_that_was_moved_is_named_again(mnist: Mnist, theirs: Path, tmp_path: Path) -> None:
    run = shutil.copytree(theirs / "runs" / "net-0001", tmp_path / "runs" / "net-0001")
    copy = str(run / "model.py")
    for use in uses(run):
        ended = mnist(*use, "--model", copy)
        assert ended.code == 0
        assert f"model: Net of {copy}" in ended.err
    assert len(RunDirectory(run).metrics()) == 3
    assert mnist("resume", str(run), "--epochs", "4").code == 0  # it knows the place from now on
    assert RunDirectory(run).meta()["model"]["path"] == str(theirs / "net.py")  # as it began


def test_another_file_may_be_evaluated_and_cannot_be_gone_on_with(
    mnist: Mnist, tmp_path: Path
) -> None:
    write()
    assert mnist("train", "--model", "net.py", *SMALL).code == 0
    write(FORWARDS["functions"], "other.py")
    before = contents(tmp_path / "runs" / "net-0001")
    again = ("resume", "net-0001", "--epochs", "3", "--model", "other.py")
    refused(mnist(*again), "not the model", "model.py")
    assert contents(tmp_path / "runs" / "net-0001") == before
    ended = mnist("eval", "--checkpoint", "net-0001", "--model", "other.py:Net")
    assert ended.code == 0
    assert "other.py, not as it was in training" in ended.err
    write(text=TEXT.replace("self.last ", "self.least ").replace("width, classes)", "width, 9)"))
    fits = mnist("eval", "--checkpoint", "net-0001", "--model", "net.py")
    assert fits.code == 2
