"""The table [hosts.NAME.slurm] of the inventory: what a site's Slurm wants to know of a job.

It must not know Slurm's commands; providers/slurm does.

Example: `SlurmSpec(partition="gpu", account="lab", time="4:00:00")`
"""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, Field, StringConstraints

from orchestrator.core.config.toml_tables import Line, Table

Word = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.,:|&()*\[\]@=+-]{0,199}$")]
"""An argument of sbatch: no space, no quote, no leading dash."""
Module = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_./+-]{0,199}$")]


def _ends(time: str) -> str:
    if not re.search("[1-9]", time):
        raise ValueError("to sbatch 0 means without any limit: omit it for the partition's own")
    return time


Time = Annotated[str, StringConstraints(pattern=r"^([0-9]{1,4}-)?[0-9]{1,6}(:[0-9][0-9]){0,2}$"), AfterValidator(_ends)]


class SlurmSpec(Table):
    """How jobs are submitted on this cluster."""

    partition: Word | None = None
    """Partition, or several with commas; absent: the cluster's default."""
    account: Word | None = None
    """Account that pays; absent: your default."""
    qos: Word | None = None
    """Quality of service."""
    constraint: Word | None = None
    """Node features, such as `a100&ib`."""
    gres: Word | None = None
    """Cards of each node as Slurm names them, such as `gpu:h100:8`; absent: as many as `machine` has."""
    cpus: int | None = Field(default=None, ge=1, le=1024)
    """Cores of each node; absent: one for each CPU rank, four for each card."""
    time: Time | None = None
    """Longest time of one start, as sbatch takes it, such as `4:00:00`. A longer run is requeued and resumes."""
    warn_s: int = Field(default=120, ge=30, le=3600)
    """So long before that time is over the trainer writes a checkpoint."""
    modules: tuple[Module, ...] = ()
    """The site's modules that are loaded first, such as `["cuda/12.8", "pytorch/2.9"]`. Where `python` is absent, their
    `python3` trains if it has torch."""
    setup: tuple[Line, ...] = ()
    """Further lines of shell before the training, such as `export NCCL_DEBUG=INFO`."""
    interface: Word | None = None
    """Network interface between the nodes, such as `ib0`; absent: NCCL and gloo choose."""

    @property
    def before(self) -> tuple[str, ...]:
        """Lines of a login shell before all else."""
        load = (f"module load {' '.join(self.modules)}",) if self.modules else ()
        return (*load, *self.setup)
