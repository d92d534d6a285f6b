"""An arm of a sweep asks for what `run` asks for: its home boxes, the weights that it begins with, a key of a host."""

from __future__ import annotations

import ast
import inspect
import json
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from orchestrator.cli.driver.driver import surrendered
from orchestrator.cli.driver.on_the_driver import Driver
from orchestrator.cli.plans import stores
from orchestrator.cli.plans.origin import Beginning
from orchestrator.cli.runs import run as cli_run
from orchestrator.cli.runs.outcome import show_ending
from orchestrator.cli.sweeps import requests, sweep
from orchestrator.cli.sweeps.plan import Planned
from orchestrator.cli.sweeps.show import show
from orchestrator.core.config.inventory import HostSpec
from orchestrator.core.errors import CommandFailed, GptctlError, UserError
from orchestrator.core.facts.run_facts import ResumeFrom
from orchestrator.ledger import sweeps
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.sweeps import Sweep
from orchestrator.runs.handover import give, runs_meant
from tests.support.machines.in_process import invoke

INVENTORY = """
[hosts.nas]
provider = "ssh"
machine = "1x3090"
address = "192.0.2.9"
user = "me"
folder = "/data/gptctl"
[hosts.box]
provider = "ssh"
machine = "1x3090"
address = "192.0.2.1"
price_per_hour_usd = 0.5
checkpoint_store = "ssh://nas/models"
"""
NOT_OF_AN_ARM = {"alternatives", "name", "note", "keep", "on_rental", "resume_from"}
"""All arms share one type of machine; they are told apart by arm and seed, and begin where the sweep begins."""


RATES = '[set]\n"train.learning_rate" = [1e-3]\n'


def keywords(function: object) -> set[str]:
    """Of the RunRequest that it makes."""
    tree = ast.parse(inspect.getsource(function))  # type: ignore[arg-type]
    calls = [each for each in ast.walk(tree) if isinstance(each, ast.Call)]
    (made,) = [each for each in calls if isinstance(each.func, ast.Name) and each.func.id == "RunRequest"]
    return {each.arg for each in made.keywords if each.arg}


def test_an_arm_asks_for_all_that_a_run_asks_for() -> None:
    assert keywords(cli_run._request) - keywords(requests.request) == NOT_OF_AN_ARM


@pytest.fixture
def started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder where a sweep is written down and not driven; a store is asked nothing."""
    monkeypatch.setenv("GPTCTL_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sweep, "_go_on", lambda *_, **__: 0)
    (tmp_path / "inventory.toml").write_text(INVENTORY)
    (tmp_path / "s.toml").write_text('name = "s"\nbaseline = "quickstart"\nseeds = 2\n')
    return tmp_path


def gptctl(*words: str) -> str:
    done = invoke("sweep", *words, "--yes")
    assert done.exit_code == 0, done.output
    return done.output


def test_the_arms_of_a_sweep_know_their_home_box_and_their_weights(
    started: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried, weights = list[int](), ResumeFrom("/models/gpt2/step-000000", 0, {})

    def check(uri: str, storage: object, *, hub_token_on_machine: bool, needs_bytes: int) -> None:
        tried.append(needs_bytes)

    monkeypatch.setattr(stores.preflight, "check", check)
    monkeypatch.setattr(requests, "beginning", lambda *_: Beginning(init_from=weights))
    gptctl("run", "s.toml", "--host", "box")
    gptctl("add", "s", "quickstart", "--set", "train.learning_rate=1e-3")
    with Ledger.open(started / "home", time.time) as ledger:
        runs = ledger.runs()
    assert len(runs) == 4 and len(tried) == 1 and tried[0] > 0
    boxes = [box for run in runs for box in run.facts.home_boxes]
    assert [(box.name, box.address.host, box.agent_folder) for box in boxes] == [
        ("nas", "192.0.2.9", "/data/gptctl")
    ] * 4
    assert [run.facts.init_from for run in runs] == [weights] * 4


def test_a_start_that_was_killed_before_its_driver_had_it_is_handed_over_again(
    started: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same words again, and never driven from here in its place."""
    monkeypatch.setattr(stores.preflight, "check", lambda *_, **__: None)
    monkeypatch.setattr(sweep, "_go_on", lambda *_, **__: pytest.fail("it drove the sweep here"))
    given = list[list[str]]()

    def hand_over(ledger: Ledger, run_ids: list[str], host: HostSpec, *, accept_new: bool) -> None:
        given.append(run_ids)
        if len(given) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(sweep, "hand_over", hand_over)
    words = ["sweep", "run", "s.toml", "--host", "box", "--driver", "nas", "--yes"]
    codes = [invoke(*words).exit_code for _ in range(2)]
    assert codes == [130, 0] and given[0] == given[1] and len(given[0]) == 2


