"""Checkpoints from anyone: read safely and exactly, or refused in a sentence; nothing between."""

import os
import pickle
import random
import struct
import time
import zipfile
from collections.abc import Callable
from dataclasses import replace
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
from tests.reliability.harness import plain


def made(**changes: Any) -> Checkpoint:
    """A checkpoint as training leaves it in `last.pt`, small."""
    values = {"model": {"name": "mlp", "width": 2}, "data": {"name": "synthetic", "size": 70}}
    config = Config.model_validate(values)
    moments = {"exp_avg": torch.linspace(-1, 1, 50), "step": torch.tensor(12.0)}
    whole = Checkpoint(
        config=config.resolved(),
        epoch=3,
        step=12,
        metrics={"epoch": 3, "val/acc": 0.5, "val/loss": 1.25},
        model=dict(build(config.model, (1, 28, 28), 10, 0).state_dict()),
        resume={"optimizer": moments, "best_epoch": None, "seconds": 1.5},
    )
    return replace(whole, **changes)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A whole checkpoint."""
    checkpoint.save(tmp_path / "last.pt", made())
    return tmp_path / "last.pt"


def write(path: Path, **changes: Any) -> Path:
    """A file that whoever made it made well, with other contents than `save` would write."""
    torch.save({"format": FORMAT, "schema": SCHEMA, **vars(made())} | changes, path)
    return path


def same(first: Checkpoint, second: Checkpoint) -> bool:
    """Whether two checkpoints are the same to the last bit."""
    return bool(plain(vars(first)) == plain(vars(second)))


def refusal(path: Path) -> str:
    """How a file is refused, which must be soon, with something to do about it."""
    started = time.process_time()
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load(path)
    assert time.process_time() - started < 5
    assert str(path) in caught.value.message
    assert caught.value.message.isprintable()
    assert caught.value.hint
    return f"{caught.value.message} {caught.value.hint}"


# ------------------------------------------------------------------------------- damaged files


def test_every_truncation_is_refused(path: Path) -> None:
    whole = path.read_bytes()
    for part in range(64):
        path.write_bytes(whole[: len(whole) * part // 64])
        refusal(path)


def flips(
    path: Path, dice: random.Random, count: int, first: int = 0, last: int | None = None
) -> tuple[int, list[int]]:
    """Flips a bit of what `made` makes, so many times, somewhere between two bytes.

    Returns:
        how many were refused, and where one was not, although it altered what is read.
    """
    checkpoint.save(path, wanted := made())
    whole, refused, unseen = path.read_bytes(), 0, []
    for _ in range(count):
        damaged, place = bytearray(whole), dice.randrange(first, last or len(whole))
        damaged[place] ^= 1 << dice.randrange(8)
        path.write_bytes(damaged)
        try:
            back = checkpoint.load(path)
        except CheckpointError:
            refused += 1
        else:
            unseen += [] if same(back, wanted) else [place]
    return refused, unseen


@pytest.mark.parametrize("where", ["anywhere", "pickle", "directory"])
def test_a_flipped_bit_is_refused_or_means_nothing(path: Path, where: str) -> None:
    with zipfile.ZipFile(path) as archive:
        (entry,) = (each for each in archive.infolist() if each.filename.endswith("data.pkl"))
        start, directory = entry.header_offset, archive.start_dir
    within: dict[str, tuple[int, int | None]] = {
        "anywhere": (0, None),
        "pickle": (start, start + 64 + entry.file_size),
        "directory": (directory, None),
    }
    refused, unseen = flips(path, random.Random(f"{where} 0"), 250, *within[where])
    assert unseen == []
    assert 0 < refused < 250


def test_a_file_of_the_archive_that_became_a_folder_is_refused(path: Path) -> None:
    """One flipped bit, of which there is no CRC: torch would leave the numbers' memory as it is."""
    whole = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        place = archive.start_dir
        for entry in archive.infolist():
            damaged = whole.copy()
            damaged[place + 38] ^= 0x10  # external attributes: a folder, in DOS
            path.write_bytes(damaged)
            assert "not stored" in refusal(path)
            place += 46 + len(entry.filename) + len(entry.extra) + len(entry.comment)


