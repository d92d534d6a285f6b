"""The ranks of a run: joining, agreeing, leaving. One process per GPU under torchrun; without torchrun, one rank alone.

It must not know what is trained. Everything it needs comes from torchrun's environment variables.

Over several nodes rank 0 is on the node whose environment says TRAINER_LEADS=1, and what a rank has to tell all others
at once is a mark in torchrun's store, which outlives a restart of the ranks.

Example::

    world = join("auto", timeout_s=600)
    loss, stop = sum_over_ranks(world, [loss / world.size, float(stop())])
    leave(world)
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from trainer.run_files import LEADS

Value = TypeVar("Value")


@dataclass(frozen=True)
class World:
    """This process among its peers. `local_rank` is the index of its GPU on this machine."""

    rank: int
    size: int
    local_rank: int
    device: torch.device
    nodes: int = 1
    """Machines that the ranks are on, as many on each."""

    @property
    def leads(self) -> bool:
        """Rank 0 writes files and prints; the others only compute."""
        return self.rank == 0


def join(device: str, timeout_s: float) -> World:
    """Joins the process group that torchrun prepared; device is `auto`, `cuda` or `cpu`.

    timeout_s bounds every collective: a frozen peer ends the run instead of keeping a paid machine busy.
    """
    size, local_rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("LOCAL_RANK", "0"))
    nodes, where = int(os.environ.get("GROUP_WORLD_SIZE", "1")), _device(device, local_rank)
    if where.type == "cuda":
        torch.cuda.set_device(where)
    if size == 1:
        return World(0, 1, local_rank, where)
    on_gpu, timeout = where.type == "cuda", timedelta(seconds=timeout_s)
    store = _store(timeout)
    rank = leading_rank_first(int(os.environ["RANK"]), size, local_rank, store)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
        store=store,
        rank=rank,
        world_size=size,
        timeout=timeout,
        device_id=where if on_gpu else None,
    )
    return World(rank, size, local_rank, where, nodes)


def leading_rank_first(rank: int, size: int, local_rank: int, store: Store) -> int:
    """torchrun's rank, turned so that the first rank of the leading node is 0: a rendezvous may order nodes by their
    addresses, and the node that is asked for results has to write them. Without a mark of the nodes: as it is."""
    leads = os.environ.get(LEADS)
    if leads is None:
        return rank
    if leads == "1" and local_rank == 0:
        store.set("leading_rank", str(rank))
    return (rank - int(store.get("leading_rank"))) % size


def _store(timeout: timedelta) -> Store:
    """torchrun's store, with a prefix per start: a restart (smaller_batch.py) must not read older addresses."""
    store, _, _ = next(rendezvous("env://", timeout=timeout))
    return PrefixStore("start_" + os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store)


class Mark:
    """What one rank says to all others, wherever they wait: a key of torchrun's store, with a text. One rank alone
    says it to itself."""

    def __init__(self, name: str, store: Store | None = None) -> None:
        self.name, self.store, self.own = name, store, ""

    def put(self, text: str) -> None:
        """Sets it. The first text of all ranks stays."""
        if self.store is None:
            self.own = self.own or text
        else:
            self.store.compare_set(self.name, "", text)

    def text(self) -> str:
        """What it says; empty where no rank has set it, or the store is gone with its node."""
        if self.store is None:
            return self.own
        try:
            return self.store.get(self.name).decode() if self.store.check([self.name]) else ""
        except RuntimeError:
            self.store = None  # asked again, torch would fill the log with its stack
            return ""


def mark(world: World, name: str, timeout_s: float) -> Mark:
    """A mark of this start of the ranks. Its connection is its own: the process group's may be waiting."""
    return Mark(name, _store(timedelta(seconds=timeout_s)) if world.size > 1 else None)


def _device(choice: str, local_rank: int) -> torch.device:
    if choice == "cuda" or (choice == "auto" and torch.cuda.is_available()):
        return torch.device("cuda", local_rank)
    return torch.device("cpu")


def leave(world: World) -> None:
    """Waits for all, then leaves. Without the barrier gloo aborts at exit in 15-20 % of runs (measured, torch 2.13)."""
    if world.size > 1:
        dist.barrier()
        dist.destroy_process_group()


def sum_over_ranks(world: World, values: Sequence[float]) -> list[float]:
    """The sums of these numbers over all ranks, through the hosts: the GPU neither works nor is waited for."""
    together = torch.tensor(values, dtype=torch.float64)
    if world.size > 1:
        dist.all_reduce(together)
    return together.tolist()


def gathered(world: World, own: torch.Tensor) -> torch.Tensor:
    """(size, n): every rank's (n,), on every rank."""
    together = own.new_empty((world.size, *own.shape))
    dist.all_gather_into_tensor(together.view(-1), own)
    return together


def from_leader(world: World, value: Any) -> Any:
    """Rank 0's value on every rank. For small values at the start; pickled, so only between processes of one run."""
    box = [value]
    if world.size > 1:
        dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
    return box[0]


def leader_first(world: World, work: Callable[[], Value]) -> Value:
    """Rank 0 works, then all others: what it left in a cache of the machine spares them the same work, and eight ranks
    do not start eight times as many compilers on one disk."""
    if world.size > 1 and not world.leads:
        dist.barrier()
    result = work()
    if world.size > 1 and world.leads:
        dist.barrier()
    return result


def data_parallel(model: nn.Module, world: World, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The model with gradients averaged over ranks in dtype. Gradients live in the buckets: one copy less (652 MB for
    163M), but of several micro-batches, whose sum lies beside them until the last one.

    No static_graph: together with no_sync from the first micro-step it fails an assertion in the reducer.
    """
    if world.size == 1:
        return model
    devices = [world.device] if world.device.type == "cuda" else None
    wrapped = DistributedDataParallel(model, device_ids=devices, gradient_as_bucket_view=True)
    if dtype == torch.bfloat16 and world.device.type == "cuda":  # DDP's hook is NCCL's alone
        wrapped.register_comm_hook(None, bf16_compress_hook)
    return wrapped
