"""`torchrun --standalone --nproc_per_node=N -m trainer RUN_DIR`, or `python -m trainer RUN_DIR` for one rank.

Reads RUN_DIR/config.json, trains, and always leaves RUN_DIR/exit.json behind: {"outcome", "step", "total_steps",
"reason", "time"}. Exits 0 for finished and stopped, 1 for failed. SIGTERM or a file `stop` ends the run after the
step, with a checkpoint; SIGUSR1 prints the stacks of all threads. It must not train; loop.py does.
"""

from __future__ import annotations

import dataclasses
import faulthandler
import json
import os
import signal
import sys
import time
from pathlib import Path
from types import TracebackType

from torch.distributed.elastic.multiprocessing.errors import record

from trainer.contract import ContractError, RunConfig
from trainer.run_files import (
    CONFIG,
    EVENT_FAILED,
    EXIT,
    OUTCOME_FAILED,
    OUTCOME_STOPPED,
    STOP,
    TEMPORARY_PREFIX,
    ExitRecord,
)
from trainer.training.allocator import keep_freed_memory
from trainer.training.failures import explain, is_ours, is_out_of_memory
from trainer.training.loop import Progress, StopRequest, train
from trainer.training.metrics import Journal
from trainer.training.ranks import from_leader, join, mark
from trainer.training.smaller_batch import NAME, OutOfMemory, current_micro_batch
from trainer.training.start import Run

USAGE = "usage: torchrun --standalone --nproc_per_node=N -m trainer RUN_DIR   (or: python -m trainer RUN_DIR)"


class ExitFile:
    """Writes exit.json, whatever ends the block. The first rank to write wins: errors of the others follow from its."""

    def __init__(self, run_folder: Path, progress: Progress) -> None:
        self.run_folder, self.progress = run_folder, progress
        self.rank = int(os.environ.get("RANK", "0"))
        self.memory: OutOfMemory | None = None
        """Once there, an error may follow from a peer that ran out of memory."""

    def __enter__(self) -> ExitFile:
        if os.environ.get("LOCAL_RANK", "0") == "0" and (self.run_folder / EXIT).exists():
            (self.run_folder / STOP).unlink(missing_ok=True)  # meant for the start before this one
            (self.run_folder / EXIT).unlink()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if error is None:
            return
        if self.memory is not None and self.memory.seen():
            self.memory.restart()
        reason = f"rank {self.rank}: {explain(error)}"
        if self.write(OUTCOME_FAILED, reason):
            Journal(self.run_folder).event(EVENT_FAILED, self.progress.step, reason=reason)

    def write(self, outcome: str, reason: str) -> bool:
        """Returns False where another rank was first."""
        value: ExitRecord = {
            "outcome": outcome,
            "step": self.progress.step,
            "total_steps": self.progress.total_steps,
            "reason": reason,
            "time": round(time.time(), 3),
        }
        fresh = self.run_folder / f"{TEMPORARY_PREFIX}{EXIT}-{self.rank}"
        fresh.write_text(json.dumps(value, indent=1) + "\n")
        try:
            os.link(fresh, self.run_folder / EXIT)  # unlike rename, link refuses to replace
        except FileExistsError:
            return False
        finally:
            fresh.unlink()
        return True


def run(run_folder: Path, exit_file: ExitFile, progress: Progress) -> None:
    """Joins the ranks, trains, and writes exit.json. Answers out of memory with a restart."""
    stop = StopRequest(run_folder)
    config = read_config(run_folder)
    world = join(config.device, config.train.process_group_timeout_s)
    if world.device.type == "cpu":
        keep_freed_memory()
    micro_batch = from_leader(world, current_micro_batch(run_folder, config.train.micro_batch))
    memory = OutOfMemory(run_folder, world, mark(world, NAME, config.train.process_group_timeout_s))
    memory.watch()
    exit_file.rank, exit_file.memory = world.rank, memory
    fitted = dataclasses.replace(config, train=dataclasses.replace(config.train, micro_batch=micro_batch))
    journal = Journal(run_folder, enabled=world.leads)
    try:
        outcome = train(Run(run_folder, fitted, world, journal), stop, progress)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        memory.restart_smaller(config.train, micro_batch, progress.step)
    if world.leads:
        exit_file.write(outcome, "SIGTERM or the file stop" if outcome == OUTCOME_STOPPED else "all steps done")
        stop.file.unlink(missing_ok=True)


def read_config(run_folder: Path) -> RunConfig:
    """Raises ContractError, naming the file."""
    path = run_folder / CONFIG
    try:
        return RunConfig.from_json(path.read_text(encoding="utf-8"))
    except (OSError, ContractError) as error:
        raise ContractError(f"{path}: {error}") from error


@record
def train_recorded(run_folder: Path) -> None:
    """Trains. `record` leaves an error's traceback where torchrun finds it."""
    progress = Progress()
    with ExitFile(run_folder, progress) as exit_file:
        run(run_folder, exit_file, progress)


def main() -> None:
    """Runs the program. An error of the trainer prints one line on stderr, any other its traceback."""
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    if len(sys.argv) != 2 or not Path(sys.argv[1]).is_dir():
        sys.exit(USAGE)
    try:
        train_recorded(Path(sys.argv[1]).resolve())
    except (ValueError, RuntimeError) as error:
        if not is_ours(error):
            raise
        sys.exit(f"trainer: {error}")


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(
        0
    )  # everything is on disk: what the libraries' threads do while the interpreter ends can only spoil the code
