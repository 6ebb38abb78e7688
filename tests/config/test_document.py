"""The YAML of configs: what values mean, what is refused, and where errors are said to be."""

import math

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from mnist_cli.config.document import KEY, ConfigError, Problem, parse


@pytest.mark.parametrize(
    ("texts", "value"),
    [
        (("1e-3", "1E-3", "1.e-3", "1.0e-3", "+1e-03"), 1e-3),
        (("1e3", "-1e+3", "1000.", "1000.0"), 1e3),
        ((".5", "0.5", "-.5e0"), 0.5),
        (("0", "-0", "00"), 0),
        (("10", "+10", "010", "0xA", "0o12"), 10),
        (("true", "True", "TRUE"), True),
        (("~", "null", "Null", ""), None),
    ],
)
def test_numbers_and_words_are_those_of_yaml_1_2(
    texts: tuple[str, ...], value: float | None
) -> None:
    for text in texts:
        document = parse(f"a: {text}", "a.yaml")
        assert not document.problems
        assert isinstance(document.values, dict)
        found = document.values["a"]
        assert type(found) is type(value)
        assert found in (value, -value if value else value)


TEXT = ["no", "yes", "on", "OFF", "y", "1:30", "2001-01-01", "1_000", "0b11", "1e", "e5", ".", "=",
        "1.2.3", "nan", "inf", "'1e-3'", '"true"', "٣", "0x"]  # fmt: skip


@pytest.mark.parametrize("text", TEXT)
def test_anything_else_is_text(text: str) -> None:
    assert parse(text, "a.yaml").values == text.strip("'\"")


def test_infinity_and_nan_are_numbers_and_nothing_is_null() -> None:
    assert parse("[.inf, -.Inf]", "a.yaml").values == [math.inf, -math.inf]
    assert repr(parse(".NaN", "a.yaml").values) == "nan"
    for text in ("", "# nothing\n", "---\n", "\ufeff"):
        assert parse(text, "a.yaml")[::2] == (None, [])


def test_a_value_knows_where_it_and_its_key_stand() -> None:
    positions = parse("# first\nmodel:\n  hidden: [3, 4] # deep\n", "a.yaml").positions
    marks = [
        positions["model", "hidden", KEY],
        positions["model", "hidden"],
        positions["model", "hidden", 1],
    ]
    found = [(m.name, m.line, m.column) for m in marks if isinstance(m, yaml.Mark)]
    assert found == [("a.yaml", 2, 2), ("a.yaml", 2, 10), ("a.yaml", 2, 14)]


@pytest.mark.parametrize(
    ("text", "where", "what"),
    [
        ("model:\n  depth: 1\n  depth: 2\n", "3:3: model", "duplicate key"),
        ("a: &x 1\nb: *x\n", "1:4", "anchors"),
        ("b: *x\n", "1:4", "aliases"),
        ("<<: {a: 1}\n", "1:1", "merge keys"),
        ("a: !!python/object:os.system {}\n", "1:4", "tags"),
        ("a: 1\n---\nb: 1\n", "2:1", "another document"),
        ("a:\n  1e-1: 2\n", "2:3: a", "a key must be text"),
        ("a:\n\tb: 1\n", "2:1", "'\\t'"),
        ("a: [1, 2\n", "1:4", "flow sequence"),
        ("a: 'b\n", "1:4", "quoted scalar"),
        ("a: b: c\n", "1:5", "mapping values"),
        ("a: @b\n", "1:4", "'@'"),
        ("a: \x1b[31m\n", "1:4", "U+001B"),
        ("a: 1\n\udcff\n", "2:1", "the byte 0xff"),
    ],
)
def test_what_is_refused_is_shown_in_its_place(text: str, where: str, what: str) -> None:
    first, line, caret = str(ConfigError(parse(text, "a.yaml").problems)).splitlines()
    assert first.startswith(f"a.yaml:{where}: ")
    assert what in first
    number, column = map(int, where.split(":")[:2])
    assert line.strip() == text.splitlines()[number - 1].strip()
    assert caret.index("^") - 4 == column - 1


def test_only_the_surroundings_of_a_long_line_are_shown() -> None:
    text = f"a: [{'x' * 50_000}, @, {'y' * 50_000}]"
    line, caret = str(ConfigError(parse(text, "a.yaml").problems)).splitlines()[1:]
    assert len(line) < 120
    assert line[caret.index("^")] == "@"


def test_many_problems_are_counted_and_not_all_printed() -> None:
    error = ConfigError([Problem((str(i),), "bad") for i in range(500)])
    assert len(error.problems) == 500
    assert str(error).endswith("... and 400 more")


yaml_like = st.text(st.sampled_from(list("ab:,-?[]{}#&*!|>'\"%@`~<=. \n\t\r\\0x1e")), max_size=40)


@settings(deadline=None)
@given(st.one_of(st.text(), yaml_like))
def test_no_text_makes_it_crash(text: str) -> None:
    for problem in parse(text, "a.yaml").problems:
        assert isinstance(problem.position, yaml.Mark)
        assert str(problem).startswith("a.yaml:")
