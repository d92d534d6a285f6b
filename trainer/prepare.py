"""`python -m trainer.prepare`: text in, token files out, with a dataset.json that says what they are.

A recipe's `[data.prepare]` table and `gptctl data prepare` become one call of this program. It writes
`train.safetensors` and, with enough documents to hold some out, `validation.safetensors` (one 1-D tensor
`tokens` each; numbered shards where they are large), progress as JSON lines on stdout, and dataset.json last: a folder
without it is unfinished. After a kill, the same command resumes in the same folder. The same text and request give the
same bytes, whatever the number of workers. It must not need the trainer's configuration.

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
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from trainer.corpus.documents import PYTHON_STDLIB, Place, SourceFile, find_files, read_batches
from trainer.corpus.encode import POLICIES, Document, EncodeSettings, documents, encode_batch, is_held_out
from trainer.corpus.exclusion import Exclusion
from trainer.corpus.mixed_text import fill_mixed, mixture_json
from trainer.corpus.parquet import CorpusError
from trainer.corpus.pool import WorkerLostError, ordered
from trainer.corpus.request import Request, parse
from trainer.corpus.shards.make import SMALL_BYTES, is_made, make_shard
from trainer.corpus.shards.merge import all_pieces, take_pieces
from trainer.corpus.shards.piece import IDS, SHARDS, Order, ShardError
from trainer.corpus.shards.ranges import fingerprint, ranges, write_text
from trainer.corpus.split import VALIDATION, Done, Limits, Split, chained
from trainer.corpus.work_folder import WorkFolder, WorkFolderError
from trainer.layout.token_layout import SAFETENSORS
from trainer.progress import ByteProgress, print_event
from trainer.tasks.prepare_examples import prepare_task
from trainer.tokens.digests import DATASET, DatasetJson, FileEntry, digest_file
from trainer.tokens.folder import NoDatasetError, find_dataset
from trainer.tokens.token_file import DataError
from trainer.tokens.token_writers import Layout, dtype_for, write_atomically
from trainer.tokens.tokenizer import BYTES, TokenizerError, open_tokenizer
from trainer.training.allocator import return_freed_memory

STDLIB_BYTES = 6_000_000
"""The standard library is cut here: enough for a minute of training, prepared in a second."""
FEW_DOCUMENTS = 100
"""Of fewer, one is for validation even where none is by its hash: that of the lowest hash."""
FEWEST_TOKENS_PER_BYTE = 0.15
"""Of a byte-pair encoding; English prose has about 0.22."""
PARQUET_SUFFIX, GZIP = ".parquet", ".gz"


class PrepareError(ValueError):
    """The request cannot be met: no text, or a mark that the tokenizer lacks."""


def prepare(
    request: Request, paths: Sequence[str], to: Path, workers: int = 1, excluded: Sequence[Path] = ()
) -> DatasetJson:
    """Writes the dataset of these paths into folder `to` and returns the content of its dataset.json. `excluded`: token
    files with the documents to leave out.

    Does nothing where dataset.json already answers this request. Raises PrepareError, CorpusError, DataError,
    TokenizerError, WorkFolderError, WorkerLostError, and OSError for a folder that cannot be written.
    """
    encoding, mark, layout = open_tokenizer(request.tokenizer), _separator_id(request), _layout(request)
    sources = request.sources(paths)
    inputs = [find_files(source.paths) for source in sources]
    files = list(itertools.chain.from_iterable(inputs))
    exclusion = None
    if excluded:
        exclusion = Exclusion.of(excluded, encoding.eot_token if mark is None else mark, has_mark=mark is not None)
    if request.is_mixed:
        request = replace(
            request,
            inputs_sha256=_inputs_sha256(files),
            excluded_sha256=exclusion.sha256 if exclusion else None,
        )
    limits = Limits(request.documents, request.bytes or (STDLIB_BYTES if paths == [PYTHON_STDLIB] else None))
    existing = _find_existing(to, request, files, limits)
    if existing is not None:
        print_event("unchanged", to=str(to), tokens=existing["tokens"])
        return existing
    if limits == Limits():
        _check_free_space(to, request, files, layout)
    also = None if request.is_mixed else _also_held_out(files, request)
    settings = _settings(request, also)
    with (
        WorkFolder(to, {**request.to_json(), "also": also}, files) as work_folder,
        closing(_open_split(work_folder, layout, limits)) as split,
    ):
        if request.is_mixed:
            fill_mixed(
                split,
                work_folder,
                list(zip(sources, inputs, strict=True)),
                budget=request.tokens,
                settings=settings,
                workers=workers,
                exclusion=exclusion,
            )
        else:
            _fill(split, work_folder, files, settings, workers)
        if not split.done.documents:
            work_folder.remove()
            raise PrepareError(f"{request.source} has no text: {split.done.skipped_words()}")
        dataset = _publish(split, work_folder, request, settings)
    print_event(
        "prepared", to=str(to), tokens=dataset["tokens"], documents=dataset["documents"], files=dataset["files"]
    )
    return dataset


def prepare_shard(request: Request, options: argparse.Namespace) -> None:
    """Makes one shard; with --cut copies its text instead, for another machine, which is given the order that this
    prints. Raises as prepare, and ShardError."""
    if request.is_mixed or request.documents or request.bytes or options.source == [PYTHON_STDLIB]:
        raise PrepareError("a shard takes all documents of its text: omit --documents, --tokens, --mix and --exclude")
    files = parts = find_files(options.source)
    if options.order:
        order = Order(**json.loads(options.order))
    else:
        also, (shard, of) = _also_held_out(files, request), options.shard
        order = Order(shard, of, request.to_json(), _layout(request).dtype, fingerprint(files), also)
        parts = ranges(files, shard, of)
    there = None if options.order else _find_existing(options.to, request, files, Limits())
    if there is not None or is_made(options.to, order):
        return print_event("unchanged", shard=order.shard, of=order.of)
    if options.cut:
        return print_event("cut", order=asdict(order), files=write_text(parts, options.cut))
    return make_shard(options.to, order, parts, _settings(request, order.also_held_out), options.workers)


def merge(to: Path) -> DatasetJson:
    """Makes the dataset of all shards in `to` and removes them. After a kill the same call resumes.

    Raises ShardError, PrepareError, WorkFolderError, TokenizerError, and OSError.
    """
    pieces = all_pieces(to)
    order = pieces[0].piece.order
    request = Request.from_json(order.request)
    files = [SourceFile(each.folder / IDS, SAFETENSORS, each.size_bytes) for each in pieces]
    with (
        WorkFolder(to, {**order.request, "shards": order.of, "text": order.text}, files) as work_folder,
        closing(_open_split(work_folder, _layout(request), Limits())) as split,
    ):
        take_pieces(split, work_folder, pieces)
        if not split.done.documents:
            work_folder.remove()
            raise PrepareError(f"{request.source} has no text: {split.done.skipped_words()}")
        dataset = _publish(split, work_folder, request, _settings(request, order.also_held_out))
    shutil.rmtree(to / SHARDS)
    print_event(
        "prepared", to=str(to), tokens=dataset["tokens"], documents=dataset["documents"], files=dataset["files"]
    )
    return dataset


def _layout(request: Request) -> Layout:
    vocab_size = open_tokenizer(request.tokenizer).n_vocab
    return Layout(request.format, dtype_for(request.format, vocab_size), request.shard_tokens)


def _settings(request: Request, also: str | None) -> EncodeSettings:
    return EncodeSettings(
        request.tokenizer, _separator_id(request), _layout(request).dtype, request.column, request.hold_out_every,
        request.invalid, also,
    )  # fmt: skip


def _inputs_sha256(files: Sequence[SourceFile]) -> str:
    """Of the content of the source files, in their order."""
    content = "\n".join(digest_file(file.path)["sha256"] for file in files)
    return hashlib.sha256(content.encode()).hexdigest()


def _check_free_space(to: Path, request: Request, files: Sequence[SourceFile], layout: Layout) -> None:
    """Raises PrepareError before the first byte where even the fewest tokens of that much text do not fit."""
    if files[0].path.suffix in (PARQUET_SUFFIX, GZIP):
        return  # how much text that is shows only when it is read
    tokens_per_byte = 1.0 if request.tokenizer == BYTES else FEWEST_TOKENS_PER_BYTE
    needed_bytes = sum(file.size_bytes for file in files) * tokens_per_byte * np.dtype(layout.dtype).itemsize
    existing = next(folder for folder in (to.absolute(), *to.absolute().parents) if folder.exists())
    free_bytes = shutil.disk_usage(existing).free
    if needed_bytes > free_bytes:
        raise PrepareError(
            f"{to} needs at least {needed_bytes / 1e9:.3f} GB, and its disk has {free_bytes / 1e9:.3f} GB free"
        )


def _open_split(work_folder: WorkFolder, layout: Layout, limits: Limits) -> Split:
    try:
        split = Split(work_folder.folder, layout, limits, work_folder.state)
    except OSError:
        work_folder.forget()  # files of the state are gone
        return Split(work_folder.folder, layout, limits, None)
    if work_folder.state:
        print_event("resumed", tokens=split.tokens, documents=split.done.documents, shards=split.finished_shards)
    return split


def _fill(
    split: Split, work_folder: WorkFolder, files: Sequence[SourceFile], settings: EncodeSettings, workers: int
) -> None:
    """Tokenises the rest in parallel and writes it in order; stores a state every few seconds and after each shard."""
    if split.done.full:
        return
    total_bytes = sum(file.size_bytes for file in files)
    progress = ByteProgress(total_bytes, split.limits.documents)
    batches = read_batches(files, split.done.place, settings.column)
    work = functools.partial(encode_batch, settings=settings)
    with ordered(work, batches, workers if total_bytes >= SMALL_BYTES else 1) as results:
        for batch, encoded in results:
            split.take(encoded, batch.after)
            work_folder.keep(split)
            progress.report(batch.done_bytes, split.done.documents, split.tokens)
            if split.done.full:
                break


def _publish(split: Split, work_folder: WorkFolder, request: Request, settings: EncodeSettings) -> DatasetJson:
    """Moves the shards, then writes dataset.json: between the two the folder is unfinished."""
    work_folder.make_room(split)
    dataset = _dataset(request, split.done, split.finish(work_folder.to), settings)
    write_atomically(work_folder.to / DATASET, (json.dumps(dataset, indent=1) + "\n").encode())
    work_folder.remove()
    return dataset


def _dataset(request: Request, done: Done, files: dict[str, FileEntry], settings: EncodeSettings) -> DatasetJson:
    """The content of dataset.json."""
    return {
        "request": request.to_json(),
        "source": request.source,
        "source_sha256": done.source_sha256,
        "tokenizer": request.tokenizer,
        "vocab_size": open_tokenizer(request.tokenizer).n_vocab,
        "format": request.format,
        "dtype": settings.dtype,
        "separator": {
            "text": request.separator,
            "ids": [] if settings.mark is None else [settings.mark],
            "policy": "after",
        },
        "split": {
            "by": "sha256 of the document",
            "held_out_every": settings.held_out_every,
            "held_out": sum(entry["documents"] for name, entry in files.items() if name.startswith(VALIDATION)),
        },
        "skipped": {"invalid_utf8": done.invalid, "empty": done.empty, "policy": POLICIES[request.invalid]},
        **mixture_json(request, done.mix),
        "documents": sum(entry["documents"] for entry in files.values()),
        "tokens": sum(entry["tokens"] for entry in files.values()),
        "files": files,
    }


def _also_held_out(files: Sequence[SourceFile], request: Request) -> str | None:
    """The document to hold out where there are few and none is by its hash; reads FEW_DOCUMENTS of them at most."""
    most = min(FEW_DOCUMENTS, request.documents or FEW_DOCUMENTS)
    some = {document.sha256 for document in itertools.islice(_readable_documents(files, request), most)}
    if request.hold_out_every == 0 or len(some) < 2 or most == FEW_DOCUMENTS == len(some):
        return None
    return None if any(is_held_out(each, request.hold_out_every) for each in some) else min(some)


def _readable_documents(files: Sequence[SourceFile], request: Request) -> Iterator[Document]:
    """Every document (a large one once) but the skipped ones."""
    for batch in read_batches(files, Place(), request.column):
        for document in documents(batch, request.column, request.invalid):
            if document.first and not document.skipped:
                yield document


def _separator_id(request: Request) -> int | None:
    if not request.separator:
        return None
    encoding = open_tokenizer(request.tokenizer)
    if request.separator not in encoding.special_tokens_set:
        known = ", ".join(sorted(encoding.special_tokens_set))
        raise PrepareError(f"{request.separator!r} is not a special token of {request.tokenizer}; known: {known}")
    return encoding.encode_single_token(request.separator)


def _find_existing(to: Path, request: Request, files: Sequence[SourceFile], limits: Limits) -> DatasetJson | None:
    """The dataset.json that already answers this request: the same text, and every listed file intact; else None."""
    try:
        dataset: DatasetJson = json.loads((to / DATASET).read_text())
        if dataset["request"] != json.loads(json.dumps(request.to_json())):
            return None
        whole = all(digest_file(to / name)["sha256"] == entry["sha256"] for name, entry in dataset["files"].items())
        same = whole and (request.is_mixed or dataset["source_sha256"] == _source_sha256(files, request, limits))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # absent, torn or foreign: prepare again
    return dataset if same else None


def _source_sha256(files: Sequence[SourceFile], request: Request, limits: Limits) -> str:
    """The sha256 that Split computes for the same documents, without tokenising them."""
    known, count, size_bytes = "", 0, 0
    for document in _readable_documents(files, request):
        if not limits.allow(count, size_bytes, document.size_bytes):
            break
        known = chained(known, bytes.fromhex(document.sha256))
        count, size_bytes = count + 1, size_bytes + document.size_bytes
    return known or hashlib.sha256().hexdigest()


def main(arguments: list[str] | None = None) -> int:
    """Runs the program. Returns 0 once the folder has the dataset, or 1 with the reason on stderr."""
    options = parse(arguments)
    return_freed_memory()
    if options.task:
        return prepare_task(options)
    try:
        if options.merge:
            merge(options.to)
            return 0
        request = Request.of(options)
        if options.shard or options.order:
            prepare_shard(request, options)
            return 0
        excluded = [file for path in options.exclude for file in find_dataset(path).files]
        prepare(request, options.source, options.to, options.workers, excluded)
    except (
        PrepareError, CorpusError, DataError, NoDatasetError, ShardError, TokenizerError, WorkFolderError,
        WorkerLostError, OSError,
    ) as error:  # fmt: skip
        print(f"prepare: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