def test_a_missing_or_odd_part_is_named(tmp_path: Path) -> None:
    content = {"format": FORMAT, "schema": SCHEMA, **vars(made())}
    for key in {"schema", *vars(made())} - {"data"}:  # which earlier versions did not have
        torch.save({name: value for name, value in content.items() if name != key}, tmp_path / "a")
        assert f"{key} is not what" in refusal(tmp_path / "a")
        for value in ("1", 1.5, None, torch.ones(2), [1]):
            assert f"{key} is not what" in refusal(write(tmp_path / "a", **{key: value}))


def test_what_a_checkpoint_says_of_its_images(tmp_path: Path) -> None:
    path, content = tmp_path / "a.pt", {"format": FORMAT, "schema": SCHEMA, **vars(made())}
    del content["data"]  # as in earlier versions
    torch.save(content, path)
    assert checkpoint.load(path).form == ((1, 28, 28), tuple("0123456789"))
    said = {"shape": [1, 28, 28], "classes": [*"abcdefghij"]}
    assert checkpoint.load(write(path, data=said)).form[1] == tuple("abcdefghij")
    folder = made().config | {"data": {"name": "folder", "path": "."}}
    assert checkpoint.load(write(path, data=said, config=folder)).form[0] == (1, 28, 28)
    assert "its config" in refusal(write(path, config=folder))  # and nothing is read in its place
    wrong: list[dict[str, Any]] = [{"shape": [3, 28, 28]}, {"shape": [2**62, 2**62, 9]}]
    wrong += [{"shape": [28, 28]}, {"shape": ["x", 1, 1]}, {"shape": [-1, 28, 28]}, {"shape": None}]
    wrong += [{"classes": ["a"]}, {"classes": 10}, {"classes": None}]
    for change in wrong:
        refusal(write(path, data=said | change))
    refusal(write(path, data={"sha256": ""}))


# -------------------------------------------------------------------------------- files of others


class Evil:
    """What makes a file when a pickle of it is read by anything that runs pickles."""

    def __init__(self, sentinel: Path) -> None:
        self.sentinel = sentinel

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch '{self.sentinel}'",)


@pytest.mark.parametrize("place", ["alone", "model", "config", "resume"])
def test_code_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    sentinel, path = tmp_path / "ran", tmp_path / "evil.pt"
    evil = Evil(sentinel)
    content = vars(made()) | {"format": FORMAT, place: {"a": [evil]}}
    torch.save(evil if place == "alone" else content, path)
    assert "asks for posix.system, which is code" in refusal(path)
    (tmp_path / "bare.pt").write_bytes(pickle.dumps(evil))
    refusal(tmp_path / "bare.pt")
    assert not sentinel.exists()
    torch.load(path, weights_only=False)  # which is what would have happened
    assert sentinel.exists()


@pytest.mark.parametrize(
    "content",
    [made().model, torch.zeros(3), [1, 2], {"format": torch.zeros(2, 2)}, {"format": [FORMAT]}],
)
def test_other_files_of_torch_can_be_imported(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "foreign.pt")
    error = refusal(tmp_path / "foreign.pt")
    assert "not a checkpoint of mnist" in error
    assert f"mnist import {tmp_path / 'foreign.pt'}" in error


def test_a_newer_checkpoint_says_so(tmp_path: Path) -> None:
    error = refusal(write(tmp_path / "a.pt", schema=SCHEMA + 1, epoch="of another kind"))
    assert "made by a newer version" in error
    assert "pip install --upgrade" in error


def weights(name: str, value: Any) -> dict[str, Any]:
    return {"model": made().model | {name: value}}


