"""`gptctl` and the agent run to their end: as the real programs, or as forks of a process that has imported them.

Most of the processor time of a short call is imports. With GPTCTL_TEST_FORK=1, which `make test` sets, each worker
imports a program once (see fork_server) and every call is a fork. Otherwise, as in `make test-nightly`, every call is
the real program; and so is, in both, whatever a test starts by itself to kill it, and whatever gptctl starts.
"""

from __future__ import annotations

import array
import json
import os
import pwd
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import cache
from pathlib import Path

from tests.support.files.repository import REPOSITORY

FORKS = os.environ.get("GPTCTL_TEST_FORK") == "1"
SERVER = Path(__file__).with_name("fork_server.py")
PROOF = str(REPOSITORY / "tests/support/clock/proof.py")
MAIN = str(REPOSITORY / "orchestrator/__main__.py")
_kept: list[subprocess.Popen[bytes]] = []


def gptctl_argv(*args: str) -> list[str]:
    """Of the real program, which looks twice for an end and does not wait whether it stands."""
    return [sys.executable, PROOF, *args]


def run_gptctl(
    *args: str, cwd: Path, env: Mapping[str, str], stdin: str = "", deadline_s: float = 480
) -> subprocess.CompletedProcess[str]:
    """How it ended and what it said; subprocess.TimeoutExpired after the deadline. A call with another PYTHONPATH is
    the real program: it imports something else."""
    argv = gptctl_argv(*args)
    if not FORKS or env.get("PYTHONPATH") != str(REPOSITORY):
        return subprocess.run(
            argv, input=stdin, capture_output=True, text=True, timeout=deadline_s, check=False, cwd=cwd, env=env
        )
    server = _server((sys.executable,), "gptctl")
    done = _forked(server, [MAIN, *args], cwd, env, stdin.encode(), deadline_s)
    return subprocess.CompletedProcess(argv, done.returncode, done.stdout.decode(), done.stderr.decode())


def run_agent(
    argv: Sequence[str], unpacked: Path, stdin: bytes, deadline_s: float
) -> subprocess.CompletedProcess[bytes]:
    """The agent of argv (interpreter, its options, FOLDER, VERB); `unpacked`: a folder with the same agent."""
    if not FORKS:
        return subprocess.run(argv, input=stdin, capture_output=True, timeout=deadline_s, check=False)
    *interpreter, folder, verb = argv
    return _forked(
        _server(tuple(interpreter), str(unpacked)), [folder, verb], Path.cwd(), os.environ, stdin, deadline_s
    )


def _forked(
    server: str, argv: Sequence[str], cwd: Path, env: Mapping[str, str], stdin: bytes, deadline_s: float
) -> subprocess.CompletedProcess[bytes]:
    with ExitStack() as stack:
        given, out, err = (stack.enter_context(tempfile.TemporaryFile()) for _ in range(3))
        given.write(stdin)
        given.seek(0)
        call = json.dumps({"argv": argv, "cwd": str(cwd), "env": dict(env)}).encode()
        code = _ended(server, call, [each.fileno() for each in (given, out, err)], deadline_s)
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess(list(argv), code, out.read(), err.read())


def _ended(server: str, call: bytes, streams: list[int], deadline_s: float) -> int:
    """The exit code, or minus the signal."""
    with socket.socket(socket.AF_UNIX) as connection, connection.makefile("r") as answers:
        connection.settimeout(deadline_s)
        connection.connect(server)
        connection.sendmsg([b"%d\n" % len(call)], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", streams))])
        connection.sendall(call)
        pid = int(answers.readline())
        try:
            return int(answers.readline())
        except TimeoutError as error:
            os.kill(pid, signal.SIGKILL)
            raise subprocess.TimeoutExpired(str(pid), deadline_s) from error


@cache
def _server(interpreter: tuple[str, ...], program: str) -> str:
    """Address of this worker's own; it ends when the worker does, with the pipe."""
    address = str(Path(tempfile.mkdtemp(prefix="gptctl-fork-")) / "socket")
    # Nothing of the test that comes first: a machine that ends takes all that has its HOME along.
    env = {"PATH": os.environ["PATH"], "HOME": pwd.getpwuid(os.getuid()).pw_dir, "PYTHONPATH": str(REPOSITORY)}
    server = subprocess.Popen(
        [*interpreter, str(SERVER), program, address],
        env=env,
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert server.stdout is not None and server.stdout.readline() == b"ready\n"
    _kept.append(server)
    return address
