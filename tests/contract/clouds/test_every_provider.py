"""What every provider keeps to, found by listing the folder: a new file is tested by being there."""

from __future__ import annotations

import pytest

from orchestrator import providers
from orchestrator.core.config.inventory import HostSpec
from orchestrator.core.errors import UserError
from orchestrator.core.machines import machine_type
from orchestrator.core.ports import UNPAID, LaunchRequest, Provider

STANDING = sorted(UNPAID & set(providers.known()))


def standing(name: str) -> Provider:
    host = HostSpec(name="box", provider=name, machine="1x3090", address="127.0.0.9", price_per_hour_usd=0.11)
    return providers.load(name).provider(host, machine_type("1x3090"))


def test_the_folder_holds_the_providers_that_buy_nothing() -> None:
    assert sorted(UNPAID) == STANDING


@pytest.mark.parametrize("name", sorted(providers.known()))
def test_every_module_makes_a_provider_of_its_own_name(name: str) -> None:
    host = HostSpec(name="box", provider=name, machine="1x3090", address="127.0.0.9")
    made = providers.load(name).provider(host, machine_type("1x3090"))
    assert made.name == name
    assert made.paid == (name not in UNPAID)
    verbs = (
        "offers",
        "machines",
        "acquire",
        "release",
        "find",
        "take_warnings",
        "ended_at",
        "set_deadline",
        "guard",
        "end_call",
        "allow_caller",
        "notice_url",
    )
    for verb in verbs:
        assert callable(getattr(made, verb))


@pytest.mark.parametrize("name", STANDING)
def test_a_standing_machine_is_always_there_and_survives_release(name: str) -> None:
    provider = standing(name)
    (offer,) = provider.offers()
    taken = provider.acquire(LaunchRequest(rental_id="r", intent_id="i", offer=offer))
    assert [taken] == list(provider.machines())
    assert provider.release(taken)
    assert provider.release(taken)
    assert provider.find(taken.instance_id) == "alive" and provider.take_warnings() == ()
    provider.set_deadline(taken, ends_at=1.0)
    provider.allow_caller(taken)
    assert [taken] == list(provider.machines())
    assert provider.ended_at(taken) is None
    assert provider.guard(taken).kind == "none"
    assert provider.end_call(taken) is None
    assert provider.notice_url(taken) is None and not provider.ends_by_power_off


@pytest.mark.parametrize("name", STANDING)
def test_a_standing_machine_has_the_inventorys_price_and_address(name: str) -> None:
    provider = standing(name)
    (machine,) = provider.machines()
    assert provider.offers()[0].price_per_hour_usd == machine.price_per_hour_usd == 0.11
    assert machine.address is not None
    assert machine.address.host == (None if name == "local" else "127.0.0.9")


def test_an_unknown_provider_lists_the_known() -> None:
    with pytest.raises(UserError, match=r"did you mean local.*known: .*ssh"):
        providers.load("lcoal")