def model_of(width: int) -> dict[str, Any]:
    return {"config": made().config | {"model": {"name": "mlp", "width": width}}}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (model_of(width=8), "1.weight has shape (2, 784), but in the config's model (8, 784)"),
        ({"config": made().config | {"model": {"name": "cnn"}}}, "it has no conv1.weight"),
        ({"model": {"1.weight": made().model["1.weight"]}}, "it has no 1.bias"),
        (weights("5.bias", torch.ones(1)), "it has 5.bias of shape (1,), which"),
        (weights("\x1b[2J\r\nok: ", torch.ones(1)), "ok: "),
        (weights("1.weight", made().model["1.weight"].double()), "1.weight is torch.float64, but"),
        (weights("1.bias", [0.0, 0.0]), "1.bias is not a named tensor"),
        (weights("1.bias", torch.zeros(2).to_sparse()), "1.bias is not"),
        (weights("1.bias", torch.zeros(2, device="meta")), "1.bias is not"),
        (weights("1.bias", torch.tensor([0, float("nan")])), "1.bias has val"),
        ({"model": {3: torch.zeros(3)}}, "3 is not a named tensor"),
        ({"config": {"modle": "mlp"}}, "its config cannot be used"),
        ({"config": {"optimizer": {"lr": -1}}}, "optimizer.lr: must be greater than 0"),
        ({"config": {"train": {"seed": 10**30}}}, "its config cannot be used"),
        (model_of(width=2**62), "its config cannot be used"),
        (model_of(width=10**12), "1.weight has shape (2, 784)"),
    ],
)
def test_tensors_that_are_not_the_configs_are_named(
    tmp_path: Path, changes: dict[str, Any], sentence: str
) -> None:
    assert sentence in refusal(write(tmp_path / "a.pt", **changes))


# ------------------------------------------------------------------------------------------ bombs


def rewritten(
    source: Path, target: Path, change: Callable[[str, bytes], bytes], **options: Any
) -> Path:
    """A copy of an archive with some of its entries changed."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", **options) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, change(entry.filename, old.read(entry)))
    return target


def test_what_would_unpack_to_far_more_is_refused_unopened(path: Path, tmp_path: Path) -> None:
    def blow(name: str, data: bytes) -> bytes:
        return bytes(50_000_000) if name.endswith("data/0") else data

    def claim(_: str, data: bytes) -> bytes:
        huge = b"\x8a\x06" + (2**45 - 1).to_bytes(6, "little")
        return data.replace(b"M" + struct.pack("<H", 2 * 784), huge)

    options = {"compression": zipfile.ZIP_DEFLATED, "compresslevel": 1}
    assert "not stored" in refusal(rewritten(path, tmp_path / "bomb.pt", blow, **options))
    refusal(rewritten(path, tmp_path / "huge.pt", claim))
    large = torch.zeros(1).expand(10**6, 10**6)
    for name in ("1.weight", "another"):
        repeated = write(tmp_path / "a.pt", model=made().model | {name: large})
        assert f"{name} is not a named tensor with all its numbers" in refusal(repeated)


def test_an_archive_that_says_it_is_larger_than_it_is_is_refused(path: Path) -> None:
    whole = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        directory = archive.start_dir
    for at in (directory + 20, directory + 24):  # the first entry's sizes, packed and unpacked
        struct.pack_into("<I", whole, at, 0xFFFF_FF00)
    path.write_bytes(whole)
    refusal(path)


def test_a_config_that_holds_itself_or_one_list_many_times_is_refused(tmp_path: Path) -> None:
    folded: Any = ["lol"]
    for _ in range(15):
        folded = [folded] * 20
    loop: list[Any] = []
    loop += [loop] * 1000
    for value in (folded, loop):
        assert "its config" in refusal(
            write(tmp_path / "a", config=made().config | {"name": value})
        )


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
        ("empty", "a file of 0 bytes"),
        ("large", f"a file of {checkpoint.MAX_BYTES + 1:,} bytes"),
        ("loop", "symbolic links"),
        ("none", "No such file"),
        ("x" * 300, "name too long"),
    ]:
        assert sentence in refusal(tmp_path / name)


def test_a_checkpoint_is_given_as_a_file_a_run_or_its_folder(mnist: Mnist) -> None:
    data = ("data={name: synthetic, size: 70}", "train.epochs=1")
    best = mnist("train", *data, "--json").json["checkpoint"]
    mnist("train", *data)
    folder = Path(best).parent
    for given in (best, str(folder), folder.name):
        assert mnist("eval", "--checkpoint", given, "--json").json["checkpoint"] == best
    newest = folder.with_name("mlp-0002") / "last.pt"
    assert mnist("eval", "--checkpoint", "last.pt", "--json").json["checkpoint"] == str(newest)
