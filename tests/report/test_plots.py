"""Facts of the pictures: their colours, axes, legends and marks; and that none is a warning."""

import json
import math
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure

from mnist_cli.report import figures, plots, series, tables
from mnist_cli.runs.evaluate import Classified
from mnist_cli.runs.store import RunDirectory
from mnist_cli.sweeps.stats import Sample, rank

pytestmark = pytest.mark.pictures

Axes = Mapping[str, Sequence[Any]]

# G. M. Machado, M. M. Oliveira, L. A. F. Fernandes, "A Physiologically-based Model for Simulation
# of Color Vision Deficiency", IEEE TVCG 15, 2009: no red cones, and no green ones.
BLIND = {
    "protan": [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
    "deutan": [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
    "none": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
}


def lab(colour: str, cones: str = "none") -> np.ndarray:
    """CIE L*a*b* of an sRGB colour, as somebody with such cones sees it."""
    rgb = np.array(to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    seen = (np.array(BLIND[cones]) @ linear).clip(0, 1)
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    xyz = to_xyz @ seen / [0.9505, 1, 1.089]
    root = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    x, y, z = root
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def apart(colours: Sequence[str], cones: str) -> float:
    """The least distance of two colours, in units of L*a*b*; 2 is just noticed."""
    seen = [lab(colour, cones) for colour in colours]
    pairs = [(a, b) for index, a in enumerate(seen) for b in seen[:index]]
    return min(float(np.linalg.norm(a - b)) for a, b in pairs)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The pictures that were saved."""
    saved: list[Figure] = []
    save = Figure.savefig

    def spy(self: Figure, *args: Any, **options: Any) -> None:
        saved.append(self)
        save(self, *args, **options)

    monkeypatch.setattr(Figure, "savefig", spy)
    return saved


def sweep(
    folder: Path,
    axes: Axes,
    errors: Mapping[Any, float] | float = 0.05,
    epochs: int = 3,
    seeds: int = 1,
) -> RunDirectory:
    """The folder of a sweep; `errors` by the value of the first setting, NaN if it diverged."""
    trials: list[dict[str, Any]] = []
    for *values, seed in product(*axes.values(), range(seeds)):
        error = errors if isinstance(errors, float) else errors[values[0]]
        run = RunDirectory(folder / "trials" / f"{len(trials):03d}")
        run.path.mkdir(parents=True)
        records = [
            {"epoch": epoch, "step": epoch, "lr": 0.1, "time/epoch_s": 1.0, "time/eval_s": 1.0}
            | {f"{part}/loss": error * (3 + 1 / epoch) + 0.001 * seed for part in ("train", "val")}
            | {
                f"{part}/acc": 1 - error * (1 + 1 / epoch) / 2 - 0.001 * seed
                for part in ("train", "val")
            }
            for epoch in range(1, epochs + 1)
        ]
        run.metrics_path.write_text("".join(json.dumps(record) + "\n" for record in records))
        row = dict(zip(axes, values, strict=True)) | ({"train.seed": seed} if seeds > 1 else {})
        figures = {
            key: None if math.isnan(error) else records[-1][key] for key in ("val/loss", "val/acc")
        }
        trials.append({"run": run.name, "status": "finished", **row, **figures, "seconds": 1.0})
    (folder / "sweep.yaml").write_text("model: {name: mlp}\n")
    (folder / "summary.json").write_text(json.dumps({"status": "finished", "trials": trials}))
    return RunDirectory(folder)


def runs_of(folder: RunDirectory) -> list[RunDirectory]:
    return [folder.trial(index) for index in range(len(folder.summary()["trials"]))]


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for found in figure.legends for text in found.get_texts()]


def rates(count: int) -> list[float]:
    return [float(rate) for rate in np.geomspace(1e-5, 1e-1, count)]


# ------------------------------------------------------------------------------------- colours


@pytest.mark.parametrize("count", [2, 6, 64])
def test_numbers_have_ever_lighter_colours_whatever_the_order_they_come_in(count: int) -> None:
    values = rates(count)
    lightness = {
        cones: [lab(colour, cones)[0] for colour in series.colours(values)] for cones in BLIND
    }
    assert all(sorted(seen) == seen and seen[-1] - seen[0] > 20 for seen in lightness.values())
    assert series.colours(values[::-1]) == series.colours(values)[::-1]
    if count <= 6:
        assert all(apart(series.colours(values), cones) > 8 for cones in BLIND)


def test_colours_of_names_are_told_apart_by_colour_blind_readers_on_white_and_on_black() -> None:
    colours = series.colours([f"name {index}" for index in range(6)])
    assert all(15 < lab(colour, cones)[0] < 85 for colour in colours for cones in BLIND)
    assert all(apart(colours, cones) > 15 for cones in BLIND)


def test_both_kinds_of_picture_have_the_same_colours(tmp_path: Path, drawn: list[Figure]) -> None:
    folder = sweep(tmp_path, {"optimizer.lr": rates(4)})
    plots.draw(folder)
    lines = [line.get_color() for line in drawn[0].axes[0].lines]
    groups = rank(folder.summary()["trials"])
    histories = [run.metrics() for run in runs_of(folder)]
    page = figures.sweep_curves(groups, histories)["training loss"]["data"]
    assert lines == [line["line"]["color"] for line in page] == series.colours(rates(4))


# ------------------------------------------------------------------------- which line is which


def test_few_lines_are_all_named_and_all_look_different(
    tmp_path: Path, drawn: list[Figure]
) -> None:
    axes: Axes = {"optimizer.lr": [0.1, 0.01, 0.001], "optimizer.name": ["adam", "sgd", "adagrad"]}
    plots.draw(sweep(tmp_path, axes))
    looks = {(line.get_color(), line.get_linestyle()) for line in drawn[0].axes[0].lines}
    assert len(looks) == 9
    assert legend(drawn[0])[1] == "lr 0.1, optimizer sgd"
    assert len(legend(drawn[0])) == 9


def test_many_values_of_a_number_have_a_colour_bar(tmp_path: Path, drawn: list[Figure]) -> None:
    folder = sweep(tmp_path, {"optimizer.lr": rates(64)})
    plots.draw(folder)
    *panels, bar = drawn[0].axes
    assert [len(panel.lines) for panel in panels] == [64] * 3
    ticks = [text.get_text() for text in bar.get_yticklabels()]
    assert ticks[0] == "1e-05"
    assert 10 < len(ticks) <= 20
    assert bar.get_ylabel() == "lr"
    assert legend(drawn[0]) == []
    histories = [run.metrics() for run in runs_of(folder)]
    *lines, scale = figures.sweep_curves(rank(folder.summary()["trials"]), histories)[
        "training loss"
    ]["data"]
    assert not any(line["showlegend"] for line in lines)
    assert scale["marker"]["colorbar"]["title"]["text"] == "lr"


def test_many_lines_of_few_values_are_named_by_the_value(
    tmp_path: Path, drawn: list[Figure]
) -> None:
    plots.draw(sweep(tmp_path, {"optimizer.lr": rates(8), "model.width": [1, 2, 3, 4, 5, 6, 7]}))
    assert legend(drawn[0]) == ["1e-05", *(f"{rate:g}" for rate in rates(8)[1:])]
    assert [found.get_title().get_text() for found in drawn[0].legends] == ["lr"]


def test_of_many_names_the_best_are_named(tmp_path: Path, drawn: list[Figure]) -> None:
    folder = sweep(tmp_path, {"train.seed": range(40)})
    compared: Any = [
        SimpleNamespace(
            listed=SimpleNamespace(run=SimpleNamespace(name=f"mlp-{index}")),
            members=[run],
            group=SimpleNamespace(acc=Sample.of([index / 40])),
        )
        for index, run in enumerate(runs_of(folder))
    ]
    assert plots.overlay(tmp_path / "compare.png", compared)
    assert legend(drawn[0]) == ["28 others", *(f"mlp-{index}" for index in range(28, 40))]


# ----------------------------------------------------------------------------------- axes and marks


def test_one_bad_run_does_not_squash_the_axis_and_is_seen_to_be_beyond_it(
    tmp_path: Path, drawn: list[Figure]
) -> None:
    errors = {1.0: 1e4, 0.1: 0.05, 0.01: 0.02, 0.001: 0.03}
    plots.draw(sweep(tmp_path, {"optimizer.lr": [*errors]}, errors))
    for panel in drawn[0].axes[:2]:
        low, high = panel.get_ylim()
        assert 0 < low < 0.07
        assert 0.19 < high < 0.25
        assert "(3 points off axis)" in panel.get_ylabel().replace("\n", " ")
        (marks,) = [line for line in panel.lines if line.get_marker() == "^"]
        assert np.shape(marks.get_xdata()) == (3,)
        assert to_hex(marks.get_color()) == series.colours([*errors])[0]
    low, high = drawn[0].axes[2].get_ylim()
    assert 0.94 < low < 0.95
    assert 0.98 < high < 1


def test_what_is_not_far_worse_is_shown(tmp_path: Path, drawn: list[Figure]) -> None:
    errors = {0.1: 0.2, 0.01: 0.05, 0.001: 0.1}
    plots.draw(sweep(tmp_path, {"optimizer.lr": [*errors]}, errors))
    assert all(panel.get_ylim()[1] > 0.8 for panel in drawn[0].axes)
    assert not any("off axis" in panel.get_ylabel() for panel in drawn[0].axes)


def test_losses_that_range_far_are_on_a_logarithmic_axis(
    tmp_path: Path, drawn: list[Figure]
) -> None:
    errors = {0.1: 0.001, 0.01: 0.2, 0.001: 0.1}
    plots.draw(sweep(tmp_path, {"optimizer.lr": [*errors]}, errors))
    assert [panel.get_yscale() for panel in drawn[0].axes] == ["log", "log", "linear"]


def test_a_setting_that_diverged_is_named_so(tmp_path: Path, drawn: list[Figure]) -> None:
    errors = {10.0: math.nan, 0.1: 0.05, 0.01: 0.06}
    plots.draw(sweep(tmp_path, {"optimizer.lr": [*errors]}, errors))
    assert legend(drawn[0]) == ["lr 10 (1 of 1 diverged)", "lr 0.1", "lr 0.01"]
    assert "diverged" in legend(drawn[1])


@pytest.mark.parametrize(("seeds", "said"), [(1, False), (2, False), (5, True)])
def test_an_interval_is_said_to_be_one(
    seeds: int, said: bool, tmp_path: Path, drawn: list[Figure]
) -> None:
    plots.draw(sweep(tmp_path, {"optimizer.lr": [0.1, 0.01]}, seeds=seeds))
    for figure in drawn:
        assert (f"95 % interval over {seeds} seeds" in legend(figure)) is said
        assert bool(figure.axes[0].collections) is said


def test_runs_of_one_epoch_are_points_side_by_side(tmp_path: Path, drawn: list[Figure]) -> None:
    folder = sweep(tmp_path, {"optimizer.lr": [0.1, 0.01, 0.001]}, epochs=1, seeds=3)
    plots.draw(folder)
    for panel in drawn[0].axes:
        points = [line for line in panel.lines if line.get_marker() == "o"]
        assert len({float(line.get_xdata()[0]) for line in points}) == 3  # type: ignore[arg-type, index]
        assert panel.get_xlim() == (0.5, 1.5)
        assert len(panel.containers) == 3  # their intervals


def test_lines_of_one_point_are_marked_on_a_page_too(tmp_path: Path) -> None:
    folder = sweep(tmp_path, {"optimizer.lr": rates(300)}, epochs=1)
    histories = [run.metrics() for run in runs_of(folder)]
    lines = figures.sweep_curves(rank(folder.summary()["trials"]), histories)["learning rate"]
    assert {line["mode"] for line in lines["data"][:-1]} == {"lines+markers"}


# ------------------------------------------------------------------------------------------ tables


def test_two_swept_settings_have_a_heat_map_which_a_bad_value_does_not_squash(
    tmp_path: Path, drawn: list[Figure]
) -> None:
    errors = {1.0: 0.9, 0.1: 0.05, 0.01: 0.02}
    axes: Axes = {"optimizer.lr": [*errors], "model.width": [8, 16]}
    names = [path.name for path in plots.draw(sweep(tmp_path, axes, errors))]
    assert names[-1] == "accuracy-optimizer.lr-model.width.png"
    cell, bar = drawn[-1].axes
    (image,) = cell.images
    assert np.asarray(image.get_array()).shape == (3, 2)
    low, _ = image.get_clim()
    assert 0.96 < low < 0.97
    texts = [text.get_text() for text in cell.texts]
    assert texts == ["98.7", "98.7", "96.7", "96.7", "40.0", "40.0"]
    assert [text.get_text() for text in cell.get_yticklabels()] == ["0.01", "0.1", "1"]
    assert bar.get_ylabel() == "validation accuracy"


@pytest.mark.parametrize("count", [2, 10, 100])
def test_a_confusion_matrix_has_its_scale_and_the_recall_of_each_class(
    count: int, tmp_path: Path, drawn: list[Figure]
) -> None:
    labels = np.repeat(np.arange(count), 4)
    guesses = labels.copy()
    guesses[0] = 1
    classes = ("a class with a long name, longer than its row is", *map(str, range(1, count)))
    images = np.zeros((4 * count, 1, 28, 28), np.uint8)
    seen = Classified(images, labels, np.eye(count)[guesses], classes, 0.1, 0.9)
    plots.mistaken(tmp_path, "title", "val", seen)
    cell, bar = drawn[0].axes
    rows = [text.get_text() for text in cell.get_yticklabels()]
    assert rows[0].startswith("a class")
    assert rows[0].endswith("75.0 %")
    assert rows[1].endswith("100.0 %")
    assert [text.get_text() for text in bar.get_yticklabels()] == ["0%", "1%", "10%", "50%", "100%"]
    assert bar.get_ylabel() == "share of the true class"
    assert bool(cell.texts) is (count <= 15)
    assert max(drawn[0].get_size_inches()) < 20


def test_long_names_are_cut_and_turned(tmp_path: Path, drawn: list[Figure]) -> None:
    hidden = [[512, 256, 128, 64, 32, 16, width, 10] for width in range(11, 23)]
    plots.draw(sweep(tmp_path, {"model.hidden": hidden}))
    labels = drawn[1].axes[0].get_xticklabels()
    assert len(labels) == 12
    assert all(label.get_rotation() == 35 for label in labels)
    assert len(legend(drawn[0])) == 12


# ------------------------------------------------------------------------------ spread over seeds


@pytest.mark.parametrize("seeds", [2, 10, 1000])
def test_the_spread_over_seeds_is_beside_what_the_images_alone_cause(
    seeds: int, tmp_path: Path, drawn: list[Figure]
) -> None:
    right = np.random.default_rng(0).binomial(1000, 0.975, seeds) / 1000
    plots.seed_distribution(tmp_path / "seeds.png", "title", right.tolist(), 1000)
    (cell,) = drawn[0].axes
    bars = cell.containers[0]
    heights = [bar.get_height() for bar in bars]
    assert sum(heights) == seeds
    (expected,) = [patch for patch in cell.patches if hasattr(patch, "get_data")]
    counts, edges, _ = expected.get_data()
    assert sum(counts) == pytest.approx(seeds, rel=0.01)
    middles = (edges[:-1] + edges[1:]) / 2
    assert np.average(middles, weights=counts) == pytest.approx(right.mean(), abs=1e-3)
    spread = math.sqrt(np.average((middles - right.mean()) ** 2, weights=counts))
    assert spread == pytest.approx(math.sqrt(right.mean() * (1 - right.mean()) / 1000), rel=0.1)
    (found,) = drawn[0].legends
    needed = tables.seeds_needed(right.tolist())
    assert found.get_title().get_text() == needed
    assert needed.startswith("a gain of 0.1 points needs ")
    assert f"{seeds:,} seeds: {100 * right.mean():.2f} %" in legend(drawn[0])[0]
    assert "1,000 images alone: sd" in legend(drawn[0])[1]


def test_seeds_that_all_agree_and_one_that_diverged_can_be_drawn(
    tmp_path: Path, drawn: list[Figure]
) -> None:
    plots.seed_distribution(tmp_path / "seeds.png", "title", [1.0] * 10, 100)
    plots.seed_distribution(tmp_path / "seeds.png", "title", [0.97, 0.98] * 20 + [0.1], 1000)
    low, high = drawn[1].axes[0].get_xlim()
    assert 0.9 < low < high <= 1.01
    assert "(1 off axis)" in drawn[1].axes[0].get_xlabel()
