"""Checkpoints as the agent lists them, the SAFE mark, and the status that goes with every heartbeat."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from orchestrator.agent import status
from orchestrator.agent.checkpoints import manifest
from orchestrator.agent.system.refusal import Refusal
from tests.support.machines.agent_box import Box


def make_checkpoint(run: Path, step: int, content: bytes = b"weights") -> Path:
    folder = run / "checkpoints" / f"step-{step:06d}"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(content)
    entry = {"size_bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (folder / "MANIFEST.json").write_text(json.dumps({"files": {"model.safetensors": entry}}))
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with checkpoints 10, 20, 30; best is 10, latest is 30; the newest one is kept, and every 20th."""
    folder = tmp_path / "run"
    for step in (10, 20, 30):
        make_checkpoint(folder, step)
    (folder / "checkpoints" / "best").symlink_to("step-000010")
    (folder / "checkpoints" / "latest").symlink_to("step-000030")
    (folder / "config.json").write_text(json.dumps({"retention": {"keep_last": 1, "keep_every": 0}}))
    return folder


def listed(run: Path) -> list[dict[str, Any]]:
    return list(manifest.manifest(str(run))["checkpoints"])


def test_complete_checkpoints_with_their_flags(run: Path) -> None:
    entries = listed(run)
    assert [entry["step"] for entry in entries] == [10, 20, 30]
    assert [entry["kept"] for entry in entries] == [True, False, True]
    assert [entry["best"] for entry in entries] == [True, False, False]
    assert [entry["latest"] for entry in entries] == [False, False, True]
    written = (run / "checkpoints" / "step-000010" / "MANIFEST.json").read_bytes()
    assert entries[0]["manifest_sha256"] == hashlib.sha256(written).hexdigest()
    assert entries[0]["manifest_size_bytes"] == len(written)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"files": 3}', '{"files": {"model.safetensors": {}}}'])
def test_a_torn_manifest_makes_no_checkpoint(run: Path, text: str) -> None:
    (run / "checkpoints" / "step-000020" / "MANIFEST.json").write_text(text)
    assert [entry["step"] for entry in listed(run)] == [10, 30]


def test_a_short_or_missing_file_makes_no_checkpoint(run: Path) -> None:
    (run / "checkpoints" / "step-000020" / "model.safetensors").write_bytes(b"short")
    (run / "checkpoints" / "step-000030" / "model.safetensors").unlink()
    (run / "checkpoints" / ".tmp-step-000040").mkdir()
    (run / "checkpoints" / "step-000050").symlink_to("/etc")
    assert [entry["step"] for entry in listed(run)] == [10]


def test_safe_is_only_for_the_manifest_that_was_verified(run: Path) -> None:
    digest = listed(run)[0]["manifest_sha256"]
    with pytest.raises(Refusal) as refused:
        manifest.mark_safe(str(run), 10, "0" * 64)
    assert refused.value.code == "manifest-differs"
    assert not any(entry["safe"] for entry in listed(run))
    assert manifest.mark_safe(str(run), 10, digest) == {"step": 10, "safe": True}
    assert manifest.mark_safe(str(run), 10, digest) == {"step": 10, "safe": True}
    assert [entry["safe"] for entry in listed(run)] == [True, False, False]
    assert manifest.safe_steps(str(run)) == [10]
    with pytest.raises(Refusal, match="no checkpoint of step 77"):
        manifest.mark_safe(str(run), 77, digest)


def test_flipped_bytes_are_not_verified(run: Path) -> None:
    entry = listed(run)[0]
    assert manifest.verified(str(run), entry)
    (run / "checkpoints" / "step-000010" / "model.safetensors").write_bytes(b"weightz")
    assert not manifest.verified(str(run), entry)


def test_after_the_end_status_says_what_is_held(tmp_path: Path) -> None:
    box = Box(tmp_path)
    make_checkpoint(box.root / "runs" / "r-1", 10)
    broken = make_checkpoint(box.root / "runs" / "r-1", 20)
    (broken / "model.safetensors").write_bytes(b"wEIGHTS")
    box.start(steps=3)
    box.wait()
    box.call("stop", run="r-1")
    entry = box.call("status", run="r-1")["runs"]["r-1"]
    while entry["holding"] is None:
        entry = box.call("status", run="r-1")["runs"]["r-1"]
    assert entry["holding"] == {"checkpoints": [{"step": 10, "verified": True}, {"step": 20, "verified": False}]}
    assert entry["checkpoints"] == [10, 20] and entry["step"] == 3
    assert entry["guard"] == {"kind": "none", "armed": False, "ends_at": None}


def test_status_of_all_of_one_and_of_none(tmp_path: Path) -> None:
    box = Box(tmp_path)
    nothing = {"runs": {}, "guard": {"kind": "none", "armed": False, "ends_at": None}, "time_s": 0}
    assert box.call("status") | {"time_s": 0} == nothing
    assert box.call("status", run="r-1")["error"]["code"] == "no-such-run"
    box.start(steps=2)
    box.wait()
    (box.root / "runs" / ".a file of somebody").touch()
    assert list(box.call("status")["runs"]) == ["r-1"]


def test_a_disk_too_small_for_what_is_to_come_is_forecast(run: Path) -> None:
    free = os.statvfs(run).f_bavail * os.statvfs(run).f_frsize
    with (run / "checkpoints" / "step-000030" / "model.safetensors").open("r+b") as file:
        file.truncate(free)  # sparse: as large as all that is free
    config = {"train": {"steps": 100, "checkpoint_every": 10}, "retention": {"keep_last": 3}}
    (run / "config.json").write_text(json.dumps(config))
    warnings = status._warnings(str(run), [])
    assert len(warnings) == 1 and "checkpoints of" in warnings[0]
    (run / "config.json").write_text(json.dumps({**config, "train": {"steps": 30, "checkpoint_every": 10}}))
    assert status._warnings(str(run), []) == []


def test_a_throughput_collapse_is_a_warning(run: Path) -> None:
    steady: list[dict[str, object]] = [{"step": step, "tokens_per_second": 1000.0 + step} for step in range(20)]
    assert status._warnings(str(run), steady) == []
    warnings = status._warnings(str(run), [{"step": 20, "tokens_per_second": 400.0}, *steady])
    assert len(warnings) == 1 and "throughput fell to 400" in warnings[0]
