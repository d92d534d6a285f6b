"""Provision: the machine is what the plan ordered, and an interpreter there computes on every GPU.

Facts first. What an earlier run found out still counts while boot id, driver and environment hash are the same.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Mapping
from typing import Any

from orchestrator.core.errors import MachineUnfit
from orchestrator.core.forecast import kept_bytes
from orchestrator.core.states import State
from orchestrator.stages import drift
from orchestrator.stages.context import RunContext
from orchestrator.stages.jobs import run_job
from trainer.arithmetic import checkpoint_bytes

MAX_CLOCK_SKEW_S = 60


def provision(context: RunContext) -> None:
    """Leaves `python` in the run's record: the interpreter that trains."""
    context.advance(State.PREPARING)
    facts = context.agent.facts(context.host.python)
    check_gpus(context, facts)
    check_disk(context, facts)
    check_clock(context, facts)
    interpreter = _interpreter(context, facts)
    context.note(
        python=interpreter["python"],
        torch=interpreter["torch"],
        boot_id=facts["boot_id"],
        driver=facts["driver"],
        cpus=facts["cpus"],
        gpus=[gpu["uuid"] for gpu in facts["gpus"]][: context.plan.ranks] if context.machine.cuda else [],
    )
    drift.record(context, facts, interpreter["torch"])
    context.say(f"{facts['hostname']}: torch {interpreter['torch']} in {interpreter['python']}")


def trainer_requirements() -> list[str]:
    """What the trainer needs, from this distribution's own `trainer` extra."""
    lines = importlib.metadata.requires("gptctl") or []
    return sorted(line.split(";")[0].strip() for line in lines if 'extra == "trainer"' in line.replace("'", '"'))


def check_gpus(context: RunContext, facts: dict[str, Any]) -> None:
    """Raises MachineUnfit unless the machine has the GPUs the plan ordered, and they are nobody else's."""
    if not context.machine.cuda:
        return
    names = [gpu["name"] for gpu in facts["gpus"]]
    if len(names) < context.machine.count:
        raise MachineUnfit(
            f"provision: {context.host.name} reports {len(names)} of {context.machine.count} GPUs ({names or 'none'})",
            f"correct `machine` of host {context.host.name} in the inventory, or look with: "
            f"gptctl check {context.host.name}",
        )


def check_disk(context: RunContext, facts: dict[str, Any]) -> None:
    """Raises MachineUnfit when the checkpoints to keep do not fit on the machine's disk. The data is the pull's own
    business: it may lie there already."""
    free = facts["disk"]["free_bytes"]
    each = checkpoint_bytes(context.recipe.model.config(), context.recipe.train.optimizer)
    needed = kept_bytes(context.recipe, context.plan.steps) + each  # and the one being written
    if free < needed:
        raise MachineUnfit(
            f"provision: {free / 1e9:.2f} GB free under {context.rental.folder} on {context.host.name}, "
            f"{needed / 1e9:.2f} GB needed for {needed // each} checkpoints",
            "free some space there, or set `folder` of the host to a larger disk",
        )


def check_clock(context: RunContext, facts: dict[str, Any]) -> None:
    """Warns when the machine's clock is off; nothing depends on it, because only durations travel."""
    skew_s = facts["time_s"] - context.now()
    if abs(skew_s) > MAX_CLOCK_SKEW_S:
        context.tell("warning", f"the clock of {context.host.name} is off by {skew_s:+.0f} s", skew_s=skew_s)


def _interpreter(context: RunContext, facts: dict[str, Any]) -> dict[str, Any]:
    """The record of the chosen interpreter: known from before, or found by the agent's install job."""
    spec = install_spec(context, facts)
    known = facts["envs"].get(spec["env"])
    if known and is_fresh(known, facts):
        return dict(known)
    context.say("choosing an interpreter (a new environment takes a few minutes)")
    exit_record = run_job(context, context.agent, "install", f"{spec['env']}-{facts['boot_id']}", spec)
    if exit_record["outcome"] != "finished":
        raise MachineUnfit(
            f"provision: no interpreter on {context.host.name} computes: " + " | ".join(exit_record["last_lines"][-5:]),
            f"set `python` of host {context.host.name} to one that imports torch >= 2.9, or look with: "
            f"gptctl check {context.host.name}",
        )
    return dict(exit_record["result"])


def is_fresh(known: Mapping[str, Any], facts: Mapping[str, Any]) -> bool:
    """Whether that probe was made in this very boot, with this driver: a card may break between two. A kernel that
    hides its boot id leaves nothing to go by."""
    return bool(facts["boot_id"]) and (known["boot_id"], known["driver"]) == (facts["boot_id"], facts["driver"])


def install_spec(context: RunContext, facts: dict[str, Any]) -> dict[str, Any]:
    """The install job's input; `env` is the hash of everything an environment depends on."""
    requirements = trainer_requirements()
    seeds = [requirements, facts["python"]["version"], facts["arch"], context.host.python, context.machine.cuda]
    return {
        "python": context.host.python,
        "candidates": [found["path"] for found in facts["interpreters"]],
        "requirements": requirements,
        "torch": ">=2.9",
        "env": hashlib.sha256(json.dumps(seeds).encode()).hexdigest()[:16],
        "cuda": context.machine.cuda,
        "allow_build": context.host.python is None,
    }
