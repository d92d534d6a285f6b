"""A safetensors file written one tensor after the other, hashed as it is written.

The safetensors library writes only from memory, with a copy of everything, and reading a file again to hash it takes as
long as writing it. It must not know which model the tensors belong to. A test opens its files with that library.

Example::

    planned = {"wte.weight": PlannedTensor("F32", (50257, 768), lambda: np.zeros((50257, 768), np.float32))}
    entry = write_tensors(Path("model.safetensors"), planned, {"format": "pt"})   # {"size_bytes": ..., "sha256": ...}
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trainer.run_files import ManifestEntry

Array = NDArray[Any]

ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
"""Bytes of one number, by safetensors' name of the type."""
READABLE = ("F64", "F32", "F16")
"""The types of weights that numpy has; bf16 is only written."""
ALIGNMENT = 8


class PlannedTensor(NamedTuple):
    """A tensor to write: its type (a key of ITEM_BYTES), its shape, and the function that makes it."""

    dtype: str
    shape: tuple[int, ...]
    make: Callable[[], Array]

    @property
    def size_bytes(self) -> int:
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


def in_type(tensor: PlannedTensor, dtype: str) -> PlannedTensor:
    """The tensor in another type, rounded to the nearest value, ties to even."""
    if tensor.dtype == dtype:
        return tensor
    return PlannedTensor(dtype, tensor.shape, lambda: _converted(tensor.make(), dtype))


def _converted(array: Array, dtype: str) -> Array:
    if dtype != "BF16":
        return array.astype({"F64": np.float64, "F32": np.float32, "F16": np.float16}[dtype])
    bits = np.ascontiguousarray(array, dtype=np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16  # the upper half of an fp32, rounded
    return np.where(np.isnan(array), 0x7FC0, rounded).astype(np.uint16)


def write_tensors(path: Path, planned: Mapping[str, PlannedTensor], metadata: Mapping[str, str]) -> ManifestEntry:
    """Writes the file and returns its size_bytes and sha256. Holds one tensor at a time. Raises OSError."""
    digest = hashlib.sha256()
    parts: Iterator[bytes | memoryview] = itertools.chain([header(planned, metadata)], map(_bytes, planned.values()))
    with path.open("wb") as file, ThreadPoolExecutor(1) as beside:  # hashing and writing both release the interpreter
        for data in parts:
            hashed = beside.submit(digest.update, data)
            file.write(data)
            hashed.result()
        return {"size_bytes": file.tell(), "sha256": digest.hexdigest()}


def _bytes(planned: PlannedTensor) -> memoryview:
    return np.ascontiguousarray(planned.make()).data.cast("B")


def header(planned: Mapping[str, PlannedTensor], metadata: Mapping[str, str]) -> bytes:
    """The bytes before the tensors, which follow in the mapping's order."""
    tensors: dict[str, object] = {"__metadata__": dict(metadata)}
    end = 0
    for name, tensor in planned.items():
        begin, end = end, end + tensor.size_bytes
        tensors[name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(tensors, separators=(",", ":")).encode()
    padded = text + b" " * (-len(text) % ALIGNMENT)  # the library aligns the data to eight bytes
    return len(padded).to_bytes(8, "little") + padded
