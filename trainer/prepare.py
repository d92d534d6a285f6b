"""`python -m trainer.prepare`: text in, token files out, with a dataset.json that says what they are.

A recipe's `[data.prepare]` table and `gptctl data prepare` become one call of this program. It writes
`train.safetensors` and, where there are documents enough to hold some out, `validation.safetensors` (one 1-D tensor
`tokens` each; numbered shards where they are large), progress as JSON lines on stdout, and dataset.json last: a folder
without it is not prepared. Killed at any moment it goes on, in the same folder, where it was. The same text and request
give the same bytes, whatever the number of workers. It must not need the trainer's configuration.

Example, the quickstart's corpus (the Python standard library's own source files, no download)::

    python -m trainer.prepare --source python-stdlib --tokenizer bytes --to data/python-stdlib
    python -m trainer.prepare --source 'books/*.txt' --tokenizer gpt2 --to data/books --workers 8
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import itertools
import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from trainer.corpus.documents import PYTHON_STDLIB, Place, SourceFile, find_files, read_batches
from trainer.corpus.encode import POLICIES, SKIP, Document, Order, documents, encode_batch
from trainer.corpus.parquet import CorpusError
from trainer.corpus.pool import WorkerLost, ordered
from trainer.corpus.split import Done, Limits, Split, chained
from trainer.corpus.work_folder import Workplace, WorkplaceError
from trainer.progress import ByteProgress, print_event
from trainer.tokens.digests import DATASET, DatasetJson, FileEntry, digest_file
from trainer.tokens.token_file import KINDS, SAFETENSORS, DataError
from trainer.tokens.token_writers import Layout, dtype_for, write_whole
from trainer.tokens.tokenizer import BYTES, END_OF_TEXT, TokenizerError, open_tokenizer
from trainer.training.allocator import return_freed_memory

STDLIB_BYTES = 6_000_000
"""The standard library is cut here: a few megabytes are plenty for a minute's training and are prepared in a second."""
HOLD_OUT_EVERY = 20
"""One document in this many, chosen by its hash, is held out for validation."""
FEWEST_DOCUMENTS_TO_SPLIT = 100
"""With fewer documents all go into the training file, and a run holds out its tail (as the recipe reference says)."""
SHARD_TOKENS = 100_000_000
FEWEST_TOKENS_PER_BYTE = 0.15
"""Of a byte-pair encoding; English prose has about 0.22."""
PARQUET_SUFFIX, GZIP = ".parquet", ".gz"
SMALL_BYTES = 16_000_000
"""Below this much text other processes would take longer to start than to work."""


class PrepareError(ValueError):
    """The request cannot be met: no text, a mark that the tokenizer does not have."""


@dataclass(frozen=True)
class Request:
    """What was asked for; kept in dataset.json, so that the same request on the same text is not done twice."""

    source: str
    """What dataset.json calls it: the path, the glob or the URI that was asked for."""
    tokenizer: str = "gpt2"
    separator: str = END_OF_TEXT
    """Special token after each document; empty: none."""
    documents: int | None = None
    bytes: int | None = None
    column: str = "text"
    """The JSON key or the Parquet column that holds the text."""
    format: str = SAFETENSORS
    shard_tokens: int = SHARD_TOKENS
    hold_out_every: int = HOLD_OUT_EVERY
    """One document in this many is for validation; 0: none."""
    invalid: str = SKIP
    """What happens to a document that is not UTF-8: skip or replace."""
    revision: str | None = None
    """The commit of a source that was downloaded."""


def prepare(request: Request, paths: Sequence[str], to: Path, workers: int = 1) -> DatasetJson:
    """Writes the dataset of these paths into folder `to` and returns the content of its dataset.json.

    Where dataset.json already answers this request, nothing is done. Raises PrepareError, CorpusError, DataError,
    TokenizerError, WorkplaceError, WorkerLost, and OSError for a folder that cannot be written.
    """
    encoding = open_tokenizer(request.tokenizer)
    mark = _separator_id(request)
    layout = Layout(request.format, dtype_for(request.format, encoding.n_vocab), request.shard_tokens)
    files = find_files(paths)
    limits = Limits(request.documents, request.bytes or (STDLIB_BYTES if paths == [PYTHON_STDLIB] else None))
    existing = _existing(to, request, files, limits)
    if existing is not None:
        print_event("unchanged", to=str(to), tokens=existing["tokens"])
        return existing
    if limits == Limits():
        _require_space(to, request, files, layout)
    every = request.hold_out_every if _enough_to_split(files, request) else 0
    order = Order(request.tokenizer, mark, layout.dtype, request.column, every, request.invalid)
    with (
        Workplace(to, {**asdict(request), "every": every}, files) as workplace,
        closing(_open_split(workplace, layout, limits)) as split,
    ):
        _fill(split, workplace, files, order, workers)
        if not split.done.documents:
            workplace.remove()
            raise PrepareError(f"{request.source} holds no text: {split.done.skipped_words()}")
        dataset = _settle(split, workplace, request, order)
    print_event(
        "prepared", to=str(to), tokens=dataset["tokens"], documents=dataset["documents"], files=dataset["files"]
    )
    return dataset


