"""The laptop's side of the agent: typed calls over a Shell. Ships the zipapp when, and only when, a call misses it.

It must not know SSH, run shells or retry: reconnecting is its caller's affair. Requests travel as JSON on stdin, so no
secret is ever in an argv; answers are JSON lines.

Example::

    agent = Agent(shell, "~/.gptctl")
    state = agent.start("train", "quickstart-1120-k3f9qa", digest, spec)
    with agent.follow(state.run, "train", {"metrics.jsonl": 4096}) as lines:
        for line in lines: ...
"""

from __future__ import annotations

import itertools
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path, PurePosixPath

from orchestrator.agent.contract.answers import (
    ExitRecord,
    GuardAnswer,
    GuardStatus,
    HostKey,
    HostKeyAnswer,
    Lease,
    LeaseAnswer,
    MachineStatus,
    Manifest,
    QueueAnswer,
    ReleaseAnswer,
    StopAnswer,
    Where,
)
from orchestrator.agent.contract.facts import Facts
from orchestrator.agent.contract.names import (
    GRACE_S,
    PULSE_S,
    SILENCE_S,
    FileName,
    GuardKind,
    JobName,
    LineKind,
    Verb,
)
from orchestrator.agent.contract.requests import FollowRequest
from orchestrator.core.errors import AgentError, CommandFailed
from orchestrator.core.ports import EndCall, Result, Shell
from orchestrator.remote.agent_client.answers import (
    Checkpoint,
    Data,
    Ended,
    FollowLine,
    Heartbeat,
    JobState,
    checkpoint,
    follow_line,
    followed_files,
    job_state,
)
from orchestrator.remote.agent_client.boot import BOOT, accepted, is_missing, missing_path, no_python
from orchestrator.remote.agent_client.decoding import decoded, json_object, refuse
from orchestrator.remote.agent_client.lines import LineBuffer
from orchestrator.remote.agent_client.package import agent_package
from orchestrator.remote.far_python import far_python

__all__ = ["Agent", "Checkpoint", "Data", "Ended", "FollowLine", "Heartbeat", "JobState"]


KILLED = (-1, 137)
"""Exit codes of a call that died by a signal: paramiko's, and a shell's for SIGKILL."""


