"""The steps that a run leaves out: from a checkpoint before a streak of non-finite gradients to the streak's end
(`train.skip_back`). They count as steps, and their batches train nothing, as for any step that is skipped.

One file in the run folder, `skipped.json`: `[[300, 420]]` means that step 420 follows on step 300, and that no
checkpoint in between is resumed from. A run that is moved without it meets the streak again, and skips it then.

Example::

    skip = before_streak([100, 200, 300], at_step=360, streak=10, log_every=10)     # (300, 360)
    past([(300, 360)], 300)                                                         # 360
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from trainer.run_files import TEMPORARY_PREFIX

FILE = "skipped.json"
Skips = Sequence[tuple[int, int]]
"""(from, to): after step `from` comes `to` + 1."""


def read(run_folder: Path) -> Skips:
    """What this run leaves out; nothing where the file is not there or cannot be read."""
    try:
        stored = json.loads((run_folder / FILE).read_text())
        return [(int(first), int(last)) for first, last in stored]
    except (OSError, ValueError, TypeError):
        return []


def add(run_folder: Path, skip: tuple[int, int]) -> None:
    """Writes one more; it replaces those that begin at the same checkpoint or a later one."""
    kept = [each for each in read(run_folder) if each[0] < skip[0]]
    fresh = run_folder / f"{TEMPORARY_PREFIX}{FILE}"
    fresh.write_text(json.dumps([*kept, skip]) + "\n")
    fresh.replace(run_folder / FILE)


def before_streak(checkpoints: Iterable[int], at_step: int, streak: int, log_every: int) -> tuple[int, int] | None:
    """From the newest of these checkpoints that was surely saved before the streak, which was seen at at_step and began
    at most streak + log_every steps before it; None: there is none."""
    earlier = [step for step in checkpoints if 0 < step <= at_step - streak - log_every]
    return (max(earlier), at_step) if earlier else None


def past(skips: Skips, step: int) -> int:
    """The number of steps that count as done after `step`."""
    return max([step, *(last for first, last in skips if first == step)])


def left_out(skips: Skips, step: int) -> bool:
    """Whether a checkpoint of this step is inside of what is left out."""
    return any(first < step <= last for first, last in skips)


def trained(skips: Skips, done: int, steps: int) -> Iterator[int]:
    """The numbers of the steps that are still trained, counted from 0."""
    while (done := past(skips, done)) < steps:
        yield done
        done += 1
