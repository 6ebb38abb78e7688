"""Configs from files and command lines: what is accepted, and where and why a mistake is one."""

import os
import re
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mnist_cli.config import (
    SECTIONS,
    Config,
    ConfigError,
    Flag,
    Loaded,
    MlpModel,
    load,
    load_saved,
    load_text,
    with_settings,
)
from mnist_cli.config.presets import description, find_preset, presets
from mnist_cli.errors import UsageError

REFERENCE = (
    "reference: {source: a paper, runs: [{when: {optimizer.lr: 1}, figures: {val/acc: 0.9}}]}\n"
)


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


Words = Sequence[str]
Flags = Sequence[Flag]


def loaded(text: str = "", words: Words = (), flags: Flags = (), grid: Words = ()) -> Loaded:
    Path("a.yaml").write_text(text, encoding="utf-8")
    return load("a.yaml", words, flags, [Flag("--grid", None, axis) for axis in grid])


def refused(text: str = "", words: Words = (), flags: Flags = (), grid: Words = ()) -> list[str]:
    """What a user is shown, without the lines that show the place."""
    with pytest.raises(ConfigError) as caught:
        loaded(text, words, flags, grid)
    return re.findall("^(?! {4}).+", str(caught.value), re.MULTILINE)


# ------------------------------------------------------------------------------------ files


def test_what_is_not_said_has_its_default() -> None:
    assert loaded().config == Config(name="a")
    assert loaded("model: cnn").config == loaded("model: {name: cnn}").config
    assert loaded("model: {depth: 3}").config == loaded("model: {name: mlp, depth: 3}").config


def test_the_name_is_the_files_made_valid() -> None:
    for file, name in [("b c.d.yaml", "b-c-d"), ("_é.yaml", "config"), ("x" * 80, "x" * 64)]:
        Path(file).write_text("", encoding="utf-8")
        assert load(file).config.name == name
    assert loaded("name: mine").config.name == "mine"


def test_every_mistake_is_told_at_once_in_the_order_of_the_file() -> None:
    text = (
        "data: {batchsize: 32, batch_size: 0, name: mnst}\n"
        "optimizer:\n"
        "  name: adam\n"
        "  lr: -0.1\n"
        "  momentum: 0.9\n"
        "  lr: 1\n"
        "model: mpl\n"
        "scheduler: step\n"
        "lr: 1e-3\n"
        "sweep: {optimizer.eps: [1, -1], train.sed: [1], optimizer.lr: [2, -2]}\n"
    )
    expected = [
        "a.yaml:1:8: data.batchsize: unknown setting; did you mean 'data.batch_size'?",
        "a.yaml:1:35: data.batch_size: must be greater than or equal to 1, got 0",
        "a.yaml:1:44: data.name: must be one of 'mnist', 'fashion_mnist', 'kmnist'",
        "a.yaml:4:7: optimizer.lr: must be greater than 0, got -0.1",
        "a.yaml:5:3: optimizer.momentum: not a setting of adam, but of sgd, muon, rmsprop",
        "a.yaml:6:3: optimizer: duplicate key 'lr'",
        "a.yaml:7:8: model.name: must be one of 'logistic', 'mlp', 'cnn'",
        "a.yaml:8:1: scheduler.step_size: is missing",
        "a.yaml:9:1: lr: unknown setting; did you mean 'optimizer.lr'?",
        "a.yaml:10:28: sweep.optimizer.eps[1]: must be greater than or equal to 0, got -1",
        "a.yaml:10:33: sweep.train.sed: is no setting; did you mean",
        "a.yaml:10:67: sweep.optimizer.lr[1]: must be greater than 0, got -2",
    ]
    for message, beginning in zip(refused(text), expected, strict=True):
        assert message.startswith(beginning)


