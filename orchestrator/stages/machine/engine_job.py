"""A run as a job of an engine, such as Slurm: submitted once, looked at while it is followed, ended, and billed.

The job's folder is shared by all nodes, and the agent on the login node reads it as it does on any machine. The engine
is asked only for what no file says: why the job waits, and that it ended without a word. Its silence decides nothing.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from orchestrator.agent.contract.answers import ExitRecord, RunStatus
from orchestrator.agent.contract.names import Code, FileName, JobName
from orchestrator.agent.contract.names import State as JobStateName
from orchestrator.agent.contract.requests import JobSpec
from orchestrator.core.engine import Engine, JobOrder, JobView, Phase, job_name
from orchestrator.core.errors import AgentError, CommandFailed, MachineUnfit, NoAnswer
from orchestrator.core.facts.run_facts import EngineFacts
from orchestrator.core.formats import local_time
from orchestrator.core.parallel import in_turn
from orchestrator.core.states import Outcome, State
from orchestrator.ledger import sweeps
from orchestrator.remote.agent_client.package import agent_package
from orchestrator.stages.context import RunContext

SCRIPT = "job.sh"
ELEMENT = "_"
"""In the number of one element of a job: 17_2."""
LEAVES_S, LEAVES_EVERY_S = 30.0, 1.0


def order(context: RunContext, longest_s: float | None) -> JobOrder:
    """What the script is made from."""
    agent, machine, prepared = context.agent, context.machine, context.prepared
    return JobOrder(
        run=context.run_id, root=agent.root, agent=f"{agent.root}/agent/{agent_package().name}",
        python=prepared.python, source=context.synced.source, ranks=machine.ranks // machine.nodes,
        gpus=machine.gpus // machine.nodes if machine.cuda else 0, nodes=machine.nodes,
        longest_s=longest_s,
    )  # fmt: skip


def submit(context: RunContext, digest: str, spec: JobSpec) -> None:
    """Leaves exactly one job of this run with the engine: found again by its name where an answer was lost."""
    started = context.agent.start(JobName.TRAIN, context.run_id, digest, {**spec, "engine": context.host.provider})
    if started.exit is not None:
        return
    if not context.facts.engine.jobs:
        _intend_arms(context)
    known = find(context)
    if not known and context.facts.engine.element:
        _submit_arms(context, spec["deadline_s"])
        known = find(context)
    if not known:
        wanted = order(context, spec["deadline_s"])
        known = [submitted(context, wanted)]
        context.say(f"submitted as job {known[-1]}: {wanted.folder}/{SCRIPT}")
    keep(context, known)
    _let_go(context)


def find(context: RunContext) -> list[str]:
    """The run's jobs: those that are noted, else what the engine has under its name. gptctl may have been killed, or
    the answer lost, between the engine's yes and the note."""
    facts, engine = context.facts.engine, engine_of(context)
    if facts.jobs:
        return list(facts.jobs)
    array, _, number = facts.element.rpartition(ELEMENT)
    elements = [f"{job}{ELEMENT}{number}" for job in engine.find(array)] if array else []
    return [*elements, *engine.find(job_name(context.run_id))]


def every_job(context: RunContext) -> list[str]:
    """The jobs that are noted, and those of the run that the engine has beside them, living or not. Raises NoAnswer."""
    return list(dict.fromkeys([*context.facts.engine.jobs, *engine_of(context).find(job_name(context.run_id))]))


def attach(context: RunContext, status: RunStatus | None = None) -> None:
    """Notes the jobs of a run that has one already, where nothing is noted yet; of a training that has not
    begun by this status lets its element go. Raises NoAnswer where that cannot be asked."""
    if not context.facts.engine.jobs and (known := find(context)):
        keep(context, known)
    train = status and status["jobs"].get(JobName.TRAIN)
    if train and train["state"] == JobStateName.QUEUED and context.facts.engine.jobs:
        _let_go(context)


def _let_go(context: RunContext) -> None:
    """Lets an element start, which was submitted held; gptctl may be killed before. Repeatable."""
    found, job = look(context), context.facts.engine.jobs[-1]
    if found is not None and ELEMENT in job and found.phase is Phase.WAITING:
        engine_of(context).let_go(job)


def submitted(context: RunContext, wanted: JobOrder) -> str:
    """The number of the job, whose script stays in the run's folder. Raises NoAnswer where none is heard: find()."""
    path = f"{context.agent.root}/runs/{context.run_id}/{SCRIPT}"
    _put(context, path, engine_of(context).script(wanted))
    return engine_of(context).submit(path)


