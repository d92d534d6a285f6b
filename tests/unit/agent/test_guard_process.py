"""The guard's process without a process: its looks, its pauses and its notes, on a clock that the test moves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orchestrator.agent.contract.names import FileName
from orchestrator.agent.guard import process, records, ways_to_end
from orchestrator.agent.guard.process import GuardProcess
from orchestrator.agent.guard.trouble import Trouble
from orchestrator.agent.system import files, lease
from orchestrator.agent.system import processes as machine_processes
from orchestrator.agent.system.paths import Places


class Clock:
    """CLOCK_BOOTTIME of the test."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Way:
    """A way to end the machine that answers what the test says, and counts."""

    check_every_s = 300.0
    well = "fine"

    def __init__(self, order: records.Order) -> None:
        self.order = order
        self.answer: Trouble | None = None
        self.ends: list[float] = []
        self.checks = 0
        self.clock: Clock | None = None

    def is_renewed(self) -> bool:
        return False

    def is_able(self) -> bool:
        return True

    def end(self) -> Trouble | None:
        assert self.clock is not None
        self.ends.append(self.clock.now)
        return self.answer

    def check(self, left_s: float, deadline_left_s: float | None) -> Trouble | None:
        self.checks += 1
        return self.answer


class Guarded:
    """A machine with a guard, a lease and nothing else."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch, **settings: float) -> None:
        self.clock = Clock()
        monkeypatch.setattr(lease, "now_s", self.clock)
        self.paths = Places(str(root / "agent" / "agent-0.pyz"))
        order: records.Order = {"kind": "key-on-box", "instance_id": "i-1", "lease_s": settings["lease_s"]}
        order["boot_id"] = machine_processes.boot_id()
        files.make_folder(self.paths.guard)
        files.write_json(records.path_of(self.paths, FileName.ORDER), order)
        lease.renew(self.paths.guard, settings["lease_s"], settings["deadline_s"])
        self.way = Way(order)
        self.way.clock = self.clock
        monkeypatch.setattr(ways_to_end, "way_of", lambda places, order: self.way)
        self.process = GuardProcess(self.paths, self.clock)

    def run(self, seconds: float) -> None:
        """Looks every second."""
        for _ in range(int(seconds)):
            self.process.tick()
            self.clock.now += 1.0

    def notes(self) -> dict[str, Any]:
        return dict(records.read_notes(self.paths))


@pytest.fixture
def guarded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Guarded:
    return Guarded(tmp_path, monkeypatch, lease_s=60, deadline_s=600)


def test_it_ends_the_machine_when_the_lease_is_over_and_not_before(guarded: Guarded) -> None:
    guarded.run(60)
    assert guarded.way.ends == [] and not guarded.notes()["ending"]
    guarded.run(1)
    assert guarded.way.ends == [1060.0] and guarded.notes()["ending"]


def test_a_machine_that_lives_on_is_ended_again_after_growing_pauses(guarded: Guarded) -> None:
    guarded.run(60 + 130)
    assert [end - 1060 for end in guarded.way.ends] == [0, 2, 6, 14, 30, 62, 122]


def test_a_renewed_lease_keeps_it_but_not_past_the_deadline(guarded: Guarded) -> None:
    for _ in range(12):
        guarded.run(50)
        lease.renew(guarded.paths.guard, 60, None)
    assert guarded.way.ends == []
    guarded.run(2)
    assert guarded.way.ends == [1600.0]


def test_a_renewal_while_it_ends_the_machine_stops_the_ending(guarded: Guarded) -> None:
    guarded.run(61)
    lease.renew(guarded.paths.guard, 100, None)
    guarded.run(50)
    assert len(guarded.way.ends) == 1 and not guarded.notes()["ending"]


def test_it_checks_its_way_every_five_minutes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    guarded = Guarded(tmp_path, monkeypatch, lease_s=3000, deadline_s=3000)
    guarded.run(901)
    assert guarded.way.checks == 4 and guarded.notes()["accepted"] is True


def test_a_refused_key_disarms_and_an_outage_does_not(guarded: Guarded) -> None:
    guarded.run(1)
    guarded.way.answer = Trouble("the API could not be asked: Timeout")
    guarded.clock.now += 300
    lease.renew(guarded.paths.guard, 60, None)
    guarded.run(1)
    assert guarded.notes()["accepted"] is True and "Timeout" in guarded.notes()["problem"]
    guarded.way.answer = Trouble("the API answered 401", refused=True)
    guarded.run(3)
    assert guarded.notes()["accepted"] is False
    guarded.way.answer = None
    guarded.run(10)
    assert guarded.notes()["accepted"] is True and guarded.notes()["problem"] is None


def test_a_lost_lease_file_is_written_again_with_the_deadline(guarded: Guarded) -> None:
    guarded.run(10)
    lease.forget(guarded.paths.guard)
    guarded.run(1)
    found = lease.read(guarded.paths.guard)
    assert found is not None and found["deadline_left_s"] == pytest.approx(588, abs=2)


def test_facts_that_cannot_be_read_keep_the_machine_until_its_deadline(
    guarded: Guarded, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: object, **more: object) -> None:
        raise ValueError("torn")

    monkeypatch.setattr(process.observation, "observe", broken)
    guarded.run(600)
    assert guarded.way.ends == [] and "ValueError" in guarded.notes()["problem"]
    guarded.run(2)
    assert guarded.way.ends == [1600.0]
