"""Everything before the first step: precision, model, checkpoint, compilation, optimizers, process group wrapper.

The model is built and loaded on the CPU and only then moved: a resume never needs more GPU memory than the run did.
It must not train.

Example::

    engine, first_step = prepare(run, data, share)
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from trainer.arithmetic import GIB, LOSS_CHUNKS, fewest_loss_chunks, split_batch
from trainer.checkpoints.broadcast import drop_received, on_every_node
from trainer.checkpoints.checkpoint import ResumePoint, find_newest, read_trainer_state, read_weights
from trainer.checkpoints.manifest import CheckpointError, checkpoint_folder, read_meta, task_of, verify
from trainer.contract import ContractError, RunConfig
from trainer.model.attention import attention_kernel, same_attention_everywhere
from trainer.model.gpt import GPT
from trainer.model.muon import Peers
from trainer.model.optimizers import build_optimizers, learning_rate, load_state_by_name
from trainer.model.precision import Autocast, LossScaler, autocast_to, choose_precision
from trainer.run_files import (
    EVENT_INITIALISED,
    EVENT_PREPARING,
    EVENT_RESUMED,
    EVENT_WARNING,
    META_FILE,
    MODEL_FILE,
    Started,
)
from trainer.tasks.objective import apply_task, plain_state
from trainer.tokens.batches import Share, TrainingData
from trainer.training.compile_check import STEPS as CHECK_STEPS
from trainer.training.compile_check import compile_fault
from trainer.training.metrics import Journal
from trainer.training.ranks import World, data_parallel, from_leader, gathered, leader_first, sum_over_ranks
from trainer.training.saver import clean_up
from trainer.training.sharded.checkpoint import check_shared_folder
from trainer.training.sharded.model import cut, is_sharded, own_part
from trainer.training.zero import Zero


@dataclass(frozen=True)
class Run:
    """The run folder, its config, this rank and the journal: what everything but the model needs."""

    folder: Path
    config: RunConfig
    world: World
    journal: Journal


@dataclass(frozen=True)
class Engine:
    """What a step needs. `parallel` is the model, or the model whose gradients are averaged over ranks."""

    model: GPT
    parallel: nn.Module
    optimizers: list[Optimizer]
    scaler: LossScaler
    autocast: Autocast
    accumulation: int
    grad_clip: float | None
    compiled: bool
    compile_fault: str
    """Why it is not compiled, where the config asks for it; else empty."""
    dtype: torch.dtype | None
    """Of matrix products under autocast; None: fp32."""
    zero: Zero | None = None
    """Where the optimizer's state is shared among the ranks."""
    sharded: bool = False
    """Each rank has its rows of every tensor only (FSDP)."""

    def no_sync(self) -> AbstractContextManager[object]:
        """Inside, gradients stay on their rank."""
        if self.zero is not None:
            return self.zero.no_sync()
        wrapped = self.parallel
        return wrapped.no_sync() if isinstance(wrapped, DistributedDataParallel) else contextlib.nullcontext()


