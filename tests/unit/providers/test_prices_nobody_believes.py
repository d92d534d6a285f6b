"""A price that cannot be believed, or none, is its provider's fault: exit 3 with the reason, and nothing is bought at a
bundled price in its stead."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from orchestrator.cli.plans.plan import planned
from orchestrator.core.config.inventory import HostSpec
from orchestrator.core.config.recipe import Limits, Recipe, load_recipe
from orchestrator.core.errors import BadCredentials, GptctlError, NoAnswer, ProviderError
from orchestrator.core.fleet.odd_rows import OddRows
from orchestrator.core.machines import machine_type
from orchestrator.core.ports import Offer
from orchestrator.fleet import offers as market
from orchestrator.fleet.accounts import Account
from orchestrator.providers.ec2.provider import Ec2
from orchestrator.remote.web.json_api import Answer
from tests.support.files.repository import REPOSITORY
from tests.unit.providers.test_lambda_rows import TYPE, cloud, without

PLACES = [{"name": "us-west-1"}]
H100 = {**TYPE, "name": "gpu_8x_h100", "gpu_description": "H100 (80 GB SXM5)"}
OTHER = {"instance_type": H100, "regions_with_capacity_available": PLACES}


def recipe() -> Recipe:
    return load_recipe("quickstart", search=[REPOSITORY / "recipes"])


def sold(**changes: Any) -> dict[str, Any]:
    return {"instance_type": {**TYPE, **changes}, "regions_with_capacity_available": PLACES}


def on_lambda(*rows: dict[str, Any]) -> tuple[HostSpec, Any]:
    provider, _ = cloud(instance_types=Answer(200, {"data": {str(n): row for n, row in enumerate(rows)}}))
    return provider.host, provider


class Aws:
    """Ec2Api's lists: one zone that has the type, and a price list."""

    default_region = "us-east-1"

    def __init__(self, usd: str | None) -> None:
        self.usd = usd

    def check_region(self, region: str) -> None:
        pass

    def rows(self, region: str, operation: str, key: str, *service: str, **what: Any) -> list[Any]:
        if operation != "get_products":
            return [{"InstanceType": "p4d.24xlarge", "Location": "us-east-1a"}]
        if self.usd is None:
            return ['{"product": {}}', _priced("1.0", "g6.xlarge")]
        return [_priced(self.usd, "p4d.24xlarge")]


def _priced(usd: str, sku: str) -> str:
    attributes = f'{{"instanceType": "{sku}", "regionCode": "us-east-1"}}'
    dimensions = f'{{"a": {{"priceDimensions": {{"b": {{"pricePerUnit": {{"USD": "{usd}"}}}}}}}}}}'
    return f'{{"product": {{"attributes": {attributes}}}, "terms": {{"OnDemand": {dimensions}}}}}'


def on_ec2(usd: str | None) -> tuple[HostSpec, Any]:
    host = HostSpec(name="aws", provider="ec2", machine="8xA100-40GB", guard="self")
    return host, Ec2("ec2", host, machine_type("8xA100-40GB"), Aws(usd))  # type: ignore[arg-type]


class Refusing:
    """A provider whose offers end in an error."""

    name = "rehearsal"
    odd = OddRows()

    def __init__(self, error: GptctlError) -> None:
        self.error = error

    def offers(self, deadline_s: float = 30.0) -> Sequence[Offer]:
        raise self.error

    def take_warnings(self) -> Sequence[str]:
        return self.odd.take()


def refusing(error: GptctlError) -> tuple[HostSpec, Any]:
    return HostSpec(name="sim", provider="rehearsal", machine="8xA100-40GB", guard="watcher"), Refusing(error)


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (lambda: on_lambda(sold(price_cents_per_hour=0)), "0.00 USD per hour: refused"),
        (lambda: on_lambda(sold(price_cents_per_hour=-5)), "-0.05 USD per hour: refused"),
        (lambda: on_lambda(sold(price_cents_per_hour=10_000_000)), "100000.00 USD per hour: refused"),
        (lambda: on_lambda(OTHER, {**sold(), "instance_type": without(TYPE, "price_cents_per_hour")}),
         "no price for 8xA100-40GB: lambda: Sold in row 2 of the list: instance_type.price_cents_per_hour"),
        (lambda: on_lambda(OTHER, sold(price_cents_per_hour="free")), "instance_type.price_cents_per_hour"),
        (lambda: on_ec2("0.0000000000"), "0.00 USD per hour: refused"),
        (lambda: on_ec2("99999"), "99999.00 USD per hour: refused"),
        (lambda: on_ec2(None), "no price for 8xA100-40GB: ec2: price list in row 1 of the list"),
        (lambda: refusing(BadCredentials("the key was refused")), "the key was refused"),
        (lambda: refusing(NoAnswer("no answer: [SSL: CERTIFICATE_VERIFY_FAILED]", sent=False)), "CERTIFICATE_VERIFY"),
    ],
)  # fmt: skip
def test_it_is_said_with_its_reason(
    made: Callable[[], tuple[HostSpec, Any]], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    host, provider = made()
    monkeypatch.setattr(market, "accounts_behind", lambda hosts: [Account(provider.name, provider, (host,))])
    with pytest.raises(ProviderError) as caught:
        planned(recipe(), host, (), Limits())
    assert caught.value.exit_code == 3
    assert reason in caught.value.message and "None" not in caught.value.message


def test_one_odd_type_keeps_no_other_from_being_rented(monkeypatch: pytest.MonkeyPatch) -> None:
    host, provider = on_lambda(sold(), {"instance_type": {"name": "gpu_9x"}})
    monkeypatch.setattr(market, "accounts_behind", lambda hosts: [Account("lambda", provider, (host,))])
    (plan,) = planned(recipe(), host, (), Limits())
    assert plan.price_per_hour_usd == 15.92
