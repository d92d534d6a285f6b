"""Provider `lambda`: machines of Lambda Cloud. docs/guides/lambda.md says what is known about it, and what is not.

What matters for money: a launch has no idempotency token, so acquire is one POST and never a second. Tags cannot change
but the name can, so the name carries the deadline a watcher goes by. Nothing on the machine ends the bill.

Example::

    cloud = provider(host, machine)                       # the key: LAMBDA_API_KEY
    instance = cloud.acquire(LaunchRequest(rental_id, intent_id, cloud.offers()[0], ends_at, user_data=text))
    cloud.set_deadline(instance, ends_at)                 # the machine's name: gptctl-RENTAL-until-EPOCH
    cloud.release(instance)
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property

from orchestrator.core import machines
from orchestrator.core.config.gptctl_home import home_folder
from orchestrator.core.config.inventory import HostSpec
from orchestrator.core.errors import BadCredentials, NoAnswer, ProviderError, UserError
from orchestrator.core.fleet import machine_names
from orchestrator.core.fleet.machine_names import ENDS_TAG, INTENT_TAG, RENTAL_TAG, machine_name, number_in, rental_of
from orchestrator.core.fleet.odd_rows import OddRows
from orchestrator.core.machines import MachineType
from orchestrator.core.planning.limits import DEAREST_PER_HOUR_USD
from orchestrator.core.ports import Address, EndCall, Guard, Instance, LaunchRequest, Life, Offer, Provider, Shell
from orchestrator.core.suggest import one_of
from orchestrator.providers.lambda_cloud import api
from orchestrator.providers.lambda_cloud.api import LambdaApi, Missing
from orchestrator.providers.lambda_cloud.rows import InstanceType, Machine, Order, Rows, Sold, T
from orchestrator.remote.shell.key_pairs import login_key_file, login_public_key
from orchestrator.remote.web.json_api import WebApi
from orchestrator.remote.web.request_pace import Pace

KEY_VARIABLE = "LAMBDA_API_KEY"
LAUNCHED_TAG = "gptctl-launched-at"
"""Epoch seconds by our clock: the API has no field for it."""
CARD = re.compile(r"(?P<card>[A-Z]+[0-9]+) \((?P<memory_gib>[0-9]+) GB SXM[0-9]*\)")
ENDED = re.compile("terminat|delet|preempt", re.IGNORECASE)
"""Audit actions that end a bill. Their exact words are in no document."""
ENDED_STATUSES = ("terminated", "preempted")
SEEN_WITHIN_S = 30.0
LOOK_EVERY_S = 1.0


def provider(host: HostSpec, machine: MachineType) -> Provider:
    """The provider of a host entry. The key is read when there is something to ask."""

    def connect() -> LambdaApi:
        key = os.environ.get(KEY_VARIABLE, "").strip()
        if not key:
            raise BadCredentials(f"{KEY_VARIABLE} is not set", hint=api.KEY_HINT)
        return open_api("Lambda Cloud", host.endpoint or api.ENDPOINT, key, api.EVERY_S)

    names = {offer.sku: machine.name for offer in machines.bundled_offers(machine.name) if offer.provider == "lambda"}
    return LambdaCloud("lambda", host, machine, connect, names=names)


def open_api(name: str, endpoint: str, key: str, every_s: Mapping[str, float]) -> LambdaApi:
    """The account behind a key. Processes that use the same endpoint and home folder share its pace."""
    file = home_folder() / "pace" / f"{hashlib.sha256(endpoint.encode()).hexdigest()[:12]}.json"
    return LambdaApi(WebApi(name, endpoint + api.PATH, key, Pace(file, every_s)))


@dataclass
class LambdaCloud:
    """The account as one host entry sees it. Every call asks or acts once; only set_deadline reads lists repeatedly."""

    name: str
    host: HostSpec
    machine: MachineType
    connect: Callable[[], LambdaApi]
    port: int = 22
    user: str = "ubuntu"
    names: Mapping[str, str] = field(default_factory=dict)
    """Instance type -> our machine type, where it is known better than by its cards."""
    paid: bool = True
    settle_s: float = 600.0
    longest_boot_s: float = 1800.0
    ends_by_power_off: bool = False
    billing_unit_s: float = 60.0
    odd: OddRows = field(default_factory=OddRows, repr=False)

    @cached_property
    def _api(self) -> LambdaApi:
        return self.connect()

    def offers(self, deadline_s: float = 30.0) -> Sequence[Offer]:
        """All on sale: one offer per region with capacity, or one that is not available.

        Raises ProviderError when the price of this host's machine type is 0, negative or absurd.
        """
        homes = self._file_system_regions()
        found = [offer for sold in self._noted(self._api.types(deadline_s)) for offer in self._offers_of(sold)]
        return [
            offer if not homes or offer.region in homes else replace(offer, region="", available=False)
            for offer in found
        ]

    def _file_system_regions(self) -> set[str]:
        """Regions of the host's file systems, where they can be attached. Empty: it has none.

        Raises ProviderError for one that the account does not have, or for two in different regions.
        """
        if not self.host.file_systems:
            return set()
        known = {one.name: one.region.name for one in self._api.file_systems()}
        for name in self.host.file_systems:
            if name not in known:
                what = f"{self.name}: the account has no file system {name!r}; it has: {one_of(known)}"
                raise ProviderError(what, hint=f"correct file_systems of host {self.host.name}, or make it there")
        homes = {known[name] for name in self.host.file_systems}
        if len(homes) > 1:
            what = f"{self.name}: file systems {one_of(self.host.file_systems)} lie in {one_of(homes)}"
            raise ProviderError(what, hint="a machine can only have those of its own region: name fewer")
        return homes

    def _offers_of(self, sold: Sold) -> list[Offer]:
        kind, price = sold.instance_type, sold.instance_type.price_cents_per_hour / 100
        machine = self._machine_name(kind)
        if not 0 < price <= DEAREST_PER_HOUR_USD:
            if machine != self.machine.name:
                return []
            what = f"{self.name} offers {kind.name} for {price:.2f} USD per hour: refused"
            raise ProviderError(what, hint="compare with https://lambda.ai/pricing, and try again later")
        offer = Offer(
            self.name, machine, price, kind.name,
            quoted_at=time.time(), source=f"{self.name} API", disk_gib=kind.specs.storage_gib,
        )  # fmt: skip
        listed = [region.name for region in sold.regions_with_capacity_available]
        regions = [name for name in self.host.regions if name in listed] if self.host.regions else listed
        return [replace(offer, region=name) for name in regions] or [replace(offer, available=False)]

    def _machine_name(self, kind: InstanceType) -> str:
        """Our name of an instance type: as told, else by cards and memory; its own where we have none."""
        if kind.name in self.names:
            return self.names[kind.name]
        card = CARD.match(kind.gpu_description)
        for word in (f"{card['card']}-{card['memory_gib']}GB", card["card"]) if card else ():
            with suppress(UserError):
                known = machines.machine_type(f"{kind.specs.gpus}x{word}")
                if card and known.gpu and known.gpu.memory_gib == float(card["memory_gib"]):
                    return known.name
        return kind.name

    def machines(self) -> Sequence[Instance]:
        """Those with our tag or a name of ours, whatever their status; never those of others."""
        return [self._instance(row) for row in self._noted(self._api.machines(lambda row: _rental(row) is not None))]

    def take_warnings(self) -> Sequence[str]:
        """One line for each row that did not fit the API's document, since the last call; each line once."""
        return self.odd.take()

    def _noted(self, rows: Rows[T]) -> Sequence[T]:
        self.odd.note(self.name, rows.odd)
        return rows.rows

    def _instance(self, row: Machine) -> Instance:
        kind = row.instance_type
        return Instance(
            provider=self.name,
            instance_id=row.id,
            machine=self._machine_name(kind) if kind else "unknown",
            address=self._address(row.id, row.ip) if row.ip else None,
            status=row.status,
            rental_id=_rental(row),
            intent_id=row.by_key.get(INTENT_TAG),
            price_per_hour_usd=kind.price_cents_per_hour / 100 if kind else 0.0,
            launched_at=number_in(row.by_key.get(LAUNCHED_TAG)),
            ends_at=machine_names.ends_at(row.name, row.by_key),
            tags=row.by_key,
            name=row.name,
            region=row.region.name if row.region else "",
            private_address=row.private_ip,
        )

    def _address(self, instance_id: str, ip: str) -> Address:
        key_file = str(login_key_file(home_folder(), self.host.ssh_key))
        return Address(ip, self.host.port or self.port, self.host.user or self.user, key_file, instance_id)

    def acquire(self, request: LaunchRequest) -> Instance:
        """Exactly one POST. NoCapacity, BadCredentials, ProviderError: nothing was bought. NoAnswer: nothing was sent.

        AmbiguousLaunch: only machines() can tell, by the intent's tag.
        """
        offer, order = request.offer, self._order(request)
        instance_id = self._api.launch(order, request.intent_id)
        tags = {tag["key"]: tag["value"] for tag in order["tags"]}
        return Instance(
            provider=self.name,
            instance_id=instance_id,
            machine=offer.machine,
            status="booting",
            rental_id=request.rental_id,
            intent_id=request.intent_id,
            price_per_hour_usd=offer.price_per_hour_usd,
            launched_at=number_in(tags[LAUNCHED_TAG]),
            ends_at=_named_deadline(request),
            tags=tags,
            name=order["name"],
            region=offer.region,
        )

    def _order(self, request: LaunchRequest) -> Order:
        """The launch's body. What has to be asked for it is asked before anything is bought."""
        offer = request.offer
        if not offer.sku or not offer.region:
            what = "instance type" if offer.region else "region"
            raise ProviderError(f"{self.name}: the offer of {offer.machine} names no {what}", hint="gptctl offers")
        ours = {RENTAL_TAG: request.rental_id, INTENT_TAG: request.intent_id, LAUNCHED_TAG: str(int(time.time()))}
        ends_at = {} if request.ends_at is None else {ENDS_TAG: str(int(request.ends_at))}
        order: Order = {
            "region_name": offer.region,
            "instance_type_name": offer.sku,
            "ssh_key_names": [self._ssh_key_name()],
            "name": machine_name(request.rental_id, _named_deadline(request)),
            "tags": [{"key": key, "value": value} for key, value in {**request.tags, **ours, **ends_at}.items()],
        }
        if request.user_data:
            order["user_data"] = request.user_data
        if self.host.file_systems:
            order["file_system_names"] = list(self.host.file_systems)
        if self.host.image is not None:
            order["image"] = self._image(offer.region, self.host.image)
        return order

    def _ssh_key_name(self) -> str:
        """The account's name of our login key, which is registered once, under a name made of its content."""
        public = login_public_key(home_folder(), self.host.ssh_key)
        known = self._key_names(public)
        if not known:
            name = f"gptctl-{hashlib.sha256(public.encode()).hexdigest()[:16]}"
            refused: ProviderError = NoAnswer(f"{self.name}: the login key was not registered", "try again", sent=False)
            try:
                self._api.add_ssh_key(name, f"{public} gptctl")
            except NoAnswer:
                pass  # a registration whose answer is lost shows in the list
            except ProviderError as error:  # so does that of another gptctl a moment ago
                refused = error
            known = self._key_names(public)
            if not known:
                raise refused
        return known[0]

    def _key_names(self, public: str) -> list[str]:
        return [key.name for key in self._api.ssh_keys() if key.public_key.split()[:2] == public.split()]

    def _image(self, region: str, wanted: str) -> dict[str, str]:
        """The host entry's image, by id or family. Raises ProviderError naming the families of the region."""
        here = [image for image in self._api.images() if image.region.name == region]
        for kind in ("id", "family"):
            if any(getattr(image, kind) == wanted for image in here):
                return {kind: wanted}
        families = ", ".join(sorted({image.family for image in here}))
        raise ProviderError(f"{self.name}: no image {wanted!r} in {region}", hint=f"families: {families}")

    def release(self, instance: Instance) -> bool:
        """Asks for the end of the machine with this id, whether a list shows it or not. True: accepted, or it has
        ended; False: the cloud has no machine of that id. That it is gone, find() and later lists prove.

        Raises ProviderError for a machine that is another's by its tags or its name: it is left alone.
        """
        with suppress(NoAnswer, Missing):  # silence does not keep us from ending it
            row = self._api.instance(instance.instance_id, min(api.LOOK_FIRST_S, api.READ_DEADLINE_S))
            if machine_names.is_anothers(row.name, row.by_key, instance.rental_id):
                raise ProviderError(f"{self.name}: instance {row.id} is not ours, by its tags: it was left alone")
            if row.status in ENDED_STATUSES:
                return True
        try:
            self._api.terminate(instance.instance_id)
        except Missing:
            return False
        return True

    def find(self, instance_id: str, region: str = "") -> Life:
        """What the cloud says of this id. It may not know one that it sold seconds ago. Raises NoAnswer."""
        try:
            status = self._api.instance(instance_id).status
        except Missing:
            return "unknown"
        return "gone" if status in ENDED_STATUSES else "terminating" if status == "terminating" else "alive"

    def ended_at(self, instance: Instance) -> float | None:
        """When the account's audit log has its end; None where it has none, or does not answer."""
        ends: list[float] = []
        with suppress(ProviderError, ValueError):
            since = None if instance.launched_at is None else instance.launched_at - 3600
            for event in self._api.audit_events(instance.instance_id, since):
                ends += [event.at] if ENDED.search(event.action) else []
        return min(ends, default=None)

    def set_deadline(self, instance: Instance, ends_at: float) -> None:
        """Renames the machine, and returns when a list shows the new name. NoAnswer: the old deadline may stand."""
        name = machine_name(instance.rental_id or "", ends_at)
        until = time.monotonic() + SEEN_WITHIN_S
        self._api.rename(instance.instance_id, name)
        while not any((row.instance_id, row.name) == (instance.instance_id, name) for row in self.machines()):
            if time.monotonic() > until:
                what = f"{self.name}: {instance.instance_id} was renamed to {name}, but lists do not show it"
                raise NoAnswer(what, hint="the deadline it had before may still stand; try again")
            time.sleep(LOOK_EVERY_S)
            self._api.rename(instance.instance_id, name)

    def guard(self, instance: Instance) -> Guard:
        """By what can be seen from here: a watcher needs a deadline in the name; a key on the box shows only there."""
        armed = self.host.guard == "watcher" and instance.ends_at is not None
        return Guard(self.host.guard, armed, instance.ends_at)

    def end_call(self, instance: Instance) -> EndCall | None:
        """What the machine's own guard asks for; it ends this machine, with the account's key."""
        return self._api.end_call(instance.instance_id)

    def allow_caller(self, instance: Instance, via: Shell | None = None) -> None:
        """Port 22 is open on every machine; the account's firewall rules are the user's own."""

    def notice_url(self, instance: Instance) -> str | None:
        """None: machines here are rented on demand, without notice of their end."""
        return None

    def tidy(self, rental_id: str) -> Sequence[str]:
        """The login key stays registered, for the next machine; nothing else is made beside one."""
        return ()


def _named_deadline(request: LaunchRequest) -> float | None:
    """Whole seconds, as the name has it."""
    ends_at = request.ends_at if request.first_ends_at is None else request.first_ends_at
    return None if ends_at is None else float(int(ends_at))


def _rental(row: Machine) -> str | None:
    return rental_of(row.name, row.by_key)
