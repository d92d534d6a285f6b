"""The port Engine, beside Provider: what takes jobs and sells no machine, such as Slurm. And the values that cross it.

An engine runs a job whenever it has room, may end it and start it again, and keeps its own books. A run's truth stays
in its folder, which every node sees; the engine says why nothing is written there yet, or no more.

Example::

    job = engine.submit("/shared/me/gptctl/runs/quickstart-1130-k3f9qa/job.sh")
    engine.look(job).phase               # Phase.WAITING
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol


class Phase(StrEnum):
    """Where a job is."""

    WAITING = "waiting"
    RUNNING = "running"
    ENDED = "ended"


@dataclass(frozen=True)
class JobOrder:
    """One job: what its script is made from. Paths are on the cluster, in folders that every node sees."""

    run: str
    root: str
    """gptctl's folder."""
    agent: str
    """The agent's program."""
    python: str
    """The interpreter that trains."""
    source: str
    """PYTHONPATH of the trainer."""
    ranks: int
    """Processes on each node."""
    gpus: int = 0
    """Cards of each node."""
    nodes: int = 1
    longest_s: float | None = None
    """What the limits of the run leave; None: nothing limits it."""
    arms: tuple[str, ...] = ()
    """The runs of a sweep: one job with an element for each, where `run` is the sweep. It is submitted held, and each
    run lets its own element go."""

    @property
    def folder(self) -> str:
        """The run's folder."""
        return f"{self.root}/runs/{self.run}"

    @property
    def name(self) -> str:
        """The job's name, by which it is found again."""
        return job_name(self.run)


def job_name(run: str) -> str:
    """The name of a run's job."""
    return f"gptctl-{run}"


@dataclass(frozen=True)
class JobView:
    """A job as its engine describes it. `state` and `reason` are the engine's own words."""

    id: str
    phase: Phase
    state: str
    reason: str = ""
    starts_at: float | None = None
    """UTC epoch seconds: when it began, or of one that waits, when the engine expects it to."""
    nodes: str = ""


@dataclass(frozen=True)
class Span:
    """One start of a job, as the engine's books have it."""

    state: str
    seconds: float
    nodes: int
    gpus: int
    """Of all nodes together; 0 too where the books do not track them."""
    is_over: bool = True
    """Whether the books have its end; else `seconds` is not the last word."""

    @property
    def gpu_hours(self) -> float:
        """Cards x hours."""
        return self.gpus * self.seconds / 3600

    @property
    def node_hours(self) -> float:
        """Nodes x hours."""
        return self.nodes * self.seconds / 3600


class Engine(Protocol):
    """A queue of jobs. Every call raises NoAnswer where the engine is silent, which says nothing about a job."""

    def script(self, order: JobOrder) -> str:
        """The job as a text that you can read and submit yourself."""
        ...

    def interpreter(self) -> str | None:
        """A program that is the site's own Python, ready for training; None where the site offers none."""
        ...

    def trial(self, order: JobOrder) -> str:
        """A job of a minute with the same demands, which prints `node NAME`, `folder` and torch for each node."""
        ...

    def submit(self, script: str) -> str:
        """Queues the script at this path and returns the job's id. Raises UserError with the engine's own words where
        it refuses. Never repeated without find(): the first answer may have been lost."""
        ...

    def look(self, job: str) -> JobView | None:
        """The job now; None where the engine knows nothing of it, or no more."""
        ...

    def words(self, found: JobView) -> str:
        """Why a job waits, with what you can do about it; empty where nothing is to be said."""
        ...

    def let_go(self, job: str) -> None:
        """Lets a job start that was submitted held. Repeatable. A refusal is NoAnswer too: the job still waits."""
        ...

    def cancel(self, job: str) -> None:
        """Ends the job, whether it waits or runs. Repeatable."""
        ...

    def find(self, name: str) -> Sequence[str]:
        """The ids of all jobs of this name that the engine remembers, the oldest first."""
        ...

    def usage(self, jobs: Sequence[str]) -> Sequence[Span] | None:
        """Every start of these jobs; None where the engine keeps no books."""
        ...

    def test(self, order: JobOrder) -> str:
        """Whether it would take such a job, and when that could start, in its own words. Raises UserError as submit
        does. Queues nothing."""
        ...
