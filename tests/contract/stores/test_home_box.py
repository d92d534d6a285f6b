"""A home box keeps what a machine stores: two real agents, a real sshd between them, real ssh. The machine's sshd
honours restricted keys, as everywhere in the world."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.agent.system import memory_files, processes
from orchestrator.remote.shell.key_pairs import new_key_pair
from tests.contract.stores.test_offload_urls import RUN, checkpoint, safe, store, train
from tests.support.clock.waiting import until
from tests.support.files.canary import below, content, holders, said_in_command_lines
from tests.support.machines.agent_box import AGENT_PYTHON, Box
from tests.support.machines.sshd import CONFIG, LIMITS, Sshd

KINDS = ("store", "line", "keep-key", "keep-hosts")
MARK = "gptctl-store-r-1"


class Pair:
    """A machine that trains, with an sshd, and the box that is to keep its checkpoints."""

    def __init__(self, folder: Path, sshd: Sshd) -> None:
        self.sshd = sshd
        self.machine, self.nas = Box(folder / "machine"), Box(folder / "nas")
        self.kept = folder / "kept" / RUN
        self.authorized = sshd.home / ".ssh" / "authorized_keys"
        self.key = new_key_pair("r-1")

    @property
    def command(self) -> str:
        return f"{AGENT_PYTHON} -I -S {self.machine.program} link {RUN}"

    def start_offload(self) -> None:
        public = " ".join(self.key.public.split()[:2])
        line = f'restrict,command="{self.command}" {public}'
        spec = {"store": f"ssh://nas{self.kept}", "then": "end"}
        self.machine.call("start", job="offload", run=RUN, digest="o", spec=spec,
                          secrets={"home": {"authorized": line}, "lasts_s": 600})  # fmt: skip

    def start_keep(self, host_key: str | None = None) -> None:
        kind, text, *_ = (host_key or (self.sshd.folder / "hostkey.pub").read_text()).split()
        spec = {"folder": str(self.kept), "host": self.sshd.host, "port": self.sshd.port, "user": self.sshd.user,
                "command": "echo this is not what a restricted key may run"}  # fmt: skip
        secrets = {"key": self.key.private, "known_hosts": f"gptctl-machine {kind} {text}\n"}
        self.nas.call("start", job="keep", run=RUN, digest="k", spec=spec, secrets=secrets)

    def keep_state(self) -> dict[str, Any]:
        return dict(self.nas.call("status", run=RUN)["runs"][RUN]["keep"] or {})

    def ssh_clients(self) -> list[int]:
        return [pid for pid in self.nas.processes(RUN, "keep") if content(Path(f"/proc/{pid}/comm")) == b"ssh\n"]

    def index(self) -> dict[str, Any]:
        return dict(json.loads((self.kept / "CHECKPOINTS.json").read_text()))

    def end(self) -> None:
        for box in (self.nas, self.machine):
            box.end()
            for folder in (box.root / "jobs").glob("*/*"):
                for kind in KINDS:
                    Path(memory_files.path(kind, str(folder))).unlink(missing_ok=True)


@pytest.fixture
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pair]:
    with Sshd(tmp_path, name="sshd") as sshd:
        keys = f"AuthorizedKeysFile {sshd.home}/.ssh/authorized_keys"
        plain = CONFIG.replace("ForceCommand {folder}/login\n", "").replace(
            "AuthorizedKeysFile {folder}/authorized_keys", keys
        )
        filled = plain.format(port=sshd.port, address=sshd.host, folder=sshd.folder, limits=LIMITS)
        (sshd.folder / "sshd_config").write_text(filled)
        sshd.restart()
        monkeypatch.setenv("HOME", str(sshd.home))
        pair = Pair(tmp_path, sshd)
        yield pair
        pair.end()


def test_every_checkpoint_comes_home_and_what_is_not_kept_leaves_it(pair: Pair) -> None:
    others = "ssh-ed25519 AAAAmine me@home\n"
    pair.authorized.parent.mkdir()
    pair.authorized.write_text(others)
    with said_in_command_lines(pair.key.private.splitlines()[1]) as said:
        train(pair.machine)
        pair.start_offload()
        pair.start_keep()
        until(lambda: store(pair.machine)["probed"])
        for step in (10, 20, 30):
            checkpoint(pair.machine, step, 1_500_000, best=step == 20)
            until(lambda step=step: step in safe(pair.machine))
        assert MARK in pair.authorized.read_text() and pair.authorized.read_text().startswith(others)
        pair.machine.call("stop", run=RUN, job="train", grace_s=5)
        until(lambda: store(pair.machine)["finished"])
        ended = pair.nas.wait(RUN, "keep")
    assert said == set()
    assert ended["outcome"] == "finished", ended
    places = {
        str(path.relative_to(pair.kept)) for path in pair.kept.rglob("*") if path.is_file() and "step" in str(path)
    }
    assert places == {f"step-{step:06d}/{name}" for step in (20, 30) for name in ("MANIFEST.json", "model.safetensors")}
    model = pair.machine.root / "runs" / RUN / "checkpoints" / "step-000030" / "model.safetensors"
    assert (pair.kept / "step-000030" / "model.safetensors").read_bytes() == model.read_bytes()
    assert [each["step"] for each in pair.index()["checkpoints"]] == [20, 30]
    assert pair.index()["ended"]["outcome"] == "stopped"
    assert pair.authorized.read_text() == others, "the key is let in no more, and other lines are as they were"
    assert not holders("BEGIN OPENSSH PRIVATE", below(pair.nas.root, pair.machine.root, pair.kept))
    for kind in KINDS:
        for box in (pair.nas, pair.machine):
            assert not [
                path for path in (box.root / "jobs").glob("*/*") if os.path.exists(memory_files.path(kind, str(path)))
            ]


def test_the_key_lets_in_for_that_one_command(pair: Pair, tmp_path: Path) -> None:
    train(pair.machine)
    pair.start_offload()
    until(pair.authorized.exists)
    key = tmp_path / "stolen"
    key.write_text(pair.key.private)
    key.chmod(0o600)
    ssh = ["ssh", "-F", "none", "-i", str(key), "-p", str(pair.sshd.port), "-o", "IdentitiesOnly=yes", "-o",
           "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR", "-o",
           "ExitOnForwardFailure=yes", f"{pair.sshd.user}@{pair.sshd.host}"]  # fmt: skip
    asked = [*ssh, "cat /etc/hostname"]
    with subprocess.Popen(asked, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as caller:
        assert caller.stdin and caller.stdout
        assert caller.stdout.readline() == b"PUT /probe HTTP/1.1\r\n"
        caller.stdin.close()  # only now: whoever hangs up at once may be told nothing
        assert Path("/etc/hostname").read_bytes() not in caller.stdout.read()
    forwarded = subprocess.run(
        [*ssh[:-1], "-N", "-R", "127.0.0.1:0:127.0.0.1:22", ssh[-1]], capture_output=True, timeout=120, check=False
    )
    assert forwarded.returncode and b"forwarding" in forwarded.stderr.lower(), forwarded.stderr


@pytest.mark.nightly
@pytest.mark.parametrize("what", ["ssh", "keep", "keep-and-supervisor", "sshd", "offload"])
def test_whatever_dies_the_checkpoints_come_home(pair: Pair, what: str) -> None:
    train(pair.machine)
    pair.start_offload()
    pair.start_keep()
    until(lambda: store(pair.machine)["probed"])
    checkpoint(pair.machine, 10, 60_000_000)
    until(lambda: bool(list(pair.kept.rglob(".part-*"))) or 10 in safe(pair.machine))
    _kill(pair, what)
    if what == "keep-and-supervisor":  # nobody is left there: whoever follows starts it again
        pair.start_keep()
    until(lambda: 10 in safe(pair.machine))
    content = (pair.machine.root / "runs" / RUN / "checkpoints" / "step-000010" / "model.safetensors").read_bytes()
    assert (pair.kept / "step-000010" / "model.safetensors").read_bytes() == content
    pair.machine.call("stop", run=RUN, job="train", grace_s=5)
    until(lambda: store(pair.machine)["finished"])
    assert pair.nas.wait(RUN, "keep")["outcome"] == "finished"
    assert not list(pair.kept.rglob(".part-*"))


def _kill(pair: Pair, what: str) -> None:
    if what == "sshd":
        pair.sshd.kill()
        pair.sshd.start()
        return
    box, job = (pair.machine, "offload") if what == "offload" else (pair.nas, "keep")
    pids = pair.ssh_clients() if what == "ssh" else box.processes(RUN, job)
    if what == "keep-and-supervisor":
        pids = [box.state(RUN, job)["supervisor"]["pid"], *pids]
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


@pytest.mark.nightly
def test_a_box_that_is_away_is_waited_for_and_said(pair: Pair) -> None:
    train(pair.machine)
    pair.start_offload()
    checkpoint(pair.machine, 10)
    until(lambda: "does not call" in (store(pair.machine)["problem"] or ""))
    assert safe(pair.machine) == []
    pair.start_keep()
    until(lambda: 10 in safe(pair.machine))
    assert store(pair.machine)["problem"] is None


def test_a_stranger_at_the_machines_address_gets_nothing(pair: Pair, tmp_path: Path) -> None:
    train(pair.machine)
    pair.start_offload()
    stranger = new_key_pair("stranger").public
    pair.start_keep(host_key=stranger)
    until(lambda: "verification failed" in (pair.keep_state().get("problem") or "").lower())
    assert not list(pair.kept.iterdir())


def test_a_full_disk_at_home_is_said_with_the_figure_before_the_first_byte(pair: Pair) -> None:
    train(pair.machine)
    pair.start_offload()
    pair.start_keep()
    until(lambda: store(pair.machine)["probed"])
    free = os.statvfs(pair.kept).f_bavail * os.statvfs(pair.kept).f_frsize
    checkpoint(pair.machine, 10, grown_to=free)
    until(lambda: "GB are to come" in (store(pair.machine)["problem"] or ""))
    assert "the home box" in store(pair.machine)["problem"]
    assert not list(pair.kept.rglob(".part-*")) and safe(pair.machine) == []


def test_release_lets_the_key_in_no_more_and_ends_the_calls(pair: Pair) -> None:
    train(pair.machine)
    pair.start_offload()
    pair.start_keep()
    until(lambda: store(pair.machine)["probed"])
    pair.machine.call("stop", run=RUN, job="train", grace_s=5)
    for box in (pair.machine, pair.nas):
        assert box.call("release", run=RUN)["released"]
    assert MARK not in pair.authorized.read_text()
    assert not pair.nas.processes(RUN, "keep") and not pair.ssh_clients()
    until(lambda: not processes.is_alive(pair.nas.state(RUN, "keep").get("supervisor")))
