"""A long history costs `status` no more rows and `cost` no more types: counted work, no clock."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.cli.machines import cost
from orchestrator.cli.runs import status
from orchestrator.cli.screen import screen
from orchestrator.cli.screen.tables import Column
from orchestrator.core.estimate import Estimate
from orchestrator.core.machines import machine_type
from orchestrator.core.money.billing import SettledBill
from orchestrator.core.money.cost import HostPower, run_cost
from orchestrator.core.states import Outcome, State
from orchestrator.ledger import Ledger, Rental, RunRecord, row_values

UNFINISHED = 2
NOW = {"seen_s": 0, "age_s": 0}
"""What differs from one look to the next."""


def fill(home: Path, ended: int) -> Ledger:
    """Runs of one stage each, the last two of them not ended, on machines of their own."""
    ledger = Ledger.open(home, time.time)
    for number in range(ended + UNFINISHED):
        name = f"run-{number:04d}"
        ledger.add_rental(Rental(f"m-{name}", "ssh", "box", "1x3090", number))
        host = {"name": "box", "provider": "ssh", "machine": "1x3090", "board_power_w": 200.0 + number % 3}
        run = RunRecord(name, "quickstart", "box", "1x3090", number, rental_id=f"m-{name}", host_data=host, step=number)
        ledger.add_run(run)
        for stage in ("acquire", "follow", "follow"):
            ledger.close_stage(ledger.open_stage(name, f"m-{name}", stage, 1.0 + number))
        if number < ended:
            ledger.set_state(name, State.ENDED, outcome=Outcome.FINISHED)
    return ledger


def decoded_rows(monkeypatch: pytest.MonkeyPatch, work: Callable[[], object]) -> int:
    count, decode = 0, row_values.decode

    def counting(*arguments: object) -> object:
        nonlocal count
        count += 1
        return decode(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(row_values, "decode", counting)
        work()
    return count


def test_status_reads_the_unfinished_and_the_newest_however_many_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = []
    for ended in (15, 60):
        with fill(tmp_path / str(ended), ended) as ledger:
            found = status.collect(ledger, None, newest_ended=10, answer_within_s=0)
            assert [row["id"] for row in found["runs"]] == [f"run-{ended + 1 - each:04d}" for each in range(12)]
            assert found["hidden"] == ended - 10
            whole = status.collect(ledger, None, answer_within_s=0)["runs"]
            assert [{**row, **NOW} for row in whole[:12]] == [{**row, **NOW} for row in found["runs"]]
            look = lambda ledger=ledger: status.collect(ledger, None, newest_ended=10, answer_within_s=0)  # noqa: E731
            rows.append(decoded_rows(monkeypatch, look))
    assert rows[0] == rows[1] < 100


def test_what_all_runs_cost_is_what_each_of_them_costs(tmp_path: Path) -> None:
    with fill(tmp_path, 12) as ledger:
        ledger.settle("m-run-0003", SettledBill(Estimate(7.5)))
        one_by_one = [cost.cost_of(ledger, run) for run in ledger.runs()]
        together = [cost._cost(each, None) for each in ledger.spent_by_run()]
        by_hand = [
            run_cost(ledger.intervals(run.id), machine=machine_type(run.machine), tokens=run.tokens_trained,
                     host=HostPower(run.host_data["board_power_w"])).to_json(run.id)
            for run in ledger.runs()
        ]  # fmt: skip
    assert one_by_one == together
    for left, right in zip(by_hand, together, strict=True):
        assert left.keys() == right.keys() and left["by_stage"] == pytest.approx(right["by_stage"])
        for key in left.keys() - {"by_stage", "id"}:
            assert left[key] == (pytest.approx(right[key]) if right[key] is not None else None)
    assert together[0]["energy_kwh"] >= 0 and together[0]["id"] == "run-0013"


def test_a_long_table_has_the_lines_of_a_short_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [["run-1", "$0.10", "acquire $0.10"], ["run-22", "$12.00", "-"], ["total", "$12.10", ""]]
    columns = (Column("RUN"), Column("COST", right=True), Column("BY STAGE"))
    screen.show_table(columns, rows)
    drawn = capsys.readouterr().out
    monkeypatch.setattr(screen, "MOST_DRAWN", 0)
    screen.show_table(columns, rows)
    assert [line.rstrip() for line in drawn.splitlines()] == capsys.readouterr().out.splitlines()
