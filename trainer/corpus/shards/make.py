"""Makes one shard in its folder, and says whether it is there.

Example: `if not is_made(to, order): make_shard(Path("data/books"), order, parts, settings, workers=8)`
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

from trainer.corpus.documents import SourceFile, read_batches
from trainer.corpus.encode import EncodeSettings, encode_batch
from trainer.corpus.pool import ordered
from trainer.corpus.shards.piece import SHARDS, Order, Piece, PieceWriter, ShardError, shard_folders
from trainer.corpus.work_folder import WorkFolder
from trainer.progress import ByteProgress, print_event

SMALL_BYTES = 16_000_000
"""With less text, starting worker processes takes longer than the work."""


def is_made(to: Path, order: Order) -> bool:
    """Whether the shard is in `to`, whole. Raises ShardError where `to` has shards of another preparation."""
    _refuse_others(to, order)
    return _is_whole(to / SHARDS / order.name)


def make_shard(to: Path, order: Order, parts: Sequence[SourceFile], settings: EncodeSettings, workers: int) -> None:
    """Reads these parts of the text into `to`/shards. After a kill the same call resumes. Raises what reading and
    encoding raises."""
    folder = to / SHARDS / order.name
    total_bytes = sum(part.size_bytes for part in parts)
    progress = ByteProgress(total_bytes)
    with WorkFolder(folder, asdict(order), parts) as work_folder, closing(_open(work_folder)) as writer:
        batches = read_batches(parts, writer.written.place, settings.column)
        work = functools.partial(encode_batch, settings=settings)
        with ordered(work, batches, workers if total_bytes >= SMALL_BYTES else 1) as results:
            for batch, encoded in results:
                writer.take(encoded, batch.after)
                work_folder.keep(writer)
                progress.report(batch.done_bytes, writer.written.documents, writer.written.tokens)
        writer.finish(folder, order)
        work_folder.remove()
    made = writer.written
    print_event("prepared", shard=order.shard, of=order.of, documents=made.documents, tokens=made.tokens)


def _open(work_folder: WorkFolder) -> PieceWriter:
    try:
        return PieceWriter(work_folder.folder, work_folder.state)
    except OSError:
        work_folder.forget()  # files of the state are gone
        return PieceWriter(work_folder.folder, None)


def _refuse_others(to: Path, order: Order) -> None:
    for folder in shard_folders(to):
        try:
            other = Piece.read(folder).order
        except ShardError:
            continue  # unfinished or broken: it says nothing
        if difference := other.difference(order):
            raise ShardError(
                f"{folder} is of another preparation: you asked for {difference}: choose another folder, or remove "
                f"{to / SHARDS}"
            )


def _is_whole(folder: Path) -> bool:
    try:
        Piece.read(folder).check(folder)
    except ShardError:
        return False
    return True
