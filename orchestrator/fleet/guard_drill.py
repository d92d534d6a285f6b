"""A drill: rent a machine, give its guard a short deadline, walk away, and see whether the machine ends on its own.

A drill is a run that is born ending: it trains nothing, and `resume`, `stop` or `release` only give its machine back.
So it is in the ledger, in `status` and in `cost` like any other. After the walk away nothing here reaches the machine;
gptctl reads the provider's list, and ends the machine once it is proven that its guard does not.

Example::

    run = new_drill(ledger, request, time.time())
    drilled = drive_drill(home, run.id, print)
    drilled.died, drilled.late_s, drilled.cost_usd      # True, 312.0, 2.65
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from orchestrator.core.errors import GptctlError, ProviderError, StillBilling
from orchestrator.core.events import Listener
from orchestrator.core.fleet.orphans import GRACE_S
from orchestrator.core.fleet.watcher_mark import PERIOD_S
from orchestrator.core.money.billing import bill, observed
from orchestrator.core.planning.forecast import spread
from orchestrator.core.planning.plan import Hours, Plan
from orchestrator.core.states import Outcome, State
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.records import RunRecord
from orchestrator.ledger.run_lock import RunLock
from orchestrator.pipeline import STAGES, Stage, may_bill, perform, still_costs
from orchestrator.runs.new_run import RunRequest, new_run
from orchestrator.stages.context import RunContext
from orchestrator.stages.machine import deadline
from orchestrator.stages.machine.bounds import began_at
from orchestrator.stages.machine.first_contact import boot
from orchestrator.wiring import open_context

ACQUIRE, RELEASE = STAGES[0], STAGES[-1]
LEASE_S = 300.0
ENDING_S = 300.0
"""How long a provider may take to end a machine before it counts as alive."""
LOOK_EVERY_S = 10.0
SAY_EVERY_S = 30.0
CAUSE = "a drill: only its guard was to end it"


@dataclass(frozen=True)
class Drilled:
    """How a drill went. Times are UTC epoch seconds, money USD before tax."""

    run: str
    rental: str
    instance_id: str
    machine: str
    guard: str
    price_per_hour_usd: float
    armed_at: float
    ends_at: float
    gone_at: float | None
    """First seen gone; None while it is listed."""
    died: bool
    """Whether it ended without help."""
    cost_usd: float
    """At most; of a machine that is still up, so far."""

    @property
    def late_s(self) -> float | None:
        """Seconds from its deadline to its end."""
        return None if self.gone_at is None else self.gone_at - self.ends_at

    def to_json(self) -> dict[str, object]:
        """`drill` of `gptctl check HOST --drill --json`."""
        return {**asdict(self), "late_s": self.late_s}


def patience_s(lease_s: float = LEASE_S) -> float:
    """How long after its deadline a machine may live: a watcher's five minutes, one period of its timer, and the time
    its provider takes. Shorter in proportion for a shorter lease, which is for rehearsals."""
    return (GRACE_S + PERIOD_S + ENDING_S) * min(1.0, lease_s / LEASE_S)


def drill_plan(plan: Plan, lease_s: float = LEASE_S) -> Plan:
    """The plan of a drill on the machine of `plan`: nothing but the boot and the lease, and its limits at the price."""
    hours = Hours.of(boot=plan.hours.boot, train=lease_s / 3600)
    return _ending_after(
        replace(plan, fits=True, why="", hours=hours, cost_usd=spread(hours, plan.price_per_hour_usd, 0.0)),
        deadline.FIRST_S + lease_s,
    )


def _ending_after(plan: Plan, budget_s: float) -> Plan:
    """The plan with this much time from the start of the rental."""
    return replace(plan, ceiling_usd=None, limits=replace(plan.limits, max_hours=budget_s / 3600))


def new_drill(ledger: Ledger, request: RunRequest, now: float) -> RunRecord:
    """Writes the run, ending from its first moment on, and its rental. Touches nothing else."""
    made = new_run(ledger, request, now)
    return ledger.set_state(made.id, State.ENDING, outcome=Outcome.STOPPED, cause=CAUSE)


def drive_drill(home: Path, run_id: str, listener: Listener, lease_s: float = LEASE_S) -> Drilled:
    """Rents, arms the guard, walks away, and looks until the machine is gone or has had its time.

    One that does not die is ended then: the drill has its answer, and the machine costs money. Raises what kept the
    guard from being armed, after giving the machine back; StillBilling when it cannot be given back.
    """
    with RunLock.acquire(home, run_id), Ledger.open(home, time.time) as ledger:
        context = open_context(home, ledger, run_id, listener)
        try:
            _prepare(context, lease_s)
        except GptctlError as error:
            _abandon(context, error)
            raise
        finally:
            context.disconnect()
        armed_at = context.now()
        perform(context, Stage("drill", lambda there: _watch(there, lease_s)))
        died = context.machine_facts.life.gone_at is not None
        if not died:
            context.say(f"its guard did not end {context.rental.instance_id}: ending it now")
        perform(context, RELEASE)
        ledger.set_state(run_id, State.ENDED)
        return _drilled(context, armed_at, died=died)


def _prepare(context: RunContext, lease_s: float) -> None:
    """A machine that answers, and a guard on or beside it that knows when to act."""
    perform(context, ACQUIRE)
    budget_s = context.now() + lease_s - began_at(context)
    context.ledger.update_run(context.run_id, plan=_ending_after(context.plan, budget_s))
    deadline.arm(context, None)


def _abandon(context: RunContext, error: GptctlError) -> None:
    """Gives back what cannot be guarded. A launch without an answer stays open: it is looked for by `release`."""
    if context.rental.instance_id is None and may_bill(context):
        raise StillBilling(*still_costs(context, error.message)) from error
    perform(context, RELEASE)
    context.ledger.set_state(context.run_id, State.ENDED)


def _watch(context: RunContext, lease_s: float) -> None:
    """Looks at the provider's list until it shows the machine no more, twice, or its time is over."""
    ends_at = context.rental.ends_at or context.now()
    until, told = ends_at + patience_s(lease_s), 0.0
    while context.now() < until:
        looked_at = context.now()
        context.ledger.touch_stage(context.interval)
        if looked_at - told >= SAY_EVERY_S:
            told = looked_at
            context.say(_progress(ends_at - looked_at, until - looked_at))
        try:
            if boot.is_gone(context):
                return boot.note_life(context, gone_at=context.now())
            boot.note_life(context, alive_at=looked_at)
        except ProviderError as error:  # a list that does not come says nothing
            context.emit("seen", f"{error.message}; looking again")
        time.sleep(min(LOOK_EVERY_S, lease_s / 30))


def _progress(left_s: float, patience_left_s: float) -> str:
    when = f"its guard acts in {left_s:.0f} s" if left_s > 0 else f"{-left_s:.0f} s past its deadline"
    return f"still listed; {when}; given up on in {patience_left_s:.0f} s"


def _drilled(context: RunContext, armed_at: float, *, died: bool) -> Drilled:
    rental = context.rental
    life, settled = rental.facts.life, rental.facts.bill
    span = observed(replace(life, gone_at=life.gone_at or context.now()))
    so_far = bill(span, rental.price_per_hour_usd, context.provider.billing_unit_s).cost.high if span else 0.0
    return Drilled(
        run=context.run_id,
        rental=rental.id,
        instance_id=rental.instance_id or "",
        machine=rental.machine,
        guard=context.host.guard,
        price_per_hour_usd=rental.price_per_hour_usd,
        armed_at=armed_at,
        ends_at=rental.ends_at or armed_at,
        gone_at=life.gone_at,
        died=died,
        cost_usd=settled.cost.high if settled else so_far,
    )
