"""A home box that keeps a rented machine's checkpoints, and what befalls it. A real sshd at home, real machines."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults.cloud.ec2_place import Ec2Place
from tests.faults.conftest import Rehearsal
from tests.stories.conftest import wait_until
from tests.support.clouds.ec2_cloud import Ec2Cloud
from tests.support.machines.sshd import Sshd, inventory_entry_of

pytestmark = pytest.mark.faults


@pytest.fixture
def nas(tmp_path: Path) -> Iterator[Sshd]:
    with Sshd(tmp_path, name="nas") as nas:
        yield nas


def keep_at(folder: Path, nas: Sshd, kept: Path) -> None:
    """The host `cloud` of the folder's inventory stores on the box."""
    text = (folder / "inventory.toml").read_text()
    store = f'[hosts.cloud]\ncheckpoint_store = "ssh://nas{kept}"\n'
    entry = inventory_entry_of(nas, machine_type="1xCPU", extra="")
    (folder / "inventory.toml").write_text(text.replace("[hosts.cloud]\n", store) + entry)


def steps_in(kept: Path) -> list[int]:
    indices = [json.loads(path.read_text()) for path in kept.glob("*/CHECKPOINTS.json")]
    return [each["step"] for index in indices for each in index["checkpoints"]]


def restart_without_memory(nas: Sshd) -> None:
    """As a reboot: every process is gone, and what lay in memory."""
    nas.power_off()
    nas.lose_memory()
    nas.start()


def test_a_box_that_was_restarted_gets_another_key(
    rehearse: Callable[..., Rehearsal], nas: Sshd, tmp_path: Path
) -> None:
    place = rehearse("home box restarted while it trains", steps=3000, every=1000)
    keep_at(place.folder, nas, tmp_path / "kept")
    process = place.begin()
    wait_until(lambda: place.trained(10) or process.poll() is not None, 120)
    restart_without_memory(nas)
    assert process.wait(1200) == 0, place.words()
    assert 3000 in steps_in(tmp_path / "kept")
    (record,) = nas.home.glob(".gptctl/jobs/*/keep-*/starts.jsonl")
    assert len(record.read_text().splitlines()) == 2, "it called again, after it was given another key"
    fetched = place.gptctl("fetch", "--all")
    assert fetched.returncode == 0, fetched.stderr
    place.check()


def test_a_box_that_goes_off_for_good_costs_no_checkpoint(
    rehearse: Callable[..., Rehearsal], nas: Sshd, tmp_path: Path
) -> None:
    place = rehearse("home box off before the end", steps=1500, every=500)
    keep_at(place.folder, nas, tmp_path / "kept")
    process = place.begin()
    wait_until(lambda: 500 in steps_in(tmp_path / "kept") or process.poll() is not None, 120)
    nas.power_off()
    wait_until(lambda: place.newest()["store"]["problem"] or process.poll() is not None, 120, 1)
    shown = place.gptctl("status")
    assert process.poll() is not None or "checkpoint store: the home box" in shown.stderr, shown.stderr
    assert process.wait(1200) == 0, place.words()
    assert "fetching from the machine instead" in place.words()
    assert list((place.home / "runs").glob("*/checkpoints/step-001500"))
    place.check()


def test_a_box_that_cannot_reach_the_machine_costs_minutes_and_is_named(
    rehearse: Callable[..., Rehearsal], nas: Sshd, tmp_path: Path
) -> None:
    place = rehearse("home box cannot call the machine")
    keep_at(place.folder, nas, tmp_path / "kept")
    program = nas.folder / "bin" / "ssh"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho 'ssh: connect to host: No route to host' >&2\nexit 255\n")
    program.chmod(0o755)
    login = nas.folder / "login"
    login.write_text(login.read_text().replace("PATH=/", f"PATH={program.parent}:/"))
    done = place.gptctl("run", "tiny.toml", "--host", "cloud", "--yes")
    assert done.returncode and "cannot store checkpoints in ssh://nas" in done.stderr, done.stderr
    assert "No route to host" in done.stderr
    place.check(outcome="never_started")


def test_a_box_that_is_off_is_found_before_anything_is_bought(
    rehearse: Callable[..., Rehearsal], nas: Sshd, tmp_path: Path
) -> None:
    place = rehearse("home box off before the launch")
    keep_at(place.folder, nas, tmp_path / "kept")
    nas.power_off()
    done = place.gptctl("run", "tiny.toml", "--host", "cloud", "--yes")
    assert done.returncode == 4 and "home box nas" in done.stderr, done.stderr
    assert not place.cloud.books()["launches_by_intent"]
    place.check(outcome=None)


def test_ec2_lets_the_box_in_and_the_laptop_may_move(nas: Sshd, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    with Ec2Cloud(tmp_path) as cloud:
        place = Ec2Place(cloud, "EC2 checkpoints go to a home box", request.node.user_properties)
        place.write(steps=3000, every=1000)
        keep_at(cloud.folder, nas, tmp_path / "kept")
        process = place.begin()
        place.until_step(50)
        assert cloud.open_to() == {"127.0.0.1/32"}, "both have the address of the line at home"
        cloud.caller = "127.0.0.88"  # the laptop goes to a cafe
        cloud.drop_sessions(cloud.machine())
        wait_until(lambda: cloud.open_to() == {"127.0.0.1/32", "127.0.0.88/32"}, 60, 0.2)
        assert process.wait(720) == 0, place.words()
        assert 3000 in steps_in(tmp_path / "kept")
        place.check()
        place.close()
