"""The keep job, on a home box: calls the machine that trains, and keeps what that stores (folder_service.py).

It calls again and again, less and less often, until all is stored. The machine's host key is pinned, because another
machine may get its address one day. The private key came by stdin and is in memory (tmpfs) only: after a reboot the
laptop hands over another.

Example, spec and secrets::

    {"folder": "/mnt/models/RUN", "host": "203.0.113.9", "port": 22, "user": "ubuntu", "command": "... link RUN"}
    {"key": "-----BEGIN ...", "known_hosts": "gptctl-machine ssh-ed25519 AAAA..."}
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from typing import Callable, Mapping

from ..contract.names import Code, JobName, KeepState
from ..job import jobs, program
from ..job.jobs import Job, Secrets
from ..system import files, memory_files
from ..system.pause import Pause
from ..system.refusal import Refusal
from . import store_index
from .folder_service import FolderService
from .home_box_link import OVER

KEY, HOSTS = "keep-key", "keep-hosts"
NAME = "gptctl-machine"
"""What the machine is called in known_hosts."""
FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 30.0
GIVE_UP_S = 7 * 86_400.0
"""Without one answer: the machine is long gone."""
Say = Callable[[Mapping[str, object]], None]


def take_secrets(job: Job, secrets: Secrets) -> None:
    """Keeps them in memory. Nothing where none came: those that are kept still count."""
    if not secrets:
        return
    key, known_hosts = secrets.get("key"), secrets.get("known_hosts")
    if not isinstance(key, str) or not isinstance(known_hosts, str):
        raise Refusal(Code.BAD_REQUEST, "keep: its secrets need `key` and `known_hosts`")
    memory_files.put(HOSTS, job.folder, known_hosts)
    memory_files.put(KEY, job.folder, key)


def forget(job: Job) -> None:
    memory_files.forget(KEY, job.folder)
    memory_files.forget(HOSTS, job.folder)


def keep(job: Job, say: Say) -> dict[str, object]:
    """Returns when the machine said that nothing more will come, or after a week without an answer:
    `{"folder", "requests"}`."""
    folder = os.path.abspath(os.path.expanduser(str(program.required(job, "folder", str))))
    files.make_folder(folder)
    pause, answered_at, requests = Pause(FIRST_PAUSE_S, LONGEST_PAUSE_S), time.monotonic(), 0
    while True:
        if memory_files.read(KEY, job.folder) is None:
            _tell(job, say, KeepState.NEEDS_INPUT, "the key is gone (a reboot): gptctl resume %s" % job.run)
            time.sleep(LONGEST_PAUSE_S)
            continue
        _tell(job, say, KeepState.CALLING, None)
        service, code, words = _call(job, folder)
        requests += service.requests
        if service.ended or code == OVER:
            forget(job)
            return {"folder": folder, "requests": requests}
        if service.requests:
            pause.reset()
            answered_at = time.monotonic()
        if time.monotonic() - answered_at > GIVE_UP_S:
            forget(job)
            return {"folder": folder, "requests": requests, "gave_up": words}
        _tell(job, say, KeepState.TROUBLE, words or "the line broke")
        time.sleep(pause.next_s())
        jobs.revive_quietly(job)  # its own supervisor, if that was killed


def _tell(job: Job, say: Say, what: str, problem: str | None) -> None:
    files.write_json(job.file(store_index.KEEP_STATE), {"state": what, "problem": problem, "at": time.time()})
    say({"step": JobName.KEEP, "state": what, "problem": problem})


def _call(job: Job, folder: str) -> tuple[FolderService, int, str]:
    """One call, as long as it lasts: the service it was, ssh's exit code, and its last words."""
    with tempfile.TemporaryFile() as errors:
        # -E would write a file of ssh's own; a temporary one without a name has nothing to clear away.
        ssh = subprocess.Popen(_argv(job), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors)
        assert ssh.stdin is not None and ssh.stdout is not None
        service = FolderService(folder, ssh.stdout, ssh.stdin)
        try:
            service.serve()
        finally:
            code = _hang_up(ssh)
        errors.seek(0)
        lines = errors.read()[-4000:].decode(errors="replace").strip().splitlines()
    return service, code, lines[-1] if lines else ""


def _hang_up(ssh: subprocess.Popen[bytes]) -> int:
    try:
        if ssh.stdin is not None:
            ssh.stdin.close()
    except OSError:
        pass  # it is gone already
    try:
        return ssh.wait(timeout=5)
    except subprocess.TimeoutExpired:
        ssh.kill()
        return ssh.wait()


def _argv(job: Job) -> list[str]:
    settings = {
        "BatchMode": "yes",
        "StrictHostKeyChecking": "yes",
        "UserKnownHostsFile": memory_files.path(HOSTS, job.folder),
        "GlobalKnownHostsFile": "/dev/null",
        "HostKeyAlias": NAME,
        "IdentitiesOnly": "yes",
        "IdentityAgent": "none",
        "ClearAllForwardings": "yes",
        "ConnectTimeout": "10",
        "ServerAliveInterval": "5",
        "ServerAliveCountMax": "3",
        "LogLevel": "ERROR",
    }
    options = [word for name, value in settings.items() for word in ("-o", "%s=%s" % (name, value))]
    port, user = program.required(job, "port", int), program.required(job, "user", str)
    target = "%s@%s" % (user, program.required(job, "host", str))
    key = memory_files.path(KEY, job.folder)
    return ["ssh", "-F", "none", "-T", "-p", str(port), "-i", key, *options, "--", target, job.spec["command"]]
