"""Which tokens of a dataset a run reads, and which bytes of which files that is. Pure.

The order of a run is a function of the training window alone (its first token and how many whole sequences it holds),
so a file that holds just the window gives the same order as the whole dataset. In one sequential epoch the window is
what the steps take; shuffled, or in several epochs, every sequence of an epoch may come at any time.

Example::

    window = training_window(recipe, steps, available=10_000_000_000, held_out_from=None)
    for cut in cuts(layouts, [window.span]): cut.index, cut.start, cut.stop
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.core.config.recipe import Recipe
from orchestrator.core.datasets.dataset_index import Blocks
from orchestrator.core.errors import UserError
from trainer.layout.token_layout import Layout

MAX_HELD_OUT_TOKENS = 10_000_000
HELD_OUT_FRACTION = 0.01
SLACK = 0.005
"""How much more than needed may be pulled, so that it can be verified better. With the headers and what protocols say,
all that crosses the wire stays below 1 % more."""

CHECKED_STEPS = 20
"""The trainer reads the batches of so many first steps (trainer/training/compile_check.py) wherever it resumes."""

Span = tuple[int, int]
"""Tokens first .. last + 1 of a stream."""


@dataclass(frozen=True)
class Window:
    """The trainer's `start_token` and `tokens`; what is read ends one token later, which is the last target."""

    start: int
    tokens: int

    @property
    def span(self) -> Span:
        return self.start, self.start + self.tokens + 1


def validation_slice(recipe: Recipe, train_tokens: int, validation_tokens: int) -> tuple[int, int]:
    """First token and length of the recipe's slice; without one, the validation files whole, or the last 1 % (10 M at
    most) of the stream. Raises UserError for one that is not there."""
    chosen, available = recipe.data.validation, validation_tokens or train_tokens
    if chosen is None or chosen.tokens is None:
        start = chosen.start_token if chosen else 0
        whole = max(0, validation_tokens - start) or int(train_tokens * HELD_OUT_FRACTION)
        return start, min(whole, MAX_HELD_OUT_TOKENS)
    if chosen.start_token + chosen.tokens > available:
        raise UserError(
            f"data.validation: tokens {chosen.start_token} to {chosen.start_token + chosen.tokens} "
            f"are beyond the {available} there are",
            f"set data.validation.tokens to at most {max(available - chosen.start_token, 0)}",
        )
    return chosen.start_token, chosen.tokens


def training_window(recipe: Recipe, steps: int, available: int, held_out: int) -> Window:
    """Cut as the trainer cuts it, then to what the steps take. held_out: tokens at the stream's end that are kept for
    validation, 0 when there are files of their own. Raises UserError when there are too few."""
    data, length = recipe.data, recipe.model.context_length
    end = max(0, available - held_out - 1) if held_out else available
    if data.tokens is not None:
        if data.start_token + data.tokens > end:
            raise UserError(
                f"data.tokens: {data.tokens} tokens from {data.start_token} were asked for, "
                f"but only {max(0, end - data.start_token)} are there",
                f"set data.tokens to at most {max(0, end - data.start_token)}",
            )
        end = min(end, data.start_token + data.tokens + 1)
    sequences = (end - data.start_token - 1) // length
    if sequences < 1:
        raise UserError(
            f"data: from token {data.start_token} to {end} there is not one sequence of {length} + 1 tokens",
            "check data.source and data.start_token",
        )
    wanted = recipe.course(steps).windows(steps)
    if data.order == "sequential" and wanted < sequences:
        sequences = wanted
    return Window(data.start_token, sequences * length)


def remainder_spans(recipe: Recipe, window: Window, steps: int, unread_steps: int) -> list[Span] | None:
    """What is read of the window when the first `unread_steps` of one sequential epoch are not trained: the rest, and
    the first steps by which the trainer checks a compiled model. None: all of it, in its order."""
    course = recipe.course(steps)
    if unread_steps <= CHECKED_STEPS or window.tokens < course.tokens(steps):
        return None
    checked = window.start, window.start + course.tokens(CHECKED_STEPS) + 1
    return [checked, (window.start + course.tokens(unread_steps), window.span[1])]


def validation_spans(recipe: Recipe, start: int, tokens: int, available: int) -> list[Span]:
    """What is read of the validation files: the slice and those of [eval], each with its last target; merged."""
    wanted = sorted([(start, tokens), *recipe.eval.slices] if tokens else recipe.eval.slices)
    merged: list[Span] = []
    for first, count in wanted:
        last = min(first + count + 1, available)
        if first >= last:
            continue
        if merged and first <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(last, merged[-1][1])
        else:
            merged.append((first, last))
    return merged


@dataclass(frozen=True)
class Cut:
    """Tokens start .. stop of the index-th file."""

    index: int
    start: int
    stop: int


def cuts(layouts: Sequence[Layout], spans: Sequence[Span]) -> list[Cut]:
    """The stream's spans as stretches of its files, in their order."""
    ends = list(itertools.accumulate(layout.tokens for layout in layouts))
    found = []
    for first, last in spans:
        for index, (layout, end) in enumerate(zip(layouts, ends, strict=True)):
            begin = end - layout.tokens
            start, stop = max(first, begin) - begin, min(last, end) - begin
            if start < stop:
                found.append(Cut(index, start, stop))
    return sorted(found, key=lambda cut: (cut.index, cut.start))


def widened(cut: Cut, layout: Layout, blocks: Blocks | None, has_sha256: bool) -> Cut:
    """The cut made a little larger where that lets all of it be verified: to the whole file, or to block borders."""
    needed = (cut.stop - cut.start) * layout.width
    slack = int(needed * SLACK)
    if has_sha256 and (layout.tokens * layout.width - needed) <= slack:
        return Cut(cut.index, 0, layout.tokens)
    if blocks is None or blocks.size_bytes % layout.width or layout.data_start % layout.width:
        return cut
    size = blocks.size_bytes
    first = max(0, (layout.data_start + cut.start * layout.width) // size * size - layout.data_start) // layout.width
    last = -(-(layout.data_start + cut.stop * layout.width) // size) * size - layout.data_start
    last = min(last // layout.width, layout.tokens)
    start = first if (cut.start - first) * layout.width <= slack else cut.start
    left = slack - (cut.start - start) * layout.width
    return Cut(cut.index, start, last if (last - cut.stop) * layout.width <= left else cut.stop)
