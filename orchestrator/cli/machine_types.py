"""Which machine type a host entry means: the one it names, or for `local` this computer."""

from __future__ import annotations

from orchestrator.core.config.inventory import HostSpec
from orchestrator.core.machines import MachineType, machine_type


def machines_of(host: HostSpec) -> list[MachineType]:
    """Every machine type that this host may be, the one it names first."""
    return [machine_of(host), *map(machine_type, host.machines)]


def machine_of(host: HostSpec) -> MachineType:
    """The host's machine type. Only `local` may omit it; then nvidia-smi and the number of cores decide."""
    if host.machine is not None:
        return machine_type(host.machine)
    from orchestrator.wiring import detect_local_machine

    return detect_local_machine()
