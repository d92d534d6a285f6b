"""Faults of launching: refusals, lost answers, lies, and machines that come up wrong."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.faults.conftest import Rehearsal
from tests.stories.conftest import wait_until

pytestmark = pytest.mark.faults


@pytest.mark.parametrize(
    ("fault", "inject"),
    [
        ("F17 launch bought, answer lost", "timeout-after-effect"),
        ("F17 launch bought, answer 500", "500-after-effect"),
        ("F18 launch 200 with empty ids, bought", "empty-ids"),
        ("F19 listed, launch refused", "listed-but-refused"),
        ("F16 too many requests while listing", "429@list*3"),
        ("F16 errors while listing", "500@list*3"),
        ("F20 one machine unhealthy, the next one good", "unhealthy"),
        ("F23 end done, its answer lost", "timeout-after-effect@terminate"),
        ("F22 end answers 500 once", "terminate-500"),
        ("F22 end ignored once", "terminate-ignored"),
        ("lists ten seconds late", "list-lag@10*3"),
        ("active before its address is known", "active-without-ip"),
        ("foreign machines in the account", "decoys"),
        ("F20 unhealthy and billed all the same, the next one good", "unhealthy-billed"),
        ("F20 stuck booting, the next one good", "stuck-booting"),
        ("F19 one region sold out, the next one has a machine", "no-capacity"),
        ("F22 end answered 200, the machine not named", "terminate-ignored@unlisted"),
    ],
)
def test_the_run_finishes_and_nothing_is_left(rehearse: Callable[..., Rehearsal], fault: str, inject: str) -> None:
    place = rehearse(fault)
    run = place.run(inject=inject, deadline_s=400)
    assert run.returncode == 0, run.stderr
    assert place.cloud.fired(), "the fault never happened"
    place.check()


@pytest.mark.parametrize(
    ("fault", "inject", "code", "word"),
    [
        ("F18 launch 200 with empty ids, nothing bought", "empty-ids@nothing", 3, "never seen"),
        ("F16 launch never arrived", "timeout-before-effect", 3, "never seen"),
        ("unknown error code at launch", "unknown-error-code", 3, "never seen"),
        ("no capacity anywhere", "sold-out*9", 3, "capacity"),
        ("quota", "quota*9", 3, "quota"),
        ("F31 price up between plan and launch", "price-change@150", 6, "agreed"),
        ("F20 three machines stuck or unhealthy", "unhealthy*3", 3, "unfit"),
        ("F21 active with a GPU that fails", "bad-gpu", 4, "802"),
        ("F28 image ignored the host key, three times", "host-key-ignored*3", 3, "unfit"),
    ],
)
def test_the_run_never_starts_and_nothing_is_left(
    rehearse: Callable[..., Rehearsal], fault: str, inject: str, code: int, word: str
) -> None:
    place = rehearse(fault)
    run = place.run(inject=inject)
    assert run.returncode == code, run.stderr
    assert word in run.stderr
    assert "Traceback" not in run.stderr
    place.check(outcome="limit" if code == 6 else "never_started")


def test_another_machine_type_where_the_first_is_not_to_be_had(rehearse: Callable[..., Rehearsal]) -> None:
    place = rehearse("F19 refused in every region, another machine type is rented")
    inventory = place.folder / "inventory.toml"
    inventory.write_text(inventory.read_text() + 'machines = ["8xH100-simulated"]\n')
    run = place.run("--set", "machines.8xH100-simulated.micro_batch=4", inject="listed-but-refused*3")
    assert run.returncode == 0, run.stderr
    assert "otherwise 8xH100-simulated" in run.stderr and "8xH100-simulated instead of 8xA100" in run.stderr
    assert place.newest()["machine"] == "8xH100-simulated" and place.newest()["price_per_hour_usd"] == 31.92
    place.check()


def test_released_while_its_launch_has_no_answer(rehearse: Callable[..., Rehearsal]) -> None:
    """The machine was bought, nobody was told, gptctl was killed while looking: release looks first."""
    place = rehearse("released while the launch has no answer")
    place.cloud.inject("timeout-after-effect,list-lag@20*6")
    process = place.start("run", "tiny.toml", "--host", "cloud", "--yes")
    wait_until(lambda: "timeout-after-effect" in place.cloud.fired(), 60)
    process.kill()
    process.wait()
    released = place.gptctl("release", "--yes")
    assert "destroyed" in released.stderr, released.stderr
    place.check(outcome="stopped")
