"""What becomes of a training whose ranks have ended here: of several nodes the head decides, by the rules of
restarts.py, and only where each of them waits for it. One verdict: all start again, or none.

Example: `verdict(job, code, others, rest)`      # (2.0, 'node b (10.0.0.3) failed: rank 1 was killed by SIGKILL')
"""

from __future__ import annotations

from typing import Callable

from . import restarts, stopping
from .exit_record import death_reason, is_other_node
from .jobs import Job
from .nodes import Nodes

Rest = Callable[[], None]
"""Waits a moment, and lets the lease go on."""


def verdict(job: Job, code: int | None, others: Nodes | None, rest: Rest) -> tuple[float | None, str]:
    """In how many seconds it starts again, None: not; and why it died, as far as another node knows."""
    if others is None:  # of several nodes: all of it here was killed, and the others hold this one for lost
        return None if job.spec.get("cluster") else restarts.after_end(job, code), ""
    in_good_order = is_other_node(job) and code == 0 and not stopping.read_request(job)
    if in_good_order or not restarts.has_died(job):
        return None, ""
    cause = others.died(death_reason(job, code) or "its ranks ended", rest)
    if is_other_node(job):
        return _as_the_head(job, others, rest), cause
    hindered = others.missing(rest) if job.spec.get("restarts") else ""
    return restarts.after_end(job, code, cause, hindered), cause


def _as_the_head(job: Job, others: Nodes, rest: Rest) -> float | None:
    """Waits for the head's word, as long as it lives."""
    while (again := others.head_starts_again()) is None:
        rest()
        if not restarts.has_died(job):  # it is asked to end
            return None
    if again:
        restarts.forget_end(job)
        return 0.0
    if others.wish()[0]:
        stopping.request_stop(job, *others.wish(), 0.0)
    return None
