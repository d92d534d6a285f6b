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
from typing import Any

from orchestrator.core.errors import AgentError, CommandFailed, MachineUnfit
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
    json_object,
)
from orchestrator.remote.agent_client.package import agent_package

__all__ = ["Agent", "Checkpoint", "Data", "Ended", "FollowLine", "Heartbeat", "JobState"]

BOOT = """\
import json, os, sys
path = os.path.abspath(os.path.expanduser(sys.argv[1]))
def refuse(code, message):
    print(json.dumps({"error": {"code": code, "message": message, "hint": "", "path": path}}))
    sys.exit(1)
if sys.version_info < (3, 8):
    refuse("python-too-old", "%s is Python %d.%d; the agent needs 3.8" % ((sys.executable,) + sys.version_info[:2]))
if not os.path.isfile(path):
    try:
        os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
    except OSError as error:
        code = {28: "disk-full", 30: "read-only", 13: "read-only"}.get(error.errno, "no-folder")
        refuse(code, "cannot make %s: %s" % (os.path.dirname(path), error.strerror))
    refuse("agent-missing", "no agent at " + path)
code = made = path
try:
    with open("/proc/sys/kernel/random/boot_id") as file:
        code = path[:-4] + "-" + file.read(8)
    if not os.path.isdir(code):
        import shutil, tempfile, zipfile
        made = tempfile.mkdtemp(dir=os.path.dirname(path))
        with zipfile.ZipFile(path) as archive:
            archive.extractall(made)
        os.rename(made, code)
except OSError:
    if made != path:
        shutil.rmtree(made, ignore_errors=True)
    code = code if os.path.isdir(code) else path
sys.path.insert(0, code)
from agent.__main__ import main
sys.exit(main([code] + sys.argv[2:]))
"""
"""Runs the agent, or says what is in the way: one round trip answers both, and `~` is resolved over there.

A zipapp is compiled anew by every process that imports it, so its files are laid beside it once and Python keeps what
it compiles: a call takes two thirds of the time. The folder counts for one boot: a crash may leave it half written.
"""

UNFIT = frozenset({"python-too-old", "no-folder"})
HINTS = {
    "disk-full": "free some space on the machine, or set `folder` in its inventory entry to a larger disk",
    "read-only": "set `folder` in the machine's inventory entry to a place this user may write",
    "python-too-old": "install Python >= 3.8 on the machine, or set `python` in its inventory entry",
    "no-folder": "set `folder` in the machine's inventory entry to a place this user may write",
}
PULSE_S = 2.0
SILENCE_S = 10.0
"""A follower over SSH is heard every PULSE_S; after SILENCE_S without a word the machine knows that it is gone."""


