"""Provision: the machine is what the plan ordered, nobody else knows its host key, and an interpreter there computes on
every GPU. A large torch takes its time to load: the key is changed meanwhile, and what is little goes out."""

from __future__ import annotations

from orchestrator.agent.contract.facts import Facts
from orchestrator.core.errors import MachineUnfit
from orchestrator.core.facts.run_facts import Prepared
from orchestrator.core.planning.forecast import kept_bytes
from orchestrator.core.states import State
from orchestrator.stages.context import RunContext
from orchestrator.stages.data import sending
from orchestrator.stages.machine import drift, interpreter, new_host_key
from orchestrator.stages.machine.fitness import check_folder, chosen_cards
from trainer.arithmetic import checkpoint_bytes

MAX_CLOCK_SKEW_S = 60


def provision(context: RunContext) -> None:
    """Leaves `python` in the run's record: the interpreter that trains."""
    context.advance(State.PREPARING)
    facts = context.agent.facts(context.host.python)
    if greeting := context.shell.greeting():
        context.emit("seen", f"the login shell of {context.host.name} prints, and gptctl skips it: {greeting}")
    gpus = chosen_cards(facts, context.host, context.machine)
    check_folder(facts, context.host, builds=interpreter.first_choice(context, facts) is None)
    check_disk(context, facts)
    check_clock(context, facts)
    interpreter.begin(context, facts, gpus)
    new_host_key.rekey(context)
    sending.send_ahead(context, interpreter.first_choice(context, facts))
    chosen = interpreter.chosen(context, facts, gpus)
    interpreter.check_compiles(context, chosen)
    prepared = Prepared(
        chosen["python"], chosen["torch"], facts["boot_id"], facts["driver"], facts["cpus"], tuple(gpus)
    )
    context.set_run_facts(prepared=prepared)
    drift.record(context, facts, chosen["torch"])
    context.say(f"{facts['hostname']}: torch {chosen['torch']} in {chosen['python']}")


def check_disk(context: RunContext, facts: Facts) -> None:
    """Raises MachineUnfit when the checkpoints to keep do not fit on the machine's disk. The data is the pull's own
    business: it may be there already."""
    free = facts["disk"]["free_bytes"]
    each = checkpoint_bytes(context.recipe.model.config(), context.recipe.train.optimizer)
    needed = kept_bytes(context.recipe, context.plan.steps, context.plan.from_step) + each  # and the one being written
    if free < needed:
        raise MachineUnfit(
            f"provision: {free / 1e9:.2f} GB free under {context.rental.folder} on {context.host.name}, "
            f"{needed / 1e9:.2f} GB needed for {needed // each} checkpoints",
            "free some space there, or set `folder` of the host to a larger disk",
        )


def check_clock(context: RunContext, facts: Facts) -> None:
    """Warns when the machine's clock is off; nothing depends on it, because only durations travel."""
    skew_s = facts["time_s"] - context.now()
    if abs(skew_s) > MAX_CLOCK_SKEW_S:
        context.emit("warning", f"the clock of {context.host.name} is off by {skew_s:+.0f} s", skew_s=skew_s)
