"""The page of a run: whole, escaped, in one file, and drawn by a browser if one is here."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from mnist_cli.report import figures, schemas
from mnist_cli.report.page import Page, embedded, tag
from mnist_cli.runs.evaluate import Classified
from mnist_cli.runs.store import RunDirectory
from mnist_cli.sweeps.stats import rank
from tests.conftest import Mnist

HOSTILE = "</script><script>alert('x')</script><img src=x onerror=alert(1)>&\u202e"
BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")


class Parsed(HTMLParser):
    """The elements of a page in their order, and its text outside scripts and styles."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.data: list[str] = []  # what is in its scripts
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.cdata_elem == "script":
            self.data.append(data)
        elif self.cdata_elem is None:
            self.text += data

    def count(self, name: str) -> int:
        return sum(element == name for element, _ in self.elements)

    @property
    def figures(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.data[1])
        return found


def classified(classes: tuple[str, ...] = ("a", "b"), channels: int = 1) -> Classified:
    return Classified(
        images=np.zeros((4, channels, 6, 6), np.uint8),
        labels=np.array([0, 0, 0, 1]),
        probabilities=np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.4, 0.6]]),
        classes=classes,
        loss=0.5,
        accuracy=0.75,
    )


def page(folder: Path, seen: Classified | str = "no weights") -> Parsed:
    return Parsed(Page(RunDirectory(folder), seen).render("/* plotly */"))


@pytest.fixture
def sweep(mnist: Mnist, runs: Path) -> Path:
    argv = ["data={name: synthetic, size: 140}", "--epochs", "2", "--lrs", "1e-3,1e-2"]
    assert mnist("sweep", *argv, "--grid", "model.width=4,8", "--seeds", "3").code == 0
    return runs / "mlp-sweep-0001"


def test_the_page_of_a_run_has_its_figures_its_config_and_its_command(trained: Path) -> None:
    found = page(trained / "mlp-0001", classified())
    best = RunDirectory(trained / "mlp-0001").summary()["best"]
    assert f"best: epoch {best['epoch']}, val acc {100 * best['val/acc']:.2f} %" in found.text
    for said in ("data.name", "synthetic", "mnist train", "config.yaml", "is a, said b", "70.0 %"):
        assert said in found.text
    names = [figure["layout"]["yaxis"]["title"]["text"] for figure in found.figures.values()]
    assert names == ["loss", "accuracy", "learning rate", "truth, recall"]
    assert found.count("img") == 1
    assert {f"figure-{n}" for n in range(4)} <= {attrs.get("id") for _, attrs in found.elements}


def test_the_page_of_a_sweep_shows_each_setting_each_pair_and_all(sweep: Path) -> None:
    found = page(sweep, classified())
    kinds = [figure["data"][0]["type"] for figure in found.figures.values()]
    assert kinds == ["scatter"] * 6 + ["heatmap", "parcoords", "heatmap"]
    figures = [*found.figures.values()]
    assert len(figures[0]["data"]) == 4
    assert all(len(line["error_y"]["array"]) == 2 for line in figures[0]["data"])
    by_lr, two, every = figures[4], figures[6], figures[7]
    assert by_lr["data"][0]["x"] == [0.001, 0.01]
    assert by_lr["layout"]["xaxis"]["type"] == "log"
    trials = RunDirectory(sweep).summary()["trials"]
    at = [t["val/acc"] for t in trials if (t["optimizer.lr"], t["model.width"]) == (0.01, 4)]
    assert two["data"][0]["z"][1][0] == pytest.approx(sum(at) / 3)
    assert [d["label"] for d in every["data"][0]["dimensions"]] == ["lr", "width", "val acc"]
    assert "winner: " in found.text
    assert "test acc" in found.text


def test_one_seed_has_no_interval_and_several_have_one_that_can_be() -> None:
    def bars(accuracies: list[float]) -> dict[str, Any] | None:
        settings = {"optimizer.lr": 0.1}
        rows = [
            settings | {"train.seed": seed, "val/acc": acc, "val/loss": 1.0}
            for seed, acc in enumerate(accuracies)
        ]
        (line,) = figures.against("optimizer.lr", rank(rows))["data"]
        found: dict[str, Any] | None = line.get("error_y")
        return found

    assert bars([0.9]) is None
    assert bars([0.9, 0.8]) is None
    wide = bars([0.99, 0.1, 0.98])
    assert wide
    assert wide["array"] == [pytest.approx(1 - 0.69)]
    assert wide["arrayminus"] == [pytest.approx(0.69)]


