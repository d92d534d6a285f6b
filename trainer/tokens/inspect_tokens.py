"""`python -m trainer.tokens.inspect_tokens`: what is in token files of any kind, and what is wrong with them.

Reads every id once, in constant memory, and prints one JSON line at the end: counts, type, the beginning as text, how
often ids occur, and problems in words. It exits 0 where it finds problems. It changes nothing.

Example::

    python -m trainer.tokens.inspect_tokens data/train.bin --tokenizer gpt2
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict

import numpy as np
import numpy.typing as npt
import tiktoken

from trainer.progress import ByteProgress, print_event
from trainer.tokens.digests import DatasetJson
from trainer.tokens.folder import NoDatasetError, TokenDataset, find_dataset
from trainer.tokens.token_file import DataError, TokenFile, open_token_file
from trainer.tokens.tokenizer import TokenizerError, decode, open_tokenizer

CHUNK_TOKENS = 4 * 2**20
HEAD_TOKENS = 64
MOST_FREQUENT = 10
BINS = 16
LARGEST_ID = 2**20
"""Larger ids are a problem and are not counted one by one: damage may look like four billion."""
HOLE_TOKENS = 4096
"""This many zeros in a row, at a multiple of it, are a hole that was never written."""


IdRange = TypedDict("IdRange", {"from": int, "to": int, "count": int, "share": float})
"""How many ids lie between two, both included, and their share of all tokens."""


class FrequentId(TypedDict):
    """One id: how often it occurs, its share of all tokens, and its text where the tokenizer is known."""

    id: int
    count: int
    share: float
    text: str | None


class FileFacts(TypedDict, total=False):
    """What is in one file, and its problems in words."""

    name: str
    size_bytes: int
    format: str | None
    dtype: str | None
    tokens: int | None
    min_id: int | None
    max_id: int | None
    problems: list[str]


class Head(TypedDict):
    """The first tokens of the dataset."""

    ids: list[int]
    text: str | None


class DatasetFacts(TypedDict):
    """What is in all files together."""

    path: str
    format: str | None
    dtype: str | None
    tokenizer: str | None
    vocab_size: int | None
    tokens: int
    documents: int | None
    min_id: int | None
    max_id: int | None
    distinct_ids: int
    histogram: list[IdRange]
    most_frequent: list[FrequentId]
    head: Head
    files: list[FileFacts]
    problems: list[str]


@dataclass
class Tally:
    """Counts and extremes of the ids of one or several files."""

    counts: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    tokens: int = 0
    beyond: int = 0
    smallest: int | None = None
    largest: int | None = None

    def add(self, ids: npt.NDArray[np.int64]) -> None:
        """Counts one more chunk."""
        low, high = int(ids.min()), int(ids.max())
        self.smallest = low if self.smallest is None else min(self.smallest, low)
        self.largest = high if self.largest is None else max(self.largest, high)
        known = ids[(ids >= 0) & (ids < LARGEST_ID)] if low < 0 or high >= LARGEST_ID else ids
        counts = np.bincount(known, minlength=len(self.counts))
        counts[: len(self.counts)] += self.counts
        self.counts = counts
        self.tokens += len(ids)
        self.beyond += len(ids) - len(known)


def inspect(
    dataset: TokenDataset, tokenizer: str | None, head_tokens: int = HEAD_TOKENS, dtype: str | None = None
) -> DatasetFacts:
    """The facts of the dataset. Raises TokenizerError where `tokenizer` cannot be opened."""
    encoding_name = tokenizer or dataset.tokenizer
    encoding, problems = _encoding(encoding_name, required=tokenizer is not None)
    vocab_size = encoding.n_vocab if encoding else dataset.about.get("vocab_size")
    tally, files, head = Tally(), [], np.zeros(0, np.int64)
    progress = ByteProgress(sum(path.stat().st_size for path in dataset.files))
    done_bytes = 0
    for path in dataset.files:
        facts, file = _inspect_file((path, dtype), vocab_size, tally, progress.report_file(done_bytes))
        done_bytes += path.stat().st_size
        if file is not None and not len(head):
            head = file.read(0, head_tokens).astype(np.int64)
        facts["problems"] += _compare_with_dataset_json(path.name, facts, dataset.about)
        problems += [f"{path.name}: {problem}" for problem in facts["problems"]]
        files.append(facts)
    missing = sorted(set(dataset.about.get("files", {})) - {path.name for path in dataset.files})
    if dataset.path.is_dir():
        problems += [f"{name} is in dataset.json and missing" for name in missing]
    ends = dataset.about.get("separator", {}).get("ids") or ([encoding.eot_token] if encoding else [])
    return {
        "path": str(dataset.path),
        "format": _common_value([file["format"] for file in files]),
        "dtype": _common_value([file["dtype"] for file in files]),
        "tokenizer": encoding_name,
        "vocab_size": vocab_size,
        "tokens": tally.tokens,
        "documents": int(tally.counts[ends[0]]) if ends and ends[0] < len(tally.counts) else None,
        "min_id": tally.smallest,
        "max_id": tally.largest,
        "distinct_ids": int(np.count_nonzero(tally.counts)),
        "histogram": _histogram(tally, vocab_size),
        "most_frequent": _most_frequent(tally, encoding),
        "head": {"ids": head.tolist(), "text": decode(encoding, head.tolist()) if encoding else None},
        "files": files,
        "problems": problems,
    }


def _inspect_file(
    named: tuple[Path, str | None], vocab_size: int | None, tally: Tally, report: Callable[[int], None]
) -> tuple[FileFacts, TokenFile | None]:
    """One file's facts; adds its ids to the tally. No TokenFile where it cannot be read. `named`: path, and the type of
    its ids where you vouch for it."""
    path, dtype = named
    facts: FileFacts = {"name": path.name, "size_bytes": path.stat().st_size, "format": None, "dtype": None}
    try:
        file = open_token_file(path, dtype=dtype)
    except DataError as error:
        return {
            **facts,
            "tokens": None,
            "problems": [str(error).removeprefix(str(path)).lstrip(": ").removeprefix("is ")],
        }, None
    own = Tally()
    problems: list[str] = [] if file.count else ["has no tokens"]
    for start, ids in _chunks(file):
        own.add(ids)
        tally.add(ids)
        problems += _wrong_ids(ids, start, vocab_size) + _holes(ids, start)
        report(start * np.dtype(file.dtype).itemsize)
    facts |= {"format": file.kind, "dtype": file.dtype, "tokens": file.count}
    return {**facts, "min_id": own.smallest, "max_id": own.largest, "problems": _first_few(problems)}, file


def _chunks(file: TokenFile) -> Iterator[tuple[int, npt.NDArray[np.int64]]]:
    for start in range(0, file.count, CHUNK_TOKENS):
        yield start, file.read(start, CHUNK_TOKENS).astype(np.int64)


def _wrong_ids(ids: npt.NDArray[np.int64], start: int, vocab_size: int | None) -> list[str]:
    limit = LARGEST_ID if vocab_size is None else vocab_size
    wrong = (ids < 0) | (ids >= limit)
    if not wrong.any():
        return []
    at = int(np.argmax(wrong))
    than = f"the vocabulary has {limit} ids" if vocab_size is not None else "no tokenizer is that large"
    return [f"token {start + at} has id {ids[at]}, but {than}"]


def _holes(ids: npt.NDArray[np.int64], start: int) -> list[str]:
    whole = len(ids) // HOLE_TOKENS * HOLE_TOKENS
    empty = ~ids[:whole].reshape(-1, HOLE_TOKENS).any(axis=1)
    if not empty.any():
        return []
    return [f"{HOLE_TOKENS} zeros in a row from token {start + int(np.argmax(empty)) * HOLE_TOKENS}: never written?"]


def _first_few(problems: list[str]) -> list[str]:
    return problems if len(problems) <= 3 else [*problems[:3], f"and {len(problems) - 3} more of these"]


def _compare_with_dataset_json(name: str, facts: FileFacts, about: DatasetJson) -> list[str]:
    entry = about.get("files", {}).get(name)
    if about and entry is None:
        return ["is not in dataset.json"]
    if entry and facts["tokens"] is not None and facts["tokens"] != entry.get("tokens"):
        return [f"has {facts['tokens']} tokens, and dataset.json says {entry.get('tokens')}"]
    return []


def _encoding(name: str | None, *, required: bool) -> tuple[tiktoken.Encoding | None, list[str]]:
    if name is None:
        return None, []
    try:
        return open_tokenizer(name), []
    except TokenizerError as error:
        if required:
            raise
        return None, [f"not decoded: {error}"]


def _common_value(values: Sequence[str | None]) -> str | None:
    return " and ".join(sorted({value for value in values if value})) or None


def _histogram(tally: Tally, vocab_size: int | None) -> list[IdRange]:
    """Equal ranges of ids over the vocabulary, or up to the largest id where that is unknown."""
    size = max(len(tally.counts), vocab_size or 0)
    if not tally.tokens or not size:
        return []
    width = -(-size // BINS)
    sums = np.pad(tally.counts, (0, width * BINS - len(tally.counts))).reshape(BINS, width).sum(axis=1)
    return [
        {"from": at * width, "to": min((at + 1) * width, size) - 1, "count": int(count), "share": count / tally.tokens}
        for at, count in enumerate(sums.tolist()) if at * width < size
    ]  # fmt: skip


def _most_frequent(tally: Tally, encoding: tiktoken.Encoding | None) -> list[FrequentId]:
    order = np.argsort(-tally.counts, kind="stable")[:MOST_FREQUENT]
    return [
        {
            "id": int(token),
            "count": int(tally.counts[token]),
            "share": int(tally.counts[token]) / tally.tokens,
            "text": decode(encoding, [int(token)]) if encoding else None,
        }
        for token in order
        if tally.counts[token]
    ]


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m trainer.tokens.inspect_tokens",
        description="Show what is in token files, and what is wrong with them.",
    )
    parser.add_argument("path", type=Path, help="a token file, or a folder with train* and val*")
    parser.add_argument("--tokenizer", help="bytes or a tiktoken name (default: the one in dataset.json)")
    parser.add_argument("--head", type=int, default=HEAD_TOKENS, help="tokens to show as text (default: 64)")
    parser.add_argument(
        "--dtype", choices=("uint16", "uint32"), help="of headerless files (default: proven 16-bit ids)"
    )
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Runs the program. Returns 0 with one JSON line at the end, or 1 with the reason on stderr."""
    options = _parse(arguments)
    try:
        print_event("inspected", **inspect(find_dataset(options.path), options.tokenizer, options.head, options.dtype))
    except (NoDatasetError, TokenizerError, OSError) as error:
        print(f"inspect: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
