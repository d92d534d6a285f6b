"""One dataset behind hf://, s3://, http:// and a path: the machine gets the same bytes from each, and no more of them
than the run reads, whatever the servers do; and no credential stays behind."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from orchestrator.core.errors import GptctlError, VerificationFailed
from orchestrator.core.facts.run_facts import DataOnMachine, StagedFacts
from orchestrator.stages.data.sending import place_data
from tests.conftest import Gptctl, gptctl_command
from tests.stories.conftest import end, newest_run, wait_until
from tests.support.clouds.byte_meter import Meter
from tests.support.clouds.file_server import FileServer, Hub
from tests.support.clouds.s3_server import SECRET, S3Server
from tests.support.files.canary import below, holders, said_in_command_lines
from tests.support.files.recipes import SMALL
from tests.support.machines import known_interpreter
from tests.support.machines.sshd import Sshd
from tests.support.machines.stage_context import context_of

TOKEN = "hf_canary_story_55e1"
BLOCK = 128 << 10
STEPS = 60_000
NEEDED = 2 * (STEPS * 256 + 1) + 2 * (8192 + 1)
SHARD_TOKENS = 10_000_000
MOST = 1.01
"""Of what is needed, over the wire: headers, lists of digests, what the protocols say, and what the faults repeat."""
RECIPE = (
    f'name = "anywhere"{SMALL}'
    + """
[data]
source = "{source}"
tokenizer = "bytes"
[data.validation]
start_token = 0
tokens = 8_192
[train]
tokens = {tokens}
global_batch = 8
log_every = 5
checkpoint_every = 1000
validate_every = 1000
precision = "fp32"
[machines.1xCPU]
micro_batch = 4
[machines.2xCPU]
micro_batch = 4
"""
)


Synced = Callable[..., tuple[DataOnMachine, StagedFacts]]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Three training shards, of which the run needs one and a half, a validation shard, and their dataset.json."""
    folder, random = tmp_path_factory.mktemp("dataset"), np.random.default_rng(7)
    files: dict[str, bytes] = {}
    index = {}
    for name, count in [*((f"train-{n:05d}", SHARD_TOKENS) for n in range(3)), ("val-00000", 50_000)]:
        path = folder / f"{name}.safetensors"
        save_file({"tokens": random.integers(0, 256, count).astype(np.uint16)}, path)
        data = files[path.name] = path.read_bytes()
        blocks = [hashlib.sha256(data[at : at + BLOCK]).hexdigest() for at in range(0, len(data), BLOCK)]
        whole = hashlib.sha256(data).hexdigest()
        index[path.name] = {"size_bytes": len(data), "sha256": whole, "blocks": blocks, "block_size_bytes": BLOCK}
    files["dataset.json"] = json.dumps({"files": index}).encode()
    return files


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub


@pytest.fixture
def web(dataset: dict[str, bytes]) -> Iterator[FileServer]:
    with FileServer({f"/data/{name}": data for name, data in dataset.items()}) as server:
        yield server


@pytest.fixture
def synced(gptctl_home: Path, box: Sshd, tmp_path: Path) -> Iterator[Synced]:
    """`synced(uri)`: the data that sync leaves on the box for a new run, and what the run records of it."""
    inventory = tmp_path / "inventory.toml"

    def go(uri: str, extra: str = "", steps: int = STEPS, port: int | None = None) -> tuple[DataOnMachine, StagedFacts]:
        entry = box.inventory_entry(extra=extra)
        inventory.write_text(entry.replace(f"port = {box.port}\n", f"port = {port or box.port}\n"))
        recipe_file = tmp_path / "anywhere.toml"
        recipe_file.write_text(RECIPE.format(source=uri, tokens=steps * 256))
        with context_of(gptctl_home, recipe_file, inventory) as context:
            data = place_data(context)
            assert context.facts.staged is not None
            return data, context.facts.staged

    yield go


