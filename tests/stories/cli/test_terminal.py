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
import sys
import termios
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import pytest

from tests.conftest import Gptctl, gptctl_command
from tests.stories.conftest import starts, write_tiny
from tests.support.files.repository import REPOSITORY
from tests.support.machines import known_interpreter, programs


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


class Left:
    """A finished run, and gptctl to look at it with."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = folder / "home"
        write_tiny(folder / "tiny.toml", 80)
        known_interpreter.plant(self.home / "machine")
        self.run = self.gptctl("run", "tiny.toml", "--host", "local", "--yes", "--name", "my first", "--label", "a=b")
        (self.row,) = json.loads(self.gptctl("status", "--json").stdout)["runs"]

    def gptctl(self, *args: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "GPTCTL_HOME": str(self.home), "OMP_NUM_THREADS": "1", "HOME": str(self.folder)}
        environment["PYTHONPATH"] = str(REPOSITORY)
        return programs.run_gptctl(*args, cwd=self.folder, env=environment, deadline_s=720)


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory) -> Left:
    """One tiny training for all the looks at what it left."""
    return Left(tmp_path_factory.mktemp("left"))


def test_the_result_is_on_stdout_and_the_conversation_on_stderr(left: Left) -> None:
    assert left.run.returncode == 0, left.run.stderr
    first, *rest = left.run.stdout.splitlines()
    assert first.startswith(f"{left.row['id']}  finished  step 80/80  loss ")
    assert any(line.startswith("best: ") for line in rest) and any("sample: def " in line for line in rest)
    assert "acquire: done" in left.run.stderr and "release: done" in left.run.stderr
    assert "\x1b" not in left.run.stdout + left.run.stderr


def test_status_has_one_row_with_name_and_labels(left: Left) -> None:
    assert (left.row["name"], left.row["labels"], left.row["outcome"]) == ("my first", {"a": "b"}, "finished")
    assert left.row["val_loss"] is not None and left.row["safe_step"] == 80
    done = left.gptctl("status", "my first")
    assert done.returncode == 0, done.stderr
    assert {left.row["id"], "finished", "80/80"} <= set(done.stdout.split())


def test_logs_and_metrics(left: Left) -> None:
    assert "step 80" in left.gptctl("logs").stdout
    assert left.gptctl("logs", "-f").stdout == left.gptctl("logs").stdout
    steps = [json.loads(line)["step"] for line in left.gptctl("logs", "--metrics").stdout.splitlines()]
    assert steps == sorted(set(steps)) and steps[-1] == 80


def test_fetch_once_more_to_a_folder_of_ones_own(left: Left) -> None:
    to = left.folder / "fetched here"
    done = left.gptctl("fetch", "--to", str(to), "--json")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert (answer["run"], answer["to"]) == (left.row["id"], str(to))
    assert set(answer["checkpoints"][0]) >= {"step", "path", "size_bytes", "verified"}
    assert answer["cost"]["cost_usd"] == 0
    assert {"metrics.jsonl", "train.log", "cost.json"} <= {path.name for path in to.iterdir()}
    assert left.gptctl("fetch", "--to", str(to)).returncode == 0
    wrong = left.gptctl("fetch", "--step", "7")
    assert wrong.returncode == 2 and "no checkpoint of step 7" in wrong.stderr


def test_cost_of_one_and_of_all(left: Left) -> None:
    (cost,) = json.loads(left.gptctl("cost", "--json").stdout)["runs"]
    assert {"id", "cost_usd", "by_stage", "usd_per_billion_tokens", "gpu_hours", "energy_kwh", "co2e_kg"} <= set(cost)
    assert cost["gpu_hours"] == 0 and cost["energy_kwh"] > 0
    assert left.row["id"] in left.gptctl("cost", left.row["id"]).stdout


def text_of(sample: dict[str, object]) -> dict[str, object]:
    """A sample without its speed."""
    return {key: value for key, value in sample.items() if key != "tokens_per_second"}


@pytest.mark.nightly
def test_a_model_that_was_fetched_writes(left: Left) -> None:
    done = left.gptctl("sample", "--prompt", "import ", "--tokens", "20", "--seed", "3", "--json")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["samples"][0]["text"].startswith("import ") and answer["samples"][0]["tokens"] == 20
    there = left.gptctl("sample", "--prompt", "import ", "--tokens", "20", "--seed", "3", "--json", "--on-host")
    assert [text_of(each) for each in json.loads(there.stdout)["samples"]] == [
        text_of(each) for each in answer["samples"]
    ]


def test_an_ended_run_is_over(left: Left) -> None:
    resumed = left.gptctl("resume")
    assert resumed.returncode == 0 and "finished" in resumed.stdout
    stopped = left.gptctl("stop")
    assert stopped.returncode == 0 and "ended already" in stopped.stderr
    released = left.gptctl("release")
    assert released.returncode == 0, released.stderr


@pytest.mark.nightly
def test_a_new_run_goes_on_from_it(left: Left) -> None:
    recipe = str(left.folder / "tiny.toml")
    longer = ("--resume-from", "my first", "--set", f"train.tokens={160 * 256}")
    done = left.gptctl("run", recipe, "--host", "local", "--yes", *longer)
    assert done.returncode == 0, done.stderr
    events = (left.home / "runs" / json.loads(left.gptctl("status", "--json").stdout)["runs"][0]["id"]) / "events.jsonl"
    assert "resumed" in [json.loads(line)["event"] for line in events.read_text().splitlines()]


def test_check_of_this_computer_and_of_host_local(left: Left) -> None:
    here = json.loads(left.gptctl("check", "--json").stdout)
    assert {"versions", "ssh", "rsync", "keys", "ledger", "inventory", "disk", "clock"} <= {
        each["what"] for each in here["checks"]
    }
    host = left.gptctl("check", "local", "--recipe", "quickstart", "--json")
    found = {each["what"]: each for each in json.loads(host.stdout)["checks"]}
    assert host.returncode == 0, host.stdout
    assert {found[name]["level"] for name in ("reach", "clock", "python", "computes", "disk")} == {"ok"}
    assert "torch" in found["computes"]["found"] and "quickstart" in found["disk"]["found"]


def test_ssh_to_local_runs_a_command_here(left: Left) -> None:
    done = left.gptctl("ssh", "local", "--", sys.executable, "-c", "print('a b', 'it''s')")
    assert (done.returncode, done.stdout) == (0, "a b its\n")
