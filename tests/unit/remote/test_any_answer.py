"""Whatever a machine or a store answers, its decoder gives a value or its own error, and nothing else escapes.

Each row feeds arbitrary JSON, and honest answers with one wrong place, to one reader. Values that were accepted must
survive what is done with them next: a path, a column of the ledger, a line on the screen.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.agent.contract import answers as shapes
from orchestrator.agent.contract.facts import Environment, Facts
from orchestrator.core.checkpoints import store_index
from orchestrator.core.datasets import dataset_index
from orchestrator.core.errors import GptctlError
from orchestrator.core.formats import duration, local_time, size
from orchestrator.core.ports import Address, Part, Result
from orchestrator.remote.agent_client import boot, job_failure, pull_job
from orchestrator.remote.agent_client.answers import Data, checkpoint, follow_line, followed_files, job_state
from orchestrator.remote.agent_client.client import Agent
from orchestrator.remote.agent_client.decoding import decoded, json_object
from orchestrator.remote.transfer import far_calls
from orchestrator.report.local_checkpoints import read_checkpoints
from orchestrator.report.metrics import read_training
from orchestrator.runs.origin import resume_from
from orchestrator.stores.home_box import look_state
from tests.support.files.any_json import anything, damaged, honest
from trainer import run_files

FILES = followed_files("train")
SHA = "ab" * 32
ENTRY = {"size_bytes": 7, "sha256": SHA}
CHECKPOINT = {
    "step": 10, "name": "step-000010", "files": {"model.safetensors": ENTRY}, "manifest_sha256": SHA,
    "manifest_size_bytes": 90, "safe": False, "best": True,
}  # fmt: skip
TREE: Any = {"folder": "~/x", "files": {"a.py": (3, SHA)}, "digest": SHA}
FAR = {"sealed": True, "folder": "/x", "missing": ["a.py"], "free_bytes": 9, "rsync": True, "path": "/x/a",
       "sha256": None, "part": "/x/.a", "positions": [0, 4], "needed_bytes": 9}  # fmt: skip
INDEX = {
    "run": "r-1", "checkpoints": [{k: v for k, v in CHECKPOINT.items() if k not in ("name", "safe")}
                                  | {"folder": "step-000010"}],
    "files": {"metrics.jsonl": ENTRY}, "ended": None,
}  # fmt: skip
DATASET = {"files": {"train.bin": ENTRY, "val.bin": {**ENTRY, "blocks": [SHA], "block_size_bytes": 16}}}
META = {"step": 10, "model": {"n_layer": 2}}
LOOK = {"problem": None, "free_bytes": 9, "ssh": "/usr/bin/ssh", "memory": True}
METRIC = {"step": 3, "tokens": 9, "loss": 2.5, "lr": 1e-3, "grad_norm": 1.0, "tokens_per_second": 9.0, "mfu": 0.1,
          "memory_gib": 1.0, "time": 1e9}  # fmt: skip
EVENT = {"event": "sampled", "step": 3, "text": "x", "val_loss": 2.5, "torch": "2.9", "ranks": 1}
PART = Part("https://example.com/a", 0, 9, "a")


class Answers:
    """A shell whose machine says these bytes."""

    address = Address(host="box", identity="box")

    def __init__(self, said: bytes) -> None:
        self.said = said

    def run(self, argv: Any, **_: Any) -> Result:
        return Result(tuple(argv), 0, self.said, b"")

    def openssh(self) -> list[str]:
        return ["ssh"]


def text(value: object) -> bytes:
    return json.dumps(value).encode()


def far(ask: Callable[[Any, Any, str], object], question: Any) -> Callable[[Any], object]:
    return lambda value: ask(Answers(text(value)), question, "push")


def refused(value: Any) -> object:
    if isinstance(value, dict):
        boot.is_missing(value) and boot.missing_path(value)
        return boot.accepted("status", value)
    return None


def followed(value: Any) -> object:
    if isinstance(value, dict):
        line = follow_line(value, FILES)
        return line.offset < 1 << 63 if isinstance(line, Data) else line
    return None


def one_checkpoint(value: Any) -> object:
    found = checkpoint(decoded(shapes.CheckpointEntry, value, "manifest"))
    assert all(entry.size_bytes >= 0 and str(Path("x") / name) for name, entry in found.files.items())
    return size(found.size_bytes)


def shown_guard(value: Any) -> object:
    found = decoded(shapes.GuardStatus, value, "guard")
    for key in ("left_s", "ends_at"):
        moment = found.get(key)
        if isinstance(moment, float | int):
            duration(moment), local_time(1.7e9 + moment)
    return found


def pulled(value: Any) -> object:
    exit_record = {"code": 0, "signal": None, "outcome": "finished", "reason": "", "started_at": 1.0, "ended_at": 2.0,
                   "duration_s": 1.0, "error": None, "trainer": None, "result": value}  # fmt: skip
    started = {"job": "pull", "run": "r-1", "state": "ended", "digest": "d", "exit": exit_record}
    agent = Agent(Answers(text(started)), "~/.gptctl")  # type: ignore[arg-type]
    return pull_job.pull(agent, "r-1", lambda: [PART], lambda _: None)


READERS: dict[str, tuple[Any, Callable[[Any], object]]] = {
    **{
        f"agent {shape.__name__}": (honest(shape), lambda value, shape=shape: decoded(shape, value, "x"))
        for shape in (shapes.MachineStatus, shapes.StartAnswer, shapes.StopAnswer, shapes.ReleaseAnswer,
                      shapes.LeaseAnswer, shapes.HostKeyAnswer, shapes.Manifest, shapes.Where, Facts, Environment,
                      shapes.ProbeResult, shapes.PullResult)
    },
    "agent refusal": ({"error": {"code": "x", "message": "m", "hint": "", "path": "/x"}}, refused),
    "agent follow": ({"kind": "data", "file": "train.log", "offset": 0, "data": "aGk="}, followed),
    "agent heartbeat": (honest(shapes.HeartbeatLine), followed),
    "agent start": (honest(shapes.StartAnswer), lambda value: job_state(value).exit),
    "agent guard": (honest(shapes.GuardStatus), shown_guard),
    "agent exit": (
        honest(shapes.ExitRecord),
        lambda value: job_failure.failure(decoded(shapes.ExitRecord, value, "exit")),
    ),
    "agent checkpoint": (CHECKPOINT, one_checkpoint),
    "agent pull": ({"files": {"/x/a": ENTRY}}, pulled),
    "far tree": (FAR, far(far_calls.read_tree, TREE)),
    "far file": (FAR, far(far_calls.prepare_file, {})),
    "far seal": (FAR, far(far_calls.seal_tree, TREE)),
    "store index": (INDEX, lambda value: store_index.read_index(text(value), "s3://b").newest()),
    "store manifest": (
        {"files": {"model.safetensors": ENTRY}},
        lambda value: store_index.of_manifest(1, "step-000001", text(value), SHA, "s3://b").size_bytes,
    ),
    "dataset index": (DATASET, lambda value: dataset_index.read_index(text(value), "s3://b")),
    "checkpoint meta": (META, lambda value: resume_from.read_meta(text(value), "s3://b")),
    "home box": (LOOK, lambda value: look_state(text(value), "ssh://nas/x")),
}  # fmt: skip


@pytest.mark.parametrize("reader", READERS)
@given(data=st.data())
@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
def test_a_reader_gives_a_value_or_its_own_error(reader: str, data: st.DataObject) -> None:
    right, read = READERS[reader]
    value = data.draw(damaged(right) | anything)
    value = json_object(json.dumps({"": value}).encode())
    refusal: GptctlError | None = None
    try:
        read(value[""] if value else None)
    except GptctlError as error:
        refusal = error
    assert refusal is None or f"{refusal.message} {refusal.hint}".encode()


@given(lines=st.lists(damaged(METRIC) | damaged(EVENT) | anything, max_size=6))
@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
def test_the_files_of_a_machine_are_read_whatever_is_in_them(lines: list[Any], tmp_path_factory: Any) -> None:
    folder = tmp_path_factory.mktemp("mirror")
    for name in (run_files.METRICS, run_files.EVENTS):
        (folder / name).write_bytes(b"".join(text(line) + b"\n" for line in lines))
    found = read_training(folder)
    assert all(isinstance(point.value, float) for point in found.losses)


@given(manifest=damaged({"files": {"model.safetensors": ENTRY}}) | anything)
@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
def test_a_manifest_here_is_read_or_passed_over(manifest: Any, tmp_path_factory: Any) -> None:
    folder = tmp_path_factory.mktemp("checkpoints") / "step-000010"
    folder.mkdir()
    (folder / run_files.MANIFEST_FILE).write_bytes(text(manifest))
    assert all(each.step == 10 for each in read_checkpoints(folder.parent))
