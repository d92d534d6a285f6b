"""What a run's data becomes on the machine: for each token file, the parts that make exactly what is needed of it.

Pure but for the addresses, which a Storage makes. A train file holds the window and nothing else. A validation file
keeps the positions of the whole one: what is never read is filled with an id beyond every vocabulary, so that a mistake
is an error and not a number.

Example::

    staged = staged_data(dataset, recipe, steps)
    staged.needed_bytes, staged.pulled_bytes, staged.verified_by
    parts = [part for file in staged.files for part in file.parts(store)]
"""

from __future__ import annotations

import hashlib
import json
import posixpath
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from orchestrator.core.config.recipe import Recipe
from orchestrator.core.datasets.windows import (
    Cut,
    Span,
    cuts,
    remainder_spans,
    training_window,
    validation_slice,
    validation_spans,
    widened,
)
from orchestrator.core.ports import Part, Storage
from orchestrator.datasets.remote_dataset import StoredDataset, TokenFile
from trainer.layout.token_layout import cut_header

WHOLE, BLOCKS, FIRST_SEEN = "whole-file sha256", "block list", "first seen"
HEADER = "safetensors"
"""Of every cut file, whatever kind it is cut from: the machine need not prove again what the whole file proved."""
CUT_BELOW = 0.99
"""Files of this computer are sent whole when this much of them is needed: a cut takes a copy here first."""


@dataclass(frozen=True)
class StagedFile:
    """One file as it will be on the machine: these cuts of a token file, of which `needed` tokens are read.

    positions: None: the cuts one after the other; else they stay where they are in a file of so many tokens.
    """

    source: TokenFile
    cuts: tuple[Cut, ...]
    needed: int
    positions: int | None = None

    @property
    def is_whole(self) -> bool:
        """Whether it is the file as it is, header and all."""
        return [(cut.start, cut.stop) for cut in self.cuts] == [(0, self.source.layout.tokens)]

    @property
    def destination(self) -> str:
        """By content, so that the same bytes are found again wherever they came from."""
        return f"data/{self.identity[:16]}/{posixpath.basename(self.source.file.name)}"

    @property
    def identity(self) -> str:
        """sha256 of what is known of the bytes: their own digest, their blocks', else address and version."""
        file, blocks = self.source.file, self.source.blocks
        if self.is_whole and file.sha256:
            return file.sha256
        content = [file.sha256] if file.sha256 else list(blocks.sha256) if blocks else [file.uri, file.version]
        stretches = [[cut.start, cut.stop] for cut in self.cuts]
        made = json.dumps([content, stretches, self.positions, *([] if self.is_whole else [HEADER])])
        return hashlib.sha256(made.encode()).hexdigest()

    @property
    def needed_bytes(self) -> int:
        return self.needed * self.source.layout.width

    @property
    def pulled_bytes(self) -> int:
        """What comes from the source; the header of a cut file is made here."""
        if self.is_whole:
            return self.source.file.size_bytes
        return sum(cut.stop - cut.start for cut in self.cuts) * self.source.layout.width

    @property
    def verified_bytes(self) -> int:
        """Of the pulled ones, those that a digest of the source's own covers."""
        if self.is_whole and self.source.file.sha256:
            return self.pulled_bytes
        ranges = self._ranges()
        return sum(size for _, size, sha256, _ in ranges if sha256)

    @property
    def verified_by(self) -> str:
        if self.source.blocks is not None and self.verified_bytes:
            percent = 100 * self.verified_bytes // self.pulled_bytes
            return BLOCKS if percent == 100 else f"{BLOCKS} ({percent}%), then {FIRST_SEEN}"
        return WHOLE if self.verified_bytes else FIRST_SEEN

    def parts(self, store: Storage) -> list[Part]:
        """In the order of the file's bytes."""
        file = self.source.file
        asked = store.download_plan(file.uri, self.destination, 0, file.size_bytes)
        asked = replace(asked, of_bytes=file.size_bytes)
        if self.is_whole and self.source.blocks is None:
            return [replace(asked, sha256=file.sha256)]
        found = [
            replace(asked, offset=offset, size_bytes=size, sha256=sha256, before=before)
            for offset, size, sha256, before in self._ranges()
        ]
        return found if self.is_whole else list(self._framed(found))

    def _framed(self, found: Sequence[Part]) -> Iterator[Part]:
        """The parts behind a header of their own, with gaps where positions are kept."""
        layout = self.source.layout
        tokens = self.positions or sum(cut.stop - cut.start for cut in self.cuts)
        header = cut_header(layout.dtype, tokens)
        yield Part("", 0, len(header), self.destination, literal=header)
        at = layout.data_start
        for part in found:
            if self.positions and part.offset > at:
                yield Part("", 0, part.offset - at, self.destination, gap=True)
            yield part
            at = part.offset + part.size_bytes
        end = layout.data_start + (self.positions or 0) * layout.width
        if end > at and self.positions:
            yield Part("", 0, end - at, self.destination, gap=True)

    def _ranges(self) -> list[tuple[int, int, str | None, bytes]]:
        """(offset, size, sha256, what the digest covers in front) of everything that is pulled."""
        layout = self.source.layout
        if self.is_whole:
            stretches = [(0, self.source.file.size_bytes)]
        else:
            first = layout.data_start
            stretches = [(first + cut.start * layout.width, first + cut.stop * layout.width) for cut in self.cuts]
        return [found for start, stop in stretches for found in self._blocks(start, stop)]

    def _blocks(self, start: int, stop: int) -> Iterator[tuple[int, int, str | None, bytes]]:
        """The stretch at the borders of the source's blocks; ragged ends have no digest."""
        blocks, layout = self.source.blocks, self.source.layout
        if blocks is None:
            yield start, stop - start, None, b""
            return
        size, end = blocks.size_bytes, self.source.file.size_bytes
        at = start
        while at < stop:
            number = at // size
            border = min((number + 1) * size, end)
            upto = min(border, stop)
            before = layout.header if at == layout.data_start == len(layout.header) and at < size else b""
            whole = upto == border and at - len(before) == number * size
            yield at, upto - at, blocks.sha256[number] if whole else None, before if whole else b""
            at = upto


