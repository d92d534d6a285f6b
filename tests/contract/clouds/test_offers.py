"""Offers and prices: asked for in parallel, within two seconds, with the bundled ones standing in."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from orchestrator.core.config.inventory import HostSpec, Inventory, load_inventory
from orchestrator.core.config.recipe import Limits, load_recipe
from orchestrator.core.errors import LimitReached, ProviderError, UserError
from orchestrator.core.fleet.own_machine import StandingMachine
from orchestrator.core.machines import machine_type
from orchestrator.core.money.calendar import month_start
from orchestrator.core.planning.limits import check_month
from orchestrator.core.planning.planner import make_plan
from orchestrator.core.ports import Offer, Provider
from orchestrator.fleet.accounts import Account, accounts_of
from orchestrator.fleet.offers import ask, bundled, offer_for
from tests.conftest import Gptctl
from tests.support.clock.waiting import until
from tests.support.clouds.rehearsal_cloud import RehearsalCloud

A100 = machine_type("8xA100-40GB")


def offer(region: str, price: float, *, available: bool = True, machine: str = "8xA100-40GB") -> Offer:
    return Offer("lambda", machine, price, region=region, available=available, quoted_at=1.0, source="lambda API")


@dataclass
class Seller(StandingMachine):
    """A provider that answers as told: with a list, an error, or late."""

    answer: object = ()

    def offers(self, deadline_s: float = 30.0) -> list[Offer]:
        if isinstance(self.answer, float):
            time.sleep(self.answer)
            return []
        if isinstance(self.answer, Exception):
            raise self.answer
        return list(self.answer)  # type: ignore[call-overload]


def account(name: str, answer: object) -> Account:
    host = HostSpec(name=name, provider=name, machine="8xA100-40GB")
    seller: Provider = Seller(name, host, A100, answer=answer)
    return Account(name, seller, (host,))


def test_all_are_asked_and_the_bundled_prices_stand_in() -> None:
    live = [offer("us-west-1", 10.0)]
    market = ask([account("lambda", ProviderError("no key")), account("one", live), account("ec2", 5.0)], within_s=0.2)
    assert market.problems == {"lambda": "no key", "ec2": "no answer within 0 s"}
    assert [each for each in market.offers if each.quoted_at] == live
    assert {each.provider for each in market.offers if each.quoted_at is None} == {"lambda", "ec2"}


def test_bundled_prices_carry_their_date() -> None:
    assert {each.provider for each in bundled("lambda")} == {"lambda"}
    assert all(each.source.startswith("bundled 20") and each.quoted_at is None for each in bundled())


@pytest.mark.parametrize(
    ("regions", "price"), [((), 12.0), (("us-west-1",), 13.0), (("us-east-1",), 12.0), (("europe-1",), None)]
)
def test_the_offer_of_a_host(regions: tuple[str, ...], price: float | None) -> None:
    host = HostSpec(name="x", provider="lambda", machine="8xA100-40GB", regions=regions)
    offers = [
        offer("us-east-1", 12.0),
        offer("us-west-1", 13.0),
        offer("us-west-1", 11.0, available=False),
        offer("us-east-1", 1.0, machine="1xH100"),
        Offer("ec2", "8xA100-40GB", 2.0, quoted_at=1.0),
    ]
    found = offer_for(host, A100, offers)
    assert (found and found.price_per_hour_usd) == price


def test_hosts_that_share_a_key_are_one_account() -> None:
    hosts = {
        name: HostSpec(name=name, provider=provider, machine="8xA100-40GB", endpoint=endpoint)
        for name, provider, endpoint in (
            ("a", "lambda", None),
            ("b", "lambda", None),
            ("c", "lambda", "http://127.0.0.1:9"),
            ("d", "ssh", None),
        )
    }
    found = accounts_of(Inventory(hosts), {})
    assert [(each.name, [host.name for host in each.hosts]) for each in found] == [
        ("lambda", ["a", "b"]),
        ("lambda at http://127.0.0.1:9", ["c"]),
    ]


def test_a_key_in_the_environment_is_an_account_even_without_an_inventory() -> None:
    assert [each.name for each in accounts_of(Inventory({}), {"LAMBDA_API_KEY": "x"})] == ["lambda"]
    assert accounts_of(Inventory({}), {}) == []


def test_a_provider_nobody_knows_is_no_account_to_overlook() -> None:
    hosts = {"x": HostSpec(name="x", provider="lamda", machine="8xA100-40GB")}
    with pytest.raises(UserError, match="lamda"):
        accounts_of(Inventory(hosts), {})


def test_the_month_begins_at_local_midnight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "America/New_York")
    time.tzset()
    try:
        now = 1_777_620_000.0  # 2026-05-01 07:20 UTC: still the first of May, 03:20, in New York
        assert month_start(now) == 1_777_608_000.0  # 04:00 UTC
        assert month_start(1_777_600_000.0) == 1_775_016_000.0  # an hour and a half earlier it was April
    finally:
        monkeypatch.undo()
        time.tzset()


def test_the_month_refuses_what_it_cannot_bear() -> None:
    recipe = load_recipe("quickstart")
    host = HostSpec(name="x", provider="lambda", machine="8xA100-40GB")
    plan = make_plan(recipe, host, A100, None, rates=[], dataset_tokens=None, now=time.time(), limits=Limits())
    total = plan.cost_usd.total
    assert total is not None and total > 0
    assert check_month(plan, 0.0, None) is None
    assert check_month(plan, 100.0, 100.0 + total + 0.01) is None
    with pytest.raises(LimitReached, match=r"max_usd_per_month is \$100"):
        check_month(plan, 100.0, 100.0)


@pytest.fixture
def silent() -> Iterator[int]:
    """A port that takes connections and never says anything."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield listening.getsockname()[1]


