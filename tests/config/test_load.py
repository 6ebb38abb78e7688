"""Configs from files and command lines: what is accepted, and what each mistake is told."""

import os
import subprocess
import sys
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
    find_preset,
    load,
    load_saved,
    load_text,
    presets,
    with_settings,
)
from mnist_cli.errors import UsageError

REFERENCE = (
    "reference: {source: a paper, runs: [{when: {optimizer.lr: 1}, figures: {val/acc: 0.9}}]}\n"
)


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def loaded(
    text: str = "",
    overrides: Sequence[str] = (),
    flags: Sequence[Flag] = (),
    axes: Sequence[Flag] = (),
) -> Loaded:
    Path("a.yaml").write_text(text, encoding="utf-8")
    return load("a.yaml", overrides, flags, axes)


def refused(
    text: str = "",
    overrides: Sequence[str] = (),
    flags: Sequence[Flag] = (),
    axes: Sequence[Flag] = (),
) -> str:
    """What a user is told."""
    with pytest.raises(ConfigError) as caught:
        loaded(text, overrides, flags, axes)
    return str(caught.value)


# ------------------------------------------------------------------------------------ files


def test_an_empty_file_is_all_defaults() -> None:
    assert loaded().config == Config(name="a")


def test_a_section_may_be_its_bare_name_or_have_no_name() -> None:
    assert loaded("model: cnn").config == loaded("model: {name: cnn}").config
    assert loaded("model: {depth: 3}").config == loaded("model: {name: mlp, depth: 3}").config


def test_whole_numbers_are_taken_for_settings_with_a_fraction_and_not_the_other_way() -> None:
    assert repr(loaded("optimizer: {lr: 1}").config.optimizer.lr) == "1.0"
    assert "got 64.0; write 64" in refused("data: {batch_size: 64.0}")


def test_the_name_is_the_files_made_valid() -> None:
    for file, name in [("b c.d.yaml", "b-c-d"), ("_é.yaml", "config"), ("x" * 80, "x" * 64)]:
        Path(file).write_text("", encoding="utf-8")
        assert load(file).config.name == name
    assert loaded("name: mine").config.name == "mine"


