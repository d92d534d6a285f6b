"""Token files as one memory-mapped stream. It must not know about batches, and needs numpy alone.

Example::

    stream = TokenStream.open([Path("train.safetensors")], vocab_size=50257)
    stream.read(1_000_000, 1025)                        # np.ndarray, int64, 1,025 ids
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from trainer.tokens.example_rows import DTYPE as EXAMPLES_DTYPE
from trainer.tokens.token_file import DataError, TokenFile, open_token_file

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class TokenStream:
    """Several shards as one sequence of token ids. Opening reads headers only, whatever their size."""

    shards: tuple[TokenFile, ...]
    starts: tuple[int, ...]
    vocab_size: int | None

    @staticmethod
    def open(files: Sequence[Path], vocab_size: int | None = None, dtype: str | None = None) -> TokenStream:
        """Opens the files in the given order. Reading an id >= vocab_size raises DataError. Raises DataError."""
        if not files:
            raise DataError("no token files given")
        shards = tuple(open_token_file(Path(path), vocab_size, dtype) for path in files)
        starts = tuple(itertools.accumulate((shard.count for shard in shards), initial=0))
        return TokenStream(shards, starts, vocab_size)

    def __len__(self) -> int:
        return self.starts[-1]

    def read(self, start: int, count: int) -> Ids:
        """Ids of the tokens start .. start + count, across shards. Raises DataError outside the stream."""
        if start < 0 or count < 0 or start + count > len(self):
            raise DataError(
                f"tokens {start} to {start + count} are outside {self.shards[0].path}, which has {len(self)}"
            )
        pieces = []
        while count > 0:
            number = bisect.bisect_right(self.starts, start) - 1
            offset = start - self.starts[number]
            take = min(count, self.shards[number].count - offset)
            pieces.append(self._read_from(self.shards[number], offset, take))
            start, count = start + take, count - take
        return np.concatenate(pieces) if pieces else np.empty(0, np.int64)

    def _read_from(self, shard: TokenFile, offset: int, count: int) -> Ids:
        ids: Ids = np.asarray(shard.tokens[offset : offset + count]).astype(np.int64)
        least = -(self.vocab_size or 0) if shard.dtype == EXAMPLES_DTYPE and (shard.examples or shard.is_cut) else 0
        if self.vocab_size is not None and (ids.max() >= self.vocab_size or ids.min() < least):
            at = int(np.argmax((ids >= self.vocab_size) | (ids < 0)))
            raise DataError(
                f"{shard.path}: token {offset + at} has id {ids[at]}, but the vocabulary has {self.vocab_size} ids: "
                "the file was made with another tokenizer, or is damaged"
            )
        return ids
