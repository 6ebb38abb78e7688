"""Weights trained elsewhere: every format comes in whole, and nothing else comes in."""

import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from mnist_cli.errors import CheckpointError
from mnist_cli.runs import checkpoint
from mnist_cli.runs import import_weights as foreign
from mnist_cli.runs.store import RunDirectory
from tests.conftest import Mnist

Arrays = dict[str, npt.NDArray[Any]]
DATA = "data={name: synthetic, size: 700}"
SHAPES = {"W1": (784, 50), "b1": (50,), "W2": (50, 100), "b2": (100,), "W3": (100, 10), "b3": (10,)}


@pytest.fixture
def arrays() -> Arrays:
    random = np.random.default_rng(0)
    return {name: random.normal(0, 0.1, shape).astype(np.float32) for name, shape in SHAPES.items()}


def save_pickle(path: Path, arrays: Arrays, protocol: int = 4) -> None:
    path.write_bytes(pickle.dumps(arrays, protocol))


def save_npz(path: Path, arrays: Arrays) -> None:
    with path.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


def safetensors(header: dict[str, Any], numbers: bytes) -> bytes:
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + numbers


def save_safetensors(path: Path, arrays: Arrays) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "np"}}
    numbers = b""
    for name, array in arrays.items():
        kind = {"float32": "F32", "float64": "F64"}[str(array.dtype)]
        places = [len(numbers), len(numbers) + array.nbytes]
        header[name] = {"dtype": kind, "shape": array.shape, "data_offsets": places}
        numbers += array.tobytes()
    path.write_bytes(safetensors(header, numbers))


def save_torch(path: Path, arrays: Arrays) -> None:
    torch.save({name: torch.from_numpy(array) for name, array in arrays.items()}, path)


SAVE: dict[str, Callable[[Path, Arrays], None]] = {
    "pickle": save_pickle,
    "npz": save_npz,
    "safetensors": save_safetensors,
    "torch": save_torch,
}


