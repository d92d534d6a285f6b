"""Whether a file without a header holds 16-bit token ids: what speaks against it, by statistics of samples.

nanoGPT's files have nothing that says what they are, and any bytes read as some ids. So they must look like ids: of the
vocabulary, not halves of wider numbers, not swapped, not one byte each, not floating-point numbers. Standard library
only. It must not read files.

Example: `doubt(80_000, head, samples, 50257).what` -> "holds 32-bit numbers, not 16-bit ids"
"""

from __future__ import annotations

import math
import struct
from array import array
from collections import Counter
from collections.abc import Sequence

from trainer.layout.not_tokens import Reason

FEWEST = 8
"""Fewer ids prove nothing by their halves."""
MANY = 1024
"""From so many ids on, the two bytes of an id are compared as distributions."""
WIDE_HALF = 3
"""The upper half of a 32-bit id is at most this: no tokenizer has more than 262,144 ids."""
NEARLY_ALL = 0.99
HEADER_BYTES = frozenset({4, 8, 12, 16, 20, 24, 28, 32, 64, 128, 256, 512, 1024, 2048, 4096})
STATED_BYTES = 64
FEWEST_STATED_BYTES = 4096
"""In a smaller file, a small id may equal the count of the others by chance."""
VOUCH = 'if it holds 16-bit ids without a header, set data.dtype = "uint16"'
WIDE = 'set data.dtype = "uint32" if it is headerless 32-bit ids'
SWAPPED = "swap them: np.fromfile(path, '>u2').astype('<u2').tofile(path)"


def doubt(size_bytes: int, head: bytes, samples: Sequence[bytes], vocab_size: int | None) -> Reason | None:
    """Why these are not little-endian 16-bit ids; None where nothing speaks against it."""
    ids = array("H", b"".join(samples))
    if len(ids) >= FEWEST and not any(ids):
        return Reason("holds nothing but zeros: it was never written", VOUCH)
    return (
        _stated_count(size_bytes, head)
        or _padded_header(head)
        or _wide(ids)
        or _bytes_or_swapped(ids, vocab_size)
        or _floats(ids)
    )


def _stated_count(size_bytes: int, head: bytes) -> Reason | None:
    """A number in the first bytes that is the count of what follows a header of a usual length."""
    if size_bytes < FEWEST_STATED_BYTES:
        return None
    for at in range(0, min(STATED_BYTES, len(head) - 8), 4):
        for form in ("<i", ">i", "<q", ">q"):
            (stated,) = struct.unpack_from(form, head, at)
            for width in (1, 2, 4, 8):
                rest = size_bytes - stated * width
                if stated > 0 and rest in HEADER_BYTES and rest > at:
                    return Reason(
                        f"has a header that gptctl does not know: it states {stated} at byte {at}, "
                        f"which are the {width}-byte numbers after {rest} bytes",
                        "cut the header off, or save the ids with np.save",
                    )
    return None


def _padded_header(head: bytes) -> Reason | None:
    if len(head) > 256 and not any(head[64:256]) and any(head[256:]):
        return Reason("has a header that gptctl does not know, filled up with zeros", "save the ids with np.save")
    return None


def _wide(ids: array[int]) -> Reason | None:
    """32-bit ids have an upper half of 0 or nearly; 64-bit ones three of them."""
    if len(ids) < FEWEST:
        return None
    even, odd = ids[0::2], ids[1::2]
    if _share(odd) >= NEARLY_ALL and (_share(even) < 0.9 or not any(odd)):
        bits = 64 if not any(odd) and not any(ids[2::4]) else 32
        cure = WIDE if bits == 32 else "save the ids with np.save, or as uint16"
        return Reason(f"holds {bits}-bit numbers, not 16-bit ids: every other 16-bit word is 0 or nearly", cure)
    if _share(even, 256) >= NEARLY_ALL and (_share(odd, 256) < 0.9 or not any(even)):
        return Reason("holds big-endian 32-bit numbers", "save the ids with np.save, as '<u4'")
    return None


def _share(words: array[int], unit: int = 1) -> float:
    """The share of words that could be the upper half of a wide id."""
    small = frozenset(unit * value for value in range(WIDE_HALF + 1))
    return sum(word in small for word in words) / max(1, len(words))


def _bytes_or_swapped(ids: array[int], vocab_size: int | None) -> Reason | None:
    swapped = array("H", ids)
    swapped.byteswap()
    if vocab_size is not None and max(ids) >= vocab_size > max(swapped) and len(ids) >= FEWEST:
        return Reason("has its bytes swapped (big-endian): only then are its ids in the vocabulary", SWAPPED)
    if len(ids) < MANY:
        return None
    low, high = Counter(value & 0xFF for value in ids), Counter(value >> 8 for value in ids)
    if _bits(low) + 1 < _bits(high):
        return Reason(
            "has its bytes swapped (big-endian): the first byte of a word varies less than the second", SWAPPED
        )
    apart = sum(abs(low[value] - high[value]) for value in range(256)) / (2 * len(ids))
    if apart < 0.15 and max(len(low), len(high)) < 200:
        return Reason(
            "holds one byte per id, not two: both bytes of a word are distributed alike", "save them as uint16"
        )
    return None


def _bits(counts: Counter[int]) -> float:
    """The entropy of a distribution, in bits."""
    total = counts.total()
    return -sum(count / total * math.log2(count / total) for count in counts.values())


def _floats(ids: array[int]) -> Reason | None:
    """16-bit floating-point numbers below 2 of both signs: nothing between 0x4000 and 0x8000, much above."""
    if len(ids) < MANY:
        return None
    negative = sum(value >= 0x8000 for value in ids) / len(ids)
    large = sum(0x4000 <= value < 0x8000 for value in ids) / len(ids)
    if negative > 0.25 and large < 0.01:
        return Reason(
            "holds floating-point numbers, such as the weights of a model, not ids", "name the data, not a model"
        )
    return None