def test_every_mistake_is_told_at_once_in_the_order_of_the_file() -> None:
    text = (
        "data: {batchsize: 32}\n"
        "optimizer:\n"
        "  name: adam\n"
        "  lr: -0.1\n"
        "  momentum: 0.9\n"
        "model: mpl\n"
        "scheduler: step\n"
        "lr: 1e-3\n"
    )
    assert refused(text) == (
        "a.yaml:1:8: data.batchsize: unknown setting; did you mean 'batch_size'?\n"
        "   1 | data: {batchsize: 32}\n"
        "     |        ^^^^^^^^^\n"
        "a.yaml:4:7: optimizer.lr: must be greater than 0, got -0.1\n"
        "   4 |   lr: -0.1\n"
        "     |       ^^^^\n"
        "a.yaml:5:3: optimizer.momentum: not a setting of adam (sgd, rmsprop have it)\n"
        "   5 |   momentum: 0.9\n"
        "     |   ^^^^^^^^\n"
        "a.yaml:6:8: model: must be logistic, mlp, cnn, cnn_sequential, scratch or tensor_net, "
        "got 'mpl'; did you mean 'mlp'?\n"
        "   6 | model: mpl\n"
        "     |        ^^^\n"
        "a.yaml:7:1: scheduler.step_size: is missing and has no default\n"
        "   7 | scheduler: step\n"
        "     | ^^^^^^^^^\n"
        "a.yaml:8:1: lr: unknown setting; did you mean 'optimizer.lr'?\n"
        "   8 | lr: 1e-3\n"
        "     | ^^"
    )


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("data: {batch_size: a}", "data.batch_size: must be a whole number, got 'a'"),
        ("data: {batch_size: true}", "data.batch_size: must be a whole number, got true"),
        ("data: {batch_size: 0}", "data.batch_size: must be at least 1, got 0"),
        ("data: {shuffle: yes}", "data.shuffle: must be true or false, got 'yes'"),
        ("data: {split: poled}", "data.split: must be pooled, holdout or official, got 'poled'"),
        ("data: {name: synthetic, size: 9000000}", "data.size: must be at most 1000000, got"),
        ("data: 3", "data: must be a section of settings, got 3"),
        ("data: [mnist]", "data: must be a section of settings, got ['mnist']"),
        ("train:", "train: must be a section of settings, got null"),
        ("train: {device: gpu}", "train.device: must be auto, cpu, cuda or cuda:N, got 'gpu'"),
        ("train: {device: 0}", "train.device: must be text, got 0; put it in quotes"),
        ("train: {seed: 99999999999999999999}", "train.seed: must be less than 92233720368547758"),
        ("train: {epochs: 1, steps: 1}", "train: epochs and steps are both given; set one of"),
        ("optimizer: {name: 5}", "must be sgd, adam, adamw, rmsprop or scratch_sgd, got 5"),
        ("optimizer: {lr: '1e-3'}", "optimizer.lr: must be a number, got '1e-3'"),
        ("optimizer: {lr: .nan}", "optimizer.lr: must be a finite number, got nan"),
        ("optimizer: {eps: .inf}", "optimizer.eps: must be a finite number, got inf"),
        ("optimizer: {betas: 1}", "optimizer.betas: must be a list, got 1"),
        ("optimizer: {betas: [0.9]}", "optimizer.betas: has too few values, got [0.9]"),
        ("optimizer: {betas: []}", "optimizer.betas: has too few values, got []"),
        ("optimizer: {betas: [0, 0, 0]}", "optimizer.betas: must have at most 2 values, got [0,"),
        ("optimizer: {betas: [0, 1]}", "optimizer.betas[1]: must be less than 1, got 1"),
        ("optimizer: {xyz: 1}", "optimizer.xyz: unknown setting; there are name, lr, betas, eps"),
        ("model: {hidden: [3, a]}", "model.hidden[1]: must be a whole number, got 'a'"),
        ("model: {depth: 9}", "model: width 32 halved for each of 8 hidden layers leaves none"),
        ("loss: {name: nll, reduction: sun}", "loss.reduction: must be mean or sum, got 'sun'"),
        ("loss: {label_smoothing: 1}", "loss.label_smoothing: unknown setting; there are name"),
        ("scheduler: {name: multistep, milestones: []}", "must have at least 1 value, got []"),
        ("name: 5", "name: must be text, got 5; put it in quotes"),
        ("name: a b", "name: must start with a letter or digit and go on with those, '-'"),
        ("seed: 5", "seed: unknown setting; did you mean 'data.seed' or 'train.seed'?"),
        ("qwerty: 5", "qwerty: unknown setting; there are name, data, model, loss, optimizer"),
        ("sweep: []", "sweep: must be a mapping of keys to values, got []"),
        ("sweep: {optimizer.lr: 1}", "sweep.optimizer.lr: must be a list, got 1"),
        ("sweep: {optimizer.lr: []}", "sweep.optimizer.lr: must have at least 1 value, got []"),
        ("reference: {}", "reference.source: is missing and has no default"),
        ("reference: {source: a, best: {acc: 1}}", "reference.best.acc: must be train/loss, train"),
        ("reference: {source: a, best: {val/acc: a}}", "best.val/acc: must be a number, got 'a'"),
        ("reference: {source: a, best: {val/acc: [a]}}", "best.val/acc[0]: must be a number"),
        ("reference: {source: a, runs: [{}]}", "reference.runs[0].figures: is missing and has"),
        ("reference: {source: a, runs: [{wen: {}}]}", "runs[0].wen: unknown setting; did you mean"),
        ("- a", "a.yaml:1:1: must be sections, got ['a']"),
        ("a", "a.yaml:1:1: must be sections, got 'a'"),
    ],
)
def test_a_mistake_is_told_in_plain_words(text: str, error: str) -> None:
    told = refused(text)
    assert error in told
    assert "Input" not in told


