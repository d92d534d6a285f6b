"""What a file is that holds no token ids: named by its first bytes, so that a message can say it.

Standard library only. It must not know the kinds of token files.

Example: `what_it_is(b"PK\\x03\\x04...", 4096).what` -> "is a zip archive, such as torch.save or np.savez writes"
"""

from __future__ import annotations

import codecs
import re
import struct
from typing import NamedTuple


class LayoutError(ValueError):
    """A file that proves no kind of token file, or is damaged. `hint` is what to do about it."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.message, self.hint = message, hint


class Reason(NamedTuple):
    """What is found, as the end of a sentence that begins with the file's name, and what to do about it."""

    what: str
    cure: str


PREPARE = "make token files of text with: gptctl data prepare"
AGAIN = "download it again"
POINTER = "fetch the content: git lfs pull, or download the file from its page"
LOGIN = "open the address in a browser: it may want a login, or be a page about the file"
EXPORT = "save the ids as one row: np.save('train.npy', ids.astype('<u2'))"

MAGICS: tuple[tuple[bytes, Reason], ...] = (
    (b"version https://git-lfs", Reason("is a pointer of Git LFS, not the file itself", POINTER)),
    (b"/annex/objects/", Reason("is a pointer of git-annex, not the file itself", "git annex get it")),
    (b"PK\x03\x04", Reason("is a zip archive, such as torch.save or np.savez writes", EXPORT)),
    (b"\x1f\x8b", Reason("is compressed with gzip", "gunzip it first")),
    (b"\x28\xb5\x2f\xfd", Reason("is compressed with zstd", "unzstd it first")),
    (b"\xfd7zXZ\x00", Reason("is compressed with xz", "unxz it first")),
    (b"BZh", Reason("is compressed with bzip2", "bunzip2 it first")),
    (b"PAR1", Reason("is a Parquet file: text, not tokens", PREPARE)),
    (b"ARROW1", Reason("is an Arrow file: text, not tokens", "save it as Parquet, then: gptctl data prepare")),
    (b"GGUF", Reason("is a GGUF file: the weights of a model, not tokens", "name the data, not a model")),
    (b"SQLite format 3\x00", Reason("is an SQLite database", PREPARE)),
    (
        b"MMIDIDX",
        Reason("is the index of a Megatron data set; the ids are in the .bin file beside it", "name that file"),
    ),
    (b"\x89HDF\r\n", Reason("is an HDF5 file", EXPORT)),
    (b"\x80\x02", Reason("is a Python pickle", EXPORT)),
    (b"\x80\x03", Reason("is a Python pickle", EXPORT)),
    (b"\x80\x04", Reason("is a Python pickle", EXPORT)),
    (b"\x80\x05", Reason("is a Python pickle", EXPORT)),
    (b"\x7fELF", Reason("is a program", PREPARE)),
    (b"%PDF-", Reason("is a PDF", PREPARE)),
)
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
"""Characters that text does not have; the halves of ids are often one of them."""
LLM_C_FILES = {
    20240326: "a model's checkpoint",
    20240327: "a debugging state",
    20240328: "a tokenizer",
    20240522: "an evaluation such as HellaSwag",
    20240527: "an optimizer's state",
}
FEWEST_TEXT_BYTES = 32


def what_it_is(head: bytes, size_bytes: int) -> Reason | None:
    """The file's kind by its first bytes; None where nothing speaks against bare token ids."""
    for magic, reason in MAGICS:
        if head.startswith(magic):
            # Two bytes are what any file may begin with: a pickle also ends with a full stop, which is not here to see.
            return reason if len(magic) > 2 or _is_compressed_or_pickled(head) else None
    return _text(head) or _llm_c(head) or _records(head, size_bytes)


def _is_compressed_or_pickled(head: bytes) -> bool:
    if head.startswith(b"\x1f\x8b"):
        return len(head) > 9 and head[2] == 8 and head[3] < 32 and head[9] in (0, 3, 7, 11, 255)
    return head[2:3] in (b"\x95", b"c", b"}", b"]", b"(", b"\x8a", b"\x8c")


def _text(head: bytes) -> Reason | None:
    """Text of any kind: ids of real data have bytes that no text has."""
    start = head[:4096].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if start.startswith((b"<!doctype", b"<html", b"<head")):
        return Reason("is a web page", LOGIN)
    if start.startswith((b"<?xml", b"<error")):
        return Reason("is an XML document, such as a store's message of refusal", LOGIN)
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(head)  # the last character may be cut in two
    except UnicodeDecodeError:
        return None
    if len(head) < FEWEST_TEXT_BYTES or CONTROL.search(text):
        return None
    if start.startswith((b"{", b"[")):
        return Reason("is JSON: text, not tokens", PREPARE)
    return Reason("is text, not tokens", PREPARE)


def _llm_c(head: bytes) -> Reason | None:
    """A file of llm.c's family: its magic numbers are dates, and a small version follows."""
    if len(head) < 12:
        return None
    for order, words in (("<", "little"), (">", "big")):
        magic, version = struct.unpack(f"{order}2i", head[:8])
        dated = 2020 <= magic // 10_000 <= 2039 and 1 <= magic // 100 % 100 <= 12 and 1 <= magic % 100 <= 31
        if dated and 0 <= version <= 100:
            what = LLM_C_FILES.get(magic, "a kind that gptctl does not know")
            if words == "big":
                return Reason(f"is a big-endian file of llm.c's kind (magic {magic})", "swap its bytes first")
            return Reason(f"is a file of llm.c's kind, but not token ids: magic {magic}, {what}", "name a data shard")
    return None


def _records(head: bytes, size_bytes: int) -> Reason | None:
    """A shard of MDS or LitData: a count, then the offsets of so many records and the end of the last."""
    if len(head) < 12:
        return None
    count, first = struct.unpack("<2I", head[:8])
    if count >= 1 and first == 4 * (count + 2) and first <= size_bytes:
        return Reason("is a shard of LitData or MosaicML Streaming (MDS), which holds records", EXPORT)
    return None
