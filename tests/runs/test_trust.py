"""Checkpoints from anyone: read safely and exactly, or refused in a sentence; nothing between."""

import contextlib
import os
import pickle
import random
import struct
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mnist_cli.config import Config
from mnist_cli.errors import CheckpointError
from mnist_cli.models.modules import build
from mnist_cli.runs import checkpoint
from mnist_cli.runs.checkpoint import FORMAT, SCHEMA, Checkpoint
from tests.conftest import Mnist


def made(**changes: Any) -> Checkpoint:
    """A checkpoint as training leaves it in `last.pt`, small."""
    config = Config.model_validate(
        {"model": {"name": "mlp", "width": 2}, "data": {"name": "synthetic", "size": 70}}
    )
    state = dict(build(config.model, (1, 28, 28), 10, 0).state_dict())
    resume = {
        "optimizer": {
            "step": torch.tensor(12.0),
            "exp_avg": torch.linspace(-1, 1, 50),
            "exp_avg_sq": torch.linspace(0, 1, 50, dtype=torch.float64),
        },
        "records": [{"epoch": n, "val/loss": 1 / n, "lr": 1e-3} for n in (1, 2, 3)],
        "best_epoch": None,
    }
    metrics = {"epoch": 3, "val/acc": 0.5, "val/loss": 1.25}
    content: dict[str, Any] = {
        "config": config.resolved(),
        "epoch": 3,
        "step": 12,
        "metrics": metrics,
        "model": state,
        "resume": resume,
    }
    return Checkpoint(**content | changes)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A whole checkpoint."""
    checkpoint.save(tmp_path / "last.pt", made())
    return tmp_path / "last.pt"


def write(path: Path, content: Any) -> Path:
    """A file that whoever made it made well, digest and all."""
    signed = {"format": FORMAT, "schema": SCHEMA, "digest": checkpoint.digest(content), **content}
    torch.save(signed, path)
    return path


def same(first: Any, second: Any) -> bool:
    """Whether two values are the same to the last bit and the last attribute."""
    if isinstance(first, torch.Tensor):
        return (
            type(first) is type(second)
            and first.dtype == second.dtype
            and first.shape == second.shape
            and first.requires_grad == second.requires_grad
            and first.numpy().tobytes() == second.numpy().tobytes()
        )
    if isinstance(first, dict):
        return (
            type(first) is type(second)
            and list(first) == list(second)
            and all(same(first[key], second[key]) for key in first)
        )
    if isinstance(first, list | tuple):
        return (
            type(first) is type(second)
            and len(first) == len(second)
            and all(map(same, first, second))
        )
    return type(first) is type(second) and repr(first) == repr(second)


def refusal(path: Path) -> CheckpointError:
    """How a file is refused, which must be soon, with something to do about it."""
    started = time.process_time()
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load(path)
    assert time.process_time() - started < 5
    assert str(path) in caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.hint
    return caught.value


def evaluated(mnist: Mnist, path: Path) -> str:
    """What `mnist eval` says when it refuses a checkpoint: one line of error and one of hint."""
    ended = mnist("eval", "--checkpoint", str(path))
    lines = ended.err.splitlines()
    assert (ended.code, ended.out) == (5, "")
    assert [line.partition(": ")[0] for line in lines] == ["error", "hint"]
    return lines[0]


# --------------------------------------------------------------------------------- what is ours


def test_what_is_saved_comes_back_to_the_last_bit(path: Path) -> None:
    assert same(vars(checkpoint.load(path)), vars(made()))


def test_weights_keep_their_precision(tmp_path: Path) -> None:
    config = made().config | {"train": {"epochs": 1, "precision": "fp64"}}
    state = {name: value.double() / 3 for name, value in made().model.items()}
    checkpoint.save(tmp_path / "a.pt", made(config=config, model=state))
    back = checkpoint.load(tmp_path / "a.pt")
    module = build(Config.model_validate(config).model, (1, 28, 28), 10, 1)
    checkpoint.fit(module, back)
    assert same(dict(module.state_dict()), state)


def test_a_tensor_under_two_names_is_no_bomb(tmp_path: Path) -> None:
    state = made().model
    checkpoint.save(tmp_path / "a.pt", made(resume={"best": state, "records": []}))
    assert same(checkpoint.load(tmp_path / "a.pt").resume["best"], state)


# ------------------------------------------------------------------------------- damaged files


def test_every_truncation_is_refused(path: Path) -> None:
    whole = path.read_bytes()
    for part in range(64):
        path.write_bytes(whole[: len(whole) * part // 64])
        refusal(path)


@pytest.mark.parametrize("where", ["anywhere", "pickle", "names and sizes"])
def test_a_flipped_bit_is_refused_or_means_nothing(path: Path, where: str) -> None:
    whole = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        (entry,) = (each for each in archive.infolist() if each.filename.endswith("data.pkl"))
        directory = archive.start_dir
    first, last = {
        "anywhere": (0, len(whole)),
        "pickle": (entry.header_offset, entry.header_offset + 64 + entry.file_size),
        "names and sizes": (directory, len(whole)),
    }[where]
    dice = random.Random(f"{where} 0")
    outcomes = set()
    for _ in range(250):
        place = dice.randrange(first, last)
        damaged = bytearray(whole)
        damaged[place] ^= 1 << dice.randrange(8)
        path.write_bytes(damaged)
        try:
            back = checkpoint.load(path)
        except CheckpointError:
            outcomes.add("refused")
        else:
            assert same(vars(back), vars(made())), f"bit flipped at {place}"
            outcomes.add("means nothing")
    assert outcomes == {"refused", "means nothing"}


@pytest.mark.parametrize("tensor", ["1.weight", "exp_avg", "exp_avg_sq"])
def test_every_flipped_number_is_refused(path: Path, tensor: str) -> None:
    """Of the weights, and of what continuing needs."""
    whole = path.read_bytes()
    data = {**made().model, **made().resume["optimizer"]}[tensor].numpy().tobytes()
    start = whole.index(data)
    dice = random.Random(0)
    for _ in range(20):
        damaged = bytearray(whole)
        damaged[start + dice.randrange(len(data))] ^= 1 << dice.randrange(8)
        path.write_bytes(damaged)
        assert "do not match the digest" in refusal(path).message


@pytest.mark.parametrize(
    "change",
    [
        {"config": made().config | {"name": "other"}},
        {"epoch": 4},
        {"epoch": 3.0},
        {"step": 13},
        {"metrics": {"epoch": 3, "val/acc": 0.51, "val/loss": 1.25}},
        {"resume": {}},
        {"resume": made().resume | {"best_epoch": 1}},
        {"resume": made().resume | {"records": made().resume["records"][:2]}},
    ],
)
def test_another_value_is_refused(path: Path, change: dict[str, Any]) -> None:
    content = torch.load(path, weights_only=True)
    torch.save(content | change, path)
    assert "do not match the digest" in refusal(path).message


def test_a_missing_part_is_refused(path: Path) -> None:
    content = torch.load(path, weights_only=True)
    for key in ("schema", "digest", *Checkpoint.__dataclass_fields__):
        torch.save({name: value for name, value in content.items() if name != key}, path)
        refusal(path)


# -------------------------------------------------------------------------------- files of others


class Evil:
    """What makes a file when a pickle of it is read by anything that runs pickles."""

    def __init__(self, sentinel: Path) -> None:
        self.sentinel = sentinel

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch '{self.sentinel}'",)


def hiding_places(evil: Evil) -> dict[str, Any]:
    """Where in a checkpoint code can stand."""
    content = vars(made())
    return {
        "alone": evil,
        "key": {"format": FORMAT, "model": evil},
        "config": content | {"format": FORMAT, "config": {"name": evil}},
        "resume": content | {"format": FORMAT, "resume": {"optimizer": [evil]}},
    }


@pytest.mark.parametrize("place", ["alone", "key", "config", "resume"])
@pytest.mark.parametrize("asked", [None, "1"])
def test_code_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, asked: str | None
) -> None:
    if asked:
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", asked)
    sentinel, path = tmp_path / "ran", tmp_path / "evil.pt"
    torch.save(hiding_places(Evil(sentinel))[place], path)
    assert "asks for posix.system, which is code" in refusal(path).message
    assert not sentinel.exists()
    torch.load(path, weights_only=False)  # which is what would have happened
    assert sentinel.exists()


@pytest.mark.parametrize("protocol", range(6))
def test_code_in_a_bare_pickle_is_not_run(
    tmp_path: Path, protocol: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    path = tmp_path / "evil.pt"
    path.write_bytes(pickle.dumps(Evil(tmp_path / "ran"), protocol))
    refusal(path)
    assert not (tmp_path / "ran").exists()


def test_code_is_not_run_by_the_command_whatever_the_environment_asks(tmp_path: Path) -> None:
    torch.save(Evil(tmp_path / "ran"), tmp_path / "evil.pt")
    done = subprocess.run(
        [sys.executable, "-m", "mnist_cli", "eval", "--checkpoint", str(tmp_path / "evil.pt")],
        env=os.environ | {"TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (5, "")
    assert [line.partition(": ")[0] for line in done.stderr.splitlines()] == ["error", "hint"]
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (made().model, "a state dict saved by torch, not a checkpoint of mnist"),
        (build(Config().model, (1, 28, 28), 10, 0).state_dict(), "a state dict saved by torch"),
        ({"epoch": 1, "model": made().model}, "a dict saved by torch"),
        (torch.zeros(3), "a tensor saved by torch"),
        ([1, 2], "a list saved by torch"),
        ({"format": torch.zeros(2, 2)}, "a state dict saved by torch"),
        ({"format": [FORMAT]}, "a dict saved by torch"),
    ],
)
def test_a_file_of_torch_says_what_it_is(tmp_path: Path, content: Any, sentence: str) -> None:
    torch.save(content, tmp_path / "foreign.pt")
    error = refusal(tmp_path / "foreign.pt")
    assert sentence in error.message
    assert f"mnist import {tmp_path / 'foreign.pt'}" in str(error.hint)


def test_a_newer_checkpoint_is_told_from_a_damaged_one(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "SCHEMA", SCHEMA + 1)
    checkpoint.save(path, made())
    monkeypatch.undo()
    error = refusal(path)
    assert "made by a newer version" in error.message
    assert "pip install --upgrade" in str(error.hint)
    for schema in (None, 0, "1", 1.5, torch.ones(2)):
        torch.save(torch.load(path, weights_only=True) | {"schema": schema}, path)
        assert "damaged" in refusal(path).message


# ---------------------------------------------------------------- made well, and wrong all the same


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"config": made().config | {"model": {"name": "mlp", "width": 8}}},
            "1.weight has shape (2, 784), but in the model of its config (8, 784)",
        ),
        (
            {"config": made().config | {"model": {"name": "mlp", "depth": 3, "width": 2}}},
            "3.weight has shape (10, 2), but in the model of its config (1, 2)",
        ),
        (
            {"config": made().config | {"model": {"name": "logistic"}}},
            "1.weight has shape (2, 784), but in the model of its config (10, 784)",
        ),
        ({"config": made().config | {"model": {"name": "cnn"}}}, "it has no conv1.weight"),
        ({"model": {"1.weight": torch.zeros(2, 784)}}, "it has no 1.bias"),
        ({"model": made().model | {"5.bias": torch.ones(1)}}, "it has 5.bias, which the model of"),
        ({"model": {}}, "it has no 1.weight"),
        (
            {"model": {name: value.double() for name, value in made().model.items()}},
            "1.weight is float64, but its config says fp32",
        ),
        ({"model": made().model | {"1.bias": torch.zeros(2, dtype=torch.int64)}}, "1.bias is int"),
        ({"model": made().model | {"1.bias": [0.0, 0.0]}}, "1.bias is not a tensor"),
        ({"model": {3: torch.zeros(3)}}, "3 is not a tensor with a name"),
        ({"model": [torch.zeros(3)]}, "model is not what a checkpoint has there"),
        ({"epoch": "3"}, "epoch is not what"),
        ({"resume": None}, "resume is not what"),
        ({"config": []}, "config is not what"),
        ({"config": {"modle": "mlp"}}, "its config cannot be used"),
        ({"config": {3: {}}}, "its config cannot be used"),
        ({"config": {"model": {"name": "mlp", "width": 2**62}}}, "the model of its config cannot"),
        ({"config": {"model": {"name": "mlp", "width": 2**63}}}, "the model of its config cannot"),
        ({"config": {"model": {"name": "mlp", "width": 10**12}}}, "1.weight has shape (2, 784)"),
    ],
)
def test_tensors_that_are_not_the_configs_are_named(
    tmp_path: Path, changes: dict[str, Any], sentence: str
) -> None:
    path = write(tmp_path / "a.pt", vars(made()) | changes)
    assert sentence in refusal(path).message


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["1.weight", "3.bias"])
def test_weights_that_are_not_finite_are_named(tmp_path: Path, name: str, value: float) -> None:
    state = made().model
    state[name].view(-1)[-1] = value
    checkpoint.save(tmp_path / "a.pt", made(model=state))
    assert f"{name} has values that are not finite" in refusal(tmp_path / "a.pt").message


def test_a_name_cannot_paint_on_the_terminal(tmp_path: Path) -> None:
    state = made().model | {"\x1b[2J\r\nok: ": torch.ones(1)}
    checkpoint.save(tmp_path / "a.pt", made(model=state))
    assert refusal(tmp_path / "a.pt").message.isprintable()


# ------------------------------------------------------------------------------------------ bombs


def rewritten(
    source: Path, target: Path, change: Callable[[str, bytes], bytes], **options: Any
) -> Path:
    """A copy of an archive with some of its entries changed."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", **options) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, change(entry.filename, old.read(entry)))
    return target