def _require_space(to: Path, request: Request, files: Sequence[SourceFile], layout: Layout) -> None:
    """Refuses before the first byte what cannot end well: even the fewest tokens that text ever makes do not fit."""
    if files[0].path.suffix in (PARQUET_SUFFIX, GZIP):
        return  # nobody knows how much text that is
    each = 1.0 if request.tokenizer == BYTES else FEWEST_TOKENS_PER_BYTE
    needed_bytes = sum(file.size_bytes for file in files) * each * np.dtype(layout.dtype).itemsize
    existing = next(folder for folder in (to.absolute(), *to.absolute().parents) if folder.exists())
    free_bytes = shutil.disk_usage(existing).free
    if needed_bytes > free_bytes:
        raise PrepareError(
            f"{to} needs at least {needed_bytes / 1e9:.3f} GB, and its disk has {free_bytes / 1e9:.3f} GB free"
        )


def _open_split(workplace: Workplace, layout: Layout, limits: Limits) -> Split:
    try:
        split = Split(workplace.folder, layout, limits, workplace.state)
    except OSError:
        workplace.forget()  # somebody removed files of the state
        return Split(workplace.folder, layout, limits, None)
    if workplace.state:
        print_event("resumed", tokens=split.tokens, documents=split.done.documents, shards=split.finished_shards)
    return split


def _fill(split: Split, workplace: Workplace, files: Sequence[SourceFile], order: Order, workers: int) -> None:
    """Everything that is left, tokenised in parallel and written in order; a state is kept at least every few
    seconds and after each shard."""
    if split.done.full:
        return
    total_bytes = sum(file.size_bytes for file in files)
    progress = ByteProgress(total_bytes, split.limits.documents)
    batches = read_batches(files, split.done.place, order.column)
    work = functools.partial(encode_batch, order=order)
    with ordered(work, batches, workers if total_bytes >= SMALL_BYTES else 1) as results:
        for batch, encoded in results:
            split.take(encoded, batch.after)
            workplace.keep(split)
            progress.report(batch.done_bytes, split.done.documents, split.tokens)
            if split.done.full:
                break


def _settle(split: Split, workplace: Workplace, request: Request, order: Order) -> DatasetJson:
    """Puts the shards in their place, then dataset.json: from the first move on the folder is unfinished."""
    workplace.make_room(split)
    dataset = _dataset(request, split.done, split.finish(workplace.to), order)
    write_whole(workplace.to / DATASET, (json.dumps(dataset, indent=1) + "\n").encode())
    workplace.remove()
    return dataset


def _dataset(request: Request, done: Done, files: dict[str, FileEntry], order: Order) -> DatasetJson:
    """The content of dataset.json."""
    return {
        "request": asdict(request),
        "source": request.source,
        "source_sha256": done.source_sha256,
        "tokenizer": request.tokenizer,
        "vocab_size": open_tokenizer(request.tokenizer).n_vocab,
        "format": request.format,
        "dtype": order.dtype,
        "separator": {
            "text": request.separator,
            "ids": [] if order.mark is None else [order.mark],
            "policy": "after",
        },
        "split": {"by": "sha256 of the document", "held_out_every": order.held_out_every},
        "skipped": {"invalid_utf8": done.invalid, "empty": done.empty, "policy": POLICIES[request.invalid]},
        "documents": sum(entry["documents"] for entry in files.values()),
        "tokens": sum(entry["tokens"] for entry in files.values()),
        "files": files,
    }


def _enough_to_split(files: Sequence[SourceFile], request: Request) -> bool:
    """Looks at no more documents than it takes to know."""
    some = itertools.islice(_readable(files, request), FEWEST_DOCUMENTS_TO_SPLIT)
    return sum(1 for _ in some) == FEWEST_DOCUMENTS_TO_SPLIT


