"""Weights trained elsewhere: every format comes in whole, and nothing else comes in."""

import json
import os
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.numpy import save_file

from mnist_cli.data.dataset import synthesize
from mnist_cli.runs import checkpoint, import_weights
from mnist_cli.runs.store import RunDirectory
from tests.conftest import Mnist
from tests.runs.test_trust import Evil

Arrays = dict[str, npt.NDArray[Any]]
DATA = "data={name: synthetic, size: 700}"
SHAPES = {"W1": (784, 50), "b1": (50,), "W2": (50, 100), "b2": (100,), "W3": (100, 10), "b3": (10,)}


@pytest.fixture
def arrays() -> Arrays:
    random = np.random.default_rng(0)
    return {name: random.normal(0, 0.1, shape).astype(np.float32) for name, shape in SHAPES.items()}


FORMS = ("pickle", "npz", "safetensors", "torch")


def save(form: str, path: Path, arrays: Arrays) -> None:
    if form == "safetensors":
        save_file(arrays, path)
        return
    with path.open("wb") as file:
        if form == "pickle":
            pickle.dump(arrays, file)
        elif form == "npz":
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
        else:
            torch.save({name: torch.from_numpy(array) for name, array in arrays.items()}, file)


def by_hand(arrays: Arrays, images: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Logits of the sigmoid network, in NumPy."""
    x = images.reshape(len(images), -1).astype(np.float64)
    for layer in (1, 2):
        x = (1 + np.tanh((x @ arrays[f"W{layer}"] + arrays[f"b{layer}"]) / 2)) / 2
    logits: npt.NDArray[Any] = x @ arrays["W3"] + arrays["b3"]
    return logits


# ------------------------------------------------------------------------------------ what is read


@pytest.mark.parametrize("form", FORMS)
def test_the_format_is_found_from_the_content(form: str, arrays: Arrays, tmp_path: Path) -> None:
    path = tmp_path / "weights.dat"
    save(form, path, arrays)
    found = import_weights.read(path)
    assert found.format == form
    assert set(found.tensors) == set(SHAPES)
    for name, array in arrays.items():
        np.testing.assert_array_equal(found.tensors[name].numpy(), array)


@pytest.mark.parametrize("form", ["npz", "pickle"])
def test_orders_of_bytes_and_axes(form: str, tmp_path: Path) -> None:
    matrix = np.arange(6.0).reshape(2, 3)
    save(form, tmp_path / "w", {"a": matrix.astype(">f8"), "b": np.asfortranarray(matrix)})
    for value in import_weights.read(tmp_path / "w").tensors.values():
        np.testing.assert_array_equal(value.numpy(), matrix)


# ---------------------------------------------------------------------------------- what they make


@pytest.mark.parametrize("config", ["tensor_net", "ffnn"])
def test_import_makes_an_ordinary_run(
    mnist: Mnist, config: str, arrays: Arrays, tmp_path: Path
) -> None:
    """What `eval` measures of it is what NumPy computes from the arrays, scaled and raw."""
    save("pickle", tmp_path / "weights", arrays)
    ended = mnist("import", str(tmp_path / "weights"), "--config", config, DATA, "--json")
    assert ended.code == 0, ended.err
    result = ended.json
    assert result.keys() >= {"run", "status", "epochs", "seconds", "best", "checkpoint"}
    assert (result["run"], result["status"]) == (f"{config}-imported-0001", "imported")
    folder = RunDirectory(Path(result["checkpoint"]).parent)
    assert folder.meta()["status"] == "imported"
    assert folder.meta()["weights"]["format"] == "pickle"
    assert [row["status"] for row in mnist("runs", "list", "--json").json] == ["imported"]
    assert f"mnist eval --checkpoint {folder.best}" in mnist("runs", "show", result["run"]).out

    images = synthesize(700, 0)
    for normalize, scale in (("true", 255), ("false", 1)):
        measured = mnist(
            "eval", "--json", "data.split=official", f"data.normalize={normalize}"
        ).json
        expected = by_hand(arrays, images.test_images / scale).argmax(1) == images.test_labels
        assert measured["n"] == len(expected)
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
    resumed = mnist("resume", ended.json["run"])
    assert (resumed.code, resumed.out) == (2, "")
    assert "was imported, so there is nothing to go on with" in resumed.err
    again = mnist("import", ended.json["checkpoint"], DATA)
    assert again.code == 5
    assert "a checkpoint of mnist already" in again.err


def test_float64_is_kept_or_rounded_with_a_note(
    mnist: Mnist, arrays: Arrays, tmp_path: Path
) -> None:
    path = tmp_path / "w.npz"
    save("npz", path, {name: array.astype(np.float64) for name, array in arrays.items()})
    run = ("import", str(path), "--config", "tensor_net", DATA)
    assert "rounded" not in mnist(*run).out  # every number is one of float32
    save("npz", path, {name: array / np.float64(3) for name, array in arrays.items()})
    assert "note: they were rounded to fp32" in mnist(*run).out
    ended = mnist(*run, "train.precision=fp64", "loss=cross_entropy")
    assert ended.code == 0
    assert "rounded" not in ended.out


# ---------------------------------------------------------------------------------- what is refused


def refused(mnist: Mnist, path: Path, config: str = "tensor_net") -> str:
    """The one line that an import is refused with; nothing is left of it."""
    ended = mnist("import", str(path), "--config", config, DATA)
    assert ended.code == 5, ended
    assert not Path(os.environ["MNIST_RUNS_DIR"]).exists()
    (error,) = [line for line in ended.err.splitlines() if line.startswith("error: ")]
    assert str(path) in error
    assert error.isprintable()
    return error


def zeros(*shape: int) -> npt.NDArray[Any]:
    return np.zeros(shape, np.float32)


@pytest.mark.parametrize(
    ("change", "config", "sentence"),
    [
        ({"b2": None}, "tensor_net", "has no b2 of shape (100,)"),
        ({"W2": None}, "ffnn", "has no W2 of shape (50, 100)"),
        ({"W4": zeros(10, 10)}, "tensor_net", "has W4 of shape (10, 10)"),
        (
            {"W1": zeros(50, 784)},
            "ffnn",
            "W1 has shape (50, 784), but in the config's model (784, 50)",
        ),
        ({"W1": zeros(784, 5)}, "cnn", "are of linear layers, but"),
        ({"b1": np.zeros(50, "float16")}, "ffnn", "b1 is torch.float16, not float32 or float64"),
        ({"b1": np.zeros(50, "<U2")}, "ffnn", "numpy.str_"),
        ({"b1": np.full(50, np.nan)}, "ffnn", "b1 has values that are not finite"),
        ({"b1": np.full(50, 1e300)}, "ffnn", "b1 has values that are not finite"),  # in float32
    ],
)
def test_other_names_shapes_types_and_values(
    mnist: Mnist, change: dict[str, Any], config: str, sentence: str, arrays: Arrays, tmp_path: Path
) -> None:
    kept = {name: array for name, array in (arrays | change).items() if array is not None}
    save("npz", tmp_path / "w", kept)
    assert sentence in refused(mnist, tmp_path / "w", config=config)


@pytest.mark.filterwarnings("ignore:Validating sparse")
def test_what_is_not_arrays(mnist: Mnist, tmp_path: Path) -> None:
    path = tmp_path / "w"
    for tensor in (torch.eye(3).to_sparse(), torch.zeros(1).expand(10**6, 10**6)):
        torch.save({"W1": tensor}, path)
        assert "'W1', which is not an array" in refused(mnist, path)
    other: list[Any] = [{"\x1b[2J": [1.0, 2.0]}, [1, 2], {}]
    for content in other:
        path.write_bytes(pickle.dumps(content))
        assert "array" in refused(mnist, path)


def test_nothing_in_a_file_is_run(mnist: Mnist, arrays: Arrays, tmp_path: Path) -> None:
    path, evil = tmp_path / "w.pkl", Evil(tmp_path / "ran")
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        path.write_bytes(pickle.dumps({**arrays, "W1": evil}, protocol))
        assert f"asks for {os.system.__module__}.system" in refused(mnist, path)
    torch.save({**arrays, "W1": evil}, path)
    refused(mnist, path)
    with path.open("wb") as file:
        np.savez(file, W1=np.array([evil], dtype=object))
    assert "allow_pickle" in refused(mnist, path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("form", FORMS)
def test_files_cut_short(mnist: Mnist, form: str, arrays: Arrays, tmp_path: Path) -> None:
    path = tmp_path / "w"
    save(form, path, arrays)
    whole = path.read_bytes()
    for part in (0.001, 0.3, 0.9, 0.9999):
        path.write_bytes(whole[: int(len(whole) * part)])
        refused(mnist, path)


def test_what_is_not_weights(mnist: Mnist, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    assert "not a file of weights" in refused(mnist, tmp_path / "notes.txt")
    assert "a directory" in refused(mnist, tmp_path)


@pytest.mark.parametrize("shape", [[3], [2**38]])
def test_headers_that_lie(mnist: Mnist, shape: list[int], tmp_path: Path) -> None:
    header = {"W1": {"dtype": "F32", "shape": shape, "data_offsets": [0, 4 * shape[0]]}}
    text = json.dumps(header).encode()
    (tmp_path / "w").write_bytes(struct.pack("<Q", len(text)) + text + bytes(8))
    assert "(safetensors)" in refused(mnist, tmp_path / "w")


def test_an_npz_that_unpacks_to_too_much(
    mnist: Mnist, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save("npz", tmp_path / "w.npz", {"W1": np.zeros((1000, 1000))})
    monkeypatch.setattr(checkpoint, "MAX_BYTES", 1_000_000)
    assert "unpacks to more" in refused(mnist, tmp_path / "w.npz")


# ------------------------------------------------------------------------------------ other data


def test_a_checkpoint_keeps_to_images_of_its_shape(
    mnist: Mnist, arrays: Arrays, tmp_path: Path
) -> None:
    save("npz", tmp_path / "w.npz", arrays)
    assert mnist("import", str(tmp_path / "w.npz"), "-c", "ffnn").code == 0  # it needs no data
    ended = mnist("eval", "data.name=cifar10")
    assert ended.code == 2
    assert "error: data.name: the images of cifar10 are 3x32x32, but" in ended.err
    assert "for those of mnist, 1x28x28" in ended.err
    assert mnist("eval", "data.name=kmnist").code == 4  # the shape is right, but it is not here