class Agent:
    """The agent on one machine. `root` may start with `~`: it is resolved over there."""

    def __init__(self, shell: Shell, root: str, python: str = "python3") -> None:
        self.shell = shell
        self.python = python
        self._given_root = root.rstrip("/") or "/"
        self._root: str | None = None

    @property
    def root(self) -> str:
        """The agent's folder on the machine as an absolute path. Asks the machine when no call has told it yet."""
        if self._root is None:
            self._root = str(self._call("where", {})["root"])
        return self._root

    def ensure(self) -> None:
        """Ships the agent if it is not there. Every call does this by itself when it has to."""
        answer = _answer("where", self.shell.run(self._argv("where"), stdin=b"{}"))
        if _is_missing(answer):  # and then its place is known, without asking again
            self._ship(answer["error"]["path"])
            self._root = str(PurePosixPath(answer["error"]["path"]).parents[1])
        else:
            self._root = str(_accepted("where", answer)["root"])

    def facts(self, python: str | None = None) -> dict[str, Any]:
        """What the machine is: see docs/agent.md. `python` is the host entry's own interpreter, looked at too."""
        answer = self._call("facts", {"python": python}, deadline_s=60.0)
        self._root = str(answer["root"])
        return answer

    def start(
        self,
        job: str,
        run: str,
        digest: str,
        spec: Mapping[str, Any],
        secrets: Mapping[str, Any] | None = None,
    ) -> JobState:
        """Starts the job, or attaches to the one that runs or ran with this digest. Safe to repeat."""
        request = {"job": job, "run": run, "digest": digest, "spec": dict(spec), "secrets": dict(secrets or {})}
        answer = self._call("start", request, deadline_s=60.0)
        return JobState(answer["job"], answer["run"], answer["state"], answer["digest"], answer.get("exit"))

    def status(self, run: str | None = None, *, deadline_s: float = 10.0) -> dict[str, Any]:
        """State of one run or of all: `{"runs": {RUN: ...}, "time_s"}`. Changes nothing on the machine."""
        return self._call("status", {} if run is None else {"run": run}, deadline_s=deadline_s)

    @contextmanager
    def follow(
        self, run: str, job: str, offsets: Mapping[str, int], digest: str | None = None
    ) -> Iterator[Iterator[FollowLine]]:
        """The job's files from these byte offsets on, with a heartbeat every 2 s, until it has ended. The last line is
        Ended. Without a digest the newest job of that name is meant. Raises LinkLost after 10 s of silence; call again
        with the offsets reached."""
        request: dict[str, Any] = {"run": run, "job": job, "digest": digest, "offsets": dict(offsets)}
        if self.shell.openssh() is not None:
            request["silence_s"] = SILENCE_S
        with self._stream("follow", request) as answers:
            yield (follow_line(answer) for answer in answers)

    def wait(
        self, run: str, job: str, on_progress: Callable[[dict[str, Any]], None], digest: str | None = None
    ) -> dict[str, Any]:
        """Follows a job other than train to its end, passing on its progress lines; returns its exit, which has the
        job's `result`. A caller that reconnects calls it again: progress then repeats from the start."""
        pending = b""
        with self.follow(run, job, {}, digest) as lines:
            for line in lines:
                if isinstance(line, Ended):
                    return line.exit
                if isinstance(line, Data) and line.file == "progress.jsonl":
                    *complete, pending = (pending + line.data).split(b"\n")
                    for progress in filter(None, map(json_object, complete)):
                        on_progress(progress)
        raise AgentError(f"{job} of {run}: the agent stopped talking before the job ended", code="no-end")

    def stop(self, run: str, job: str = "train", grace_s: float = 300.0) -> dict[str, Any]:
        """Stops the job and waits until it has ended: `{"state": "ended" | "none", "exit"}`."""
        return self._last("stop", {"run": run, "job": job, "grace_s": grace_s})

    def arm(self, instance_id: str, call: EndCall, *, lease_s: float, deadline_s: float) -> dict[str, Any]:
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
        return dict(self._call("arm", request, deadline_s=60.0)["guard"])

    def arm_self(self, instance_id: str, rental_id: str, *, lease_s: float, deadline_s: float) -> dict[str, Any]:
        """As arm, for a machine whose launch put a timer on it that powers it off: it needs no key."""
        request = {
            "kind": "self",
            "instance_id": instance_id,
            "rental": rental_id,
            "lease_s": lease_s,
            "deadline_s": deadline_s,
        }
        return dict(self._call("arm", request, deadline_s=60.0)["guard"])

    def guard(self) -> dict[str, Any]:
        """What the machine says of its guard: see docs/agent.md."""
        return dict(self.status()["guard"])

    def finish(self, within_s: float) -> None:
        """The guard drops the key's file, and ends the machine within_s from now if it is still there."""
        self._call("finish", {"within_s": within_s})

    def host_key(self, *, install: bool) -> dict[str, Any]:
        """A new host key for the machine's sshd: made and named, or put in place. `changeable` false says `why`."""
        return dict(self._call("host-key", {"install": install}, deadline_s=60.0)["host_key"])

    def renew(self, run: str | None, duration_s: float, deadline_s: float | None = None) -> dict[str, Any]:
        """Lets the run go on for duration_s from now, but never past its deadline, deadline_s from now.
        Without a run: lets the machine go on."""
        return self._call("renew", {"run": run, "duration_s": duration_s, "deadline_s": deadline_s})

    def manifest(self, run: str) -> list[Checkpoint]:
        """The run's complete checkpoints, oldest first. Raises AgentError for names that lead out of their folder."""
        answer = self._call("manifest", {"run": run}, deadline_s=60.0)
        return [checkpoint(value) for value in answer["checkpoints"]]

    def safe(self, run: str, step: int, digest: str) -> None:
        """Marks a checkpoint as verified elsewhere. `digest` is the sha256 of the manifest that was verified."""
        self._call("safe", {"run": run, "step": step, "manifest_sha256": digest})

    def release(self, run: str) -> dict[str, Any]:
        """Ends every job of the run and frees its locks, lease and secrets. Run folder and environments stay."""
        return self._last("release", {"run": run})

    def _argv(self, verb: str) -> list[str]:
        path = f"{self._given_root}/agent/{agent_package().name}"
        # -I: nothing of the user's environment or current folder is imported; -S: no site packages, a faster start.
        return [self.python, "-I", "-S", "-c", BOOT, path, verb]

    def _call(self, verb: str, request: Mapping[str, Any], *, deadline_s: float = 30.0) -> dict[str, Any]:
        """One round trip; three when the agent has to be shipped first."""
        stdin = json.dumps(request).encode()
        answer = _answer(verb, self.shell.run(self._argv(verb), stdin=stdin, deadline_s=deadline_s))
        if _is_missing(answer):
            self._ship(answer["error"]["path"])
            answer = _answer(verb, self.shell.run(self._argv(verb), stdin=stdin, deadline_s=deadline_s))
        return _accepted(verb, answer)

    @contextmanager
    def _stream(self, verb: str, request: Mapping[str, Any]) -> Iterator[Iterator[dict[str, Any]]]:
        """Answers line by line, as they come. The first line decides whether the agent must be shipped."""
        stdin = json.dumps(request).encode()
        missing: dict[str, Any] | None = None
        for _ in range(2):
            if missing is not None:
                self._ship(missing["error"]["path"])
            with self._lines(verb, stdin, PULSE_S if "silence_s" in request else 0.0) as raw:
                answers = filter(None, map(json_object, raw))
                first = _first(verb, answers)
                if missing is None and _is_missing(first):
                    missing = first
                    continue
                yield (_accepted(verb, answer) for answer in itertools.chain([first], answers))
                return

    def _lines(self, verb: str, stdin: bytes, pulse_s: float) -> AbstractContextManager[Iterator[bytes]]:
        return _opened(self.shell.lines(self._argv(verb), stdin=stdin, pulse_s=pulse_s))

    def _last(self, verb: str, request: Mapping[str, Any]) -> dict[str, Any]:
        """The last line of a verb that takes its time and sends heartbeats meanwhile."""
        answer: dict[str, Any] = {}
        with self._stream(verb, request) as answers:
            for answer in answers:
                if answer.get("kind") != "heartbeat":
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
            raise _no_python(failure.message) from failure
        yield opened


