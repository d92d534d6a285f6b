"""A run as a job of an engine, such as Slurm: submitted once, looked at while it is followed, ended, and billed.

The job's folder is shared by all nodes, and the agent on the login node reads it as it does on any machine. The engine
is asked only for what no file says: why the job waits, and that it ended without a word. Its silence decides nothing.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path

from orchestrator.agent.contract.answers import ExitRecord
from orchestrator.agent.contract.names import Code, FileName, JobName
from orchestrator.agent.contract.requests import JobSpec
from orchestrator.core.engine import Engine, JobOrder, JobView, Phase, Span, job_name
from orchestrator.core.errors import AgentError, NoAnswer
from orchestrator.core.facts.run_facts import EngineFacts
from orchestrator.core.formats import local_time
from orchestrator.core.states import Outcome, State
from orchestrator.ledger import spending, sweeps
from orchestrator.remote.agent_client.decoding import json_object
from orchestrator.remote.agent_client.package import agent_package
from orchestrator.stages.context import RunContext

SCRIPT = "job.sh"
STARTS_FILE = "slurm.jsonl"
ELEMENT = "_"
"""In the number of one element of a job: 17_2."""
LOOK_EVERY_S = 10.0
"""One follower's load on the controller; the training's own files are read all the time."""
SETTLES_S = 20.0
"""After the engine called a job ended, the last words of its script may still be on their way through the file
system."""
MOST_JOBS = 10
"""So often one run is submitted where the engine drops a job in place of requeuing it."""
DROPPED = frozenset({"PREEMPTED", "NODE_FAIL", "BOOT_FAIL"})
FINAL = {
    "COMPLETED": Outcome.FAILED, "CANCELLED": Outcome.STOPPED, "TIMEOUT": Outcome.LIMIT, "DEADLINE": Outcome.LIMIT,
    **dict.fromkeys(DROPPED, Outcome.PREEMPTED),
}  # fmt: skip
"""The outcome of a run whose job ended without a record of its own; every other state is `failed`."""


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
    engine = _engine(context)
    context.agent.start(JobName.TRAIN, context.run_id, digest, {**spec, "engine": context.host.provider})
    if not context.facts.engine.jobs:
        _submit_arms(context, spec["deadline_s"])
    known = list(context.facts.engine.jobs) or list(engine.find(job_name(context.run_id)))
    if not known:
        wanted = order(context, spec["deadline_s"])
        known = [_submitted(context, wanted)]
        context.say(f"submitted as job {known[-1]}: {wanted.folder}/{SCRIPT}")
    _keep(context, known)
    found = engine.look(known[-1])
    if found is not None and ELEMENT in known[-1] and found.phase is Phase.WAITING:
        engine.let_go(known[-1])


def _submitted(context: RunContext, wanted: JobOrder) -> str:
    """The number of the job, whose script stays in the run's folder."""
    path = f"{context.agent.root}/runs/{context.run_id}/{SCRIPT}"
    _put(context, path, _engine(context).script(wanted))
    return _engine(context).submit(path)


def _submit_arms(context: RunContext, longest_s: float | None) -> None:
    """The first run of a sweep submits one job with an element for each run that has none yet, held until that run is
    ready there. Found again by the sweep's name where the answer was lost."""
    queue = context.facts.queue
    if queue is None or queue.group is None:
        return
    arms = [
        run.id
        for run in sweeps.runs_of(context.ledger.rows, queue.group)
        if run.state != State.ENDED and not run.facts.engine.jobs
    ]
    if len(arms) < 2 or context.run_id not in arms:
        return
    wanted = replace(order(context, longest_s), run=queue.group, arms=tuple(arms))
    known = list(_engine(context).find(wanted.name))
    job = known[-1] if known else _submitted(context, wanted)
    context.say(f"submitted {len(arms)} runs of {queue.group} as job {job}")
    for number, run in enumerate(arms):
        context.ledger.update_run(run, facts={"engine": EngineFacts(jobs=(f"{job}{ELEMENT}{number}",))})


def _keep(context: RunContext, jobs: list[str]) -> None:
    """The numbers, here and beside the job's files: another gptctl reads them there."""
    context.set_run_facts(engine=replace(context.facts.engine, jobs=tuple(jobs)))
    _put(context, _job_file(context, FileName.ENGINE), json.dumps({"jobs": jobs}) + "\n")


def _job_file(context: RunContext, name: str) -> str:
    return f"{context.agent.root}/jobs/{context.run_id}/{JobName.TRAIN}/{name}"


def _put(context: RunContext, path: str, text: str) -> None:
    with tempfile.TemporaryDirectory(prefix="gptctl-job-") as folder:
        local = Path(folder) / "file"
        local.write_text(text)
        context.shell.put(local, path, mode=0o600)


def _engine(context: RunContext) -> Engine:
    engine = context.engine
    assert engine is not None, "only runs of an engine come here"
    return engine