class Agent:
    """The agent on one machine. `root` may start with `~`: it is resolved over there. Any Python from 3.8 on runs it:
    `python`, else what far_python says."""

    def __init__(self, shell: Shell, root: str, python: str | None = None) -> None:
        self.shell = shell
        self.python = python or far_python(shell)
        self._given_root = root.rstrip("/") or "/"
        self._root: str | None = None

    @property
    def root(self) -> str:
        """The agent's folder on the machine as an absolute path. Asks the machine when no call has told it yet."""
        if self._root is None:
            self._root = decoded(Where, self._call(Verb.WHERE, {}), Verb.WHERE)["root"]
        return self._root

    def ensure(self) -> None:
        """Ships the agent if it is not there. Every call does this when it has to."""
        answer = _answer(Verb.WHERE, self.shell.run(self._argv(Verb.WHERE), stdin=b"{}"))
        if is_missing(answer):  # and then its place is known, without asking again
            self._ship(missing_path(answer))
            self._root = str(PurePosixPath(missing_path(answer)).parents[1])
        else:
            self._root = decoded(Where, accepted(Verb.WHERE, answer), Verb.WHERE)["root"]

    def facts(self, python: str | None = None) -> Facts:
        """What the machine is (docs/reference/agent-protocol.md); `python` is the host entry's own interpreter."""
        facts = decoded(Facts, self._call(Verb.FACTS, {"python": python}, deadline_s=60.0), Verb.FACTS)
        self._root = facts["root"]
        return facts

    def start(
        self,
        job: str,
        run: str,
        digest: str,
        spec: Mapping[str, object],
        secrets: Mapping[str, object] | None = None,
    ) -> JobState:
        """Starts the job, or attaches to the one that runs or ran with this digest. Safe to repeat."""
        request = {"job": job, "run": run, "digest": digest, "spec": dict(spec), "secrets": dict(secrets or {})}
        return job_state(self._call(Verb.START, request, deadline_s=60.0))

    def enqueue(self, run: str, digest: str, spec: Mapping[str, object]) -> JobState:
        """Lets a training wait for its turn; it starts at once where nothing trains. Safe to repeat."""
        request = {"job": JobName.TRAIN, "run": run, "digest": digest, "spec": dict(spec)}
        return job_state(self._call(Verb.ENQUEUE, request, deadline_s=60.0))

    def queue(self, *, move: str | None = None, to: int = 1, drop: str | None = None) -> QueueAnswer:
        """What waits, the next one first; moves or drops a run before. Raises AgentError `no-such-run` for one that
        does not wait."""
        request = {"move": move, "to": to, "drop": drop}
        return decoded(QueueAnswer, self._call(Verb.QUEUE, request), Verb.QUEUE)

    def status(self, run: str | None = None, *, deadline_s: float = 10.0) -> MachineStatus:
        """State of one run, which the answer has, or of all. Changes nothing on the machine."""
        answer = self._call(Verb.STATUS, {} if run is None else {"run": run}, deadline_s=deadline_s)
        status = decoded(MachineStatus, answer, Verb.STATUS)
        if run is not None and run not in status["runs"]:
            raise refuse(Verb.STATUS, f"it says nothing of {run}")
        return status

    @contextmanager
    def follow(
        self, run: str, job: str, offsets: Mapping[str, int], digest: str | None = None
    ) -> Iterator[Iterator[FollowLine]]:
        """The job's files from these byte offsets on, with a heartbeat every 2 s, until it has ended. The last line is
        Ended. Without a digest the newest job of that name is meant. Raises LinkLost after 10 s of silence; call again
        with the offsets reached."""
        request: FollowRequest = {"run": run, "job": job, "digest": digest, "offsets": dict(offsets)}
        if self.shell.openssh() is not None:
            request["silence_s"] = SILENCE_S
        with self._stream(Verb.FOLLOW, request) as answers:
            yield (follow_line(answer, followed_files(job)) for answer in answers)

    def wait(
        self, run: str, job: str, on_progress: Callable[[dict[str, object]], None], digest: str | None = None,
        on_heartbeat: Callable[[], None] = lambda: None,
    ) -> ExitRecord:  # fmt: skip
        """Follows a job other than train to its end, passing on its progress lines; returns its exit, which has the
        job's `result`. A caller that reconnects calls it again: progress then repeats from the start. on_heartbeat:
        called every 2 s; what it raises, this raises."""
        buffer = LineBuffer()
        with self.follow(run, job, {}, digest) as lines:
            for line in lines:
                if isinstance(line, Ended):
                    return line.exit
                if isinstance(line, Heartbeat):
                    on_heartbeat()
                if isinstance(line, Data) and line.file == FileName.PROGRESS:
                    for progress in filter(None, map(json_object, buffer.take(line.data))):
                        on_progress(progress)
        raise AgentError(f"{job} of {run}: the agent stopped answering before the job ended", code="no-end")

    def stop(self, run: str, job: str = JobName.TRAIN, grace_s: float = GRACE_S) -> StopAnswer:
        """Stops the job and waits until it has ended; state `none`: the job does not exist."""
        return decoded(StopAnswer, self._last(Verb.STOP, {"run": run, "job": job, "grace_s": grace_s}), Verb.STOP)

    def arm(self, instance_id: str, call: EndCall, *, lease_s: float, deadline_s: float) -> GuardStatus:
        """Hands the machine the key to end itself: at the end of the lease, deadline_s from now at the latest. Returns
        the guard's state; `armed` comes some moments later, once the API took the key. Again: renews."""
        end = {"url": call.url, "body": dict(call.body)}
        request = {
            "instance_id": instance_id,
            "end": end,
            "look_url": call.look_url,
            "lease_s": lease_s,
            "deadline_s": deadline_s,
            "secrets": {"api_key": call.key},
        }
        return decoded(GuardAnswer, self._call(Verb.ARM, request, deadline_s=60.0), Verb.ARM)["guard"]

    def arm_self(self, instance_id: str, rental_id: str, *, lease_s: float, deadline_s: float) -> GuardStatus:
        """As arm, for a machine whose launch put a timer on it that powers it off: it needs no key."""
        request = {
            "kind": GuardKind.SELF,
            "instance_id": instance_id,
            "rental": rental_id,
            "lease_s": lease_s,
            "deadline_s": deadline_s,
        }
        return decoded(GuardAnswer, self._call(Verb.ARM, request, deadline_s=60.0), Verb.ARM)["guard"]

    def guard(self) -> GuardStatus:
        """The state of the machine's guard."""
        return self.status()["guard"]

    def finish(self, within_s: float) -> None:
        """The guard drops the key's file, and ends the machine within_s from now if it is still there."""
        self._call(Verb.FINISH, {"within_s": within_s})

    def host_key(self, *, install: bool) -> HostKey:
        """A new host key for the machine's sshd: made and named, or put in place. `changeable` false says `why`."""
        answer = self._call(Verb.HOST_KEY, {"install": install}, deadline_s=60.0)
        return decoded(HostKeyAnswer, answer, Verb.HOST_KEY)["host_key"]

    def renew(self, run: str | None, duration_s: float, deadline_s: float | None = None) -> Lease | None:
        """Lets the run continue for duration_s from now, but never past its deadline, deadline_s from now. Without a
        run: lets the machine continue; None where it has no guard."""
        request = {"run": run, "duration_s": duration_s, "deadline_s": deadline_s}
        return decoded(LeaseAnswer, self._call(Verb.RENEW, request), Verb.RENEW)["lease"]

    def manifest(self, run: str) -> list[Checkpoint]:
        """The run's complete checkpoints, oldest first. Raises AgentError for names that lead out of their folder."""
        answer = self._call(Verb.MANIFEST, {"run": run}, deadline_s=60.0)
        return [checkpoint(entry) for entry in decoded(Manifest, answer, Verb.MANIFEST)["checkpoints"]]

    def safe(self, run: str, step: int, digest: str) -> None:
        """Marks a checkpoint as verified elsewhere. `digest` is the sha256 of the manifest that was verified."""
        self._call(Verb.SAFE, {"run": run, "step": step, "manifest_sha256": digest})

    def release(self, run: str) -> ReleaseAnswer:
        """Ends every job of the run and frees its locks, lease and secrets. Run folder and environments stay."""
        return decoded(ReleaseAnswer, self._last(Verb.RELEASE, {"run": run}), Verb.RELEASE)

    def _argv(self, verb: str) -> list[str]:
        path = f"{self._given_root}/agent/{agent_package().name}"
        # -I: nothing of the user's environment or current folder is imported; -S: no site packages, a faster start.
        return [self.python, "-I", "-S", "-c", BOOT, path, verb]

    def _call(self, verb: str, request: Mapping[str, object], *, deadline_s: float = 30.0) -> dict[str, object]:
        """One round trip; three when the agent has to be shipped first."""
        stdin = json.dumps(request).encode()
        answer = _answer(verb, self._asked(verb, stdin, deadline_s))
        if is_missing(answer):
            self._ship(missing_path(answer))
            answer = _answer(verb, self._asked(verb, stdin, deadline_s))
        return accepted(verb, answer)

    def _asked(self, verb: str, stdin: bytes, deadline_s: float) -> Result:
        """Where memory runs out a call may be killed before it answers. That says nothing about the machine, so it is
        made once more, as every verb may be."""
        result = self.shell.run(self._argv(verb), stdin=stdin, deadline_s=deadline_s)
        if result.code in KILLED and not result.stdout:
            result = self.shell.run(self._argv(verb), stdin=stdin, deadline_s=deadline_s)
        return result

    @contextmanager
    def _stream(self, verb: str, request: Mapping[str, object]) -> Iterator[Iterator[dict[str, object]]]:
        """Answers line by line, as they come. The first line decides whether the agent must be shipped."""
        stdin = json.dumps(request).encode()
        missing: dict[str, object] | None = None
        for _ in range(2):
            if missing is not None:
                self._ship(missing_path(missing))
            with self._lines(verb, stdin, PULSE_S if "silence_s" in request else 0.0) as raw:
                answers = filter(None, map(json_object, raw))
                first = _first(verb, answers)
                if missing is None and is_missing(first):
                    missing = first
                    continue
                yield (accepted(verb, answer) for answer in itertools.chain([first], answers))
                return

    def _lines(self, verb: str, stdin: bytes, pulse_s: float) -> AbstractContextManager[Iterator[bytes]]:
        return _opened(self.shell.lines(self._argv(verb), stdin=stdin, pulse_s=pulse_s))

    def _last(self, verb: str, request: Mapping[str, object]) -> dict[str, object]:
        """The last line of a verb that takes its time and sends heartbeats meanwhile."""
        answer: dict[str, object] = {}
        with self._stream(verb, request) as answers:
            for answer in answers:
                if answer.get("kind") != LineKind.HEARTBEAT:
                    return answer
        raise AgentError(f"agent {verb}: no answer after its last heartbeat", code="no-answer")

    def _ship(self, remote_path: str) -> None:
        with tempfile.TemporaryDirectory(prefix="gptctl-agent-") as folder:
            local = Path(folder) / agent_package().name
            local.write_bytes(agent_package().content)
            self.shell.put(local, remote_path, mode=0o600)


