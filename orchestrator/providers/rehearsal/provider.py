"""Provider `rehearsal`: the lambda provider on a cloud on this computer, which costs nothing and misbehaves on request.

The cloud is a program of its own (docs/guides/rehearsal.md), with its state in GPTCTL_HOME/rehearsal. Buying starts it,
and so does listing machines that it left running; prices need no cloud. It outlives every gptctl command.

Example: `provider(host, machine).offers()[0].source` -> "simulated, bundled 2026-08-18"
"""

from __future__ import annotations

import fcntl
import getpass
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from orchestrator.core import machines
from orchestrator.core.config.gptctl_home import home_folder
from orchestrator.core.config.inventory import SECRET_KEYS, HostSpec
from orchestrator.core.errors import ProviderError, UserError
from orchestrator.core.fleet.odd_rows import OddRows
from orchestrator.core.machines import MachineType
from orchestrator.core.ports import EndCall, Guard, Instance, LaunchRequest, Life, Offer, Provider, Shell
from orchestrator.providers.lambda_cloud.api import LambdaApi
from orchestrator.providers.lambda_cloud.provider import LambdaCloud, open_api

STATE_VARIABLE = "GPTCTL_REHEARSAL"
"""Another state folder than GPTCTL_HOME/rehearsal: a cloud that survives the loss of the home folder."""
START_DEADLINE_S = 60.0
BAD_ARGUMENTS = 2
ON_POWER_OFF = {"on-power-off": "terminate"}
"""What this cloud takes for EC2's InstanceInitiatedShutdownBehavior; other machines are billed on, as Lambda's are."""
SPOT = {"market": "spot"}
SPOT_PERCENT = 40
"""Of the price on demand: what orchestrator/rehearsal/cloud.py charges for a machine with that tag."""


def provider(host: HostSpec, machine: MachineType) -> Provider:
    """The provider of a host entry."""
    return RehearsalProvider("rehearsal", host, machine)


def state_folder() -> Path:
    """Where the cloud keeps its books, its key and its machines."""
    named = os.environ.get(STATE_VARIABLE)
    return Path(named).expanduser().absolute() if named else home_folder() / "rehearsal"


@dataclass(frozen=True)
class CloudEntry:
    """Where the cloud that runs can be reached, as its server.json says."""

    url: str
    key_file: str
    ssh_port: int
    pid: int

    @classmethod
    def from_json(cls, text: str) -> CloudEntry:
        """Raises ValueError for what is not a whole entry."""
        try:
            found = json.loads(text)
            return cls(str(found["url"]), str(found["key_file"]), int(found["ssh_port"]), int(found["pid"]))
        except (KeyError, TypeError) as error:
            raise ValueError(f"server.json of the rehearsal cloud: {error!r}") from error


def start(inject: str = "") -> CloudEntry:
    """Starts the cloud or finds it, and arms faults such as "no-capacity,terminate-500"."""
    return CloudEntry.from_json(_program("--daemon", *([f"--inject={inject}"] if inject else [])))


def stop(*, destroy: bool = True) -> None:
    """Ends the cloud, and with `destroy` its machines. Fine when there is none."""
    if state_folder().exists():
        _program("--stop", *(["--destroy"] if destroy else []))


