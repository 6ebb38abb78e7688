"""Lists on the command line."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mnist_cli.config.document import ConfigError, Problem, Source, plain
from mnist_cli.config.values import parse_values


def values(text: str, *, count: bool = False) -> object:
    problems: list[Problem] = []
    node = parse_values(Source("command line", text, 1), 0, "k", problems, count=count)
    if problems:
        raise ConfigError(problems)
    return node and plain(node)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1e-1,1e-2", [0.1, 0.01]),
        (" 1 , 2 ", [1, 2]),
        ("[1, 2]", [1, 2]),
        ("a", ["a"]),
        ("1..5", [1, 2, 3, 4, 5]),
        ("-1..1", [-1, 0, 1]),
        ("3..3", [3]),
        ("1..3,7", [1, 2, 3, 7]),
        ("[1..3]", [1, 2, 3]),
        ("lin:0:1:5", [0.0, 0.25, 0.5, 0.75, 1.0]),
        ("lin:1:5:5", [1, 2, 3, 4, 5]),
        ("lin:1:2:3", [1.0, 1.5, 2.0]),
        ("lin:1:0:3", [1.0, 0.5, 0.0]),
        ("log:1e-4:1e-1:4", [1e-4, 1e-3, 1e-2, 1e-1]),
        ("log:1e-4:1e-1:7", [1e-4, 0.000316228, 1e-3, 0.00316228, 1e-2, 0.0316228, 1e-1]),
        ("log:1:1000:4", [1, 10, 100, 1000]),
        ("[50],[50,100]", [[50], [50, 100]]),
        ("[[50],[50,100]]", [[50], [50, 100]]),
        ("{name: cnn, channels: [1, 2]},mlp", [{"name": "cnn", "channels": [1, 2]}, "mlp"]),
        ("'a,b',c", ["a,b", "c"]),
        ("null,3", [None, 3]),
        ("1..a", ["1..a"]),
        ("1,2]", [1, "2]"]),
    ],
)
def test_a_list_is_read(text: str, expected: list[object]) -> None:
    result = values(text)
    assert result == expected
    assert str(result) == str(expected)  # 1 is not 1.0


def test_one_number_can_be_a_count() -> None:
    assert values("3", count=True) == [0, 1, 2]
    assert values("[3]", count=True) == [3]
    assert values("3,4", count=True) == [3, 4]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("1,,2", "a value is missing here\n     | 1,,2\n     |   ^"),
        ("1,", "a value is missing here\n     | 1,\n     |   ^"),
        ("", "a value is missing here\n     | \n     | ^"),
        ("[]", "a value is missing here\n     | []\n     |  ^"),
        ("3,5..1", "5..1 counts down: there is nothing in it\n     | 3,5..1\n     |   ^^^^"),
        ("1..10001", "more than 10000 values\n     | 1..10001\n     | ^^^^^^^^"),
        (
            "log:0:1:3",
            "both ends of a log: scale must be greater than 0\n     | log:0:1:3\n     | ^^^^^^^^^",
        ),
        ("lin:0:x:3", "'x' is not a number\n     | lin:0:x:3\n     | ^^^^^^^^^"),
        ("lin:0:.inf:3", "'.inf' is not a number\n     | lin:0:.inf:3\n     | ^^^^^^^^^^^^"),
        (
            "lin:0:1:1",
            "the last of lin:FIRST:LAST:COUNT is a number from 2 to 10000\n"
            "     | lin:0:1:1\n"
            "     | ^^^^^^^^^",
        ),
        ("1,[2", "this bracket is never closed\n     | 1,[2\n     |   ^"),
    ],
)
def test_an_item_that_cannot_be_read_is_shown(text: str, error: str) -> None:
    with pytest.raises(ConfigError) as caught:
        values(text)
    assert str(caught.value) == f"command line: k: {error}"


def test_a_count_is_at_least_one() -> None:
    with pytest.raises(ConfigError, match="must be at least 1"):
        values("0", count=True)


def test_there_are_at_most_ten_thousand() -> None:
    assert len(str(values("1..10000"))) > 40_000
    for text in ("1..9000,1..9000", ",".join("1" * 10_001), "lin:0:1:1000000"):
        with pytest.raises(ConfigError, match="10000"):
            values(text)


@settings(deadline=None)
@given(st.text(st.sampled_from(list("019.,:[]{}'\"-+e linog")), max_size=30))
def test_no_text_makes_it_crash(text: str) -> None:
    try:
        values(text)
    except ConfigError as error:
        assert error.problems  # noqa: PT017
