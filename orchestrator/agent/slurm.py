"""What a job of Slurm asks of the agent, from its script and on its nodes. Nobody supervises it: Slurm does.

`begin` and `end` run in the script before and after srun, `time` when the time is nearly up, `step` once on each node
as the parent of torchrun. What decides whether a job that was stopped comes back is why it was stopped, and only Slurm
knows that: SIGTERM is sent for a preemption, for scancel and for a requeue alike.

Example (in the script)::

    python3 -I -S agent-HASH.pyz slurm begin RUN
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from typing import Mapping, Sequence, cast

from trainer import contract

from .contract.answers import StartAnswer
from .contract.names import FileName, JobName, Outcome, State
from .job import exit_record, jobs, program, stopping
from .job.jobs import Job
from .system import files
from .system.paths import Places

STARTS_FILE = "slurm.jsonl"
"""Of the job's folder: when each start began and ended, for where Slurm keeps no books."""
AGAIN = "again"
"""Of the job's folder: why this start was stopped so that another one continues."""
PREEMPTED, TIME = "preempted", "time"
MOST_WITHOUT_A_STEP = 3
"""So many starts in a row that trained nothing end the run: it would be requeued for ever."""
REQUEUED_WITHIN_S = 120.0
Told = Mapping[str, str]
"""What `scontrol show job` says: JobState, Restarts, PreemptTime and so on."""


def prepare(job: Job) -> StartAnswer:
    """Everything that the script finds on the shared folder. Twice is fine; one that was submitted stays as it is."""
    files.make_folder(job.folder)
    lock = jobs.locked(job)
    try:
        state = jobs.read_state(job)["state"]
        if state == State.NONE:
            jobs.write_spec(job)
            program.prepare_folders(job, job.run_folder)
            state = State.STARTED
        else:
            jobs.check_digest(job)
        return jobs.answer(job, state)
    finally:
        os.close(lock)


def main(places: Places, arguments: Sequence[str]) -> int:
    """`begin RUN`, `time RUN`, `end RUN CODE`, or `step RUN PROGRAM...`."""
    verb, run = arguments[0], arguments[1]
    job = jobs.load(places, run, JobName.TRAIN)
    if job is None:
        sys.stderr.write("gptctl: no run %s in %s\n" % (run, places.root))
        return 1
    if verb == "step":
        return step(job, arguments[2:])
    if verb == "time":
        return _stop_to_continue(job, TIME)
    return begin(job) if verb == "begin" else end(job, int(arguments[2]))


def begin(job: Job) -> int:
    """Clears what the last start left, and notes this one. 1: it is not to start."""
    if job.exit_record() is not None:
        return 1
    if stopping.read_request(job):
        exit_record.write_exit(job, 0, None)
        return 1
    for folder, name in (
        (job.run_folder, contract.STOP), (job.run_folder, contract.EXIT), (job.folder, AGAIN),
        (job.folder, FileName.ERROR),
    ):  # fmt: skip
        files.remove(os.path.join(folder, name))
    program.record_start(job, os.getpid())
    nodes = os.environ.get("SLURM_JOB_NODELIST", "")
    _note(job, {"event": "begin", "nodes": nodes, "node_count": int(os.environ.get("SLURM_NNODES", "1"))})
    sys.stdout.write("gptctl: job %s on %s\n" % (_job_id(), nodes))
    return 0


def _note(job: Job, line: Mapping[str, object]) -> None:
    files.append_json(job.file(STARTS_FILE), {"job": _job_id(), "restart": _restart(), "time": time.time(), **line})


def _job_id() -> str:
    return os.environ.get("SLURM_JOB_ID", "")


def _restart() -> int:
    return int(os.environ.get("SLURM_RESTART_COUNT", "0"))


def step(job: Job, argv: Sequence[str]) -> int:
    """One node's part: runs the program deaf to SIGTERM, and notes why that came. The ranks hear it themselves."""

    def asked(number: int, frame: object) -> None:
        if is_preemption(told()):
            _stop_to_continue(job, PREEMPTED)

    signal.signal(signal.SIGTERM, asked)
    variables = program.environment_of_ranks(job, dict(os.environ))
    variables["PET_NODE_RANK"] = os.environ.get("SLURM_NODEID", "0")  # torchrun's --node-rank
    child = subprocess.Popen(list(argv), env=variables, cwd=job.run_folder, preexec_fn=_deaf)  # noqa: PLW1509
    while True:
        try:
            code = child.wait()
            return code if code >= 0 else 128 - code
        except InterruptedError:
            continue


def _deaf() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _stop_to_continue(job: Job, why: str) -> int:
    """Asks all ranks of all nodes for a checkpoint, once; another start is to continue from it."""
    files.write_bytes(job.file(AGAIN), why.encode())
    files.write_bytes(os.path.join(job.run_folder, contract.STOP), b"")
    return 0


