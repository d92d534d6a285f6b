"""A foreign model in, without a run: measured, sampled, exported and compared like a run's, and never billed."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from orchestrator.core.states import Outcome
from orchestrator.ledger import Ledger
from tests.conftest import Gptctl
from tests.support.files.small_runs import write_run, write_tokens
from trainer.export import main as export

pytestmark = pytest.mark.usefixtures("known_machine")


@pytest.mark.nightly
def test_an_export_comes_back_and_is_taken_like_a_run(gptctl: Gptctl, gptctl_home: Path, tmp_path: Path) -> None:
    checkpoint = write_run(tmp_path / "run")
    export([str(checkpoint), "--format", "hf", "--to", str(tmp_path / "model")])
    tokens = write_tokens(tmp_path / "test.safetensors", [at % 250 for at in range(500)])
    done = gptctl("import", "./model", "--name", "mine", "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    here = gptctl_home / "runs" / said["run"] / "checkpoints" / "best" / "model.safetensors"
    before, after = load_file(checkpoint / "model.safetensors"), load_file(here)
    assert before.keys() == after.keys() and all((before[name] == after[name]).all() for name in before)

    measured = gptctl("eval", "mine", "--data", str(tokens), "--json")
    assert measured.returncode == 0, measured.stderr
    assert json.loads(measured.stdout)["evaluations"][0]["loss"] > 0
    assert gptctl("sample", "./model", "--prompt", "def ", "--tokens", "3").returncode == 0
    with Ledger.open(gptctl_home, time.time) as ledger:
        run = ledger.run(said["run"])
        assert (run.outcome, run.rental_id, ledger.spent_by_run()) == (Outcome.IMPORTED, None, [])
        (kept,) = ledger.evaluations(run.id)
        assert kept.result["tokens_sha256"], "compare ranks it beside runs by this"
    assert gptctl("export", "mine", "--to", "again").returncode == 0
    assert "pretrained-from-scratch" not in (tmp_path / "again" / "README.md").read_text()
