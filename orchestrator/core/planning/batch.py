"""The split of a recipe's global batch over a machine: micro-batch x accumulation x ranks, and whether it fits.

It must not change the global batch: the mathematics of a recipe never depends on the machine.

Example: `choose_batch(recipe, machine_type("8xA100-40GB"))` is micro-batch 12, accumulation 1, fits.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from orchestrator.core.config.recipe import Recipe, check_sharding
from orchestrator.core.machines import MachineType
from trainer.arithmetic import (
    LOSS_CHUNKS,
    divisors,
    fewest_loss_chunks,
    largest_micro_batch,
    memory_gib,
    nearest_global_batch,
    split_batch,
)

USABLE = 0.975
"""Of the memory a card is sold with; a 40 GB card shows 39 GiB."""
CPU_MICRO_BATCH = 8
"""Larger micro-batches gain nothing on a CPU and only cost memory."""


@dataclass(frozen=True)
class Batch:
    """Sequences per forward pass of a rank, and how many passes make one step. `why` says why it does not fit."""

    ranks: int
    micro_batch: int
    accumulation: int
    fits: bool = True
    why: str = ""


def choose_batch(recipe: Recipe, machine: MachineType) -> Batch:
    """The recipe's micro-batch for this machine, or the largest that fits and divides.

    One that does not fit or divide comes back with `fits` False and the reason; its numbers serve estimates only.
    """
    wanted = recipe.micro_batch_for(machine.name)
    batch = _largest(recipe, machine) if wanted is None else _given(recipe, machine, wanted)
    uneven = [stage.global_batch for stage in recipe.stages if stage.global_batch % batch.ranks]
    if not batch.fits or not uneven:
        return batch
    why = f"train.stages: a global batch of {uneven[0]} does not divide over {batch.ranks} ranks"
    return dataclasses.replace(batch, fits=False, why=why)


def split(global_batch: int, ranks: int, micro_batch: int) -> Batch:
    """The split for a given micro-batch; `why` names the nearest global batch when it does not divide."""
    try:
        return Batch(ranks, micro_batch, split_batch(global_batch, ranks, micro_batch))
    except ValueError as error:
        return Batch(ranks, micro_batch, max(1, round(global_batch / (ranks * micro_batch))), False, str(error))


def _given(recipe: Recipe, machine: MachineType, micro_batch: int) -> Batch:
    batch = split(recipe.train.global_batch, machine.ranks, micro_batch)
    needed, free = _needed_gib(recipe, micro_batch, machine.ranks), _free_gib(machine)
    if not batch.fits or free is None or needed <= free:
        return batch
    why = f"micro-batch {micro_batch} needs about {needed:.1f} GiB of {free:.1f} GiB per GPU"
    why += _instead(recipe, machine)
    return Batch(batch.ranks, micro_batch, batch.accumulation, False, why)


def loss_chunks(recipe: Recipe, machine: MachineType, batch: Batch) -> int:
    """Into how many chunks the trainer cuts the loss there."""
    free = _free_gib(machine)
    if free is None:
        return LOSS_CHUNKS
    return fewest_loss_chunks(recipe.model.config(), batch.micro_batch, free, recipe.train, batch.ranks)


def _largest(recipe: Recipe, machine: MachineType) -> Batch:
    whole, ranks = recipe.train.global_batch, machine.ranks
    share, left = divmod(whole, ranks)
    if left or not share:
        why = (
            f"a global batch of {whole} does not divide over {ranks} ranks; "
            f"the nearest that does is {nearest_global_batch(whole, ranks)}"
        )
        return Batch(ranks, 1, max(1, share), False, why)
    free = _free_gib(machine)
    if free is None:
        found = next(size for size in divisors(share) if size <= CPU_MICRO_BATCH)
        return split(whole, ranks, found)
    largest = _largest_fitting(recipe, share, free, ranks)
    if largest is None:
        why = f"even micro-batch 1 needs about {_needed_gib(recipe, 1, ranks):.1f} GiB of {free:.1f} GiB per GPU"
        return Batch(ranks, 1, share, False, why + _instead(recipe, machine))
    return split(whole, ranks, largest)


def _largest_fitting(recipe: Recipe, share: int, free_gib: float, ranks: int) -> int | None:
    train = recipe.train
    return largest_micro_batch(
        recipe.model.config(),
        share,
        free_gib,
        train.precision,
        activation_checkpointing=train.activation_checkpointing,
        optimizer=train.optimizer,
        ranks=ranks,
        zero_stage=train.zero_stage,
        parallel=train.parallel,
    )


def _needed_gib(recipe: Recipe, micro_batch: int, ranks: int) -> float:
    train = recipe.train
    return memory_gib(
        recipe.model.config(),
        micro_batch,
        train.precision,
        train.activation_checkpointing,
        train.optimizer,
        ranks=ranks,
        zero_stage=train.zero_stage,
        parallel=train.parallel,
    )


def _instead(recipe: Recipe, machine: MachineType) -> str:
    """What cutting the model over the cards would change, where DDP does not fit one."""
    sharded = with_parallel(recipe, "fsdp")
    free, share = _free_gib(machine), recipe.train.global_batch // machine.ranks
    if recipe.train.parallel == "fsdp" or sharded is None or free is None or machine.ranks == 1:
        return ""
    largest = _largest_fitting(sharded, share, free, machine.ranks)
    if largest is None:
        return ""
    needed = _needed_gib(sharded, largest, machine.ranks)
    return f'; train.parallel = "fsdp" fits at micro-batch {largest}: about {needed:.1f} GiB'


def ddp_and_fsdp(recipe: Recipe, machine: MachineType) -> str:
    """Of a recipe that is cut over the cards: what each card would need with a whole copy, and needs, at the largest
    micro-batch that fits; empty where that says nothing."""
    free, whole = _free_gib(machine), with_parallel(recipe, "ddp")
    share, left = divmod(recipe.train.global_batch, machine.ranks)
    if recipe.train.parallel != "fsdp" or free is None or whole is None or machine.ranks == 1 or left or not share:
        return ""
    words = []
    for name, each in (("DDP", whole), ("FSDP", recipe)):
        largest = _largest_fitting(each, share, free, machine.ranks)
        needed = _needed_gib(each, largest or 1, machine.ranks)
        fits = f"fits at micro-batch {largest}" if largest else "does not fit at micro-batch 1"
        words.append(f"{name} {fits} (about {needed:.1f} GiB)")
    return f"{' and '.join(words)} of {free:.1f} GiB per GPU"


def with_parallel(recipe: Recipe, parallel: str) -> Recipe | None:
    """The recipe with another train.parallel; None where fsdp cannot do what it asks for."""
    train = recipe.train.model_copy(update={"parallel": parallel})
    if parallel == "fsdp":
        try:
            check_sharding(train, recipe.task.config().kind)
        except ValueError:
            return None
    return recipe.model_copy(update={"train": train})


def _free_gib(machine: MachineType) -> float | None:
    """Memory of one card that a trainer can use; None on CPU, where it is not what limits."""
    return machine.gpu.memory_gib * USABLE if machine.gpu and machine.cuda else None
