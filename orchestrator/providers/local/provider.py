"""Provider `local`: this machine, without SSH. It is always there, and it is never switched off.

Example: `provider(host, machine).machines()[0].address.host is None`
"""

from __future__ import annotations

from orchestrator.core.config.inventory import HostSpec
from orchestrator.core.fleet.own_machine import StandingMachine
from orchestrator.core.machines import MachineType
from orchestrator.core.ports import Provider


def provider(host: HostSpec, machine: MachineType) -> Provider:
    """The provider of a host entry."""
    return StandingMachine("local", host, machine)
