"""`mnist eval` of several, with grades, and what it leaves in the folder."""

import json
import shutil
from pathlib import Path

import pytest

from tests.conftest import Mnist


def test_several_are_one_table_and_a_list(mnist: Mnist, trained: Path) -> None:
    names = ["mlp-0001", "mlp-0001/last.pt", str(trained / "mlp-sweep-0001" / "best.pt")]
    found = mnist("eval", *names, "--json").json
    paths = ["mlp-0001/best.pt", "mlp-0001/last.pt", "mlp-sweep-0001/best.pt"]
    assert [row["checkpoint"] for row in found] == [str(trained / path) for path in paths]
    for path, row in zip(paths, found, strict=True):
        assert mnist("eval", "--checkpoint", path, "--json").json == row
    out = mnist("eval", *names).out
    assert [sum(path in line for line in out.splitlines()) for path in paths] == [1, 1, 1]
    assert mnist("eval", "mlp-0001", "nothing").code == 5


def test_words_that_are_settings_are_set_for_all(mnist: Mnist, trained: Path) -> None:
    found = mnist("eval", "mlp-0001", "mlp-sweep-0001", "data.normalize=false", "--json").json
    plain = mnist("eval", "mlp-0001", "mlp-sweep-0001", "--json").json
    assert all(a["loss"] != b["loss"] for a, b in zip(found, plain, strict=True))


def test_classes_sum_up_to_the_accuracy(mnist: Mnist, trained: Path) -> None:
    found = mnist("eval", "mlp-0001", "--split", "train", "--json").json
    right = sum(row["n"] * (row["recall"] or 0.0) for row in found["classes"])
    assert right / found["n"] == pytest.approx(found["acc"])
    assert len(found["classes"]) == 10
    assert "precision" not in mnist("eval", "mlp-0001").out
    assert "precision" in mnist("eval", "mlp-0001", "--per-class").out


def test_calibration_is_measured_and_drawn(mnist: Mnist, trained: Path) -> None:
    found = mnist("eval", "mlp-0001", "--calibration", "--json").json
    measured = found["calibration"]
    assert measured["nll"] == pytest.approx(found["loss"], rel=1e-5)
    assert sum(each["n"] for each in measured["bins"]) == found["n"]
    assert found["plot"] == str(trained / "mlp-0001" / "plots" / "reliability-test.png")
    assert Path(found["plot"]).read_bytes()[1:4] == b"PNG"
    # The temperature is that of the validation images, whichever are measured.
    own = mnist("eval", "mlp-0001", "--calibration", "--split", "val", "--json").json
    assert own["calibration"]["temperature"] == measured["temperature"]
    assert own["calibration"]["scaled_nll"] <= own["calibration"]["nll"]
    assert f"{measured['temperature']:.3f}" in mnist("eval", "mlp-0001", "--calibration").out


def test_results_are_kept_with_the_weights_they_are_of(mnist: Mnist, trained: Path) -> None:
    path = trained / "mlp-0001" / "eval.json"
    mnist("eval", "mlp-0001", "--calibration")
    tested = mnist("eval", "mlp-0001", "--json").json
    mnist("eval", "mlp-0001/last.pt", "data.normalize=false")
    kept = json.loads(path.read_text())
    assert set(kept) == {"best.pt test", "last.pt test data.normalize=false"}
    assert kept["best.pt test"]["acc"] == tested["acc"]
    assert "calibration" in kept["best.pt test"]

    def listed() -> float | None:
        rows = mnist("runs", "list", "--json", "--filter", "name=mlp-0001").json
        found: float | None = rows[0]["figures"].get("test/acc")
        return found

    assert listed() == tested["acc"]
    kept["best.pt test"]["val/loss"] += 0.1  # of other weights
    path.write_text(json.dumps(kept))
    assert listed() is None
    path.write_text("[1]")
    assert listed() is None
    assert mnist("eval", "mlp-0001").code == 0
    assert listed() == tested["acc"]


def test_a_result_that_cannot_be_kept_is_printed_all_the_same(
    mnist: Mnist, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (trained / "mlp-0001" / "eval.json").symlink_to(tmp_path / "elsewhere")
    ended = mnist("eval", "mlp-0001")
    assert (ended.code, "not kept" in ended.err) == (0, True)
    assert not (tmp_path / "elsewhere").exists()
    monkeypatch.chdir(tmp_path)
    shutil.copy(trained / "mlp-0001" / "best.pt", "alone.pt")
    assert mnist("eval", "alone.pt", "--calibration").code == 0
    assert Path("reliability-test.png").exists()
    assert not Path("eval.json").exists()
