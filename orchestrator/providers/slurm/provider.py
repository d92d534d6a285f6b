"""Provider `slurm`: the login node stands there like a machine of your own; the jobs go through the engine beside it.

Example: `provider(host, machine).machines()[0].address.host`
"""

from __future__ import annotations

from orchestrator.core.config.inventory import HostSpec
from orchestrator.core.engine import Engine, JobOrder
from orchestrator.core.fleet.own_machine import StandingMachine
from orchestrator.core.machines import MachineType
from orchestrator.core.ports import Provider, Shell
from orchestrator.providers.slurm.engine import ASKS_S, Slurm
from orchestrator.providers.slurm.script import text


def provider(host: HostSpec, machine: MachineType) -> Provider:
    """The provider of a host entry."""
    return StandingMachine("slurm", host, machine)


def script(host: HostSpec, order: JobOrder) -> str:
    """What would be submitted, without a connection."""
    return text(order, host)


def engine(host: HostSpec, shell: Shell, asks_s: float = ASKS_S, since: float | None = None) -> Engine:
    """The queue behind a host entry, over a connection to its login node; asks_s: how long a question may take; since:
    no job that is asked for is older, in UTC epoch seconds."""
    return Slurm(host, shell, asks_s, since)
