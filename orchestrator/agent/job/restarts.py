"""Whether a training that died starts again from its newest checkpoint, and when: bounded, with pauses, and never where
the next start would die as the last one did.

A death is written down before anything starts again, and each start says how many came before it, so a supervisor
that is killed in between, or a reboot, counts it too, and only once.

Example::

    decide([Death(from_step=0, step=150)], bound=2)                # (2.0, '')
    decide([Death(from_step=100, step=100)], bound=2)              # (None, 'it made no step since its last start')
"""

from __future__ import annotations

import os
import time
from typing import Mapping, Sequence

from trainer import run_files

from ..contract.answers import Death
from ..contract.names import FileName, Outcome
from ..system import files, processes
from . import stopping
from .exit_record import death_reason
from .jobs import Job
from .power import boot_hook

REBOOTED = "the machine was rebooted"
PAUSES_S = (2.0, 30.0, 120.0, 300.0)


def decide(deaths: Sequence[Death], bound: int) -> tuple[float | None, str]:
    """Seconds until the next start; or None, and why there is none. deaths: all of this training, the newest last."""
    if bound <= 0:
        return None, ""
    newest = deaths[-1]
    if len(deaths) > bound:
        return None, "it died %d times, and restarts is %d" % (len(deaths), bound)
    if newest["step"] <= newest["from_step"]:
        return None, "it made no step since its last start"
    if len(deaths) > 1 and deaths[-2]["step"] == newest["step"]:
        return None, "two starts died at step %d without progress" % newest["step"]
    return PAUSES_S[min(len(deaths), len(PAUSES_S)) - 1], ""


def after_end(job: Job, code: int | None, cause: str = "", hindered: str = "") -> float | None:
    """Writes the death down and says in how many seconds it starts again; None where it does not: it finished, it was
    asked to end, or it has died often enough. cause: another node's; hindered: why not all nodes can start again."""
    bound = job.spec.get("restarts") or 0
    if not job.is_train or not bound or not has_died(job) or not _may_go_on(job):
        return None
    if (known := _not_started_since(job)) is not None:
        return known["pause_s"]
    reason = REBOOTED if not _same_boot(job) else cause or death_reason(job, code)
    death: Death = {
        "number": len(job.deaths()) + 1, "from_step": _from_step(job), "step": last_step(job.run_folder),
        "reason": reason, "at": time.time(), "pause_s": None,
    }  # fmt: skip
    pause_s, why_not = (None, hindered) if hindered else decide([*job.deaths(), death], int(bound))
    death["pause_s"] = pause_s
    death["reason"] += "" if pause_s is not None else "; not started again: %s" % why_not
    files.append_json(job.file(FileName.DEATHS), death)
    if pause_s is not None:
        forget_end(job)
    return pause_s


def _not_started_since(job: Job) -> Death | None:
    """The last death, where the start that was to follow never came: its supervisor was killed in the pause."""
    deaths, answered = job.deaths(), _start(job).get("deaths")
    never_came = bool(deaths) and deaths[-1]["pause_s"] is not None and answered == len(deaths) - 1
    return deaths[-1] if never_came else None


def forget_end(job: Job) -> None:
    """Removes what a start that died left: the watchdog's request, torchrun's and the trainer's word."""
    for path in (job.file(FileName.STOP), job.file(FileName.ERROR), os.path.join(job.run_folder, run_files.EXIT)):
        files.remove(path)


def note_start(job: Job) -> None:
    """Which checkpoint a start begins from, what a death is measured by; and how many deaths came before it."""
    start = {"step": newest_checkpoint(job.run_folder), "deaths": len(job.deaths())}
    files.write_json(job.file(FileName.STARTED_FROM), start)


def last_step(run_folder: str) -> int:
    """The last step in its metrics; 0 without one."""
    line = next(filter(None, map(run_files.metric_line, files.last_json_lines(_metrics(run_folder)))), None)
    return line.step if line else 0


def _metrics(run_folder: str) -> str:
    return os.path.join(run_folder, run_files.METRICS)


def _start(job: Job) -> Mapping[str, object]:
    """What the last start wrote down of itself."""
    return files.read_json(job.file(FileName.STARTED_FROM)) or {}


def _from_step(job: Job) -> int:
    step = _start(job).get("step")
    return step if isinstance(step, int) else 0


def newest_checkpoint(run_folder: str) -> int:
    """The step of the newest one that is whole; 0 without one."""
    folder = os.path.join(run_folder, run_files.CHECKPOINTS)
    steps = [
        run_files.checkpoint_step(name)
        for name in files.listing(folder)
        if os.path.isfile(os.path.join(folder, name, run_files.MANIFEST_FILE))
    ]
    return max((step for step in steps if step is not None), default=0)


def has_died(job: Job) -> bool:
    """Whether it ended by itself and badly, or by the watchdog: not by a person, a limit or the provider."""
    request = stopping.read_request(job)
    said = (files.read_json(os.path.join(job.run_folder, run_files.EXIT)) or {}).get("outcome")
    if request is not None and request["outcome"] == Outcome.FAILED:  # a rank that heard of it may say `stopped`
        return said != run_files.OUTCOME_FINISHED
    return request is None and said in (None, Outcome.FAILED)


def _may_go_on(job: Job) -> bool:
    """After a reboot only where that was agreed to."""
    return _same_boot(job) or boot_hook.goes_on(job)


def _same_boot(job: Job) -> bool:
    program = job.state_file().get("program")
    return program is None or program["boot_id"] in ("", processes.boot_id())
