"""Where the tokens are in a token file, read from its first bytes, and the header of a file that holds a part of them.

Pure. The three kinds are told apart as the trainer does: by magic, then by suffix. The orchestrator reads headers
itself because it must plan without numpy and safetensors, and cut a file it has only seen the first bytes of.

Example::

    layout = layout_of("train.safetensors", size_bytes, head)
    layout.tokens, layout.data_start
    slice_header(layout, 1_000_000)           # then 2 MB of tokens make a valid file
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass, field

from orchestrator.core.errors import UserError

SUFFIXES = (".safetensors", ".bin")
LLM_C_MAGIC = 20240520
LLM_C_HEADER_BYTES = 1024
TOKEN_BYTES = {"U16": 2, "U32": 4, "I32": 4}
MAX_HEADER_BYTES = 100_000_000
"""The safetensors library refuses larger headers too."""
FIRST_BYTES = 1024
"""Enough of the beginning for nearly every file; header_bytes says where it is not."""


@dataclass(frozen=True)
class Layout:
    """`kind` is safetensors, llmc or nanogpt; the tokens are the file's bytes from data_start to its end."""

    name: str
    kind: str
    dtype: str
    tokens: int
    data_start: int
    header: bytes = field(repr=False)
    """The file's first bytes up to the tokens; fewer where other tensors stand between."""

    @property
    def width(self) -> int:
        """Bytes of one token."""
        return TOKEN_BYTES[self.dtype]

    @property
    def size_bytes(self) -> int:
        return self.data_start + self.tokens * self.width


def header_bytes(name: str, head: bytes) -> int:
    """How many first bytes layout_of needs, read from at least 16 of them."""
    if name.endswith(".safetensors"):
        (length,) = struct.unpack("<Q", head[:8].ljust(8, b"\0"))
        # The tokens may follow other tensors; their offset is in the header, which is all that must be here.
        return int(8 + min(length, MAX_HEADER_BYTES))
    return LLM_C_HEADER_BYTES


def layout_of(name: str, size_bytes: int, head: bytes) -> Layout:
    """Raises UserError for a file that is truncated, of an unknown kind, or without tokens."""
    safe = name.endswith(".safetensors")
    layout = _safetensors(name, size_bytes, head) if safe else _bin(name, size_bytes, head)
    if layout.tokens == 0:
        raise UserError(f"data.source: {name} holds no tokens", "prepare the dataset again")
    return layout


def slice_header(layout: Layout, tokens: int) -> bytes:
    """The header of a file of the same kind with so many tokens."""
    if layout.kind == "nanogpt":
        return b""
    if layout.kind == "llmc":
        return layout.header[:8] + struct.pack("<i", tokens) + layout.header[12:]
    described = {"tokens": {"dtype": layout.dtype, "shape": [tokens], "data_offsets": [0, tokens * layout.width]}}
    text = json.dumps(described, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _bin(name: str, size_bytes: int, head: bytes) -> Layout:
    if len(head) >= 12 and struct.unpack("<3i", head[:12])[0] == LLM_C_MAGIC:
        tokens = struct.unpack("<3i", head[:12])[2]
        if size_bytes != LLM_C_HEADER_BYTES + 2 * tokens:
            raise UserError(
                f"data.source: {name} says {tokens} tokens but has {size_bytes} bytes",
                "the file is truncated: copy it again",
            )
        return Layout(name, "llmc", "U16", int(tokens), LLM_C_HEADER_BYTES, head[:LLM_C_HEADER_BYTES])
    if size_bytes % 2:
        raise UserError(f"data.source: {name} has an odd size of {size_bytes} bytes", "uint16 tokens take two bytes")
    return Layout(name, "nanogpt", "U16", size_bytes // 2, 0, b"")


def _safetensors(name: str, size_bytes: int, head: bytes) -> Layout:
    (length,) = struct.unpack("<Q", head[:8].ljust(8, b"\0"))
    if not 0 < length <= min(size_bytes - 8, MAX_HEADER_BYTES):
        raise UserError(f"data.source: {name} is not a safetensors file", "check that the download is complete")
    try:
        tensor = json.loads(head[8 : 8 + length])["tokens"]
        width, (start, stop) = TOKEN_BYTES[tensor["dtype"]], tensor["data_offsets"]
        tokens = int((stop - start) // width)
        if list(tensor["shape"]) != [tokens] or start < 0:
            raise ValueError(f"shape {tensor['shape']} is not that of {tokens} tokens")
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"data.source: {name} has no 1-D `tokens` tensor of uint16, uint32 or int32",
            "see docs/reference/trainer.md for the formats",
        ) from error
    if size_bytes != 8 + length + stop:
        raise UserError(
            f"data.source: {name} has {size_bytes} bytes where its header needs {8 + length + stop}",
            "the file is truncated: copy it again",
        )
    return Layout(name, "safetensors", tensor["dtype"], tokens, 8 + length + start, head[: 8 + length])