def test_what_cannot_be_read_is_not_told_to_be_invalid_as_well() -> None:
    told = refused("optimizer: {lr: *x, eps: -1}\n")
    assert told.count("optimizer.lr") == 1
    assert "optimizer.eps: must be at least 0, got -1" in told


def test_a_saved_text_is_read_like_a_file() -> None:
    assert load_text("model: cnn", "x") == Config.model_validate({"model": "cnn"})
    with pytest.raises(ConfigError, match=r"^runs/a/config\.yaml:1:1: mdel: unknown setting"):
        load_text("mdel: cnn", "runs/a/config.yaml")


def test_a_config_in_plain_values_is_trusted_no_more_than_a_file() -> None:
    config = loaded("model: cnn\n" + REFERENCE).config
    assert load_saved(config.resolved(), "a.pt") == config
    assert load_saved(config.resolved(), "a.pt", ["data.seed=3"]).data.seed == 3
    deep: dict[str, object] = {}
    for _ in range(100_000):
        deep = {"a": deep}
    for saved in ({"model": "resnet"}, {"model": object()}, deep, {"name": "\x1b"}):
        with pytest.raises(ConfigError):
            load_saved(saved, "a.pt")
    while deep:  # taken apart here: the interpreter may not survive doing it by itself
        deep = deep.pop("a")  # type: ignore[assignment]


keys = [*SECTIONS, "sweep", "reference", "name", "lr", "optimizer.lr", "runs", "when", "figures"]
words = ["mlp", "adam", "-", "-1", "1e-3", "null", "[", "]", "{", "}", ",", "'a'", "val/acc: 1"]
pieces = st.sampled_from([*(f"{key}:" for key in keys), *words])


@settings(deadline=None)
@given(st.lists(st.tuples(pieces, st.sampled_from([" ", "\n", "\n  "]))))
def test_no_text_makes_it_crash(text: list[tuple[str, str]]) -> None:
    try:
        load_text("".join(piece + space for piece, space in text), "x")
    except ConfigError as error:
        assert error.problems  # noqa: PT017
        assert "Input" not in str(error)  # noqa: PT017


# ------------------------------------------------------------------------------ hostile files


def test_a_byte_order_mark_and_windows_line_ends_do_not_matter() -> None:
    Path("a.yaml").write_bytes(b"\xef\xbb\xbfmodel: cnn\r\noptimizer: {lr: 0}\r\n")
    with pytest.raises(ConfigError, match=r"^a\.yaml:2:17: optimizer\.lr: must be greater than 0"):
        load("a.yaml")


def test_bytes_that_are_no_text_are_shown() -> None:
    for mark in (b"", b"\xef\xbb\xbf"):
        Path("a.yaml").write_bytes(mark + "# é\nname: ".encode() + b"\xff\n")
        with pytest.raises(ConfigError) as caught:
            load("a.yaml")
        assert str(caught.value) == (
            "a.yaml:2:7: the byte 0xff is not UTF-8 text\n   2 | name: \ufffd\n     |       ^"
        )


def test_a_huge_file_is_not_read() -> None:
    Path("a.yaml").write_text("#" * 300_001, encoding="utf-8")
    with pytest.raises(UsageError, match=r"a\.yaml is larger than 300,000 bytes"):
        load("a.yaml")


def test_what_is_no_file_is_not_opened() -> None:
    os.mkfifo("pipe")
    Path("folder").mkdir()
    for name, kind in [("pipe", "a pipe or a device"), ("folder", "a folder"), ("", "a folder")]:
        with pytest.raises(UsageError, match=f"^'{name}' is {kind}, not a config"):
            load(name)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_an_error() -> None:
    Path("a.yaml").touch(mode=0)
    with pytest.raises(UsageError, match=r"a\.yaml cannot be read: Permission denied"):
        load("a.yaml")


