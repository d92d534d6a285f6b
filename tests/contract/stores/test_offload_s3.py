"""Checkpoint URLs against a real S3 server: parts, renewal, a bucket one may only read, and a clock that is wrong."""

from __future__ import annotations

import datetime
import os
import resource
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import botocore.auth
import pytest

from orchestrator.agent.checkpoints import object_requests
from orchestrator.agent.contract.answers import StoreStatus
from orchestrator.core.errors import MachineUnfit, StorageError
from orchestrator.core.facts.run_facts import StoreUrls
from orchestrator.ledger.records import Attempt
from orchestrator.stages.checkpoints import store_job
from orchestrator.stages.context import RunContext
from orchestrator.storage import s3 as storage_s3
from tests.support.clock.waiting import until
from tests.support.clouds.s3_server import READER, S3Server
from tests.support.files.recipes import SMALL
from tests.support.machines.sshd import Sshd
from tests.support.machines.stage_context import context_of

RECIPE = (
    f'name = "stored"{SMALL}'
    + """
[data]
source = "/nowhere/train.bin"
tokenizer = "bytes"
[train]
tokens = 25_600
global_batch = 8
checkpoint_every = 50
validate_every = 50
precision = "fp32"
[machines.2xCPU]
micro_batch = 4
"""
)


@pytest.fixture
def run_with(box: Sshd, gptctl_home: Path, tmp_path: Path) -> Iterator[Callable[[str], RunContext]]:
    """`run_with(bucket)`: a run whose machine is to store its checkpoints there."""
    with ExitStack() as stack:

        def make(bucket: str) -> RunContext:
            recipe, inventory = tmp_path / "stored.toml", tmp_path / "inventory.toml"
            recipe.write_text(RECIPE)
            inventory.write_text(box.inventory_entry(extra=f'checkpoint_store = "s3://{bucket}/models"\n'))
            return stack.enter_context(context_of(gptctl_home, recipe, inventory))

        yield make


def clock_off_by(monkeypatch: pytest.MonkeyPatch, hours: float) -> None:
    """What this computer signs is dated so far from now."""

    def now(remove_tzinfo: bool = True) -> datetime.datetime:
        moment = datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=hours)
        return moment.replace(tzinfo=None) if remove_tzinfo else moment

    monkeypatch.setattr(botocore.auth, "get_current_datetime", now)


