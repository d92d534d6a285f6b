"""Fixtures for every test: a GPTCTL_HOME of its own, the real command line by subprocess, and real SSH machines."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

import hypothesis
import pytest

from orchestrator.remote.shell.ssh_shell import SshShell, connect
from tests.support.clock import bytecode, order, proof
from tests.support.clouds.s3_server import S3Server
from tests.support.files.repository import REPOSITORY
from tests.support.files.schemas import check_output
from tests.support.machines import cores, programs, sshd
from tests.support.machines.namespaces import NamespaceHost
from tests.support.machines.sshd import Sshd

# What a background job starts ignores Ctrl-C, and so would all that the tests start (a disposition outlives exec).
signal.signal(signal.SIGINT, signal.default_int_handler)
proof.shorten()
os.environ.pop("COLUMNS", None)  # a test runner's workers say how wide they are; what gptctl prints into a pipe is wide


# A landing meets the examples that the last one met; each night draws new ones. Neither judges how fast they are.
hypothesis.settings.register_profile("gate", deadline=None, derandomize=True)
hypothesis.settings.register_profile("night", deadline=None)
hypothesis.settings.load_profile("gate" if programs.FORKS else "night")


def pytest_configure() -> None:
    cores.pin_worker()


@pytest.hookimpl(tryfirst=True)
def pytest_collection(session: pytest.Session) -> None:
    bytecode.import_own_share(session.config)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items[:] = order.spread(items)


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> order.Scheduler:
    return order.Scheduler(config, log)


class Gptctl(Protocol):
    """Runs the real command line and returns what it said and how it ended."""

    def __call__(
        self,
        *args: str,
        stdin: str = "",
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        deadline_s: float = 480,
    ) -> subprocess.CompletedProcess[str]: ...


@pytest.fixture(autouse=True)
def umask_as_before() -> Iterator[None]:
    """What gptctl makes is private; a command that ran in this process leaves that to no later test."""
    before = os.umask(0o022)
    os.umask(before)
    yield
    os.umask(before)


@pytest.fixture
def gptctl_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty GPTCTL_HOME, and a HOME without the developer's ssh config, keys and known_hosts."""
    home = tmp_path / "gptctl-home"
    user = tmp_path / "user-home"
    user.mkdir()
    monkeypatch.setenv("GPTCTL_HOME", str(home))
    monkeypatch.setenv("HOME", str(user))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    return home


@pytest.fixture
def gptctl(gptctl_home: Path, tmp_path: Path) -> Gptctl:
    """`gptctl("status", "--json")`: .returncode, .stdout, .stderr. Runs in tmp_path unless told otherwise. What it
    prints with --json must be as `gptctl schema` says."""

    def call(
        *args: str,
        stdin: str = "",
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        deadline_s: float = 480,
    ) -> subprocess.CompletedProcess[str]:
        whole = {**os.environ, **(env or {})}
        done = programs.run_gptctl(*args, cwd=cwd or tmp_path, env=whole, stdin=stdin, deadline_s=deadline_s)
        check_output(args, done.returncode, done.stdout)
        return done

    return call


def gptctl_command(*args: str) -> list[str]:
    """The argv, for tests that start it by Popen and kill it."""
    return programs.gptctl_argv(*args)


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[Callable[..., Sshd]]:
    """`machines("box", ...)` starts a real sshd with its own address, host key and home; all end with the test."""
    with ExitStack() as stack:
        yield lambda name="box", **options: stack.enter_context(Sshd(tmp_path / "machines", name=name, **options))


@pytest.fixture
def box(machines: Callable[..., Sshd]) -> Sshd:
    """One real sshd machine."""
    return machines("box")


@pytest.fixture
def shell(box: Sshd, tmp_path: Path) -> Iterator[SshShell]:
    """A connection to the box, its key vouched for by fingerprint."""
    connection = connect(box.address(), known_hosts=tmp_path / "pins" / "known_hosts")
    yield connection
    connection.close()


@pytest.fixture
def rented(tmp_path: Path) -> Iterator[NamespaceHost]:
    """A whole host of its own, as a rented instance is: kill() ends all of it. Needs root."""
    with NamespaceHost(tmp_path / "machines") as host:
        yield host


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """One server for all tests of a worker: imported into two modules, the fixture would be two."""
    with S3Server(tmp_path_factory.mktemp("swift")) as server:
        yield server


@pytest.fixture
def s3(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """The server, with the environment set so that boto3 and gptctl find it and nothing else."""
    s3_server.use(monkeypatch)
    return s3_server


@pytest.fixture
def all_cores() -> Iterator[None]:
    """For tests about several cores: what they start may use every one of them."""
    cores.take_all()
    yield
    cores.pin_worker()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a file system of 1 MiB."""
    with sshd.small_disk(tmp_path / "small") as folder:
        yield folder