# ---------------------------------------------------------------------------------- presets


def test_without_a_config_it_is_the_preset_mlp() -> None:
    result = load()
    assert (result.origin, result.is_preset, result.config.name) == ("mlp", True, "mlp")
    Path("mlp.yaml").write_text("model: cnn", encoding="utf-8")
    assert load() == result  # a file that happens to be here is not asked


def test_a_preset_has_a_name_with_or_without_its_suffix() -> None:
    assert load("cnn") == load("cnn.yaml")
    assert load("cnn").is_preset
    assert find_preset("cnn") == find_preset("cnn.yaml")


def test_a_file_comes_before_the_preset_of_its_name() -> None:
    Path("cnn.yaml").write_text("model: mlp", encoding="utf-8")
    result = load("cnn.yaml")
    assert (result.origin, result.is_preset, result.config.model.name) == ("cnn.yaml", False, "mlp")
    assert load("cnn").is_preset


def test_a_folder_does_not_hide_a_preset() -> None:
    Path("cnn").mkdir()
    assert load("cnn").is_preset


def test_an_unknown_config_is_told_with_where_it_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        load("mpl")
    assert str(caught.value) == (
        f"there is no config 'mpl': no file {tmp_path / 'mpl'}, "
        f"and the presets are {', '.join(preset.name for preset in presets())}"
    )
    assert caught.value.hint == "did you mean mlp?"
    Path("mine.yaml").touch()
    with pytest.raises(UsageError) as caught:
        load("mime.yaml")
    assert caught.value.hint == "did you mean mine.yaml?"
    for name in ("a\0b", "x" * 5_000, "no/such/folder"):
        with pytest.raises(UsageError, match="there is no config"):
            load(name)
    with pytest.raises(UsageError, match="there is no preset 'mpl'"):
        find_preset("mpl")


def test_every_preset_is_valid_and_described() -> None:
    assert {"mlp", "logistic", "cnn"} <= {preset.name for preset in presets()}
    for preset in presets():
        assert load(preset.name).config.name == preset.name
        assert preset.description.endswith(".")
        first = preset.path.read_text(encoding="utf-8").splitlines()[0]
        assert first == "# yaml-language-server: $schema=schema.json"


# -------------------------------------------------------------------------- the command line


def test_the_command_line_goes_before_the_file() -> None:
    result = loaded(
        "model: mlp\noptimizer: {name: adam, lr: 1}\ntrain: {epochs: 3}\n",
        ["model.hidden=[50, 100]", "train.epochs=null", "train.steps=5", "optimizer.lr=1e-2"],
        [Flag("--batch-size", "data.batch_size", "8"), Flag("--name", "name", "7")],
    )
    config = result.config
    assert (
        dict(config.settings()).items()
        >= {
            "model.hidden": [50, 100],
            "model.depth": 3,
            "train.steps": 5,
            "optimizer.lr": 0.01,
            "data.batch_size": 8,
        }.items()
    )
    assert config.name == "7"
    assert config.train.epochs is None
    assert result.changed == (
        "data.batch_size",
        "name",
        "model.hidden",
        "train.epochs",
        "train.steps",
        "optimizer.lr",
    )


def test_a_whole_section_replaces_that_of_the_file() -> None:
    text = "optimizer: {name: adam, lr: 1, betas: [0, 0]}"
    for overrides in (["optimizer={name: sgd, lr: 0.1}"], ["optimizer.lr=0.1", "optimizer=sgd"]):
        optimizer = loaded(text, overrides).config.optimizer
        assert optimizer.model_dump(exclude_unset=True) == {"name": "sgd", "lr": 0.1}


