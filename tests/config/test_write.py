"""Configs as YAML and as JSON Schema."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from mnist_cli.config import (
    Config,
    dump,
    json_schema,
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
images = {
    "split": st.sampled_from(["pooled", "holdout", "official"]),
    "seed": seeds,
    "batch_size": positive,
    "shuffle": st.booleans(),
}
adam = {"lr": rate, "betas": st.lists(share, min_size=2, max_size=2), "eps": weight}
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
def test_a_word_is_read_as_the_same_by_other_readers(word: str) -> None:
    written = dump(Config.model_validate({"reference": {"source": word}}))
    assert yaml.safe_load(written)["reference"]["source"] == word


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


def test_the_schema_describes_settings() -> None:
    definitions = json.loads(json.dumps(json_schema()))["$defs"]
    depth = definitions["MlpModel"]["properties"]["depth"]
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
REFUSED = ["model: resnet", "scheduler: {name: step}", "model: {name: cnn, depth: 3}", "lr: 3"]


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
