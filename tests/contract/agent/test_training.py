"""The agent and the real trainer under the real torchrun: what the contract between them comes to."""

from __future__ import annotations

import json
import sys
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import trainer
from orchestrator.agent.system import processes
from orchestrator.remote.agent_client.client import Agent, Data, Ended
from orchestrator.remote.shell.local_shell import LocalShell
from tests.support.clock.waiting import until
from tests.support.machines.agent_box import Box
from trainer.contract import DataConfig, ModelConfig, RunConfig, TrainConfig

RUN = "real-1120-abcdef"


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    box = Box(tmp_path)
    yield box
    box.end()


def spec(box: Box, steps: int) -> dict[str, Any]:
    """A training of two gloo ranks over this repository's own trainer, on its own sources as text."""
    source = Path(trainer.__path__[0])
    tokens = array("H", list(b"".join(path.read_bytes() for path in sorted(source.glob("*.py")))))
    data = box.root / "data" / "train.bin"
    data.parent.mkdir()
    data.write_bytes(tokens.tobytes())
    config = RunConfig(
        model=ModelConfig(vocab_size=257, context_length=32, n_layer=1, n_head=2, n_embd=16),
        data=DataConfig(train_files=(str(data),), validation_tokens=512, tokenizer="bytes"),
        train=TrainConfig(
            steps=steps, global_batch=4, micro_batch=2, precision="fp32", log_every=1,
            checkpoint_every=10, validate_every=10,
        ),
    )  # fmt: skip
    return {
        "python": sys.executable, "pythonpath": str(source.parent), "ranks": 2, "gpus": [],
        "threads_per_rank": 1, "config": config.to_json(), "grace_s": 60,
    }  # fmt: skip


@pytest.mark.nightly
def test_a_real_training_survives_its_supervisor_and_its_checkpoints_verify(box: Box) -> None:
    agent = Agent(LocalShell(), str(box.root))
    assert agent.start("train", RUN, "d", spec(box, steps=40)).state == "started"
    until(lambda: len(box.metrics(RUN)) >= 3)
    assert len(box.ranks(RUN)) == 2
    box.kill_supervisor(RUN)
    mirror = b""
    with agent.follow(RUN, "train", {}) as lines:
        for line in lines:
            if isinstance(line, Data) and line.file == "metrics.jsonl":
                mirror += line.data
            if isinstance(line, Ended):
                ended = line.exit
    assert ended["outcome"] == "finished" and ended["trainer"]["step"] == 40
    assert [json.loads(line)["step"] for line in mirror.splitlines()] == list(range(1, 41))
    assert box.starts(RUN) == 1
    checkpoints = agent.manifest(RUN)
    assert checkpoints[-1].latest and any(checkpoint.best for checkpoint in checkpoints)
    held = box.call("status", run=RUN)["runs"][RUN]["holding"]
    assert held is None or all(entry["verified"] for entry in held["checkpoints"])


@pytest.mark.nightly
def test_a_real_training_stops_with_a_checkpoint_of_its_last_step(box: Box) -> None:
    agent = Agent(LocalShell(), str(box.root))
    agent.start("train", RUN, "d", spec(box, steps=100_000))
    until(lambda: len(box.metrics(RUN)) >= 3)
    answer = agent.stop(RUN, grace_s=60)
    ended = answer["exit"]
    assert (ended["outcome"], ended["code"]) == ("stopped", 0)
    assert agent.manifest(RUN)[-1].step == ended["trainer"]["step"]
    assert processes.of_job(str(box.folder(RUN))) == []