def test_mistakes_on_the_command_line_are_shown_there() -> None:
    told = refused(
        "optimizer: {lr: 1}",
        ["model.depth=x", "optimzer.eps=1", "model={name:cnn}"],
        [Flag("--lr", "optimizer.lr", "-0.1")],
    )
    assert told == (
        "command line: optimizer.lr: must be greater than 0, got -0.1\n"
        "     | --lr -0.1\n"
        "     |      ^^^^\n"
        "command line: model.depth: must be a whole number, got 'x'\n"
        "     | model.depth=x\n"
        "     |             ^\n"
        "command line: optimzer: unknown setting; did you mean 'optimizer'?\n"
        "     | optimzer.eps=1\n"
        "     | ^^^^^^^^\n"
        "command line: model: a ':' needs a space after it: name: cnn\n"
        "     | model={name:cnn}\n"
        "     |        ^^^^^^^^"
    )


@pytest.mark.parametrize(
    ("override", "error"),
    [
        ("foo", "command line: must be KEY=VALUE, like optimizer.lr=1e-2"),
        ("=3", "command line: the key before '=' is missing or incomplete"),
        ("model..depth=3", "command line: the key before '=' is missing or incomplete"),
        ("sweep.=3", "command line: the key before '=' is missing or incomplete"),
        ("train.steps=", "train.steps: has no value; train.steps=null stands for none"),
        ("batch_size=3", "batch_size: unknown setting; did you mean 'data.batch_size'?"),
        ("optimizer.lr.x=3", "optimizer.lr.x: optimizer.lr is not a section of settings"),
        ("optimizer=3", "optimizer: must be a section of settings, got 3"),
        ("model.depth=[1", "model.depth: this bracket is never closed"),
        ("model.depth=\udcff", "model.depth: the character U+DCFF is not allowed in a config"),
        ("optimizer.lr=&a 1", "optimizer.lr: anchors (&name) are not allowed"),
        ("train.epochs=1\n---\n2", "train.epochs: a second document starts here"),
        ("sweep.optimizer.lr=[1, -1]", "sweep.optimizer.lr: must be greater than 0, got -1"),
    ],
)
def test_a_bad_override_is_told(override: str, error: str) -> None:
    assert error in refused("optimizer: {lr: 1}", [override])


def test_settings_of_the_file_that_another_variant_lacks_are_told_in_the_file() -> None:
    with pytest.raises(ConfigError) as caught:
        loaded("optimizer: {betas: [0, 0]}", ["optimizer.name=sgd"])
    assert str(caught.value) == (
        "a.yaml:1:13: optimizer.betas: not a setting of sgd (adam, adamw have it)\n"
        "   1 | optimizer: {betas: [0, 0]}\n"
        "     |             ^^^^^"
    )
    assert caught.value.hint == "give the whole section instead: 'optimizer={name: sgd, ...}'"


def test_the_command_line_may_not_contradict_itself() -> None:
    lr = Flag("--lr", "optimizer.lr", "0.1")
    assert loaded("", ["optimizer.lr=1e-1"], [lr]).config.optimizer.lr == 0.1
    assert refused("", ["optimizer.lr=0.2"], [lr]) == (
        "command line: optimizer.lr: is 0.2 here, but '--lr 0.1' says otherwise\n"
        "     | optimizer.lr=0.2\n"
        "     | ^^^^^^^^^^^^^^^^"
    )
    for overrides in (
        ["optimizer={name: sgd, lr: 0.2}", "optimizer.lr=0.1"],
        ["optimizer.lr=0.1", "optimizer={name: sgd, lr: 0.2}"],
        ["optimizer=sgd", "optimizer.name=adam"],
        ["optimizer=sgd", "optimizer=adam"],
    ):
        assert "says otherwise" in refused("", overrides)


def test_an_override_mends_a_file() -> None:
    assert loaded("optimizer: {lr: 0}", ["optimizer.lr=1"]).config.optimizer.lr == 1


# ------------------------------------------------------------------------------------- sweeps