def _first(verb: str, answers: Iterator[dict[str, Any]]) -> dict[str, Any]:
    try:
        return next(answers)
    except StopIteration:
        raise AgentError(f"agent {verb}: no answer", code="no-answer") from None
    except CommandFailed as failure:
        # Nothing was said before the end: the interpreter itself is missing or broken.
        raise _no_python(failure.message) from failure


def _is_missing(answer: Mapping[str, Any]) -> bool:
    return "error" in answer and answer["error"].get("code") == "agent-missing"


def _answer(verb: str, result: Result) -> dict[str, Any]:
    """The last JSON object a call printed. Raises MachineUnfit without Python, AgentError for an agent that broke."""
    for line in reversed(result.stdout.splitlines()):
        value = json_object(line)
        if value is not None:
            return value
    said = result.stderr.decode(errors="replace").strip()
    if result.code in (126, 127):
        raise _no_python(said)
    evidence = f": {said.splitlines()[-1]}" if said else ""
    raise AgentError(f"agent {verb}: ended with code {result.code} and no answer{evidence}", code="no-answer")


def _no_python(said: str) -> MachineUnfit:
    return MachineUnfit(
        f"the machine cannot run its Python: {said or 'command not found'}",
        hint="install Python >= 3.8 on the machine (apt install python3), or set `python` in its inventory entry",
    )


def _accepted(verb: str, answer: dict[str, Any]) -> dict[str, Any]:
    if "error" not in answer:
        return answer
    error = answer["error"]
    code, message = str(error.get("code", "agent")), str(error.get("message", ""))
    hint = str(error.get("hint") or HINTS.get(code, ""))
    if code in UNFIT:
        raise MachineUnfit(f"agent {verb}: {message}", hint)
    raise AgentError(f"agent {verb}: {message}", hint, code=code)