def prepare(run: Run, data: TrainingData, share: Share) -> tuple[Engine, int]:
    """The engine, ready to train from the returned step: that of the checkpoint it was loaded from, or 0."""
    config, world, train = run.config, run.world, run.config.train
    check_settings(config)
    sharded = is_sharded(config, world)
    dtype, remark = choose_precision(train.precision, world.device)
    autocast = autocast_to(dtype, world.device)
    if world.device.type == "cuda" and train.tf32:
        torch.set_float32_matmul_precision("high")
    same_attention_everywhere()
    torch.manual_seed(train.seed)
    run.journal.event(EVENT_PREPARING, 0, doing="building the model")
    model = GPT(config.model, train.activation_checkpointing)
    resume_point = from_leader(world, find_checkpoint(run) if world.leads else None)
    resume_point = dataclasses.replace(resume_point, folder=on_every_node(world, resume_point.folder, run.folder))
    if resume_point.folder is None and config.init_from is not None:
        initial = from_leader(world, initial_weights(run, config.init_from) if world.leads else None)
        load_initial(model, cast(Path, on_every_node(world, initial, run.folder)))
    apply_task(model, config.task)
    if resume_point.folder is not None:
        load_weights(model, resume_point.folder)
    model.loss_chunks = loss_chunks(config, world)
    if not sharded:
        model.to(world.device)
    if remark:
        run.journal.event(EVENT_WARNING, resume_point.step, reason=remark)
    wants_compiled = world.device.type == "cuda" if train.compile is None else train.compile
    fault = ""
    if wants_compiled:
        run.journal.event(EVENT_PREPARING, resume_point.step, doing="compiling the model")
        tried = sample_of(config, world) if sharded else model
        fault = compile_model(run, tried, data, share, autocast, step=resume_point.step)
    compiled = wants_compiled and not fault
    reduced_in = torch.bfloat16 if train.reduce_dtype == "bf16" else torch.float32
    if sharded:
        check_shared_folder(run.folder, world)
        cut(model, world, dtype, reduced_in, compiled=compiled)
    peers = Peers(world.rank, world.size, functools.partial(gathered, world))
    optimizers, scaler = build_optimizers(model, train, peers), LossScaler(world.device, dtype == torch.float16)
    if resume_point.folder is not None:
        load_trainer_state(resume_point.folder, model, optimizers, scaler)
    drop_received(world, run.folder)
    zero = Zero(model, optimizers, world, reduced_in) if train.zero_stage and world.size > 1 else None
    wrapped = model if sharded or zero is not None else data_parallel(model, world, reduced_in)
    return Engine(
        model,
        wrapped,
        optimizers,
        scaler,
        autocast,
        share.accumulation,
        train.grad_clip,
        compiled,
        fault,
        dtype,
        zero,
        sharded,
    ), resume_point.step


def sample_of(config: RunConfig, world: World) -> GPT:
    """Two blocks of the model's shape: compiling is tried on them where the whole may be too large for one card."""
    model = GPT(dataclasses.replace(config.model, n_layer=2), config.train.activation_checkpointing)
    model.loss_chunks = loss_chunks(config, world)
    return model.to(world.device)


def during(engine: Engine, share: Share) -> Engine:
    """The engine in a stage of the course in which this rank reads `share` per step."""
    same = share.accumulation == engine.accumulation
    return engine if same else dataclasses.replace(engine, accumulation=share.accumulation)


def loss_chunks(config: RunConfig, world: World) -> int:
    """Before the model is there: the fewer chunks of the loss, the less traffic, where the GPU has the memory."""
    if world.device.type != "cuda":
        return LOSS_CHUNKS
    free_gib = torch.cuda.mem_get_info(world.device)[0] / GIB
    return fewest_loss_chunks(config.model, config.train.micro_batch, free_gib, config.train, world.size)


def check_settings(config: RunConfig) -> None:
    """Raises ContractError at the start for what would otherwise end the run later."""
    train = config.train
    for name in ("steps", "log_every", "checkpoint_every", "validate_every", "max_nonfinite_steps"):
        if getattr(train, name) < 1:
            raise ContractError(f"train.{name} must be at least 1, got {getattr(train, name)}")
    if train.zero_stage not in {0, 1}:
        raise ContractError(f"train.zero_stage must be 0 or 1, got {train.zero_stage}")
    if train.zero_stage and config.task.lora is not None:
        raise ContractError("train.zero_stage must be 0 with task.lora: adapters have little state to share out")
    if train.reduce_dtype not in {"fp32", "bf16"}:
        raise ContractError(f"train.reduce_dtype must be fp32 or bf16, got {train.reduce_dtype!r}")
    learning_rate(train.steps, train)


def batch_share(config: RunConfig, world: World) -> Share:
    """What this rank reads per step. Raises ContractError, naming the nearest global batch that divides."""
    train = config.train
    try:
        accumulation = split_batch(train.global_batch, world.size, train.micro_batch)
    except ValueError as error:
        raise ContractError(str(error)) from error
    return Share(train.micro_batch, accumulation, world.rank, world.size)


def find_checkpoint(run: Run) -> ResumePoint:
    """Where to resume, as rank 0 decides: the run's newest whole checkpoint, else config.resume_from, else step 0."""
    resume_point = find_newest(run.folder)
    clean_up(run.folder, resume_point.rejected)
    if resume_point.folder is None and run.config.resume_from is not None:
        folder = checkpoint_folder(Path(run.config.resume_from))
        verify(folder)
        resume_point = ResumePoint(folder, int(read_meta(folder)["step"]), resume_point.rejected)
    run.journal.truncate(resume_point.step)
    refused = "; ".join(resume_point.rejected.values())
    if resume_point.folder is not None:
        reason = f"the newest that verifies ({refused})" if refused else "the newest checkpoint"
        run.journal.event(EVENT_RESUMED, resume_point.step, folder=str(resume_point.folder), reason=reason)
    elif refused:
        run.journal.event(EVENT_WARNING, 0, reason=f"no checkpoint verifies ({refused}): training starts from step 0")
    return resume_point


