"""What a run cost as a job of an engine: by the engine's books, or by the notes of the job itself where there are none.

It must not end anything: the job has left its nodes when it is asked.

Example: `settle(context)`
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from orchestrator.core.engine import Span
from orchestrator.ledger.bills import spending
from orchestrator.remote.agent_client.decoding import json_object
from orchestrator.stages.context import RunContext
from orchestrator.stages.machine.engine_job import engine_of, has_left, job_file

STARTS_FILE = "slurm.jsonl"
MOST_S, MOST_NODES = 366 * 86_400.0, 100_000
"""Of one start; a line of a file that anything may have written says no more."""


def settle(context: RunContext) -> None:
    """Notes hours and dollars. Repeatable. Raises NoAnswer where the books are silent: `gptctl resume` settles it."""
    jobs = context.facts.engine.jobs
    if not jobs:
        return
    has_left(context)
    spans = engine_of(context).usage(jobs)
    if spans is None:
        context.say("Slurm keeps no books here (sacct is off): the cost is from the job's own notes")
    elif not any(span.seconds for span in spans):
        spans = None  # the books have not heard of it
    if spans is None:
        notes = context.shell.run(["cat", job_file(context, STARTS_FILE)]).stdout.splitlines()
        spans = noted(notes, context.machine.gpus if context.machine.cuda else 0)
    node_hours = sum(span.node_hours for span in spans)
    context.set_run_facts(
        engine=replace(
            context.facts.engine, gpu_hours=sum(span.gpu_hours for span in spans), node_hours=node_hours,
            starts=len(spans),
        )
    )  # fmt: skip
    context.ledger.close_stage(context.interval)
    usd = context.rental.price_per_hour_usd / context.machine.nodes * node_hours
    with context.ledger.rows.writing() as connection:
        spending.settle_run(connection, context.run_id, usd)


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