@contextmanager
def _opened(lines: AbstractContextManager[Iterator[bytes]]) -> Iterator[Iterator[bytes]]:
    """Enters the stream; on this machine a missing interpreter is known before the first line."""
    with ExitStack() as stack:
        try:
            opened = stack.enter_context(lines)
        except CommandFailed as failure:
            raise no_python(failure.message) from failure
        yield opened


def _first(verb: str, answers: Iterator[dict[str, object]]) -> dict[str, object]:
    try:
        return next(answers)
    except StopIteration:
        raise AgentError(f"agent {verb}: no answer", code="no-answer") from None
    except CommandFailed as failure:
        if any(f"exit code {code}" in failure.message for code in KILLED):
            raise  # it was killed: that is its end, and not the interpreter's
        # Nothing was said before the end: the interpreter itself is missing or broken.
        raise no_python(failure.message) from failure


def _answer(verb: str, result: Result) -> dict[str, object]:
    """The last JSON object a call printed. Raises MachineUnfit without Python, AgentError for an agent that broke."""
    for line in reversed(result.stdout.splitlines()):
        value = json_object(line)
        if value is not None:
            return value
    said = result.stderr.decode(errors="replace").strip()
    if result.code in (126, 127):
        raise no_python(said)
    evidence = f": {said.splitlines()[-1]}" if said else ""
    raise AgentError(f"agent {verb}: ended with code {result.code} and no answer{evidence}", code="no-answer")
