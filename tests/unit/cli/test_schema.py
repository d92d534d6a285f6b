"""`gptctl schema`: every command with --json has one, and what the commands print is as it says.

The stories hold every output of theirs against it too (the fixture `gptctl`)."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import typer

from orchestrator.cli.app import app
from orchestrator.cli.checks import check
from orchestrator.cli.failures import explained
from orchestrator.cli.machines import cost, hosts, offers
from orchestrator.cli.plans import plan, recipes
from orchestrator.cli.runs import compare, report, status
from orchestrator.cli.schemas.schema import FAILURE, OUTPUTS, schema_of
from orchestrator.core.config.recipe import Limits
from orchestrator.core.errors import NoCapacity, UserError
from orchestrator.core.states import Outcome, State
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.records import Rental, RunRecord
from tests.support.files.schemas import check_output


def commands_with_json() -> set[str]:
    top = typer.main.get_command(app)
    context = top.make_context("gptctl", [], resilient_parsing=True)  # type: ignore[attr-defined]
    found = {name: top.get_command(context, name) for name in top.list_commands(context)}  # type: ignore[attr-defined]
    inner = {f"{name} {below}": each for name, group in found.items() for below, each in _below(group).items()}
    every = {**found, **inner}
    return {name for name, each in every.items() if any("--json" in option.opts for option in each.params)}


def _below(group: object) -> dict[str, typer.core.TyperCommand]:
    return dict(getattr(group, "commands", {}))


def test_every_command_with_json_has_a_schema() -> None:
    named = {name.partition(" --")[0] for name in OUTPUTS} - {FAILURE}
    assert named == commands_with_json(), "orchestrator/cli/schemas/schema.py lists the outputs"


@pytest.mark.parametrize("name", OUTPUTS)
def test_a_schema_says_which_keys_there_always_are(name: str) -> None:
    found = schema_of(name)
    assert found["type"] == "object" and found["required"] and found["description"]


def test_an_unknown_command_is_named_with_the_one_you_meant() -> None:
    with pytest.raises(UserError, match=r"did you mean status\?"):
        schema_of("sttus")


@pytest.fixture
def home(gptctl_home: Path) -> Path:
    gptctl_home.mkdir()
    with Ledger.open(gptctl_home, time.time) as ledger:
        ledger.add_rental(Rental("own", "local", "local", "2xCPU", time.time()))
        for number in range(2):
            run = RunRecord(f"run-{number}", "quickstart", "local", "2xCPU", float(number + 1), rental_id="own")
            ledger.add_run(run)
            ledger.update_run(run.id, step=10, val_loss=3.0 + number, loss=3.1, total_steps=10)
            ledger.set_state(run.id, State.ENDED, outcome=Outcome.FINISHED)
    return gptctl_home


CALLS: dict[str, Callable[[], int]] = {
    "recipes": lambda: recipes.recipes(as_json=True),
    "status": lambda: status.status(None, watch=False, everything=False, as_json=True),
    "cost": lambda: cost.cost(None, as_json=True),
    "hosts": lambda: hosts.hosts(None, offline=True, as_json=True),
    "offers": lambda: offers.offers(offers.Wish(None, None, None), None, offline=True, as_json=True),
    "plan": lambda: plan.plan("quickstart", [], [], Limits(), None, offline=True, everything=True, as_json=True),
    "check": lambda: check.check(None, None, None, accept_new=False, as_json=True),
    "report": lambda: report.report("run-1", html=None, charts=None, as_json=True),
    "compare": lambda: compare.compare_runs(["run-0", "run-1"], None, [], html=None, charts=None, as_json=True),
}


@pytest.mark.parametrize("name", CALLS)
def test_what_a_command_prints_is_as_its_schema_says(name: str, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = CALLS[name]()
    out = capsys.readouterr().out
    assert json.loads(out)
    check_output([name, "--json"], code, out)


def test_a_failure_is_an_object_with_its_exit_code_and_the_next_command(capsys: pytest.CaptureFixture[str]) -> None:
    @explained
    def verb(as_json: bool = False) -> int:
        raise NoCapacity("no 8xA100 in any region", "gptctl run ... --wait")

    with pytest.raises(SystemExit) as ended:
        verb(as_json=True)
    out = capsys.readouterr().out
    wanted = {"kind": "NoCapacity", "message": "no 8xA100 in any region", "exit_code": 3}
    assert ended.value.code == 3 and json.loads(out) == {"error": {**wanted, "next": "gptctl run ... --wait"}}
    check_output(["run", "--json"], 3, out)


@pytest.mark.parametrize("stdout", ['{"recipes": [], "new": 1}', '{"recipes": [{"name": "x"}]}', '{"error": {}}'])
def test_the_check_sees_keys_that_are_new_and_keys_that_are_gone(stdout: str) -> None:
    with pytest.raises(AssertionError, match="differs from its schema"):
        check_output(["recipes", "--json"], 0, stdout)
