"""Launch: exactly one training of this run on the machine. Starting it twice attaches; the agent sees to that."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from dataclasses import replace

from orchestrator.agent.contract.answers import ProbeResult
from orchestrator.agent.contract.names import GRACE_S, Code, JobName
from orchestrator.agent.contract.names import State as JobStateName
from orchestrator.agent.contract.requests import JobSpec
from orchestrator.core.errors import AgentError, LimitReached, MachineUnfit
from orchestrator.core.fleet.lease import lease_s
from orchestrator.core.fleet.own_machine import goes_on_after_reboot
from orchestrator.core.parallel import on_each
from orchestrator.core.planning.limits import reserve_s, train_deadline_s
from orchestrator.core.planning.plan import Plan
from orchestrator.core.planning.planner import amended
from orchestrator.core.planning.run_config import train_config
from orchestrator.core.states import State
from orchestrator.remote.agent_client.decoding import decoded
from orchestrator.report.lineage import lineage_of
from orchestrator.stages.checkpoints import store_job
from orchestrator.stages.context import RunContext
from orchestrator.stages.machine import deadline, engine_job, queue_turn
from orchestrator.stages.machine.bounds import began_at, hear_stop, rental_budget_s
from orchestrator.stages.machine.give_back import end_lost
from orchestrator.stages.machine.jobs import has_started, machine_status, note_attempt, restarts, run_job
from orchestrator.stages.nodes import others
from orchestrator.stages.nodes.meet import cluster_of
from trainer.contract import RunConfig

TAKEN = (Code.GPUS_TAKEN, Code.GPUS_BUSY, Code.CPU_TAKEN)


def launch(context: RunContext) -> None:
    """Leaves a train job that runs or has ended, and the run in state training."""
    known = machine_status(context)
    if not has_started(context, known):
        _amend_plan(context)
        deadline.arm(context, known and known["guard"])
        store_job.require(context)
        hear_stop(context)
        _start(context)
        if context.facts.lost_nodes.times and store_job.wanted(context):
            store_job.start(context)  # it may have finished with the attempt before
    elif context.engine_of is not None:
        engine_job.attach(context, known)
    note_attempt(context)
    context.advance(State.TRAINING)
    end_lost(context)


def _start(context: RunContext) -> None:
    config = resolved_config(context, context.plan)
    digest = hashlib.sha256(config.to_json().encode()).hexdigest()[:16]
    spec = _spec(context, config)
    if context.engine_of is not None:
        return engine_job.submit(context, digest, spec)
    with _others_may_compute():
        if not _start_others(context, digest):
            # They waited for a head that never came: gptctl was killed, or lost its link. Some may still wait.
            others.stop(context)
            _count(context)
            _start_others(context, digest)
            spec = _spec(context, config)
        if context.facts.queue is None or context.machine.nodes > 1:
            context.agent.start(JobName.TRAIN, context.run_id, digest, spec)
            return
        context.agent.enqueue(context.run_id, digest, {**spec, "queue": queue_turn.terms(context)})
    queue_turn.begin(context)


def _start_others(context: RunContext, digest: str) -> bool:
    """The head comes last: until it runs, nothing says that the run trains. Whether all of them wait for it."""
    specs = [(node, _spec(node, resolved_config(node, node.plan))) for node in context.nodes[1:]]
    started = on_each(specs, lambda each: each[0].agent.start(JobName.TRAIN, context.run_id, digest, each[1]))
    return JobStateName.ENDED not in [job.state for job in started]


def _count(context: RunContext) -> None:
    known = context.facts.lost_nodes
    context.set_run_facts(lost_nodes=replace(known, attempt=known.attempt + 1))


@contextlib.contextmanager
def _others_may_compute() -> Iterator[None]:
    """Raises MachineUnfit where another program computes on these GPUs."""
    try:
        yield
    except AgentError as error:
        if error.code in TAKEN:
            hint = f"{error.hint}; or run again with --queue, which waits for its turn there"
            raise MachineUnfit(f"launch: {error.message}", hint) from error
        raise


def resolved_config(context: RunContext, plan: Plan) -> RunConfig:
    """config.json: recipe and plan with everything looked up. The same on every call: launching is repeatable."""
    synced = context.synced
    at_head = context.facts.synced or synced  # what it begins from: the head reads it, and all nodes must know so
    config = train_config(
        context.recipe,
        plan,
        resume_from=at_head.resume_from_there,
        init_from=at_head.init_from_there,
        lineage=lineage_of(context.run, plan),
        **vars(synced.data),
    )
    if not store_job.wanted(context):
        return config
    # What the store does not have yet stays, however fast the next ones come.
    return replace(config, retention=replace(config.retention, require_safe=True))


def _spec(context: RunContext, config: RunConfig) -> JobSpec:
    prepared, ranks = context.prepared, context.plan.ranks // (1 + len(context.run.facts.peers))
    spec: JobSpec = {
        "python": prepared.python,
        "pythonpath": context.synced.source,
        "ranks": ranks,
        "config": config.to_json(),
        "gpus": list(prepared.gpus),
        "threads_per_rank": max(1, prepared.cpus // ranks),
        "lease_s": lease_s(),
        "deadline_s": _deadline_s(context),
        "hold_s": _hold_s(context),
        "grace_s": GRACE_S,
        "restarts": max(0, restarts(context) - context.facts.lost_nodes.times),
        "attempt": context.facts.lost_nodes.attempt,
    }
    if (url := context.provider.notice_url(context.rental.instance)) is not None:
        spec["notice"] = {"url": url}
    if not context.provider.paid:
        spec["keep_awake"] = True
    if context.facts.cluster is not None:
        spec["cluster"] = cluster_of(context)
    elif spec["restarts"] and goes_on_after_reboot(context.host):  # a node that boots again alone meets nobody
        spec["on_reboot"] = "continue"
    return spec


def _hold_s(context: RunContext) -> float | None:
    """For how long a guarded machine keeps checkpoints that were not fetched; None: until its deadline."""
    hold_h = context.plan.limits.hold_h
    return None if hold_h is None else hold_h * 3600


def _deadline_s(context: RunContext) -> float | None:
    """Seconds from now to the moment training must stop so that limits hold; the machine keeps it without us."""
    whole_s = train_deadline_s(context.plan)
    if whole_s is None or context.facts.queue is not None:
        return whole_s  # of one that waits, from its own start; the machine's guard bounds them all
    if (budget_s := rental_budget_s(context)) is not None:
        whole_s = min(whole_s, max(0.0, budget_s - reserve_s(context.plan)))  # what the attempts before left
    left_s = whole_s - (context.now() - began_at(context))
    if left_s <= 0:
        raise LimitReached(
            f"launch: getting ready took {whole_s - left_s:.0f} s, and the limits leave {whole_s:.0f} s in all",
            "raise max_cost_usd or max_hours, and run again: what is prepared is found again",
        )
    return left_s


def _found_beside(context: RunContext) -> int | None:
    """The micro-batch of another run of the same model on this rental, which was probed or planned there."""
    if context.facts.queue is None:
        return None
    mine = context.run.recipe_data
    same = [
        run.plan.micro_batch
        for run in context.ledger.runs(rental_id=context.rental.id)
        if run.id != context.run_id and run.plan and queue_turn.trains(run)
        and all(run.recipe_data[key] == mine[key] for key in ("model",))
        and run.plan.global_batch == context.plan.global_batch
    ]  # fmt: skip
    return same[0] if same else None


def _amend_plan(context: RunContext) -> None:
    """On a GPU, `micro_batch = "auto"` is settled by a probe of seconds; the global batch stays as it is. A model that
    is cut over the cards keeps the plan's: the probe is one process on one card, which may be too small for it."""
    if context.engine_of is not None or context.facts.lost_nodes.times:
        return  # a login node has no cards to try it on; a training that goes on has shown what fits
    if not context.machine.cuda or context.recipe.micro_batch_for(context.machine.name) is not None:
        return
    if context.recipe.train.parallel == "fsdp" and context.plan.ranks > 1:
        return
    if (known := _found_beside(context)) is not None:
        context.ledger.update_run(context.run_id, plan=amended(context.plan, known))
        return
    context.say("probing the largest micro-batch that fits")
    plan, prepared = context.plan, context.prepared
    config = resolved_config(context, plan)
    spec: JobSpec = {
        "argv": [
            prepared.python,
            "-m",
            "trainer.probe",
            "--ranks",
            str(plan.ranks),
            "--config",
            config.to_json(),
        ],
        "pythonpath": context.synced.source,
        "cwd": context.agent.root,
        "gpus": list(prepared.gpus),
    }
    digest = hashlib.sha256(config.to_json().encode()).hexdigest()[:16]
    with _others_may_compute():
        if queue_turn.pays_another(context):
            return context.say(f"another run trains there: keeping micro-batch {plan.micro_batch} of the plan")
        exit_record = run_job(context, context.agent, JobName.PROBE, digest, spec)
    if exit_record["outcome"] != "finished" or not (exit_record["result"] or {}).get("micro_batch"):
        context.emit("warning", f"the probe gave no answer; keeping micro-batch {plan.micro_batch}")
        return
    found = decoded(ProbeResult, exit_record["result"], JobName.PROBE)
    changed = amended(plan, found["micro_batch"], found["tokens_per_second"])
    context.ledger.update_run(context.run_id, plan=changed)
    context.emit(
        "plan_amended",
        f"micro-batch {plan.micro_batch} -> {changed.micro_batch}, accumulation {changed.accumulation}",
        digest=changed.digest,
    )
