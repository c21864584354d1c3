"""Tensors out of safetensors files and into them: memory-mapped, and strict about what a file may say."""

from __future__ import annotations

import dataclasses
import json
import math
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

__all__ = ["CheckpointError", "TensorFile", "TensorInfo", "write_tensors"]

# The format's own limit; a header is a few hundred bytes a tensor.
MAX_HEADER = 100_000_000
DTYPES: dict[str, Any] = {
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E8M0": ml_dtypes.float8_e8m0fnu,
    "F64": np.float64,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}


class CheckpointError(ValueError):
    """A checkpoint's files are not what they must be."""


@dataclasses.dataclass(frozen=True)
class TensorInfo:
    """Where one tensor lies: bytes ``begin`` to ``end`` behind the header."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def _no_duplicates(path: Path) -> Any:
    def build(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = dict(pairs)
        if len(names) != len(pairs):
            seen: set[str] = set()
            twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
            raise CheckpointError(f"{path}: {twice!r} stands there twice")
        return names

    return build


def read_json(path: Path, limit: int) -> Any:
    """One JSON document of at most ``limit`` bytes, no key twice in an object."""
    try:
        if (size := _size(path)) > limit:
            raise CheckpointError(f"{path}: has {size} bytes, needs at most {limit}")
        return json.loads(path.read_bytes(), object_pairs_hook=_no_duplicates(path))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: is missing") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
    except CheckpointError:
        raise
    except (ValueError, RecursionError) as error:  # ValueError: no UTF-8, no JSON, a number of thousands of digits
        raise CheckpointError(f"{path}: is no JSON: {error}") from None


def _size(path: Path) -> int:
    """Bytes of a regular file: to open a pipe would wait for somebody to write into it."""
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise CheckpointError(f"{path}: cannot be read: is no regular file")
    return found.st_size


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


class TensorFile:
    """One safetensors file, checked wholly when it is opened; tensors are views of the mapped file.

    Parameters
    ----------
    path : Path

    Raises
    ------
    CheckpointError
        A header that is too long, no JSON, or with a name twice; an entry with an unknown dtype, a shape that does not
        fit its bytes, bytes outside the file, overlaps, holes, or a file that is cut off.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            size = _size(path)
            with path.open("rb") as file:
                head = file.read(8)
                length = int.from_bytes(head, "little")
                if size < 8:
                    raise CheckpointError(f"{path}: has {size} bytes, needs at least 8: it is cut off")
                if len(head) < 8 or length > min(MAX_HEADER, size - 8):
                    raise CheckpointError(
                        f"{path}: its header claims {length} bytes, needs at most {min(MAX_HEADER, max(size - 8, 0))}: "
                        "the file is cut off or no safetensors file"
                    )
                text = file.read(length)
        except FileNotFoundError:
            raise CheckpointError(f"{path}: is missing") from None
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from None
        self._start = 8 + length
        self.tensors = self._parse(text)
        self._check_cover(size - self._start)
        self._map: np.ndarray | None = None

    def _parse(self, text: bytes) -> dict[str, TensorInfo]:
        try:
            header = json.loads(text, object_pairs_hook=_no_duplicates(self.path))
        except CheckpointError:
            raise
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"{self.path}: its header is no JSON: {error}") from None
        if not isinstance(header, dict):
            raise CheckpointError(f"{self.path}: its header is no JSON object")
        header.pop("__metadata__", None)
        return {name: self._entry(name, entry) for name, entry in header.items()}

    def _entry(self, name: str, entry: Any) -> TensorInfo:
        if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
            raise CheckpointError(f"{self.path}: {name!r} needs exactly dtype, shape and data_offsets")
        dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not isinstance(dtype, str) or dtype not in DTYPES:
            raise CheckpointError(f"{self.path}: {name!r} has dtype {dtype!r}, needs one of {', '.join(DTYPES)}")
        if not isinstance(shape, list) or not all(map(_whole, shape)) or len(shape) > 8:
            raise CheckpointError(f"{self.path}: {name!r} has shape {shape!r}, needs a list of up to 8 numbers >= 0")
        if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_whole, offsets)):
            raise CheckpointError(f"{self.path}: {name!r} has data_offsets {offsets!r}, needs two numbers >= 0")
        begin, end = offsets
        needs = math.prod(shape) * np.dtype(DTYPES[dtype]).itemsize
        if end - begin != needs:
            raise CheckpointError(
                f"{self.path}: {name!r} has {end - begin} bytes ({begin} to {end}), needs {needs} for {dtype} {shape}"
            )
        return TensorInfo(dtype, tuple(shape), begin, end)

    def _check_cover(self, size: int) -> None:
        """Tensors lie one behind the other and fill the file."""
        at, before = 0, "the header"
        for name, info in sorted(self.tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
            if info.begin != at:
                word = "overlaps" if info.begin < at else "leaves a hole behind"
                raise CheckpointError(f"{self.path}: {name!r} begins at byte {info.begin} and {word} {before}")
            at, before = info.end, repr(name)
        if at != size:
            word = "is cut off" if at > size else "has bytes that belong to no tensor"
            raise CheckpointError(f"{self.path}: holds {size} bytes of data, needs {at}: it {word}")

    def read(self, name: str) -> np.ndarray:
        """The tensor as a read-only view of the mapped file (a copy where its bytes are not aligned)."""
        info = self.tensors[name]
        dtype = np.dtype(DTYPES[info.dtype])
        if info.begin == info.end:
            return np.zeros(info.shape, dtype)
        if self._map is None:
            self._map = np.memmap(self.path, np.uint8, "r")
        raw = np.asarray(self._map[self._start + info.begin : self._start + info.end])
        if (self._start + info.begin) % dtype.itemsize:
            raw = raw.copy()
        return raw.view(dtype).reshape(info.shape)


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file, wide elements first, so that every tensor is aligned."""
    names = {np.dtype(dtype): name for name, dtype in DTYPES.items()}
    order = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    at = 0
    for name in order:
        array = tensors[name]
        header[name] = {
            "dtype": names[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [at, at + array.nbytes],
        }
        at += array.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for name in order:
            file.write(np.ascontiguousarray(tensors[name]).tobytes())
