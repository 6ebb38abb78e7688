"""A reader of pickles that builds NumPy arrays, plain containers, numbers, text and bytes only.

A pickle is a program, and the usual unpickler runs it with the whole of Python for its library.
This one is a small machine of its own: it knows the opcodes that make up plain data, looks names
up in one short table, imports nothing, and stops at the first thing else.
"""

import pickle
import pickletools
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any, Literal, Protocol

import numpy as np

# An array of any size is a few dozen opcodes; this bounds the time and memory of everything else.
_MAX_OPCODES = 2_000_000

_DTYPES = frozenset({"b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"})
_ORDERS: dict[str, Literal["<", ">", "="]] = {"<": "<", ">": ">", "=": "=", "|": "="}
_PLAIN = frozenset({type(None), bool, int, float, str, bytes, list, tuple, dict, np.ndarray})
_OPCODE_NAMES = {opcode.code.encode("latin-1"): opcode.name for opcode in pickletools.opcodes}


class Readable(Protocol):
    """What a pickle can be read from: a file, a `BytesIO`, a `GzipFile`."""

    def read(self, size: int, /) -> bytes:
        """At most so many bytes, fewer only at the end."""

    def readline(self, size: int, /) -> bytes:
        """The next line with its end, or as many bytes of it."""


class UnsafePickleError(ValueError):
    """A pickle is damaged, or asks for something that is not plain data; nothing of it has run."""


def load(stream: Readable, *, limit: int) -> Any:
    """Reads one pickle of plain data, of any protocol.

    Python 2 made no difference between text and bytes. Its strings come back as bytes; as a key of
    a dict, a bytes string is always read as Latin-1 text, so that one name means one thing.

    Args:
        stream: where the pickle begins. What follows its end is not read.
        limit: the most bytes that may be read.

    Returns:
        None, bool, int, float, str, bytes, list, tuple, dict (of text or integer keys) or an array
        of booleans, integers or floats, in this machine's byte order. NumPy scalars come back as
        Python numbers. Arrays hold no more bytes together than were read.

    Raises:
        UnsafePickleError: the pickle is damaged, longer than `limit`, or asks for anything else.
        OSError: (or what else `stream` raises) when reading fails.
    """
    return _Machine(stream, limit).run()


@dataclass(frozen=True)
class _Global:
    """What stands on the stack for a function that a pickle names."""

    call: Callable[..., Any]


@dataclass
class _Dtype:
    """What stands on the stack for a dtype, whose byte order comes after it."""

    dtype: np.dtype[Any]


# --------------------------------------------------------------------- what a pickle may call


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode("latin-1")
    if not isinstance(value, str):
        raise UnsafePickleError(f"has {type(value).__name__} where text belongs")
    return value


def _make_dtype(code: Any, *_: Any) -> _Dtype:
    if (name := _text(code)) not in _DTYPES:
        raise UnsafePickleError(f"holds an array of type {name!r}, not of plain numbers")
    return _Dtype(np.dtype(name))


def _set_dtype(target: _Dtype, state: Any) -> None:
    _, order, subtype, names, fields, *_ = state
    if (subtype, names, fields) != (None, None, None) or (mark := _text(order)) not in _ORDERS:
        raise UnsafePickleError("holds an array of a type that is not plain numbers")
    target.dtype = target.dtype.newbyteorder(_ORDERS[mark])


def _make_array(*_: Any) -> np.ndarray[Any, Any]:
    # A pickle first makes an array of any size, and then tells it what to be.
    return np.empty(0, dtype=np.uint8)


def _set_array(target: np.ndarray[Any, Any], state: Any) -> None:
    _, shape, dtype, fortran, data = state
    _check_array(shape, dtype, data)
    # It takes over the bytes instead of copying them, where it can. (The stub asks for a NumPy
    # bool, which NumPy refuses.)
    target.__setstate__((1, shape, dtype.dtype, bool(fortran), data))  # type: ignore[arg-type]