def test_the_values_of_a_sweep_are_those_of_the_schema() -> None:
    text = (
        "sweep:\n"
        "  optimizer.lr: [1, 0.5]\n"
        "  model.hidden: [null, [5]]\n"
        "  model: [logistic, {name: cnn}, {depth: 3}]\n"
    )
    sweep = loaded(text).config.sweep
    assert repr(sweep["optimizer.lr"]) == "(1.0, 0.5)"
    assert sweep["model.hidden"] == (None, [5])
    assert sweep["model"] == ("logistic", "cnn", {"name": "mlp", "depth": 3})


@pytest.mark.parametrize(
    ("axis", "error"),
    [
        ("optimizer.lr: [1, -1]", "1:27: sweep.optimizer.lr: must be greater than 0, got -1"),
        ("optimizer.lr: [1, 2, 1.0]", "1:30: sweep.optimizer.lr: 1.0 is in the list already"),
        ("model: [mlp, {depth: 2}, {}]", "sweep.model: 'mlp' is in the list already"),
        ("model: [{dept: 2}]", "1:18: sweep.model.dept: unknown setting; did you mean 'depth'?"),
        ("optimizer.l: [1, 2]", "1:9: sweep.optimizer.l: unknown setting; did you mean 'lr'?"),
        ("optimizer.momentum: [1]", "not a setting of adam (sgd, rmsprop have it)"),
        ("lr: [1, 2]", "1:9: sweep.lr: unknown setting; did you mean 'optimizer.lr'?"),
        ("name: [a]", "sweep.name: is no setting of data, model, loss, optimizer, scheduler"),
        ("optimizer.lr.x: [1]", "sweep.optimizer.lr.x: is no setting of data, model, loss"),
        ("scheduler: [step]", "1:21: sweep.scheduler.step_size: is missing and has no default"),
        (
            "optimizer.name: [sgd]",
            "1:26: sweep.optimizer.name: does not go with the rest: optimizer.betas: "
            "not a setting of sgd (adam, adamw have it)",
        ),
    ],
)
def test_a_bad_axis_is_told(axis: str, error: str) -> None:
    told = refused(f"sweep: {{{axis}}}\noptimizer: {{betas: [0, 0]}}\n")
    assert error in told
    assert told.count("a.yaml") == 1


def test_axes_are_checked_beside_other_mistakes() -> None:
    told = refused("optimizer: {lr: -1}\nsweep: {optimizer.lr: [2, -2], optimizer.eps: [-3]}\n")
    assert [line.rpartition(" ")[2] for line in told.splitlines()[::3]] == ["-1", "-2", "-3"]


def test_axes_of_the_command_line_go_before_those_of_the_file() -> None:
    config = loaded(
        "sweep: {optimizer.lr: [1], train.seed: [7]}",
        axes=[
            Flag("--seeds", "train.seed", "3"),
            Flag("--lrs", "optimizer.lr", "log:1e-3:1e-1:3"),
            Flag("--grid", None, "model.depth=1..3"),
            Flag("--grid", None, "train.epochs=2"),
        ],
    ).config
    assert list(config.sweep.items()) == [
        ("optimizer.lr", (0.001, 0.01, 0.1)),
        ("train.seed", (0, 1, 2)),
        ("model.depth", (1, 2, 3)),
        ("train.epochs", (2,)),
    ]


def test_bad_items_of_an_axis_are_shown_one_by_one() -> None:
    assert refused(axes=[Flag("--lrs", "optimizer.lr", "1e-1,,x")]) == (
        "command line: sweep.optimizer.lr: a value is missing here\n"
        "     | --lrs 1e-1,,x\n"
        "     |            ^\n"
        "command line: sweep.optimizer.lr: must be a number, got 'x'\n"
        "     | --lrs 1e-1,,x\n"
        "     |             ^"
    )


