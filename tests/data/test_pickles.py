"""The reader of pickles: plain data as `pickle` reads it, and nothing else of a pickle runs."""

import collections
import io
import pickle
import pickletools
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mnist_cli.data import pickles
from mnist_cli.data.pickles import UnsafePickleError

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


def load(data: bytes, limit: int | None = None) -> Any:
    return pickles.load(io.BytesIO(data), limit=len(data) if limit is None else limit)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=np.float32).reshape(2, 3),
        np.asfortranarray(np.arange(2000, dtype=np.float64).reshape(40, 50)),
        np.arange(7, dtype=">i4"),
        np.arange(0, 256, 3, dtype=np.uint8)[::2],
        np.array([True, False]),
        np.array(3, dtype=np.float16),
    ],
    ids=lambda array: f"{array.dtype.str}{array.shape}",
)
def test_arrays_come_back(array: np.ndarray[Any, Any], protocol: int) -> None:
    first, second = load(pickle.dumps([array, array], protocol))
    assert first is second
    expected = pickle.loads(pickle.dumps(array, protocol))
    assert first.dtype == array.dtype.newbyteorder("=")
    assert first.flags.f_contiguous == expected.flags.f_contiguous
    assert first.flags.aligned
    np.testing.assert_array_equal(first, array)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_plain_values_come_back(protocol: int) -> None:
    value = {
        "text": "ä\n'\\\U0001f600",
        "numbers": [0, 1, -1, 255, 256, 2**31, -(2**31), 2**100, -(2**100), 0.1, -1e300],
        "constants": (None, True, False),
        "nested": {1: [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)], "empty": [{}, []]},
        "many": list(range(3000)),
    }
    assert load(pickle.dumps(value, protocol)) == value


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_bytes_and_numpy_scalars(protocol: int) -> None:
    data = bytes(range(256)) * 2
    scalars = [np.float32(0.5), np.int64(-3), np.bool(True)]
    assert load(pickle.dumps([data, *scalars], protocol)) == [data, 0.5, -3, True]


def test_what_python_2_wrote() -> None:
    # {'W1': array([1., 2.], dtype=float32)} as cPickle of Python 2 writes it.
    body = b"\x00\x00\x80?\x00\x00\x00@"
    binary = (
        b"\x80\x02}q\x01U\x02W1q\x02cnumpy.core.multiarray\n_reconstruct\nq\x03cnumpy\nndarray\n"
        b"q\x04K\x00\x85U\x01b\x87Rq\x05(K\x01K\x02\x85cnumpy\ndtype\nq\x06U\x02f4K\x00K\x01\x87R"
        b"q\x07(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x08" + body + b"tbs."
    )
    text = (
        b"(dp0\nS'W1'\np1\ncnumpy.core.multiarray\n_reconstruct\np2\n(cnumpy\nndarray\np3\n(I0\n"
        b"tp4\nS'b'\np5\ntp6\nRp7\n(I1\n(I2\ntp8\ncnumpy\ndtype\np9\n(S'f4'\np10\nI0\nI1\ntp11\n"
        b"Rp12\n(I3\nS'<'\np13\nNNNI-1\nI-1\nI0\ntp14\nbI00\nS'\\x00\\x00\\x80?\\x00\\x00\\x00@'\n"
        b"p15\ntp16\nbs."
    )
    for data in (binary, text):
        assert pickle.loads(data, encoding="latin1")["W1"].tolist() == [1, 2]
        weights = load(data)
        assert list(weights) == ["W1"]
        assert weights["W1"].dtype == np.float32
        assert weights["W1"].tolist() == [1, 2]


