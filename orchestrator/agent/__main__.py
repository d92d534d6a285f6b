"""The agent's front door: `python3 agent-HASH.pyz VERB`, one JSON object on stdin, JSON lines on stdout.

Exit 0 with the answer as the last line; a refusal is exit 1 with `{"error": {...}}` as the last line. Each verb imports
only what it needs, so that the common ones answer in a few dozen milliseconds.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Callable, Mapping, Sequence

from .contract.names import Code, JobName, State, Verb
from .system.paths import Places, checked_run
from .system.refusal import Refusal, as_refusal

Say = Callable[[Mapping[str, object]], None]


def _where(places: Places, request: Mapping[str, object], say: Say) -> None:
    say({"root": places.root})


def _facts(places: Places, request: Mapping[str, object], say: Say) -> None:
    from .facts import facts
    from .job import fields

    say(facts(places, fields.text(request, "python")))


def _start(places: Places, request: Mapping[str, object], say: Say) -> None:
    from .guard import attendance
    from .job import fields, jobs

    attendance.record_call(places)
    job, secrets = jobs.Job.of_request(places, request), fields.mapping(request, "secrets")
    if job.name == JobName.OFFLOAD:
        from .checkpoints import store_access

        store_access.keep(job, secrets)  # also for one that runs: that is how it gets new ones
        secrets = {}
    if job.name == JobName.KEEP:
        from .checkpoints import home_box_caller

        home_box_caller.take_secrets(job, secrets)
        secrets = {}
    if job.is_engines:
        from .slurm import prepare

        say(prepare(job))
        return
    answer = jobs.start(job, secrets)
    if answer["state"] == State.ENDED:
        jobs.forget_secrets(job)
    say(answer)


def _enqueue(places: Places, request: Mapping[str, object], say: Say) -> None:
    from .guard import attendance
    from .job import jobs
    from .queue import entries

    attendance.record_call(places)
    answer = entries.add(places, jobs.Job.of_request(places, request))
    entries.revive(places)
    say(answer)


def _queue(places: Places, request: Mapping[str, object], say: Say) -> None:
    from .control import order_queue

    say(order_queue(places, request))


def _status(places: Places, request: Mapping[str, object], say: Say) -> None:
    from .job import fields
    from .status import status

    say(status(places, fields.text(request, "run")))


def _follow(places: Places, request: Mapping[str, object], say: Say) -> None:
    from .follow import follow

    follow(places, request, say)


def _stop(places: Places, request: Mapping[str, object], say: Say) -> None:
    from .control import stop

    stop(places, request, say)


def _release(places: Places, request: Mapping[str, object], say: Say) -> None:
    from .control import release

    release(places, request, say)


def _renew(places: Places, request: Mapping[str, object], say: Say) -> None:
    from .control import renew

    say(renew(places, request))


def _arm(places: Places, request: Mapping[str, object], say: Say) -> None:
    from .guard import order

    say({"guard": order.arm(places, request)})


def _finish(places: Places, request: Mapping[str, object], say: Say) -> None:
    from .control import finish

    say(finish(places, request))


def _host_key(places: Places, request: Mapping[str, object], say: Say) -> None:
    from .setup import host_key

    say({"host_key": host_key.install() if request.get("install") else host_key.stage()})


def _manifest(places: Places, request: Mapping[str, object], say: Say) -> None:
    from .checkpoints.manifest import manifest
    from .guard import attendance

    attendance.record_call(places)
    say(manifest(places.run(checked_run(request.get("run")))))


def _safe(places: Places, request: Mapping[str, object], say: Say) -> None:
    from .checkpoints.manifest import mark_safe

    step, digest = request.get("step"), request.get("manifest_sha256")
    if not isinstance(step, int) or not isinstance(digest, str):
        raise Refusal(Code.BAD_REQUEST, "safe needs step and manifest_sha256")
    say(mark_safe(places.run(checked_run(request.get("run"))), step, digest))


VERBS: dict[str, Callable[[Places, Mapping[str, object], Say], None]] = {
    Verb.WHERE: _where,
    Verb.FACTS: _facts,
    Verb.START: _start,
    Verb.ENQUEUE: _enqueue,
    Verb.QUEUE: _queue,
    Verb.STATUS: _status,
    Verb.FOLLOW: _follow,
    Verb.STOP: _stop,
    Verb.RENEW: _renew,
    Verb.ARM: _arm,
    Verb.FINISH: _finish,
    Verb.HOST_KEY: _host_key,
    Verb.MANIFEST: _manifest,
    Verb.SAFE: _safe,
    Verb.RELEASE: _release,
}


def main(argv: list[str]) -> int:
    """Runs one verb. The agent's own programs take no request: those of PROGRAMS, `guard`, `queue` and `boot`."""
    os.umask(0o077)
    places = Places(argv[0])
    verb = argv[1] if len(argv) > 1 else ""
    if verb in PROGRAMS:
        return _program(verb)(places, argv[2:])
    if verb == "queue":
        from .queue.runner import main as queue

        return queue(places)
    if verb == "boot":
        from .reboot import main as boot

        return boot(places)
    if verb == "guard":
        from .guard.process import main as guard

        return guard(places)
    return _answer(places, verb)


PROGRAMS = ("supervise", "work", "slurm", "link")


def _program(verb: str) -> Callable[[Places, Sequence[str]], int]:
    if verb == "supervise":
        from .supervisor import main as supervise

        return supervise
    if verb == "work":
        from .own_jobs import main as work

        return work
    if verb == "slurm":
        from .slurm import main as slurm

        return slurm
    from .checkpoints.home_box_link import main as link

    return link


def _answer(places: Places, verb: str) -> int:
    try:
        if verb not in VERBS:
            raise Refusal(Code.BAD_REQUEST, "unknown verb %r; known: %s" % (verb, ", ".join(VERBS)))
        VERBS[verb](places, _request(), _say)
    except BrokenPipeError:
        # The reader is gone: the laptop left. The jobs continue; this process has no other purpose.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    except (Refusal, OSError) as error:
        _say(as_refusal(error).answer())
        return 1
    return 0


def _request() -> dict[str, object]:
    """The first line of stdin; what comes after it is a follower's sign of life."""
    try:
        request = json.loads(sys.stdin.buffer.readline() or b"{}")
    except ValueError as error:
        raise Refusal(Code.BAD_REQUEST, "stdin is not JSON: %s" % error) from error
    if not isinstance(request, dict):
        raise Refusal(Code.BAD_REQUEST, "stdin must be one JSON object")
    return request


def _say(answer: Mapping[str, object]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv))
