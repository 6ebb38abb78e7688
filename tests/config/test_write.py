"""Configs as YAML and as JSON Schema."""

import json
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from mnist_cli.config import (
    Config,
    dump,
    json_schema,
    load_text,
    with_settings,
)
from mnist_cli.config.presets import presets

CONFIGS = Path(__file__).parents[2] / "configs"


rates = st.floats(0, 1e300, exclude_min=True)
text = st.text(
    st.characters(exclude_categories=["Cc", "Cs"], exclude_characters="\u2028\u2029\ufffe\uffff")
)
figures = st.floats(-1e300, 1e300) | st.lists(st.floats(-1e300, 1e300), min_size=1, max_size=5)
configs = st.fixed_dictionaries(
    {},
    optional={
        "name": st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9_-]{0,9}\Z"),
        "data": st.sampled_from(["kmnist", {"name": "synthetic", "size": 70, "seed": 2**63 - 1}]),
        "model": st.sampled_from(["logistic", {"hidden": [3, 4]}, {"hidden": []}, {"depth": 3}]),
        "loss": st.sampled_from(["nll", {"reduction": "sum"}]),
        "optimizer": st.fixed_dictionaries({"name": st.just("adamw"), "lr": rates, "eps": rates}),
        "scheduler": st.sampled_from(["constant", {"name": "step", "step_size": 2, "gamma": 0.3}]),
        "train": st.sampled_from([{"steps": 5, "epochs": None}, {"seed": 7}, {"select": "loss"}]),
        "sweep": st.fixed_dictionaries(
            {},
            optional={
                "optimizer.lr": st.lists(rates, min_size=1, max_size=4, unique=True),
                "train.seed": st.just([3, 5]),
                "model": st.just(["logistic", {"name": "mlp", "depth": 4}, "cnn"]),
            },
        ),
        "reference": st.fixed_dictionaries(
            {"source": text},
            optional={
                "best": st.dictionaries(st.sampled_from(["val/acc", "test/acc"]), figures),
                "runs": st.just([{"when": {"model.depth": 3}, "figures": {}, "tolerance": {}}]),
            },
        ),
    },
)


@settings(deadline=None, max_examples=50)
@given(configs)
def test_a_config_reads_back_as_itself(values: dict[str, object]) -> None:
    config = load_text(json.dumps(values, ensure_ascii=False), "generated")
    written = dump(config)
    assert load_text(written, "written") == config
    assert dump(load_text(written, "written")) == written


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


ACCEPTED = [
    "",
    "model: cnn",
    "model: {depth: 3}",
    "optimizer: {lr: 1}",
    "loss: {reduction: sum}",
    "data: {batch_size: 3}",
    "train: {epochs: null, steps: 3}",
]
REFUSED = ["model: densenet", "scheduler: {name: step}", "model: {name: cnn, depth: 3}", "lr: 3"]


def test_the_schema_accepts_what_is_accepted() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    validator = jsonschema.Draft202012Validator(json_schema())
    shipped = [path.read_text(encoding="utf-8") for path in presets().values()]
    for config in [*ACCEPTED, *shipped]:
        load_text(config, "a")
        plain = load_text(config, "a").model_dump(mode="json", exclude_unset=True)
        validator.validate(yaml.safe_load(config) or {} if config in ACCEPTED else plain)
    for config in REFUSED:
        assert not validator.is_valid(yaml.safe_load(config))