def test_recall_is_of_the_true_class(trained: Path) -> None:
    *_, confusion = page(trained / "mlp-0001", classified()).figures.values()
    assert confusion["data"][0]["y"] == ["a  66.7 %", "b  100.0 %"]
    assert confusion["data"][0]["text"] == [["2", "1"], ["", "1"]]


def test_no_text_becomes_part_of_the_page(trained: Path) -> None:
    """Names of folders and classes, notes and errors, and what figures say of them."""
    folder = trained / "<script>alert('x')<" / "b"
    shutil.copytree(trained / "mlp-0001", folder)
    meta = {**RunDirectory(folder).meta(), "note": HOSTILE, "error": HOSTILE, "host": HOSTILE}
    (folder / "meta.json").write_text(json.dumps(meta | {"argv": ["train", HOSTILE]}))
    plain = page(trained / "mlp-0001", classified())
    hostile = page(folder, classified((HOSTILE, "b")))
    assert hostile.count("script") == plain.count("script") == 3
    assert hostile.count("img") == plain.count("img")
    assert not [a for _, attrs in hostile.elements for a in attrs if a.startswith("on")]
    assert hostile.text.count("<img src=x onerror=alert(1)>&\\u202e") >= 4  # shown, as it is
    *_, confusion = hostile.figures.values()
    assert "<" not in json.dumps([confusion["data"][0][axis] for axis in ("x", "y")])
    assert page(folder, HOSTILE).count("script") == 3


def test_attributes_are_escaped_too() -> None:
    assert tag("p", "<b>", tag("b", "&"), title='"><') == (
        '<p title="&quot;&gt;&lt;">&lt;b&gt;<b>&amp;</b></p>'
    )


def test_no_data_of_a_figure_ends_its_script() -> None:
    """Neither a text, of which Plotly would take tags, nor a template, in which it shall."""
    data = {"name": HOSTILE, "hovertemplate": "%{x}</script><br>"}
    written = embedded(data)
    assert "<" not in written
    assert json.loads(written)["hovertemplate"] == data["hovertemplate"]
    assert "<" not in json.loads(written)["name"]


def test_it_needs_no_other_file(mnist: Mnist, trained: Path, tmp_path: Path) -> None:
    pytest.importorskip("plotly")
    out = tmp_path / "page.html"
    ended = mnist("report", "mlp-0001", "-o", str(out), "--json")
    assert ended.code == 0
    assert ended.json == {"run": "mlp-0001", "report": str(out)}
    jsonschema.validate(ended.json, schemas.json_schema("report"))
    found = Parsed(out.read_text())
    assert "Plotly" in found.data[0]
    assert not [attrs for name, attrs in found.elements if name == "link" or attrs.get("href")]
    sources = [attrs["src"] for _, attrs in found.elements if attrs.get("src")]
    assert all(source and source.startswith("data:image/png;base64,") for source in sources)
    assert out.stat().st_size < 8e6


def test_the_newest_is_taken_and_lost_weights_cost_their_part_alone(
    mnist: Mnist, trained: Path
) -> None:
    pytest.importorskip("plotly")
    (trained / "mlp-sweep-0001" / "best.pt").write_bytes(b"damaged")
    ended = mnist("report")
    assert ended.code == 0
    assert "mlp-sweep-0001" in ended.err
    assert "best.pt" in ended.err
    text = (trained / "mlp-sweep-0001" / "report.html").read_text()
    assert Parsed(text).figures


def test_without_plotly_the_command_that_installs_it_is_said(
    mnist: Mnist, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "plotly.offline", None)
    ended = mnist("report", "mlp-0001")
    assert ended.code == 2
    assert "pip install 'mnist-cli[report]'" in ended.err
    assert not (trained / "mlp-0001" / "report.html").exists()


def test_a_browser_draws_every_figure_and_has_nothing_to_complain(
    mnist: Mnist, sweep: Path, tmp_path: Path
) -> None:
    pytest.importorskip("plotly")
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(f"no browser here: {', '.join(BROWSERS)}")
    assert mnist("report", sweep.name).code == 0
    software = ["--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
    options = ["--headless", "--no-sandbox", "--disable-dev-shm-usage", *software]
    options += [f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr"]
    done = subprocess.run(
        [browser, *options, "--virtual-time-budget=20000", "--dump-dom", f"{sweep}/report.html"],
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    said = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert [line for line in said if "GPU stall" not in line] == []
    assert len(re.findall('data-drawn="yes"', done.stdout)) == 9
