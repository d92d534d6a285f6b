"""A machine that is already there: what the providers `local` and `ssh` have in common. It buys and ends nothing.

Example: `StandingMachine("ssh", host, machine).machines()[0].address`
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.core.config.inventory import SSH, HostSpec
from orchestrator.core.machines import MachineType
from orchestrator.core.ports import EndCall, Guard, Instance, LaunchRequest, Life, Offer, Shell


def goes_on_after_reboot(host: HostSpec) -> bool:
    """Whether a training there goes on by itself when the machine boots again. Of several nodes none does: one that
    starts again alone meets nobody."""
    return not host.nodes and (host.on_reboot == "continue" or (host.on_reboot is None and host.provider == SSH))


@dataclass
class StandingMachine:
    """A Provider of exactly one machine, which has no bill and is never switched off."""

    name: str
    host: HostSpec
    machine: MachineType
    paid: bool = False
    settle_s: float = 0.0
    longest_boot_s: float = 0.0
    ends_by_power_off: bool = False
    billing_unit_s: float = 1.0

    def offers(self, deadline_s: float = 30.0) -> Sequence[Offer]:
        """The one machine, at the inventory's price."""
        return [Offer(self.name, self.machine.name, self._price_per_hour_usd, source="inventory")]

    def machines(self) -> Sequence[Instance]:
        """The one machine. Whether it answers, only a connection tells."""
        price = self._price_per_hour_usd
        return [Instance(self.name, self.host.name, self.machine.name, self.host.reach(), price_per_hour_usd=price)]

    def acquire(self, request: LaunchRequest) -> Instance:
        """Takes what is there."""
        return self.machines()[0]

    def take_warnings(self) -> Sequence[str]:
        """None: no list is read."""
        return ()

    def find(self, instance_id: str, region: str = "") -> Life:
        """It is always there."""
        return "alive"

    def release(self, instance: Instance) -> bool:
        """Leaves it on: the agent has ended its jobs and freed its locks."""
        return True

    def ended_at(self, instance: Instance) -> float | None:
        """Never: it does not end with a run."""
        return None

    def set_deadline(self, instance: Instance, ends_at: float) -> None:
        """The agent's lease ends jobs at most."""

    def guard(self, instance: Instance) -> Guard:
        """None is needed."""
        return Guard()

    def end_call(self, instance: Instance) -> EndCall | None:
        """Nobody ends it."""
        return None

    def allow_caller(self, instance: Instance, via: Shell | None = None) -> None:
        """It has no firewall of ours."""

    def notice_url(self, instance: Instance) -> str | None:
        """Nobody takes it away."""
        return None

    def tidy(self, rental_id: str) -> Sequence[str]:
        """Nothing was made beside it."""
        return ()

    @property
    def _price_per_hour_usd(self) -> float:
        return self.host.price_per_hour_usd or 0.0