@dataclass(frozen=True)
class StagedData:
    """All files of a run, and what the trainer reads of them: fields of its DataConfig."""

    train: tuple[StagedFile, ...]
    validation: tuple[StagedFile, ...]
    validation_start_token: int
    validation_tokens: int
    window: tuple[int, int | None] | None = None
    """First token and length in the training files; None: the recipe's."""

    @property
    def files(self) -> tuple[StagedFile, ...]:
        """Each once: a held-out slice may be the same file as the training's."""
        return tuple({each.identity: each for each in (*self.train, *self.validation)}.values())

    @property
    def needed_bytes(self) -> int:
        return sum(each.needed_bytes for each in self.files)

    @property
    def pulled_bytes(self) -> int:
        return sum(each.pulled_bytes for each in self.files)

    def sent_bytes(self, dataset_bytes: int) -> int:
        """How many bytes are sent where the files, of dataset_bytes, are on this computer."""
        return self.pulled_bytes if self.pulled_bytes < CUT_BELOW * dataset_bytes else dataset_bytes

    @property
    def verified_by(self) -> str:
        return "; ".join(sorted({each.verified_by for each in self.files}))


def staged_data(dataset: StoredDataset, recipe: Recipe, steps: int, unread_steps: int = 0) -> StagedData:
    """Exactly what so many steps and the validation read, in the order of the whole dataset. UserError for too few.

    unread_steps: so many first steps are not trained; in one epoch, gaps stand in for their tokens.
    """
    available = dataset.train_tokens
    start, tokens = validation_slice(recipe, available, dataset.validation_tokens)
    held_out = 0 if dataset.validation else tokens
    window = training_window(recipe, steps, available, held_out)
    if held_out and recipe.eval.slices:  # their positions are those of the training stream
        return _all_of(dataset, recipe, tokens)
    train, origin = _packed(dataset.train, window.span)
    spans = remainder_spans(recipe, window, steps, unread_steps)
    if spans is not None:
        train, origin = _in_place(dataset.train, spans), 0
    if held_out:
        first = max(0, available - tokens - 1)
        validation, began = _packed(dataset.train, (first, available))
        start = first - began
    else:
        spans = validation_spans(recipe, start, tokens, dataset.validation_tokens)
        validation = _in_place(dataset.validation, spans)
    return StagedData(train, validation, start, tokens, (window.start - origin, window.tokens))


def _packed(sources: Sequence[TokenFile], span: Span) -> tuple[tuple[StagedFile, ...], int]:
    """The files that hold the span and nothing else, and the position in the stream at which they begin."""
    found = []
    for cut in cuts([each.layout for each in sources], [span]):
        source = sources[cut.index]
        found.append(StagedFile(source, (_widened(cut, source),), cut.stop - cut.start))
    first = found[0].cuts[0]
    return tuple(found), sum(each.layout.tokens for each in sources[: first.index]) + first.start


def _in_place(sources: Sequence[TokenFile], spans: Sequence[Span]) -> tuple[StagedFile, ...]:
    """The files up to the last one with a span in it; every token at its own position."""
    asked = cuts([each.layout for each in sources], spans)
    found = []
    for index, source in enumerate(sources[: asked[-1].index + 1 if asked else 0]):
        mine = [cut for cut in asked if cut.index == index]
        needed = sum(cut.stop - cut.start for cut in mine)
        wide = _merged([_widened(cut, source) for cut in mine])
        last = index == asked[-1].index
        found.append(StagedFile(source, wide, needed, wide[-1].stop if last else source.layout.tokens))
    return tuple(found)


def _all_of(dataset: StoredDataset, recipe: Recipe, held_out: int) -> StagedData:
    """Every training file whole, the validation held out of its end by the trainer itself."""
    train = tuple(
        StagedFile(each, (Cut(index, 0, each.layout.tokens),), each.layout.tokens)
        for index, each in enumerate(dataset.train)
    )
    return StagedData(train, (), 0, held_out)


def _widened(cut: Cut, source: TokenFile) -> Cut:
    return widened(cut, source.layout, source.blocks, source.file.sha256 is not None)


def _merged(found: Sequence[Cut]) -> tuple[Cut, ...]:
    """Cuts that came to overlap, as one."""
    merged: list[Cut] = []
    for cut in found:
        if merged and cut.start <= merged[-1].stop:
            merged[-1] = replace(merged[-1], stop=max(cut.stop, merged[-1].stop))
        else:
            merged.append(cut)
    return tuple(merged)
