"""Tokenizers by name, as tiktoken encodings. The only importer of tiktoken.

`bytes` is built here (256 byte values and an end-of-text mark, no download); every other name is tiktoken's own, which
downloads its vocabulary once into TIKTOKEN_CACHE_DIR. It must not know where text comes from.

Example::

    encoding = open_tokenizer("bytes")
    ids = encoding.encode_ordinary("import this")       # [105, 109, 112, ...]
    text = decode(encoding, [*ids, encoding.eot_token]) # "import this<|endoftext|>"
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import tiktoken

BYTES = "bytes"
BYTES_ENCODING = "bytes256"
END_OF_TEXT = "<|endoftext|>"


class TokenizerError(ValueError):
    """A tokenizer that does not exist, or whose vocabulary cannot be downloaded."""


def open_tokenizer(name: str) -> tiktoken.Encoding:
    """The encoding of that name. Raises TokenizerError for an unknown name or a failed download."""
    if name == BYTES:
        return tiktoken.Encoding(
            BYTES_ENCODING,
            pat_str=r"(?s).",
            mergeable_ranks={bytes([value]): value for value in range(256)},
            special_tokens={END_OF_TEXT: 256},
        )
    try:
        return tiktoken.get_encoding(name)
    except ValueError as error:
        known = ", ".join([BYTES, *sorted(tiktoken.list_encoding_names())])
        raise TokenizerError(f"no tokenizer is called {name!r}; known: {known}") from error
    except OSError as error:  # requests' network errors are OSErrors
        reason = str(error).partition(" (Caused by")[0]
        raise TokenizerError(
            f"the vocabulary of tokenizer {name!r} could not be downloaded: {reason}. "
            f"Fill TIKTOKEN_CACHE_DIR on a machine with network, or use the tokenizer {BYTES!r}"
        ) from error


def encode(encoding: tiktoken.Encoding, text: str) -> npt.NDArray[np.unsignedinteger]:
    """The ids of a text, with marks as plain text: `encode_ordinary` without building a list."""
    if encoding.name == BYTES_ENCODING:
        return np.frombuffer(text.encode(), np.uint8)  # the ids are the bytes
    return encoding.encode_to_numpy(text, disallowed_special=())


def decode(encoding: tiktoken.Encoding, ids: Iterable[int]) -> str:
    """The text of these ids. Broken UTF-8 and ids unknown to the tokenizer become U+FFFD."""
    pieces: list[str] = []
    known: list[int] = []
    for token in ids:
        if _is_known(encoding, token):
            known.append(token)
        else:
            pieces += [encoding.decode(known), "\ufffd"]
            known = []
    return "".join([*pieces, encoding.decode(known)])


class Pieces:
    """The text of ids that arrive one by one: a character appears once all of its bytes are there."""

    def __init__(self, encoding: tiktoken.Encoding) -> None:
        self.encoding = encoding
        self.decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def add(self, token: int) -> str:
        """The characters that this token completes; an id unknown to the tokenizer is U+FFFD."""
        if not _is_known(self.encoding, token):
            return self.end() + "\ufffd"
        return self.decoder.decode(self.encoding.decode_single_token_bytes(token))

    def end(self) -> str:
        """U+FFFD for a character that was not finished, else nothing."""
        rest = self.decoder.decode(b"", final=True)
        self.decoder.reset()
        return rest


def _is_known(encoding: tiktoken.Encoding, token: int) -> bool:
    try:
        encoding.decode_single_token_bytes(token)
    except (KeyError, OverflowError):  # a damaged file's ids may be negative
        return False
    return True


def token_bytes(encoding: tiktoken.Encoding) -> list[int]:
    """Bytes of text behind each id, 0 for marks such as end-of-text: what bits per byte divides by."""
    marks = {encoding.encode_single_token(mark) for mark in encoding.special_tokens_set}
    unknown = (token for token in range(encoding.n_vocab) if not _is_known(encoding, token))
    silent = marks.union(unknown)
    return [
        0 if token in silent else len(encoding.decode_single_token_bytes(token)) for token in range(encoding.n_vocab)
    ]
