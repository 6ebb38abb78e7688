"""Lists on the command line."""

import pytest

from mnist_cli.config.values import parse_values


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1e-1,1e-2", [0.1, 0.01]),
        ("[1, 2]", [1, 2]),
        ("a", ["a"]),
        ("-1..1", [-1, 0, 1]),
        ("1..3,7", [1, 2, 3, 7]),
        ("lin:0:1:5", [0.0, 0.25, 0.5, 0.75, 1.0]),
        ("lin:1:5:5", [1, 2, 3, 4, 5]),
        ("lin:1:0:3", [1.0, 0.5, 0.0]),
        ("log:1e-4:1e-1:4", [1e-4, 1e-3, 1e-2, 1e-1]),
        ("log:1e-4:1e-1:7", [1e-4, 0.000316228, 1e-3, 0.00316228, 1e-2, 0.0316228, 1e-1]),
        ("geomspace:1:1000:4", [1, 10, 100, 1000]),
        ("[50],[50,100]", [[50], [50, 100]]),
        ("{name: cnn, channels: [1, 2]},mlp", [{"name": "cnn", "channels": [1, 2]}, "mlp"]),
        ("'a,b',c", ["a,b", "c"]),
        ("null,3", [None, 3]),
        ("1..a,lin:0:x:3", ["1..a", "lin:0:x:3"]),  # which are text, and so no numbers
    ],
)
def test_a_list_is_read(text: str, expected: list[object]) -> None:
    read = parse_values(text, "--grid")
    assert not read.problems
    assert str(read.values) == str(expected)  # 1 is not 1.0


def test_one_number_can_be_a_count() -> None:
    assert parse_values("3", "--seeds", count=True).values == [0, 1, 2]
    assert parse_values("[3]", "--seeds", count=True).values == [3]
    assert parse_values("3,4", "--seeds", count=True).values == [3, 4]
    assert parse_values("0", "--seeds", count=True).problems


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("1,,2", "','"),
        ("", "no values"),
        ("[]", "no values"),
        ("3,5..1", "5..1"),
        ("1..9000,1..9000", "10000"),
        (",".join("1" * 10_001), "10000"),
        ("log:0:1:3", "greater than 0"),
        ("lin:0:1.2.3:3", "1.2.3"),
        ("lin:0:1:1", "from 2"),
        ("1], [2", "expected"),
    ],
)
def test_a_list_that_cannot_be_read_is_told(text: str, what: str) -> None:
    (problem,) = parse_values(text, "--grid").problems
    assert what in problem.message
