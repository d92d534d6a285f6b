"""The laptop's side of the agent, on this machine and over a real sshd alike."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from orchestrator.core.checkpoints.file_entry import FileEntry
from orchestrator.core.errors import AgentError, GptctlError, MachineUnfit
from orchestrator.core.ports import Result, Shell
from orchestrator.remote.agent_client.answers import checkpoint as checked
from orchestrator.remote.agent_client.client import Agent, Checkpoint, Data, Ended, Heartbeat
from orchestrator.remote.agent_client.package import agent_package, agent_sources
from orchestrator.remote.shell.local_shell import LocalShell
from orchestrator.remote.shell.ssh_shell import connect
from tests.support.files.canary import below, holders
from tests.support.machines.agent_box import Box
from tests.support.machines.sshd import Sshd

RUN = "r-1"


class CountingShell:
    """The shell it wraps, counting what crosses it."""

    def __init__(self, shell: Shell) -> None:
        self.shell = shell
        self.address = shell.address
        self.commands: list[tuple[str, ...]] = []
        self.puts: list[str] = []

    def run(self, argv: Sequence[str], *, stdin: bytes = b"", deadline_s: float = 30.0) -> Result:
        self.commands.append(tuple(argv))
        return self.shell.run(argv, stdin=stdin, deadline_s=deadline_s)

    def lines(
        self, argv: Sequence[str], *, stdin: bytes = b"", silence_s: float = 10.0, pulse_s: float = 0.0
    ) -> AbstractContextManager[Iterator[bytes]]:
        self.commands.append(tuple(argv))
        return self.shell.lines(argv, stdin=stdin, silence_s=silence_s, pulse_s=pulse_s)

    def put(self, local: Path, remote: str, *, mode: int = 0o644, deadline_s: float = 120.0) -> None:
        self.puts.append(remote)
        self.shell.put(local, remote, mode=mode, deadline_s=deadline_s)

    def get(self, remote: str, local: Path, *, deadline_s: float = 120.0) -> None:
        self.shell.get(remote, local, deadline_s=deadline_s)

    def openssh(self) -> Sequence[str] | None:
        return self.shell.openssh()

    def greeting(self) -> str:
        return self.shell.greeting()

    def close(self) -> None:
        self.shell.close()


@pytest.fixture(params=["local", "ssh"])
def counted(request: pytest.FixtureRequest, gptctl_home: Path, tmp_path: Path) -> Iterator[CountingShell]:
    """This machine, or an sshd reached as the CLI reaches it."""
    if request.param == "local":
        yield CountingShell(LocalShell())
        return
    with Sshd(tmp_path / "machines") as host:
        shell = connect(host.address(), known_hosts=gptctl_home / "known_hosts")
        yield CountingShell(shell)
        shell.close()


@pytest.fixture
def here(gptctl_home: Path) -> Shell:
    return LocalShell()


def program(text: str) -> dict[str, Any]:
    """The spec of a job that runs this Python text."""
    return {"argv": [sys.executable, "-c", text]}


def test_the_agent_is_shipped_once_and_then_every_call_is_one_round_trip(counted: CountingShell) -> None:
    agent = Agent(counted, "~/.gptctl")
    facts = agent.facts(sys.executable)
    assert len(counted.puts) == 1 and len(counted.commands) == 2
    assert agent.root == facts["root"] == f"{facts['home']}/.gptctl"
    assert facts["interpreters"][0]["path"] == sys.executable and facts["writable"]
    again = Agent(counted, "~/.gptctl")
    again.facts()
    again.status()
    assert len(counted.puts) == 1 and len(counted.commands) == 4


def test_follow_ships_the_agent_too(counted: CountingShell) -> None:
    agent = Agent(counted, "~/.gptctl")
    with pytest.raises(AgentError) as refused, agent.follow(RUN, "train", {}) as lines:
        list(lines)
    assert refused.value.code == "no-such-run"
    assert len(counted.puts) == 1


def test_a_job_from_start_to_its_result(counted: CountingShell) -> None:
    agent = Agent(counted, "~/.gptctl")
    text = "import json, time\nfor n in range(3): print(json.dumps({'n': n}), flush=True); time.sleep(0.05)"
    started = agent.start("prepare", RUN, "d", program(text))
    assert (started.state, started.exit) == ("started", None)
    seen: list[dict[str, Any]] = []
    ended = agent.wait(RUN, "prepare", seen.append)
    assert seen == [{"n": 0}, {"n": 1}, {"n": 2}]
    assert (ended["outcome"], ended["result"]) == ("finished", {"n": 2})
    again = agent.start("prepare", RUN, "d", program(text))
    assert again.state == "ended" and again.exit == ended
    with agent.follow(RUN, "prepare", {"progress.jsonl": 9}, digest="d") as lines:
        kinds = list(lines)
    assert isinstance(kinds[0], Heartbeat) and isinstance(kinds[-1], Ended)
    assert kinds[1] == Data("progress.jsonl", 9, b'{"n": 1}\n{"n": 2}\n')
    assert agent.stop(RUN, "prepare") == {"state": "ended", "exit": ended}
    assert agent.release(RUN)["released"]


def test_a_job_that_says_nothing_is_left_at_a_heartbeat(counted: CountingShell) -> None:
    class Left(Exception):
        pass

    def leave() -> None:
        raise Left

    agent = Agent(counted, "~/.gptctl")
    agent.start("prepare", RUN, "d", program("import time; time.sleep(600)"))
    with pytest.raises(Left):
        agent.wait(RUN, "prepare", lambda line: None, "d", leave)
    assert agent.stop(RUN, "prepare", 5)["exit"]["outcome"] == "stopped"  # the link bears it


def test_secrets_reach_the_job_and_no_argv_environment_or_file(counted: CountingShell, tmp_path: Path) -> None:
    agent = Agent(counted, "~/.gptctl")
    canary = "canary-81f3a9"
    text = (
        "import json, subprocess, sys\nsecret = json.load(sys.stdin)['token']\n"
        "seen = subprocess.run(['sh', '-c', 'ps -eo args; cat /proc/[0-9]*/environ'], capture_output=True).stdout\n"
        "print(json.dumps({'got': secret[::-1], 'leaked': secret.encode() in seen, 'looked': b'GPTCTL_JOB' in seen}))"
    )
    agent.start("prepare", RUN, "d", program(text), {"token": canary})
    result = agent.wait(RUN, "prepare", lambda line: None)["result"]
    assert result == {"got": canary[::-1], "leaked": False, "looked": True}
    assert all(canary not in word for argv in counted.commands for word in argv)
    files = below(Path(agent.root))
    assert len(files) > 5 and not holders(canary, files)


def test_stop_and_renew_and_errors_arrive_as_words(counted: CountingShell) -> None:
    agent = Agent(counted, "~/.gptctl")
    agent.start("prepare", RUN, "d", program("import time; time.sleep(600)"))
    assert agent.renew(RUN, 7200, 600) == {"left_s": 600, "deadline_left_s": 600}
    assert agent.status(RUN)["runs"][RUN]["lease"]["left_s"] <= 600
    assert agent.stop(RUN, "prepare", 5)["exit"]["outcome"] == "stopped"
    for call in (lambda: agent.status("r-9"), lambda: agent.manifest("r-9"), lambda: agent.safe("r-9", 1, "x")):
        with pytest.raises(AgentError) as refused:
            call()
        assert refused.value.code in ("no-such-run", "no-such-checkpoint")
    with pytest.raises(AgentError, match="not a run id"):
        agent.start("prepare", "../x", "d", program(""))


def test_a_talkative_login_shell_is_no_answer(tmp_path: Path, gptctl_home: Path) -> None:
    with Sshd(tmp_path / "machines", env=["ENV=/dev/null"]) as host:
        login = host.folder / "login"
        login.write_text(login.read_text().replace("exec env", 'echo "Welcome to {fortune}"; exec env'))
        shell = connect(host.address(), known_hosts=gptctl_home / "known_hosts")
        box = Box(tmp_path)
        agent = Agent(shell, str(box.root))
        assert agent.facts()["root"] == str(box.root)
        agent.start("prepare", RUN, "d", program("print('{}')"))
        assert agent.wait(RUN, "prepare", lambda line: None)["outcome"] == "finished"
        shell.close()


@pytest.mark.parametrize("python", ["/no/such/python3", "no-such-python"])
def test_a_machine_without_python_is_unfit(counted: CountingShell, python: str) -> None:
    agent = Agent(counted, "~/.gptctl", python=python)
    with pytest.raises(MachineUnfit, match="cannot run its Python") as refused:
        agent.facts()
    assert "apt install python3" in refused.value.hint
    with pytest.raises(MachineUnfit), agent.follow(RUN, "train", {}) as lines:
        list(lines)


def test_an_old_python_is_unfit(here: Shell, tmp_path: Path) -> None:
    old = tmp_path / "python3"
    lie = "import sys; sys.version_info = (3, 6, 9); exec(sys.argv.pop(1))"
    old.write_text(f'#!/bin/sh\nshift 3\nexec {sys.executable} -c "{lie}" "$@"\n')
    old.chmod(0o755)
    with pytest.raises(MachineUnfit, match=r"is Python 3\.6; the agent needs 3\.8"):
        Agent(here, str(tmp_path / "root"), python=str(old)).facts()


def test_a_folder_that_cannot_be_made_is_said(here: Shell, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MachineUnfit, match=r"cannot make .*file/root/agent"):
        Agent(here, str(tmp_path / "file" / "root")).facts()


def test_a_read_only_home_is_said(here: Shell, small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(AgentError, match="Read-only file system") as refused:
        Agent(here, str(small_disk / "root")).facts()
    assert refused.value.code == "read-only" and "folder" in refused.value.hint


def test_a_full_disk_is_said_and_no_half_agent_stays(here: Shell, small_disk: Path) -> None:
    (small_disk / "ballast").write_bytes(b"x" * (1 << 20))
    with pytest.raises(GptctlError) as refused:
        Agent(here, str(small_disk / "root")).facts()
    assert "space" in refused.value.message.lower() or "full" in refused.value.message.lower()
    assert not list(small_disk.glob("root/agent/*.pyz"))


def test_a_full_disk_after_shipping_refuses_the_start(here: Shell, small_disk: Path) -> None:
    agent = Agent(here, str(small_disk / "root"))
    agent.ensure()
    free = small_disk.stat().st_blksize
    with (small_disk / "ballast").open("wb", buffering=0) as ballast, pytest.raises(OSError, match="No space"):
        while ballast.write(b"x" * free):
            pass
    with pytest.raises(AgentError) as refused:
        agent.start("prepare", RUN, "d", program("print('{}')"))
    assert refused.value.code == "disk-full"


def test_the_package_is_a_function_of_its_sources() -> None:
    package = agent_package()
    agent_package.cache_clear()
    assert agent_package() == package
    assert package.name.startswith("agent-") and len(package.name) == len("agent-0123456789abcdef.pyz")
    assert {"__main__.py", "agent/__main__.py", "trainer/run_files.py"} <= set(agent_sources())


GOOD = {
    "step": 10,
    "name": "step-000010",
    "files": {"model.safetensors": {"size_bytes": 7, "sha256": hashlib.sha256(b"weights").hexdigest()}},
    "manifest_sha256": "ab",
    "manifest_size_bytes": 120,
    "safe": False,
    "kept": True,
}


def test_a_checkpoint_from_the_machine_becomes_a_value() -> None:
    entry = FileEntry(7, hashlib.sha256(b"weights").hexdigest())
    assert checked(GOOD) == Checkpoint(10, "step-000010", {"model.safetensors": entry}, "ab", 120, kept=True)


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/b", "", ".", "..", ".ssh", "a\nb", "a\0b"])
def test_no_name_from_the_machine_leads_out_of_its_folder(name: str) -> None:
    entry = {"size_bytes": 1, "sha256": "x"}
    with pytest.raises(AgentError, match="not a plain file name"):
        checked({**GOOD, "files": {name: entry}})
    with pytest.raises(AgentError, match="is not the folder of step"):
        checked({**GOOD, "name": name})


def test_answers_that_are_none_are_said(here: Shell, tmp_path: Path) -> None:
    broken = tmp_path / "python3"
    broken.write_text("#!/bin/sh\necho something else\necho Segmentation fault >&2\nexit 139\n")
    broken.chmod(0o755)
    with pytest.raises(AgentError, match="ended with code 139 and no answer: Segmentation fault"):
        Agent(here, str(tmp_path / "root"), python=str(broken)).facts()


def test_the_checkpoints_of_a_run_are_listed_and_marked_safe(counted: CountingShell) -> None:
    agent = Agent(counted, "~/.gptctl")
    folder = Path(agent.root) / "runs" / RUN / "checkpoints" / "step-000010"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "MANIFEST.json").write_text(json.dumps({"files": GOOD["files"]}))
    (checkpoint,) = agent.manifest(RUN)
    assert (checkpoint.step, checkpoint.kept, checkpoint.safe) == (10, True, False)
    agent.safe(RUN, 10, checkpoint.manifest_sha256)
    assert agent.manifest(RUN)[0].safe
    with pytest.raises(AgentError, match="the manifest here is"):
        agent.safe(RUN, 10, "0" * 64)
