"""The jobs that the agent does itself, each a program of its own under the supervisor: install, pull, offload and
keep.

Secrets come on stdin; progress goes to stdout as JSON lines, the last of which is the result; the rest goes to stderr.

Example (started by programs.py, never by hand)::

    python3 agent-HASH.pyz work RUN install-1f0c9a7be2d4
"""

from __future__ import annotations

import json
import sys
from typing import Any, Sequence

from .job import jobs
from .system.paths import Places
from .system.refusal import Refusal, from_os_error


def main(places: Places, arguments: Sequence[str]) -> int:
    """Does the job; 0 when its result was said, 1 with the reason on stderr."""
    job = jobs.load(places, arguments[0], arguments[1])
    assert job is not None, "the supervisor loaded the same spec"
    secrets = json.loads(sys.stdin.buffer.read() or b"{}")
    try:
        say(_work(job, secrets))
    except (Refusal, OSError) as error:
        refusal = error if isinstance(error, Refusal) else from_os_error(error)
        sys.stderr.write("%s: %s\n" % (refusal.code, refusal.message))
        if refusal.hint:
            sys.stderr.write("hint: %s\n" % refusal.hint)
        return 1
    return 0


def _work(job: jobs.Job, secrets: dict[str, Any]) -> dict[str, Any]:
    if job.name == "install":
        from .setup.install import install

        return install(job, say)
    if job.name == "offload":
        from .checkpoints.offload import offload

        return offload(job, say)
    if job.name == "keep":
        from .checkpoints.home_box_caller import keep

        return keep(job, say)
    from .pull.pull import pull

    return pull(job, secrets, say)


def say(line: dict[str, Any]) -> None:
    """One line of progress, or the result."""
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()
