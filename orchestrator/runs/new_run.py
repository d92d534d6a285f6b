"""How a run and its rental come into being, in state planned. Touches no machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from orchestrator.core.config.home_box import HomeBox
from orchestrator.core.config.inventory import HostSpec
from orchestrator.core.config.recipe import Recipe
from orchestrator.core.facts.origin import Origin
from orchestrator.core.facts.rental_facts import RentalFacts
from orchestrator.core.facts.run_facts import QueueFacts, Recovery, ResumeFrom, RunFacts
from orchestrator.core.machines import MachineType
from orchestrator.core.planning.plan import Plan
from orchestrator.core.states import State
from orchestrator.ledger.identity import new_rental_id, new_run_id
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.records import Rental, RunRecord
from orchestrator.ledger.run_lock import refuse_driven_elsewhere
from orchestrator.runs import own_version
from orchestrator.wiring import LOCAL


@dataclass(frozen=True)
class RunRequest:
    """What `gptctl run` was asked for, with everything looked up and agreed to."""

    recipe: Recipe
    host: HostSpec
    machine: MachineType
    plan: Plan
    alternatives: tuple[Plan, ...] = ()
    """Plans on other machine types of the host that you also agreed to."""
    name: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    note: str | None = None
    keep: bool = False
    wait: bool = False
    accept_new_host_key: bool = False
    on_rental: str | None = None
    resume_from: ResumeFrom | None = None
    init_from: ResumeFrom | None = None
    origin: Origin | None = None
    home_boxes: tuple[HomeBox, ...] = ()
    """Those with its store or the checkpoint to resume from."""
    queue: QueueFacts | None = None
    """That it may wait for its turn on the machine."""
    recovery: Recovery | None = None
    """That it goes on by itself when its machine is taken away."""


def new_run(ledger: Ledger, request: RunRequest, now: float) -> RunRecord:
    """Writes the run in state planned, and its rental unless it uses one that is up. Touches nothing else."""
    rental_id = request.on_rental
    if rental_id is None:
        rental = new_rental(ledger, request, now)
        ledger.add_rental(rental)
        rental_id = rental.id
    refuse_driven_elsewhere_on(ledger, rental_id)
    run = record_of(request, rental_id, now)
    ledger.add_run(run)
    return run


def refuse_driven_elsewhere_on(ledger: Ledger, rental_id: str) -> None:
    """Raises RunLocked where another host drives the runs of this rental: all of one machine have one driver."""
    for run in ledger.runs(rental_id=rental_id):
        refuse_driven_elsewhere(run)


def record_of(request: RunRequest, rental_id: str, now: float) -> RunRecord:
    """The run in state planned, which nothing has written yet."""
    return RunRecord(
        id=new_run_id(request.recipe.name, now),
        name=request.name,
        labels=dict(request.labels),
        note=request.note,
        recipe=request.recipe.name,
        recipe_digest=request.recipe.digest,
        recipe_data=request.recipe.resolved(),
        host=request.host.name,
        host_data=request.host.resolved(),
        machine=request.machine.name,
        rental_id=rental_id,
        plan=request.plan,
        facts=RunFacts(
            made_by=own_version.made_by(),
            accept_new_host_key=request.accept_new_host_key,
            wait=request.wait,
            resume_from=request.resume_from,
            init_from=request.init_from,
            origin=request.origin,
            home_boxes=request.home_boxes,
            alternatives=request.alternatives,
            queue=request.queue,
            recovery=request.recovery,
        ),
        state=State.PLANNED,
        created_at=now,
        total_steps=request.plan.steps,
        keep=request.keep,
    )


def as_requested(facts: RunFacts) -> RunFacts:
    """What a request wrote, without what a machine added: of a run that begins again as another one."""
    return RunFacts(
        made_by=facts.made_by, accept_new_host_key=facts.accept_new_host_key, wait=facts.wait,
        resume_from=facts.resume_from, init_from=facts.init_from, origin=facts.origin, home_boxes=facts.home_boxes,
        alternatives=facts.alternatives, queue=facts.queue, recovery=facts.recovery,
    )  # fmt: skip


def new_rental(ledger: Ledger, request: RunRequest, now: float) -> Rental:
    """A rental for it, which nothing has written yet."""
    host, plan = request.host, request.plan
    # Of one that goes on elsewhere, each rental has its ceiling: the markets have different prices.
    bounds = RentalFacts(ceiling_usd=plan.ceiling_usd, ceiling_h=plan.limits.max_hours)
    return Rental(
        id=new_rental_id(request.machine.name, now),
        provider=host.provider,
        host=host.name,
        machine=request.machine.name,
        price_per_hour_usd=request.plan.price_per_hour_usd or 0.0,
        created_at=now,
        folder=str(ledger.home / "machine") if host.provider == LOCAL else host.folder,
        facts=bounds if request.recovery is not None else RentalFacts(),
    )