def by_hand(arrays: Arrays, images: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Logits of the sigmoid network, in NumPy."""
    x = images.reshape(len(images), -1).astype(np.float64)
    for layer in (1, 2):
        x = (1 + np.tanh((x @ arrays[f"W{layer}"] + arrays[f"b{layer}"]) / 2)) / 2
    logits: npt.NDArray[Any] = x @ arrays["W3"] + arrays["b3"]
    return logits


# ------------------------------------------------------------------------------------ what is read


@pytest.mark.parametrize("form", SAVE)
def test_the_format_is_found_from_the_content(form: str, arrays: Arrays, tmp_path: Path) -> None:
    path = tmp_path / "weights.dat"
    SAVE[form](path, arrays)
    found = foreign.read(path)
    assert found.format == form
    assert set(found.tensors) == set(SHAPES)
    for name, array in arrays.items():
        np.testing.assert_array_equal(found.tensors[name].numpy(), array)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickles_of_every_protocol(protocol: int, arrays: Arrays, tmp_path: Path) -> None:
    save_pickle(tmp_path / "w.pkl", arrays, protocol)
    assert foreign.read(tmp_path / "w.pkl").format == "pickle"


@pytest.mark.parametrize("form", ["npz", "pickle"])
def test_orders_of_bytes_and_axes(form: str, tmp_path: Path) -> None:
    matrix = np.arange(6.0).reshape(2, 3)
    SAVE[form](tmp_path / "w", {"a": matrix.astype(">f8"), "b": np.asfortranarray(matrix)})
    for value in foreign.read(tmp_path / "w").tensors.values():
        np.testing.assert_array_equal(value.numpy(), matrix)


# ---------------------------------------------------------------------------------- what they make


@pytest.mark.parametrize("config", ["tensor_net", "ffnn"])
@pytest.mark.parametrize("form", SAVE)
def test_import_makes_an_ordinary_run(
    mnist: Mnist, form: str, config: str, arrays: Arrays, tmp_path: Path
) -> None:
    """What `eval` measures of it is what NumPy computes from the arrays, scaled and raw."""
    SAVE[form](tmp_path / "weights", arrays)
    ended = mnist("import", str(tmp_path / "weights"), "--config", config, DATA, "--json")
    assert ended.code == 0, ended.err
    result = ended.json
    assert list(result) == ["run", "status", "epochs", "seconds", "best", "checkpoint"]
    assert (result["run"], result["status"]) == (f"{config}-imported-0001", "imported")
    folder = RunDirectory(Path(result["checkpoint"]).parent)
    assert folder.meta()["status"] == "imported"
    assert folder.meta()["weights"]["format"] == form
    assert [row["status"] for row in mnist("runs", "list", "--json").json] == ["imported"]
    assert f"mnist eval --checkpoint {folder.best}" in mnist("runs", "show", result["run"]).out

    from mnist_cli.data.dataset import synthesize

    images = synthesize(700, 0)
    for split, pixels, labels in (
        ("train", images.train_images, images.train_labels),
        ("test", images.test_images, images.test_labels),
    ):
        for normalize, scale in (("true", 255), ("false", 1)):
            measured = mnist(
                "eval", "--checkpoint", "best.pt", "--split", split, "--json",
                "data.split=official", f"data.normalize={normalize}",
            ).json  # fmt: skip
            expected = by_hand(arrays, pixels / scale).argmax(1) == labels
            assert measured["n"] == len(labels)
            assert measured["acc"] == pytest.approx(expected.mean(), abs=0.005)


def test_a_state_dict_with_the_models_own_names(mnist: Mnist, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(784, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10)
    )
    torch.save(module.state_dict(), tmp_path / "state.pth")
    ended = mnist("import", str(tmp_path / "state.pth"), DATA, "--json")
    assert ended.code == 0
    back = checkpoint.load(Path(ended.json["checkpoint"]))
    for name, value in module.state_dict().items():
        assert torch.equal(back.model[name], value)
    again = mnist("import", ended.json["checkpoint"], DATA)
    assert again.code == 5
    assert "a checkpoint of mnist already" in again.err


def test_float64_is_kept_or_rounded_with_a_note(
    mnist: Mnist, arrays: Arrays, tmp_path: Path
) -> None:
    path = tmp_path / "w.npz"
    save_npz(path, {name: array.astype(np.float64) for name, array in arrays.items()})
    run = ("import", str(path), "--config", "tensor_net", DATA)
    assert "rounded" not in mnist(*run).out  # every number is one of float32
    save_npz(path, {name: array / np.float64(3) for name, array in arrays.items()})
    assert "note: they were rounded to fp32" in mnist(*run).out
    ended = mnist(*run, "train.precision=fp64", "loss=cross_entropy")
    assert ended.code == 0
    assert "rounded" not in ended.out


# ---------------------------------------------------------------------------------- what is refused


def refused(mnist: Mnist, path: Path, *more: str, config: str = "tensor_net") -> str:
    """The one line that an import is refused with; nothing is left of it."""
    ended = mnist("import", str(path), "--config", config, DATA, *more)
    assert ended.code == 5, ended
    assert not Path(os.environ["MNIST_RUNS_DIR"]).exists()
    (error,) = [line for line in ended.err.splitlines() if line.startswith("error: ")]
    assert str(path) in error
    return error


@pytest.mark.parametrize(
    ("change", "config", "sentence"),
    [
        ({"b2": None}, "tensor_net", "has no b2, which must have shape (100,)"),
        ({"W2": None}, "ffnn", "has no W2 (the model's 3.weight), which must have shape (50, 100)"),
        ({"W4": (10, 10)}, "tensor_net", "has W4 of shape (10, 10), which the model"),
        ({"W1": (50, 784)}, "tensor_net", "W1 has shape (50, 784), but"),
        ({"W1": (50, 784)}, "ffnn", "it must be (784, 50)"),
        ({"W1": (784, 5)}, "cnn", "has conv1.weight of shape (16, 1, 3, 3)"),
        ({"W1": None, "b1": None}, "ffnn", "has no 1.weight, which must have shape (50, 784)"),
    ],
)
def test_other_names_and_shapes(
    mnist: Mnist, change: dict[str, Any], config: str, sentence: str, arrays: Arrays, tmp_path: Path
) -> None:
    for name, shape in change.items():
        if shape is None:
            del arrays[name]
        else:
            arrays[name] = np.zeros(shape, np.float32)
    save_npz(tmp_path / "w.npz", arrays)
    assert sentence in refused(mnist, tmp_path / "w.npz", config=config)


@pytest.mark.filterwarnings("ignore:Validating sparse")
def test_other_types_and_values(mnist: Mnist, arrays: Arrays, tmp_path: Path) -> None:
    path = tmp_path / "w"
    for dtype in ("float16", "int64"):
        save_npz(path, arrays | {"b1": np.zeros(50, dtype)})
        assert f"b1 is {dtype}, not float32 or float64" in refused(mnist, path)
    for value in (np.nan, np.inf, 1e300):  # the last one is in float64 and not in float32
        save_pickle(path, arrays | {"b1": np.full(50, value)})
        assert "b1 has values that are not finite as float32" in refused(mnist, path)
    torch.save({"W1": torch.eye(3).to_sparse()}, path)
    assert "W1 is not an array whose every number is there" in refused(mnist, path)
    save_pickle(path, {"W1": [1.0, 2.0]})  # type: ignore[dict-item]
    assert "'W1' is a list, not an array" in refused(mnist, path)
    path.write_bytes(pickle.dumps([1, 2]))
    assert "holds a list, not named arrays" in refused(mnist, path)
    path.write_bytes(pickle.dumps({}))
    assert "holds an empty dict" in refused(mnist, path)


class Evil:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, ("touch ran",)


def test_nothing_in_a_file_is_run(
    mnist: Mnist, arrays: Arrays, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "w.pkl"
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        path.write_bytes(pickle.dumps({**arrays, "W1": Evil()}, protocol))
        assert f"asks for {os.system.__module__}.system" in refused(mnist, path)
    torch.save({**arrays, "W1": Evil()}, path)
    assert "cannot be read safely" in refused(mnist, path) or "not a checkpoint" in refused(
        mnist, path
    )
    with path.open("wb") as file:
        np.savez(file, W1=np.array([Evil()], dtype=object))
    assert "W1 of type '|O', which is not plain numbers" in refused(mnist, path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("form", SAVE)
@pytest.mark.parametrize("part", [0.001, 0.3, 0.9, 0.9999])
def test_files_cut_short(
    mnist: Mnist, form: str, part: float, arrays: Arrays, tmp_path: Path
) -> None:
    path = tmp_path / "w"
    SAVE[form](path, arrays)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * part)])
    refused(mnist, path)


def test_what_is_not_weights(mnist: Mnist, arrays: Arrays, tmp_path: Path) -> None:
    text, fifo, old = tmp_path / "notes.txt", tmp_path / "pipe", tmp_path / "old.pt"
    text.write_text("hello")
    os.mkfifo(fifo)
    torch.save({"W1": torch.zeros(2)}, old, _use_new_zipfile_serialization=False)
    (tmp_path / "folder").mkdir()
    assert "not a file of weights" in refused(mnist, text)
    assert "not a regular file" in refused(mnist, fifo)
    assert "a directory" in refused(mnist, tmp_path / "folder")
    assert "No such file" in refused(mnist, tmp_path / "none.npz")
    assert "before version 1.6" in refused(mnist, old)


F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("header", "sentence"),
    [
        ({"W1": F32 | {"shape": [3]}}, "holds 8 bytes for W1 of shape (3,)"),
        ({"W1": F32 | {"data_offsets": [4, 8], "shape": [1]}}, "places W1 where it cannot be"),
        ({"W1": F32, "W2": F32}, "places W2 where it cannot be"),
        ({"W1": F32 | {"data_offsets": [0, 4], "shape": [1]}}, "is 8 bytes of numbers"),
        ({"W1": F32 | {"data_offsets": [0, 80], "shape": [20]}}, "holds 8 bytes for W1"),
        ({"W1": F32 | {"shape": [-2]}}, "places W1 where it cannot be"),
        ({"W1": F32 | {"shape": [True, 2]}}, "places W1 where it cannot be"),
        ({"W1": F32 | {"dtype": "BF16", "shape": [4]}}, "W1 of type BF16"),
        ({"W1": F32 | {"dtype": ["F32"]}}, "does not describe arrays"),
        ({"W1": [0, 8]}, "does not describe arrays"),
        ({"W1": F32 | {"data_offsets": [0]}}, "this safetensors file"),
        ({"W1": F32 | {"shape": 2}}, "does not describe arrays"),
    ],
)
def test_safetensors_headers_that_lie(
    mnist: Mnist, header: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    (tmp_path / "w.safetensors").write_bytes(safetensors(header, bytes(8)))
    assert sentence in refused(mnist, tmp_path / "w.safetensors")


def test_npz_headers_that_lie(mnist: Mnist, tmp_path: Path) -> None:
    path = tmp_path / "w.npz"
    header = "{'descr': '%s', 'fortran_order': False, 'shape': %s, }\n"
    for descr, shape, sentence in (
        ("<f4", "(1000000000000,)", "holds 8 bytes for W1 of shape (1000000000000,)"),
        ("<f4", "__import__('os')", "whose header is damaged"),
        ("<U2", "(1,)", "which is not plain numbers"),
    ):
        text = (header % (descr, shape)).encode()
        array = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + bytes(8)
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("W1.npy", array)
        assert sentence in refused(mnist, path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("W1.npy", "hello")
    assert "not an array of NumPy" in refused(mnist, path)


def test_an_npz_that_unpacks_to_too_much(
    mnist: Mnist, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_npz(tmp_path / "w.npz", {"W1": np.zeros((1000, 1000))})
    monkeypatch.setattr(checkpoint, "MAX_BYTES", 1_000_000)
    assert "unpacks to more" in refused(mnist, tmp_path / "w.npz")


def test_read_raises_what_it_says(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        foreign.read(tmp_path / "none")


# ------------------------------------------------------------------------------------ other data


def test_a_checkpoint_keeps_to_images_of_its_shape(
    mnist: Mnist, arrays: Arrays, tmp_path: Path
) -> None:
    save_npz(tmp_path / "w.npz", arrays)
    assert mnist("import", str(tmp_path / "w.npz"), "-c", "ffnn").code == 0  # it needs no data
    ended = mnist("eval", "data.name=cifar10")
    assert ended.code == 2
    assert "error: data.name: the images of cifar10 are 3x32x32, but" in ended.err
    assert "for those of mnist, 1x28x28" in ended.err
    assert mnist("eval", "data.name=kmnist").code == 4  # the shape is right, but it is not here
