"""Opens the shell that an address asks for: of this machine, or by SSH.

Example: `open_shell(home, rental.address).run(["uptime"])`
"""

from __future__ import annotations

from pathlib import Path

from orchestrator.core.ports import Address, Shell
from orchestrator.remote.shell.local_shell import LocalShell


def open_shell(home: Path, address: Address, *, accept_new: bool = False, deadline_s: float = 10.0) -> Shell:
    """A connection to a machine; this one needs none."""
    if address.host is None:
        return LocalShell(address)
    # Only now: the SSH library costs more time than a whole `gptctl plan`.
    from orchestrator.remote.shell import ssh_shell

    return ssh_shell.connect(
        address, known_hosts=home / "known_hosts", accept_new=accept_new, connect_deadline_s=deadline_s
    )
