"""The machine reboots, vanishes, changes its key; its clock is wrong; a process dies or a file is damaged there."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable
from functools import partial

import pytest

from tests.faults.conftest import Clocks, Rehearsal
from tests.stories.conftest import end, wait_until
from tests.support.files.canary import command_lines
from tests.support.machines.sshd import make_key

pytestmark = pytest.mark.faults


def _are_gone(place: Rehearsal, pids: list[int]) -> bool:
    return not set(pids) & set(ranks(place))


def ranks(place: Rehearsal) -> list[int]:
    """The trainer's processes on the machine."""
    folder = str(place.cloud.machine_folder(place.machine()))
    return sorted(
        pid
        for pid, words in command_lines().items()
        if "trainer" in words and "torch.distributed.run" not in words and any(folder in word for word in words)
    )


def test_it_reboots(rehearse: Callable[..., Rehearsal]) -> None:
    place = rehearse("F4 the machine reboots", steps=400)
    run = place.run(inject="reboot@50")
    for _ in range(3):
        if place.newest()["state"] == "ended":
            break
        run = place.gptctl("resume", place.run_id())
    assert place.cloud.fired() == ["reboot"]
    assert "Traceback" not in run.stderr
    place.check(outcome=None)
    assert place.newest()["outcome"] in ("finished", "failed")
    assert place.newest()["safe_step"] >= 40


def test_it_is_taken_away(rehearse: Callable[..., Rehearsal]) -> None:
    place = rehearse("F6 the machine vanishes without notice", steps=4000, every=200)
    process = place.begin()
    safe = wait_until(lambda: place.trained(200) and place.newest()["safe_step"], 90)
    place.cloud.inject("preempt@0")
    assert process.wait(480) == 3, place.words()
    assert f"--resume-from {place.run_id()}" in place.words()
    assert place.newest()["safe_step"] >= safe
    place.check(outcome="preempted")


def test_one_rank_is_killed(rehearse: Callable[..., Rehearsal]) -> None:
    place = rehearse("F13 one rank dies", steps=1000)
    process = place.begin()
    wait_until(lambda: place.trained(40), 60)
    os.kill(ranks(place)[-1], signal.SIGKILL)
    assert process.wait(480) == 0, place.words()
    assert "it starts again from its newest checkpoint" in place.words()
    place.check(outcome="finished")
    assert place.newest()["safe_step"] >= 20


def test_a_flood_of_log(rehearse: Callable[..., Rehearsal]) -> None:
    place = rehearse("12.17 60 MB of log at once", steps=400)
    process = place.begin()
    wait_until(lambda: place.trained(5), 60)
    with (place.cloud.home(place.machine()) / ".gptctl" / "runs" / place.run_id() / "train.log").open("ab") as log:
        log.write((b"x" * 99 + b"\n") * 600_000 + b"after the flood\n")
    assert place.wait(process) == 0, place.words()
    place.check()
    assert place.newest()["step"] == 400, "metrics came beside the flood"
    mirror = place.home / "runs" / place.run_id()
    kept = sum(file.stat().st_size for file in mirror.glob("train.log*"))
    assert 1_000_000 < kept <= 3 * (16 << 20), "the first part, the newest whole one, and the one that grows"
    assert "after the flood" in (mirror / "train.log").read_text(errors="replace")
    assert len(place.words()) < 1_000_000, "a flood does not reach the terminal"


def test_everything_of_the_training_is_killed(rehearse: Callable[..., Rehearsal]) -> None:
    place = rehearse("F9 the kernel kills the training: out of memory", steps=4000)
    process = place.begin()
    wait_until(lambda: place.trained(40), 60)
    for _ in range(2):  # one restart is agreed to on a machine that is paid for
        killed = wait_until(lambda: ranks(place), 120)
        for pid in killed:
            os.kill(pid, signal.SIGKILL)
        wait_until(partial(_are_gone, place, killed), 60)
    assert process.wait(480) == 5, place.words()
    place.check(outcome="failed")