@pytest.mark.parametrize(
    ("text", "place", "got"),
    [
        ("data: {batch_size: a}", "20: data.batch_size", '"a"'),
        ("data: {batch_size: 64.0}", "20: data.batch_size", "64.0"),
        ("data: {split: poled}", "15: data.split", "did you mean 'pooled'?"),
        ("data: 3", "7: data", "3"),
        ("train:", "7: train", "null"),
        ("train: {device: gpu}", "17: train.device", '"gpu"'),
        ("train: {epochs: 1, steps: 1}", "1: train", "set one of them to null"),
        ("optimizer: {lr: '1e-3'}", "17: optimizer.lr", '"1e-3"'),
        ("optimizer: {lr: .nan}", "17: optimizer.lr", "NaN"),
        ("optimizer: {betas: [0.9]}", "13: optimizer.betas[1]", "is missing"),
        ("optimizer: {betas: [0, 1]}", "24: optimizer.betas[1]", "1"),
        ("augment: {rotate: -1}", "19: augment.rotate", "-1"),
        ("augment: {translate: 1.5}", "22: augment.translate", "1.5"),
        ("augment: {scale: 1.1}", "18: augment.scale", "must be a list"),
        ("augment: {scale: [0, 1]}", "19: augment.scale[0]", "0"),
        ("augment: {scale: [1.2, 0.9]}", "1: augment", "from the least to the largest"),
        ("augment: {erase_area: [0.5, 0.1]}", "1: augment", "erase_area"),
        ("augment: {flip: 2}", "17: augment.flip", "2"),
        ("augment: {elastic_sigma: 0}", "26: augment.elastic_sigma", "0"),
        ("augment: {rotation: 3}", "11: augment.rotation", "did you mean 'augment.rotate'?"),
        ("model: {hidden: [3, a]}", "21: model.hidden[1]", '"a"'),
        ("model: {depth: 9}", "1: model", "halved for each of 8 hidden layers"),
        ("model: {name: resnet, depth: 10}", "1: model", "such as 8 or 14"),
        ("loss: {name: nll, label_smoothing: 0.1}", "1: loss", "cross_entropy alone"),
        ("train: {ema: 1}", "14: train.ema", "1"),
        ("scheduler: {name: multistep, milestones: []}", "42: scheduler.milestones", "[]"),
        ("name: a b", "7: name", '"a b"'),
        ("sweep: []", "8: sweep", "[]"),
        ("sweep: {optimizer.lr: []}", "23: sweep.optimizer.lr", "at least 1"),
        ("reference: {}", "1: reference.source", "is missing"),
        ('reference: {source: "\\x1b"}', "21: reference.source", "one line of text"),
        ("reference: {source: a, best: {acc: 1}}", "31: reference.best.acc", "'train/loss'"),
        ("reference: {source: a, runs: [{}]}", "31: reference.runs[0].figures", "is missing"),
        ("- a", "1: ", "must be sections"),
        ("reference: {source: a, runs: [{when: {lr: 1}, figures: {}}]}", "39: ", "is no setting"),
    ],
)
def test_a_mistake_is_told_in_plain_words(text: str, place: str, got: str) -> None:
    (messages,) = refused(text)
    assert messages.startswith(f"a.yaml:1:{place}")
    assert got in messages
    assert "Input" not in messages


def test_a_config_in_plain_values_is_trusted_no_more_than_a_file() -> None:
    config = loaded("model: cnn\n" + REFERENCE).config
    assert load_saved(config.resolved(), "a.pt") == config
    assert load_saved(config.resolved(), "a.pt", ["data.seed=3"]).data.seed == 3
    deep: dict[str, object] = {}
    for _ in range(100_000):
        deep = {"a": deep}
    for saved in ({"model": "densenet"}, {"model": object()}, deep, {"name": "\x1b"}):
        with pytest.raises(ConfigError, match=r"^a\.pt: "):
            load_saved(saved, "a.pt")
    while deep:  # taken apart here: the interpreter may not survive doing it by itself
        deep = deep.pop("a")  # type: ignore[assignment]


