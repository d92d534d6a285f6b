"""Drift: what is under a training (image, kernel, driver, Python, torch) is recorded, and compared with the run before.

A cloud changes its default image without notice, and a loss curve or a speed with it. This only warns: a newer driver
is not a reason to end a run.

Example: `changes(Software(torch="2.9.1"), Software(torch="2.13.0"))` -> ["torch 2.9.1 -> 2.13.0"]
"""

from __future__ import annotations

from dataclasses import asdict

from orchestrator.agent.contract.facts import Facts
from orchestrator.core.facts.run_facts import Software
from orchestrator.stages.context import RunContext


def record(context: RunContext, facts: Facts, torch: str) -> None:
    """Records what this machine runs, and warns of what differs from the newest earlier run on the same host."""
    system = facts["system"]
    found = Software(
        image=context.machine_facts.image or context.host.image,
        os=system.get("os"),
        kernel=system.get("kernel"),
        driver=facts["driver"],
        python=facts["python"]["version"],
        torch=torch,
    )
    context.set_run_facts(software=found)
    alike = [run for run in context.ledger.runs(host=context.host.name) if run.machine == context.machine.name]
    before = next((run for run in alike if run.id != context.run_id and run.facts.software), None)
    if before is not None and (changed := changes(before.facts.software or Software(), found)):
        context.emit("warning", f"{context.host.name} is not what it was for {before.id}: {', '.join(changed)}")


def changes(before: Software, now: Software) -> list[str]:
    """One phrase per difference; what either side does not know is not a difference."""
    known = asdict(before)
    return [
        f"{name} {known[name]} -> {value}"
        for name, value in asdict(now).items()
        if value and known[name] and known[name] != value
    ]