def initial_weights(run: Run, init_from: str) -> Path:
    """The folder of the weights to begin with, verified as rank 0 finds them. Raises CheckpointError."""
    folder = checkpoint_folder(Path(init_from))
    verify(folder, only=(MODEL_FILE, META_FILE))
    run.journal.event(EVENT_INITIALISED, 0, folder=str(folder))
    return folder


def load_initial(model: GPT, folder: Path) -> None:
    """The weights that a task begins with: of a tuned checkpoint its adapters are merged, and its head for classes is
    left out. Raises CheckpointError where they are of another model."""
    try:
        model.load_unpadded_state(plain_state(read_weights(folder), task_of(read_meta(folder))))
    except ValueError as error:
        raise CheckpointError(f"{folder}: does not fit the model of config.json: {error}") from error


def load_weights(model: GPT, folder: Path) -> None:
    """Raises CheckpointError where the checkpoint is of another model."""
    try:
        model.load_unpadded_state(read_weights(folder))
    except ValueError as error:
        raise CheckpointError(f"{folder}: does not fit the model of config.json: {error}") from error


def load_trainer_state(folder: Path, model: GPT, optimizers: list[Optimizer], scaler: LossScaler) -> None:
    """Raises CheckpointError where the state is of another model or optimizer."""
    state = read_trainer_state(folder)
    try:
        load_state_by_name(model, optimizers, state["optimizer"], own_part)
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{folder}: does not fit the optimizer of config.json: {error}") from error
    scaler.load_state_dict(state["scaler"])


class CompileError(RuntimeError):
    """The model cannot be compiled here, and the config does not allow a slower run."""


def compile_model(run: Run, model: GPT, data: TrainingData, share: Share, autocast: Autocast, *, step: int) -> str:
    """Compiles the model where the check passes on every rank; otherwise all run eagerly, with a warning event.

    Returns why it is not compiled, or nothing. Raises CompileError instead where train.require_compile says so.
    """
    device = run.world.device
    batches = [(ids.to(device), targets.to(device)) for ids, targets in check_batches(data, share, step)]
    fault = leader_first(run.world, lambda: compile_fault(model, batches, autocast))
    release_checks_memory(device)
    (broken,) = sum_over_ranks(run.world, [float(fault is not None)])
    if not broken:
        return ""
    model.compile_parts(False)
    why = fault or "another rank cannot compile"
    if run.config.train.require_compile:
        raise CompileError(f"{why}. Repair it, or set train.compile = false and agree to a slower run")
    run.journal.event(EVENT_WARNING, 0, reason=f"training uncompiled: {why}")
    return why


def check_batches(data: TrainingData, share: Share, step: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Micro-batches for the compile check, in each shape that the training has from this step on: what compiles at the
    start does not hold up a step later."""
    parts = [part for part in data.course.parts if step < part.last > part.first] or [data.course.parts[-1]]
    first, *later = parts
    steps = [min(first.first + number, first.last - 1) for number in range(CHECK_STEPS)]
    found = []
    for part, number in [*((first, number) for number in steps), *((part, part.first) for part in later)]:
        own = share.during(part, data.course)
        found.append(data.micro_batch(number, 0, own.size, own.rank, own.world))
    return found


def release_checks_memory(device: torch.device) -> None:
    """Gives back what the compile check's eager and compiled passes took, so that the run's peak is its own."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def started_fields(run: Run, engine: Engine, share: Share) -> Started:
    """The fields of the event `started`."""
    return {
        "total_steps": run.config.train.steps,
        "parameters": engine.model.parameter_count(),
        "device": torch.cuda.get_device_name(run.world.device) if run.world.device.type == "cuda" else "cpu",
        "ranks": run.world.size,
        "micro_batch": share.size,
        "accumulation": share.accumulation,
        "torch": torch.__version__,
        "compiled": engine.compiled,
        "compile_fault": engine.compile_fault,
        "attention": attention_kernel(engine.model.config, run.world.device, engine.dtype),
    }
