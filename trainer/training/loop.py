"""The training loop: read it from top to bottom.

`train` opens everything, then runs the steps: batch, forward, backward, optimizer; at intervals a log line, a
validation, a checkpoint. All ranks run the same lines; only rank 0 writes. It must not know who started it.

Example::

    outcome = train(Run(folder, config, world, Journal(folder)), StopRequest(folder), Progress())
"""

from __future__ import annotations

import dataclasses
import gc
import math
import os
import signal
import time
from collections.abc import Generator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import numpy as np
import torch
from torch import Tensor

from trainer.checkpoints import skip_back
from trainer.checkpoints.checkpoint import Snapshot, TrainerState, checkpoint_steps
from trainer.checkpoints.host_buffers import HostBuffers
from trainer.config.task_config import PRETRAIN
from trainer.contract import RunConfig
from trainer.model.loss import validation_loss
from trainer.model.optimizers import (
    State,
    clip_divisor,
    gradient_norm,
    learning_rate,
    set_learning_rate,
    state_by_name,
    step_unless_nonfinite,
)
from trainer.run_files import (
    ATTEMPT,
    CHECKPOINTS,
    EVENT_PREPARING,
    EVENT_STARTED,
    EVENT_VALIDATED,
    EVENT_WARNING,
    STOP,
    CheckpointMeta,
)
from trainer.tasks.objective import is_classifier
from trainer.tasks.validation import example_loss
from trainer.tokens.batches import TrainingData, course_of, open_data, prefetched
from trainer.training.failures import nonfinite_words
from trainer.training.finish import finish
from trainer.training.metrics import FORWARD, Noted, PartClock, SlowNode, StepCounts, Window
from trainer.training.ranks import World, from_leader, sum_over_ranks
from trainer.training.saver import Saver
from trainer.training.sharded.checkpoint import parts_writer
from trainer.training.sharded.model import own_state, own_weights, whole_norm
from trainer.training.start import Engine, Run, batch_share, during, prepare, started_fields

Batches = Generator[tuple[Tensor, Tensor, float]]
Losses = tuple[float, float | None, Mapping[str, float]]
"""Of the step's batch, and of the validation where the step was validated, nats per token; {"accuracy"} of classes."""
NOT_CLASSIFIED: Mapping[str, float] = {}


class _State(TypedDict):
    optimizer: State
    model: dict[str, Tensor]


class TrainingError(RuntimeError):
    """Training cannot continue: the gradients stay non-finite."""


@dataclass
class Progress:
    """How far the run is, for the exit record."""

    step: int = 0
    total_steps: int = 0


class StopRequest:
    """Whether the run should stop after this step: SIGTERM to any rank, or a file `stop` (or `stop-ATTEMPT`) in the run
    folder. Over several nodes any node's counts: the ranks agree at every log line."""

    def __init__(self, run_folder: Path) -> None:
        attempt = os.environ.get(ATTEMPT)  # a file that was meant for another attempt stops nothing
        self.file = run_folder / (f"{STOP}-{attempt}" if attempt else STOP)
        self.signalled = False
        signal.signal(signal.SIGTERM, self._note)

    def _note(self, signum: int, frame: object) -> None:
        self.signalled = True

    def __call__(self) -> bool:
        return self.signalled or self.file.exists()


def train(run: Run, stop: StopRequest, progress: Progress) -> str:
    """Trains to the last step or until asked to stop, from the newest checkpoint if there is one; returns the outcome.

    Raises TrainingError, DataError, CheckpointError, ContractError and torch.OutOfMemoryError.
    """
    config, options, world, journal = run.config, run.config.train, run.world, run.journal
    progress.total_steps = options.steps
    journal.event(EVENT_PREPARING, 0, doing="opening the data")
    share, data = batch_share(config, world), open_data(config)
    engine, begun = prepare(run, data, share)
    skips = from_leader(world, skip_back.read(run.folder) if world.leads else None)
    progress.step = skip_back.past(skips, begun)
    if progress.step > begun:
        reason = f"steps {begun + 1} to {progress.step} are left out: they led to gradients that were not finite"
        journal.event(EVENT_WARNING, progress.step, reason=reason)
    saver = open_saver(run, engine)
    journal.event(EVENT_STARTED, progress.step, **started_fields(run, engine, share))

    journal.event(EVENT_PREPARING, progress.step, doing="waiting for the first batch")
    batches = prefetched(data, skip_back.trained(skips, progress.step, options.steps), share, world.device)
    log = StepLog(run, engine, progress.step, begun)
    stopping = False
    freeze_garbage_collector()
    while progress.step < options.steps and not stopping:
        progress.step = skip_back.past(skips, progress.step)
        seed_step(options.seed, progress.step, world.rank)
        rate = learning_rate(progress.step, options)
        engine = during(engine, share.during(data.course.at(progress.step), data.course))
        loss, norm = train_step(engine, batches, rate, log.counts, log.window.clock)
        progress.step += 1
        step, last = progress.step, progress.step == options.steps
        stopping = log.catch_up()

        saving = last or stopping or step % options.checkpoint_every == 0
        validating = data.validation is not None and (last or step % options.validate_every == 0)
        logging = last or stopping or step == 1 or step % options.log_every == 0
        if saving or logging:
            log.noted = log.window.note(step, loss, norm, rate, log.counts, stop=stop(), line=logging)
        if saving or validating or world.device.type != "cuda":
            stopping = log.catch_up() or stopping
        val_loss, accuracy = None, NOT_CLASSIFIED
        if validating:
            val_loss, accuracy = validate(engine, data, options.micro_batch, world)
            journal.event(EVENT_VALIDATED, step, val_loss=val_loss, **accuracy)
            log.window.clock.mark("validate")
        if saving or stopping:
            optimizer_state = whole_optimizer_state(engine)
            if saver is not None and may_save(run, engine, saver, step):
                losses = (log.mean_loss, val_loss, accuracy)
                saver.save(snapshot(config, engine, optimizer_state, saver.buffers, step, losses))
            del optimizer_state
            gc.collect()
            log.window.clock.mark("save")
    batches.close()
    return finish(run, engine, saver, progress.step)


