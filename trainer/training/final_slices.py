"""The slices of [eval] after the last step: their loss by all ranks together, with the weights of that step.

A slice that cannot be measured costs that slice, not the run: the ranks agree on every piece, so all of them skip it
together. It must not train.

Example::

    measure_slices(run, engine, step)
"""

from __future__ import annotations

from pathlib import Path

from trainer.model.loss import LossSum, Slice, slice_result, validation_loss, whole_sequences
from trainer.progress import Timer
from trainer.run_files import EVENT_EVALUATED, EVENT_EVALUATING
from trainer.tokens.token_file import DataError
from trainer.tokens.token_stream import TokenStream
from trainer.training.failures import Expendable
from trainer.training.ranks import sum_over_ranks
from trainer.training.start import Engine, Run

PIECE_BATCHES = 16
"""Batches of every rank between two checks of the clock."""
REPORT_EVERY_S = 30.0


def measure_slices(run: Run, engine: Engine, step: int) -> None:
    """An event `evaluated` for each slice of the config, or a warning."""
    data, journal = run.config.data, run.journal
    files = [Path(file) for file in data.validation_files or data.train_files]
    for start, tokens in run.config.slices:
        with Expendable(journal.event, step, f"slice {start}+{tokens} was not evaluated"):
            stream = TokenStream.open(files, run.config.model.vocab_size, data.dtype)
            token_slice = Slice(stream, start, tokens)
            loss_sum = _measure_together(run, engine, token_slice, step)
            if run.world.leads:
                result = slice_result(token_slice, loss_sum, data.tokenizer, journal.say)
                journal.event(EVENT_EVALUATED, step, **result, precision=run.config.train.precision)


def _measure_together(run: Run, engine: Engine, token_slice: Slice, step: int) -> LossSum:
    """The loss over all ranks, piece by piece. An event `evaluating` every 30 seconds shows that the run is not stuck.

    Raises on every rank what failed on one of them.
    """
    world, batch_size = run.world, run.config.train.micro_batch
    length = run.config.model.context_length
    whole = whole_sequences(token_slice.stream, token_slice.start, token_slice.tokens, length) * length
    piece = PIECE_BATCHES * batch_size * length * world.size
    nats, targets, timer = 0.0, 0, Timer(REPORT_EVERY_S)
    for first in range(0, whole, piece):
        part, fault = _part(
            run, engine, token_slice._replace(start=token_slice.start + first, tokens=min(piece, whole - first))
        )
        more = sum_over_ranks(world, [part.nats, float(part.targets), float(fault is not None)])
        if more[2]:
            raise fault or DataError("another rank could not measure it")
        nats, targets = nats + more[0], targets + int(more[1])
        if timer.is_due():
            run.journal.event(EVENT_EVALUATING, step, done=targets, of=whole)
    return LossSum(nats, targets)


def _part(run: Run, engine: Engine, piece: Slice) -> tuple[LossSum, Exception | None]:
    """This rank's part of a piece. Returns an error instead of raising it: the other ranks would wait for this one."""
    world = run.world
    try:
        part = validation_loss(
            engine.model,
            piece.stream,
            piece.start,
            piece.tokens,
            run.config.model.context_length,
            batch_size=run.config.train.micro_batch,
            rank=world.rank,
            world=world.size,
            autocast=engine.autocast,
            together=engine.sharded,
        )
    except (OSError, RuntimeError, ValueError) as error:  # unreadable tokens, or a device that fails or has no memory
        return LossSum(0.0, 0), error
    return part, None
