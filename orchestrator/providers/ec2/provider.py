"""Provider `ec2`: machines of AWS, on demand and on the spot market. docs/guides/ec2.md says what is known about it.

What matters for money: a machine that powers itself off ends its own bill, so every launch asks for "terminate" then. A
launch carries the intent's id as ClientToken and in a tag, is one request, and is looked for, never repeated. What was
made beside the machine, its security group, goes when it is gone.

Example::

    cloud = provider(host, machine)                       # credentials: the usual chain of AWS
    instance = cloud.acquire(LaunchRequest(rental_id, intent_id, cloud.offers()[0], ends_at, user_data=text))
    cloud.set_deadline(instance, ends_at)                 # its Name tag: gptctl-RENTAL-until-EPOCH
    cloud.release(instance); cloud.tidy(rental_id)
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from orchestrator.core.config.gptctl_home import home_folder
from orchestrator.core.config.inventory import HostSpec
from orchestrator.core.config.settings import Aws, load_settings
from orchestrator.core.errors import BadCredentials, NoAnswer, ProviderError, UserError
from orchestrator.core.fleet import machine_names
from orchestrator.core.fleet.machine_names import INTENT_TAG, RENTAL_TAG, machine_name, number_in, rental_of
from orchestrator.core.fleet.odd_rows import OddRows
from orchestrator.core.machines import MachineType, bundled_offers_of
from orchestrator.core.planning.limits import DEAREST_PER_HOUR_USD
from orchestrator.core.ports import Address, EndCall, Guard, Instance, LaunchRequest, Life, Offer, Provider, Shell
from orchestrator.providers.ec2 import network as ec2_network
from orchestrator.providers.ec2 import policy as ec2_policy
from orchestrator.providers.ec2 import prices as ec2_prices
from orchestrator.providers.ec2.api import Ec2Api, Quota, at_once, caller_address
from orchestrator.providers.ec2.launch_order import PRICE_TAG, launch_order
from orchestrator.providers.ec2.rows import InstanceRow, judged, read_instance, read_offering
from orchestrator.providers.ec2.states import missing_is_fine, moment_in, status_of
from orchestrator.remote.shell.key_pairs import login_key_file

METADATA = "http://169.254.169.254"
SAME_PRICES = ("us-east-1", "us-east-2", "us-west-2")
"""Regions whose list prices are the bundled ones."""
SEEN_WITHIN_S = 30.0
LOOK_EVERY_S = 1.0


def provider(host: HostSpec, machine: MachineType) -> Provider:
    """The provider of a host entry. Credentials are looked for when there is something to ask."""
    return Ec2("ec2", host, machine, Ec2Api(host.endpoint))


def everywhere(hosts: Sequence[HostSpec]) -> HostSpec:
    """One entry for the account behind these: every region and market that one of them uses."""
    regions = [region for host in hosts for region in host.regions]
    if not all(host.regions for host in hosts):
        with suppress(ProviderError, UserError):
            regions.append(Ec2Api(hosts[0].endpoint).default_region)
    spot = any(host.spot for host in hosts)
    return hosts[0].model_copy(update={"regions": tuple(dict.fromkeys(regions)), "spot": spot})


def policy() -> dict[str, object]:
    """The least that the credentials have to be allowed."""
    return ec2_policy.least()


@dataclass
class Ec2:
    """The account as one host entry sees it. Every call is one question or one act; only set_deadline looks again."""

    name: str
    host: HostSpec
    machine: MachineType
    api: Ec2Api
    paid: bool = True
    longest_boot_s: float = 900.0
    ends_by_power_off: bool = True
    billing_unit_s: float = 1.0
    odd: OddRows = field(default_factory=OddRows, repr=False)
    sold: Mapping[str, Offer] = field(default_factory=lambda: {each.sku: each for each in bundled_offers_of("ec2")})
    """Instance types that we have a name for, with their bundled prices."""

    @cached_property
    def settle_s(self) -> float:
        """From config.toml."""
        return self._settings.settle_s

    @cached_property
    def _settings(self) -> Aws:
        return load_settings(home_folder()).aws

    @cached_property
    def _regions(self) -> Sequence[str]:
        regions = self.host.regions or (self.api.default_region,)
        for region in regions:
            self.api.check_region(region)
        return regions

    @property
    def _port(self) -> int:
        return self.host.port or 22

    def offers(self, deadline_s: float = 30.0) -> Sequence[Offer]:
        """One per zone and market that has the instance type. Whether there is capacity, only a launch tells.

        Raises ProviderError when no region answers, or the price of this host's machine type is 0, negative or absurd.
        """
        prices = self._list_prices()
        answers = at_once(lambda region: self._offers_in(region, prices), self._regions)
        found = [offer for answer in answers if isinstance(answer, list) for offer in answer]
        failed = [answer for answer in answers if isinstance(answer, ProviderError)]
        if failed and not found:
            raise failed[0]
        fair = [offer for offer in found if 0 < offer.price_per_hour_usd <= DEAREST_PER_HOUR_USD]
        for offer in found:
            if offer.machine == self.machine.name and offer not in fair:
                price = f"{offer.price_per_hour_usd:.2f} USD per hour"
                what = f"ec2 offers {offer.sku} in {offer.zone} for {price}: refused"
                raise ProviderError(what, hint="compare with https://aws.amazon.com/ec2/pricing; try again later")
        return fair

    def _list_prices(self) -> Mapping[tuple[str, str], Offer]:
        """By instance type and region: the price list's, else the bundled ones, and their source says which."""
        try:
            listed = ec2_prices.on_demand(self.api, sorted(self.sold), self.odd)
        except BadCredentials:
            raise
        except ProviderError:
            everything = [(sku, region, offer) for sku, offer in self.sold.items() for region in SAME_PRICES]
            return {(sku, region): replace(offer, region=region) for sku, region, offer in everything}
        return {
            (sku, region): self._offer(sku, region, price, "ec2 price list") for (sku, region), price in listed.items()
        }

    def _offers_in(self, region: str, prices: Mapping[tuple[str, str], Offer]) -> list[Offer] | ProviderError:
        ours = [{"Name": "instance-type", "Values": [*self.sold]}]
        ask, key = "describe_instance_type_offerings", "InstanceTypeOfferings"
        try:
            rows = self.api.rows(region, ask, key, LocationType="availability-zone", Filters=ours)
            offerings = judged("offering", rows, read_offering)
            spot = ec2_prices.spot(self.api, region, [*self.sold], self.odd) if self.host.spot else {}
        except BadCredentials:
            raise
        except ProviderError as error:
            return error  # another region may answer
        self.odd.note(f"ec2 {region}", offerings.odd)
        zones = sorted((each.sku, each.zone) for each in offerings.rows if each.sku in self.sold)
        listed = [replace(prices[sku, region], zone=zone) for sku, zone in zones if (sku, region) in prices]
        dearest = "ec2 spot, dearest of the last hour"
        return listed + [
            replace(self._offer(sku, region, spot[sku, zone], dearest), zone=zone, spot=True)
            for sku, zone in zones
            if (sku, zone) in spot
        ]

    def _offer(self, sku: str, region: str, price: float, source: str) -> Offer:
        return Offer("ec2", self.sold[sku].machine, price, sku, region, quoted_at=time.time(), source=source)

    def machines(self) -> Sequence[Instance]:
        """Those with our tag in all regions of the entry, whatever their status. Others' are never returned."""
        ours = [{"Name": "tag-key", "Values": [RENTAL_TAG]}]
        found = at_once(lambda region: self._listed(region, Filters=ours), self._regions)
        return [instance for each in found for instance in each]

    def take_warnings(self) -> Sequence[str]:
        """One line for each row that did not fit EC2's document, since the last call; each line once."""
        return self.odd.take()

    def _listed(self, region: str, **which: Any) -> list[Instance]:
        groups = self.api.rows(region, "describe_instances", "Reservations", **which)
        found = judged("instance", [row for group in groups for row in group.get("Instances", [])], read_instance)
        self.odd.note(f"ec2 {region}", [*found.odd, *(row.odd for row in found.rows if row.odd)])
        return [self._instance(region, row) for row in found.rows]

    def _instance(self, region: str, row: InstanceRow) -> Instance:
        name = row.tags.get("Name", "")
        status, why = status_of(row)
        return Instance(
            provider="ec2",
            instance_id=row.id,
            machine=self.sold[row.type].machine if row.type in self.sold else row.type or "unknown",
            address=self._address(row.id, row.ip) if row.ip else None,
            status=status,
            rental_id=rental_of(name, row.tags),
            intent_id=row.tags.get(INTENT_TAG),
            price_per_hour_usd=number_in(row.tags.get(PRICE_TAG)) or 0.0,
            launched_at=row.launched_at,
            ends_at=machine_names.ends_at(name, row.tags),
            tags=row.tags,
            name=name,
            region=region,
            zone=row.zone,
            private_address=row.private_ip,
            image=row.image,
            why=why,
        )

    def _address(self, instance_id: str, ip: str) -> Address:
        key_file = str(login_key_file(home_folder(), self.host.ssh_key))
        return Address(ip, self._port, self.host.user or "ubuntu", key_file, instance_id)

    def acquire(self, request: LaunchRequest) -> Instance:
        """Exactly one RunInstances. NoCapacity, BadCredentials, ProviderError: nothing was bought.

        NoAnswer: nothing was sent. AmbiguousLaunch: only machines() can tell, by the intent's tag.
        """
        caller_url = self._settings.caller_address_url
        region = request.offer.region
        order = launch_order(self.api, self.host, request, port=self._port, caller_address_url=caller_url)
        try:
            return self._instance(region, self.api.launch(region, order))
        except Quota as error:
            hint = ec2_policy.quota_hint(request.offer.sku, region, spot=request.offer.spot)
            raise Quota(error.message, hint, code=error.code) from error

    def release(self, instance: Instance) -> bool:
        """Asks for the end of the machine with this id, whether a list shows it or not; repeatable. True: accepted;
        False: no region has the id. That it is gone, find() and later lists prove.

        Raises ProviderError for a machine that is not ours by its tags: it is left alone.
        """
        found = None
        with suppress(NoAnswer):  # silence does not keep us from ending it
            found = self._found(instance)
        if found is not None and (found.rental_id is None or instance.rental_id not in (None, found.rental_id)):
            raise ProviderError(f"ec2: instance {found.instance_id} is not ours, by its tags: it was left alone")
        accepted = False
        for region in [found.region] if found else self._where(instance):
            with missing_is_fine():
                self.api.call(region, "terminate_instances", InstanceIds=[instance.instance_id])
                accepted = True
        return accepted

    def find(self, instance_id: str, region: str = "") -> Life:
        """What EC2 says of this id; without a region, in all of the entry. Raises NoAnswer."""
        found = self._found(Instance("ec2", instance_id, "", region=region))
        if found is None:
            return "unknown"
        ended = found.status in ("terminated", "preempted")
        return "gone" if ended else "terminating" if found.status == "terminating" else "alive"

    def _found(self, instance: Instance) -> Instance | None:
        """The machine as its region describes it now; None where it is not found (yet, or any more)."""
        for region in self._where(instance):
            with missing_is_fine():
                return next(iter(self._listed(region, InstanceIds=[instance.instance_id])), None)
        return None

    def _where(self, instance: Instance) -> Sequence[str]:
        return [instance.region] if instance.region else self._regions

    def ended_at(self, instance: Instance) -> float | None:
        """When EC2 says that it was ended; None where it does not, or does not answer."""
        with suppress(ProviderError):
            found = self._found(instance)
            return moment_in(found.why) if found and found.status in ("terminated", "preempted") else None
        return None

    def set_deadline(self, instance: Instance, ends_at: float) -> None:
        """Rewrites the Name tag, and returns when a list shows it. NoAnswer: the old deadline may stand."""
        name = machine_name(instance.rental_id or "", ends_at)
        until = time.monotonic() + SEEN_WITHIN_S
        for region in self._where(instance)[:1]:
            tags = [{"Key": "Name", "Value": name}]
            self.api.call(region, "create_tags", Resources=[instance.instance_id], Tags=tags)
            while (found := self._found(instance)) is None or found.name != name:
                if time.monotonic() > until:
                    what = f"ec2: {instance.instance_id} was renamed to {name}, but lists do not show it"
                    raise NoAnswer(what, hint="the deadline it had before may still stand; try again")
                time.sleep(LOOK_EVERY_S)

    def guard(self, instance: Instance) -> Guard:
        """By what can be seen from here: `self` needs EC2's word that powering off ends the machine; that its timer
        runs, the machine says. A watcher needs a deadline in the name."""
        kind = self.host.guard
        if kind != "self":
            return Guard(kind, kind == "watcher" and instance.ends_at is not None, instance.ends_at)
        what = {"InstanceId": instance.instance_id, "Attribute": "instanceInitiatedShutdownBehavior"}
        answer = self.api.call(self._where(instance)[0], "describe_instance_attribute", **what)
        behaviour = answer.get("InstanceInitiatedShutdownBehavior", {}).get("Value")
        return Guard(kind, behaviour == "terminate", instance.ends_at)

    def end_call(self, instance: Instance) -> EndCall | None:
        """A machine here needs no key to end itself: guard `self`."""
        return None

    def notice_url(self, instance: Instance) -> str | None:
        """Of a spot machine: the instance metadata, which tells two minutes before it is taken away."""
        return (self.host.metadata_endpoint or METADATA) if self.host.spot else None

    def allow_caller(self, instance: Instance, via: Shell | None = None) -> None:
        """Opens the rental's security group to the address that this computer has now, or a home box; their earlier
        addresses lose it."""
        caller = caller_address(self._settings.caller_address_url, via)
        rule = ec2_network.RULE if via is None else ec2_network.HOME_RULE
        for region in self._where(instance):
            for group in ec2_network.groups(self.api, region, instance.rental_id or ""):
                ec2_network.allow(self.api, region, group, port=self._port, caller=caller, rule=rule)

    def tidy(self, rental_id: str) -> Sequence[str]:
        """Removes the rental's security group, in whatever region it was made."""
        left = at_once(lambda region: ec2_network.remove_groups(self.api, region, rental_id), self._regions)
        return [each for found in left for each in found]
