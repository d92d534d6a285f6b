"""The three kinds of token files, read: safetensors `tokens`, llm.c's .bin, nanoGPT's headerless .bin.

Detected by magic, then by suffix. Opening reads headers only. It must not write anything, and it must not know what a
run does with the ids; `token_writers.py` writes the same three kinds.

Example::

    file = open_token_file(Path("train.safetensors"))
    file.kind, file.dtype, file.count, file.read(0, 1000)         # uint16, 1,000 ids
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

SAFETENSORS, LLM_C, NANOGPT = "safetensors", "llmc", "nanogpt"
KINDS = (SAFETENSORS, LLM_C, NANOGPT)
SUFFIXES = {SAFETENSORS: ".safetensors", LLM_C: ".bin", NANOGPT: ".bin"}

LLM_C_MAGIC = 20240520
LLM_C_VERSION = 1
LLM_C_HEADER_BYTES = 1024
DTYPES = {"U16": "uint16", "U32": "uint32", "I32": "int32"}
"""The types that a `tokens` tensor may have, by safetensors' name."""

StoredIds = npt.NDArray[np.integer[Any]]


class DataError(ValueError):
    """Token files that are damaged, of an unknown kind, too short, or do not fit the vocabulary. Names the file."""


@dataclass(frozen=True)
class TokenFile:
    """One file of `count` tokens. `tokens[a:b]` reads only that part from disk."""

    path: Path
    kind: str
    dtype: str
    tokens: Any
    count: int

    def read(self, start: int, count: int) -> StoredIds:
        """The stored ids start .. start + count; fewer at the end of the file."""
        ids: StoredIds = np.asarray(self.tokens[start : min(start + count, self.count)])
        return ids


def open_token_file(path: Path) -> TokenFile:
    """By magic, then suffix: llm.c has a magic number, safetensors a JSON header, nanoGPT's .bin no header."""
    try:
        with path.open("rb") as file:
            head = file.read(LLM_C_HEADER_BYTES)
        size = path.stat().st_size
        if int.from_bytes(head[:4], "little") == LLM_C_MAGIC:
            return _open_llm_c(path, head, size)
        if head[8:9] == b"{" or path.suffix == ".safetensors":
            return _open_safetensors(path)
        if path.suffix == ".bin":
            return _open_headerless(path, size)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    raise DataError(f"{path}: neither safetensors nor an llm.c or nanoGPT .bin file")


def _open_llm_c(path: Path, head: bytes, size: int) -> TokenFile:
    if len(head) < LLM_C_HEADER_BYTES:
        raise DataError(f"{path}: truncated: {size} bytes are less than the header of an llm.c shard")
    _, version, count = (int(word) for word in np.frombuffer(head, dtype="<i4")[:3])
    if version != LLM_C_VERSION:
        raise DataError(f"{path}: llm.c shard of version {version}; only version 1 (GPT-2, uint16) is known")
    expected = LLM_C_HEADER_BYTES + 2 * count
    if size != expected:
        raise DataError(f"{path}: truncated or damaged: {count} tokens make {expected} bytes, the file has {size}")
    if count == 0:
        return TokenFile(path, LLM_C, "uint16", np.empty(0, "<u2"), 0)  # an empty range cannot be mapped
    return TokenFile(path, LLM_C, "uint16", np.memmap(path, dtype="<u2", mode="r", offset=LLM_C_HEADER_BYTES), count)


def _open_safetensors(path: Path) -> TokenFile:
    try:
        file: Any = safe_open(path, framework="np")
        names = list(file.keys())
        if "tokens" not in names:
            raise DataError(f"{path}: has no tensor named tokens, only {', '.join(names) or 'nothing'}")
        tokens = file.get_slice("tokens")
    except SafetensorError as error:
        raise DataError(f"{path}: truncated or damaged: {error}") from error
    shape, kind = tokens.get_shape(), tokens.get_dtype()
    if len(shape) != 1 or kind not in DTYPES:
        raise DataError(f"{path}: tokens must be a 1-D uint16, uint32 or int32 tensor, found {kind} of shape {shape}")
    return TokenFile(path, SAFETENSORS, DTYPES[kind], tokens, shape[0])


def _open_headerless(path: Path, size: int) -> TokenFile:
    if size == 0 or size % 2:
        raise DataError(f"{path}: truncated or damaged: {size} bytes are not a whole number of uint16 tokens")
    return TokenFile(path, NANOGPT, "uint16", np.memmap(path, dtype="<u2", mode="r"), size // 2)
