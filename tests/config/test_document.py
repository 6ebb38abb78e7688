"""The YAML of configs: what values mean, what is refused, and where errors are said to be."""

import math
import time

import pytest
import yaml

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
        ((".inf", "-.Inf"), math.inf),
    ],
)
def test_numbers_and_words_are_those_of_yaml_1_2(
    texts: tuple[str, ...], value: float | None
) -> None:
    for text in texts:
        values = parse(f"a: {text}", "a.yaml").values
        found = values["a"] if isinstance(values, dict) else values
        assert type(found) is type(value)
        assert found in (value, -value if value else value)


TEXT = ["no", "yes", "on", "OFF", "y", "1:30", "2001-01-01", "1_000", "0b11", "1e", "e5", ".", "=",
        "1.2.3", "nan", "inf", "'1e-3'", '"true"', "٣", "0x"]  # fmt: skip


def test_anything_else_is_text() -> None:
    for text in TEXT:
        assert parse(text, "a.yaml").values == text.strip("'\"")
    assert repr(parse(".NaN", "a.yaml").values) == "nan"
    for text in ("", "# nothing\n", "---\n", "\ufeff"):
        assert parse(text, "a.yaml")[::2] == (None, [])


def test_a_value_knows_where_it_and_its_key_stand() -> None:
    positions = parse("# first\nmodel:\n  hidden: [3, 4] # deep\n", "a.yaml").positions
    paths = [("model", "hidden", KEY), ("model", "hidden"), ("model", "hidden", 1)]
    marks = [mark for path in paths if isinstance(mark := positions[path], yaml.Mark)]
    found = [(mark.name, mark.line, mark.column) for mark in marks]
    assert found == [("a.yaml", 2, 2), ("a.yaml", 2, 10), ("a.yaml", 2, 14)]


BOMB = "a0: lol\n" + "\n".join(f"a{n}: &a{n} [{f'*a{n - 1},' * 9}]" for n in range(1, 30))


@pytest.mark.parametrize(
    ("text", "where", "what"),
    [
        ("model:\n  depth: 1\n  depth: 2\n", "3:3: model", "duplicate key"),
        ("a: &x 1\nb: *x\n", "1:4", "anchors"),
        ("b: *x\n", "1:4", "aliases"),
        ("model: &m [*m]\n", "1:8", "anchors"),
        (BOMB, "2:5", "anchors"),
        ("<<: {a: 1}\n", "1:1", "merge keys"),
        ("a: !!python/object:os.system {}\n", "1:4", "tags"),
        ("%TAG ! tag:yaml.org,2002:python/\n---\na: !name:os.system\n", "3:4", "tags"),
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
    ids=range(17),
)
def test_what_is_refused_is_shown_in_its_place(text: str, where: str, what: str) -> None:
    first, line, caret = str(ConfigError(parse(text, "a.yaml").problems)).splitlines()
    assert first.startswith(f"a.yaml:{where}")
    assert what in first
    number, column = map(int, where.split(":")[:2])
    assert line.strip()[:50] == text.splitlines()[number - 1].strip()[:50]
    assert caret.index("^") - 4 == column - 1


@pytest.mark.parametrize("text", ["[" * 10_000, "{a: " * 10_000, "- " * 10_000], ids=ascii)
def test_what_is_nested_too_deep_is_refused_soon(text: str) -> None:
    started = time.process_time()
    (problem,) = parse(text, "a.yaml").problems
    assert str(problem).startswith("a.yaml: more levels deep")
    assert time.process_time() - started < 5


def test_only_the_surroundings_of_a_long_line_are_shown() -> None:
    text = f"a: [{'x' * 50_000}, @, {'y' * 50_000}]"
    line, caret = str(ConfigError(parse(text, "a.yaml").problems)).splitlines()[1:]
    assert len(line) < 120
    assert line[caret.index("^")] == "@"


def test_many_problems_are_counted_and_not_all_printed() -> None:
    error = ConfigError([Problem((str(i),), "bad") for i in range(500)])
    assert len(error.problems) == 500
    assert str(error).endswith("... and 400 more")
