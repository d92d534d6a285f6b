"""Batch-size and sequence-length schedules: which steps train on what, and how many tokens that is.

A step of any stage takes whole windows of the model's context_length out of the data, cut into shorter sequences where
the stage has them: no token is read twice or left out. Everything is a function of the configuration. Standard library
only and clean for Python 3.8.

Example, a tenth of the steps with a quarter of the batch, and then half with short sequences::

    course = Course.of((Stage(0.1, 24, 1024), Stage(0.5, 384, 256)), steps=1000, global_batch=96, context_length=1024)
    course.at(600)                     # Part(first=500, last=1000, global_batch=96, context_length=1024, ...)
    course.tokens(1000)                # 100 x 24 x 1024 + 400 x 384 x 256 + 500 x 96 x 1024
"""

from __future__ import annotations

import dataclasses
import typing

from trainer.arithmetic import divisors, flop_per_token, steps_for
from trainer.config.config_tables import Stage
from trainer.contract import ModelConfig


class Part(typing.NamedTuple):
    """Steps first .. last (exclusive) that are alike. `window`: how many windows the steps before it have taken."""

    first: int
    last: int
    global_batch: int
    context_length: int
    window: int

    @property
    def tokens(self) -> int:
        """Of one step."""
        return self.global_batch * self.context_length


class Course(typing.NamedTuple):
    """The parts of a training, in order; together they are all its steps. `length`: of a window, in tokens."""

    parts: typing.Tuple[Part, ...]
    length: int

    @staticmethod
    def of(stages: typing.Sequence[Stage], steps: int, global_batch: int, context_length: int) -> Course:
        """The course of `steps` steps. Raises ValueError for stages that cannot be."""
        check_stages(stages, context_length)
        parts, first, window = [], 0, 0
        for stage in _all(stages, global_batch, context_length):
            part = Part(first, round(stage.until * steps), stage.global_batch, stage.context_length, window)
            parts.append(part)
            first, window = part.last, window + (part.last - first) * part.tokens // context_length
        return Course(tuple(parts), context_length)

    def at(self, step: int) -> Part:
        """The part of a step, counted from 0; beyond the end it goes on as it ended."""
        return next((part for part in self.parts if part.first <= step < part.last), self.parts[-1])

    def windows(self, step: int) -> int:
        """Windows that the steps before this one have taken."""
        part = self.at(step)
        return part.window + (step - part.first) * part.tokens // self.length

    def tokens(self, step: int) -> int:
        """Tokens that the steps before this one have seen."""
        return self.windows(step) * self.length

    def flop(self, model: ModelConfig, first: int, last: int) -> int:
        """Training FLOP of steps first .. last: attention over short sequences costs less."""
        total = 0
        for part in self.parts:
            steps = max(0, min(last, part.last) - max(first, part.first))
            short = dataclasses.replace(model, context_length=part.context_length)
            total += steps * part.tokens * flop_per_token(short)
        return total


def _all(stages: typing.Sequence[Stage], global_batch: int, context_length: int) -> typing.List[Stage]:
    return [*stages, Stage(1.0, global_batch, context_length)]


def check_stages(stages: typing.Sequence[Stage], context_length: int) -> None:
    """Raises ValueError naming the stage and what would be right."""
    before = 0.0
    for number, stage in enumerate(stages):
        name = "train.stages[%d]" % number
        if not before < stage.until < 1:
            raise ValueError("%s: until must be above %g and below 1, got %g" % (name, before, stage.until))
        if stage.global_batch < 1 or stage.context_length < 1 or context_length % stage.context_length:
            raise ValueError(
                "%s: %d sequences of %d tokens: context_length must divide the model's %d"
                % (name, stage.global_batch, stage.context_length, context_length)
            )
        pieces = context_length // stage.context_length
        if stage.global_batch % pieces:
            raise ValueError(
                "%s: %d sequences of %d tokens are not whole windows of %d: global_batch must be a multiple of %d"
                % (name, stage.global_batch, stage.context_length, context_length, pieces)
            )
        before = stage.until


def steps_for_stages(tokens: int, stages: typing.Sequence[Stage], global_batch: int, context_length: int) -> int:
    """The fewest steps that see at least `tokens` tokens. ValueError as in steps_for and check_stages."""
    if not stages:
        return steps_for(tokens, global_batch, context_length)
    check_stages(stages, context_length)
    average, most, begin = 0.0, 0, 0.0
    for stage in _all(stages, global_batch, context_length):
        per_step = stage.global_batch * stage.context_length
        average, most, begin = average + (stage.until - begin) * per_step, max(most, per_step), stage.until
    # Each boundary is rounded to a step: the estimate may be that much off.
    steps = max(1, int((tokens - (len(stages) + 1) * most) / average))
    while Course.of(stages, steps, global_batch, context_length).tokens(steps) < tokens:
        steps += 1
    return steps


def micro_batch_of(part: Part, micro_batch: int, ranks: int, length: int) -> int:
    """Sequences per forward pass in this part: as many tokens as micro_batch windows of `length` have, or the largest
    divisor below. ValueError where the part's batch does not divide over the ranks."""
    share, left = divmod(part.global_batch, ranks)
    if left or not share:
        raise ValueError(
            "train.stages: a global batch of %d does not divide over %d ranks" % (part.global_batch, ranks)
        )
    most = micro_batch * length // part.context_length
    return next(size for size in divisors(share) if size <= most)
