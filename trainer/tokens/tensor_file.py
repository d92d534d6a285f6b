"""A safetensors file written one tensor after the other, hashed as it is written.

The safetensors library writes only from memory, with a copy of everything, and reading a file again to hash it takes as
long as writing it. It must not know whose tensors they are. A test opens what is written here with that library.

Example::

    planned = {"wte.weight": Planned("F32", (50257, 768), lambda: np.zeros((50257, 768), np.float32))}
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

from trainer.contract import ManifestEntry

Array = NDArray[Any]

ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2}
"""safetensors' names of the types that numpy has too, and that weights come in."""
ALIGNMENT = 8


class Planned(NamedTuple):
    """A tensor to be: its type, one of ITEM_BYTES, its shape, and what makes it when its turn comes."""

    dtype: str
    shape: tuple[int, ...]
    make: Callable[[], Array]

    @property
    def size_bytes(self) -> int:
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


def write_tensors(path: Path, planned: Mapping[str, Planned], metadata: Mapping[str, str]) -> ManifestEntry:
    """Writes the file and returns its size_bytes and sha256. Holds one tensor at a time. Raises OSError."""
    digest = hashlib.sha256()
    parts: Iterator[bytes | memoryview] = itertools.chain([header(planned, metadata)], map(_bytes, planned.values()))
    with path.open("wb") as file, ThreadPoolExecutor(1) as beside:  # neither hashing nor writing holds the interpreter
        for data in parts:
            hashed = beside.submit(digest.update, data)
            file.write(data)
            hashed.result()
        return {"size_bytes": file.tell(), "sha256": digest.hexdigest()}


def _bytes(planned: Planned) -> memoryview:
    return np.ascontiguousarray(planned.make()).data.cast("B")


def header(planned: Mapping[str, Planned], metadata: Mapping[str, str]) -> bytes:
    """What stands before the tensors, which lie there in the mapping's order."""
    tensors: dict[str, object] = {"__metadata__": dict(metadata)}
    end = 0
    for name, tensor in planned.items():
        begin, end = end, end + tensor.size_bytes
        tensors[name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(tensors, separators=(",", ":")).encode()
    padded = text + b" " * (-len(text) % ALIGNMENT)  # the library aligns the data to eight bytes
    return len(padded).to_bytes(8, "little") + padded
