"""The real trainer under the real agent dies of one cause or another, starts again within its bound, and leaves the
losses of an unbroken run, bit for bit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.clock.waiting import until
from tests.support.files.repository import REPOSITORY
from tests.support.files.training_runs import losses, new_run, run_to_end, small_config
from tests.support.machines.agent_box import Box
from tests.support.machines.sshd import small_disk

pytestmark = pytest.mark.nightly

STEPS, EVERY, BOUND = 160, 40, 3
AFTER = EVERY + 15
"""A step after the first checkpoint and before the second."""
OPTIONS = {"steps": STEPS, "checkpoint_every": EVERY, "validate_every": EVERY}
LEFT_BYTES = 96 << 10
"""Of the full disk: enough for records, too little for a checkpoint."""
HELD = """
import os, time
def hold():
    open({reached!r}, "w").close()
    while not os.path.exists({go!r}):
        time.sleep(0.02)
"""
AT_A_STEP = """
import torch
calls, backward = [0], torch.Tensor.backward
def held(*arguments, **keywords):
    calls[0] += 1
    if calls[0] == {at} and not os.path.exists({go!r}):
        hold()
        {then}
    return backward(*arguments, **keywords)
torch.Tensor.backward = held
"""
IN_A_SAVE = f"""
fsync = os.fsync
def held(descriptor):
    if "step-{2 * EVERY:06}" in os.readlink("/proc/self/fd/%d" % descriptor):
        hold()
    return fsync(descriptor)
os.fsync = held
"""
CUDA_ERROR = 'raise RuntimeError("CUDA error: an illegal memory access was encountered")'


class Trainer:
    """One training on a small disk, held where its cause of death wants it."""

    def __init__(self, folder: Path, disk: Path) -> None:
        self.box, self.folder, self.disk = Box(disk), folder, disk
        self.reached, self.go = folder / "reached", folder / "go"
        self.run = self.box.root / "runs" / "r-1"

    def start(self, held: str) -> None:
        """Returns once it is held."""
        planted = self.folder / "planted"
        planted.mkdir()
        places = {"reached": str(self.reached), "go": str(self.go)}
        (planted / "sitecustomize.py").write_text(HELD.format(**places) + held.format(**places))
        config = small_config(self.folder / "run", **OPTIONS)
        request = self.box.train_request(
            "r-1",
            spec_ranks=1,
            spec_restarts=BOUND,
            spec_on_reboot="continue",
            spec_pythonpath=f"{planted}:{REPOSITORY}",
        )
        request["spec"]["config"] = json.dumps(json.loads(config.to_json()))
        self.box.call("start", **request)
        until(self.reached.exists)

    def power_cut(self) -> None:
        """Everything is killed, another boot begins, and the hook's program runs with nobody there."""
        self.box.kill_everything()
        self.go.touch()
        state = self.box.folder() / "state.json"
        known = json.loads(state.read_text())
        known["program"]["boot_id"] = "the boot before"
        state.write_text(json.dumps(known))
        hook = subprocess.run(self.box.argv("boot"), stdin=subprocess.DEVNULL, check=False, timeout=240)
        assert hook.returncode == 0


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> dict[int, float]:
    folder = new_run(tmp_path_factory.mktemp("unbroken") / "run", **OPTIONS)
    assert run_to_end(folder) == 0
    return losses(folder)


@pytest.fixture
def trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Trainer]:
    with small_disk(tmp_path / "disk", 48 << 20) as disk, monkeypatch.context() as here:
        here.setenv("PATH", str(tmp_path / "nothing"))  # no hook at the boot of the computer that tests
        found = Trainer(tmp_path, disk)
        yield found
        found.box.end()


def killed(trainer: Trainer) -> None:
    trainer.start(at_a_step())
    os.kill(trainer.box.ranks()[0], signal.SIGKILL)
    trainer.go.touch()


def cuda_error(trainer: Trainer) -> None:
    trainer.start(at_a_step(CUDA_ERROR))
    trainer.go.touch()


def full_disk(trainer: Trainer) -> None:
    """No save succeeds any more, the last one neither; then room is made."""
    trainer.start(at_a_step())
    filler, disk = trainer.disk / "filler", os.statvfs(trainer.disk)
    filler.write_bytes(bytes(disk.f_bavail * disk.f_frsize - LEFT_BYTES))
    trainer.go.touch()
    until((trainer.box.folder() / "deaths.jsonl").exists)
    filler.unlink()


def reboot(trainer: Trainer) -> None:
    trainer.start(at_a_step())
    trainer.power_cut()


def reboot_in_a_save(trainer: Trainer) -> None:
    """The second checkpoint is half on the disk: the training goes on from the first."""
    trainer.start(IN_A_SAVE)
    assert [path for path in (trainer.run / "checkpoints").iterdir() if f"step-{2 * EVERY:06}" in path.name]
    assert not (trainer.run / "checkpoints" / f"step-{2 * EVERY:06}").exists()
    trainer.power_cut()


def at_a_step(then: str = "pass") -> str:
    """Held at the first of the two micro-batches of step AFTER."""
    return AT_A_STEP.replace("{at}", str(2 * AFTER - 1)).replace("{then}", then)


@pytest.mark.parametrize(
    ("cause", "words"),
    [
        (killed, "killed by SIGKILL"), (cuda_error, "CUDA error: an illegal memory access"),
        (full_disk, "No space left on device"), (reboot, "the machine was rebooted"),
        (reboot_in_a_save, "the machine was rebooted"),
    ],
)  # fmt: skip
def test_the_losses_are_those_of_an_unbroken_run(
    trainer: Trainer, unbroken: dict[int, float], cause: Callable[[Trainer], None], words: str
) -> None:
    cause(trainer)
    ended = trainer.box.wait()
    assert ended["outcome"] == "finished", ended
    assert [each["number"] for each in ended["deaths"]] == [1] and words in ended["deaths"][0]["reason"]
    assert trainer.box.starts() == 2
    assert losses(trainer.run) == unbroken
