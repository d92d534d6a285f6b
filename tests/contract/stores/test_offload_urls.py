"""The offload job: a real agent stores checkpoints in a server that refuses, cuts, lies and comes back."""

from __future__ import annotations

import hashlib
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.agent.checkpoints import object_requests
from orchestrator.agent.system import memory_files, processes
from tests.contract.guard.test_guard_process import Api, api, order
from tests.support.clock.waiting import until
from tests.support.clouds.object_server import SIGNATURE, ObjectServer
from tests.support.files.canary import below, holders
from tests.support.machines.agent_box import Box

__all__ = ["api"]
FILES = ("model.safetensors", "MANIFEST.json")
RUN = "r-1"


@pytest.fixture
def server() -> Iterator[ObjectServer]:
    with ObjectServer() as server:
        yield server


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    box = Box(tmp_path)
    yield box
    guard = json.loads(_text(box.root / "guard" / "state.json")).get("guard")
    if processes.is_alive(guard):
        os.kill(guard["pid"], signal.SIGKILL)
    box.end()
    for name in in_memory_files(box):
        Path(name).unlink(missing_ok=True)


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else "{}"


def in_memory_files(box: Box) -> list[str]:
    folders = [str(path) for path in (box.root / "jobs").glob("*/offload-*")]
    return [memory_files.path("store", folder) for folder in folders] + [memory_files.path("guard", str(box.root))]


def checkpoint(box: Box, step: int, size: int = 200_000, *, best: bool = False, grown_to: int = 0) -> Path:
    """A complete checkpoint under its name at once, as the trainer's rename makes it, and the links. grown_to: as if it
    had so many bytes; they take no room on the disk."""
    root = box.root / "runs" / RUN / "checkpoints"
    fresh, folder = root / f".tmp-{step}", root / f"step-{step:06d}"
    fresh.mkdir(parents=True)
    content = bytes([step % 256]) * size
    (fresh / "model.safetensors").write_bytes(content)
    os.truncate(fresh / "model.safetensors", max(size, grown_to))
    entry = {"size_bytes": max(size, grown_to), "sha256": hashlib.sha256(content).hexdigest()}
    (fresh / "MANIFEST.json").write_text(json.dumps({"files": {"model.safetensors": entry}}))
    fresh.rename(folder)
    for link in ("latest", *(["best"] if best else [])):
        (root / link).unlink(missing_ok=True)
        (root / link).symlink_to(folder.name)
    return folder


def train(box: Box, steps: int = 100_000) -> None:
    """A training that goes on until it is stopped."""
    box.start(steps=steps, retention={"keep_last": 2, "keep_every": 0, "require_safe": True})


def start(box: Box, secrets: dict[str, Any], then: str = "end") -> dict[str, Any]:
    spec = {"store": "s3://bucket/prefix/r-1", "then": then}
    return box.call("start", job="offload", run=RUN, digest="o", spec=spec, secrets=secrets)


def store(box: Box) -> dict[str, Any]:
    return dict(box.call("status", run=RUN)["runs"][RUN]["store"])


def safe(box: Box) -> list[int]:
    return list(box.call("status", run=RUN)["runs"][RUN]["safe"])


def index(server: ObjectServer) -> dict[str, Any]:
    return dict(json.loads(server.objects["CHECKPOINTS.json"]))


def test_every_checkpoint_is_safe_while_training_goes_on_and_what_is_not_kept_leaves_the_store(
    box: Box, server: ObjectServer
) -> None:
    train(box)
    start(box, server.urls(["step-000010", "step-000020", "step-000030"], FILES))
    checkpoint(box, 10)
    until(lambda: safe(box) == [10])
    checkpoint(box, 20, best=True)
    checkpoint(box, 30)
    until(lambda: 30 in safe(box) and 20 in safe(box))
    stray = checkpoint(box, 35)  # a stop, say: nobody planned it
    until(lambda: 35 in safe(box))
    box.call("stop", run=RUN, job="train", grace_s=5)
    until(lambda: store(box)["finished"])
    found = index(server)
    assert [(each["step"], each["folder"]) for each in found["checkpoints"]] == [
        (20, "step-000020"), (30, "step-000030"), (35, "spare-01"),
    ]  # fmt: skip
    assert [each["step"] for each in found["checkpoints"] if each["best"]] == [20]
    assert [each["step"] for each in found["checkpoints"] if each["latest"]] == [35]
    assert found["ended"]["outcome"] == "stopped"
    assert server.objects["spare-01/model.safetensors"] == (stray / "model.safetensors").read_bytes()
    assert not [name for name in server.objects if name.startswith(("step-000010", "probe"))]
    assert server.objects["metrics.jsonl"] == (box.root / "runs" / RUN / "metrics.jsonl").read_bytes()
    assert store(box)["state"] == "safe" and store(box)["store"] == "s3://bucket/prefix/r-1"


