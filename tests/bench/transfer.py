"""How fast files move, beside plain rsync over ssh, in one call: a table on stdout, JSON by --json.

    python tests/bench/transfer.py                        # 1 GiB on loopback and over 40 ms; root
    python tests/bench/transfer.py --slow-mib 256 --rounds 1
    python tests/bench/transfer.py --only loopback

Loopback is an sshd of its own; 40 ms is a host in its own network namespace behind a relay that delays each packet
20 ms each way. Files lie in memory. "rsync" is `rsync -a -e ssh` with ssh's own choices and only the key, the port and
the known_hosts file given. Rounds alternate, the best of each side counts. Never a timed test.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from orchestrator.core.ports import Shell
from orchestrator.remote.shell.ssh_shell import connect
from orchestrator.remote.transfer.transfer import pull_file, push_file, push_tree
from tests.bench.figure import CannotRun, Figure, not_measured
from tests.support.machines.namespaces import NamespaceHost
from tests.support.machines.sshd import Machine, Sshd

MIB = 1 << 20
DELAY_S = 0.020
SMALL_FILES, SMALL_BYTES = 500, 4096
NEEDS_ROOT = "needs root, for a network namespace behind a slow link"


@dataclass(frozen=True)
class Row:
    """One line of the table. `aim` in words, `met` None where none was set."""

    name: str
    seconds: float
    baseline_s: float | None = None
    megabytes: float | None = None
    aim: str = ""
    met: bool | None = None

    @property
    def text(self) -> str:
        rate = f"{self.megabytes / self.seconds:8.1f} MB/s" if self.megabytes else " " * 13
        ratio = (
            f"rsync {self.baseline_s:7.2f} s  {self.baseline_s / self.seconds:5.2f}x" if self.baseline_s else " " * 24
        )
        verdict = "" if self.met is None else "met" if self.met else "NOT met"
        return f"{self.name:42} {self.seconds:7.3f} s {rate}  {ratio}  {self.aim:18} {verdict}"

    def figure(self) -> Figure:
        """For `make bench`: seconds, against rsync where it was measured."""
        return Figure(
            self.name, self.seconds, "s", self.aim, self.met, self.baseline_s, "rsync -a" if self.baseline_s else "",
            self.baseline_s / self.seconds if self.baseline_s else None,
        )  # fmt: skip


def stopwatch(act: Callable[[], object]) -> float:
    began = time.perf_counter()
    act()
    return time.perf_counter() - began


@contextmanager
def machine(kind: str, folder: Path) -> Iterator[Sshd | NamespaceHost]:
    """An sshd on loopback, or a host behind a slow link."""
    with Sshd(folder / "h") if kind == "loopback" else NamespaceHost(folder / "h", delay_s=DELAY_S) as host:
        yield host


def plain_rsync(host: Machine, folder: Path, source: Path, destination: str) -> list[str]:
    known = folder / "plain_known_hosts"
    if not known.exists():
        key = subprocess.run(["ssh-keyscan", "-p", str(host.port), host.host], capture_output=True, check=True)
        known.write_bytes(key.stdout)
    ssh = f"ssh -F none -p {host.port} -i {host.key_file} -o UserKnownHostsFile={known} -o StrictHostKeyChecking=yes"
    return ["rsync", "-a", "-e", ssh, str(source), f"{host.user}@{host.host}:{destination}"]


def random_file(path: Path, size_bytes: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        for _ in range(size_bytes // MIB):
            file.write(os.urandom(MIB))
        file.write(os.urandom(size_bytes % MIB))
    return path


def big_file(host: Machine, shell: Shell, folder: Path, size_bytes: int, rounds: int) -> tuple[float, float, float]:
    """Best seconds of rsync up, ours up, ours down."""
    source = random_file(folder / "big", size_bytes)
    rsync, up, down = [], [], []
    for _ in range(rounds):
        rsync.append(
            stopwatch(lambda: subprocess.run(plain_rsync(host, folder, source, "by-rsync"), check=True, timeout=240))
        )
        shell.run(["rm", "by-rsync"])
        up.append(stopwatch(lambda: push_file(shell, source, "by-us")))
        digest = shell.run(["sha256sum", "by-us"], deadline_s=120).stdout.split()[0].decode()
        back = partial(pull_file, shell, "by-us", folder / "back", size_bytes=size_bytes, sha256=digest)
        down.append(stopwatch(back))
        shell.run(["rm", "by-us"])
        (folder / "back").unlink()
    source.unlink()
    return min(rsync), min(up), min(down)


def small_files(host: Machine, shell: Shell, folder: Path, rounds: int) -> tuple[float, float, float]:
    """Best seconds of rsync, ours, and ours with nothing changed, for 500 files of 4 KB."""
    source = folder / "small"
    for number in range(SMALL_FILES):
        random_file(source / f"d{number % 10}" / f"{number}.py", SMALL_BYTES)
    names = [path.relative_to(source).as_posix() for path in source.rglob("*.py")]
    rsync, push, again = [], [], []
    for _ in range(rounds):
        rsync.append(
            stopwatch(lambda: subprocess.run(plain_rsync(host, folder, source, "t-rsync"), check=True, timeout=60))
        )
        push.append(stopwatch(lambda: push_tree(shell, source, "t-us", names, lambda _: None)))
        again.append(stopwatch(lambda: push_tree(shell, source, "t-us", names, lambda _: None)))
        shell.run(["rm", "-r", "t-rsync", "t-us"])
    return min(rsync), min(push), min(again)


def measure(kind: str, size_bytes: int, rounds: int) -> Iterator[Row]:
    memory = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with tempfile.TemporaryDirectory(dir=memory, prefix="gptctl-bench-") as name:
        folder = Path(name)
        with machine(kind, folder) as host:
            shell = connect(host.address(), known_hosts=folder / "pins")
            megabytes, wanted = size_bytes / 1e6, 1.0 if kind == "loopback" else 1.5
            rsync, up, down = big_file(host, shell, folder, size_bytes, rounds)
            label = f"{kind}: {size_bytes // MIB} MiB"
            yield Row(f"{label} up", up, rsync, megabytes, f"at least {wanted}x", rsync / up >= wanted)
            yield Row(f"{label} down", down, rsync, megabytes)
            rsync, push, again = small_files(host, shell, folder, rounds * 2)
            aim = "" if kind == "loopback" else "at most 1.5 s"
            yield Row(f"{kind}: {SMALL_FILES} files of 4 KB", push, rsync, None, aim, push <= 1.5 if aim else None)
            aim = "at most 1 s" if kind == "loopback" else ""
            yield Row(f"{kind}: the same, nothing changed", again, None, None, aim, again <= 1.0 if aim else None)
            shell.close()


def figures(*, quick: bool) -> Iterator[Figure]:
    """The rows of `make bench`."""
    if shutil.which("rsync") is None:
        raise CannotRun("rsync is missing: it is what this is measured against")
    for kind in ("loopback", "40 ms"):
        if kind == "40 ms" and os.geteuid() != 0:
            yield not_measured("transfer over 40 ms", NEEDS_ROOT)
            continue
        size_bytes = (256 if quick else 1024) * MIB
        for row in measure(kind, size_bytes, 1 if quick else 2):
            yield row.figure()


def main() -> None:
    """Prints the figures; exits 0 whether the aims are met or not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=1024, help="size of the big file on loopback")
    parser.add_argument("--slow-mib", type=int, default=1024, help="and over 40 ms")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--only", choices=["loopback", "40 ms"])
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    if shutil.which("rsync") is None:
        raise SystemExit("rsync is missing: it is what this is measured against")
    rows = []
    for kind, mib in (("loopback", given.mib), ("40 ms", given.slow_mib)):
        for row in measure(kind, mib * MIB, given.rounds) if given.only in {None, kind} else ():
            print(row.text, flush=True)
            rows.append(row)
    if given.json:
        given.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")


if __name__ == "__main__":
    main()
