"""Provider `ssh`: a machine that is already running, such as a home box. It is never switched off.

Releasing it means ending its jobs and freeing its locks, which the agent does; nothing is left for the provider.

Example: `provider(host, machine).machines()[0].address.host`
"""

from __future__ import annotations

from orchestrator.core.config.inventory import HostSpec
from orchestrator.core.fleet.own_machine import StandingMachine
from orchestrator.core.machines import MachineType
from orchestrator.core.ports import Provider


def provider(host: HostSpec, machine: MachineType) -> Provider:
    """The provider of a host entry."""
    return StandingMachine("ssh", host, machine)
