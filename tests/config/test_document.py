"""The YAML of configs: what values mean, what is refused, and how errors look."""

import math
import time
import tracemalloc
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mnist_cli.config.document import ConfigError, Position, Problem, Source, parse, plain, quoted


def read(text: str) -> tuple[Any, list[Problem]]:
    problems: list[Problem] = []
    node = parse(Source("a.yaml", text), problems)
    return (None if node is None else plain(node)), problems


def shown(text: str) -> str:
    """The problems of a text as a user sees them."""
    return str(ConfigError(read(text)[1]))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("1E-3", 1e-3),
        ("1.e-3", 1e-3),
        ("1.0e-3", 1e-3),
        ("+1e3", 1e3),
        ("-1e+3", -1e3),
        ("1e3", 1e3),
        (".5", 0.5),
        ("5.", 5.0),
        ("-.5e1", -5.0),
        ("1e-05", 1e-5),
        ("1.0", 1.0),
        ("0", 0),
        ("-0", 0),
        ("+7", 7),
        ("010", 10),
        ("0x10", 16),
        ("0o17", 15),
        ("true", True),
        ("False", False),
        ("~", None),
        ("null", None),
        ("", None),
        ("no", "no"),
        ("yes", "yes"),
        ("on", "on"),
        ("OFF", "OFF"),
        ("y", "y"),
        ("1:30", "1:30"),
        ("2001-01-01", "2001-01-01"),
        ("1_000", "1_000"),
        ("0b11", "0b11"),
        ("1e", "1e"),
        ("e5", "e5"),
        (".", "."),
        ("1.2.3", "1.2.3"),
        ("nan", "nan"),
        ("inf", "inf"),
        ("=", "="),
        ("'1e-3'", "1e-3"),
        ('"true"', "true"),
        ("٣", "٣"),
    ],
)
def test_a_scalar_means_what_yaml_1_2_says(text: str, value: object) -> None:
    result, problems = read(f"a: {text}")
    assert not problems
    assert result == {"a": value}
    assert type(result["a"]) is type(value)


def test_infinity_and_nan_are_numbers() -> None:
    (plus, minus, nan), _ = read("[.inf, -.Inf, .NaN]")
    assert (plus, minus) == (math.inf, -math.inf)
    assert math.isnan(nan)


def test_a_value_knows_where_it_and_its_key_stand() -> None:
    source = Source("a.yaml", "# first\nmodel:\n  depth: 3 # deep\n")
    node = parse(source, [])
    assert node is not None
    depth = node.value["model"].value["depth"]
    assert (depth.key.line, depth.key.column) == (3, 3)
    assert (depth.where.line, depth.where.column) == (3, 10)
    assert source.text[depth.where.start : depth.where.end] == "3"


def test_a_place_is_inside_another_only_of_the_same_text() -> None:
    source = Source("a.yaml", "abcdef")
    assert Position(source, 1, 3) in Position(source, 1, 4)
    assert Position(source, 1, 5) not in Position(source, 1, 4)
    assert Position(Source("a.yaml", "abcdef"), 1, 3) not in Position(source, 1, 4)


@pytest.mark.parametrize("text", ["", "\n", "# nothing\n", "---\n", "\ufeff"])
def test_an_empty_text_is_no_value(text: str) -> None:
    assert read(text) == (None, [])


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (
            "model:\n  depth: 1\n  depth: 2\n",
            "a.yaml:3:3: model.depth: duplicate key, first given on line 2\n"
            "   3 |   depth: 2\n"
            "     |   ^^^^^",
        ),
        (
            "a: &x 1\nb: *x\n",
            "a.yaml:1:4: a: anchors (&name) are not allowed\n"
            "   1 | a: &x 1\n"
            "     |    ^^^^\n"
            "a.yaml:2:4: b: aliases (*name) are not allowed; write the value out\n"
            "   2 | b: *x\n"
            "     |    ^^",
        ),
        (
            "<<: {a: 1}\n",
            "a.yaml:1:1: merge keys (<<) are not allowed; write the settings out\n"
            "   1 | <<: {a: 1}\n"
            "     | ^^",
        ),
        (
            "a: !!python/object:os.system {}\n",
            "a.yaml:1:4: a: tags (!name) are not allowed\n"
            "   1 | a: !!python/object:os.system {}\n"
            "     |    ^^^^^^^^^^^^^^^^^^^^^^^^^^^",
        ),
        (
            "a: 1\n---\nb: 1\n",
            "a.yaml:2:1: a second document starts here; a config is only one\n"
            "   2 | ---\n"
            "     | ^^^",
        ),
        (
            "a:\n  1e-1: 2\n",
            "a.yaml:2:3: a: a key must be text, got 0.1\n   2 |   1e-1: 2\n     |   ^^^^",
        ),
        (
            "? [a, b]\n: 1\n",
            "a.yaml:1:3: a key must be text, got ['a', 'b']\n   1 | ? [a, b]\n     |   ^",
        ),
        (
            "a:\n\tb: 1\n",
            "a.yaml:2:1: a tab cannot stand here; indent with spaces\n   2 |  b: 1\n     | ^",
        ),
        (
            "a: {b:1}\n",
            "a.yaml:1:5: a: a ':' needs a space after it: b: 1\n   1 | a: {b:1}\n     |     ^^^",
        ),
        (
            "a: [1, 2\nb: 3\n",
            "a.yaml:2:2: expected ',' or ']' here\n   2 | b: 3\n     |  ^",
        ),
        ("a: [1, 2\n", "a.yaml:1:4: this bracket is never closed\n   1 | a: [1, 2\n     |    ^"),
        ("a: 'b\n", "a.yaml:1:4: this quote is never closed\n   1 | a: 'b\n     |    ^"),
        (
            "a: b: c\n",
            "a.yaml:1:5: a ':' cannot stand here; quote the text or mend the indentation\n"
            "   1 | a: b: c\n"
            "     |     ^",
        ),
        (
            "a:\n    b: 1\n  c: 2\n",
            "a.yaml:3:3: this does not fit the lines above; is it indented as they are?\n"
            "   3 |   c: 2\n"
            "     |   ^",
        ),
        ("a: b\nc\n", "a.yaml:2:1: this is not `key: value`\n   2 | c\n     | ^"),
        (
            "a: @b\n",
            "a.yaml:1:4: text that starts with '@' must be quoted\n   1 | a: @b\n     |    ^",
        ),
        ("a: ]\n", "a.yaml:1:4: expected a value here, not ']'\n   1 | a: ]\n     |    ^"),
        (
            "a: \x1b[31m\n",
            "a.yaml:1:4: the character U+001B is not allowed in a config\n"
            "   1 | a: \ufffd[31m\n"
            "     |    ^",
        ),
        (
            'a: "\\0"\n',
            "a.yaml:1:4: a: the character U+0000 is not allowed in a config\n"
            '   1 | a: "\\0"\n'
            "     |    ^^^^",
        ),
        (
            f"a: {'9' * 41}\n",
            "a.yaml:1:4: a: a number of 41 digits is too long\n"
            f"   1 | a: {'9' * 41}\n"
            f"     |    {'^' * 41}",
        ),
    ],
)
def test_what_is_refused_is_shown_in_its_place(text: str, error: str) -> None:
    assert shown(text) == error