class Watch:
    """Looks at the job now and then while its files are followed."""

    def __init__(self, context: RunContext) -> None:
        self.context = context
        self.looked_at = self.ended_at = float("-inf")
        self.is_silent = False

    def look(self) -> ExitRecord | None:
        """How the job ended, where the engine says so and its script did not; else None."""
        context = self.context
        if context.engine is None or not context.facts.engine.jobs:
            return None
        if context.now() - self.looked_at < LOOK_EVERY_S:
            return None
        self.looked_at = context.now()
        try:
            found = look(context)
        except NoAnswer as error:
            if not self.is_silent:
                context.emit("seen", f"{error.message}; the job does not need this answer")
            self.is_silent = True
            return None
        self.is_silent = False
        if found is not None and found.phase is not Phase.ENDED:
            self.ended_at = float("-inf")
            return None
        if self.ended_at == float("-inf"):
            self.ended_at = context.now()
        if context.now() - self.ended_at < SETTLES_S:
            return None
        return _conclude(context, found)


def look(context: RunContext) -> JobView | None:
    """The newest job now; says what changed, and keeps it for `status`."""
    engine, before = _engine(context), context.facts.engine
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


def _conclude(context: RunContext, found: JobView | None) -> ExitRecord | None:
    """The job ended and left no record: submits it again where the engine dropped it, else writes the record."""
    jobs = list(context.facts.engine.jobs)
    wanted = context.run.state == State.TRAINING
    if wanted and found is not None and found.state in DROPPED and len(jobs) < MOST_JOBS:
        jobs.append(_submitted(context, order(context, None)))
        context.emit("warning", f"job {found.id} is {found.state} and was not requeued: submitted again as {jobs[-1]}")
        _keep(context, jobs)
        return None
    outcome, reason = _verdict(jobs[-1], found)
    return write_exit(context, outcome, reason)


def _verdict(job: str, found: JobView | None) -> tuple[Outcome, str]:
    if found is None:
        return Outcome.FAILED, f"Slurm knows nothing of job {job} any more, and it left no record"
    outcome = FINAL.get(found.state, Outcome.FAILED)
    who = f" {found.reason}" if found.reason else ""
    if outcome is Outcome.STOPPED:
        return outcome, f"job {job} was cancelled with scancel{who}"
    return outcome, f"job {job} ended as {found.state}{who} and left no record"


def write_exit(context: RunContext, outcome: Outcome, reason: str) -> ExitRecord:
    """The record of a job that could not write its own; the agent there reads it as if it had."""
    record: ExitRecord = {
        "code": None, "signal": None, "outcome": outcome.value, "reason": reason, "started_at": None,
        "ended_at": context.now(), "duration_s": None, "last_lines": [], "error": None, "refusal": None,
        "trainer": None, "result": None,
    }  # fmt: skip
    _put(context, _job_file(context, FileName.EXIT), json.dumps(record) + "\n")
    return record


def stop(context: RunContext) -> None:
    """Ends the job: one that runs saves first, one that waits never starts. Repeatable."""
    jobs = context.facts.engine.jobs
    if not jobs or _has_ended(context):
        return
    engine = _engine(context)
    found = look(context)
    if found is not None and found.phase is Phase.RUNNING:
        try:
            context.agent.stop(context.run_id)
            return
        except AgentError as error:
            if error.code != Code.NOT_ENDED:
                raise
    engine.cancel(jobs[-1])
    if not _has_ended(context):
        write_exit(context, Outcome.STOPPED, f"job {jobs[-1]} was cancelled before it wrote a record")


def _has_ended(context: RunContext) -> bool:
    runs = context.agent.status(context.run_id)["runs"]
    train = runs[context.run_id]["jobs"].get(JobName.TRAIN)
    return train is None or train["exit"] is not None


def settle(context: RunContext) -> None:
    """What the job cost, from the engine's books; from the starts that it noted itself where there are none."""
    jobs = context.facts.engine.jobs
    if not jobs:
        return
    spans = _engine(context).usage(jobs)
    if spans is None:
        context.say("Slurm keeps no books here (sacct is off): the cost is from the job's own notes")
        spans = _noted(context)
    gpu_hours = sum(span.gpu_hours for span in spans)
    context.set_run_facts(
        engine=replace(
            context.facts.engine, gpu_hours=gpu_hours, node_hours=sum(span.node_hours for span in spans),
            starts=len(spans),
        )
    )  # fmt: skip
    context.ledger.close_stage(context.interval)
    usd = context.rental.price_per_hour_usd / context.machine.nodes * context.facts.engine.node_hours
    with context.ledger.rows.writing() as connection:
        spending.settle_run(connection, context.run_id, usd)


def _noted(context: RunContext) -> list[Span]:
    """The starts of the job by its own notes; one that never noted its end is not in them."""
    asked = context.shell.run(["cat", _job_file(context, STARTS_FILE)])
    spans: list[Span] = []
    began: tuple[float, int] | None = None
    for line in asked.stdout.splitlines():
        note = json_object(line) or {}
        at, nodes = note.get("time"), note.get("node_count", 1)
        if not isinstance(at, int | float):
            continue
        if note.get("event") == "begin":
            began = (float(at), nodes if isinstance(nodes, int) else 1)
        elif began is not None:
            gpus = context.machine.gpus if context.machine.cuda else 0
            spans.append(Span("NOTED", float(at) - began[0], began[1], gpus))
            began = None
    return spans