class _Calls:
    """Pickles as a call of `function`, which the usual unpickler makes."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.reduced = (function, arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.reduced


def _evil(name: str, mark: Path) -> Any:
    import builtins
    import os

    return {
        "os.system": _Calls(os.system, f"touch {mark}"),
        "eval": _Calls(eval, f"open({str(mark)!r}, 'w')"),
        "getattr": _Calls(getattr, "x", "upper"),
        "open": _Calls(builtins.open, str(mark), "w"),
        "numpy.load": _Calls(np.load, str(mark)),
        "numpy.save": _Calls(np.save, str(mark), np.zeros(1)),
        "nested": {"W1": [np.zeros(2), (_Calls(os.system, f"touch {mark}"),)]},
        "object array": np.array([_Calls(os.system, f"touch {mark}"), None], dtype=object),
        "record array": np.zeros(2, dtype=[("a", "f4")]),
        "OrderedDict": collections.OrderedDict(a=1),
        "instance": UnsafePickleError("x"),
        "class": dict,
    }[name]


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    "name",
    [
        "os.system",
        "eval",
        "getattr",
        "open",
        "numpy.load",
        "numpy.save",
        "nested",
        "object array",
        "record array",
        "OrderedDict",
        "instance",
        "class",
    ],
)
def test_nothing_of_a_malicious_pickle_runs(name: str, protocol: int, tmp_path: Path) -> None:
    mark = tmp_path / "ran.npy"
    data = pickle.dumps(_evil(name, mark), protocol)
    with pytest.raises(UnsafePickleError, match=r"asks for|holds an array"):
        load(data)
    assert not mark.exists()


def test_the_error_names_what_was_asked_for() -> None:
    with pytest.raises(UnsafePickleError, match=r"asks for os\.system"):
        load(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(UnsafePickleError, match=r"asks for numpy\.load"):
        load(b"cnumpy\nload\n.")
    with pytest.raises(UnsafePickleError, match=r"asks for os\.system"):
        load(b"(S'true'\nios\nsystem\n.")


NDARRAY = b"cnumpy\nndarray\n"
MULTIARRAY = b"cnumpy.core.multiarray\n_reconstruct\n"


@pytest.mark.parametrize(
    "data",
    [
        b"Pname\n.",  # PERSID
        b"]Q.",  # BINPERSID
        b"\x82\x01.",  # EXT1
        b"\x83\x01\x00.",  # EXT2
        b"\x84\x01\x00\x00\x00.",  # EXT4
        b"\x97.",  # NEXT_BUFFER
        b"C\x00\x98.",  # READONLY_BUFFER
        b"(" + NDARRAY + b"o.",  # OBJ
        NDARRAY + b")\x81.",  # NEWOBJ
        NDARRAY + b")}\x92.",  # NEWOBJ_EX
        NDARRAY + b")R.",  # a class called
        NDARRAY + b"}b.",  # a class changed
        NDARRAY + b".",  # a class as the value
        b"]" + MULTIARRAY + b"a.",  # a function among the values
        b"}U\x01a" + MULTIARRAY + b"s.",
        MULTIARRAY + b"}b.",  # a function changed
        MULTIARRAY + b"]R.",  # arguments that are no tuple
        b"ccopyreg\n_reconstructor\n.",
        b"ccopy_reg\n_reconstructor\n.",
        b"c__builtin__\nobject\n.",
        b"c_codecs\ndecode\n.",
        b"c_codecs\nencode\n(U\x01aU\x03hextR.",
        b"c_codecs\nencode\n(X\x01\x00\x00\x00aX\x03\x00\x00\x00hextR.",
        b"cnumpy.core\nmultiarray._reconstruct\n.",
        b"cnumpy.core.multiarray\n_reconstruct.__globals__\n.",
        b"U\x01aU\x01b\x93.",  # STACK_GLOBAL
        b"]]\x93.",
    ],
)
def test_opcodes_that_plain_data_has_not(data: bytes) -> None:
    with pytest.raises(UnsafePickleError):
        load(data)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b".",
        b"N",
        b"NN.",
        b"(.",
        b"\x80\x63N.",  # a protocol to come
        b"t.",
        b"a.",
        b"]a.",
        b"N)a.",
        b"}NNs.",  # a key that is neither text nor a number
        b"}))s.",
        b"}(U\x01au.",  # a key without its value
        b"h\x00.",
        b"g-1\n.",
        b"Iten\n.",
        b"I" + b"9" * 5000 + b"\n.",
        b"S'open\n.",
        b"S\n.",
        b"V\\u00\n.",
        b"X\x01\x00\x00\x00\xff.",
        b"G\x00.",
        pickle.dumps(np.arange(9))[:-20],
    ],
)
def test_damaged_pickles(data: bytes) -> None:
    with pytest.raises(UnsafePickleError):
        load(data)


def _array_pickle(shape: bytes, data: bytes, code: bytes = b"f4") -> bytes:
    dtype = b"cnumpy\ndtype\n(U\x02" + code + b"K\x00K\x01tR"
    return (
        MULTIARRAY
        + b"("
        + NDARRAY
        + b"(K\x00tU\x01btR(K\x01"
        + shape
        + dtype
        + b"\x89"
        + data
        + b"tb."
    )


def test_an_array_is_as_large_as_its_bytes() -> None:
    assert load(_array_pickle(b"(K\x02t", b"U\x08" + bytes(8))).tolist() == [0, 0]
    huge = b"(" + b"J\xff\xff\xff\x7f" * 4 + b"t"
    for shape, data in [
        (b"(K\x03t", b"U\x08" + bytes(8)),
        (huge, b"U\x08" + bytes(8)),
        (b"(K\x00" + huge[1:], b"U\x00"),
        (b"(J\xff\xff\xff\xfft", b"U\x00"),
        (b"(" + b"K\x01" * 100 + b"t", b"U\x04" + bytes(4)),
        (b"(K\x02t", b"]"),
        (b"]", b"U\x08" + bytes(8)),
        (b"(G?\xf0\x00\x00\x00\x00\x00\x00t", b"U\x04" + bytes(4)),
    ]:
        with pytest.raises(UnsafePickleError):
            load(_array_pickle(shape, data))
    for code in (b"O8", b"V8", b"S8", b"U2", b"M8", b"m8", b"c8", b"f9"):
        with pytest.raises(UnsafePickleError, match="of type"):
            load(_array_pickle(b"(K\x01t", b"U\x08" + bytes(8), code))


def test_a_small_file_cannot_claim_much() -> None:
    started = time.monotonic()
    claims = [
        b"T" + struct.pack("<I", 2**31) + b"x.",
        b"\x8e" + struct.pack("<Q", 2**60) + b"x.",
        b"\x8b" + struct.pack("<I", 2**31) + b"x.",
        b"Nr\xff\xff\xff\x7f" * 3,  # memo places far apart
        b"]" * 3_000_000,
        b"(" * 3_000_000,
        # A tuple of tuples of ... as a key, whose hash would take for ever.
        b"}N" + b"\x85q\x00h\x00\x86" * 200 + b"Ns.",
    ]
    # The same bytes as an array, over and over.
    again = _array_pickle(b"(K\x40K\x40t", b"T\x00\x40\x00\x00" + bytes(2**14) + b"q\x07")[:-1]
    copies = _array_pickle(b"(K\x40K\x40t", b"h\x07")[:-1]
    claims.append(b"](" + again + copies * 1000 + b"e.")
    for data in claims:
        with pytest.raises(UnsafePickleError):
            load(data)
    assert time.monotonic() - started < 20


def test_no_more_is_read_than_allowed() -> None:
    data = pickle.dumps([1, "two", np.zeros(1000)])
    stream = io.BytesIO(data + b"rest")
    pickles.load(stream, limit=len(data))
    assert stream.read() == b"rest"
    with pytest.raises(UnsafePickleError, match="longer than"):
        load(data, limit=len(data) - 1)


_OPCODES = [opcode.code.encode("latin-1") for opcode in pickletools.opcodes]
_PIECES = st.one_of(
    st.sampled_from(_OPCODES),
    st.sampled_from(
        [MULTIARRAY, NDARRAY, b"cnumpy\ndtype\n", b"cos\nsystem\n", b"U\x02f4", b"K\x01"]
    ),
    st.binary(max_size=6),
)


@given(st.one_of(st.binary(max_size=200), st.lists(_PIECES, max_size=40).map(b"".join)))
def test_any_bytes_are_plain_data_or_our_error(data: bytes) -> None:
    try:
        value = load(data)
    except UnsafePickleError:
        return
    assert type(value) in (type(None), bool, int, float, str, bytes, list, tuple, dict, np.ndarray)


@given(st.data())
def test_a_damaged_byte_is_plain_data_or_our_error(data: st.DataObject) -> None:
    whole = pickle.dumps({"W1": np.ones((2, 3), np.float32), "n": [1, 2.5]}, 2)
    place = data.draw(st.integers(0, len(whole) - 1))
    damaged = whole[:place] + data.draw(st.binary(max_size=2)) + whole[place + 1 :]
    try:
        load(damaged)
    except UnsafePickleError:
        return