def test_a_cloud_that_is_silent_is_not_waited_for(gptctl: Gptctl, tmp_path: Path, silent: int) -> None:
    entry = f'[hosts.x]\nprovider = "lambda"\nmachine = "8xA100-40GB"\nendpoint = "http://127.0.0.1:{silent}"\n'
    (tmp_path / "inventory.toml").write_text(entry)
    done = gptctl("offers", "--json", env={"LAMBDA_API_KEY": "x" * 20})
    assert done.returncode == 0
    answer = json.loads(done.stdout)
    assert list(answer["problems"]) == [f"lambda at http://127.0.0.1:{silent}"]
    assert "2 s" in next(iter(answer["problems"].values()))
    assert {row["available"] for row in answer["offers"]} == {None}
    assert all("bundled" in row["source"] for row in answer["offers"])


def test_offers_and_plans_of_a_cloud_that_runs(gptctl: Gptctl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPTCTL_REHEARSAL", str(tmp_path / "cloud"))
    entry = '[hosts.sim]\nprovider = "rehearsal"\nmachine = "8xA100-40GB-simulated"\n'
    (tmp_path / "inventory.toml").write_text(entry)
    assert load_inventory(tmp_path / "inventory.toml", tmp_path).host("sim").paid
    with RehearsalCloud(tmp_path / "cloud") as cloud:
        cloud.inject("price-change@200")
        assert cloud.get("instance-types")  # the price doubles from now on

        def answered() -> list[dict[str, Any]]:
            """The cloud's offers, once it has answered in time."""
            rows = json.loads(gptctl("offers", "--count", "8", "--gpu", "a100", "--json").stdout)["offers"]
            found = [row for row in rows if row["machine"] == "8xA100-40GB-simulated"]
            return found if all(row["available"] is not None for row in found) else []

        ours = until(answered)
        assert {row["price_per_hour_usd"] for row in ours} == {31.84}
        assert {row["region"] for row in ours} == {"us-west-1", "us-east-1", "europe-central-1"}
        assert {row["available"] for row in ours} == {True}
        assert gptctl("offers", "--max-price", "31", "--count", "8").stdout.count("8xA100-40GB") == 0
        (live,) = json.loads(gptctl("plan", "quickstart", "--host", "sim", "--json").stdout)["plans"]
        (dated,) = json.loads(gptctl("plan", "quickstart", "--host", "sim", "--offline", "--json").stdout)["plans"]
        assert (live["price_per_hour_usd"], dated["price_per_hour_usd"]) == (31.84, 15.92)
        assert "bundled" in dated["price_source"] and "bundled" not in live["price_source"]
        cloud.inject("sold-out")
        (full,) = json.loads(gptctl("plan", "quickstart", "--host", "sim", "--json").stdout)["plans"]
        assert any("no capacity" in each for each in full["warnings"])
        (row,) = [each for each in json.loads(gptctl("hosts", "--json").stdout)["hosts"] if each["host"] == "sim"]
        assert (row["state"], row["price_per_hour_usd"], row["capacity"]) == ("none rented", 31.84, True)


def test_the_monthly_ceiling_stops_a_run_before_anything_is_rented(
    gptctl: Gptctl, gptctl_home: Path, tmp_path: Path
) -> None:
    gptctl_home.mkdir()
    (gptctl_home / "config.toml").write_text("[limits]\nmax_usd_per_month = 1\n")
    entry = '[hosts.sim]\nprovider = "rehearsal"\nmachine = "8xA100-40GB-simulated"\nguard = "key-on-box"\n'
    (tmp_path / "inventory.toml").write_text(entry)
    done = gptctl("run", "quickstart", "--host", "sim", "--yes")
    assert done.returncode == 6 and "max_usd_per_month is $1" in done.stderr
    found = json.loads(gptctl("status", "--json").stdout)
    assert (found["runs"], found["rentals"], found["left_over"]) == ([], [], [])
    assert found["totals"]["month_ceiling_usd"] == 1.0 and found["totals"]["month_usd"] == 0.0
    assert not (gptctl_home / "rehearsal").exists()