def test_a_deflated_bomb_is_refused_unopened(path: Path, tmp_path: Path) -> None:
    def blow(name: str, data: bytes) -> bytes:
        return bytes(50_000_000) if name.endswith("data/0") else data

    bomb = rewritten(
        path, tmp_path / "bomb.pt", blow, compression=zipfile.ZIP_DEFLATED, compresslevel=1
    )
    assert bomb.stat().st_size < 1_000_000
    assert "not an archive as checkpoints are saved in" in refusal(bomb).message


def test_an_archive_that_says_it_is_larger_than_it_is_is_refused(path: Path) -> None:
    whole = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        directory = archive.start_dir
    for at in (directory + 20, directory + 24):  # the first entry's sizes, packed and unpacked
        struct.pack_into("<I", whole, at, 0xFFFF_FF00)
    path.write_bytes(whole)
    assert "not an archive as checkpoints are saved in" in refusal(path).message


def test_an_archive_of_very_many_or_very_odd_entries_is_refused(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = tmp_path / "many.pt"
    with zipfile.ZipFile(many, "w") as archive:
        for number in range(checkpoint.MAX_ENTRIES + 1):
            archive.writestr(f"a/{number}", b"")
    monkeypatch.setattr(zipfile.ZipFile, "infolist", pytest.fail)  # it would fill the memory
    assert "more than 10,000 files" in refusal(many).message
    monkeypatch.undo()
    two = rewritten(path, tmp_path / "two.pt", lambda _, data: data)
    with zipfile.ZipFile(two, "a") as archive:
        archive.writestr("archive/more.PKL", pickle.dumps(3))
    assert "not an archive" in refusal(two).message
    monkeypatch.setattr(checkpoint, "MAX_PICKLE", 100)
    assert "not an archive" in refusal(path).message


def pickled(path: Path, target: Path, old: bytes, new: bytes) -> Path:
    """A copy of a checkpoint with some bytes of its pickle replaced."""

    def change(name: str, data: bytes) -> bytes:
        if not name.endswith("data.pkl"):
            return data
        assert old in data
        return data.replace(old, new)

    return rewritten(path, target, change)


def test_a_storage_that_claims_terabytes_is_refused(path: Path, tmp_path: Path) -> None:
    numel = b"M" + struct.pack("<H", 2 * 784)
    huge = b"\x8a\x06" + (2**45 - 1).to_bytes(6, "little")
    refusal(pickled(path, tmp_path / "huge.pt", numel, huge))


def test_a_tensor_that_claims_terabytes_is_refused_unfolded(tmp_path: Path) -> None:
    """One number, seen 10^12 times: torch reads it in no time, and whoever looks at it is dead."""
    large = torch.zeros(1).expand(10**6, 10**6)
    for place in ({"model": made().model | {"1.weight": large}}, {"resume": {"optimizer": large}}):
        content = vars(made()) | place
        torch.save({"format": FORMAT, "schema": SCHEMA, "digest": "", **content}, tmp_path / "a.pt")
        assert "far more than there is room for" in refusal(tmp_path / "a.pt").message


def test_lists_of_lists_of_one_list_are_refused_unfolded(tmp_path: Path) -> None:
    value: Any = ["lol"]
    for _ in range(15):
        value = [value] * 20
    loop: list[Any] = []
    loop.append(loop)
    deep: Any = []
    for _ in range(300):
        deep = [deep]
    for place in (value, loop, deep, {"a": value}):
        content = vars(made()) | {"resume": {"optimizer": place}}
        torch.save({"format": FORMAT, "schema": SCHEMA, "digest": "", **content}, tmp_path / "a.pt")
        assert "far more than there is room for" in refusal(tmp_path / "a.pt").message


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (torch.zeros(3, 3).to_sparse(), "a tensor that is not plain numbers"),
        (torch.zeros(3, device="meta"), "a tensor that is not plain numbers"),
        (torch.zeros(3, dtype=torch.complex64), "a tensor that is not plain numbers"),
        ({1, 2}, "a set"),
        (bytearray(b"abc"), "a bytearray"),
        (1j, "a complex"),
        (torch.float32, "a dtype"),
        (torch._neg_view(torch.ones(3)), "a tensor that is not plain numbers"),
        (10**30, "a whole number that is too long"),
    ],
    ids=[
        "sparse",
        "meta",
        "complex numbers",
        "set",
        "bytes",
        "complex",
        "dtype",
        "negated",
        "digits",
    ],
)
def test_what_no_checkpoint_holds_is_refused(tmp_path: Path, value: Any, sentence: str) -> None:
    content = vars(made()) | {"resume": {"optimizer": value}}
    torch.save({"format": FORMAT, "schema": SCHEMA, "digest": "", **content}, tmp_path / "a.pt")
    assert f"it holds {sentence}" in refusal(tmp_path / "a.pt").message


