"""What a job of Slurm asks of the agent, from its script and on its nodes. Nobody supervises it: Slurm does.

`begin` and `end` run in the script before and after srun, `time` when the time is nearly up, `step` once on each node
as the parent of torchrun. What decides whether a job that was stopped comes back is why it was stopped, and only Slurm
knows that: SIGTERM is sent for a preemption, for scancel and for a requeue alike.

Example (in the script)::

    python3 -I -S agent-HASH.pyz slurm begin RUN
"""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import threading
import time
from typing import Dict, Mapping, Sequence, cast

from trainer import run_files

from . import scontrol, slurm_rules
from .contract.answers import StartAnswer
from .contract.names import FileName, JobName, Outcome, State
from .job import exit_record, jobs, program, restarts, starts, stopping
from .job.jobs import Job
from .system import files, processes
from .system.paths import Places

STARTS_FILE = "slurm.jsonl"
"""Of the job's folder: when each start began and ended, for where Slurm keeps no books."""
START_FILE = "slurm-start.json"
"""Of the job's folder: which start trains now. An older one on a node that Slurm has lost ends when it reads this."""
AGAIN = "again"
"""Of the job's folder: why this start was stopped so that another one continues."""
PREEMPTED, TIME = "preempted", "time"
MOST_WITHOUT_A_STEP = 3
"""So many starts in a row that trained nothing end the run: it would be requeued for ever."""
REQUEUED_WITHIN_S = 120.0
LOOK_EVERY_S, NOTE_EVERY_S = 5.0, 60.0
HANDS_OVER_S = 3 * LOOK_EVERY_S
ENDS = ("COMPLETING", "PREEMPTED", "TIMEOUT")
TRAINS = ("RUNNING", "SUSPENDED", "STOPPED")
Start = Dict[str, object]
"""`job` and `restart`: of all starts of a run no two are alike."""


def prepare(job: Job) -> StartAnswer:
    """Everything that the script finds on the shared folder. Twice is fine; one that was submitted stays as it is."""
    files.make_folder(job.folder)
    lock = starts.locked(job)
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
    lock = starts.locked(job)  # two jobs of one run may begin at the same moment
    try:
        was_killed = _was_killed(job)
        if not _may_begin(job, was_killed):
            return 1
        for folder, name in (
            (job.run_folder, run_files.STOP), (job.run_folder, run_files.EXIT), (job.folder, AGAIN),
            (job.folder, FileName.ERROR),
        ):  # fmt: skip
            files.remove(os.path.join(folder, name))
        files.write_json(job.file(START_FILE), _this())
    finally:
        os.close(lock)
    if was_killed:
        _let_the_last_one_end()
    _shorten(job)
    program.record_start(job, os.getpid())
    restarts.note_start(job)
    nodes = os.environ.get("SLURM_JOB_NODELIST", "")
    _note(job, {"event": "begin", "nodes": nodes, "node_count": int(os.environ.get("SLURM_NNODES", "1"))})
    sys.stdout.write("gptctl: job %s on %s\n" % (scontrol.job_id(), nodes))
    return 0


def _may_begin(job: Job, was_killed: bool) -> bool:
    """Whether this job is to train. Where the run is over, its record says why."""
    if job.exit_record() is not None:
        return False
    if other := _other_that_trains(job):
        sys.stdout.write("gptctl: job %s trains this run already\n" % other)
        return False
    _note_how_far_it_came(job)
    why_not = _why_not_again(job) if was_killed else _out_of_time(job)
    if why_not and not stopping.read_request(job):
        stopping.request_stop(job, Outcome.LIMIT, why_not, 0.0)
    if stopping.read_request(job):
        exit_record.write_exit(job, 0, _started_at(job))
        return False
    return True


def _let_the_last_one_end() -> None:
    """One that noted no end may live on, on a node that Slurm has lost: it looks for a later start, and ends."""
    sys.stdout.write("gptctl: the start before noted no end: giving it %.0f s\n" % HANDS_OVER_S)
    sys.stdout.flush()
    time.sleep(HANDS_OVER_S)


def _was_killed(job: Job) -> bool:
    """Whether the start before this one noted no end."""
    return _last_note(job).get("event", "end") != "end"


def _note_how_far_it_came(job: Job) -> None:
    """Of another job, which was killed: submitted again and again, one may train nothing. A job that Slurm itself
    requeues after a kill is Slurm's to count."""
    last = _last_note(job)
    if _was_killed(job) and last.get("job") != scontrol.job_id():
        step = restarts.newest_checkpoint(job.run_folder)
        _note(job, {**last, "event": "end", "code": None, "step": step, "outcome": None})


