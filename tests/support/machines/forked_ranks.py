"""Several ranks of the trainer on gloo as forks of this process: no interpreter starts, no port is opened."""

from __future__ import annotations

import os
import pickle
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from trainer.training.ranks import World


def in_ranks(size: int, folder: Path, work: Callable[[World], Any]) -> list[Any]:
    """What work(world) returned on each rank, in their order. AssertionError with the traceback of one that failed."""
    children = []
    for rank in range(size):
        if (pid := os.fork()) == 0:
            _child(rank, size, folder, work)
        children.append(pid)
    for pid in children:
        os.waitpid(pid, 0)
    results = [pickle.loads((folder / f"rank-{rank}").read_bytes()) for rank in range(size)]
    failed = [result for ok, result in results if not ok]
    assert not failed, failed[0]
    return [result for _, result in results]


def _child(rank: int, size: int, folder: Path, work: Callable[[World], Any]) -> None:
    torch.set_num_threads(1)
    try:
        dist.init_process_group("gloo", init_method=f"file://{folder}/store-{size}", rank=rank, world_size=size)
        result = (True, work(World(rank, size, 0, torch.device("cpu"))))
        if dist.is_initialized():  # a whole run leaves by itself
            dist.barrier()
    except BaseException:  # it must not go on in pytest
        result = (False, traceback.format_exc())
    (folder / f"rank-{rank}").write_bytes(pickle.dumps(result))
    os._exit(0)
