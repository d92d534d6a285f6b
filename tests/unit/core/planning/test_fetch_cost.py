"""What bringing the checkpoints here costs, and when a plan warns of a machine too far away."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator.core.config.inventory import HostSpec
from orchestrator.core.config.recipe import load_recipe
from orchestrator.core.machines import assumed, machine_type
from orchestrator.core.planning.fetch_cost import NO_RATES, Rates, far_words, fetch_of, words
from orchestrator.core.planning.plan import Hours, Plan, PlanFetch
from orchestrator.core.planning.planner import make_plan
from orchestrator.core.planning.price import Quote
from orchestrator.core.ports import Offer
from orchestrator.ledger.bills.fetch_rates import fetch_rates
from orchestrator.ledger.records import Rental

HOST = HostSpec(name="far", provider="lambda", machine="8xA100-40GB", guard="watcher")
OFFER = Offer("lambda", "8xA100-40GB", 15.92, region="asia-northeast-1")


def plan(rates: Rates = NO_RATES, host: HostSpec = HOST) -> Plan:
    recipe = load_recipe("chinchilla_163m_baseline")
    return make_plan(recipe, host, machine_type("8xA100-40GB"), OFFER, now=0.0, fetch_rates=rates)


def test_a_rate_measured_in_that_region_replaces_the_assumed_one() -> None:
    usual, slow = plan(), plan({("lambda", "asia-northeast-1"): 0.1})
    assert usual.fetch is not None and slow.fetch is not None
    assert (usual.fetch.mb_per_s, usual.fetch.is_measured) == (assumed().fetch_mb_per_s.paid, False)
    assert (slow.fetch.mb_per_s, slow.fetch.is_measured, slow.fetch.region) == (0.1, True, "asia-northeast-1")
    assert slow.hours.fetch == pytest.approx(slow.fetch.size_bytes / 0.1e6 / 3600)
    assert slow.cost_usd.fetch == pytest.approx(slow.hours.fetch * 15.92)
    far = [each for each in slow.warnings if "fetching takes longer than the training" in each]
    assert far and "as measured from there" in far[0] and "checkpoint_store" in far[0]
    assert not any("fetching takes longer" in each for each in usual.warnings)


def test_with_a_store_or_without_a_bill_nothing_is_fetched_at_a_price() -> None:
    stored = HostSpec(
        name="far", provider="lambda", machine="8xA100-40GB", guard="watcher", checkpoint_store="s3://mine/models"
    )
    assert plan({("lambda", "asia-northeast-1"): 0.1}, stored).fetch is None
    assert fetch_of(None, "", 1, NO_RATES) is None
    assert fetch_of(HostSpec(name="box", provider="ssh", machine="2xCPU"), "", 1, NO_RATES) is None


def test_a_slow_fetch_that_a_store_takes_over_costs_what_the_store_takes() -> None:
    slow = {("lambda", "asia-northeast-1"): 0.1}
    found = plan(slow, HOST.model_copy(update={"fetch_store": "s3://mine/late"}))
    (said,) = [each for each in found.warnings if "fetching is slow" in each]
    assert "the machine stores them in s3://mine/late instead" in said
    assert found.hours.fetch < plan(slow).hours.fetch / 100
    quick = HOST.model_copy(update={"fetch_store": "s3://mine/late", "fetch_minutes": 1e5})
    assert plan(slow, quick).hours.fetch == plan(slow).hours.fetch


def test_a_short_fetch_is_no_reason_to_warn_however_short_the_training() -> None:
    fetch = PlanFetch(10_000_000, 1.0, False, "us-west-1")
    price = Quote(15.92, "", paid=True)
    assert far_words(HOST, fetch, Hours.of(fetch=0.05), price) == ""
    assert far_words(HOST, fetch, Hours.of(train=2.5, fetch=10.0), price).endswith("regions of the host")
    assert "$159.20" in words(fetch, 10.0, 15.92) and "(assumed)" in words(fetch, 10.0, None)


def test_of_several_fetches_from_a_region_the_newest_counts() -> None:
    rental = Rental("new", "lambda", "far", "8xA100-40GB", 2.0)
    there = [replace(rental.facts, region="jp", fetch_mb_per_s=rate) for rate in (0.4, 9.0)]
    found = fetch_rates([replace(rental, facts=facts) for facts in there])
    assert found == {("lambda", "jp"): 0.4} and fetch_rates([rental]) == {}
