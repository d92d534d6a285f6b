"""The answer to CUDA out of memory: the same job with a smaller micro-batch and more accumulation.

The processes replace themselves (exec): nothing else frees all of a GPU's memory, and torchrun keeps its processes.
Each rank watches for a mark in torchrun's store, because a rank that waits in a collective for the one
that ran out of memory would otherwise wait until the timeout. It must not change the global batch, and restarts once.

Example::

    answer = OutOfMemory(run_folder, world, mark(world, NAME, timeout_s=600))
    answer.watch()
    answer.restart_smaller(config.train, micro_batch, step=617)       # never returns
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import NoReturn, cast

import torch

from trainer.arithmetic import divisors
from trainer.contract import TrainConfig
from trainer.run_files import EVENT_MICRO_BATCH_REDUCED, EVENTS, HELD_DESCRIPTORS, MicroBatchReduced
from trainer.training.metrics import GIB, Journal, read_lines
from trainer.training.ranks import Mark, World

NAME = "out_of_memory"
POLL_S = 0.5


class OutOfMemoryTwice(RuntimeError):
    """The smaller micro-batch does not fit either, or there is none."""


def current_micro_batch(run_folder: Path, configured: int) -> int:
    """The configured micro-batch, or what an out-of-memory in this run reduced it to."""
    lines = [line for line in read_lines(run_folder / EVENTS) if line["event"] == EVENT_MICRO_BATCH_REDUCED]
    reduced = cast("list[MicroBatchReduced]", lines)
    return reduced[-1]["to"] if reduced and reduced[-1]["from"] == configured else configured


class OutOfMemory:
    """The restart of all ranks of all nodes after one of them ran out of memory."""

    def __init__(self, run_folder: Path, world: World, mark: Mark) -> None:
        self.run_folder, self.world, self.mark = run_folder, world, mark
        self._restarting = threading.Lock()

    def restart_smaller(self, train: TrainConfig, current: int, step: int) -> NoReturn:
        """Restarts all ranks with the next smaller divisor of a rank's share of the batch. Raises OutOfMemoryTwice.

        train: as configured; current: the micro-batch that did not fit.
        """
        configured, peak_gib = train.micro_batch, torch.cuda.max_memory_allocated() / GIB
        smaller = [size for size in divisors(train.global_batch // self.world.size) if size < current]
        if current != configured or not smaller:
            raise OutOfMemoryTwice(
                f"out of GPU memory at micro_batch {current} (peak {peak_gib:.1f} GiB)"
                + (f", after it was reduced from {configured}" if current != configured else "")
                + f": set train.micro_batch = {smaller[0] if smaller else 1}"
                + ("" if smaller else ", train.activation_checkpointing = true")
                + ", or take a card with more memory"
            )
        reduced = {"step": step, "from": current, "to": smaller[0], "peak_gib": round(peak_gib, 2)}
        self.mark.put(json.dumps(reduced))
        self.restart()

    def seen(self) -> bool:
        """Whether a rank ran out of memory: an error of this one then follows from that."""
        return bool(self.mark.text())

    def watch(self) -> None:
        """Starts a thread that restarts this rank as soon as another runs out of memory, wherever this one waits."""

        def wait_for_mark() -> None:
            while not self.seen():
                time.sleep(POLL_S)
            self.restart()

        if self.world.size > 1:
            threading.Thread(target=wait_for_mark, name="out-of-memory watch", daemon=True).start()

    def restart(self) -> NoReturn:
        """Runs the same command line in the same process. Rank 0 writes the event, since the next start reads it from
        its folder. The count gives the new process group its prefix in the store."""
        self._restarting.acquire()  # never released: watcher and main thread may both get here
        if self.world.leads:
            reduced = json.loads(self.mark.text())
            Journal(self.run_folder).event(EVENT_MICRO_BATCH_REDUCED, reduced.pop("step"), **reduced)
        os.environ["TORCHELASTIC_RESTART_COUNT"] = str(int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) + 1)
        held = {"0", "1", "2", *os.environ.get(HELD_DESCRIPTORS, "").split(",")}
        for descriptor in os.listdir("/dev/fd"):
            with contextlib.suppress(OSError):  # the listing's own is gone already
                os.set_inheritable(int(descriptor), descriptor in held)  # a GPU's or a peer's must not live on
        sys.stdout.flush()
        sys.stderr.flush()
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
