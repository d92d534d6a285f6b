"""What boot_hook.py starts when the machine boots: every training that was agreed to go on does, from its newest
checkpoint that verifies; so does what stores its checkpoints, and the queue.

A reboot counts as one death of a training (restarts.py). It must not wait for the trainings.

Example (started by the hook, never by hand)::

    python3 agent-HASH.pyz boot
"""

from __future__ import annotations

import time

from .contract.names import State
from .job import jobs
from .job.jobs import Job
from .job.power import boot_hook
from .queue import entries
from .system import files, gpus
from .system.paths import RUN_PATTERN, Places

CARDS_WITHIN_S = 300.0
LOOK_EVERY_S = 2.0


def main(places: Places) -> int:
    """Starts again what is to go on, and takes the hook away where nothing is. Twice is fine."""
    for run in filter(RUN_PATTERN.match, files.listing(places.jobs)):
        for job in jobs.of_run(places, run):
            if boot_hook.is_needed(job) and jobs.read_state(job)["state"] == State.LOST:
                _await_cards(job)
                jobs.revive_quietly(job)
            elif job.is_unattended:
                jobs.revive_quietly(job)
    entries.revive(places)
    boot_hook.settle(places)
    return 0


def _await_cards(job: Job) -> None:
    """A driver may need a moment after the boot; a training that starts before it would count as one that cannot."""
    wanted, ends = set(job.spec.get("gpus") or []), time.monotonic() + CARDS_WITHIN_S
    while wanted and time.monotonic() < ends:
        if wanted <= {card["uuid"] for card in gpus.read_gpus()[0]}:
            return
        time.sleep(LOOK_EVERY_S)