def _last_note(job: Job) -> Mapping[str, object]:
    return next(reversed(list(files.json_lines(job.file(STARTS_FILE)))), {})


def _other_that_trains(job: Job) -> str:
    """Another job of this run whose nodes train now: its script was submitted twice, by hand or after a lost answer."""
    other = str((files.read_json(job.file(START_FILE)) or {}).get("job", scontrol.job_id()))
    return other if other != scontrol.job_id() and scontrol.told(other).get("JobState") in TRAINS else ""


def _shorten(job: Job) -> None:
    """A start has what those before it left of the run's limits: Slurm then warns it in time."""
    left, given = left_s(job), slurm_rules.limit_s(scontrol.told(scontrol.job_id()).get("TimeLimit", ""))
    if left < given - 60:  # Slurm counts in minutes
        minutes = max(1, math.ceil(left / 60))
        scontrol.order("update", "JobId=%s" % scontrol.job_id(), "TimeLimit=%d" % minutes)


def _note(job: Job, line: Mapping[str, object]) -> None:
    try:
        files.append_json(job.file(STARTS_FILE), {**_this(), "time": time.time(), **line})
    except OSError as error:  # a full quota: the verdict counts for more than this line
        sys.stdout.write("gptctl: %s: %s\n" % (STARTS_FILE, error.strerror))


def _this() -> Start:
    return {"job": scontrol.job_id(), "restart": scontrol.restart()}


def _is_newest(job: Job) -> bool:
    """Whether no later start has taken over. A file that cannot be read says nothing."""
    return (files.read_json(job.file(START_FILE)) or _this()) == _this()


def step(job: Job, argv: Sequence[str]) -> int:
    """One node's part: runs the program deaf to SIGTERM, and notes why that came. The ranks hear it themselves."""

    def asked(number: int, frame: object) -> None:
        if why := why_it_comes_back(scontrol.told(scontrol.job_id())):
            _stop_to_continue(job, why)

    signal.signal(signal.SIGTERM, asked)
    variables = program.environment_of_ranks(job, dict(os.environ))
    variables["PET_NODE_RANK"] = os.environ.get("SLURM_NODEID", "0")  # torchrun's --node-rank
    variables[processes.JOB_VARIABLE] = mark = "%s of %s" % (job.folder, _this())
    deaf = lambda: signal.signal(signal.SIGTERM, signal.SIG_IGN)  # noqa: E731
    child = subprocess.Popen(list(argv), env=variables, cwd=job.run_folder, preexec_fn=deaf)  # noqa: PLW1509
    threading.Thread(target=_look_after, args=(job, mark), daemon=True).start()
    code = child.wait()
    return code if code >= 0 else 128 - code


def _look_after(job: Job, mark: str) -> None:
    """Ends this start's processes here once a later start trains: of a node that Slurm has lost, they may live on, and
    two must not write into one folder. Notes now and then that it lives, for the bill of one that is killed."""
    noted_at = time.monotonic()
    while _is_newest(job):
        if os.environ.get("SLURM_NODEID", "0") == "0" and time.monotonic() - noted_at >= NOTE_EVERY_S:
            noted_at = time.monotonic()
            _note(job, {"event": "alive"})
        time.sleep(LOOK_EVERY_S)
    sys.stderr.write("gptctl: a later start trains this run: this one ends\n")
    processes.kill_all(mark)


def _stop_to_continue(job: Job, why: str) -> int:
    """Asks all ranks of all nodes for a checkpoint, once; another start is to continue from it."""
    if not _is_newest(job):
        return 0
    files.write_bytes(job.file(AGAIN), why.encode())
    files.write_bytes(os.path.join(job.run_folder, run_files.STOP), b"")
    return 0


def why_it_comes_back(said: scontrol.Told) -> str:
    """PREEMPTED where Slurm takes the nodes for another job: only then, and not for scancel, PreemptTime is a time.
    TIME where the time of the job is over, and the warning before it was not heard. Else empty."""
    if said.get("Restarts", "0") != str(scontrol.restart()):
        return ""
    if said.get("PreemptTime", "None")[:1].isdigit():
        return PREEMPTED
    return TIME if said.get("Reason") == "TimeLimit" else ""


