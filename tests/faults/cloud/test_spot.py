"""Spot machines that are taken away at short notice, and machines of guard `self`: rebooted, and robbed of their timer
and their guard's process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import gptctl_command
from tests.contract.agent.test_spot_notice import Metadata, in_s
from tests.faults.conftest import Rehearsal
from tests.stories.conftest import end, newest_run, wait_until
from tests.support.clouds.ec2_cloud import Ec2Cloud
from tests.support.files.recipes import write_small

pytestmark = pytest.mark.faults


def spot(place: Rehearsal, *, hold_h: float | None = None, lease_s: float = 60) -> None:
    """The host rents on the spot market, and its machines end themselves by power-off."""
    file = place.folder / "inventory.toml"
    file.write_text(file.read_text().replace('guard = "watcher"', 'guard = "self"\nspot = true'))
    place.env["GPTCTL_LEASE_S"] = str(lease_s)
    if hold_h is not None:
        recipe = place.folder / "tiny.toml"
        recipe.write_text(f"{recipe.read_text()}[limits]\nhold_h = {hold_h}\n")


def there(place: Rehearsal, pattern: str) -> Path:
    """The one file of that name in gptctl's folder on the machine."""
    (found,) = (place.cloud.home(place.machine()) / ".gptctl").glob(pattern)
    return found


def told(place: Rehearsal, kind: str) -> list[dict[str, Any]]:
    lines = (place.cloud.state / "books.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == kind]


def test_a_notice_while_gptctl_follows(rehearse: Callable[..., Rehearsal]) -> None:
    place = rehearse("F5 spot notice at step 50, gptctl follows", steps=4000, every=2000)
    spot(place)
    run = place.run(inject="notice@50")
    assert run.returncode == 3, run.stderr
    assert f"--resume-from {place.run_id()}" in run.stderr
    (notice,), (ended,) = told(place, "notice"), told(place, "ended")
    assert ended["time"] < notice["taken_at"], "given back before it was taken"
    assert place.newest()["safe_step"] >= 50, "only the notice made it save: the next was due at step 2000"
    place.check(outcome="preempted")


def test_a_notice_while_the_laptop_is_away(rehearse: Callable[..., Rehearsal]) -> None:
    place = rehearse("F5 spot notice, the laptop is away", "--notice-s=40", steps=4000, every=200)
    spot(place)
    process = place.begin()
    wait_until(lambda: place.trained(200) and place.newest()["safe_step"], 120)
    end(process)
    place.cloud.inject("notice@0")
    exit_file = there(place, "jobs/*/train/state.json").with_name("exit.json")
    wait_until(exit_file.exists, 60)
    assert json.loads(exit_file.read_text())["outcome"] == "preempted"
    wait_until(lambda: not place.cloud.books()["alive"], 90)
    resumed = place.gptctl("resume", place.run_id())
    assert resumed.returncode == 3, resumed.stderr
    assert f"--resume-from {place.run_id()}" in resumed.stderr
    place.check(outcome="preempted")


def test_it_reboots_with_nobody_there(rehearse: Callable[..., Rehearsal]) -> None:
    place = rehearse("F32 guard self: rebooted with nobody there", steps=4000, every=40)
    spot(place, hold_h=0.003, lease_s=20)
    process = place.begin()
    wait_until(lambda: place.trained(45), 120)
    end(process)
    first = json.loads(there(place, "guard/state.json").read_text())["guard"]
    place.cloud.inject("reboot@0")
    wait_until(lambda: json.loads(there(place, "guard/state.json").read_text())["guard"] != first, 60)
    wait_until(lambda: not place.cloud.books()["alive"], 120)
    resumed = place.gptctl("resume", place.run_id())
    assert resumed.returncode == 6, resumed.stderr
    place.check(outcome="limit")


def test_its_timer_and_its_guard_are_killed(rehearse: Callable[..., Rehearsal]) -> None:
    place = rehearse("F32 guard self: its timer and its process are killed", steps=4000, every=400)
    spot(place, lease_s=16)
    process = place.begin()
    wait_until(lambda: place.trained(20), 120)
    timer = place.cloud.machine_folder(place.machine()) / "lib" / "gptctl-self" / "process"
    guard = there(place, "guard/state.json")

    def both() -> tuple[int, int] | None:
        pids = int(timer.read_text().split()[0]), int(json.loads(guard.read_text())["guard"]["pid"])
        return pids if all(Path(f"/proc/{pid}").exists() for pid in pids) else None

    pids = wait_until(both, 60)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: json.loads(guard.read_text())["guard"]["pid"] != pids[1], 60)
    wait_until(lambda: int(timer.read_text().split()[0]) != pids[0], 30)
    assert place.newest()["guard"]["armed"]
    assert place.gptctl("stop", place.run_id(), "--yes").returncode == 0
    assert process.wait(480) == 0, place.words()
    place.check(outcome="stopped")


def test_the_deadline_moves(rehearse: Callable[..., Rehearsal]) -> None:
    place = rehearse("F32 guard self: the deadline moves with a second run")
    spot(place)
    assert place.run("--keep", "--max-hours", "0.3").returncode == 0
    settings = place.cloud.machine_folder(place.machine()) / "lib" / "gptctl-self"
    first = place.newest()
    assert set_to_s(settings) < 1080 and first["guard"]["ends_at"]
    again = place.gptctl("run", "tiny.toml", "--on", first["rental"], "--again", "--yes", "--keep")
    assert again.returncode == 0, again.stderr
    second = place.newest()
    assert second["guard"]["armed"] and second["guard"]["ends_at"] > first["guard"]["ends_at"] + 900
    wait_until(lambda: 1080 < set_to_s(settings) < 10 / second["price_per_hour_usd"] * 3600, 30)
    assert place.gptctl("release", second["id"], "--yes").returncode == 0
    assert place.gptctl("release", first["id"], "--yes").returncode == 0
    place.check()


def set_to_s(settings: Path) -> float:
    """What the timer was set to last: a kept machine stays until its deadline."""
    return float((settings / "left").read_text().split()[0])


def test_a_notice_on_ec2(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    metadata = Metadata()
    write_small(tmp_path, steps=4000, every=2000, machine="2xCPU")
    with Ec2Cloud(tmp_path) as cloud:
        more = f'guard = "self"\nspot = true\nmetadata_endpoint = "{metadata.url}"'
        (tmp_path / "inventory.toml").write_text(cloud.host_entry(more=more))
        argv = gptctl_command("run", "tiny.toml", "--host", "cloud", "--yes")
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        process = subprocess.Popen(argv, env=cloud.env, cwd=tmp_path, **pipes)  # type: ignore[call-overload]
        home = tmp_path / "home"
        wait_until(lambda: process.poll() is not None or any(home.glob("runs/*/metrics.jsonl")), 120)
        metadata.documents["instance-action"] = in_s(120)
        _, words = process.communicate(timeout=600)
        assert process.returncode == 3, words
        assert f"--resume-from {newest_run(home)}" in words
        found = json.loads(cloud.gptctl("status", "--json").stdout)["runs"][0]
        assert found["outcome"] == "preempted" and 0 < found["safe_step"] < 2000
        assert cloud.living() == [] and cloud.buys_per_token() == 1
        assert cloud.left() == {"instances": 0, "volumes": 0, "security groups": 0}
    metadata.shutdown()
    metadata.server_close()
    figures = (
        f"bought {cloud.buys_per_token()}  alive 0  billed {sum(each.billed_s for each in cloud.books):>4.0f} s  lost 0"
    )
    request.node.user_properties.append(("F5 spot notice on EC2", figures))