def test_an_axis_is_given_once() -> None:
    lrs, grid = Flag("--lrs", "optimizer.lr", "1,2"), Flag("--grid", None, "optimizer.lr=1,2")
    assert "is swept by '--lrs 1,2' too; give its values once" in refused(axes=[lrs, grid])
    told = refused("", ["sweep.optimizer.lr=[1, 2]"], axes=[lrs])
    assert "is swept by 'sweep.optimizer.lr=[1, 2]' too; give its values once" in told
    told = refused("", ["optimizer.lr=3"], axes=[lrs])
    assert "is set by 'optimizer.lr=3' and cannot be swept too" in told


def test_ten_thousand_values_are_checked_and_not_all_printed() -> None:
    config = loaded(axes=[Flag("--seeds", "train.seed", "10000")]).config
    assert config.sweep["train.seed"] == tuple(range(10_000))
    told = refused(axes=[Flag("--grid", None, "train.seed=-9999..0")])
    assert len(told) < 100_000
    assert told.endswith("... and 9899 more")


# --------------------------------------------------------------------------------- reference


def test_published_runs_are_recognised_by_the_values_of_the_schema() -> None:
    text = (
        "model: {width: 8}\n"
        "reference:\n"
        "  source: a paper\n"
        "  runs:\n"
        "    - {when: {optimizer.lr: 1}, figures: {val/acc: 0.9}}\n"
        "    - {when: {model.channels: [1, 2], model.name: cnn}, figures: {val/acc: [0.8, 0.9]}}\n"
        "    - {figures: {val/acc: 1}}\n"
    )
    reference = loaded(text).config.reference
    assert reference
    assert [run.when for run in reference.runs] == [
        {"optimizer.lr": 1.0},
        {"model.channels": [1, 2], "model.name": "cnn"},
        {},
    ]
    assert repr(reference.runs[0].when) == "{'optimizer.lr': 1.0}"


@pytest.mark.parametrize(
    ("when", "error"),
    [
        ("optimizer.l: 1", "reference.runs[0].when.optimizer.l: unknown setting; did you mean"),
        ("optimizer.lr: -1", "reference.runs[0].when.optimizer.lr: must be greater than 0"),
        ("model: cnn", "reference.runs[0].when.model: is no setting of data, model"),
        ("model.channels: [1, 2]", "runs[0].when.model.channels: not a setting of mlp (cnn, cnn_s"),
    ],
)
def test_a_published_run_that_cannot_be_is_told(when: str, error: str) -> None:
    text = f"reference: {{source: a, runs: [{{when: {{{when}}}, figures: {{val/acc: 1}}}}]}}"
    assert error in refused(text)


@pytest.mark.parametrize(
    ("overrides", "axes", "dropped"),
    [
        ([], [], ()),
        (["optimizer.lr=3", "train.seed=3", "data.seed=1", "train.device=cpu", "name=b"], [], ()),
        (["train.epochs=4", "sweep.model.depth=[2]"], [], ()),
        (["train.epochs=5"], [], ("train.epochs",)),
        (["optimizer.eps=1", "model.width=8"], [], ("model.width", "optimizer.eps")),
        (["model=logistic"], [], ("model.name", "model.depth", "model.width")),
        ([], ["optimizer.lr=1,2", "train.seed=1,2"], ()),
        ([], ["train.epochs=4"], ()),
        ([], ["train.epochs=4,5"], ("train.epochs",)),
    ],
)
def test_published_figures_are_of_one_experiment(
    overrides: list[str], axes: list[str], dropped: tuple[str, ...]
) -> None:
    result = loaded(REFERENCE, overrides, axes=[Flag("--grid", None, axis) for axis in axes])
    assert result.reference_dropped_by[: len(dropped) or None] == dropped
    assert (result.config.reference is None) == bool(dropped)


def test_published_runs_are_those_of_the_file_and_not_of_the_command_line() -> None:
    text = REFERENCE.replace("optimizer.lr: 1", "model.depth: 2")
    result = loaded(text, ["model=cnn"])
    assert result.config.reference is None
    assert result.reference_dropped_by[0] == "model.name"
    mended = "model: {depth: 0}\n" + text
    assert loaded(mended, ["model.depth=2"]).reference_dropped_by == ()
    assert loaded(mended, ["model={name: mlp}"]).reference_dropped_by == ("model",)