def _intend_arms(context: RunContext) -> None:
    """Deals the elements of one job to all runs of a sweep that have none yet, before it is submitted: whatever happens
    afterwards, an element stays with its run."""
    queue = context.facts.queue
    if queue is None or queue.group is None or context.facts.engine.element:
        return
    runs = [
        run.id
        for run in sweeps.runs_of(context.ledger.rows, queue.group)
        if run.state != State.ENDED and run.facts.engine == EngineFacts()
    ]
    if len(runs) < 2 or context.run_id not in runs:
        return
    array = f"{job_name(queue.group)}-{hashlib.sha256(' '.join(runs).encode()).hexdigest()[:6]}"
    for number, run in enumerate(runs):
        context.ledger.update_run(run, facts={"engine": EngineFacts(element=f"{array}{ELEMENT}{number}")})


def _submit_arms(context: RunContext, longest_s: float | None) -> None:
    """The first run of a sweep submits the job with an element for each, held until its own run is ready there."""
    queue, array = context.facts.queue, context.facts.engine.element.rpartition(ELEMENT)[0]
    assert queue is not None and queue.group is not None, "only runs of a sweep have an element"
    dealt = {
        int(number): run
        for run in sweeps.runs_of(context.ledger.rows, queue.group)
        for name, _, number in [run.facts.engine.element.rpartition(ELEMENT)]
        if name == array
    }
    arms = tuple(dealt[number].id if number in dealt else context.run_id for number in range(max(dealt) + 1))
    wanted = replace(order(context, longest_s), run=array.removeprefix(job_name("")), arms=arms)
    job = submitted(context, wanted)
    context.say(f"submitted {len(dealt)} runs of {queue.group} as job {job}")
    for number, run in dealt.items():
        if run.state == State.ENDED:
            engine_of(context).cancel(f"{job}{ELEMENT}{number}")


def drop_element(context: RunContext) -> None:
    """Cancels the element of a run that never got ready on the cluster: held, it would wait for ever. Repeatable."""
    if context.engine_of is not None and context.facts.engine.element and not context.facts.abandon:
        for job in find(context):
            engine_of(context).cancel(job)


def keep(context: RunContext, jobs: list[str]) -> None:
    """The numbers, here and beside the job's files: another gptctl reads them there."""
    context.set_run_facts(engine=replace(context.facts.engine, jobs=tuple(jobs)))
    _put(context, job_file(context, FileName.ENGINE), json.dumps({"jobs": jobs}) + "\n")


def job_file(context: RunContext, name: str) -> str:
    """A file of its train job on the cluster."""
    return f"{context.agent.root}/jobs/{context.run_id}/{JobName.TRAIN}/{name}"


def _put(context: RunContext, path: str, text: str) -> None:
    with tempfile.TemporaryDirectory(prefix="gptctl-job-") as folder:
        local = Path(folder) / "file"
        local.write_text(text)
        context.shell.put(local, path, mode=0o600)


def engine_of(context: RunContext) -> Engine:
    """The queue of a run that has one."""
    engine = context.engine
    assert engine is not None, "only runs of an engine come here"
    return engine


def look(context: RunContext) -> JobView | None:
    """The newest job now; says what changed, and keeps it for `status`."""
    engine, before = engine_of(context), context.facts.engine
    found = engine.look(before.jobs[-1])
    if found is None:
        return None
    after = seen(before, found, engine.words(found))
    if (before.state, before.reason) != (after.state, after.reason):
        context.set_run_facts(engine=after)
        context.say(f"job {found.id}: {words(after)}")
        _reprice(context)
    return found


def seen(before: EngineFacts, found: JobView, words: str) -> EngineFacts:
    """The facts with what the engine says now."""
    return replace(before, phase=found.phase.value, state=found.state, reason=words, starts_at=found.starts_at)


def words(facts: EngineFacts) -> str:
    """`PENDING (Resources), expected to start at 12:40`."""
    reason = f" ({facts.reason})" if facts.reason else ""
    expected = facts.starts_at if facts.phase == Phase.WAITING else None
    return f"{facts.state}{reason}" + (f", expected to start at {local_time(expected)}" if expected else "")