def _readable(files: Sequence[SourceFile], request: Request) -> Iterator[Document]:
    """Every document (a large one once), without those that are skipped."""
    for batch in read_batches(files, Place(), request.column):
        found = documents(batch, request.column, request.invalid)
        yield from (each for each in found if each.first and not each.skipped)


def _separator_id(request: Request) -> int | None:
    if not request.separator:
        return None
    encoding = open_tokenizer(request.tokenizer)
    if request.separator not in encoding.special_tokens_set:
        known = ", ".join(sorted(encoding.special_tokens_set))
        raise PrepareError(f"{request.separator!r} is no special token of {request.tokenizer}; known: {known}")
    return encoding.encode_single_token(request.separator)


def _existing(to: Path, request: Request, files: Sequence[SourceFile], limits: Limits) -> DatasetJson | None:
    """The dataset.json that already answers this request: the same text, and every file it lists whole; else None."""
    try:
        dataset: DatasetJson = json.loads((to / DATASET).read_text())
        if dataset["request"] != asdict(request):
            return None
        whole = all(digest_file(to / name)["sha256"] == entry["sha256"] for name, entry in dataset["files"].items())
        same = whole and dataset["source_sha256"] == _source_sha256(files, request, limits)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # absent, torn or foreign: prepare anew
    return dataset if same else None


def _source_sha256(files: Sequence[SourceFile], request: Request, limits: Limits) -> str:
    """What Split makes of the same documents, without tokenising them."""
    known, count, size_bytes = "", 0, 0
    for document in _readable(files, request):
        if not limits.allow(count, size_bytes, document.size_bytes):
            break
        known = chained(known, bytes.fromhex(document.sha256))
        count, size_bytes = count + 1, size_bytes + document.size_bytes
    return known or hashlib.sha256().hexdigest()


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m trainer.prepare", description="Turn text into token files.")
    parser.add_argument(
        "--source", required=True, action="append",
        help=f"{PYTHON_STDLIB}, or a file, a folder or a quoted glob of text, JSON Lines or Parquet; repeatable",
    )  # fmt: skip
    parser.add_argument("--named", help="what dataset.json calls the source (default: as --source says)")
    parser.add_argument("--revision", help="the commit of a source that was downloaded, for dataset.json")
    parser.add_argument("--tokenizer", default="gpt2", help="bytes (no download) or a tiktoken name (default: gpt2)")
    parser.add_argument("--separator", default=END_OF_TEXT, help="special token after each document; '' for none")
    parser.add_argument("--column", default="text", help="JSON key or Parquet column with the text (default: text)")
    parser.add_argument("--documents", type=int, help="stop after this many documents")
    parser.add_argument("--bytes", type=int, help="stop before this many bytes of text")
    parser.add_argument("--format", choices=KINDS, default=SAFETENSORS, help="default: safetensors")
    parser.add_argument("--shard-tokens", type=int, default=SHARD_TOKENS, help="tokens per file (default: 100 million)")
    parser.add_argument(
        "--hold-out-every", type=int, default=HOLD_OUT_EVERY, help="one document in N for validation; 0: none"
    )
    parser.add_argument("--invalid", choices=tuple(POLICIES), default=SKIP, help="documents that are not UTF-8")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (default: all cores)")
    parser.add_argument("--to", type=Path, required=True, help="folder for the token files and dataset.json")
    asked = parser.parse_args(arguments)
    if min(asked.shard_tokens, asked.workers) < 1 or asked.hold_out_every < 0:
        parser.error("--shard-tokens and --workers must be at least 1, --hold-out-every at least 0")
    return asked


def main(arguments: list[str] | None = None) -> int:
    """The program: 0 when the folder holds the dataset, 1 with the reason on stderr."""
    asked = _parse(arguments)
    return_freed_memory()
    request = Request(
        asked.named or " ".join(asked.source), asked.tokenizer, asked.separator, asked.documents, asked.bytes,
        asked.column, asked.format, asked.shard_tokens, asked.hold_out_every, asked.invalid, asked.revision,
    )  # fmt: skip
    try:
        prepare(request, asked.source, asked.to, asked.workers)
    except (PrepareError, CorpusError, DataError, TokenizerError, WorkplaceError, WorkerLost, OSError) as error:
        print(f"prepare: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
