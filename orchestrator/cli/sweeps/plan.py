"""`gptctl sweep plan`, and the plan that `sweep run` shows before it asks: every arm, and where the ceiling falls."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.cli.open_ledger import open_ledger
from orchestrator.cli.plans.plan import planned
from orchestrator.cli.screen import screen
from orchestrator.cli.screen.tables import Column
from orchestrator.core.config.inventory import HostSpec, load_inventory
from orchestrator.core.config.recipe import Limits
from orchestrator.core.config.sweep import Arm, SweepFile, arms_of, load_sweep
from orchestrator.core.errors import GptctlError, UserError
from orchestrator.core.formats import dollars, hours
from orchestrator.core.planning.many_machines.sweep_plan import SweepPlan, check_sweep, sweep_plan
from orchestrator.core.planning.plan import Plan
from orchestrator.ledger.bills.fetch_rates import fetch_rates
from orchestrator.ledger.ledger import Ledger

PLAN_COLUMNS = (
    Column("#", right=True), Column("ARM"), Column("SEED", right=True), Column("MACHINE", right=True, leaves=2),
    Column("STEPS", right=True, leaves=1), Column("TIME", right=True), Column("COST", right=True),
    Column("TOTAL", right=True), Column("CEILING"),
)  # fmt: skip


@dataclass(frozen=True)
class Planned:
    """A sweep file with everything looked up."""

    file: SweepFile
    host: HostSpec
    arms: tuple[tuple[Arm, Plan], ...]
    plan: SweepPlan


def prepared(ledger: Ledger, path: Path, host_name: str, machines: int | None, inventory: Path | None) -> Planned:
    """Reads the file, its recipes and the prices. Raises what names every arm that this host cannot run."""
    file, host = load_sweep(path), load_inventory(inventory, ledger.home).host(host_name)
    arms = arms_of(file, path.parent)
    plans: dict[str, Plan] = {}
    problems: list[tuple[str, GptctlError]] = []
    fetches = fetch_rates(ledger.rentals())
    per_run = Limits(max_price_per_hour_usd=file.limits.max_price_per_hour_usd, hold_h=file.limits.hold_h)
    for arm in arms:
        if arm.name in plans:
            continue  # another seed takes as long
        try:
            plans[arm.name] = _on_one_machine(
                planned(arm.recipe, host, ledger.rates(), per_run, fetches=fetches), list(filter(None, plans.values()))
            )
        except GptctlError as error:
            problems.append((arm.name, error))
            plans[arm.name] = _NONE
    if problems:
        arms_of_problem: dict[str, list[str]] = {}
        for name, problem in problems:
            arms_of_problem.setdefault(problem.message, []).append(name)
        lines = [f"arm {', '.join(names)}: {message}" for message, names in arms_of_problem.items()]
        text = "\n".join([f"sweep {file.name} on {host.name}:", *lines])
        raise type(problems[0][1])(text, "take these arms out of the file, or choose another host")
    pairs = tuple((arm, plans[arm.name]) for arm in arms)
    count = machines or file.rentals
    _refuse_scattered(file, arms, count)
    if count > 1 and not host.paid:
        raise UserError(f"{host.name} is one machine, and {count} are asked for", "omit --machines")
    found = sweep_plan(
        [(arm.name, arm.seed, plan) for arm, plan in pairs], ceiling_usd=_ceiling(file, pairs[0][1], count),
        machines=count, by_seed=file.stop is not None,
    )  # fmt: skip
    return Planned(file, host, pairs, found)


def _refuse_scattered(file: SweepFile, arms: Sequence[Arm], machines: int) -> None:
    """[stop] compares an arm with the baseline of its seed, which has to be on its machine."""
    seeds = len({arm.seed for arm in arms})
    if file.stop is not None and machines > seeds:
        raise UserError(
            f"sweep {file.name}: [stop] keeps the arms of one seed on one machine: {seeds} seeds have no use for "
            f"{machines} machines",
            f"--machines {seeds}, or take [stop] out of the file",
        )


_NONE: Plan = None  # type: ignore[assignment]


def _on_one_machine(plans: Sequence[Plan], others: Sequence[Plan]) -> Plan:
    """All arms run on one type of machine: that of the first."""
    wanted = others[0].machine if others else plans[0].machine
    return next((plan for plan in plans if plan.machine == wanted), plans[0])


def _ceiling(file: SweepFile, plan: Plan, machines: int) -> float | None:
    """USD over the whole; max_hours counts for every machine."""
    price, limits = plan.price_per_hour_usd, file.limits
    by_hours = limits.max_hours * price * machines if limits.max_hours is not None and price else None
    return min((each for each in (limits.max_cost_usd, by_hours) if each is not None), default=None)


def plan(path: Path, host: str, machines: int | None, inventory: Path | None, *, as_json: bool) -> int:
    """Shows each arm, where the ceiling falls, and what another number of machines would take."""
    with open_ledger() as ledger:
        found = prepared(ledger, path, host, machines, inventory)
    if as_json:
        print(json.dumps(plan_json(found), indent=1))
        return 0
    show_plan(found)
    check_sweep(found.file.name, found.plan)
    return 0


def plan_json(found: Planned) -> dict[str, object]:
    made = found.plan
    return {
        "sweep": found.file.name, "host": found.host.name, "ceiling_usd": made.ceiling_usd, "cost_usd": made.cost_usd,
        "hours": made.hours, "fits": made.fits, "arms": [vars(arm) for arm in made.arms],
    }  # fmt: skip


def show_plan(found: Planned) -> None:
    made = found.plan
    rows = [
        [
            str(number), arm.arm, str(arm.seed), str(arm.machine + 1), f"{arm.steps:,}", hours(arm.hours),
            dollars(arm.cost_usd), dollars(arm.total_usd), "fits" if arm.fits else "beyond",
        ]
        for number, arm in enumerate(made.arms, 1)
    ]  # fmt: skip
    screen.show_table(PLAN_COLUMNS, rows)
    screen.talk(f"{len(made.arms)} runs need {dollars(made.cost_usd)} and {hours(made.hours)}")
    if made.ceiling_usd is not None:
        screen.talk(f"under the ceiling of {dollars(made.ceiling_usd)} fit {made.fits} of {len(made.arms)}")
    here = 1 + max(arm.machine for arm in made.arms)
    for count in [each for each in (1, 2, 4) if each != here and found.host.paid]:
        other = sweep_plan(
            [(arm.name, arm.seed, each) for arm, each in found.arms], ceiling_usd=made.ceiling_usd, machines=count,
            by_seed=found.file.stop is not None,
        )  # fmt: skip
        screen.talk(f"with --machines {count}: {dollars(other.cost_usd)}, {hours(other.hours)}")
