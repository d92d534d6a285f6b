"""The account: launches, boots, ends and bills machines. Handles no HTTP and no JSON; api/ does.

The books say what happened. A cloud that was killed between a line and its act finishes the act at its next start.
Machines run without the cloud: they keep running while it is down.

Example::

    cloud = Cloud(state, Settings(boot_s=1))
    ids = cloud.launch(order)         # returns at once; the machine is active after boot_s
    cloud.terminate(ids)
"""

from __future__ import annotations

import secrets
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from orchestrator.rehearsal.books.books import FILE_NAME, Event, Instance, Journal, SshKey, instances_at
from orchestrator.rehearsal.catalogue import REGIONS, TYPES
from orchestrator.rehearsal.faults import Faults
from orchestrator.rehearsal.machines import machine
from orchestrator.rehearsal.machines.disk import Disk, write_disk, write_sshd_config
from orchestrator.rehearsal.settings import Settings

HIDDEN_S = 5.0
"""How long a region without capacity stays unlisted."""
ADDRESS_TRIES = 100
SPOT = ("market", "spot")
SPOT_PERCENT = 40
"""Of the catalogue's price, for a machine with that tag; Lambda itself has no such market."""
BOOT_FAULTS = (
    "stuck-booting",
    "unhealthy",
    "unhealthy-billed",
    "bad-gpu",
    "newer-image",
    "host-key-ignored",
    "clock-off",
)


@dataclass(frozen=True)
class Order:
    """A valid launch request."""

    type: str
    region: str
    ssh_key_name: str
    name: str = ""
    hostname: str = ""
    file_systems: tuple[str, ...] = ()
    image: str = ""
    user_data: str = ""
    tags: tuple[tuple[str, str], ...] = ()


@dataclass
class Market:
    """Current prices and capacity."""

    percent: float = 100.0
    hidden_until: dict[str, float] = field(default_factory=dict)


