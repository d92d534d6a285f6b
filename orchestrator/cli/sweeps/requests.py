"""What each arm of a sweep asks for, looked up and tried before anything is bought: as `gptctl run` does for one run.

Example: `requests_of(found, go, inventory, beginnings(ledger, inventory, go, found.arms))`
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from orchestrator.cli.plans import spot
from orchestrator.cli.plans.origin import Beginning, beginning, importer, storages
from orchestrator.cli.plans.stores import check_store, home_boxes
from orchestrator.cli.sweeps.plan import Planned
from orchestrator.core.config.inventory import HostSpec, Inventory
from orchestrator.core.config.sweep import Arm
from orchestrator.core.facts.run_facts import QueueFacts, Recovery
from orchestrator.core.machines import machine_type
from orchestrator.core.planning.forecast import kept_bytes
from orchestrator.core.planning.many_machines.sweep_plan import shares_usd
from orchestrator.core.planning.plan import Plan
from orchestrator.ledger.ledger import Ledger
from orchestrator.runs.new_run import RunRequest
from orchestrator.runs.sweep_revival import MOST_INTERRUPTIONS


@dataclass(frozen=True)
class Go:
    """How a sweep is started."""

    machines: int | None = None
    detach: bool = False
    wait: bool = False
    unguarded: bool = False
    accept_new_host_key: bool = False
    driver: str | None = None


def beginnings(
    ledger: Ledger, known: Inventory, go: Go, arms: Sequence[tuple[Arm, Plan]]
) -> dict[str, Beginning]:  # fmt: skip
    """Where each arm begins, by its name: the weights of model.init_from are there, and fit. Raises UserError."""
    stores, same = storages(ledger, known, accept_new=go.accept_new_host_key), dict[str, Beginning]()
    found = {}
    for arm in {arm.name: arm for arm, _ in arms}.values():
        model = repr(arm.recipe.model)  # arms with one model begin alike: it is looked for, and said, once
        if model not in same:
            same[model] = beginning(ledger, None, arm.recipe, stores, importer(ledger))
        found[arm.name] = same[model]
    return found


def check_stores(ledger: Ledger, found: Planned, known: Inventory, go: Go) -> None:
    """As run does: of all arms together, for as long as their machines may be held."""
    price = found.arms[0][1].price_per_hour_usd
    kept = sum(kept_bytes(arm.recipe, plan.steps, plan.from_step) for arm, plan in found.arms)
    most_usd = max((each for each in shares_usd(found.plan) if each is not None), default=None)
    lasts_h = most_usd / price if most_usd is not None and price else found.plan.hours
    check_store(
        found.host, storages(ledger, known, accept_new=go.accept_new_host_key), needs_bytes=kept,
        lasts_s=lasts_h * 3600, is_detached=go.detach,
    )  # fmt: skip


def requests_of(
    found: Planned, go: Go, known: Inventory, begun: Mapping[str, Beginning]
) -> list[tuple[RunRequest, int]]:  # fmt: skip
    agreed = recovery(found.host, found.arms[0][1])
    own = partial(request, found.file.name, found.host, go=go, known=known, group_s=_group_s(found), recovery=agreed)
    return [
        (own(arm, plan, begun=begun[arm.name]), cost.machine)
        for (arm, plan), cost in zip(found.arms, found.plan.arms, strict=True)
    ]


def request(
    name: str, host: HostSpec, arm: Arm, plan: Plan, *, go: Go, known: Inventory, begun: Beginning,
    group_s: float | None, recovery: Recovery | None,
) -> RunRequest:  # fmt: skip
    """All that `run` asks for, but what an arm of a sweep has no choice of: one type of machine, its own name."""
    return RunRequest(
        recipe=arm.recipe, host=host, machine=machine_type(plan.machine), plan=plan,
        labels={"sweep": name, "arm": arm.name, "seed": str(arm.seed)}, wait=go.wait, recovery=recovery,
        accept_new_host_key=go.accept_new_host_key, queue=QueueFacts(group_s=group_s), init_from=begun.init_from,
        origin=begun.origin, home_boxes=home_boxes(known, host, begun),
    )  # fmt: skip


def recovery(host: HostSpec, plan: Plan) -> Recovery | None:
    """On a spot host the runs of a machine that is taken away go on together on another, by themselves."""
    return spot.recovery(host, [plan], MOST_INTERRUPTIONS) if host.paid and host.spot else None


def _group_s(found: Planned) -> float | None:
    """On a machine without a bill no guard ends it: its queue counts the hours of training instead."""
    price, limits = found.arms[0][1].price_per_hour_usd, found.file.limits
    if found.host.paid:
        return None
    by_cost = limits.max_cost_usd / price * 3600 if limits.max_cost_usd is not None and price else None
    by_hours = limits.max_hours * 3600 if limits.max_hours is not None else None
    return min((each for each in (by_cost, by_hours) if each is not None), default=None)
