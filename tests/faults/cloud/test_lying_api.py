"""Runs, releases and bills under an API that lies about launches, ends, ids, prices and addresses."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.faults.cloud.lies import silence
from tests.faults.conftest import Clocks, Rehearsal
from tests.stories.conftest import end, wait_until
from tests.support.clock import proof

pytestmark = pytest.mark.faults


@pytest.mark.parametrize(
    ("fault", "inject", "bought"),
    [
        ("12.1 tags never shown", "list-untagged*forever", 1),
        ("12.1 neither tags nor names ever shown", "list-nameless*forever", 1),
        ("12.1 bought and never listed", "list-empty@launch+900", 1),
        ("12.1 GET by id answers 404 while it lives", "get-missing@launch+900", 1),
        ("12.1 GET by id answers 500 while it lives", "500@get*forever", 1),
        ("12.3 one launch makes two machines", "double-launch", 2),
        ("12.3 launch refused, bought all the same", "refused-but-bought", 1),
        ("12.3 quota used up, bought all the same", "refused-but-bought@quota", 1),
        ("12.3 ended, and alive again 6 s later", "terminate-relapse@6", 1),
        ("12.7 dearer at launch than in the quote", "dearer-launch@200", 1),
        ("12.1 terminate ignored four times", "terminate-ignored*4", 1),
        ("12.10 a stranger's row with fields missing", "list-odd-row@stranger", 1),
        ("12.10 a stranger's row with a number for its id", "list-odd-row@id", 1),
        ("12.10 a stranger's row without a region", "list-odd-row@region", 1),
        ("12.10 a new type with fields missing", "odd-type", 1),
        ("12.10 HTML for 6 s after the launch", "html@launch+6", 1),
        ("12.10 errors in good answers for 6 s after the launch", "error-in-200@launch+6", 1),
        ("12.10 silence for 6 s after the launch", "silent@launch+6", 1),
    ],
)
def test_a_run_under_lies(rehearse: Callable[..., Rehearsal], fault: str, inject: str, bought: int) -> None:
    place = rehearse(fault, env={proof.VARIABLE: str(proof.REAL_S)} if "relapse" in inject else None)
    place.write(steps=20, every=10)
    place.run("--max-price", "20", inject=inject) if "dearer" in inject else place.run(inject=inject)
    assert place.settled(bought=bought)
    if "odd" in inject or "relapse" in inject:
        assert place.code == 0 and not place.cloud.books()["alive"], place.said


@pytest.mark.parametrize("fault", ["frozen", "ssh-gone"])
@pytest.mark.parametrize("command", ["release", "stop"])
def test_a_machine_that_answers_no_ssh(rehearse: Callable[..., Rehearsal], fault: str, command: str) -> None:
    place = rehearse(f"12.2 {command} of a machine: {fault}")
    silence(place, fault)
    place.gptctl(command, place.run_id(), "--yes", deadline_s=400)
    assert place.code == 7 and "15.92" in place.said and "--force" in place.said, place.said
    assert place.settled()


def test_a_second_machine_is_named_by_orphans(rehearse: Callable[..., Rehearsal]) -> None:
    place = rehearse("12.3 a relapsed machine of a released rental in orphans")
    place.killed_at("stage_finished:acquire")
    place.cloud.inject("terminate-relapse@6")
    place.gptctl("release", place.run_id(), "--force", "--yes")
    machine = place.machine()
    place.cloud.wait_for(machine, "active")
    place.gptctl("orphans")
    assert place.settled()


def test_spend_counts_while_nobody_drives(rehearse: Callable[..., Rehearsal], clocks: Clocks) -> None:
    place = rehearse("12.6 spend while nobody drives", f"--python={clocks.python}", env=clocks.env)
    place.write(python=str(clocks.python))
    place.killed_at("stage_finished:acquire")
    clocks.move(600)
    place.gptctl("orphans")
    assert place.settled(listed=True)


def test_the_first_look_comes_late(rehearse: Callable[..., Rehearsal], clocks: Clocks) -> None:
    place = rehearse("12.7 killed after the launch, back 150 s later", f"--python={clocks.python}", env=clocks.env)
    place.write(python=str(clocks.python))
    process = place.begin()
    wait_until(lambda: place.cloud.books()["alive"], 60, 0.01)
    end(process)
    wait_until(lambda: place.cloud.row(place.machine())["status"] == "active", 60)
    clocks.move(150)
    place.gptctl("release", place.run_id(), "--force", "--yes")
    assert place.settled()
    place.check(outcome="stopped")


@pytest.mark.parametrize("driver", ["follows", "resumes"])
def test_it_reboots_with_another_address(rehearse: Callable[..., Rehearsal], driver: str) -> None:
    place = rehearse(f"12.12 another address after a reboot, gptctl {driver}")
    place.write(steps=400)
    process = place.begin()
    wait_until(lambda: place.trained(5), 60)
    if driver == "resumes":
        end(process)
    place.cloud.inject("reboot-elsewhere@0")
    old = place.cloud.get("instances")[0]["ip"]
    wait_until(lambda: place.cloud.get("instances")[0]["ip"] != old, 60)
    place.gptctl("resume", place.run_id(), deadline_s=150) if driver == "resumes" else place.wait(process, 150)
    assert place.settled()


def test_a_refusal_for_haste_is_no_riddle(rehearse: Callable[..., Rehearsal]) -> None:
    place = rehearse("12.13 429 with Retry-After on a launch")
    place.run(inject="429@launch")
    # No document says that a launch answered so bought nothing: it is looked for, and not for long.
    assert "nothing seems bought" in place.said and "None" not in place.said, place.said
    assert place.settled()
