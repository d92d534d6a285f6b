"""`python -m trainer.corpus.overlap`: which documents of one dataset are in another, and how much of it they are.

Documents are compared by their ids (see `fingerprints.py`), so both datasets must be of one tokenizer. Prints one JSON
line at the end. It changes nothing.

Example::

    python -m trainer.corpus.overlap data/train data/test --tokenizer gpt2
    {"event": "compared", "shared_documents": 150, "of_b": {"documents": 1000, ...}, ...}
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TypedDict

import numpy as np

from trainer.corpus.fingerprints import COMPARED_TOKENS, Documents, fingerprints
from trainer.progress import ByteProgress, print_event
from trainer.tokens.folder import NoDatasetError, TokenDataset, find_dataset
from trainer.tokens.token_file import DataError
from trainer.tokens.token_stream import TokenStream
from trainer.tokens.tokenizer import TokenizerError, open_tokenizer

END_IDS = {
    "bytes": 256, "gpt2": 50256, "r50k_base": 50256, "p50k_base": 50256, "cl100k_base": 100257, "o200k_base": 199999,
}  # fmt: skip
"""Ids of the end-of-text mark: opening a tokenizer would download its vocabulary."""


class OverlapError(ValueError):
    """Two datasets that cannot be compared."""


class Share(TypedDict):
    """One dataset: its documents and tokens, and how many of them are in the other one."""

    path: str
    documents: int
    tokens: int
    shared_documents: int
    shared_tokens: int


class Overlap(TypedDict):
    """What two datasets have in common, and how documents were told apart."""

    a: Share
    b: Share
    separator: int
    compared_tokens: int


def overlap(a: TokenDataset, b: TokenDataset, separator: int, part: tuple[int, int] | None = None) -> Overlap:
    """Compares all documents of both, or of b those in `part` (first token, length). Raises DataError, and OverlapError
    where one has no separator in it."""
    first, second = _documents(a, separator, None), _documents(b, separator, part)
    return {
        "a": _share(a, first, second),
        "b": _share(b, second, first),
        "separator": separator,
        "compared_tokens": COMPARED_TOKENS,
    }


def _documents(dataset: TokenDataset, separator: int, part: tuple[int, int] | None) -> Documents:
    stream = TokenStream.open(dataset.files)
    width = np.dtype(stream.shards[0].dtype).itemsize
    progress = ByteProgress(width * (part[1] if part else len(stream)))
    found = fingerprints(stream, separator, part, lambda done: progress.report(done * width))
    if len(found.prints) < 2:
        raise OverlapError(
            f"{dataset.path} is one document: the id {separator}, which parts documents, is not inside it. "
            "Name another tokenizer with --tokenizer, or the id with --separator"
        )
    return found


def _share(dataset: TokenDataset, mine: Documents, other: Documents) -> Share:
    shared = np.isin(mine.prints, other.prints)
    return {
        "path": str(dataset.path),
        "documents": len(mine.prints),
        "tokens": int(mine.lengths.sum()),
        "shared_documents": int(shared.sum()),
        "shared_tokens": int(mine.lengths[shared].sum()),
    }


def separator_of(datasets: list[TokenDataset], tokenizer: str | None) -> int:
    """The id between documents: that of dataset.json, else the tokenizer's end of text. Raises OverlapError."""
    named = {dataset.tokenizer for dataset in datasets if dataset.tokenizer}
    if len(named) > 1:
        raise OverlapError(f"they are of different tokenizers ({' and '.join(sorted(named))}): their ids differ")
    for dataset in datasets:
        if ids := dataset.about.get("separator", {}).get("ids"):
            return ids[0]
    name = tokenizer or next(iter(named), "gpt2")
    return END_IDS[name] if name in END_IDS else open_tokenizer(name).eot_token


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m trainer.corpus.overlap", description="Find the documents that two datasets share."
    )
    parser.add_argument("a", type=Path, help="token files: a file or a folder")
    parser.add_argument("b", type=Path, help="the same, such as the data you test on")
    parser.add_argument("--tokenizer", help="whose end-of-text id parts documents (default: dataset.json's, else gpt2)")
    parser.add_argument("--separator", type=int, help="the id that parts documents")
    parser.add_argument("--slice", metavar="START+TOKENS", help="only this part of B")
    return parser.parse_args(arguments)


def _slice(text: str | None) -> tuple[int, int] | None:
    start, _, tokens = (text or "").replace("_", "").partition("+")
    if text and not (start.isdigit() and tokens.isdigit()):
        raise OverlapError(f"--slice {text}: must be START+TOKENS, such as 50_000_000+19_660_800")
    return (int(start), int(tokens)) if text else None


def main(arguments: list[str] | None = None) -> int:
    """Runs the program. Returns 0 with one JSON line at the end, or 1 with the reason on stderr."""
    options = _parse(arguments)
    try:
        datasets = [find_dataset(options.a), find_dataset(options.b)]
        for dataset in datasets:
            TokenStream.open(dataset.files)  # a file that is not one of tokens is said first
        separator = options.separator
        if separator is None:
            separator = separator_of(datasets, options.tokenizer)
        print_event("compared", **overlap(datasets[0], datasets[1], separator, _slice(options.slice)))
    except (NoDatasetError, DataError, OverlapError, TokenizerError, OSError) as error:
        print(f"overlap: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
