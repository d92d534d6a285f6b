"""What one command costs over SSH, and how soon a dead link is noticed: a table on stdout, JSON by --json.

    python tests/bench/network.py                        # loopback and 40 ms round trip; root

`ssh` is the plain client with a connection per command; Fabric is `Connection.run` as it comes. Medians of rounds that
alternate. A cut link drops every packet both ways; noticed means that a LinkLost was raised. Never a timed test.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import fabric

from orchestrator.core.errors import LinkLost
from orchestrator.remote.shell.ssh_shell import SshShell, connect
from orchestrator.remote.transfer.transfer import push_file
from tests.bench.figure import Figure, not_measured
from tests.bench.transfer import MIB, NEEDS_ROOT, Row, machine, random_file, stopwatch
from tests.support.machines.namespaces import NamespaceHost
from tests.support.machines.sshd import Machine, Sshd

NOTICE_WITHIN_S = 10.0


def latency(kind: str, host: Machine, folder: Path, rounds: int) -> Iterator[Row]:
    """One `true` by each way."""
    pins = folder / "pins"
    connecting = []
    for _ in range(rounds):
        connecting.append(stopwatch(lambda: connect(host.address(), known_hosts=pins).close()))
    shell = connect(host.address(), known_hosts=pins)
    settings = {"key_filename": str(host.key_file)}
    theirs = fabric.Connection(host.host, user=host.user, port=host.port, connect_kwargs=settings)
    ways: dict[str, Callable[[], object]] = {
        "ours": lambda: shell.run(["true"]),
        "ssh": lambda: subprocess.run([*shell.openssh(), "true"], check=True),
        "fabric": lambda: theirs.run("true", in_stream=False, hide=True),
    }
    ways["fabric"]()
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, act in ways.items():
            seconds[name].append(stopwatch(act))
    yield Row(f"{kind}: connect", statistics.median(connecting))
    for name, each in seconds.items():
        yield Row(f"{kind}: one command, {name}", statistics.median(each))
    theirs.close()
    shell.close()


def noticing(kind: str, host: Sshd | NamespaceHost, folder: Path) -> Iterator[Row]:
    """Seconds from the cut to the LinkLost, of a waiting command, a silent stream and a push under way."""
    source = random_file(folder / "big", 1024 * MIB)

    def waiting(shell: SshShell) -> None:
        shell.run(["sleep", "120"], deadline_s=120)

    def streaming(shell: SshShell) -> None:
        with shell.lines(["sleep", "120"]) as lines:
            next(lines)

    def pushing(shell: SshShell) -> None:
        push_file(shell, source, "big")

    for name, act in (("a waiting command", waiting), ("a silent stream", streaming), ("a push", pushing)):
        shell = connect(host.address(), known_hosts=folder / "pins")
        seconds = until_noticed(host, shell, act)
        yield Row(f"{kind}: cut noticed by {name}", seconds, aim="at most 10 s", met=seconds <= NOTICE_WITHIN_S)
        shell.close()


def until_noticed(host: Sshd | NamespaceHost, shell: SshShell, act: Callable[[SshShell], None]) -> float:
    """Half a second into the act, the link is cut."""
    cut_at: list[float] = []

    def cut() -> None:
        host.cut()
        cut_at.append(time.perf_counter())

    timer = threading.Timer(0.5, cut)
    timer.start()
    try:
        act(shell)
    except LinkLost:
        return time.perf_counter() - cut_at[0]
    finally:
        timer.join()
        host.heal()
    raise RuntimeError("the act ended before the link was cut")


def measure(kind: str, rounds: int) -> Iterator[Row]:
    """The rows of one kind of link."""
    memory = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with tempfile.TemporaryDirectory(dir=memory, prefix="gptctl-bench-") as name, machine(kind, Path(name)) as host:
        yield from latency(kind, host, Path(name), rounds)
        yield from noticing(kind, host, Path(name))


def figures(*, quick: bool) -> Iterator[Figure]:
    """The rows of `make bench`."""
    if os.geteuid() != 0:
        yield not_measured("network", NEEDS_ROOT)
        return
    for kind in ("40 ms",) if quick else ("loopback", "40 ms"):
        for row in measure(kind, 3 if quick else 7):
            yield row.figure()


def main() -> None:
    """Prints the figures; exits 0 whether the aims are met or not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    rows = []
    for kind in ("loopback", "40 ms"):
        for row in measure(kind, given.rounds):
            print(row.text, flush=True)
            rows.append(row)
    if given.json:
        given.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")


if __name__ == "__main__":
    main()