class Cloud:
    """One account. Its methods may be called from any thread."""

    def __init__(self, state: Path, settings: Settings) -> None:
        self.state = state
        self.settings = settings
        self.faults = Faults(state)
        self._lock = threading.RLock()
        self._machine_locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        self._books = Journal(state / FILE_NAME)
        self._market = Market()
        self._keys: dict[str, SshKey] = {}
        for event in self._books.events:
            self._replay(event)

    def _replay(self, event: Event) -> None:
        if event["event"] == "key_added":
            self._keys[event["key"]["id"]] = event["key"]
        elif event["event"] == "key_deleted":
            self._keys.pop(event["id"], None)
        elif event["event"] == "prices_changed":
            self._market.percent = event["percent"]

    def inject(self, script: str) -> None:
        """Arms faults. Raises ValueError for an unknown one."""
        self.faults.arm(script)
        while decoys := self.faults.take("decoys"):
            self._add_decoys(int(float(decoys.argument)))

    # Reading

    def instances(self, lag_s: float = 0.0) -> dict[str, Instance]:
        """Every instance that lists show, as the account was lag_s seconds ago."""
        moment = time.time() - lag_s
        known = instances_at(self._books.events, moment)
        return {key: one for key, one in known.items() if one.gone_at is None or one.gone_at > moment}

    def events(self) -> list[Event]:
        """The books' lines, oldest first."""
        return list(self._books.events)

    def price_cents(self, name: str) -> int:
        """Current price per hour of instance type `name`."""
        return int(TYPES[name]["price_cents_per_hour"] * self._market.percent / 100)

    def _asked_cents(self, order: Order) -> int:
        """What a machine costs per hour that is launched now, by its market."""
        cents = self.price_cents(order.type)
        return cents * SPOT_PERCENT // 100 if SPOT in order.tags else cents

    def change_prices(self, percent: float) -> None:
        """Sets prices to `percent` of the catalogue's; running instances keep theirs."""
        with self._lock:
            self._replay(self._books.append("prices_changed", percent=percent))

    def hide(self, region: str) -> None:
        """Unlists a sold-out region for HIDDEN_S."""
        self._market.hidden_until[region] = time.time() + HIDDEN_S

    def listed_regions(self) -> list[str]:
        return [name for name in REGIONS if self._market.hidden_until.get(name, 0) <= time.time()]

    # SSH keys

    def ssh_keys(self) -> list[SshKey]:
        return list(self._keys.values())

    def add_ssh_key(self, name: str, public_key: str) -> SshKey:
        key: SshKey = {"id": uuid.uuid4().hex, "name": name, "public_key": public_key}
        with self._lock:
            self._replay(self._books.append("key_added", key=key))
        return key

    def delete_ssh_key(self, key_id: str) -> bool:
        with self._lock:
            known = key_id in self._keys
            if known:
                self._replay(self._books.append("key_deleted", id=key_id))
        return known

    # Launching

    def launch(self, order: Order) -> str:
        """Buys one instance and returns its id; it boots in the background."""
        with self._lock:
            instance = self._new_instance(order)
            disk = self.disk(instance)
            public_key = next(key["public_key"] for key in self._keys.values() if key["name"] == order.ssh_key_name)
            write_disk(disk, public_key, order.user_data, faults=instance.faults, image=self.settings.image)
            self._record_launch(instance)
        self._in_background(self._boot, instance)
        self.faults.open_windows("launch")
        return instance.id

    def _add_decoys(self, count: int) -> None:
        """Adds machines of other people: the first without tags, the others with tags that gptctl does not use."""
        for number in range(count):
            tags = (("team", "vision"), ("gptctl-lookalike", "no")) if number else ()
            decoy = self._blank(Order("gpu_8x_h100_sxm5", "us-east-1", "colleague", f"colleague-{number}", tags=tags))
            self._record_launch(replace(decoy, foreign=True))
            self._books.append("active", id=decoy.id, ip_at=time.time())

    def _blank(self, order: Order) -> Instance:
        return Instance(
            id=uuid.uuid4().hex, name=order.name, type=order.type, region=order.region,
            price_cents_per_hour=self._asked_cents(order), minute_s=self.settings.minute_s,
            launched_at=time.time(), ssh_key_name=order.ssh_key_name, image=order.image, hostname=order.hostname,
            file_systems=order.file_systems,
            tags=order.tags, ip=self._free_address(), jupyter_token=secrets.token_hex(16),
            boot_s=self.settings.boot_s,
        )  # fmt: skip

    def _new_instance(self, order: Order) -> Instance:
        """A new instance with the faults that fire at its launch."""
        blank = self._blank(order)
        fired = tuple(str(fault) for name in BOOT_FAULTS if (fault := self.faults.take(name, on=blank.id)))
        slow = self.faults.take("slow-boot", on=blank.id)
        reused = self._last_address() if self.faults.take("reused-ip", on=blank.id) else ""
        boot_s = float(slow.argument) if slow else blank.boot_s
        dearer = self.faults.take("dearer-launch", on=blank.id)
        cents = int(blank.price_cents_per_hour * float(dearer.argument if dearer else 100) / 100)
        return replace(blank, faults=fired, boot_s=boot_s, ip=reused or blank.ip, price_cents_per_hour=cents)

    def _record_launch(self, instance: Instance) -> None:
        self._books.append("launched", instance={**asdict(instance), "tags": list(instance.tags)})

    def _free_address(self) -> str:
        """A random 127.x.y.z that no instance had and no program answers at."""
        taken = {one.ip for one in instances_at(self._books.events).values()}
        for _ in range(ADDRESS_TRIES):
            high, middle, low = 64 + secrets.randbelow(64), 1 + secrets.randbelow(254), 1 + secrets.randbelow(254)
            address = f"127.{high}.{middle}.{low}"
            if address not in taken and not machine.answers(self._disk_at("probe", address)):
                return address
        raise RuntimeError(f"found no loopback address with port {self.settings.ssh_port} free")

    def _last_address(self) -> str:
        ended = [one for one in instances_at(self._books.events).values() if one.ended_at and not one.foreign]
        return max(ended, key=lambda one: one.ended_at or 0).ip if ended else ""

    def disk(self, instance: Instance) -> Disk:
        """The disk of an instance's machine."""
        return self._disk_at(instance.id, instance.ip)

    def _disk_at(self, name: str, address: str) -> Disk:
        return Disk(self.state / "machines" / name[:12], address, self.settings.ssh_port, self.settings.python)

    def _boot(self, instance: Instance) -> None:
        """Waits for the rest of the boot time, then switches the machine on and starts its bill."""
        if "stuck-booting" in instance.faults:
            return
        time.sleep(max(0.0, instance.launched_at + instance.boot_s - time.time()))
        with self._machine_locks[instance.id]:
            if not self._still_boots(instance):
                return
            machine.power_on(self.disk(instance))
            with self._lock:
                if self._still_boots(instance):
                    self._record_boot(instance)

    def _record_boot(self, instance: Instance) -> None:
        if {"unhealthy", "unhealthy-billed"} & set(instance.faults):
            self._books.append("unhealthy", id=instance.id, billed="unhealthy-billed" in instance.faults)
            return
        hidden = self.faults.take("active-without-ip", on=instance.id)
        self._books.append("active", id=instance.id, ip_at=time.time() + (float(hidden.argument) if hidden else 0))

    def _still_boots(self, instance: Instance) -> bool:
        return instances_at(self._books.events)[instance.id].status == "booting"

    # Changing and ending

    def rename(self, instance: Instance, name: str) -> None:
        with self._lock:
            self._books.append("renamed", id=instance.id, name=name)

    def terminate(self, instance: Instance) -> None:
        """Ends the bill now and every process of the machine soon. Repeatable."""
        self._end(instance, "terminating")
        self.faults.open_windows("terminate")

    def relapse(self, instance: Instance, within_s: float) -> None:
        """Shows it as terminated for so long, and active again then. It lives, and its bill runs, all the time."""
        with self._lock:
            self._books.append("relapsing", id=instance.id, relapses_at=time.time() + within_s)

    def reboot_elsewhere(self, instance: Instance) -> None:
        """Reboots it with another address."""
        self._in_background(self._move, instance)

    def _move(self, instance: Instance) -> None:
        with self._machine_locks[instance.id]:
            machine.kill(self.disk(instance))
            with self._lock:
                self._books.append("moved", id=instance.id, ip=self._free_address())
            disk = self.disk(instances_at(self._books.events)[instance.id])
            write_sshd_config(disk)
            machine.power_on(disk)

    def preempt(self, instance: Instance) -> None:
        """The provider takes the machine back."""
        self._end(instance, "preempted")

    def give_notice(self, instance: Instance) -> None:
        """Announces the preemption in the instance metadata, and carries it out in time."""
        with self._lock:
            event = self._books.append("notice", id=instance.id, taken_at=time.time() + self.settings.notice_s)
        self._in_background(self._take_when_due(event), instance)

    def recommend_rebalance(self, instance: Instance) -> None:
        """Recommends in the instance metadata to move on; nothing follows."""
        with self._lock:
            self._books.append("rebalance", id=instance.id)

    def _take_when_due(self, event: Event) -> Callable[[Instance], None]:
        def take(instance: Instance) -> None:
            time.sleep(max(0.0, event["taken_at"] - time.time()))
            if instances_at(self._books.events)[instance.id].status == "active":
                self.preempt(instance)

        return take

    def _end(self, instance: Instance, status: str) -> None:
        self._record_end(instance, status)
        self._in_background(self._wipe, instance)

    def _record_end(self, instance: Instance, status: str) -> None:
        with self._lock:
            if instances_at(self._books.events)[instance.id].status not in ("terminating", "terminated"):
                self._books.append("ended", id=instance.id, status=status)

    def _wipe(self, instance: Instance) -> None:
        """Ends every process; a terminated instance leaves the lists linger_s later, with slow-terminate much later."""
        with self._machine_locks[instance.id]:
            if not instance.foreign:
                machine.destroy(self.disk(instance))
            now = instances_at(self._books.events)[instance.id]
            if now.status == "terminating":
                if slow := self.faults.take("slow-terminate", on=instance.id):
                    time.sleep(float(slow.argument))
                self._books.append("wiped", id=instance.id, gone_at=time.time() + self.settings.linger_s)

    # Restarting

    def recover(self) -> None:
        """After a restart: finishes boots and ends, and switches on machines that a reboot of this computer ended."""
        for instance in self.instances().values():
            if instance.foreign:
                continue
            if instance.status == "booting":
                self._in_background(self._boot, instance)
            elif instance.status in ("terminating", "preempted"):
                self._in_background(self._wipe, instance)
            elif instance.status == "active":
                self._in_background(self._keep_on, instance)
                for event in self._books.events:
                    if event["event"] == "notice" and event["id"] == instance.id:
                        self._in_background(self._take_when_due(event), instance)

    def _keep_on(self, instance: Instance) -> None:
        disk = self.disk(instance)
        with self._machine_locks[instance.id]:
            if disk.folder.exists() and not machine.is_on(disk) and not machine.was_shut_down(disk):
                machine.power_on(disk)

    def terminate_all(self) -> None:
        """Ends every machine that is not foreign, and waits for it."""
        for instance in self.instances().values():
            if not instance.foreign:
                self._record_end(instance, "terminating")
                self._wipe(instance)

    def _in_background(self, act: Callable[[Instance], None], instance: Instance) -> None:
        threading.Thread(target=act, args=(instance,), daemon=True).start()