def end(job: Job, code: int) -> int:
    """After srun: another start, where there is to be one; else the exit record."""
    if not _is_newest(job):
        sys.stdout.write("gptctl: a later start trains this run\n")
        return 0
    trainer = cast("Mapping[str, object]", files.read_json(os.path.join(job.run_folder, run_files.EXIT)) or {})
    _note(job, {"event": "end", "code": code, "step": trainer.get("step"), "outcome": trainer.get("outcome")})
    is_settled = bool(stopping.read_request(job)) or trainer.get("outcome") == run_files.OUTCOME_FINISHED
    said = {} if is_settled else scontrol.told_at_last()
    again = files.tail(job.file(AGAIN)).decode() or why_it_comes_back(said)
    verdict = slurm_rules.what_next(
        trainer.get("outcome"), again, restarted=scontrol.has_restarted(said),
        asked=bool(stopping.read_request(job)), why=_why_not_again(job),
    )  # fmt: skip
    if verdict == slurm_rules.ENDED and _starts_again(job, code, said):
        verdict = slurm_rules.REQUEUE
    sys.stdout.write("gptctl: %s\n" % verdict)
    sys.stdout.flush()
    if verdict == slurm_rules.RETURNS:
        return 0
    if verdict == slurm_rules.REQUEUE:
        _requeue(scontrol.job_id())
        said = scontrol.told(scontrol.job_id())
        if said.get("JobState") in ENDS or scontrol.has_restarted(said):
            return code or 1  # Slurm ends it; gptctl will see as what, and submit it again
    if not said and verdict in (slurm_rules.CANCELLED, slurm_rules.REQUEUE):
        return code or 1  # and once it answers, gptctl will see how it ended
    reason, outcome = _reason(again, verdict)
    if reason and not stopping.read_request(job) and trainer.get("outcome") != run_files.OUTCOME_FINISHED:
        stopping.request_stop(job, outcome, reason, 0.0)
    record = exit_record.write_exit(job, code, _started_at(job))
    return 0 if record["outcome"] in (run_files.OUTCOME_FINISHED, run_files.OUTCOME_STOPPED) else code or 1


def _starts_again(job: Job, code: int, said: scontrol.Told) -> bool:
    """Whether a training that died is to start again from its newest checkpoint, as often as the recipe's `restarts`
    lets it. Not where Slurm ends the job meanwhile: it was cancelled, or its time is over."""
    if said.get("JobState") != "RUNNING" or _why_not_again(job):
        return False
    pause_s = restarts.after_end(job, code)
    if pause_s is not None:
        time.sleep(pause_s)
    return pause_s is not None


def _why_not_again(job: Job) -> str:
    """What speaks against another start; empty: nothing."""
    starts = list(files.json_lines(job.file(STARTS_FILE)))
    steps = [line.get("step") for line in starts if line.get("event") == "end"][-MOST_WITHOUT_A_STEP:]
    if len(steps) == MOST_WITHOUT_A_STEP and len(set(steps)) == 1:
        return "%d starts in a row trained nothing" % MOST_WITHOUT_A_STEP
    return _out_of_time(job)


def _out_of_time(job: Job) -> str:
    return "the limits of the run leave no more time" if left_s(job) <= 0 else ""


def left_s(job: Job) -> float:
    """Seconds that the starts so far leave of the run's limits; infinite where nothing limits it."""
    whole_s = job.spec.get("deadline_s")
    starts = list(files.json_lines(job.file(STARTS_FILE)))
    return math.inf if whole_s is None else whole_s - slurm_rules.trained_s(starts)


def _requeue(job_id: str) -> None:
    """Puts it back into the queue, which ends this script. Returns where Slurm refused, or never did it."""
    if scontrol.order("requeue", job_id):
        time.sleep(REQUEUED_WITHIN_S)  # to leave now would be read as the job's own end


def _reason(again: str, verdict: str) -> tuple[str, str]:
    """Why the run ended, and its outcome, where the trainer only knows that it was asked to stop."""
    if verdict == slurm_rules.CANCELLED:
        return "the job was cancelled with scancel", Outcome.STOPPED
    if verdict == slurm_rules.ENDED:
        return "", ""
    refused = "" if verdict == slurm_rules.REQUEUE else ": %s" % verdict
    if again == TIME:
        return "the time of the job is over, and it was not requeued%s" % refused, Outcome.LIMIT
    return "Slurm took the nodes for another job, and it was not requeued%s" % refused, Outcome.PREEMPTED


def _started_at(job: Job) -> float | None:
    """When its first start began, by the cluster's clock."""
    first = next((line for line in files.json_lines(job.file(STARTS_FILE)) if line.get("event") == "begin"), None)
    return cast("float", first["time"]) if first else None