def test_the_host_key_changes(rehearse: Callable[..., Rehearsal]) -> None:
    place = rehearse("F28 another host key in mid-run", steps=1000)
    process = place.begin()
    wait_until(lambda: place.trained(20), 60)
    end(process)
    folder = place.cloud.machine_folder(place.machine()) / "etc" / "ssh"
    old = {path.name: path.read_bytes() for path in folder.glob("ssh_host_ed25519_key*")}
    make_key(folder / "ssh_host_ed25519_key")
    hang_up(place)
    stopped = place.gptctl("resume", place.run_id())
    assert stopped.returncode in (4, 7), stopped.stderr
    assert stopped.stderr.count("SHA256:") >= 2, stopped.stderr
    for name, content in old.items():
        (folder / name).write_bytes(content)
    hang_up(place)
    resumed = place.gptctl("resume", place.run_id())
    assert resumed.returncode == 0, resumed.stderr
    place.check()


def hang_up(place: Rehearsal) -> None:
    """The machine's sshd reads its key again."""
    (file,) = place.cloud.machine_folder(place.machine()).rglob("sshd.pid")
    os.kill(int(file.read_text()), signal.SIGHUP)


def test_an_address_comes_again(rehearse: Callable[..., Rehearsal]) -> None:
    place = rehearse("F29 the address of an ended machine")
    assert place.run().returncode == 0
    again = place.run("--again", inject="reused-ip")
    assert again.returncode == 0, again.stderr
    assert place.cloud.fired() == ["reused-ip"]
    place.check()


def test_its_image_is_a_newer_one(rehearse: Callable[..., Rehearsal]) -> None:
    # The machine's own python3: one that the inventory names runs the agent, too, and is no part of the image.
    place = rehearse("F35 image newer than that of the run before", steps=20, python="python3")
    first = place.run()
    assert first.returncode == 0 and "is not what it was" not in first.stderr, first.stderr
    before = place.run_id()
    again = place.run("--again", inject="newer-image")
    assert again.returncode == 0, again.stderr
    assert f"is not what it was for {before}: kernel" in again.stderr and "-> 99.0-newer-image" in again.stderr
    place.check()


@pytest.mark.parametrize("ahead_s", [600, -600])
def test_its_clock_is_wrong(rehearse: Callable[..., Rehearsal], clocks: Clocks, ahead_s: int) -> None:
    clocks.move(ahead_s)
    place = rehearse(f"F27 the machine's clock is {ahead_s:+} s off", f"--python={clocks.python}")
    place.write(python=str(clocks.python))
    run = place.run()
    assert run.returncode == 0, run.stderr
    assert re.search(rf"the clock of cloud is off by \{f'{ahead_s:+}'[:2]}\d\d s", run.stderr), run.stderr
    place.check()
    assert 0 <= place.newest()["cost_usd"] < 1.5


def test_data_is_cut_short_over_there(rehearse: Callable[..., Rehearsal]) -> None:
    place = rehearse("F30 dataset truncated on the machine")
    place.killed_at("stage_finished:sync")
    cut = 0
    for path in (place.cloud.home(place.machine()) / ".gptctl" / "data").rglob("*"):
        if path.is_file() and path.stat().st_size > 10_000:
            os.truncate(path, path.stat().st_size - 9)
            cut += 1
    assert cut
    resumed = place.gptctl("resume", place.run_id())
    assert resumed.returncode == 0, resumed.stderr
    place.check()


def test_a_bit_flips_in_a_checkpoint(rehearse: Callable[..., Rehearsal]) -> None:
    place = rehearse("F15 one byte of the newest checkpoint flipped", steps=100)
    process = place.begin()
    wait_until(lambda: place.trained(5), 60)
    process.send_signal(signal.SIGSTOP)
    folder = place.cloud.home(place.machine()) / ".gptctl" / "runs" / place.run_id()
    wait_until((folder / "exit.json").exists, 90)
    weights = folder / "checkpoints" / "latest" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    process.send_signal(signal.SIGCONT)
    assert process.wait(480) in (4, 7), place.words()
    assert place.machine(), "the machine with the damaged checkpoint was thrown away"
    content[-1] ^= 1
    weights.write_bytes(content)
    resumed = place.gptctl("resume", place.run_id())
    assert resumed.returncode == 0, resumed.stderr
    place.check()