def running() -> CloudEntry | None:
    """The cloud that runs, which holds a lock on its state folder; None if there is none."""
    state = state_folder()
    try:
        descriptor = os.open(state / "lock", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return _entry(state)
    finally:
        os.close(descriptor)
    return None


def _entry(state: Path) -> CloudEntry | None:
    try:
        return CloudEntry.from_json((state / "server.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None  # it is just starting


def _program(*arguments: str) -> str:
    """What the cloud's program prints; nothing here imports it. Raises ProviderError with its words."""
    argv = [sys.executable, "-m", "orchestrator.rehearsal", "--state", str(state_folder()), *arguments]
    package_root = str(Path(__file__).resolve().parents[2])
    # It outlives this command, and has no business with the user's keys.
    variables = {name: value for name, value in os.environ.items() if not SECRET_KEYS.search(name)}
    variables["PYTHONPATH"] = os.pathsep.join(filter(None, [package_root, variables.get("PYTHONPATH", "")]))
    try:
        done = subprocess.run(
            argv, env=variables, capture_output=True, text=True, timeout=START_DEADLINE_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise ProviderError(f"the rehearsal cloud did not answer within {START_DEADLINE_S:.0f} s") from error
    if done.returncode:
        words = done.stderr.strip().splitlines()[-1:] or ["no word"]
        if done.returncode == BAD_ARGUMENTS:
            raise UserError(words[0].rpartition("error: ")[2], hint="see docs/reference/rehearsal-faults.md")
        raise ProviderError(f"the rehearsal cloud: {words[0]}", hint=f"see {state_folder() / 'server.log'}")
    return done.stdout


@dataclass
class RehearsalProvider:
    """LambdaCloud, which starts the cloud behind it when a call needs it."""

    name: str
    host: HostSpec
    machine: MachineType
    paid: bool = True
    settle_s: float = 20.0
    longest_boot_s: float = 120.0
    ends_by_power_off: bool = True
    billing_unit_s: float = 60.0
    odd: OddRows = field(default_factory=OddRows, repr=False)

    def offers(self, deadline_s: float = 30.0) -> Sequence[Offer]:
        """Those of the running cloud, else the bundled prices. Both are marked simulated."""
        entry = running()
        if entry is None:
            return self._bundled()
        offers = self._cloud(entry).offers(deadline_s)
        return self._markets([replace(offer, source="rehearsal API (simulated)") for offer in offers])

    def _bundled(self) -> list[Offer]:
        return self._markets(
            [
                replace(offer, provider=self.name, machine=name, source=f"simulated, {offer.source}")
                for name in self._names
                for offer in _sold_as(name)
            ]
        )

    def _markets(self, offers: Sequence[Offer]) -> list[Offer]:
        """On demand, and where the host rents on the spot market, that too."""
        spot = [
            replace(each, spot=True, price_per_hour_usd=int(each.price_per_hour_usd * SPOT_PERCENT + 1e-6) / 100)
            for each in offers
            if self.host.spot
        ]
        return [*offers, *spot]

    def machines(self) -> Sequence[Instance]:
        """Those with our tag. A cloud that is off and left no machine running is not started to say so."""
        if running() is None and (not state_folder().exists() or not json.loads(_program("--books"))["alive"]):
            return []
        return self._cloud(running() or start()).machines()

    def acquire(self, request: LaunchRequest) -> Instance:
        """As LambdaCloud.acquire; a bundled offer names no region, so the cloud's first one is taken."""
        cloud = self._cloud(running() or start())
        if self.host.guard == "self":
            request = replace(request, tags={**request.tags, **ON_POWER_OFF})
        if request.offer.spot:
            request = replace(request, tags={**request.tags, **SPOT})
        if request.offer.region:
            return cloud.acquire(request)
        sold = [offer for offer in cloud.offers() if offer.machine == request.offer.machine]
        sold = [replace(request.offer, sku=offer.sku, region=offer.region) for offer in sold]
        return cloud.acquire(replace(request, offer=sold[0]) if sold else request)

    def release(self, instance: Instance) -> bool:
        """As LambdaCloud.release."""
        return self._cloud(running() or start()).release(instance)

    def find(self, instance_id: str, region: str = "") -> Life:
        """As LambdaCloud.find."""
        return self._cloud(running() or start()).find(instance_id)

    def take_warnings(self) -> Sequence[str]:
        """As LambdaCloud.take_warnings."""
        return self.odd.take()

    def ended_at(self, instance: Instance) -> float | None:
        """As LambdaCloud.ended_at."""
        return self._cloud(running() or start()).ended_at(instance)

    def set_deadline(self, instance: Instance, ends_at: float) -> None:
        """As LambdaCloud.set_deadline."""
        self._cloud(running() or start()).set_deadline(instance, ends_at)

    def guard(self, instance: Instance) -> Guard:
        """As LambdaCloud.guard, which asks nobody."""
        return self._cloud(None).guard(instance)

    def end_call(self, instance: Instance) -> EndCall | None:
        """As LambdaCloud.end_call: the machine is on this computer too, and asks the same address."""
        return self._cloud(running() or start()).end_call(instance)

    def allow_caller(self, instance: Instance, via: Shell | None = None) -> None:
        """Its machines are on this computer."""

    def notice_url(self, instance: Instance) -> str | None:
        """A spot machine's metadata, which the cloud itself answers for."""
        return f"{(running() or start()).url}/metadata/{instance.instance_id}" if self.host.spot else None

    def tidy(self, rental_id: str) -> Sequence[str]:
        """As LambdaCloud.tidy."""
        return ()

    @property
    def _names(self) -> list[str]:
        """The host's machine types, this run's last: what it is called here goes before."""
        others = [name for name in (self.host.machine, *self.host.machines) if name and name != self.machine.name]
        return [*others, self.machine.name]

    def _cloud(self, entry: CloudEntry | None) -> LambdaCloud:
        def connect() -> LambdaApi:
            there = entry or start()
            key = Path(there.key_file).read_text(encoding="utf-8").strip()
            return open_api("the rehearsal cloud", there.url, key, every_s={})

        skus = {offer.sku: name for name in self._names for offer in _sold_as(name)}
        port, user = entry.ssh_port if entry else 22, getpass.getuser()
        return LambdaCloud(self.name, self.host, self.machine, connect, port, user, names=skus, odd=self.odd)


def _sold_as(machine: str) -> list[Offer]:
    """What Lambda sells under that name: `8xA100-40GB-simulated` is its `8xA100-40GB`."""
    bundled = machines.bundled_offers(machine) or machines.bundled_offers(machine.removesuffix("-simulated"))
    return [offer for offer in bundled if offer.provider in ("rehearsal", "lambda")][:1]
