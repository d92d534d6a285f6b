"""SIGKILL for the command line at its writes to the ledger, once and twice in a row, with lists that lag and without.

Many laptops (each a GPTCTL_HOME of its own) share one cloud, whose books say what each intent bought.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from tests.faults.conftest import Rehearsal
from tests.faults.here.crashing import WHEN

pytestmark = pytest.mark.faults
RUN = ("run", "tiny.toml", "--host", "cloud", "--yes")
AT_ONCE = 4
FIRST = (2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 24, 28)
"""Commits of `run`: from the run's own row over the intent, the launch and its answer to first contact."""
SECOND = (1, 3, 5, 8, 11, 14)
"""Commits of what comes next: resume, or release."""


def test_killed_at_every_write_of_a_whole_run(rehearse: Callable[..., Rehearsal]) -> None:
    """Each resume gets one write further than the one before; in the end the run is done, bought once, lost nothing."""
    place = rehearse("F3 CLI killed at every ledger write", boot_s=0.1, steps=20)
    kills, at = 0, 3
    command: Sequence[str] = RUN
    while (done := place.crash(at, WHEN[kills % 2], *command)).returncode == -9:
        kills, at = kills + 1, at + 1
        if place.home.exists() and (place.home / "ledger.db").exists() and place.status()["runs"]:
            command = ("resume", place.run_id())
    assert done.returncode == 0, done.stderr
    assert kills > 20, done.stderr
    place.check()
    print(f"{kills} kills")


def pairs(lag: bool) -> Iterator[tuple[int, str, int, str]]:
    """Half of all pairs of writes, another half with the lag, each before or after its write."""
    shuffled = random.Random(lag)
    for first in FIRST:
        for second in shuffled.sample(SECOND, len(SECOND) // 2):
            yield first, shuffled.choice(WHEN), second, shuffled.choice(WHEN)


@pytest.mark.parametrize("lag", [False, True], ids=["", "lag"])
def test_killed_twice(rehearse: Callable[..., Rehearsal], lag: bool, capsys: pytest.CaptureFixture[str]) -> None:
    """Killed in `run`, killed again in `resume` or `release`; then `release`, and nothing is left."""
    place = rehearse("two crashes in a row" + lag * ", lists 5 s late", boot_s=0.1, steps=20)
    scenarios = list(pairs(lag))
    if lag:
        place.cloud.inject("list-lag@5*forever")
    with ThreadPoolExecutor(AT_ONCE) as pool:
        left = list(pool.map(lambda each: _twice(place, *each), enumerate(scenarios)))
    books = place.cloud.books()
    most = max(books["launches_by_intent"].values())
    with capsys.disabled():
        print(
            f"\n{len(scenarios)} scenarios{' with list lag' * lag}: {len(books['instances'])} machines bought, "
            f"at most {most} per intent, {len(books['alive'])} left"
        )
    assert not any(left), [each for each in left if each]
    assert most == 1 and not books["alive"]
    place.summed_up(books)


def _twice(place: Rehearsal, number: int, scenario: tuple[int, str, int, str]) -> str:
    """What went wrong, or nothing."""
    first, when, second, when_then = scenario
    laptop = replace(place, env={**place.env, "GPTCTL_HOME": str(place.folder / f"home-{number}")})
    laptop.crash(first, when, *RUN)
    known = laptop.status()["runs"]
    if not known:
        return ""  # killed before the run was written: nothing was bought for it
    run_id = known[0]["id"]
    then = ("release", run_id, "--force", "--yes") if number % 2 else ("resume", run_id)
    laptop.crash(second, when_then, *then)
    for _ in range(3):
        last = laptop.gptctl("release", run_id, "--force", "--yes")
        if last.returncode in (0, 3, 4):
            break
    row = laptop.newest()
    return "" if row["state"] == "ended" and last.returncode != 7 else f"{scenario} {then[0]}: {row} {last.stderr}"
