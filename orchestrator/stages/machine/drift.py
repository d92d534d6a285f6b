"""Drift: what is under a training (image, kernel, driver, Python, torch) is noted, and compared with the run before.

The default image of a cloud changes without a word, and a loss curve or a speed with it. It only warns: a newer driver
is no reason to end a run.

Example: `changes({"torch": "2.9.1"}, {"torch": "2.13.0"})` -> ["torch 2.9.1 -> 2.13.0"]
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.stages.context import RunContext

SHOWN = "software"
"""The key in a run's options under which it is kept."""


def record(context: RunContext, facts: Mapping[str, Any], torch: str) -> None:
    """Notes what this machine runs, and says what is other than in the newest earlier run on the same host."""
    system = facts.get("system") or {}
    found = {
        "image": context.rental.data.get("image") or context.host.image,
        "os": system.get("os"),
        "kernel": system.get("kernel"),
        "driver": facts["driver"],
        "python": facts["python"]["version"],
        "torch": torch,
    }
    context.note(**{SHOWN: found})
    alike = [run for run in context.ledger.runs(host=context.host.name) if run.machine == context.machine.name]
    before = next((run for run in alike if run.id != context.run_id and run.options.get(SHOWN)), None)
    if before is not None and (changed := changes(before.options[SHOWN], found)):
        context.tell("warning", f"{context.host.name} is not what it was for {before.id}: {', '.join(changed)}")


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """One phrase per difference; what either side does not know is no difference."""
    return [
        f"{name} {before[name]} -> {value}"
        for name, value in now.items()
        if value and before.get(name) and before[name] != value
    ]