def test_the_first_of_duplicate_keys_counts() -> None:
    assert read("a: 1\na: 2\n")[0] == {"a": 1}


def test_a_caret_stands_under_wide_characters() -> None:
    assert shown("日本: @b").splitlines()[1:] == ["   1 | 日本: @b", "     |       ^"]


def test_only_the_surroundings_of_a_long_line_are_shown() -> None:
    line, carets = shown(f"a: [{'x' * 50_000}, @, {'y' * 50_000}]").splitlines()[1:]
    assert len(line) < 120
    assert line[carets.index("^")] == "@"
    assert line.startswith("   1 | ...x")
    assert line.endswith("y...")


def test_many_problems_are_counted_and_not_all_printed() -> None:
    where = Position(Source("a.yaml", "a" * 500), 0, 1)
    error = ConfigError([Problem(where, str(i), "bad") for i in range(500)])
    assert len(error.problems) == 500
    assert str(error).endswith("... and 400 more")


@pytest.mark.parametrize(
    "text",
    [
        "[" * 10_000,
        "{a: " * 10_000,
        "- " * 10_000,
        "? " * 10_000,
        "\n".join(" " * i + "a:" for i in range(1_000)),
        "a: " + "[" * 10_000 + "]" * 10_000,
    ],
    ids=["lists", "mappings", "dashes", "keys", "indented", "closed"],
)
def test_a_very_deep_text_costs_next_to_nothing(text: str) -> None:
    tracemalloc.start()
    started = time.process_time()
    value, problems = read(text)
    seconds = time.process_time() - started
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert value is None
    assert [problem.message for problem in problems] == ["more than 50 levels deep"]
    assert seconds < 2  # with the tracing of memory, which is most of it
    assert peak < 20e6


def test_a_text_of_very_many_values_is_given_up() -> None:
    value, problems = read(f"a: [{'1,' * 400_000}]")
    assert value is None
    assert [problem.message for problem in problems] == ["more than 12000 values"]


def test_the_problems_before_a_syntax_error_are_reported_with_it() -> None:
    _, problems = read("a: 1\na: 2\nb: [")
    assert [problem.where.line for problem in problems if problem.where] == [2, 3]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("a", "'a'"),
        (None, "null"),
        (True, "true"),
        (1e-5, "1e-05"),
        ([1, "a", {"b": None}], "[1, 'a', {b: null}]"),
        ("x" * 10**6, "'" + "x" * 59 + "..."),
        ([[1] * 10**6], "[[" + "1, " * 19 + "1..."),
    ],
)
def test_a_value_is_quoted_in_a_sane_length(value: object, text: str) -> None:
    assert quoted(value) == text


yaml_like = st.text(st.sampled_from(list("ab:,-?[]{}#&*!|>'\"%@`~<=. \n\t\r\\0x1e")), max_size=40)


@settings(deadline=None)
@given(st.one_of(st.text(), yaml_like))
def test_no_text_makes_it_crash(text: str) -> None:
    _, problems = read(text)
    for problem in problems:
        assert problem.where
        assert 0 <= problem.where.start <= problem.where.end <= len(text) + 1
    str(ConfigError(problems))