def told() -> Told:
    """What Slurm says of this job now; empty where it says nothing."""
    asked = ["scontrol", "show", "job", _job_id()]
    try:
        done = subprocess.run(asked, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return {}
    return dict(re.findall(r"(\w+)=(\S*)", done.stdout.decode(errors="replace")))


def is_preemption(said: Told) -> bool:
    """Whether Slurm takes the nodes for another job: only then, and not for scancel, PreemptTime is a time."""
    return said.get("PreemptTime", "None")[:1].isdigit() and said.get("Restarts", "0") == str(_restart())


def end(job: Job, code: int) -> int:
    """After srun: another start, where there is to be one; else the exit record."""
    trainer = cast("Mapping[str, object]", files.read_json(os.path.join(job.run_folder, contract.EXIT)) or {})
    again = files.tail(job.file(AGAIN)).decode()
    _note(job, {"event": "end", "code": code, "step": trainer.get("step"), "outcome": trainer.get("outcome")})
    said = told()
    verdict = what_next(
        trainer.get("outcome"), again, restarted=int(said.get("Restarts") or _restart()) > _restart(),
        asked=bool(stopping.read_request(job)), why=_why_not_again(job),
    )  # fmt: skip
    sys.stdout.write("gptctl: %s\n" % verdict)
    sys.stdout.flush()
    if verdict == RETURNS:
        return 0
    if verdict == REQUEUE and _requeued(_job_id()):
        return 0
    reason, outcome = _reason(again, verdict)
    if reason and not stopping.read_request(job) and trainer.get("outcome") != contract.OUTCOME_FINISHED:
        stopping.request_stop(job, outcome, reason, 0.0)
    record = exit_record.write_exit(job, code, _started_at(job))
    return 0 if record["outcome"] in (contract.OUTCOME_FINISHED, contract.OUTCOME_STOPPED) else code or 1


RETURNS, REQUEUE, ENDED, CANCELLED = "Slurm starts it again", "requeue", "ended", "cancelled"


def what_next(outcome: object, again: str, *, restarted: bool, asked: bool, why: str) -> str:
    """The verdict on a start that is over: RETURNS, REQUEUE, CANCELLED, ENDED, or why it is not requeued.

    outcome: the trainer's. again: what _stop_to_continue left. restarted: Slurm has already ordered the next start:
    requeued by others, preempted without a grace, or a node failed. asked: you asked for the end. why: what speaks
    against another start.
    """
    if outcome == contract.OUTCOME_FINISHED or asked:
        return ENDED
    if restarted:
        return RETURNS
    if outcome != contract.OUTCOME_STOPPED:
        return ENDED
    return (why or REQUEUE) if again else CANCELLED


def _why_not_again(job: Job) -> str:
    """What speaks against another start; empty: nothing."""
    starts = list(files.json_lines(job.file(STARTS_FILE)))
    steps = [line.get("step") for line in starts if line.get("event") == "end"][-MOST_WITHOUT_A_STEP:]
    if len(steps) == MOST_WITHOUT_A_STEP and len(set(steps)) == 1:
        return "%d starts in a row trained nothing" % MOST_WITHOUT_A_STEP
    limit_s = job.spec.get("deadline_s")
    if limit_s is not None and trained_s(starts) >= limit_s:
        return "the limits of the run leave no more time"
    return ""


def trained_s(lines: Sequence[Mapping[str, object]]) -> float:
    """Seconds of all starts that have ended."""
    total, began = 0.0, None
    for line in lines:
        at = cast("float", line["time"])
        if line.get("event") == "begin":
            began = at
        elif began is not None:
            total, began = total + at - began, None
    return total


def _requeued(job_id: str) -> bool:
    """Puts it back into the queue; Slurm then ends this script. False: Slurm refused, or never did it."""
    done = subprocess.run(["scontrol", "requeue", job_id], stderr=subprocess.PIPE, check=False)
    if done.returncode != 0:
        sys.stdout.write("gptctl: scontrol requeue: %s\n" % done.stderr.decode(errors="replace").strip())
        return False
    time.sleep(REQUEUED_WITHIN_S)  # to leave now would be read as the job's own end
    return True


def _reason(again: str, verdict: str) -> tuple[str, str]:
    """Why the run ended, and its outcome, where the trainer only knows that it was asked to stop."""
    if verdict == CANCELLED:
        return "the job was cancelled with scancel", Outcome.STOPPED
    if verdict == ENDED:
        return "", ""
    refused = "" if verdict == REQUEUE else ": %s" % verdict
    if again == TIME:
        return "the time of the job is over, and it was not requeued%s" % refused, Outcome.LIMIT
    return "Slurm took the nodes for another job, and it was not requeued%s" % refused, Outcome.PREEMPTED


def _started_at(job: Job) -> float | None:
    """When its first start began, by the cluster's clock."""
    first = next((line for line in files.json_lines(job.file(STARTS_FILE)) if line.get("event") == "begin"), None)
    return cast("float", first["time"]) if first else None
