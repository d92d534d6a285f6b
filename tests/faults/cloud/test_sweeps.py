"""Three arms on one rented machine, and what may go wrong in a night: as many arms are done as can be, no machine is
left, and the dollars are the cloud's. One row each; the arms done stand at its end."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from tests.faults.conftest import Rehearsal
from tests.faults.machine.test_machine import ranks
from tests.stories.conftest import wait_until
from tests.support.clouds.s3_server import S3Server
from tests.support.files.canary import command_lines
from tests.support.files.recipes import TOKENS_PER_STEP
from tests.support.machines.sshd import small_disk
from trainer.run_files import MANIFEST_FILE

pytestmark = pytest.mark.faults
STEPS, EVERY, ONE_RANK = 60, 20, "1xH100-simulated"
SWEEP = """
name = "rows"
baseline = "tiny.toml"
variants = {variants}
"""
ARM = f"""
extends = "tiny.toml"
name = "{{name}}"
[train]
tokens = {STEPS * TOKENS_PER_STEP}
"""
GOOD, LATE = "learning_rate = 2e-3\n", "learning_rate = 3e-3\n"
ALWAYS_FAILS = "learning_rate = 10.0\nweight_decay = 10.0\nmax_nonfinite_steps = 2\n"
"""Its weights grow a hundredfold in every step."""
LEFT_BYTES = 96 << 10
"""Of a full disk: enough for records, too little for a checkpoint."""


class Sweep:
    """A rehearsal with the files of a sweep; its queue and its arms as the machine has them."""

    def __init__(self, place: Rehearsal, **arms: str) -> None:
        self.place = place
        self.write(**arms)
        (place.folder / "rows.toml").write_text(SWEEP.format(variants=[f"{name}.toml" for name in arms]))

    def write(self, **arms: str) -> None:
        for name, train in arms.items():
            (self.place.folder / f"{name}.toml").write_text(ARM.format(name=name) + train)

    @property
    def words(self) -> tuple[str, ...]:
        return ("sweep", "run", "rows.toml", "--host", "cloud", "--yes")

    def run(self) -> int:
        return self.place.gptctl(*self.words).returncode

    def resume(self) -> int:
        return self.place.gptctl("sweep", "resume", "rows").returncode

    def jobs(self) -> list[Path]:
        """Of the trainings on the machine, the oldest first."""
        folders = self.place.cloud.state.glob("machines/*/home/.gptctl/jobs/*/train")
        return sorted(folders, key=lambda each: (each / "spec.json").stat().st_mtime)

    def ends_well(self, *, done: int, of: int = 3, machines: int = 1) -> dict[str, Any]:
        """The row's pass line. What the sweep says that it spent is what its machines cost, by the cloud's books."""
        place = self.place
        place.check(outcome=None)
        found = json.loads(place.gptctl("sweep", "status", "rows", "--json").stdout)
        states = [arm["state"] for arm in found["arms"]]
        place.figures[place.fault] += f"  arms {states.count('finished')}/{len(states)}"
        assert (states.count("finished"), len(states)) == (done, of), found
        assert len(found["machines"]) == machines == len(place.cloud.books()["instances"]), found
        assert found["spent_usd"] == pytest.approx(sum(each["cost_usd"] for each in found["machines"]))
        return dict(found)


@pytest.fixture
def sweep(rehearse: Callable[..., Rehearsal]) -> Callable[..., Sweep]:
    def make(fault: str, *, boot_s: float = 0.3, steps: int = STEPS, **arms: str) -> Sweep:
        """steps: of the baseline, the first arm."""
        place = rehearse(f"F42 {fault}", boot_s=boot_s, steps=steps, every=EVERY, machine=ONE_RANK)
        return Sweep(place, **(arms or {"good": GOOD, "late": LATE}))

    return make


def test_an_arm_that_always_fails(sweep: Callable[..., Sweep]) -> None:
    rows = sweep("a sweep: one arm always fails", bad=ALWAYS_FAILS, good=GOOD)
    assert rows.run() == 5, rows.place.said
    found = rows.ends_well(done=2)
    assert [arm["state"] for arm in found["arms"]] == ["finished", "failed", "finished"]
    assert "not finite" in found["arms"][1]["cause"], found


def test_the_machine_is_lost_between_two_arms(sweep: Callable[..., Sweep]) -> None:
    """On demand: nobody agreed to another machine, so it takes a word of yours."""
    rows = sweep("a sweep: the machine is lost between two arms")
    rows.place.cloud.inject(f"preempt@{STEPS}")
    assert rows.run() == 3, rows.place.said
    assert rows.place.cloud.fired() == ["preempt"] and "gptctl sweep resume" in rows.place.said
    assert rows.resume() == 0, rows.place.said
    rows.ends_well(done=3, machines=2)


def test_no_machine_can_be_had_after_one_was_lost(sweep: Callable[..., Sweep]) -> None:
    """Refused twice, and each time all arms stay as they are; then one machine for all of them."""
    rows = sweep("a sweep: lost its machine, then is refused another twice")
    rows.place.cloud.inject(f"preempt@{EVERY + 5}")
    assert rows.run() == 3, rows.place.said
    rows.place.cloud.inject("quota*2")
    assert [rows.resume(), rows.resume()] == [3, 3] and "gptctl sweep resume rows" in rows.place.said, rows.place.said
    assert rows.place.cloud.fired() == ["preempt", "quota", "quota"]
    assert rows.resume() == 0, rows.place.said
    rows.ends_well(done=3, machines=2)


def test_the_agent_is_killed_between_two_arms(sweep: Callable[..., Sweep]) -> None:
    """Every process of it: what guards, what supervises and what keeps the queue; only the training lives on."""
    rows = sweep("a sweep: the agent is killed in each arm")
    process = rows.place.start(*rows.words)
    killed = 0
    for arm in range(3):
        wait_until(lambda arm=arm: process.poll() is not None or has_begun(rows, arm), 240)  # type: ignore[misc]
        killed += kill_agent(rows.place)
    assert rows.place.wait(process) == 0, rows.place.words()
    assert killed >= 3
    rows.ends_well(done=3)


def has_begun(rows: Sweep, arm: int) -> bool:
    begun = [job for job in rows.jobs() if (job / "starts.jsonl").exists()]
    return len(begun) > arm


def kill_agent(place: Rehearsal) -> int:
    """SIGKILL to each of its processes on the machine; how many there were."""
    folder = str(place.cloud.machine_folder(place.machine()))
    agents = [
        pid for pid, words in command_lines().items()
        if any(word.startswith(folder) and "/agent/agent-" in word for word in words)  # unpacked, or the file
    ]  # fmt: skip
    for pid in agents:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return len(agents)


def test_three_add_at_once(sweep: Callable[..., Sweep]) -> None:
    """One arm that two of them add is there once, and what the third adds is there too. The first arm, which trains
    meanwhile, is held."""
    rows = sweep("a sweep: three add to it at the same time", steps=300, good=GOOD)
    rows.write(late=LATE, third="learning_rate = 4e-3\n")
    process = rows.place.start(*rows.words)
    wait_until(lambda: process.poll() is not None or rows.place.trained(5), 240)
    arms, held = ("late", "late", "third"), ranks(rows.place)
    for pid in held:
        os.kill(pid, signal.SIGSTOP)
    adding = [rows.place.start("sweep", "add", "rows", f"{arm}.toml", "--yes", "-d") for arm in arms]
    codes = [each.wait(480) for each in adding]
    for pid in held:
        os.kill(pid, signal.SIGCONT)
    assert sorted(codes[:2]) == [0, 2] and codes[2] == 0, rows.place.words()
    assert rows.place.wait(process) == 0, rows.place.words()
    rows.ends_well(done=4, of=4)


def test_the_store_is_gone_for_a_while(sweep: Callable[..., Sweep], s3: S3Server) -> None:
    """From the first arm's start to its end: what it keeps is stored later, and no arm waits for that."""
    bucket = s3.bucket()
    rows = sweep("a sweep: the store is unreachable in its first arm")
    inventory = rows.place.folder / "inventory.toml"
    inventory.write_text(inventory.read_text() + f'checkpoint_store = "s3://{bucket}/models"\n')
    process = rows.place.start(*rows.words)
    wait_until(lambda: process.poll() is not None or has_begun(rows, 0), 240)
    with s3.away():
        wait_until(lambda: process.poll() is not None or (rows.jobs()[0] / "exit.json").exists(), 240)
    assert rows.place.wait(process) == 0, rows.place.words()
    keys = [PurePosixPath(each["Key"]) for each in s3.client().list_objects_v2(Bucket=bucket)["Contents"]]
    rows.place.stored = frozenset(f"{key.parts[1]}/{key.parts[2]}" for key in keys if key.name == MANIFEST_FILE)
    found = rows.ends_well(done=3)
    assert {f"{arm['run']}/step-{STEPS:06}" for arm in found["arms"]} <= rows.place.stored


def test_the_disk_is_full_for_a_while(sweep: Callable[..., Sweep]) -> None:
    """In the first arm: it dies of a save, starts again from what it kept, and the others follow."""
    rows = sweep("a sweep: the machine's disk is full in its first arm", boot_s=4.0, steps=200)
    process = rows.place.start(*rows.words)
    wait_until(lambda: process.poll() is not None or rows.place.cloud.books()["alive"], 240)
    with small_disk(rows.place.cloud.home(rows.place.machine()) / ".gptctl", 48 << 20) as disk:
        first = f"runs/*/checkpoints/step-{EVERY:06}"
        wait_until(lambda: process.poll() is not None or [*disk.glob(first)], 240)
        filler, room = disk / "filler", os.statvfs(disk)
        filler.write_bytes(bytes(room.f_bavail * room.f_frsize - LEFT_BYTES))
        wait_until(lambda: process.poll() is not None or (rows.jobs()[0] / "deaths.jsonl").exists(), 240)
        filler.unlink()
        assert rows.place.wait(process) == 0, rows.place.words()
    rows.ends_well(done=3)
