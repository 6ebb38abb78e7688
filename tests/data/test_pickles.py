"""The reader of pickles: plain data as `pickle` reads it, and nothing else of a pickle runs."""

import collections
import os
import pickle
import pickletools
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mnist_cli.data.pickles import UnsafePickleError, load

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)
NDARRAY = b"cnumpy\nndarray\n"
DTYPE = b"cnumpy\ndtype\n"
RECONSTRUCT = b"cnumpy.core.multiarray\n_reconstruct\n"


def array_pickle(shape: object, data: object, code: str = "f4", *state: object) -> bytes:
    """A pickled array of which the file says this, whether it fits together or not."""
    dtype = Reduced(np.dtype, (code, False, True), state or (3, "<", None, None, None, -1, -1, 0))
    rest = (1, shape, dtype, False, data)
    return pickle.dumps(Reduced(np.zeros(0).__reduce__()[0], (np.ndarray, (0,), b"b"), rest), 3)


class Reduced:
    """Pickles as whatever `__reduce__` may return: a function and its arguments, and a state."""

    def __init__(self, *reduced: object) -> None:
        self.reduced = reduced

    def __reduce__(self) -> tuple[Any, ...]:
        return self.reduced


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_plain_values_and_arrays_come_back(protocol: int) -> None:
    values = {
        "text": "ä\n'\\\U0001f600",
        "numbers": [0, -1, 255, 2**31, -(2**100), 0.1, np.float32(0.5), np.bool(True)],
        "constants": (None, True, False),
        "nested": {1: [(), (1,), (1, 2, 3, 4)], "empty": [{}, []]},
        "bytes": bytes(range(256)),
    }
    assert load(pickle.dumps(values, protocol)) == values
    for array in (
        np.arange(6, dtype=np.float32).reshape(2, 3),
        np.asfortranarray(np.arange(2000.0).reshape(40, 50)),
        np.arange(7, dtype=">i4"),
        np.array(3, dtype=np.float16),
    ):
        twice: Any = load(pickle.dumps([array, array], protocol))
        first, second = twice
        assert first is second
        assert first.dtype == array.dtype.newbyteorder("=")
        np.testing.assert_array_equal(first, array)


def test_what_python_2_wrote() -> None:
    # {'W1': array([1., 2.], dtype=float32)} as cPickle of Python 2 writes it.
    weights = load(
        b"\x80\x02}q\x01U\x02W1q\x02" + RECONSTRUCT + b"q\x03" + NDARRAY + b"q\x04K\x00\x85U\x01b"
        b"\x87Rq\x05(K\x01K\x02\x85" + DTYPE + b"q\x06U\x02f4K\x00K\x01\x87Rq\x07(K\x03U\x01<NNN"
        b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x08\x00\x00\x80?\x00\x00\x00@tbs."
    )
    assert isinstance(weights, dict)
    assert weights["W1"].dtype == np.float32
    assert weights["W1"].tolist() == [1, 2]


CALLS: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
    r"(posix|nt)\.system": (os.system, ("touch MARK",)),
    r"(__builtin__|builtins)\.eval": (eval, ("open('MARK', 'w')",)),
    r"numpy\.load": (np.load, ("MARK",)),
    r"collections\.OrderedDict": (collections.OrderedDict, ()),
}


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("name", CALLS)
def test_any_other_function_is_named_and_not_called(
    name: str, protocol: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    call = Reduced(*CALLS[name])
    for value in (call, {"W1": [np.zeros(2), (call,)]}, np.array([call, None], dtype=object)):
        with pytest.raises(UnsafePickleError, match=f"asks for {name}$|of type 'O8'"):
            load(pickle.dumps(value, protocol))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "data",
    [
        b"Pname\n.",  # PERSID
        b"(" + NDARRAY + b"o.",  # NumPy's own types are not made here, nor changed
        NDARRAY + b")\x81.",
        NDARRAY + b")R.",
        NDARRAY + b"}b.",
        DTYPE + b"N}U\x0c__setstate__Ns\x86b.",
        RECONSTRUCT + b"N}U\x08__code__Ns\x86b.",  # nor is a function of ours
        b"c__builtin__\nobject\n.",
        RECONSTRUCT.replace(b"struct\n", b"struct.__globals__\n") + b".",
        b"(S'true'\nios\nsystem\n.",  # INST
        b"",
        pickle.dumps(np.arange(9))[:-20],
    ],
)
def test_what_is_not_plain_data_or_damaged_is_refused(data: bytes) -> None:
    with pytest.raises(UnsafePickleError):
        load(data)


def test_an_array_is_of_plain_numbers_and_as_large_as_its_bytes() -> None:
    assert load(array_pickle((2,), bytes(8))).tolist() == [0, 0]  # type: ignore[attr-defined]
    for shape, data in [((3,), bytes(8)), ((-1, -2), bytes(8)), ((2,), [1, 2])]:
        with pytest.raises(UnsafePickleError):
            load(array_pickle(shape, data))
    for code in ("O8", "V8", "S8", "U2", "M8", "m8", "c8"):
        with pytest.raises(UnsafePickleError, match=f"of type '{code}'"):
            load(array_pickle((1,), bytes(8), code))


def test_the_file_does_not_say_that_numbers_are_pointers() -> None:
    fields = {"a": (Reduced(np.dtype, ("i8", False, True)), 0)}
    data = array_pickle((1,), b"A" * 8, "i8", 3, "<", None, ("a",), fields, 8, 1, 0x7F)
    array = load(data)
    assert isinstance(array, np.ndarray)
    assert array.dtype == np.dtype("i8")
    assert not array.dtype.hasobject


@pytest.fixture
def limited_memory() -> Iterator[None]:
    """A memo place of 2**31 must not have its room made on the machine that tests."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (8 << 30, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


OPCODES = [opcode.code.encode("latin-1") for opcode in pickletools.opcodes]
PIECES = st.one_of(
    st.sampled_from([*OPCODES, RECONSTRUCT, NDARRAY, DTYPE, b"U\x02f4", b"K\x01"]),
    st.binary(max_size=6),
)
WHOLE = pickle.dumps({"W1": np.ones((2, 3), np.float32), "n": [1, 2.5]}, 2)
DAMAGED = st.builds(
    lambda place, by: WHOLE[:place] + by + WHOLE[place + 1 :],
    st.integers(0, len(WHOLE) - 1),
    st.binary(max_size=2),
)


@pytest.mark.usefixtures("limited_memory")
@given(st.one_of(st.lists(PIECES, max_size=40).map(b"".join), DAMAGED))
def test_any_bytes_are_data_or_our_error(data: bytes) -> None:
    try:
        load(data)
    except UnsafePickleError:
        return
