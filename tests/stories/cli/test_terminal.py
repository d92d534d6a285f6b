"""The command line as a person has it: on a terminal, with a live view, Ctrl-C, and what is left afterwards."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import signal
import subprocess
import termios
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import pytest

from tests.conftest import Gptctl, gptctl_command
from tests.stories.conftest import starts


def take_terminal() -> None:
    """Makes standard input the controlling terminal of the new session, so that Ctrl-C typed there becomes SIGINT."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


class Terminal:
    """A command on a terminal of its own, with everything that appeared there so far in `shown`."""

    def __init__(self, *args: str, cwd: Path, env: Mapping[str, str] | None = None) -> None:
        self.master, slave = pty.openpty()
        self.shown = ""
        self.process = subprocess.Popen(
            gptctl_command(*args), stdin=slave, stdout=slave, stderr=slave, cwd=cwd, start_new_session=True,
            env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "120", **(env or {})},
            preexec_fn=take_terminal,  # noqa: PLW1509 - one ioctl, no lock
        )  # fmt: skip
        os.close(slave)

    def wait_for(self, text: str, deadline_s: float = 360) -> None:
        """Reads until the text (a regular expression) has appeared."""
        deadline = time.monotonic() + deadline_s
        while not re.search(text, self.shown):
            assert time.monotonic() < deadline, f"{text!r} did not appear in {self.shown[-2000:]!r}"
            assert self._read() or self.process.poll() is None, f"{text!r} never appeared in {self.shown[-2000:]!r}"

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def wait(self, deadline_s: float = 240) -> int:
        """The exit code, once everything has been read."""
        deadline = time.monotonic() + deadline_s
        while self.process.poll() is None:
            assert time.monotonic() < deadline, f"still running: {self.shown[-2000:]!r}"
            self._read()
        while self._read():
            pass
        return self.process.returncode

    def _read(self) -> bool:
        if not select.select([self.master], [], [], 0.1)[0]:
            return False
        with suppress(OSError):  # EIO: nobody has the other end open any more
            data = os.read(self.master, 65536)
            self.shown += data.decode(errors="replace")
            return bool(data)
        return False

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.master)


@pytest.fixture
def terminal(gptctl_home: Path, tmp_path: Path) -> Iterator[Callable[..., Terminal]]:
    """`terminal("run", ...)`; all end with the test."""
    opened: list[Terminal] = []

    def start(*args: str) -> Terminal:
        opened.append(Terminal(*args, cwd=tmp_path))
        return opened[-1]

    yield start
    for each in opened:
        each.close()


def test_no_is_an_answer(terminal: Callable[..., Terminal], gptctl_home: Path) -> None:
    screen = terminal("run", "quickstart", "--host", "local")
    screen.wait_for(r"Start a new run on local\? \[y/N\]")
    assert "800 steps" in screen.shown and "$0.00" in screen.shown
    screen.type("n\n")
    assert screen.wait() == 0
    assert "nothing was started" in screen.shown
    assert not (gptctl_home / "runs").exists()


@pytest.mark.nightly
@pytest.mark.usefixtures("known_machine")
def test_ctrl_c_detaches_and_the_training_goes_on_to_its_end(
    terminal: Callable[..., Terminal], gptctl: Gptctl, gptctl_home: Path, tiny: Callable[..., str]
) -> None:
    recipe = tiny(2000)
    screen = terminal("run", recipe, "--host", "local")
    screen.wait_for(r"Start a new run on local\?")
    screen.type("y\n")
    screen.wait_for(r"step [1-9][\d,]*/2,000")
    for part in ("acquire", "provision", "follow", "release", "loss ", "tok/s", "$0.00", "ETA"):
        assert part in screen.shown
    screen.type("\x03")
    time.sleep(0.3)
    screen.type("\x03")
    assert screen.wait() in (0, 130)
    (row,) = json.loads(gptctl("status", "--json").stdout)["runs"]
    assert (row["state"], row["seen"], row["outcome"]) == ("training", "live", None)

    again = gptctl("run", recipe, "--host", "local", "--yes")
    assert (again.returncode, again.stdout) == (2, "")
    assert f"gptctl resume {row['id']}" in again.stderr

    resumed = gptctl("resume", deadline_s=180)
    assert resumed.returncode == 0, resumed.stderr
    assert "\x1b" not in resumed.stdout + resumed.stderr
    assert starts(gptctl_home / "machine", row["id"]) == 1


@pytest.mark.nightly  # by day tests/unit/stages/test_lost_link.py leaves with Ctrl-C
@pytest.mark.usefixtures("known_machine")
def test_one_ctrl_c_says_how_to_go_on(
    terminal: Callable[..., Terminal], gptctl: Gptctl, tiny: Callable[..., str]
) -> None:
    screen = terminal("run", tiny(8000), "--host", "local", "--yes")
    screen.wait_for(r"step [1-9][\d,]*/8,000")
    screen.type("\x03")
    assert screen.wait() == 0
    (row,) = json.loads(gptctl("status", "--json").stdout)["runs"]
    for command in (f"gptctl logs {row['id']} -f", f"gptctl status {row['id']}", f"gptctl stop {row['id']}"):
        assert command in screen.shown
    stopped = gptctl("stop", "--yes", "--json", deadline_s=180)
    assert stopped.returncode == 0, stopped.stderr
    (row,) = json.loads(stopped.stdout)["runs"]
    assert (row["state"], row["outcome"]) == ("ended", "stopped")
    assert 0 < row["step"] < 8000


@pytest.mark.nightly
@pytest.mark.usefixtures("known_machine")
def test_sigterm_leaves_in_order(gptctl: Gptctl, gptctl_home: Path, tiny: Callable[..., str], tmp_path: Path) -> None:
    log = tmp_path / "run.log"
    with log.open("w") as out:
        process = subprocess.Popen(
            gptctl_command("run", tiny(6000), "--host", "local", "--yes"), stdout=out, stderr=out, cwd=tmp_path
        )
    deadline = time.monotonic() + 360
    while "step 10 " not in log.read_text():
        assert time.monotonic() < deadline and process.poll() is None, log.read_text()
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(120) == 0
    assert "the training continues" in log.read_text()
    assert gptctl("stop", "--yes", deadline_s=180).returncode == 0