@pytest.mark.parametrize("driver", [[], ["--driver", "nas"]])
@pytest.mark.parametrize("verb", [["run", "quickstart"], ["sweep", "run", "s.toml"]])
def test_as_json_the_plan_is_talk_and_what_comes_of_it_the_result(
    started: Path, monkeypatch: pytest.MonkeyPatch, verb: list[str], driver: list[str]
) -> None:
    monkeypatch.setattr(stores.preflight, "check", lambda *_, **__: None)
    monkeypatch.setattr(sweep, "_go_on", lambda ledger, found, **_: show(ledger, found, as_json=True) or 0)
    monkeypatch.setattr(cli_run, "follow_through", lambda ledger, run, **_: show_ending(ledger, run.id, as_json=True))
    for module in (sweep, cli_run):
        monkeypatch.setattr(module, "hand_over", lambda *_, **__: None)
    done = invoke(*verb, "--host", "box", *driver, "--yes", "--json")
    assert done.exit_code == 0, done.output
    assert set(json.loads(done.stdout)) >= ({"arms", "machines"} if verb[0] == "sweep" else {"runs", "rentals"})
    assert "COST" in done.stderr or "cost" in done.stderr


@pytest.mark.parametrize(("said", "kind"), [("no run matches 's'", UserError), ("no answer", CommandFailed)])
def test_a_handover_that_never_arrived_is_repeated(
    started: Path, monkeypatch: pytest.MonkeyPatch, said: str, kind: type[GptctlError]
) -> None:
    monkeypatch.setattr(stores.preflight, "check", lambda *_, **__: None)
    gptctl("run", "s.toml", "--host", "box")

    def answer(words: list[str], *, deadline_s: float) -> dict[str, object]:
        raise CommandFailed(said)

    driver = cast("Driver", SimpleNamespace(host=SimpleNamespace(name="nas"), answer=answer))
    with Ledger.open(started / "home", time.time) as ledger:
        give(ledger, runs_meant(ledger, "s"), to="nas", patience_s=1.0)
        with pytest.raises(kind) as refused:
            surrendered(driver, ledger, "s")
    assert ("gptctl driver give s nas" in (refused.value.hint or "")) is (kind is UserError)


def test_who_leaves_a_sweep_on_two_machines_waits_until_both_have_left(monkeypatch: pytest.MonkeyPatch) -> None:
    told = list[str]()

    class Child:
        def __init__(self, argv: list[str], *, stdin: int, process_group: int) -> None:
            self.rental = argv[-1]
            assert process_group == 0, "else the terminal tells it too"

        def wait(self) -> int:
            if not told:
                raise KeyboardInterrupt
            told.append(f"{self.rental} left")
            return 0

        def terminate(self) -> None:
            told.append(f"{self.rental} told")

    monkeypatch.setattr(sweep.subprocess, "Popen", Child)
    assert sweep._side_by_side(cast("Sweep", SimpleNamespace(id="s-1")), ["a", "b"], detach=False) == 0
    assert told == ["a told", "b told", "a left", "b left"]


@pytest.mark.parametrize(
    ("before", "after", "host", "says"),
    [
        ("", "", "nas", "host box, not nas"),
        ("[limits]\nmax_hours = 90\n", "[limits]\nmax_hours = 3\n", "box", "limits.max_hours 90.0, not 3.0"),
        ("", "[limits]\nmax_cost_usd = 1\n", "box", "limits.max_cost_usd none, not 1.0"),
        ("", 'on_failure = "stop"\n', "box", "on_failure skip, not stop"),
        ("[stop]\nstep = 9\nmargin = 0.1\n", "[stop]\nstep = 9\nmargin = 0.2\n", "box", "stop.margin 0.1, not 0.2"),
        ("[stop]\nstep = 9\nmargin = 0.1\n", "", "box", "stop.step 9, not none; stop.margin 0.1, not none"),
        (RATES, 'order = "baseline-first"\n' + RATES, "box", "other terms: its arms in another order"),
        ("", RATES, "box", "other terms: other arms"),
    ],
)
def test_a_sweep_under_way_is_continued_on_its_terms_or_not_at_all(
    started: Path, monkeypatch: pytest.MonkeyPatch, before: str, after: str, host: str, says: str
) -> None:
    monkeypatch.setattr(stores.preflight, "check", lambda *_, **__: None)
    head = (started / "s.toml").read_text()
    (started / "s.toml").write_text(head + before)
    gptctl("run", "s.toml", "--host", "box")
    assert "continuing it" in gptctl("run", "s.toml", "--host", "box")
    (started / "s.toml").write_text(head + after)
    done = invoke("sweep", "run", "s.toml", "--host", host, "--yes")
    said = " ".join(done.output.split())
    assert done.exit_code == 2 and says in said, said
    assert "gptctl sweep resume s" in said and "gptctl sweep stop s" in said, said
    with Ledger.open(started / "home", time.time) as ledger:
        (known,) = sweeps.listed(ledger.rows)
    assert known.host == "box"


def test_a_ceiling_that_gptctl_worked_out_may_move_with_the_pace_of_the_machine(
    started: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it measures meanwhile changes the plan, and not what you agreed to."""
    monkeypatch.setattr(stores.preflight, "check", lambda *_, **__: None)
    gptctl("run", "s.toml", "--host", "box")
    planned = sweep.prepared

    def slower(*words: Any) -> Planned:
        found = planned(*words)
        return replace(found, plan=replace(found.plan, ceiling_usd=7.0))

    monkeypatch.setattr(sweep, "prepared", slower)
    assert "continuing it" in gptctl("run", "s.toml", "--host", "box")
