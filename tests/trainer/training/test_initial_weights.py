"""`init_from`: a run that begins with the weights of another, at step 0, with a fresh optimizer; what it carries."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from tests.support.files.small_runs import TINY, write_run
from tests.support.files.training_runs import events, losses, small_config, train_here, write_config
from trainer.checkpoints.manifest import CheckpointError
from trainer.contract import ModelConfig
from trainer.run_files import CHECKPOINTS, LATEST, META_FILE, MODEL_FILE

LINEAGE = {"source": "b", "from_step": 0, "before": [{"source": "a", "tokens": 9}], "origin": {"how": "initialised"}}


def begun(folder: Path, origin: Path, model: ModelConfig = TINY, steps: int = 10) -> Path:
    config = small_config(folder, steps=steps, model=model, seed=11)
    return write_config(folder, dataclasses.replace(config, init_from=str(origin), lineage=LINEAGE))


def test_the_first_loss_is_that_of_the_weights_and_training_begins_at_step_0(tmp_path: Path) -> None:
    trained = write_config(tmp_path / "trained", small_config(tmp_path / "trained", steps=40, learning_rate=1e-2))
    train_here(trained)
    origin = trained / CHECKPOINTS / LATEST
    child = begun(tmp_path / "child", origin)
    train_here(child)
    assert losses(child)[1] < losses(trained)[1] - 1, "it does not begin from random weights"
    assert [event["step"] for event in events(child, "started")] == [0]
    assert [event["folder"] for event in events(child, "initialised")] == [str(origin.resolve())]
    meta = json.loads((child / CHECKPOINTS / LATEST / META_FILE).read_text())
    assert meta["lineage"] == {**LINEAGE, "own_tokens": 10 * 8 * TINY.context_length}
    train_here(write_config(child, dataclasses.replace(small_config(child, steps=20), init_from=str(origin))))
    assert len(events(child, "initialised")) == 1, "its own checkpoint takes precedence"


@pytest.mark.parametrize("broken", ["shape", "sha256"])
def test_weights_that_do_not_fit_or_are_damaged_end_the_run_at_its_start(tmp_path: Path, broken: str) -> None:
    origin = write_run(tmp_path / "other", dataclasses.replace(TINY, n_layer=3 if broken == "shape" else 2))
    if broken == "sha256":
        content = bytearray((origin / MODEL_FILE).read_bytes())
        content[-1] ^= 1
        (origin / MODEL_FILE).write_bytes(content)
    said = "blocks.2" if broken == "shape" else "damaged"
    with pytest.raises(CheckpointError, match=said):
        train_here(begun(tmp_path / "child", origin))
