"""Merges the shards of a folder, in their order, as if their documents had just been encoded here.

Example::

    pieces = all_pieces(Path("data/books"))     # refuses a folder where one is missing, broken, or of something else
    take_pieces(split, work_folder, pieces)
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from trainer.corpus.documents import Place
from trainer.corpus.shards.piece import IDS, SHARDS, Piece, ShardError, read_piece
from trainer.corpus.split import Split
from trainer.corpus.work_folder import WorkFolder
from trainer.progress import ByteProgress

MOST_NAMED = 5


class Found(NamedTuple):
    """A shard and its folder."""

    folder: Path
    piece: Piece

    @property
    def size_bytes(self) -> int:
        return self.piece.files[IDS]["size_bytes"]


def all_pieces(to: Path) -> list[Found]:
    """Every shard of the folder, in order. Raises ShardError that names each one that is missing, broken or foreign."""
    folders = sorted((to / SHARDS).glob("*-of-*"))
    counts = sorted({folder.name.partition("-of-")[2] for folder in folders})
    if len(counts) != 1:
        found = (
            f"shards of {' and of '.join(str(int(each)) for each in counts)}: remove one kind"
            if counts
            else "no shards"
        )
        raise ShardError(f"{to / SHARDS} has {found}")
    of = int(counts[0])
    pieces: list[Found] = []
    faults: list[str] = []
    for shard in range(1, of + 1):
        folder = to / SHARDS / f"{shard:05d}-of-{of:05d}"
        try:
            piece = Piece.read(folder)
            if pieces and (difference := pieces[0].piece.order.difference(piece.order)):
                raise ShardError(f"of another preparation: {difference}")
            piece.check(folder)
            pieces.append(Found(folder, piece))
        except ShardError as fault:
            faults.append(f"shard {shard}/{of} is {fault}")
    if faults:
        more = f", and {len(faults) - MOST_NAMED} more" if len(faults) > MOST_NAMED else ""
        raise ShardError(f"{to}: {'; '.join(faults[:MOST_NAMED])}{more}: prepare them again with --shard")
    return pieces


def take_pieces(split: Split, work_folder: WorkFolder, pieces: Sequence[Found]) -> None:
    """Gives all documents to the split; stores a state every few seconds and after each file."""
    place = split.done.place
    progress = ByteProgress(sum(each.size_bytes for each in pieces))
    done_bytes = sum(each.size_bytes for each in pieces[: place.file])
    for number in range(place.file, len(pieces)):
        folder, piece = pieces[number]
        for encoded, after in read_piece(folder, piece, place.offset if number == place.file else 0):
            split.take(encoded, Place(number + 1) if after is None else Place(number, after))
            work_folder.keep(split)
            progress.report(done_bytes + encoded.ids.nbytes, split.done.documents, split.tokens)
            done_bytes += encoded.ids.nbytes
