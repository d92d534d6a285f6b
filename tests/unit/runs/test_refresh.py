"""What `status` says of a run that no gptctl follows: why it goes no further, and the next command."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cli.machines.totals import Totals
from orchestrator.cli.runs.status import collect, show
from orchestrator.core.states import State
from orchestrator.ledger import Ledger, Rental, RunRecord
from orchestrator.ledger.run_lock import RunLock
from orchestrator.runs import refresh

RUN = "tiny-1130-aaaaaa"
LOST = "node b (10.0.0.3) is lost: no word for 15 s"


def answer(outcome: str = "", reason: str = "", **more: Any) -> refresh.Answer:
    """The machine's; without an outcome it trains."""
    exit_record = {"outcome": outcome, "reason": reason, **more} if outcome else None
    status: Any = {
        "metrics": None, "safe": [], "ahead": None, "store": None, "guard": {"kind": "none", "armed": False},
        "jobs": {"train": {"exit": exit_record}},
    }  # fmt: skip
    return refresh.Answer(status, None)


def said(folder: Path, monkeypatch: pytest.MonkeyPatch, found: refresh.Answer | None, policy: str = "end") -> str:
    """The sentence in `gptctl status --json`."""
    monkeypatch.setattr(refresh, "_fetch_status", lambda *_: found)
    with Ledger.open(folder, time.time) as ledger:
        if not ledger.runs():
            ledger.add_rental(Rental("r", "ssh", "pair", "2x1xCPU", 1.0))
            ledger.update_rental("r", facts={"reached": 1.0})
            host = {"name": "pair", "provider": "ssh", "machine": "1xCPU", "nodes": ["a", "b"], "on_node_lost": policy}
            ledger.add_run(RunRecord(RUN, "tiny", "pair", "2x1xCPU", 1.0, rental_id="r", host_data=host))
            ledger.set_state(RUN, State.TRAINING)
        return str(collect(ledger, RUN)["runs"][0]["needs_resume"])


@pytest.mark.parametrize(
    ("found", "policy", "words"),
    [
        (answer(), "end", ""),
        (answer("finished"), "end", "its training has ended there (finished)"),
        (answer("failed", LOST, lost=[1]), "end", f"its training has ended there (failed: {LOST})"),
        (
            answer("failed", LOST, lost=[1]), "continue",
            f'its training has ended there (failed: {LOST}); it goes on, as on_node_lost = "continue" says',
        ),
        (answer("failed", "out of memory"), "continue", "its training has ended there (failed: out of memory)"),
        (None, "end", ""),
        (None, "replace", "the head of its nodes does not answer; it goes on if the others lost it, too"),
    ],
)  # fmt: skip
def test_it_says_why_a_run_waits_for_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, found: refresh.Answer | None, policy: str, words: str
) -> None:
    assert said(tmp_path, monkeypatch, found, policy) == words


def test_the_line_has_the_next_command_and_goes_once_a_gptctl_follows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = answer("failed", LOST, lost=[1])
    assert said(tmp_path, monkeypatch, found, "continue")
    with Ledger.open(tmp_path, time.time) as ledger:
        show(collect(ledger, RUN), None, Totals(0.0, 0.0, 0.0, None), as_json=False)
    printed = " ".join("".join(capsys.readouterr()).split())
    assert "is lost: no word for 15 s); it goes on" in printed and f"Next: gptctl resume {RUN}" in printed
    with RunLock.acquire(tmp_path, RUN):
        assert said(tmp_path, monkeypatch, found) == ""
