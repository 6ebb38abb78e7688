"""Configs as YAML and as JSON Schema."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from mnist_cli.config import (
    SECTIONS,
    Config,
    dump,
    json_schema,
    load,
    load_text,
    presets,
    with_settings,
)

CONFIGS = Path(__file__).parents[2] / "configs"


def floats(low: float, high: float, *, above: bool = False) -> st.SearchStrategy[float]:
    return st.floats(low, high, exclude_min=above, exclude_max=high == 1)


def section(name: str, **settings: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.fixed_dictionaries({"name": st.just(name)}, optional=settings)


seeds = st.integers(0, 2**63 - 1)
positive = st.integers(1, 2**40)
share, weight, rate = floats(0, 1), floats(0, 1e300), floats(0, 1e300, above=True)
text = st.text(
    st.characters(exclude_categories=["Cc", "Cs"], exclude_characters="\u2028\u2029\ufffe\uffff")
)
images: dict[str, st.SearchStrategy[Any]] = {
    "split": st.sampled_from(["pooled", "holdout", "official"]),
    "seed": seeds,
    "batch_size": positive,
    "shuffle": st.booleans(),
    "normalize": st.booleans(),
}
adam: dict[str, st.SearchStrategy[Any]] = {
    "lr": rate,
    "betas": st.lists(share, min_size=2, max_size=2),
    "eps": weight,
    "weight_decay": weight,
    "amsgrad": st.booleans(),
}
figures = st.dictionaries(
    st.sampled_from(["train/loss", "val/acc", "test/acc"]),
    st.floats(-1e300, 1e300) | st.lists(st.floats(-1e300, 1e300), min_size=1, max_size=5),
)
tolerance = st.dictionaries(st.sampled_from(["val/loss", "test/acc"]), weight)
runs = st.fixed_dictionaries(
    {"figures": figures},
    optional={
        "when": st.fixed_dictionaries({}, optional={"optimizer.lr": rate, "train.seed": seeds}),
        "tolerance": tolerance | st.none(),
    },
)
configs = st.fixed_dictionaries(
    {},
    optional={
        "name": st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9_-]{0,9}\Z"),
        "data": section("kmnist", **images)
        | section("synthetic", size=st.integers(70, 10**6), **images),
        "model": st.just("logistic")
        | section("mlp", depth=st.integers(1, 5), width=st.integers(8, 2**40), dropout=share)
        | section("mlp", hidden=st.lists(positive, max_size=4) | st.none())
        | section("cnn", channels=st.lists(positive, min_size=2, max_size=2))
        | section("tensor_net", hidden=st.lists(positive, max_size=4)),
        "loss": section("nll", reduction=st.sampled_from(["mean", "sum"])),
        "optimizer": section("adam", **adam)
        | section("adamw", **adam)
        | section("sgd", lr=rate, momentum=weight, dampening=st.floats(-1e300, 1e300)),
        "scheduler": section("constant")
        | st.fixed_dictionaries(
            {"name": st.just("step"), "step_size": positive, "gamma": weight},
            optional={"interval": st.sampled_from(["epoch", "step"])},
        ),
        "train": st.fixed_dictionaries({}, optional={"epochs": positive, "seed": seeds})
        | st.fixed_dictionaries({"steps": positive, "epochs": st.none()}),
        "sweep": st.fixed_dictionaries(
            {},
            optional={
                "optimizer.lr": st.lists(rate, min_size=1, max_size=4, unique=True),
                "train.seed": st.lists(seeds, min_size=1, max_size=4, unique=True),
                "model": st.just(["logistic", {"name": "mlp", "depth": 3}, "cnn"]),
            },
        ),
        "reference": st.fixed_dictionaries(
            {"source": text}, optional={"runs": st.lists(runs, max_size=3), "best": figures}
        ),
    },
)


@settings(deadline=None)
@given(configs)
def test_a_config_reads_back_as_itself(values: dict[str, Any]) -> None:
    config = load_text(json.dumps(values, ensure_ascii=False), "generated")
    written = dump(config)
    assert load_text(written, "written") == config
    assert dump(load_text(written, "written")) == written


@settings(deadline=None)
@given(text)
def test_any_text_reads_back_as_itself(source: str) -> None:
    config = Config.model_validate({"reference": {"source": source}})
    again = load_text(dump(config), "written")
    assert again.reference == config.reference


@pytest.mark.parametrize("word", ["no", "null", "1e-3", "1:30", "0x10", "~", "", "a: b", "#", "é"])
def test_a_word_that_other_readers_take_for_something_else_is_quoted(word: str) -> None:
    written = dump(Config.model_validate({"reference": {"source": word}}))
    assert f"source: {json.dumps(word, ensure_ascii=False)}\n" in written
    assert yaml.safe_load(written)["reference"]["source"] == word


def test_a_written_config_is_easy_to_read() -> None:
    config = load("mlp", ["optimizer.eps=1e-8"]).config
    written = dump(config)
    assert written.startswith("name: mlp\ndata:\n  name: mnist\n  split: pooled\n")
    assert "  betas: [0.9, 0.999]\n  eps: 1e-08\n" in written
    for key in SECTIONS[:-1]:
        assert f"\n{key}:\n  name: " in written
    assert "\n    - {when: {optimizer.lr: 0.1}, figures: {train/loss: [1.093, 1.1" in written


@pytest.mark.parametrize(
    "sweep", ["train.steps: [1, 2]", "optimizer.name: [sgd, adam]", "model.hidden: [null, [5]]"]
)
def test_a_sweep_reads_back_where_its_values_exclude_defaults(sweep: str) -> None:
    config = load_text(f"sweep: {{{sweep}}}", "a")
    again = load_text(dump(config), "written")
    assert again == config
    for key, values in config.sweep.items():
        for value in values:
            assert with_settings(again, {key: value}) == with_settings(config, {key: value})


def test_the_committed_schema_is_up_to_date() -> None:
    committed = (CONFIGS / "schema.json").read_text(encoding="utf-8")
    assert committed == json.dumps(json_schema(), indent=2) + "\n"


def test_the_schema_describes_settings_and_knows_bare_names() -> None:
    schema = json_schema()
    model = schema["properties"]["model"]["anyOf"]
    assert model[0] == {
        "enum": ["logistic", "mlp", "cnn", "cnn_sequential", "scratch", "tensor_net"]
    }
    assert schema["properties"]["scheduler"]["anyOf"][0] == {"enum": ["constant"]}
    assert schema["$defs"]["MlpModel"]["required"] == []
    assert schema["$defs"]["CnnModel"]["required"] == ["name"]
    depth = schema["$defs"]["MlpModel"]["properties"]["depth"]
    assert depth["description"] == "Number of linear layers."


ACCEPTED = [
    "",
    "model: cnn",
    "model: {depth: 3}",
    "optimizer: {lr: 1}",
    "loss: {reduction: sum}",
    "data: {batch_size: 3}",
    "train: {epochs: null, steps: 3}",
]
REFUSED = ["model: resnet", "scheduler: step", "model: {name: cnn, depth: 3}", "lr: 3"]


def test_the_schema_accepts_what_is_accepted() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    validator = jsonschema.Draft202012Validator(json_schema())
    shipped = [preset.path.read_text(encoding="utf-8") for preset in presets()]
    for config in [*ACCEPTED, *shipped]:
        load_text(config, "a")
        plain = load_text(config, "a").model_dump(mode="json", exclude_unset=True)
        validator.validate(yaml.safe_load(config) or {} if config in ACCEPTED else plain)
    for config in REFUSED:
        assert not validator.is_valid(yaml.safe_load(config))
