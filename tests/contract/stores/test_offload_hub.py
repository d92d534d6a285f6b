"""The offload job with a repository of the Hub as its store: LFS objects, commits, what comes back, and a token that is
in no file, no command line and no message."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator import storage
from orchestrator.agent.checkpoints import object_requests
from orchestrator.agent.checkpoints.hub_store import HubStore
from orchestrator.agent.system import memory_files
from orchestrator.core.errors import BadCredentials, GptctlError
from orchestrator.stores.preflight import check
from tests.contract.stores.test_offload_urls import RUN, box, checkpoint, safe, store, train
from tests.support.clock.waiting import until
from tests.support.clouds.hub_uploads import READ_TOKEN, STORE_TOKEN, TOKEN, Repository, UploadHub
from tests.support.files.canary import said_in_command_lines
from tests.support.machines.agent_box import Box

__all__ = ["box"]
REPO = "me/runs"


@pytest.fixture
def hub() -> Iterator[UploadHub]:
    with UploadHub() as hub:
        hub.repos[REPO] = Repository(private=True)
        yield hub


def access(hub: UploadHub, token: str = STORE_TOKEN) -> dict[str, Any]:
    return {"endpoint": hub.endpoint, "repo": REPO, "token": token, "folder": RUN}


def start(box: Box, hub: UploadHub, token: str = STORE_TOKEN) -> None:
    spec = {"store": f"hf://models/{REPO}/{RUN}", "then": "end"}
    box.call(
        "start", job="offload", run=RUN, digest="o", spec=spec, secrets={"hub": access(hub, token), "lasts_s": 600}
    )


def test_every_checkpoint_is_committed_read_back_and_leaves_when_it_is_not_kept(box: Box, hub: UploadHub) -> None:
    with said_in_command_lines(STORE_TOKEN) as said:
        train(box)
        start(box, hub)
        until(lambda: store(box)["probed"])
        for step in (10, 20, 30):
            checkpoint(box, step, 1_500_000, best=step == 20)
            until(lambda step=step: step in safe(box))
        box.call("stop", run=RUN, job="train", grace_s=5)
        until(lambda: store(box)["finished"])
    assert said == set()
    files = hub.repos[REPO].files()
    assert {name for name in files if "step" in name} == {
        f"{RUN}/step-{step:06d}/{name}" for step in (20, 30) for name in ("MANIFEST.json", "model.safetensors")
    }
    model = box.root / "runs" / RUN / "checkpoints" / "step-000030" / "model.safetensors"
    assert files[f"{RUN}/step-000030/model.safetensors"] == model.read_bytes()
    index = json.loads(files[f"{RUN}/CHECKPOINTS.json"])
    assert [each["step"] for each in index["checkpoints"]] == [20, 30] and index["ended"]["outcome"] == "stopped"
    assert files[f"{RUN}/metrics.jsonl"] == (box.root / "runs" / RUN / "metrics.jsonl").read_bytes()
    assert f"{RUN}/probe" not in files
    assert not [path for path in box.root.rglob("*") if path.is_file() and STORE_TOKEN.encode() in path.read_bytes()]
    signed = [asked for asked in hub.asked if asked[1].startswith("/objects/")]
    assert signed and not any(token for _, _, token in signed), "the token goes to the Hub alone"


def test_a_busy_hub_is_asked_again_and_wrong_bytes_are_never_safe(box: Box, hub: UploadHub) -> None:
    hub.fail("commit", 429, times=2)
    hub.fail("batch", 503, times=1)
    hub.lies.add("model.safetensors")
    train(box)
    start(box, hub)
    checkpoint(box, 10, 1_500_000)
    until(lambda: "came back from the store" in (store(box)["problem"] or ""))
    assert safe(box) == []
    hub.lies.clear()
    until(lambda: safe(box) == [10])


def test_a_refused_token_is_said_and_a_new_one_goes_on(box: Box, hub: UploadHub) -> None:
    train(box)
    start(box, hub, READ_TOKEN)
    until(lambda: "answers 403" in (store(box)["problem"] or ""))
    assert not store(box)["probed"]
    start(box, hub)
    until(lambda: store(box)["probed"])
    path = Path(memory_files.path("store", str(next((box.root / "jobs").glob("*/offload-*")))))
    assert STORE_TOKEN in path.read_text() and path.stat().st_mode & 0o77 == 0


def test_a_very_large_object_goes_in_parts(hub: UploadHub, tmp_path: Path) -> None:
    content = bytes(range(256)) * 10_000
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    hub.part_bytes = 1_000_000
    place, kept = "step-000010/model.safetensors", HubStore(access(hub))
    sent = kept.put(place, str(path), len(content), hashlib.sha256(content).hexdigest())
    kept.settle("step-000010")
    assert kept.look(place) == sent and sorted(hub.parts[sent.sha256]) == [1, 2, 3]
    again = HubStore(access(hub))
    assert again.put(place, str(path), len(content), sent.sha256) == sent, "the Hub has it: nothing is sent"
    with pytest.raises(object_requests.StoreTrouble, match="403"):
        path.write_bytes(content[::-1])
        hub.objects.clear()
        HubStore(access(hub)).put(place, str(path), len(content), sent.sha256)


@pytest.mark.parametrize(
    ("token", "granted", "private", "why"),
    [
        ("", [REPO], True, "HF_STORE_TOKEN is not set"),
        (TOKEN, [REPO], True, "may write to everything of me: a rented machine must not have it"),
        (STORE_TOKEN, [REPO, "me/other"], True, "may write to me/other: a rented machine must not have it"),
        (STORE_TOKEN, [], True, "may not write to me/runs"),
        (STORE_TOKEN, [REPO], False, "me/runs is public"),
        ("hf_wrong", [REPO], True, "the Hub refuses HF_STORE_TOKEN"),
    ],
)
def test_a_token_or_a_repository_that_will_not_do_shows_before_buying(
    hub: UploadHub, monkeypatch: pytest.MonkeyPatch, token: str, granted: list[str], private: bool, why: str
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
    monkeypatch.setenv("HF_STORE_TOKEN", token)
    hub.granted, hub.repos[REPO].private = granted, private
    with pytest.raises(GptctlError, match=why) as refused:
        check(f"hf://{REPO}", storage.of(f"hf://{REPO}"), hub_token_on_machine=True)
    assert token not in f"{refused.value.message}{refused.value.hint}" or not token
    assert refused.value.hint
    with pytest.raises(GptctlError, match="the machine would get a token of yours"):
        check(f"hf://{REPO}", storage.of(f"hf://{REPO}"))


def test_the_right_token_will_do(hub: UploadHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
    monkeypatch.setenv("HF_STORE_TOKEN", STORE_TOKEN)
    check(f"hf://{REPO}", storage.of(f"hf://{REPO}"), hub_token_on_machine=True)
    with pytest.raises(BadCredentials, match="me/gone does not exist"):
        hub.granted = ["me/gone"]
        check("hf://me/gone", storage.of("hf://me/gone"), hub_token_on_machine=True)
