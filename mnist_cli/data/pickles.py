"""Reads pickles that hold NumPy arrays and plain values; nothing else in a pickle is ever called.

A pickle is a program: it names functions, and the usual unpickler calls them. Here each of the few
names that arrays need stands for a function below, and any other name is refused. They are not
NumPy's own functions, because `ndarray` and `dtype` believe a file that says a run of bytes is a
run of pointers to objects.
"""

import io
import pickle
from typing import BinaryIO, Literal

import numpy as np

_NUMBERS = frozenset({"b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"})


class UnsafePickleError(ValueError):
    """A pickle is damaged, or asks for something that is not plain data; nothing of it has run."""


def load(source: bytes | BinaryIO) -> object:
    """Reads one pickle of plain data, of any protocol.

    Strings that Python 2 wrote come back as Latin-1 text. The caller limits the size of the file;
    how much memory a hostile one asks for is not bounded here.

    Args:
        source: the pickle, or where it begins.

    Returns:
        None, numbers, text, bytes, lists, tuples and dicts of these, and NumPy arrays and
        scalars of booleans, integers or floats, in this machine's byte order.

    Raises:
        UnsafePickleError: the pickle is damaged, or asks for anything else; the message names it.
        OSError: reading failed.
    """
    stream = io.BytesIO(source) if isinstance(source, bytes) else source
    try:
        return _Unpickler(stream, encoding="latin1").load()
    except (UnsafePickleError, OSError):
        raise
    except Exception as error:  # whatever a damaged program may do to a stack
        raise UnsafePickleError(f"is damaged: {str(error) or type(error).__name__}") from error


class _Dtype:
    """What a pickled dtype is restored as: a type of plain numbers, whatever else the file says."""

    def __init__(self, code: str, *_: object) -> None:
        if code not in _NUMBERS:
            raise UnsafePickleError(f"holds an array of type {code!r}, not of plain numbers")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple[object, ...]) -> None:
        self.dtype = self.dtype.newbyteorder(state[1])  # type: ignore[arg-type]


class _Array(np.ndarray):
    """An array whose content comes after it, as pickles write arrays."""

    def __setstate__(self, state: tuple[int, tuple[int, ...], _Dtype, bool, bytes]) -> None:  # type: ignore[override]
        _, shape, dtype, fortran, data = state
        if min(shape, default=0) < 0:
            raise UnsafePickleError(f"holds an array of the impossible shape {shape}")
        super().__setstate__((1, shape, dtype.dtype, fortran, data))  # type: ignore[arg-type]


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> object:
        allowed = {
            ("numpy", "ndarray"): None,  # the type that _reconstruct is asked to make
            ("numpy", "dtype"): _Dtype,
            ("numpy.core.multiarray", "_reconstruct"): self._reconstruct,
            ("numpy.core.multiarray", "scalar"): self._scalar,
            ("numpy.core.numeric", "_frombuffer"): self._frombuffer,
            ("_codecs", "encode"): self._encode,  # how protocols 0 to 2 write bytes
        }
        key = module.replace("numpy._core.", "numpy.core."), name  # as NumPy 2 and 1 call it
        if key not in allowed:
            raise UnsafePickleError(f"asks for {module}.{name}")
        return allowed[key]

    # Methods, because a pickle can set the attributes of a function, and not those of a method.

    def _reconstruct(self, *_: object) -> _Array:
        return _Array(0, np.uint8)

    def _scalar(self, dtype: _Dtype, data: bytes) -> object:
        return np.frombuffer(data, dtype.dtype)[0]

    def _frombuffer(
        self, data: bytes, dtype: _Dtype, shape: tuple[int, ...], order: Literal["C", "F"]
    ) -> np.ndarray:
        array = np.frombuffer(data, dtype.dtype).reshape(shape, order=order)
        return array.astype(dtype.dtype.newbyteorder("="))  # a copy, which is writable

    def _encode(self, text: str, _: str) -> bytes:
        return text.encode("latin-1")