def _reprice(context: RunContext) -> None:
    """What the job waits costs nothing; what it runs costs its price."""
    if context.interval:
        context.ledger.close_stage(context.interval, context.now())
        price = price_per_hour_usd(context.facts.engine, context.rental.price_per_hour_usd)
        context.interval = context.ledger.open_stage(
            context.run_id, context.rental.id, context.stage or "follow", price
        )


def price_per_hour_usd(facts: EngineFacts, price: float) -> float:
    """What an hour costs now: the nodes' price while the job runs."""
    return price if facts.phase == Phase.RUNNING else 0.0


def write_exit(context: RunContext, outcome: Outcome, reason: str) -> ExitRecord:
    """The record of a job that could not write its own; the agent there reads it as if it had."""
    record: ExitRecord = {
        "code": None, "signal": None, "outcome": outcome.value, "reason": reason, "started_at": None,
        "ended_at": context.now(), "duration_s": None, "last_lines": [], "error": None, "refusal": None,
        "trainer": None, "result": None,
    }  # fmt: skip
    try:
        _put(context, job_file(context, FileName.EXIT), json.dumps(record) + "\n")
    except (CommandFailed, MachineUnfit) as error:  # a full quota; the ledger keeps the outcome
        context.emit("warning", error.message)
    return record


def follow_another(context: RunContext) -> bool:
    """Whether the run has a job that lives and is not the newest one noted: a submission that went through after its
    gptctl was killed. It is then the newest, one that trains before one that waits."""
    newest = context.facts.engine.jobs[-1]
    alive = _note_living(context)
    return bool(alive) and alive[-1] != newest


def _note_living(context: RunContext) -> list[str]:
    """The run's jobs that live, which are then the newest ones noted: one that trains is last, and of two alike the one
    that was followed so far."""
    engine, jobs = engine_of(context), context.facts.engine.jobs
    named = [*(job for job in engine.find(job_name(context.run_id)) if job != jobs[-1]), jobs[-1]]
    phases = {job: found.phase for job in named if (found := engine.look(job)) is not None}
    alive = [job for job in phases if phases[job] is not Phase.ENDED]
    alive.sort(key=lambda job: phases[job] is Phase.RUNNING)
    ordered = [*(job for job in jobs if job not in alive), *alive]
    if ordered != list(jobs):
        context.emit("warning", f"several jobs are of this run, {', '.join(ordered)}: following {ordered[-1]}")
        keep(context, ordered)
    return alive


def stop(context: RunContext) -> None:
    """Ends every job of the run: one that runs saves first, one that waits never starts. Repeatable."""
    attach(context)
    if not context.facts.engine.jobs:
        return
    alive: list[str] = []
    with suppress(NoAnswer):
        alive = _note_living(context)
    engine, jobs = engine_of(context), context.facts.engine.jobs
    is_over = (_has_ended(context) or _saves(context)) and has_left(context)
    in_turn([job for job in alive if job != jobs[-1]] if is_over else jobs, engine.cancel)
    if not is_over and not _has_ended(context):
        write_exit(context, Outcome.STOPPED, f"job {jobs[-1]} was cancelled before it wrote a record")


def has_left(context: RunContext) -> bool:
    """Whether the job of a run that has ended has left its nodes, after at most LEAVES_S: its script has a last word to
    write, and only then are the books complete. A silent engine says nothing against it."""
    until = time.monotonic() + LEAVES_S
    while True:
        try:
            found = look(context)
        except NoAnswer:
            return True
        if found is None or found.phase is Phase.ENDED:
            return True
        if time.monotonic() > until:
            return False
        time.sleep(LEAVES_EVERY_S)


def _saves(context: RunContext) -> bool:
    """Asks a training that runs to save and end, through its folder; a silent engine is not needed for that."""
    try:
        found = look(context)
    except NoAnswer as error:
        context.emit("seen", f"{error.message}; asking the training itself")
    else:
        if found is None or found.phase is not Phase.RUNNING:
            return False
    try:
        context.agent.stop(context.run_id)
    except AgentError as error:
        if error.code != Code.NOT_ENDED:
            raise
        return False
    return _has_ended(context)


def _has_ended(context: RunContext) -> bool:
    """Whether a record says so. A folder that is gone says nothing of the job."""
    try:
        train = context.agent.status(context.run_id)["runs"][context.run_id]["jobs"].get(JobName.TRAIN)
    except AgentError as error:
        if error.code != Code.NO_SUCH_RUN:
            raise
        return False
    return train is not None and train["exit"] is not None
