"""Where the token ids are in a file, proven from a few of its bytes; a file that proves no kind is refused by name.

Standard library only: `gptctl plan` proves a file that is far away by three ranges of bytes, and the trainer proves the
same file by the same rule. Content decides; only a headerless file must be called *.bin, or be vouched for by `dtype`.
It must not read whole files.

Example::

    layout = layout_of("train.bin", size_bytes, read, vocab_size=50257)     # read(start, size_bytes) -> bytes
    layout.kind, layout.dtype, layout.tokens, layout.data_start             # llmc, uint16, 100000000, 1024
"""

from __future__ import annotations

import ast
import json
import re
import struct
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from trainer.layout import headerless, not_tokens
from trainer.layout.not_tokens import LayoutError

SAFETENSORS, LLM_C, NUMPY, HEADERLESS = "safetensors", "llmc", "npy", "nanogpt"
SUFFIXES = (".safetensors", ".bin", ".npy")
LLM_C_HEADER_BYTES = 1024
LLM_C_SHARDS = {(20240520, 1): "uint16", (20240801, 7): "uint32"}
"""Magic and version of llm.c's shards, and the type of their ids: GPT-2's, and Llama 3's."""
WIDTHS = {"uint16": 2, "uint32": 4, "int32": 4, "int64": 8}
"""Bytes of an id."""
TENSOR_TYPES = {"U16": "uint16", "U32": "uint32", "I32": "int32", "I64": "int64"}
NUMPY_TYPES = {"<u2": "uint16", "<u4": "uint32", "<i4": "int32", "<i8": "int64"}
NUMPY_MAGIC = b"\x93NUMPY"
NUMPY_SHAPE = re.compile(r"\((\d+),\)")
CODES = {"uint16": "H", "uint32": "I", "int32": "i", "int64": "q"}
LONGEST_HEADER_BYTES = 4 << 20
"""Of one file: token files have a few hundred bytes, and a machine gets the header as a literal part."""
PROOF_BYTES = 4096
"""Each of the three samples: at the beginning, in the middle, at the end."""
CUT = {"gptctl": "part of a token file"}
"""Metadata of a file that gptctl made of a part of a proven one: its gaps hold ids beyond every vocabulary."""
EXAMPLES = {"gptctl": "examples"}
"""Metadata of rows of examples: of an id that the loss counts they hold the complement, which is negative."""

Read = Callable[[int, int], bytes]
"""read(start, size_bytes): so many bytes from there, fewer at the file's end."""


@dataclass(frozen=True)
class Layout:
    """The ids are `tokens` little-endian integers of `dtype` from byte data_start on."""

    name: str
    kind: str
    dtype: str
    tokens: int
    data_start: int
    header: bytes = field(default=b"", repr=False)
    """The file's first bytes up to the tokens; fewer where other tensors stand between."""
    is_cut: bool = False
    examples: bool = False

    @property
    def width(self) -> int:
        """Bytes of one id."""
        return WIDTHS[self.dtype]

    @property
    def end(self) -> int:
        """The byte after the last id."""
        return self.data_start + self.tokens * self.width


def layout_of(
    name: str, size_bytes: int, read: Read, vocab_size: int | None = None, dtype: str | None = None
) -> Layout:
    """The proven layout. `dtype`: you vouch that a file without a known header is headerless with ids of this type.

    Raises LayoutError for a file that is damaged, empty, of another kind, or whose sampled ids are beyond vocab_size.
    """
    head = read(0, PROOF_BYTES)
    layout = _by_header(name, size_bytes, head, read) or _bare(name, size_bytes, dtype)
    if layout.tokens == 0:
        raise LayoutError(f"{name} holds no tokens", "prepare the dataset again")
    unproven = layout.kind == HEADERLESS and dtype is None
    if unproven or (vocab_size is not None and not layout.is_cut and not layout.examples):
        samples = _samples(layout, head, read)
        if unproven and (doubt := headerless.doubt(size_bytes, head, [each.raw for each in samples], vocab_size)):
            raise LayoutError(f"{name} {doubt.what}", doubt.cure)
        _check_ids(layout, samples, vocab_size)
    return layout


def cut_header(dtype: str, tokens: int) -> bytes:
    """The first bytes of a file with this part of a proven one; so many ids follow. A safetensors header."""
    return safetensors_header(dtype, tokens, CUT)