def open_saver(run: Run, engine: Engine) -> Saver | None:
    """Rank 0's. Under FSDP every rank has one, for its rows."""
    if engine.sharded:
        return Saver(run.folder, run.config, run.journal.event, parts_writer(run, engine.model))
    return Saver(run.folder, run.config, run.journal.event) if run.world.leads else None


def may_save(run: Run, engine: Engine, saver: Saver, step: int) -> bool:
    """Whether the save before this one is done; where all ranks write, as rank 0 sees it."""
    free = saver.is_free(step)
    return from_leader(run.world, free) if engine.sharded else free


class StepLog:
    """The log lines. On a GPU one is written when the next step has been launched: reading it at once would leave the
    GPU without work. All ranks do the same, so they stop after the same step."""

    def __init__(self, run: Run, engine: Engine, step: int, begun: int = 0) -> None:
        self.run, self.engine, self.begun = run, engine, begun
        self.window = Window(run.config, run.world, step)
        self.counts, self.slow = StepCounts.zeros(run.world.device), SlowNode(run.world)
        self.mean_loss = math.nan
        self.noted: Noted | None = None

    def catch_up(self) -> bool:
        """Writes the line that is due, if there is one; returns whether any rank was asked to stop by then.

        Raises TrainingError.
        """
        if self.noted is None:
            return False
        noted, self.noted = self.noted, None
        reading, world = self.window.read(noted), self.run.world
        own = self.slow.own(noted, self.window.clock)
        loss_sum, stops, *forward_s = sum_over_ranks(world, [reading.loss, float(noted.asked_to_stop), *own])
        self.mean_loss = loss_sum / world.size
        if noted.marks:
            self.run.journal.metrics(self.window.line(noted, reading, self.mean_loss))
            if (node := self.slow.node(forward_s)) is not None:
                self.run.journal.event(EVENT_WARNING, noted.step, node=node, reason=self.slow.words(node))
        if reading.longest_streak >= self.run.config.train.max_nonfinite_steps:
            self.skip_back(noted.step, reading.longest_streak)
            raise TrainingError(nonfinite_words(reading.longest_streak, noted.step, self.engine.scaler))
        return stops > 0

    def skip_back(self, step: int, streak: int) -> None:
        """With train.skip_back: the next start begins before the streak, and trains on none of the batches up to here.
        Where no checkpoint is so old, it begins as after any failure."""
        options = self.run.config.train
        if not options.skip_back or not self.run.world.leads:
            return
        skips = skip_back.read(self.run.folder)
        kept = checkpoint_steps(self.run.folder / CHECKPOINTS)
        known = [self.begun, *(each for each in kept if not skip_back.left_out(skips, each))]
        skip = skip_back.before_streak(known, min(step, options.steps - 1), streak, options.log_every)
        if skip is not None:
            skip_back.add(self.run.folder, skip)
            reason = (
                f"not finite: the next start goes back to step {skip[0]} and skips the batches up to step {skip[1]}"
            )
            self.run.journal.event(EVENT_WARNING, step, reason=reason)