keys = [*SECTIONS, "sweep", "reference", "name", "lr", "optimizer.lr", "runs", "when", "figures"]
words = ["mlp", "adam", "-", "-1", "1e-3", "null", "[", "]", "{", "}", ",", "'a'", "val/acc: 1"]
pieces = st.sampled_from([*(f"{key}:" for key in keys), *words, " ", "\n", "\n  "])


yaml_like = st.text(st.sampled_from(list("ab:,-?[]{}#&*!|>'\"%@`~<=. \n\t\r\\0x1e")), max_size=40)


@settings(deadline=None)
@given(st.text() | yaml_like | st.lists(pieces).map("".join))
def test_no_text_makes_it_crash(text: str) -> None:
    try:
        load_text(text, "x")
    except ConfigError as error:
        assert error.problems  # noqa: PT017
        assert all(str(problem).startswith("x:") for problem in error.problems)  # noqa: PT017


def test_a_byte_order_mark_and_windows_line_ends_do_not_matter() -> None:
    Path("a.yaml").write_bytes(b"\xef\xbb\xbfmodel: cnn\r\noptimizer: {lr: 0}\r\n")
    with pytest.raises(ConfigError, match=r"^a\.yaml:2:17: optimizer\.lr: ") as caught:
        load("a.yaml")
    assert str(caught.value).splitlines()[1:] == ["    optimizer: {lr: 0}", f"{'^':>21}"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_an_error() -> None:
    Path("a.yaml").touch(mode=0)
    with pytest.raises(UsageError, match=r"a\.yaml cannot be read: Permission denied"):
        load("a.yaml")


# ---------------------------------------------------------------------------------- presets


def test_without_a_config_it_is_the_preset_mlp() -> None:
    result = load()
    assert (result.origin, result.config.name) == ("mlp", "mlp")
    assert result.notes == ("config: the shipped mlp",)
    Path("mlp.yaml").write_text("model: cnn", encoding="utf-8")
    assert load() == result  # a file that happens to be here is not asked


def test_a_file_comes_before_the_preset_of_its_name() -> None:
    Path("cnn.yaml").write_text("model: mlp", encoding="utf-8")
    result = load("cnn.yaml")
    assert (result.origin, result.notes, result.config.model.name) == ("cnn.yaml", (), "mlp")
    Path("cnn").mkdir()
    assert load("cnn").notes  # a folder does not hide it
    assert find_preset("cnn") == find_preset("cnn.yaml")


def test_an_unknown_config_is_told_with_where_it_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'mpl'") as caught:
        load("mpl")
    assert str(tmp_path / "mpl") in str(caught.value)
    assert "did you mean 'mlp'?" in str(caught.value)
    assert all(name in str(caught.value.hint) for name in presets())


def test_every_preset_is_valid_and_described() -> None:
    assert {"mlp", "logistic", "cnn"} <= presets().keys()
    for name, path in presets().items():
        assert load(name).config.name == name
        assert description(path).endswith(".")


# -------------------------------------------------------------------------- the command line


def test_the_command_line_goes_before_the_file() -> None:
    result = loaded(
        "model: mlp\noptimizer: {name: adam, lr: 0}\ntrain: {epochs: 3}\n",
        ["model.hidden=[50, 100]", "train.epochs=null", "train.steps=5", "optimizer.lr=1e-2"],
        [Flag("--batch-size", "data.batch_size", "8"), Flag("--name", "name", "7")],
    )
    set_there = {"model.hidden": [50, 100], "model.depth": 3, "train.steps": 5}
    set_there |= {"optimizer.lr": 0.01, "data.batch_size": 8}
    assert dict(result.config.settings()).items() >= set_there.items()
    assert (result.config.name, result.config.train.epochs) == ("7", None)
    assert " ".join(result.changed) == (
        "data.batch_size name model.hidden train.epochs train.steps optimizer.lr"
    )


def test_a_whole_section_replaces_that_of_the_file() -> None:
    text = "optimizer: {name: adam, lr: 1, betas: [0, 0]}"
    for overrides in (["optimizer={name: sgd, lr: 0.1}"], ["optimizer.lr=0.1", "optimizer=sgd"]):
        optimizer = loaded(text, overrides).config.optimizer
        assert optimizer.model_dump(exclude_unset=True) == {"name": "sgd", "lr": 0.1}


def test_mistakes_on_the_command_line_name_the_argument() -> None:
    messages = refused(
        "optimizer: {lr: 1}\nmodel: {depth: 2}\ndata: {seed: -1}",
        ["model.depth=9", "optimzer.eps=1", "scheduler=step", "loss={name:nll}"],
        [Flag("--lr", "optimizer.lr", "-0.1")],
    )
    assert {line.partition(": must")[0].partition(": is")[0] for line in messages} >= {
        "a.yaml:3:14: data.seed",
        "--lr -0.1: optimizer.lr",
        "scheduler=step: scheduler.step_size",
    }
    assert any(line.startswith("model.depth=9: model: width 32") for line in messages)
    assert any(line.startswith("optimzer.eps=1: optimzer: unkn") for line in messages)
    assert any(line.startswith("loss={name:nll}: loss.name:nll:") for line in messages)
    assert len(messages) == 6


@pytest.mark.parametrize(
    ("override", "error"),
    [
        ("foo", "must be KEY=VALUE"),
        ("model..depth=3", "must be KEY=VALUE"),
        ("train.steps=", "train.steps: has no value"),
        ("batchsize=3", "batchsize: unknown setting; did you mean 'data.batch_size'?"),
        ("model.depth=[1", "model.depth: while parsing a flow sequence"),
        ("model.depth=\x80", "model.depth: the character U+0080"),
        ("optimizer.lr=&a 1", "optimizer.lr: anchors"),
        ("sweep.optimizer.lr=[1, -1]", "sweep.optimizer.lr[1]: must be greater than 0"),
        ("model=!!python/name:os.system", "model: tags"),
        ("model=[[[[[[[[[[", "model: while parsing a flow"),
    ],
)
def test_a_bad_override_is_told(override: str, error: str) -> None:
    messages = "\n".join(refused("optimizer: {lr: 1}", [override]))
    assert messages.startswith(f"{override}: ")
    assert error in messages


def test_the_command_line_may_not_contradict_itself() -> None:
    lr = Flag("--lr", "optimizer.lr", "0.1")
    assert loaded("", ["optimizer.lr=1e-1"], [lr]).config.optimizer.lr == 0.1
    for overrides in (
        ["optimizer.lr=0.2"],
        ["optimizer=sgd", "optimizer=adam"],
    ):
        assert "says otherwise" in refused("", overrides, [lr])[0]
    assert refused("", ["lr=.nan"]) == ["lr=.nan: optimizer.lr: must be a finite number, got NaN"]
    # A setting goes before its whole section, wherever either stands.
    assert loaded("", ["optimizer={name: sgd, lr: 3}"], [lr]).config.optimizer.lr == 0.1


# ------------------------------------------------------------------------------------- sweeps


def test_the_values_of_a_sweep_are_those_of_the_schema() -> None:
    text = (
        "sweep:\n"
        "  optimizer.lr: [1, 0.5]\n"
        "  train.clip_grad_norm: [null, 5]\n"
        "  model: [logistic, {name: cnn}, {depth: 3}]\n"
    )
    sweep = loaded(text).config.sweep
    assert repr(sweep["optimizer.lr"]) == "(1.0, 0.5)"
    assert repr(sweep["train.clip_grad_norm"]) == "(None, 5.0)"
    assert sweep["model"] == ("logistic", "cnn", {"name": "mlp", "depth": 3})


@pytest.mark.parametrize(
    ("axis", "error"),
    [
        ("optimizer.lr: [1, -1]", "27: sweep.optimizer.lr[1]: must be greater than 0, got -1"),
        ("optimizer.lr: [1, 2, 1.0]", "30: sweep.optimizer.lr[2]: 1.0 is in the list already"),
        ("model: [{dept: 2}]", "18: sweep.model[0].dept: unknown setting"),
        ("optimizer.l: [1, 2]", "9: sweep.optimizer.l: is no setting; did you mean"),
        ("optimizer.momentum: [1]", "30: sweep.optimizer.momentum[0]: not a setting of adam"),
        ("lr: [1, 2]", "9: sweep.lr: is no setting; did you mean 'optimizer.lr'?"),
        ("scheduler: [step]", "21: sweep.scheduler[0].step_size: is missing"),
        ("optimizer.name: [sgd]", "26: sweep.optimizer.name[0]: does not go with the rest: "),
    ],
)
def test_a_bad_axis_is_told(axis: str, error: str) -> None:
    (messages,) = refused(f"sweep: {{{axis}}}\noptimizer: {{betas: [0, 0]}}\n")
    assert messages.startswith(f"a.yaml:1:{error}")


def test_axes_of_the_command_line_go_before_those_of_the_file() -> None:
    Path("a.yaml").write_text("sweep: {optimizer.lr: [1], train.seed: [7]}")
    axes = [
        Flag("--seeds", "train.seed", "3"),
        Flag("--lrs", "optimizer.lr", "log:1e-3:1e-1:3"),
        Flag("--grid", None, "model.depth=1..3"),
    ]
    assert list(load("a.yaml", axes=axes).config.sweep.items()) == [
        ("optimizer.lr", (0.001, 0.01, 0.1)),
        ("train.seed", (0, 1, 2)),
        ("model.depth", (1, 2, 3)),
    ]


def test_an_axis_is_given_once() -> None:
    assert "--grid optimizer.lr=1,2 says" in refused(grid=["optimizer.lr=1,2", "optimizer.lr=3"])[0]
    messages = refused("", ["sweep.optimizer.lr=[1, 2]"], grid=["optimizer.lr=3"])[0]
    assert "sweep.optimizer.lr=[1, 2] says otherwise" in messages
    messages = refused("", ["optimizer.lr=3"], grid=["optimizer.lr=1,2"])[0]
    assert "optimizer.lr=3 sets it" in messages


def test_a_whole_section_is_swept_in_place_of_the_files_axes_inside_it() -> None:
    text = "sweep: {optimizer.lr: [1, 2], train.seed: [1, 2]}"
    result = loaded(text, grid=["optimizer=[sgd,{name: adam, lr: 0.3}]"])
    assert list(result.config.sweep) == ["train.seed", "optimizer"]
    assert [note.split()[0] for note in result.notes] == ["optimizer.lr"]
    assert loaded(text).notes == ()
    assert loaded("sweep: {optimizer: [sgd], optimizer.lr: [1]}").notes == result.notes
    (messages,) = refused(grid=["optimizer=sgd,adam", "optimizer.lr=1,2"])
    assert "optimizer.lr=1,2 sets it, or a part" in messages
    (messages,) = refused("", ["optimizer.lr=1"], grid=["optimizer=sgd,adam"])
    assert "optimizer.lr=1 sets it, or a part" in messages


def test_a_grid_of_too_many_runs_is_refused_before_it_is_expanded() -> None:
    started = time.process_time()
    messages = refused(grid=["train.seed=1..10000", "data.seed=1..10000", "model.width=8..10007"])
    assert time.process_time() - started < 2
    assert len(messages) == 1
    assert "1,000,000,000,000 runs" in messages[0]
    text = "sweep: {train.seed: [1, 2], data.seed: [1, 2]}"
    assert refused(text, grid=["model.width=8..2508"])[0].endswith("at most 10,000 can be")
    assert loaded(text, grid=["model.width=8..2507"]).config.sweep


def test_ten_thousand_values_are_checked_and_not_all_printed() -> None:
    config = loaded(grid=["train.seed=0..9999"]).config
    assert config.sweep["train.seed"] == tuple(range(10_000))
    messages = refused(grid=["train.seed=-9999..0"])
    assert messages[-1] == "... and 9899 more"


# --------------------------------------------------------------------------------- reference


@pytest.mark.parametrize(
    ("overrides", "grid", "dropped"),
    [
        ([], [], ()),
        (["optimizer.lr=3", "train.seed=3", "data.seed=1", "train.device=cpu", "name=b"], [], ()),
        (["train.epochs=4", "sweep.model.depth=[2]"], [], ()),
        (["train.epochs=5"], [], ("train",)),
        (["optimizer.eps=1", "model.width=8"], [], ("model", "optimizer")),
        (["model=logistic"], [], ("model",)),
        ([], ["optimizer.lr=1,2", "train.seed=1,2"], ()),
        ([], ["train.epochs=4"], ()),
        ([], ["train.epochs=4,5"], ("train",)),
        ([], ["data.seed=5,6", "train.steps=5"], ("train",)),
    ],
)
def test_published_figures_are_of_one_experiment(
    overrides: list[str], grid: list[str], dropped: tuple[str, ...]
) -> None:
    result = loaded(REFERENCE, overrides, grid=grid)
    assert [note.split("another ")[1] for note in result.notes] == [", ".join(dropped)] * any(
        dropped
    )
    assert (result.config.reference is None) == bool(dropped)
    own = "sweep: {train.epochs: [1]}\n" + REFERENCE  # an axis of the file may have other values
    assert loaded(own, grid=["train.epochs=5,6"]).config.reference


# ------------------------------------------------------------------------------ with_settings


def test_settings_are_replaced_and_checked_again() -> None:
    config = loaded("train: {seed: 3}\n" + REFERENCE).config
    changed = with_settings(config, {"optimizer.lr": 1, "optimizer": "sgd", "train.steps": 5})
    assert changed.optimizer.model_dump(exclude_unset=True) == {"name": "sgd", "lr": 1.0}
    assert (changed.train.seed, changed.train.steps, changed.train.epochs) == (3, 5, None)
    assert (changed.name, changed.reference) == (config.name, config.reference)
    assert with_settings(config, {}) == config
    for key, value, what in (("lr", -1, "must be greater than 0, got -1"), ("x", 1, "unknown")):
        with pytest.raises(ConfigError, match=f"^optimizer.{key}: {what}"):
            with_settings(config, {f"optimizer.{key}": value})


def test_a_new_setting_takes_the_place_of_another_word_for_it() -> None:
    """`hidden` for `depth` and `width`, `steps` for `epochs`, and the other way round."""
    wide = load("mlp", ["model.hidden=[50, 100]", "train.steps=7"]).config
    assert wide.model == MlpModel(hidden=(50, 100))
    assert (wide.train.steps, wide.train.epochs) == (7, None)
    saved = load_saved(wide.resolved(), "saved", ["model.depth=4", "train.epochs=2"])
    assert saved.model == MlpModel(depth=4, width=50)
    assert (saved.train.steps, saved.train.epochs) == (None, 2)
    assert with_settings(wide, {"model.width": 8}).model == MlpModel(width=8)
    swept = load("mlp", axes=[Flag("--grid", None, "model.hidden=[[8],[9,9]]")]).config
    assert swept.sweep["model.hidden"] == ([8], [9, 9])
    for overrides in (["model.hidden=[50, 100]", "model.depth=2"], ["train={epochs: 1, steps: 7}"]):
        with pytest.raises(ConfigError, match=r"depth|epochs"):  # both at once, it must agree
            load("mlp", overrides)


# ------------------------------------------------------------------------------------ costs


def test_a_config_is_validated_once(monkeypatch: pytest.MonkeyPatch) -> None:
    validated, validate = list[dict[str, object]](), Config.model_validate

    def counted(values: dict[str, object]) -> Config:
        validated.append(values)
        return validate(values)

    monkeypatch.setattr(Config, "model_validate", counted)
    load("mlp", ["optimizer.lr=1e-2"], axes=[Flag("--seeds", "train.seed", "3")])
    whole = [values for values in validated if "reference" in values]
    assert len(whole) == 1
