"""Where everything is under ROOT. Names from requests become paths here and nowhere else.

Example::

    places = Places("/root/.gptctl/agent/agent-3f9c0d2a71b8e456.pyz")
    [sys.executable, "-I", "-S", places.code, "guard"]     # another process of the same agent
    places.job("quickstart-1120-k3f9qa", "train", digest)   # /root/.gptctl/jobs/quickstart-1120-k3f9qa/train
"""

from __future__ import annotations

import hashlib
import os
import re

from ..contract.names import JOB_NAMES, Code, JobName
from .refusal import Refusal

RUN_PATTERN = re.compile(r"[a-z0-9][a-z0-9-]{0,39}\Z")


class Places:
    """The folders of the agent that runs from `code`: its zipapp, or that zipapp unpacked beside it for this boot.
    ROOT is the parent of its folder. `program` is the zipapp in either case: what a next boot can count on."""

    def __init__(self, code: str) -> None:
        self.code = os.path.abspath(code)
        self.program = self.code if self.code.endswith(".pyz") else self.code.rpartition("-")[0] + ".pyz"
        self.root = os.path.dirname(os.path.dirname(self.program))
        self.agent = os.path.join(self.root, "agent")
        self.envs = os.path.join(self.root, "envs")
        self.runs = os.path.join(self.root, "runs")
        self.jobs = os.path.join(self.root, "jobs")
        self.cache = os.path.join(self.root, "cache")
        self.guard = os.path.join(self.root, "guard")
        self.queue = os.path.join(self.root, "queue")

    def run(self, run: str) -> str:
        """The run folder: the trainer's contract, nothing of the agent."""
        return os.path.join(self.runs, checked_run(run))

    def jobs_of(self, run: str) -> str:
        """The folder with the run's lease and its jobs."""
        return os.path.join(self.jobs, checked_run(run))

    def queued(self, run: str) -> str:
        """The file of a run that waits in the queue."""
        return os.path.join(self.queue, checked_run(run) + ".json")

    def job(self, run: str, job: str, digest: str) -> str:
        """The folder of a job. A train job is known by its run alone, any other also by its input."""
        if job not in JOB_NAMES:
            raise Refusal(Code.BAD_REQUEST, "unknown job %r; known: %s" % (job, ", ".join(JOB_NAMES)))
        if job == JobName.TRAIN:
            return os.path.join(self.jobs_of(run), JobName.TRAIN)
        return os.path.join(self.jobs_of(run), "%s-%s" % (job, hashlib.sha256(digest.encode()).hexdigest()[:12]))


def checked_run(run: object) -> str:
    """The run's name, which becomes a folder's name: nothing else may."""
    if not isinstance(run, str) or not RUN_PATTERN.match(run):
        raise Refusal(
            Code.BAD_REQUEST, "%r is not a run id: use lower-case letters, digits and dashes, 40 at most" % (run,)
        )
    return run