def train_step(
    engine: Engine, batches: Batches, rate: float, counts: StepCounts, clock: PartClock
) -> tuple[Tensor, Tensor]:
    """One optimizer step; returns this rank's mean loss and the gradient norm before clipping, both on the device.

    Gradients are averaged over ranks once, in the last micro-batch: no_sync has to enclose the forward pass too.
    """
    loss = torch.zeros((), device=engine.model.device)
    ranks = 1 if engine.zero is None else engine.zero.world.size  # DDP divides the sum itself
    for micro in range(engine.accumulation):
        ids, targets, weight = next(batches)
        clock.mark("data")
        with nullcontext() if micro == engine.accumulation - 1 else engine.no_sync():
            with engine.autocast():
                micro_loss = engine.parallel(ids, targets) * (weight / ranks)
            clock.mark(FORWARD)
            engine.scaler.scaled(micro_loss).backward()  # type: ignore[no-untyped-call]
        loss += micro_loss.detach()
        del micro_loss  # and with it the graph: its memory is free before the optimizer steps
        clock.mark("forward_backward")
    if engine.zero is not None:
        engine.zero.wait()
        loss = loss * ranks
    set_learning_rate(engine.optimizers, rate)
    norm = update(engine, counts)
    clock.mark("optimizer")
    return loss, norm


def update(engine: Engine, counts: StepCounts) -> Tensor:
    """Clips and steps, or skips where a gradient is not finite. Nothing here waits for the device, and nothing but the
    norm and the optimizer reads the gradients."""
    scaler, optimizers, zero = engine.scaler, engine.optimizers, engine.zero
    norm = whole_norm(gradient_norm(optimizers)) if zero is None else zero.norm()
    if scaler.scale is not None:
        norm = norm / scaler.scale
    nonfinite = (~torch.isfinite(norm)).float()
    step_unless_nonfinite(optimizers, nonfinite, clip_divisor(norm, engine.grad_clip, scaler))
    scaler.update(nonfinite)
    counts.add(nonfinite, norm > (engine.grad_clip or torch.inf))
    if zero is not None:
        zero.gather()
    else:
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
    return norm


def seed_step(seed: int, step: int, rank: int) -> None:
    """Dropout's randomness is a function of (seed, step, rank): a resumed run draws what the unbroken one drew."""
    torch.manual_seed(int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0] >> 1))


def validate(engine: Engine, data: TrainingData, batch_size: int, world: World) -> tuple[float, Mapping[str, float]]:
    """Mean loss in nats over the held-out slice, the same number on every rank, and {"accuracy"} of a classifier."""
    held_out, model = data.validation, engine.model
    assert held_out is not None
    measure = example_loss if data.examples else validation_loss
    part = measure(
        model,
        held_out.stream,
        held_out.start,
        held_out.tokens,
        model.config.context_length,
        batch_size=batch_size,
        rank=world.rank,
        world=world.size,
        autocast=engine.autocast,
        **({"together": True} if engine.sharded else {}),
    )
    nats, targets, right = sum_over_ranks(world, [part.nats, float(part.targets), float(part.right)])
    return nats / targets, {"accuracy": right / targets} if is_classifier(model) else {}


def whole_optimizer_state(engine: Engine) -> State:
    """By parameter name, on the device; under ZeRO gathered by all ranks together, under FSDP this rank's rows."""
    if engine.sharded:
        return own_state(engine.model, engine.optimizers)
    own = state_by_name(engine.model, engine.optimizers)
    return own if engine.zero is None else {**engine.zero.state(engine.model), **own}


def snapshot(  # noqa: PLR0917 - one call, in the loop
    config: RunConfig, engine: Engine, optimizer_state: State, buffers: HostBuffers, step: int, losses: Losses
) -> Snapshot:
    """Copies the state to the host: the only part of a save that delays training."""
    meta: CheckpointMeta = {
        "step": step,
        "total_steps": config.train.steps,
        "tokens": course_of(config).tokens(step),
        "loss": losses[0],
        "val_loss": losses[1],
        "model": dataclasses.asdict(config.model),
        "tokenizer": config.data.tokenizer,
        "time": round(time.time(), 3),
    }
    if config.task.kind != PRETRAIN:
        meta["task"] = dataclasses.asdict(config.task)
    if config.lineage:
        before = course_of(config).tokens(int(config.lineage.get("from_step", 0)))
        meta["lineage"] = {**config.lineage, "own_tokens": meta["tokens"] - before}
    if "accuracy" in losses[2]:
        meta["accuracy"] = losses[2]["accuracy"]
    on_device: _State = {
        "optimizer": optimizer_state,
        "model": own_weights(engine.model) if engine.sharded else engine.model.unpadded_state(),
    }
    copied = buffers.copy(on_device)
    trainer: TrainerState = {"optimizer": copied["optimizer"], "scaler": engine.scaler.state_dict()}
    return Snapshot(step, copied["model"], trainer, meta)


def freeze_garbage_collector() -> None:
    """No collection in the middle of a step (pauses of 500 ms, measured by nanochat), only after each save."""
    gc.collect()
    gc.freeze()
    gc.disable()
