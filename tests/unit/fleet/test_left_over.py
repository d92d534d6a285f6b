"""Machines that are alive although nothing needs them: who says so, with which exit code, and what is not one."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cli.machines import cost, hosts
from orchestrator.cli.machines import left_over as cli_left_over
from orchestrator.cli.runs import status
from orchestrator.core.config.inventory import HostSpec
from orchestrator.core.errors import NoAnswer
from orchestrator.core.fleet.orphans import LEFT_OVER_S
from orchestrator.core.ports import Instance, Life
from orchestrator.core.states import Outcome, State
from orchestrator.fleet import left_over as room
from orchestrator.fleet.accounts import Account
from orchestrator.fleet.left_over import LeftOver, left_over
from orchestrator.ledger import Ledger, Rental, RunRecord
from orchestrator.ledger.records import RENTAL_OPEN, RENTAL_RELEASED

NOW = 1_795_000_000.0
HOST = HostSpec(name="cloud", provider="lambda", machine="8xA100-40GB", guard="watcher")
ODD = "lambda: instance in row 2 of the list: id: Field required"


class Cloud:
    """A provider as far as a look needs one."""

    name = "lambda"
    settle_s = 600.0

    def __init__(self, machines: Sequence[Instance] | NoAnswer, word: Life | NoAnswer = "alive") -> None:
        self._machines, self._word, self.lists = machines, word, 0

    def machines(self) -> Sequence[Instance]:
        self.lists += 1
        if isinstance(self._machines, NoAnswer):
            raise self._machines
        return self._machines

    def find(self, instance_id: str, region: str = "") -> Life:
        if isinstance(self._word, NoAnswer):
            raise self._word
        return self._word

    def take_warnings(self) -> Sequence[str]:
        return [ODD]


def machine(status: str = "active", rental: str = "m-1", instance_id: str = "i-1") -> Instance:
    return Instance("lambda", instance_id, "8xA100-40GB", status=status, rental_id=rental, price_per_hour_usd=15.92)


def write(
    ledger: Ledger, released_at: float | None = NOW - 60, state: State = State.ENDED, *, keep: bool = False
) -> None:
    """One run on one rental, which is open where released_at is None."""
    rental = Rental("m-1", "lambda", "cloud", "8xA100-40GB", (released_at or NOW) - 3600)
    is_open = RENTAL_OPEN if released_at is None else RENTAL_RELEASED
    ledger.add_rental(
        replace(rental, instance_id="i-1", price_per_hour_usd=15.92, state=is_open, released_at=released_at)
    )
    run = RunRecord("r-1", "quickstart", "cloud", "8xA100-40GB", NOW, rental_id="m-1", host_data=HOST.resolved())
    outcome = Outcome.FINISHED if state is State.ENDED else None
    ledger.add_run(replace(run, state=state, outcome=outcome, keep=keep))


@pytest.fixture
def look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., LeftOver]:
    """Looks, for one run on one rental, at a cloud."""

    def _look(cloud: Cloud, **how: Any) -> LeftOver:
        account = Account("lambda", cloud, (HOST,))  # type: ignore[arg-type]
        monkeypatch.setattr(room, "accounts_behind", lambda hosts: [account] if list(hosts) else [])
        with Ledger.open(tmp_path / "home", lambda: NOW) as ledger:
            write(ledger, **how)
            return left_over(ledger, NOW)

    return _look


@pytest.mark.parametrize("status", ["active", "booting", "unhealthy", "stopped", "unknown"])
@pytest.mark.parametrize("word", ["alive", "unknown", NoAnswer("silence")])
def test_a_machine_of_a_released_rental_is_left_over_unless_its_provider_denies_it(
    look: Callable[..., LeftOver], status: str, word: Life
) -> None:
    found = look(Cloud([machine(status)], word))
    assert [row.instance_id for row in found.rows] == ["i-1"] and found.warnings == (ODD,)


def test_a_second_machine_of_a_released_rental_is_left_over(look: Callable[..., LeftOver]) -> None:
    found = look(Cloud([machine("terminated"), machine(instance_id="i-2")]))
    assert [row.instance_id for row in found.rows] == ["i-2"]


def test_a_machine_whose_run_has_ended_is_left_over_even_where_no_list_shows_it(look: Callable[..., LeftOver]) -> None:
    assert [row.instance_id for row in look(Cloud([]), released_at=None).rows] == ["i-1"]


@pytest.mark.parametrize(
    ("cloud", "more"),
    [
        (Cloud([machine()], "gone"), {}),
        (Cloud([machine()], "terminating"), {}),
        (Cloud([machine("terminating")]), {}),
        (Cloud([machine(rental="somebody-else")]), {}),
        (Cloud([machine()]), {"released_at": None, "state": State.TRAINING}),
        (Cloud([machine()]), {"released_at": None, "keep": True}),
        (Cloud([]), {}),
    ],
    ids=["lagging", "ending by its id", "ending", "a stranger's", "it trains", "kept", "none"],
)
def test_what_is_not_left_over(look: Callable[..., LeftOver], cloud: Cloud, more: dict[str, Any]) -> None:
    assert look(cloud, **more).rows == ()


def test_nobody_is_asked_for_what_is_long_over_or_still_runs(look: Callable[..., LeftOver]) -> None:
    old = Cloud([machine()])
    assert look(old, released_at=NOW - LEFT_OVER_S - 1) == LeftOver() and old.lists == 0


@pytest.mark.parametrize(("released_at", "problems"), [(None, {"lambda": "silence"}), (NOW - 60, {})])
def test_a_silent_account_is_a_problem_only_while_a_rental_is_open(
    look: Callable[..., LeftOver], released_at: float | None, problems: dict[str, str]
) -> None:
    found = look(Cloud(NoAnswer("silence")), released_at=released_at)
    assert found.problems == problems and [row.status for row in found.rows] == ["no answer"] * len(problems)


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize("command", ["status", "cost", "hosts"])
def test_every_command_that_lists_says_so_and_exits_7(
    look: Callable[..., LeftOver], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    command: str, as_json: bool,
) -> None:  # fmt: skip
    look(Cloud([machine()]))
    monkeypatch.setenv("GPTCTL_HOME", str(tmp_path / "home"))
    for module in (room, cli_left_over):
        monkeypatch.setattr(module, "LEFT_OVER_S", 1e12)
    monkeypatch.delenv("LAMBDA_API_KEY", raising=False)
    monkeypatch.chdir(tmp_path)
    code = {
        "status": lambda: status.status(None, watch=False, everything=False, as_json=as_json),
        "cost": lambda: cost.cost(None, as_json=as_json),
        "hosts": lambda: hosts.hosts(None, offline=False, as_json=as_json),
    }[command]()
    out, err = capsys.readouterr()
    assert code == 7
    if as_json:
        assert [row["instance_id"] for row in json.loads(out)["left_over"]] == ["i-1"]
    else:
        said = " ".join(err.split())
        assert "i-1 (8xA100-40GB, $15.92/h) is alive, and nothing needs it: rental m-1" in said
        assert "gptctl orphans --reap i-1" in said and ODD in said
