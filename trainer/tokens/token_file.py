"""Token files of every kind, read: opened by the layout that their bytes prove, and mapped into memory.

Which bytes are ids is `trainer/layout`'s to say, here as on the computer that planned the run. It must not write, and
must not know what a run does with the ids; `token_writers.py` writes.

Example::

    file = open_token_file(Path("train.safetensors"), vocab_size=50257)
    file.kind, file.dtype, file.count, file.read(0, 1000)         # uint16, 1,000 ids
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.layout.not_tokens import LayoutError
from trainer.layout.token_layout import HEADERLESS, LLM_C, SAFETENSORS, layout_of

KINDS = (SAFETENSORS, LLM_C, HEADERLESS)
"""What gptctl writes; it reads NumPy's .npy too."""
SUFFIXES = {SAFETENSORS: ".safetensors", LLM_C: ".bin", HEADERLESS: ".bin"}

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
    examples: bool = False
    """Rows of examples, where a negative number is an id that the loss counts."""
    is_cut: bool = False

    def read(self, start: int, count: int) -> StoredIds:
        """The stored ids start .. start + count; fewer at the end of the file."""
        ids: StoredIds = np.asarray(self.tokens[start : min(start + count, self.count)])
        return ids


def open_token_file(path: Path, vocab_size: int | None = None, dtype: str | None = None) -> TokenFile:
    """Proves the layout and maps the ids. `dtype`: that of a headerless file for which you vouch. Raises DataError for
    a file that proves no kind, is damaged, or has sampled ids beyond vocab_size."""
    try:
        with path.open("rb") as file:

            def read(start: int, size_bytes: int) -> bytes:
                file.seek(start)
                return file.read(size_bytes)

            layout = layout_of(str(path), path.stat().st_size, read, vocab_size, dtype)
        stored = np.dtype(layout.dtype).newbyteorder("<")
        ids = np.memmap(path, dtype=stored, mode="r", offset=layout.data_start, shape=(layout.tokens,))
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    except LayoutError as error:
        raise DataError(f"{error.message}; {error.hint}") from error
    return TokenFile(path, layout.kind, layout.dtype, ids, layout.tokens, layout.examples, layout.is_cut)