def test_wrong_bytes_given_back_are_never_safe(box: Box, server: ObjectServer) -> None:
    train(box)
    server.lies.add("step-000010/model.safetensors")
    start(box, server.urls(["step-000010"], FILES))
    checkpoint(box, 10)
    until(lambda: server.count("GET", "step-000010/model.safetensors") >= 2)
    assert "came back from the store" in (store(box)["problem"] or "") and safe(box) == []
    server.lies.clear()
    until(lambda: safe(box) == [10])


@pytest.mark.parametrize("fault", [(403, "AccessDenied"), (507, "QuotaExceeded"), (503, "SlowDown")])
def test_a_store_that_refuses_is_named_before_the_training_and_asked_again(
    box: Box, server: ObjectServer, fault: tuple[int, str]
) -> None:
    server.refuse[("PUT", "")] = fault
    start(box, server.urls(["step-000010"], FILES))
    until(lambda: f"{fault[0]} {fault[1]}" in (store(box)["problem"] or ""))
    assert not store(box)["probed"] and SIGNATURE not in json.dumps(store(box))
    server.refuse.clear()
    until(lambda: store(box)["probed"])


def test_a_cut_upload_a_killed_program_and_a_killed_supervisor_cost_nothing(box: Box, server: ObjectServer) -> None:
    train(box)
    start(box, server.urls(["step-000010", "step-000020"], FILES))
    until(lambda: store(box)["probed"])
    server.pause_s, server.cut_puts = 0.02, 1
    checkpoint(box, 10, 3_000_000)
    until(lambda: server.count("PUT", "step-000010/model.safetensors") >= 2)
    os.kill(box.processes(job="offload")[0], signal.SIGKILL)  # in mid upload
    until(lambda: box.starts(job="offload") >= 2)
    box.kill_supervisor(job="offload")
    until(lambda: safe(box) == [10])
    until(lambda: bool(processes.is_alive(box.state(job="offload")["supervisor"])))
    checkpoint(box, 20)
    until(lambda: safe(box) == [10, 20])
    assert box.starts(job="offload") >= 2


def test_urls_that_ran_out_or_were_lost_in_a_reboot_are_asked_for(box: Box, server: ObjectServer) -> None:
    train(box)
    start(box, server.urls(["step-000010"], FILES, lasts_s=-1))
    until(lambda: store(box)["state"] == "needs-input")
    assert "expired" in store(box)["problem"] and "gptctl resume r-1" in store(box)["problem"]
    start(box, server.urls(["step-000010"], FILES))
    until(lambda: store(box)["probed"])
    for name in in_memory_files(box):
        Path(name).unlink(missing_ok=True)
    until(lambda: store(box)["state"] == "needs-input" and "gone" in store(box)["problem"])
    checkpoint(box, 10)
    start(box, server.urls(["step-000010"], FILES))
    until(lambda: safe(box) == [10])
    assert not holders(SIGNATURE, below(box.root))


def test_more_checkpoints_than_urls_wait_on_the_machine(box: Box, server: ObjectServer) -> None:
    train(box)
    start(box, server.urls([], FILES, spare=0))
    checkpoint(box, 10)
    until(lambda: "no URLs are left for step-000010" in (store(box)["problem"] or ""))
    assert safe(box) == []


def test_a_large_file_goes_in_parts_and_comes_back_whole(server: ObjectServer, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(os.urandom(2_500_000))
    slot = server.slot("big", part_bytes=1_000_000)
    sent = object_requests.put(slot, str(path), 2_500_000)
    assert server.objects["big"] == path.read_bytes() and object_requests.look(slot["get"]) == sent
    assert sorted(server.parts["big"]) == [1, 2, 3]
    with pytest.raises(object_requests.StoreTrouble, match="URLs for 19 parts"):
        object_requests.put(server.slot("big", part_bytes=100_000), str(path), 2_500_000)


@pytest.mark.parametrize("then", ["end", "hold"])
def test_a_machine_with_everything_in_the_store_and_nobody_here_ends_at_once(
    box: Box, server: ObjectServer, api: Api, then: str
) -> None:
    box.call("arm", **order(api, lease_s=300))
    train(box, steps=50)
    start(box, server.urls(["step-000010"], FILES), then=then)
    checkpoint(box, 10)
    until(lambda: box.job()["state"] == "ended" and store(box)["finished"])
    # A gptctl called a moment ago; when it is away for good, the mark of its presence runs out.
    assert box.call("status")["guard"]["left_s"] > 0 and api.count("POST") == 0
    (box.root / "guard" / "presence" / "lease.json").unlink()
    if then == "end":
        until(lambda: api.count("POST") >= 1)
    else:
        assert box.call("status")["guard"]["left_s"] > 200
