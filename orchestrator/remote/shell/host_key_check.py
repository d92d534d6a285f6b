"""Whether a machine is who it was, decided from its host key alone, before anything else is sent to it.

An identity met before must show its pinned key. First contact needs a voucher: the inventory's fingerprint, the user's
own known_hosts, or an explicit --accept-new-host-key. Nothing here connects; `ssh.py` asks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.core.errors import HostKeyChanged, HostKeyUnknown
from orchestrator.remote.shell import known_hosts
from orchestrator.remote.shell.known_hosts import HostKey
from orchestrator.remote.shell.ssh_endpoint import Endpoint


@dataclass(frozen=True)
class Trust:
    """Where keys are pinned, what the user's own ssh knows, and whether unknown keys may be accepted."""

    pins: Path
    user_file: Path
    accept_new: bool = False

    def expected(self, endpoint: Endpoint, fingerprint: str | None) -> tuple[HostKey, ...]:
        """The only keys this machine may show; empty where nothing but `admit` can decide. Raises HostKeyChanged where
        the inventory's fingerprint and every pinned key differ: either may be wrong, so nobody is dialled."""
        keys = known_hosts.pinned(self.pins, endpoint.identity)
        if keys and fingerprint is not None and fingerprint.rstrip("=") not in {key.fingerprint for key in keys}:
            raise self._contradicted(endpoint, fingerprint, keys)
        if keys or fingerprint is not None:
            return keys
        return known_hosts.vouched(self.user_file, endpoint.vouched_names)

    def decide(self, endpoint: Endpoint, fingerprint: str | None, expected: Sequence[HostKey], shown: HostKey) -> None:
        """For a key that is not the one and only we go by: one of several, or a first contact."""
        if not expected:
            self.admit(endpoint, fingerprint, shown)
        elif shown not in expected:
            raise self.changed(endpoint, expected, shown)

    def admit(self, endpoint: Endpoint, fingerprint: str | None, shown: HostKey) -> None:
        """Pin the key of a first contact. HostKeyChanged, HostKeyUnknown: nothing but our version string was sent."""
        if fingerprint is not None and fingerprint.rstrip("=") != shown.fingerprint:
            raise HostKeyChanged(
                f"{endpoint} shows the {shown.kind} key {shown.fingerprint}, but its inventory entry "
                f"says {fingerprint}. Nothing was sent.",
                hint="compare on the machine's console: ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub",
            )
        if fingerprint is None and not self.accept_new:
            raise HostKeyUnknown(
                f"first contact with {endpoint}, and nothing vouches for its {shown.kind} key {shown.fingerprint}",
                hint=f'if that is its key, put fingerprint = "{shown.fingerprint}" into its inventory entry, '
                "or give --accept-new-host-key",
            )
        self.remember(endpoint, shown)

    def remember(self, endpoint: Endpoint, shown: HostKey) -> None:
        known_hosts.pin(self.pins, endpoint.identity, shown)

    def _contradicted(self, endpoint: Endpoint, fingerprint: str, keys: Sequence[HostKey]) -> HostKeyChanged:
        old = ", ".join(f"{key.kind} {key.fingerprint}" for key in keys)
        return HostKeyChanged(
            f"the inventory entry of {endpoint} says {fingerprint}, but the key known from the first contact is {old}. "
            "Nothing was sent.",
            hint="correct `fingerprint` in the inventory. If the machine was reinstalled: "
            f"ssh-keygen -R '{endpoint.identity.lower()}' -f '{self.pins}'",
        )

    def changed(self, endpoint: Endpoint, expected: Sequence[HostKey], shown: HostKey) -> HostKeyChanged:
        """What to say when the machine shows another key than the one we go by."""
        old = ", ".join(f"{key.kind} {key.fingerprint}" for key in expected)
        pinned = known_hosts.pinned(self.pins, endpoint.identity)
        file, name = (self.pins, endpoint.identity.lower()) if pinned else (self.user_file, endpoint.vouched_names[0])
        return HostKeyChanged(
            f"the host key of {endpoint} changed: known {old}, shown {shown.kind} {shown.fingerprint}. "
            "Nothing was sent.",
            hint=f"the line may be intercepted. If the machine was reinstalled: ssh-keygen -R '{name}' -f '{file}'",
        )
