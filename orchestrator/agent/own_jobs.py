"""The jobs that the agent does itself, each a program of its own under the supervisor: install, meet, pull,
offload and keep.

Secrets come on stdin; progress goes to stdout as JSON lines, the last of which is the result; the rest goes to stderr.

Example (started by job/program.py, never by hand)::

    python3 agent-HASH.pyz work RUN install-1f0c9a7be2d4
"""

from __future__ import annotations

import contextlib
import json
import sys
from typing import Mapping, Sequence

from .contract.names import FileName, JobName
from .job import jobs
from .system import files
from .system.paths import Places
from .system.refusal import Refusal, as_refusal


def main(places: Places, arguments: Sequence[str]) -> int:
    """Does the job; 0 when its result was said, 1 with the reason on stderr."""
    job = jobs.load(places, arguments[0], arguments[1])
    assert job is not None, "the supervisor loaded the same spec"
    secrets = json.loads(sys.stdin.buffer.read() or b"{}")
    try:
        say(_work(job, secrets))
    except (Refusal, OSError) as error:
        _report(job, as_refusal(error))
        return 1
    return 0


def _report(job: jobs.Job, refusal: Refusal) -> None:
    """For programs in a file that becomes part of exit.json, for people in the log."""
    sys.stderr.write("%s: %s\n" % (refusal.code, refusal.message))
    if refusal.hint:
        sys.stderr.write("hint: %s\n" % refusal.hint)
    with contextlib.suppress(OSError):  # a full disk: the log was opened before
        files.write_json(job.file(FileName.REFUSAL), refusal.failure())


def _work(job: jobs.Job, secrets: jobs.Secrets) -> Mapping[str, object]:
    if job.name == JobName.INSTALL:
        from .setup.install import install

        return install(job, say)
    if job.name == JobName.OFFLOAD:
        from .checkpoints.offload import offload

        return offload(job, say)
    if job.name == JobName.KEEP:
        from .checkpoints.home_box_caller import keep

        return keep(job, say)
    if job.name == JobName.MEET:
        from .setup.meet import meet

        return meet(job)
    from .pull.pull import pull

    return pull(job, secrets, say)


def say(line: Mapping[str, object]) -> None:
    """One line of progress, or the result."""
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()
