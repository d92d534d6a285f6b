"""Runs and rentals as the rows of `gptctl status --json`, whose keys scripts rely on. Pure: no clock, no I/O.

Example::

    row = run_row(run, rental, intervals, now=time.time())
    row["state"], row["cost_usd"]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from orchestrator.cli.screen.tables import Column
from orchestrator.core.engine import Phase
from orchestrator.core.estimate import Estimate
from orchestrator.core.fleet.guard_state import GuardState
from orchestrator.core.formats import DASH, count, dollars, dollars_between, duration, loss
from orchestrator.core.money.cost import spent
from orchestrator.core.states import Seen, State
from orchestrator.core.typed_json import encode
from orchestrator.ledger.bills.run_estimate import run_estimate
from orchestrator.ledger.records import Evaluation, Rental, RunRecord, StageInterval
from orchestrator.report.evaluations import table

COLUMNS = (
    Column("RUN"),
    Column("RECIPE", leaves=6, label="{}", in_first=True),
    Column("HOST", leaves=2, label="on {}"),
    Column("AGE", right=True, leaves=6, label="{} old"),
    Column("STAGE"),
    Column("STEP", right=True),
    Column("LOSS", right=True, leaves=4),
    Column("VAL", right=True, leaves=1),
    Column("TOK/S", right=True, leaves=7, label="{} tok/s"),
    Column("ETA", right=True, leaves=3, label="ETA {}"),
    Column("COST", right=True),
    Column("$/H", right=True, leaves=5, label="{}/h"),
    Column("SEEN", leaves=8, label="{}"),
)


FRESH_S = 10.0
"""Another gptctl that follows a run has just seen it, whatever the machine answers to this one."""


def run_row(
    run: RunRecord,
    rental: Rental | None,
    intervals: Sequence[StageInterval],
    now: float,
    evaluations: Sequence[Evaluation] = (),
) -> dict[str, Any]:
    """One element of `runs`. Times are seconds, money USD; unknown values are null."""
    return {
        "id": run.id,
        "name": run.name,
        "recipe": run.recipe,
        "host": run.host,
        "machine": run.machine,
        "rental": run.rental_id,
        "state": run.state.value,
        "outcome": run.outcome and run.outcome.value,
        "cause": run.cause,
        "stage": run.stage,
        "ahead": run.facts.queue.ahead if run.facts.queue and run.state != State.ENDED else None,
        "job": encode(run.facts.engine) if run.facts.engine.jobs else None,
        "step": run.step,
        "total_steps": run.total_steps,
        "loss": run.loss,
        "val_loss": run.val_loss,
        "tokens_per_second": run.tokens_per_second,
        "mfu": run.mfu,
        "eta_s": run.eta_s,
        **asdict(run_estimate(run, rental, spent(intervals))),
        "price_per_hour_usd": rental.price_per_hour_usd if rental else None,
        "seen": run.seen and run.seen.value,
        "seen_s": None if run.seen_at is None else max(0.0, now - run.seen_at),
        "seen_via": run.seen_via,
        "safe_step": run.safe_step,
        "store": run.facts.store and encode(run.facts.store),
        "data": run.facts.staged and encode(run.facts.staged),
        "guard": _guard(rental).to_json(),
        "evaluations": [row.to_json() for row in table(evaluations)],
        "labels": run.labels,
        "note": run.note,
        "keep": run.keep,
        "driven_by": run.facts.driven_by,
        "needs_resume": run.facts.needs_resume if run.state == State.TRAINING else "",
        "created_at": run.created_at,
        "age_s": max(0.0, now - run.created_at),
        "started_at": run.started_at,
        "ended_at": run.ended_at,
    }


def _guard(rental: Rental | None) -> GuardState:
    if rental is None:
        return GuardState()
    return rental.facts.guard or GuardState(ends_at=rental.ends_at)


def rental_row(
    rental: Rental, runs: Sequence[RunRecord], intervals: Mapping[str, Sequence[StageInterval]]
) -> dict[str, Any]:
    """One element of `rentals`."""
    served = [run for run in runs if run.rental_id == rental.id]
    costs = (run_estimate(run, rental, spent(intervals.get(run.id, ()))) for run in served)
    return {
        "id": rental.id,
        "provider": rental.provider,
        "host": rental.host,
        "instance_id": rental.instance_id,
        "instance_ids": list(rental.instance_ids),
        "machine": rental.machine,
        "price_per_hour_usd": rental.price_per_hour_usd,
        **asdict(sum(costs, Estimate(0.0))),
        "runs": [run.id for run in served],
        "state": rental.state,
    }


def cells(row: Mapping[str, Any]) -> list[str]:
    """The same row for people, in the order of COLUMNS."""
    ended = row["state"] == State.ENDED
    total = row["total_steps"]
    return [
        row["id"] + (f" ({row['name']})" if row["name"] else ""),
        row["recipe"],
        row["host"],
        duration(row["age_s"]),
        str(row["outcome"]) if ended else _where(row),
        f"{row['step']}/{total}" if total else DASH,
        loss(row["loss"]),
        loss(row["val_loss"]),
        count(row["tokens_per_second"]),
        DASH if ended else duration(row["eta_s"]),
        dollars_between(row["cost_usd"] - row["less_usd"], row["cost_usd"], row["cost_usd"] + row["more_usd"]),
        DASH if ended else dollars(row["price_per_hour_usd"]),
        DASH if ended else seen_words(row),
    ]


def _where(row: Mapping[str, Any]) -> str:
    """Its stage, or that it trains, in whichever stage gptctl left it; of one that waits, how many trainings come first
    besides the one that runs, or Slurm's reason."""
    job = row["job"]
    if job is not None and job["phase"] == Phase.WAITING:
        return _waits(job, row["created_at"] + row["age_s"])
    if row["ahead"] is not None:
        return f"queued ({row['ahead'] + 1})"
    return str(row["state"] if row["state"] == State.TRAINING else row["stage"] or row["state"])


def _waits(job: Mapping[str, Any], now: float) -> str:
    """`pending (Resources, starts in 2h 10m)`, as far as Slurm says so."""
    left_s = (job["starts_at"] or 0.0) - now
    said = [job["reason"].split(":")[0], f"starts in {duration(left_s)}" if left_s > 0 else ""]
    words = ", ".join(filter(None, said))
    return f"{job['state'].lower()} ({words})" if words else str(job["state"].lower())


def seen_words(row: Mapping[str, Any]) -> str:
    """`seen 4s ago via ssh`, or `unknown, seen 3m 20s ago via ssh`: silence says nothing about the machine."""
    if row["seen_s"] is None:
        return Seen.UNKNOWN.value if row["seen"] == Seen.UNKNOWN else "not seen yet"
    via = f" via {row['seen_via']}" if row["seen_via"] else ""
    prefix = f"{Seen.UNKNOWN.value}, " if row["seen"] == Seen.UNKNOWN and row["seen_s"] > FRESH_S else ""
    return f"{prefix}seen {duration(row['seen_s'])} ago{via}"