def test_a_file_too_large_for_one_put_goes_in_presigned_parts(
    s3: S3Server, run_with: Callable[[str], RunContext], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = (12 << 20) + 5
    monkeypatch.setattr(storage_s3, "LARGEST_PUT_BYTES", 6 << 20)
    monkeypatch.setattr(storage_s3, "PART_BYTES", 5 << 20)  # the smallest that S3 takes but for the last
    context = run_with(s3.bucket())
    slot = store_job.Grants(context, store_job.uri(context)).slot("model.safetensors", size)
    assert len(slot["parts"]) == 3
    path = tmp_path / "model.safetensors"
    path.write_bytes(os.urandom(size))
    sent = object_requests.put(slot, str(path), size)
    assert sent.size_bytes == size and object_requests.look(slot["get"]) == sent
    object_requests.remove(slot["delete"])
    with pytest.raises(object_requests.Missing):
        object_requests.look(slot["get"])


@pytest.mark.soak
def test_a_file_of_more_than_four_gib_goes_in_the_parts_that_users_get(
    s3: S3Server, run_with: Callable[[str], RunContext], tmp_path: Path
) -> None:
    size = storage_s3.LARGEST_PUT_BYTES + storage_s3.PART_BYTES + 7
    context = run_with(s3.bucket())
    slot = store_job.Grants(context, store_job.uri(context)).slot("model.safetensors", size)
    assert len(slot["parts"]) == 18
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        for start in range(0, size, storage_s3.PART_BYTES):  # holes between, other bytes in every part
            file.seek(start)
            file.write(os.urandom(7))
        file.truncate(size)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    sent = object_requests.put(slot, str(path), size)
    assert sent.size_bytes == size and object_requests.look(slot["get"]) == sent
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10, "KiB: blocks, never a part"
    object_requests.remove(slot["delete"])


def test_urls_are_renewed_by_whoever_follows_before_they_end(
    s3: S3Server, run_with: Callable[[str], RunContext]
) -> None:
    context = run_with(s3.bucket())
    store_job.require(context)

    def look_after() -> StoreUrls:
        store_job.look_after(context, context.agent.status(context.run_id)["runs"][context.run_id])
        made = context.facts.store_urls
        assert made is not None
        return made

    made = look_after()
    assert look_after() == made, "they are good for days"
    clock = context.now
    context.now = lambda: clock() + 0.4 * made.lasts_s
    assert look_after() == made
    context.now = lambda: clock() + 0.6 * made.lasts_s
    renewed = look_after()
    assert renewed.made_at - made.made_at > 0.5 * made.lasts_s
    assert look_after() == renewed
    store = context.agent.status(context.run_id)["runs"][context.run_id]["store"]
    assert store["probed"] and not store["problem"]


def store_of(context: RunContext) -> StoreStatus | None:
    return context.agent.status(context.run_id)["runs"][context.run_id]["store"]


def test_a_store_that_is_away_for_a_moment_is_waited_for(s3: S3Server, run_with: Callable[[str], RunContext]) -> None:
    context = run_with(s3.bucket())
    with ThreadPoolExecutor(1) as pool, s3.away():
        required = pool.submit(store_job.require, context)
        store_job.start(context)
        until(lambda: (found := store_of(context)) is not None and found.get("passes"))
        assert not required.done()
    assert required.result() is None
    found = store_of(context)
    assert found is not None and found["probed"] and not found["problem"]


def test_a_machine_that_trained_with_a_store_begins_while_it_is_away_and_stores_later(
    s3: S3Server, run_with: Callable[[str], RunContext]
) -> None:
    context = run_with(s3.bucket())
    before = replace(context.run, id="before-1130-000000", created_at=context.now() - 60)
    context.ledger.add_run(before)
    context.ledger.add_attempt(Attempt(before.id, 1, before.rental_id, context.now()))
    with s3.away():
        store_job.require(context)
    assert any("trains meanwhile" in event.text for event in context.ledger.events(context.run_id))
    until(lambda: (found := store_of(context)) is not None and found["probed"])


def test_a_bucket_one_may_only_read_is_refused_before_anything_trains(
    s3: S3Server, run_with: Callable[[str], RunContext], monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = s3.bucket({"models/x": b"1"})
    s3.client().put_bucket_acl(Bucket=bucket, GrantRead=f'id="{READER[0]}"')
    for name, value in zip(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), READER, strict=True):
        monkeypatch.setenv(name, value)
    context = run_with(bucket)
    assert [each.name for each in context.storage(f"s3://{bucket}").manifest(f"s3://{bucket}/models/")] == ["x"]
    with pytest.raises(StorageError, match="AccessDenied"):
        context.storage(f"s3://{bucket}").put(f"s3://{bucket}/models/y", b"2")
    with pytest.raises(MachineUnfit, match=r"cannot store checkpoints in .*AccessDenied") as refused:
        store_job.require(context)
    assert "nothing was trained" in refused.value.hint and "policy" in refused.value.hint
    assert not context.agent.status(context.run_id)["runs"][context.run_id]["jobs"].get("train")


def test_a_wrong_clock_here_is_named(
    s3: S3Server, run_with: Callable[[str], RunContext], monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = s3.bucket({"models/x": b"1"})
    context = run_with(bucket)
    for hours in (2, -200):
        clock_off_by(monkeypatch, hours)
        with pytest.raises(StorageError, match="the clock of this computer is wrong"):
            context.storage(f"s3://{bucket}").manifest(f"s3://{bucket}/models/")
    # URLs for six days that were signed eight days ago; of those from the future this server says nothing.
    with pytest.raises(MachineUnfit, match=r"cannot store checkpoints in .*(expired|clock)"):
        store_job.require(context)