def on_machine(data: DataOnMachine) -> list[str]:
    """sha256 of each file that the trainer will read, and safetensors can open them all."""
    paths = [Path(each) for each in [*data.train_files, *data.validation_files]]
    assert all(load_file(path)["tokens"].dtype == np.uint16 for path in paths)
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]


def leaked(folder: Path, *canaries: str) -> list[str]:
    files = below(folder)
    assert files
    return [str(path) for word in canaries for path in holders(word, files)]


@pytest.mark.nightly
def test_four_sources_one_dataset(
    dataset: dict[str, bytes],
    synced: Synced,
    hub: Hub,
    web: FileServer,
    s3: S3Server,
    box: Sshd,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    commit = hub.publish("me/tokens", dataset, token=TOKEN)
    folder = tmp_path / "here"
    folder.mkdir()
    for name, data in dataset.items():
        (folder / name).write_bytes(data)
    bucket = s3.bucket({f"prefix/{name}": data for name, data in dataset.items()})

    # Every answer of the Hub's storage is cut at a megabyte, one byte arrives wrong once, and it throttles.
    hub.storage.faults.cut_after = 1 << 20
    hub.storage.faults.flips = {f"/datasets/me/tokens/{commit}/train-00000.safetensors": 1_000_001}
    hub.storage.faults.flip_times = 1
    hub.storage.faults.refusals = [(429, {"Retry-After": "1"}), (503, {})]
    results, moved = {}, {}
    with said_in_command_lines(TOKEN, SECRET) as said, Meter(s3.ports["proxy"]) as bucket_meter:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{bucket_meter.port}")
        results["hf"] = synced("hf://me/tokens")
        moved["hf"] = hub.storage.sent_bytes

        for uri in (f"s3://{bucket}/prefix", web.url("/data/")):  # found by its digest, it is not pulled again
            assert synced(uri)[0] == results["hf"][0]
        assert max(web.sent_bytes, bucket_meter.down_bytes) < (MOST - 1) * NEEDED  # headers

        web.faults.cut_after = 1 << 20
        web.sent_bytes = bucket_meter.down_bytes = 0
        with Meter(box.port, box.host) as ssh_meter:
            for scheme, uri in {"s3": f"s3://{bucket}/prefix", "http": web.url("/data/"), "path": str(folder)}.items():
                elsewhere = f'data_folder = "{tmp_path}/data-{scheme}"\n'
                ssh_meter.up_bytes = 0
                results[scheme] = synced(uri, elsewhere, port=ssh_meter.port)
            moved |= {"s3": bucket_meter.down_bytes, "http": web.sent_bytes, "path": ssh_meter.up_bytes}
    assert said == set()
    files = {scheme: on_machine(data) for scheme, (data, _) in results.items()}
    assert len(files["hf"]) == 3 and files["hf"] == files["s3"] == files["http"] == files["path"]
    for scheme, (_, staged) in results.items():
        more = moved[scheme] / NEEDED - 1
        print(f"\n{scheme}: transferred {moved[scheme]:,} ({more:+.2%}) for {NEEDED:,} needed, cut at every megabyte")
        assert NEEDED == staged.needed_bytes <= staged.pulled_bytes <= moved[scheme] <= MOST * NEEDED
        assert staged.verified_by.startswith("block list")
    assert leaked(tmp_path, TOKEN, SECRET) == []


@pytest.mark.nightly  # by day tests/contract/remote/test_downloads.py and stores/test_every_storage.py refuse them
def test_bad_sources_are_refused_in_words(
    dataset: dict[str, bytes],
    synced: Synced,
    web: FileServer,
    hub: Hub,
    gptctl_home: Path,
    small_disk: Path,
) -> None:
    uri = web.url("/data/")

    def refused(match: str, what: str = uri, **options: Any) -> None:
        with pytest.raises(GptctlError, match=match):
            synced(what, **options)
        assert not [path for path in gptctl_home.parent.rglob("data/*/train-*") if not path.name.startswith(".")]

    refused("nothing found", web.url("/data/train.safetensors"))
    refused("may not read it", "hf://me/nothing")
    web.faults.ignores_ranges = True
    refused("ignores byte ranges")
    web.faults.ignores_ranges = False
    web.faults.cuts_off = {"/data/train-00000.safetensors": 1000}
    refused("were announced|shorter than it was listed")
    web.faults.cuts_off = {"/data/train-00000.safetensors": -1000}
    refused("were announced|shorter than it was listed")
    web.faults.cuts_off = {}
    web.faults.flips = {"/data/train-00001.safetensors": 200_000}
    refused("are not what was promised")
    web.faults.flips = {}
    one, two = "/data/train-00000.safetensors", "/data/train-00001.safetensors"
    web.files[one], web.files[two] = web.files[two], web.files[one]
    refused("are not what was promised")
    web.files[one], web.files[two] = web.files[two], web.files[one]
    refused(r"are to come and .* has", extra=f'data_folder = "{small_disk}/data"\n')
    web.files["/data/dataset.json"] = dataset["dataset.json"].replace(b"val-00000.safe", b"../../00000.safe")
    refused("leads out of its folder")
    with_signature = web.url("/data/train-00000.safetensors?signature=old")
    web.faults.expired = True
    refused("may have expired", with_signature, steps=100)


def test_what_was_seen_first_must_be_seen_ever_after(
    dataset: dict[str, bytes], synced: Synced, web: FileServer, tmp_path: Path
) -> None:
    uri = web.url("/data/train-00000.safetensors")
    assert synced(uri, steps=100)[1].verified_by == "first seen"
    name = "/data/train-00000.safetensors"
    content = web.files[name]
    assert isinstance(content, bytes)
    web.files[name] = content[:1000] + bytes([content[1000] ^ 1]) + content[1001:]
    with pytest.raises(VerificationFailed, match="seen first was"):
        synced(uri, steps=100, extra=f'data_folder = "{tmp_path}/another-machine"\n')


@pytest.mark.nightly
def test_a_private_dataset_trains_and_a_killed_pull_goes_on(
    dataset: dict[str, bytes], gptctl: Gptctl, gptctl_home: Path, hub: Hub, box: Sshd, tmp_path: Path
) -> None:
    hub.publish("me/tokens", dataset, token=TOKEN)
    (tmp_path / "anywhere.toml").write_text(RECIPE.format(source="hf://me/tokens", tokens=300 * 256))
    inventory = tmp_path / "inventory.toml"
    inventory.write_text(box.inventory_entry(machine="1xCPU", extra=f'python = "{sys.executable}"\n'))
    known_interpreter.plant(box.home / ".gptctl")
    command = ["run", "anywhere.toml", "--host", "box", "--inventory", str(inventory), "--yes"]
    sizes = {name: len(data) for name, data in dataset.items()}
    hub.storage.faults.pause_s = 0.5
    with said_in_command_lines(TOKEN) as said:
        with (tmp_path / "log").open("w") as log:
            process = subprocess.Popen(gptctl_command(*command), stdout=log, stderr=log, text=True, cwd=tmp_path)
            wait_until(lambda: list(box.home.glob(".gptctl/jobs/*/pull-*")), 120)
            end(process)
        hub.storage.faults.pause_s = 0.0
        run_id = newest_run(gptctl_home)
        resumed = gptctl("resume", str(run_id), "--json", deadline_s=240)
    assert resumed.returncode == 0, resumed.stderr
    assert said == set()
    log_text = (tmp_path / "log").read_text()
    assert "verified by" in log_text and f"of {sum(sizes.values()) - sizes['dataset.json']:,}" not in log_text
    (row,) = json.loads(gptctl("status", "--json").stdout)["runs"]
    assert row["outcome"] == "finished" and row["data"]["verified_by"].startswith("block list")
    report = json.loads((gptctl_home / "runs" / str(run_id) / "report.json").read_text())
    assert report["data"]["source"] == "hf://me/tokens" and report["data"]["verified_by"] == row["data"]["verified_by"]
    assert leaked(box.home, TOKEN) == leaked(gptctl_home, TOKEN) == []
