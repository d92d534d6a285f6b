"""Provision: the machine is what the plan ordered, nobody else knows its host key, and an interpreter there computes on
every GPU. A large torch takes its time to load: the key is changed meanwhile, and what is little goes out."""

from __future__ import annotations

from dataclasses import asdict

from orchestrator.agent.contract.facts import Facts
from orchestrator.core.errors import MachineUnfit
from orchestrator.core.facts.run_facts import Prepared, Software
from orchestrator.core.parallel import on_each
from orchestrator.core.planning.forecast import kept_bytes
from orchestrator.core.states import State
from orchestrator.stages.context import RunContext
from orchestrator.stages.data import sending, sent_data
from orchestrator.stages.machine import interpreter
from orchestrator.stages.machine.first_contact import new_host_key
from orchestrator.stages.machine.fitness import check_folder, chosen_cards
from orchestrator.stages.nodes.meet import meet
from trainer.arithmetic import checkpoint_bytes

MAX_CLOCK_SKEW_S = 60


def provision(context: RunContext) -> None:
    """Leaves `python` in the run's record: the interpreter that trains, on every node."""
    context.advance(State.PREPARING)
    # Once it trains only the head is looked at again: a node that is lost by then is the nodes' own to find out.
    nodes = (context,) if context.run.state == State.TRAINING else context.nodes
    if len(nodes) > 1:
        sent_data.make_ready(context)  # once, before they all send it
    looked = on_each(nodes, _prepare)
    if context.run.state != State.TRAINING:
        meet(context, looked)


def _prepare(node: RunContext) -> Facts:
    facts, gpus = _begin(node)
    _choose(node, facts, gpus)
    return facts


def _begin(context: RunContext) -> tuple[Facts, list[str]]:
    """Looks at a machine, and starts to look for its interpreter."""
    facts = context.agent.facts(interpreter.given(context))
    if greeting := context.shell.greeting():
        context.emit("seen", f"the login shell of {context.host.name} prints, and gptctl skips it: {greeting}")
    gpus = chosen_cards(facts, context.host, context.machine.node)
    check_folder(facts, context.host, builds=interpreter.first_choice(context, facts) is None)
    check_disk(context, facts)
    check_clock(context, facts)
    interpreter.begin(context, facts, gpus)
    return facts, gpus


def _choose(context: RunContext, facts: Facts, gpus: list[str]) -> None:
    new_host_key.rekey(context)
    sending.send_ahead(context, interpreter.first_choice(context, facts))
    chosen = interpreter.chosen(context, facts, gpus)
    interpreter.check_compiles(context, chosen)
    prepared = Prepared(
        chosen["python"], chosen["torch"], facts["boot_id"], facts["driver"], facts["cpus"], tuple(gpus)
    )
    context.set_run_facts(prepared=prepared)
    if not context.node:
        record_software(context, facts, chosen["torch"])
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


def record_software(context: RunContext, facts: Facts, torch: str) -> None:
    """Records what is under the training, and warns of what differs from the newest earlier run on the same host: a
    cloud changes its image without notice, and a loss curve or a speed with it."""
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