def _array_from_buffer(data: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray[Any, Any]:
    target = _make_array()
    _set_array(target, (1, shape, dtype, order == "F", data))
    return target


def _check_array(shape: Any, dtype: Any, data: Any) -> None:
    if type(shape) is not tuple or any(type(n) is not int or n < 0 for n in shape):
        raise UnsafePickleError("holds an array of no proper shape")
    # An empty array too has strides, which NumPy computes in 64 bits; and it knows so many axes.
    if len(shape) > 32 or prod(max(n, 1) for n in shape) > 2**48:
        raise UnsafePickleError("holds an array of too large a shape")
    if type(dtype) is not _Dtype or type(data) is not bytes:
        raise UnsafePickleError("holds an array that is not plain numbers")
    if len(data) != prod(shape) * dtype.dtype.itemsize:
        raise UnsafePickleError(f"holds {len(data)} bytes for an array of shape {shape}")


def _make_scalar(dtype: Any, data: Any) -> bool | int | float:
    _check_array((), dtype, data)
    number: bool | int | float = np.frombuffer(data, dtype.dtype)[0].item()
    return number


def _encode(text: Any, encoding: Any) -> bytes:
    # How Python 3 writes bytes for the protocols that have none.
    if type(text) is not str or encoding not in ("latin1", "latin-1"):
        raise UnsafePickleError("asks for an encoding other than latin1")
    return text.encode("latin-1")


def _refuse(*_: Any) -> None:
    raise UnsafePickleError("calls a class of NumPy that it may only name")


# Under the module names of NumPy 1 (numpy.core) and NumPy 2 (numpy._core).
_ALLOWED: dict[tuple[str, str], _Global] = {
    ("numpy", "ndarray"): _Global(_refuse),
    ("numpy", "dtype"): _Global(_make_dtype),
    ("_codecs", "encode"): _Global(_encode),
    **{
        (f"numpy.{core}.{module}", name): _Global(call)
        for core in ("core", "_core")
        for module, name, call in (
            ("multiarray", "_reconstruct", _make_array),
            ("multiarray", "scalar", _make_scalar),
            ("numeric", "_frombuffer", _array_from_buffer),
        )
    },
}


# ------------------------------------------------------------------------------- the machine

_MARK = object()
_CONSTANTS = {pickle.NONE: None, pickle.NEWTRUE: True, pickle.NEWFALSE: False}
_EMPTY: dict[bytes, Callable[[], Any]] = {
    pickle.EMPTY_LIST: list,
    pickle.EMPTY_DICT: dict,
    pickle.EMPTY_TUPLE: tuple,
}
_TUPLES = {pickle.TUPLE1: 1, pickle.TUPLE2: 2, pickle.TUPLE3: 3}
# Opcodes that a number of so many bytes follows.
_UNSIGNED = {pickle.BININT1: 1, pickle.BININT2: 2}
_PUTS = {pickle.BINPUT: 1, pickle.LONG_BINPUT: 4}
_GETS = {pickle.BINGET: 1, pickle.LONG_BINGET: 4}
# Opcodes that a length of so many bytes follows, and then as many bytes.
_LONGS = {pickle.LONG1: 1, pickle.LONG4: 4}
_TEXTS = {pickle.SHORT_BINUNICODE: 1, pickle.BINUNICODE: 4, pickle.BINUNICODE8: 8}
_BYTES = {
    pickle.SHORT_BINSTRING: 1,
    pickle.BINSTRING: 4,
    pickle.SHORT_BINBYTES: 1,
    pickle.BINBYTES: 4,
    pickle.BINBYTES8: 8,
    pickle.BYTEARRAY8: 8,
}

_ESCAPE = re.compile(rb"\\(x[0-9a-f]{2}|[\\'\"nrt])")
_ESCAPED = {b"n": b"\n", b"r": b"\r", b"t": b"\t"}


def _unescape(match: re.Match[bytes]) -> bytes:
    code = match[1]
    return bytes([int(code[1:], 16)]) if len(code) == 3 else _ESCAPED.get(code, code)


class _Machine:
    """One reading of one pickle."""

    def __init__(self, stream: Readable, limit: int) -> None:
        self._stream = stream
        self._left = limit
        self._limit = limit
        self._array_bytes = 0
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def run(self) -> Any:
        try:
            for _ in range(_MAX_OPCODES):
                opcode = self._read(1)
                if opcode == pickle.STOP:
                    (value,) = self._stack
                    self._check_plain(value)
                    return value
                self._step(opcode)
        except UnsafePickleError:
            raise
        # What an opcode does to a stack, or to bytes, that are not as it expects them.
        except (ValueError, TypeError, LookupError, OverflowError, struct.error) as error:
            raise UnsafePickleError(f"is damaged at byte {self._position}: {error}") from error
        raise UnsafePickleError(f"has more than {_MAX_OPCODES:,} opcodes")

    @property
    def _position(self) -> int:
        return self._limit - self._left

    def _step(self, opcode: bytes) -> None:
        stack = self._stack
        if opcode in _PUTS:
            self._memo[self._number(_PUTS[opcode])] = stack[-1]
        elif opcode in _GETS:
            stack.append(self._memo[self._number(_GETS[opcode])])
        elif opcode in _UNSIGNED:
            stack.append(self._number(_UNSIGNED[opcode]))
        elif opcode in _BYTES:
            stack.append(self._read(self._number(_BYTES[opcode])))
        elif opcode in _TEXTS:
            stack.append(str(self._read(self._number(_TEXTS[opcode])), "utf-8", "surrogatepass"))
        elif opcode in _LONGS:
            digits = self._read(self._number(_LONGS[opcode]))
            stack.append(int.from_bytes(digits, "little", signed=True))
        elif opcode in _CONSTANTS:
            stack.append(_CONSTANTS[opcode])
        elif opcode in _EMPTY:
            stack.append(_EMPTY[opcode]())
        elif opcode in _TUPLES:
            items = [stack.pop() for _ in range(_TUPLES[opcode])]
            stack.append(tuple(reversed(items)))
        else:
            self._step_rarer(opcode)

    def _step_rarer(self, opcode: bytes) -> None:
        stack = self._stack
        match opcode:
            case pickle.PROTO:
                if (protocol := self._number(1)) > pickle.HIGHEST_PROTOCOL:
                    raise UnsafePickleError(f"is of the unknown protocol {protocol}")
            case pickle.FRAME:
                self._read(8)  # a length that only readers in blocks need
            case pickle.MEMOIZE:
                self._memo[len(self._memo)] = stack[-1]
            case pickle.PUT:
                self._memo[int(self._line())] = stack[-1]
            case pickle.GET:
                stack.append(self._memo[int(self._line())])
            case pickle.BININT:
                stack.append(int.from_bytes(self._read(4), "little", signed=True))
            case pickle.BINFLOAT:
                stack.append(struct.unpack(">d", self._read(8))[0])
            case pickle.INT:
                line = self._line()
                stack.append(line == b"01" if line in (b"00", b"01") else int(line))
            case pickle.LONG:
                stack.append(int(self._line().rstrip(b"L")))
            case pickle.FLOAT:
                stack.append(float(self._line()))
            case pickle.STRING:
                line = self._line().strip()
                if len(line) < 2 or line[0] != line[-1] or line[:1] not in (b"'", b'"'):
                    raise UnsafePickleError("has a string without its quotes")
                stack.append(_ESCAPE.sub(_unescape, line[1:-1]))
            case pickle.UNICODE:
                stack.append(str(self._line(), "raw-unicode-escape"))
            case pickle.MARK:
                stack.append(_MARK)
            case pickle.TUPLE:
                stack.append(tuple(self._pop_mark()))
            case pickle.LIST:
                stack.append(self._pop_mark())
            case pickle.DICT:
                items = self._pop_mark()
                stack.append({})
                self._set_items(items)
            case pickle.APPEND:
                self._extend([stack.pop()])
            case pickle.APPENDS:
                self._extend(self._pop_mark())
            case pickle.SETITEM:
                self._set_items([stack.pop(-2), stack.pop()])
            case pickle.SETITEMS:
                self._set_items(self._pop_mark())
            case pickle.GLOBAL:
                self._push_global(self._line().decode(), self._line().decode())
            case pickle.STACK_GLOBAL:
                name, module = stack.pop(), stack.pop()
                self._push_global(_text(module), _text(name))
            case pickle.INST:
                raise UnsafePickleError(f"asks for {self._line().decode()}.{self._line().decode()}")
            case pickle.REDUCE:
                self._reduce()
            case pickle.BUILD:
                self._build()
            case _:
                name = _OPCODE_NAMES.get(opcode, repr(opcode))
                raise UnsafePickleError(f"asks for the opcode {name}, which plain data has not")

    def _read(self, count: int) -> bytes:
        if count > self._left:
            raise UnsafePickleError(f"is longer than {self._limit:,} bytes")
        data = self._stream.read(count)
        if len(data) != count:
            raise UnsafePickleError("is cut short")
        self._left -= count
        return data

    def _number(self, width: int) -> int:
        return int.from_bytes(self._read(width), "little")

    def _line(self) -> bytes:
        line = self._stream.readline(self._left)
        if not line.endswith(b"\n"):
            raise UnsafePickleError("is cut short, or longer than it may be")
        self._left -= len(line)
        return line[:-1]

    def _pop_mark(self) -> list[Any]:
        stack = self._stack
        start = len(stack) - 1
        while stack[start] is not _MARK:
            start -= 1
            if start < 0:
                raise UnsafePickleError("closes a group that it did not open")
        items = stack[start + 1 :]
        del stack[start:]
        return items

    def _extend(self, items: list[Any]) -> None:
        if type(self._stack[-1]) is not list:
            raise UnsafePickleError("appends to what is not a list")
        self._stack[-1].extend(items)

    def _set_items(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if type(target) is not dict:
            raise UnsafePickleError("sets keys of what is not a dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            # Not any hashable: a tuple of tuples of ... takes for ever to hash.
            target[key if type(key) is int else _text(key)] = value

    def _push_global(self, module: str, name: str) -> None:
        if (module, name) not in _ALLOWED:
            raise UnsafePickleError(f"asks for {module}.{name}")
        self._stack.append(_ALLOWED[module, name])

    def _reduce(self) -> None:
        arguments, function = self._stack.pop(), self._stack.pop()
        if type(function) is not _Global or type(arguments) is not tuple:
            raise UnsafePickleError("calls what is not a function")
        self._stack.append(self._counted(function.call(*arguments)))

    def _build(self) -> None:
        state, target = self._stack.pop(), self._stack[-1]
        if type(target) is _Dtype:
            _set_dtype(target, state)
        elif type(target) is np.ndarray:
            _set_array(target, state)
            self._counted(target)
        else:
            raise UnsafePickleError("sets the state of what is neither an array nor a dtype")

    def _counted(self, value: Any) -> Any:
        # One run of bytes made into a thousand arrays would be a small file with a large result.
        if type(value) is np.ndarray:
            self._array_bytes += value.nbytes
            if self._array_bytes > self._position:
                raise UnsafePickleError("makes more of its bytes than are in it")
        return value

    def _check_plain(self, value: Any) -> None:
        seen: set[int] = set()
        left = [value]
        while left:
            item = left.pop()
            if id(item) in seen:
                continue
            seen.add(id(item))
            if type(item) not in _PLAIN:
                raise UnsafePickleError("holds a function or a type among its values")
            if type(item) is dict:
                left.extend(item.values())
            elif type(item) in (list, tuple):
                left.extend(item)
