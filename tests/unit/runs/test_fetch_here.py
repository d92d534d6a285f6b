"""`fetch` of a run whose machine is gone: what is here, verified, or what is missing and the next command."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from orchestrator.core.errors import Unreachable, UserError
from orchestrator.core.states import Outcome, State
from orchestrator.ledger.records import RENTAL_RELEASED
from orchestrator.runs import fetch
from orchestrator.stages.checkpoints.copies import link
from orchestrator.stages.context import RunContext
from tests.support.machines.lying_account import LyingAccount, rented
from trainer import run_files

TOTAL = 30


def put(context: RunContext, step: int, *, best: bool = False) -> Path:
    """A whole checkpoint on this side, as fetch leaves it."""
    folder = context.mirror / run_files.CHECKPOINTS / run_files.checkpoint_name(step)
    folder.mkdir(parents=True)
    content = f"weights of {step}".encode()
    (folder / run_files.MODEL_FILE).write_bytes(content)
    entry = {"size_bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (folder / run_files.MANIFEST_FILE).write_text(json.dumps({"files": {run_files.MODEL_FILE: entry}}))
    link(folder.parent / run_files.LATEST, folder.name)
    if best:
        link(folder.parent / run_files.BEST, folder.name)
    return folder


def end(context: RunContext, outcome: Outcome = Outcome.FINISHED, safe_step: int | None = TOTAL) -> None:
    context.ledger.update_run(context.run_id, total_steps=TOTAL, safe_step=safe_step)
    context.ledger.set_state(context.run_id, State.ENDING, outcome=outcome, cause="")
    context.ledger.set_state(context.run_id, State.ENDED)
    context.ledger.update_rental(context.rental.id, state=RENTAL_RELEASED)


def brought(context: RunContext, to: Path | None = None, *, all_: bool = False, step: int | None = None) -> list[int]:
    folder = (to or context.mirror) / run_files.CHECKPOINTS
    return [each.step for each in fetch._brought(context, folder, all_=all_, step=step)]


def test_what_is_here_is_verified_and_copied_where_it_is_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with rented(tmp_path / "home", LyingAccount(), monkeypatch) as context:
        put(context, 10)
        put(context, 20, best=True)
        last = put(context, TOTAL)
        end(context)
        assert brought(context) == [20, TOTAL]
        assert brought(context, all_=True) == [10, 20, TOTAL]
        assert brought(context, tmp_path / "copy", step=10) == [10]
        assert brought(context, tmp_path / "copy") == [20, TOTAL] == brought(context, tmp_path / "copy")
        copied = tmp_path / "copy" / run_files.CHECKPOINTS
        assert (copied / run_files.LATEST / run_files.MODEL_FILE).read_bytes() == (
            last / run_files.MODEL_FILE
        ).read_bytes()
        assert (copied / run_files.BEST).readlink().name == run_files.checkpoint_name(20)


def test_a_run_that_was_taken_away_has_its_newest_checkpoint_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with rented(tmp_path, LyingAccount(), monkeypatch) as context:
        put(context, 10)
        end(context, Outcome.PREEMPTED, safe_step=10)
        assert brought(context) == [10]


@pytest.mark.parametrize("damaged", [False, True])
def test_without_the_last_checkpoint_it_says_what_is_here_and_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damaged: bool
) -> None:
    with rented(tmp_path, LyingAccount(), monkeypatch) as context:
        put(context, 10)
        if damaged:
            (put(context, TOTAL) / run_files.MODEL_FILE).write_bytes(b"weights of 31")
        end(context)
        with pytest.raises(
            UserError, match="machine is gone, and its last checkpoint, of step 30, is not here"
        ) as said:
            brought(context)
        assert "here: step 10" in said.value.message and f"--resume-from {context.run_id}@10" in said.value.hint
        assert brought(context, step=10) == [10]


def test_with_nothing_here_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with rented(tmp_path, LyingAccount(), monkeypatch) as context:
        end(context)
        with pytest.raises(UserError, match="checkpoints here: none"):
            brought(context)


def test_an_own_machine_that_is_off_is_asked_first_and_only_a_run_that_ended_does_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def silent(*_: object, **__: object) -> None:
        raise Unreachable("box: no answer")

    account = LyingAccount()
    account.paid = False
    monkeypatch.setattr(fetch, "_from_machine", silent)
    with rented(tmp_path, account, monkeypatch) as context:
        put(context, TOTAL)
        with pytest.raises(Unreachable):
            brought(context)
        end(context)
        assert brought(context) == [TOTAL]
