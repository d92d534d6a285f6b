"""What a run cost as a job of an engine: by the engine's books, or by the notes of the job itself where there are none.

It must not end anything: the job has left its nodes when it is asked.

Example: `settle(context)`
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

from orchestrator.core.engine import Span
from orchestrator.core.errors import NoAnswer
from orchestrator.ledger.bills import spending
from orchestrator.remote.agent_client.decoding import json_object
from orchestrator.stages.context import RunContext
from orchestrator.stages.machine.engine_job import engine_of, every_job, has_left, job_file

STARTS_FILE = "slurm.jsonl"
MOST_S, MOST_NODES = 366 * 86_400.0, 100_000
"""Of one start; a line of a file that anything may have written says no more."""
COMPLETE_WITHIN_S, LOOKS_EVERY_S = 10.0, 1.0
"""After a job has left, its end is on the way to the books."""
APART_S = 60.0
"""By how much the notes of a start may exceed the books that are complete: clocks are not exact."""


def settle(context: RunContext) -> None:
    """Notes hours and dollars. Repeatable. Raises NoAnswer where the books are silent: `gptctl resume` settles it."""
    if not context.facts.engine.jobs:
        return
    has_left(context)
    jobs = list(context.facts.engine.jobs)
    with suppress(NoAnswer):  # the controller is away; the books may answer, and the notes are of every job
        jobs = every_job(context)
    spans = _spans(context, jobs)
    node_hours = _node_hours(spans)
    context.set_run_facts(
        engine=replace(
            context.facts.engine, jobs=tuple(jobs), gpu_hours=sum(span.gpu_hours for span in spans),
            node_hours=node_hours, starts=len(spans),
        )
    )  # fmt: skip
    context.ledger.close_stage(context.interval)
    usd = context.rental.price_per_hour_usd / context.machine.nodes * node_hours
    with context.ledger.rows.writing() as connection:
        spending.settle_run(connection, context.run_id, usd)


def _spans(context: RunContext, jobs: Sequence[str]) -> Sequence[Span]:
    """By the books, unless the job's own notes say clearly more than what is over there: slurmdbd may be behind."""
    books = _books(context, jobs)
    gpus = context.machine.gpus if context.machine.cuda else 0
    notes = noted(context.shell.run(["cat", job_file(context, STARTS_FILE)]).stdout.splitlines(), gpus)
    over = [span for span in books or () if span.is_over]
    if books is None:
        context.say("Slurm keeps no books here (sacct is off): the cost is from the job's own notes")
    more = _node_hours(notes) > _node_hours(over) + sum(span.nodes for span in notes) * APART_S / 3600
    if more or (notes and not any(span.seconds for span in over)):
        if over:
            context.say("Slurm's books lag behind the job: the cost is from its own notes")
        return notes
    return [replace(span, gpus=span.gpus or gpus // context.machine.nodes * span.nodes) for span in over or books or ()]


def _books(context: RunContext, jobs: Sequence[str]) -> Sequence[Span] | None:
    """What the engine's books say once they have all ends, or after at most COMPLETE_WITHIN_S."""
    until = time.monotonic() + COMPLETE_WITHIN_S
    while True:
        spans = engine_of(context).usage(jobs)
        if spans is None or all(span.is_over for span in spans) or time.monotonic() > until:
            return spans
        time.sleep(LOOKS_EVERY_S)


def _node_hours(spans: Sequence[Span]) -> float:
    return sum(span.node_hours for span in spans)


def noted(lines: Sequence[bytes], gpus: int) -> list[Span]:
    """The starts by the job's own notes, each up to the last line that it wrote: one that was killed wrote no end.
    gpus: of all nodes."""
    spans: list[Span] = []
    began = 0.0
    for line in lines:
        note = json_object(line) or {}
        at, nodes = note.get("time"), note.get("node_count", 1)
        if isinstance(at, bool) or not isinstance(at, int | float) or not math.isfinite(at):
            continue
        if note.get("event") == "begin":
            began = float(at)
            spans.append(Span("NOTED", 0.0, nodes if type(nodes) is int and 0 < nodes < MOST_NODES else 1, gpus))
        elif spans:
            spans[-1] = replace(spans[-1], seconds=min(MOST_S, max(spans[-1].seconds, at - began)))
    return spans