def safetensors_header(dtype: str, tokens: int, metadata: Mapping[str, str] | None = None) -> bytes:
    """The bytes before the ids of a safetensors file with one tensor `tokens`."""
    code = next(code for code, name in TENSOR_TYPES.items() if name == dtype)
    tensor = {"dtype": code, "shape": [tokens], "data_offsets": [0, tokens * WIDTHS[dtype]]}
    described: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    text = json.dumps({**described, "tokens": tensor}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the safetensors library aligns the data to eight bytes
    return struct.pack("<Q", len(text)) + text


def llm_c_header(tokens: int) -> bytes:
    """The bytes before the ids of an llm.c shard of 16-bit ids."""
    return struct.pack("<3i", 20240520, 1, tokens).ljust(LLM_C_HEADER_BYTES, b"\0")


def _by_header(name: str, size_bytes: int, head: bytes, read: Read) -> Layout | None:
    """The layout that a known header states; None without a known header."""
    if len(head) >= 8 and struct.unpack("<i", head[:4])[0] in {magic for magic, _ in LLM_C_SHARDS}:
        return _llm_c(name, size_bytes, head)
    if head.startswith(NUMPY_MAGIC):
        return _numpy(name, size_bytes, head)
    if (length := _json_bytes(size_bytes, head)) is not None:
        whole = head[: 8 + length] if 8 + length <= len(head) else head + read(len(head), 8 + length - len(head))
        found = _safetensors(name, size_bytes, whole, length)
        if found is not None or name.endswith(".safetensors"):
            return found or _refuse_safetensors(name)
    if reason := not_tokens.what_it_is(head, size_bytes):
        raise LayoutError(f"{name} {reason.what}", reason.cure)
    return _refuse_safetensors(name) if name.endswith(".safetensors") else None


def _refuse_safetensors(name: str) -> Layout:
    raise LayoutError(f"{name} is not a safetensors file", "check that the download is complete")


def _llm_c(name: str, size_bytes: int, head: bytes) -> Layout:
    magic, version, tokens = struct.unpack("<3i", head[:12].ljust(12, b"\0"))
    dtype = LLM_C_SHARDS.get((magic, version))
    if dtype is None:
        known = " and ".join(f"{known} (magic {magic}, {kind})" for (magic, known), kind in LLM_C_SHARDS.items())
        raise LayoutError(
            f"{name} is an llm.c shard of version {version} (magic {magic}); gptctl reads version {known}",
            "write it again with the data scripts of llm.c, or prepare the text with gptctl data prepare",
        )
    expected = LLM_C_HEADER_BYTES + WIDTHS[dtype] * tokens
    if tokens < 0 or size_bytes != expected:
        raise LayoutError(
            f"{name} is truncated or damaged: its header states {tokens} tokens of {dtype}, which make {expected} "
            f"bytes, but it has {size_bytes} bytes",
            "copy it again",
        )
    return Layout(name, LLM_C, dtype, tokens, LLM_C_HEADER_BYTES, head[:LLM_C_HEADER_BYTES])


def _numpy(name: str, size_bytes: int, head: bytes) -> Layout:
    """NumPy's .npy: magic, two bytes of version, the length of a Python literal (two bytes, from version 2 on four)."""
    wide = head[6:7] != b"\x01"
    start = 12 if wide else 10
    length = int.from_bytes(head[8:start], "little")
    try:
        described = ast.literal_eval(head[start : start + length].decode("latin-1").strip())
        descr, shape = described["descr"], described["shape"]
    except (ValueError, SyntaxError, KeyError, TypeError, MemoryError, RecursionError) as error:
        raise LayoutError(f"{name} has a damaged NumPy header", "copy it again") from error
    dtype = NUMPY_TYPES.get(descr) if isinstance(descr, str) else None
    if dtype is None or not isinstance(shape, tuple) or len(shape) != 1 or not isinstance(shape[0], int):
        raise LayoutError(
            f"{name} is a NumPy array of {descr} and shape {shape}; token ids are one row of uint16, uint32, int32 or "
            "int64, little-endian",
            "np.save('train.npy', ids.reshape(-1).astype('<u2'))",
        )
    tokens, data_start = shape[0], start + length
    if tokens < 0 or size_bytes != data_start + tokens * WIDTHS[dtype]:
        raise LayoutError(
            f"{name} is truncated or damaged: its header states {tokens} ids of {dtype}, but it has {size_bytes} bytes",
            "copy it again",
        )
    return Layout(name, NUMPY, dtype, tokens, data_start, head[:data_start])


def _json_bytes(size_bytes: int, head: bytes) -> int | None:
    """The length of a safetensors header, if these may be its first bytes."""
    if len(head) < 10 or head[8:9] != b"{":
        return None
    (length,) = struct.unpack("<Q", head[:8])
    return int(length) if 2 <= length <= min(size_bytes - 8, LONGEST_HEADER_BYTES) else None


def _safetensors(name: str, size_bytes: int, head: bytes, length: int) -> Layout | None:
    """None where the header is not JSON: any file may have `{` as its ninth byte."""
    try:
        tensors = json.loads(head[8 : 8 + length])
    except ValueError:
        return None
    if not isinstance(tensors, dict):
        return None
    metadata = tensors.pop("__metadata__", None)
    tensor = tensors.get("tokens")
    if tensor is None:
        names = ", ".join(list(tensors)[:5]) or "nothing"
        raise LayoutError(
            f"{name} has no tensor named tokens, only {names}", "see docs/reference/trainer.md for the formats"
        )
    try:
        dtype, (start, stop) = TENSOR_TYPES[tensor["dtype"]], tensor["data_offsets"]
        tokens = (stop - start) // WIDTHS[dtype]
        end = max(each["data_offsets"][1] for each in tensors.values())
        if list(tensor["shape"]) != [tokens] or start < 0 or tokens * WIDTHS[dtype] != stop - start:
            raise ValueError
    except (ValueError, KeyError, TypeError) as error:
        found = f"{tensor.get('dtype')} of shape {tensor.get('shape')}" if isinstance(tensor, dict) else repr(tensor)
        raise LayoutError(
            f"{name}: tokens must be a 1-D tensor of uint16, uint32, int32 or int64, found {found}",
            "see docs/reference/trainer.md for the formats",
        ) from error
    if size_bytes != 8 + length + end:
        raise LayoutError(
            f"{name} is truncated or damaged: it has {size_bytes} bytes where its header needs {8 + length + end}",
            "copy it again",
        )
    marks = {"is_cut": metadata == CUT, "examples": metadata == EXAMPLES}
    return Layout(name, SAFETENSORS, dtype, tokens, 8 + length + start, head[: 8 + length], **marks)


def _bare(name: str, size_bytes: int, dtype: str | None) -> Layout:
    """The layout of a file without a header; whether it is one is for `headerless.doubt` to say."""
    if dtype is None and not name.endswith(".bin"):
        raise LayoutError(
            f"{name} is neither safetensors, an llm.c shard nor a NumPy array, and headerless files are called *.bin",
            'if it holds bare ids, set data.dtype = "uint16" or "uint32"',
        )
    kind = dtype or "uint16"
    if size_bytes == 0 or size_bytes % WIDTHS[kind]:
        raise LayoutError(
            f"{name} is truncated or damaged: {size_bytes} bytes are not a whole number of {kind} tokens",
            "copy it again",
        )
    return Layout(name, HEADERLESS, kind, size_bytes // WIDTHS[kind], 0)


class _Sample(NamedTuple):
    """Some ids as bytes, from token `first` on."""

    first: int
    raw: bytes


def _samples(layout: Layout, head: bytes, read: Read) -> list[_Sample]:
    """The ids at the beginning, in the middle and at the end; of a small file all of them, once."""
    width, size_bytes = layout.width, layout.tokens * layout.width
    if size_bytes <= 3 * PROOF_BYTES:
        places = [(0, size_bytes)]
    else:
        middle = size_bytes // 2 // width * width
        places = [(0, PROOF_BYTES), (middle, PROOF_BYTES), (size_bytes - PROOF_BYTES, PROOF_BYTES)]
    found = []
    for start, count in places:
        at = layout.data_start + start
        raw = head[at : at + count] if at + count <= len(head) else read(at, count)
        if len(raw) != count:
            raise LayoutError(f"{layout.name} is shorter than it was listed", "copy it again")
        found.append(_Sample(start // width, raw))
    return found


def _check_ids(layout: Layout, samples: Sequence[_Sample], vocab_size: int | None) -> None:
    """Raises LayoutError for a sampled id that the vocabulary does not have."""
    for sample in samples if vocab_size is not None else ():
        ids = array(CODES[layout.dtype], sample.raw)
        wrong = next((at for at, value in enumerate(ids) if not 0 <= value < (vocab_size or 0)), None)
        if wrong is not None:
            raise LayoutError(
                f"{layout.name}: token {sample.first + wrong} has id {ids[wrong]}, but the vocabulary has "
                f"{vocab_size} ids: the file was made with another tokenizer, or is damaged",
                "set model.vocab_size to that of the file's tokenizer, or prepare the text again",
            )