def test_an_axis_of_the_file_may_have_other_values() -> None:
    result = loaded(
        "sweep: {train.epochs: [1]}\n" + REFERENCE, axes=[Flag("--grid", None, "train.epochs=5,6")]
    )
    assert result.config.reference


def test_a_published_run_is_recognised_by_as_little_as_it_says() -> None:
    reference = loaded(
        REFERENCE.replace("optimizer.lr: 1", "scheduler.name: step")
    ).config.reference
    assert reference
    assert reference.runs[0].when == {"scheduler.name": "step"}


# ------------------------------------------------------------------------------ with_settings


def test_settings_are_replaced_and_all_is_checked_again() -> None:
    config = loaded("train: {seed: 3}\n" + REFERENCE).config
    changed = with_settings(config, {"optimizer.lr": 1, "optimizer": "sgd", "train.steps": 5})
    assert changed.optimizer.model_dump(exclude_unset=True) == {"name": "sgd", "lr": 1.0}
    assert (changed.train.seed, changed.train.steps, changed.train.epochs) == (3, 5, None)
    assert (changed.name, changed.reference) == (config.name, config.reference)
    assert with_settings(config, {}) == config
    assert with_settings(Config(), {"model.depth": 3}) == Config.model_validate(
        {"model": {"depth": 3}}
    )


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"optimizer.lr": -1}, "optimizer.lr: must be greater than 0, got -1"),
        ({"optimizer.x": 1}, "optimizer.x: unknown setting; there are name, lr"),
        ({"model.depth": 3, "model.hidden": [5]}, "model: hidden [5] makes depth 2, but depth"),
        ({"name": "b"}, "name: is no setting of data, model, loss, optimizer, scheduler or train"),
        ({"a.b.c": 1}, "a.b.c: is no setting of data"),
    ],
)
def test_settings_that_do_not_fit_are_told(settings: dict[str, object], error: str) -> None:
    with pytest.raises(ConfigError) as caught:
        with_settings(Config(), settings)
    assert str(caught.value).startswith(error)


# ------------------------------------------------------------------------------------ imports


def test_no_heavy_package_is_imported() -> None:
    heavy = "torch", "torchvision", "numpy", "matplotlib", "rich", "typer"
    code = f"import sys, mnist_cli.config; print(*set({heavy}) & sys.modules.keys())"
    result = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert result.stdout.strip() == ""


def test_a_new_setting_takes_the_place_of_another_word_for_it() -> None:
    """`hidden` for `depth` and `width`, `steps` for `epochs`, and the other way round."""
    wide = load("mlp", ["model.hidden=[50, 100]", "train.steps=7"]).config
    assert (wide.model, wide.train.steps, wide.train.epochs) == (
        MlpModel(name="mlp", hidden=(50, 100)),
        7,
        None,
    )
    saved = load_saved(wide.resolved(), "saved", ["model.depth=4", "train.epochs=2"])
    assert saved.model == MlpModel(name="mlp", depth=4, width=50)
    assert (saved.train.steps, saved.train.epochs) == (None, 2)
    assert with_settings(wide, {"model.width": 8}).model == MlpModel(name="mlp", width=8)
    swept = load("mlp", axes=[Flag("--grid", None, "model.hidden=[[8],[9,9]]")]).config
    assert swept.sweep["model.hidden"] == ([8], [9, 9])


def test_said_in_both_words_at_once_it_must_agree() -> None:
    with pytest.raises(ConfigError, match="depth"):
        load("mlp", ["model.hidden=[50, 100]", "model.depth=2"])
    with pytest.raises(ConfigError, match="epochs"):
        load("mlp", ["train.epochs=1", "train.steps=7"])
