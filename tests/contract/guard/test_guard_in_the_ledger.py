"""What the ledger keeps of a machine's own word about its guard."""

from __future__ import annotations

from orchestrator.agent.contract.answers import GuardStatus
from orchestrator.cli.runs.status import _guard_line
from orchestrator.core.fleet.guard_state import GuardState, reported_guard


def reported(known: GuardState, report: GuardStatus, now: float) -> GuardState:
    return reported_guard(known, report, now, same_s=30.0)


ARMED: GuardStatus = {
    "kind": "key-on-box", "armed": True, "ends_at": None, "left_s": 2160.0, "lease_left_s": 1800.0,
    "deadline_left_s": 7200.0, "problem": None, "holding": 0, "ending": False,
}  # fmt: skip


def test_durations_become_moments_of_this_sides_clock() -> None:
    told = reported(GuardState(), ARMED, now=1000.0)
    assert (told.armed, told.leased_until, told.acts_at, told.ends_at) == (True, 2800.0, 3160.0, 8200.0)


def test_a_heartbeat_is_no_news_and_a_renewal_is() -> None:
    told = reported(GuardState(), ARMED, now=1000.0)
    assert (
        reported(told, {**ARMED, "left_s": 2155.0, "lease_left_s": 1795.0, "deadline_left_s": 7195.2}, now=1005.0)
        == told
    )
    renewed = reported(told, {**ARMED, "deadline_left_s": 7140.0}, now=1060.0)
    assert (renewed.leased_until, renewed.acts_at, renewed.ends_at) == (2860.0, 3220.0, 8200.0)


def test_a_machine_without_its_guard_is_not_armed_but_its_deadline_is_remembered() -> None:
    told = reported(reported(GuardState(), ARMED, now=0.0), {"kind": "none", "armed": False, "ends_at": None}, now=9.0)
    assert (told.kind, told.armed, told.ends_at) == ("key-on-box", False, 7200.0)


def test_status_speaks_of_a_guard_that_is_not_armed_or_holds_checkpoints() -> None:
    row = {"id": "r-1", "state": "training", "guard": reported(GuardState(), ARMED, now=0.0).to_json()}
    assert _guard_line(row) == ""
    assert "holding 3 checkpoints, ends " in _guard_line(
        {**row, "guard": reported(GuardState(), {**ARMED, "holding": 3}, 0.0).to_json()}
    )
    refused = {**ARMED, "armed": False, "problem": "the API answered 401: the key is refused"}
    assert "401" in _guard_line({**row, "guard": reported(GuardState(), refused, 0.0).to_json()})
    assert _guard_line({**row, "state": "ended", "guard": reported(GuardState(), refused, 0.0).to_json()}) == ""
    assert _guard_line({**row, "guard": {"kind": "watcher", "armed": False}}) == ""