# ------------------------------------------------------------------------- not even files, the CLI


def test_what_is_no_file_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "empty").touch()
    with (tmp_path / "large").open("wb") as file:
        file.truncate(checkpoint.MAX_BYTES + 1)
    monkeypatch.setattr(Path, "open", pytest.fail)
    for name, sentence in [
        ("pipe", "not a regular file"),
        ("link", "not a regular file"),
        ("/dev/zero", "not a regular file"),
        (".", "a directory"),
        ("empty", "an empty file"),
        ("large", "too large"),
        ("loop", "symbolic links"),
        ("none", "No such file"),
        ("x" * 300, "name too long"),
        ("nu\0l", "null"),
    ]:
        assert sentence in refusal(tmp_path / name).message


def test_every_refusal_of_the_command_is_exit_5_an_error_and_a_hint(
    mnist: Mnist, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = vars(made())
    files = {
        "evil": hiding_places(Evil(tmp_path / "ran"))["resume"],
        "foreign": made().model,
        "newer": content | {"format": FORMAT, "schema": SCHEMA + 1, "digest": ""},
        "bomb": content | {"format": FORMAT, "model": {"a": torch.zeros(1).expand(10**12)}},
    }
    for name, each in files.items():
        torch.save(each, tmp_path / name)
    other = made().config | {"model": {"name": "mlp", "width": 8}}
    write(tmp_path / "wrong", content | {"config": other})
    write(tmp_path / "config", content | {"config": {"optimizer": {"lr": -1}}})
    state = made().model
    state["1.bias"][0] = float("nan")
    checkpoint.save(tmp_path / "nan", made(model=state))
    whole = path.read_bytes()
    (tmp_path / "half").write_bytes(whole[: len(whole) // 2])
    place = whole.index(made().model["1.weight"].numpy().tobytes())
    (tmp_path / "flipped").write_bytes(
        whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]
    )
    os.mkfifo(tmp_path / "pipe")
    for name, word in {
        "evil": "which is code",
        "foreign": "a state dict",
        "newer": "a newer version",
        "bomb": "far more",
        "wrong": "1.weight has shape (2, 784), but in the model of its config (8, 784)",
        "config": "optimizer.lr: must be greater than 0",
        "nan": "1.bias has values that are not finite",
        "half": "not a zip file",
        "flipped": "damaged",
        "pipe": "not a regular file",
        "/dev/zero": "not a regular file",
        ".": "a directory",
    }.items():
        assert word in evaluated(mnist, tmp_path / name), name
    assert not (tmp_path / "ran").exists()
    ended = mnist("eval", "--checkpoint", str(path))
    assert (ended.code, ended.err) == (0, "")


def test_a_file_that_calls_itself_safetensors_is_read_as_what_it_is(
    path: Path, tmp_path: Path
) -> None:
    """torch would hand it to another library by its name."""
    renamed = path.rename(tmp_path / "last.safetensors")
    assert same(vars(checkpoint.load(renamed)), vars(made()))


@pytest.mark.skipif(sys.platform != "linux", reason="lists open files as Linux does")
def test_no_file_is_kept_open(path: Path) -> None:
    whole = path.read_bytes()
    before = len(list(Path("/proc/self/fd").iterdir()))
    for content in (whole, whole[:-30], b"nothing"):
        path.write_bytes(content)
        with contextlib.suppress(CheckpointError):
            checkpoint.load(path)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_the_digest_tells_apart_what_json_and_bytes_do_not() -> None:
    values: list[Any] = [
        1, 1.0, True, "1", None, 0.0, -0.0, [], {}, [[]], [1], {"1": 1}, {1: 1}, {"a": {}, "b": 1},
        torch.zeros(4), torch.zeros(2, 2), torch.zeros(4, dtype=torch.int32), torch.zeros(2),
        torch.zeros(2, dtype=torch.float64), torch.zeros(4, requires_grad=True), torch.tensor(-0.0),
        torch.tensor(0.0),
    ]  # fmt: skip
    assert len({checkpoint.digest(value) for value in values}) == len(values)


def test_reading_does_not_depend_on_where_the_bytes_lie(tmp_path: Path) -> None:
    """Saved through views and in another order of strides, the digest is of the numbers."""
    state = {
        name: value.t().contiguous().t() if value.dim() == 2 else value
        for name, value in made().model.items()
    }
    checkpoint.save(tmp_path / "a.pt", made(model=state))
    back = checkpoint.load(tmp_path / "a.pt").model
    assert all(torch.equal(back[name], value) for name, value in state.items())
    assert checkpoint.digest(back) == checkpoint.digest(made().model)
