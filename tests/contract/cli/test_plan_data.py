"""What `plan` says of the data: how many bytes go to the machine and from where; or, within two seconds, that it is
unknown."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Gptctl
from tests.support.clock.waiting import PATIENCE, until
from tests.support.clouds.file_server import FileServer
from tests.support.files.recipes import SMALL

TOKENS = 100_000
STEPS, PER_STEP = 20, 4 * 32
RECIPE = (
    f'name = "little"{SMALL}'
    + """
[data]
source = "{source}"
tokenizer = "bytes"
[data.validation]
start_token = 99_000
tokens = 900
[train]
tokens = {tokens}
global_batch = 4
"""
)
INVENTORY = '[hosts.box]\nprovider = "ssh"\nmachine = "2xCPU"\naddress = "127.0.0.1"\n'


@pytest.fixture
def planned(gptctl: Gptctl, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """`planned(source, "box", ...)`: what the plan for that host says of the data."""
    (tmp_path / "inventory.toml").write_text(INVENTORY)

    def go(source: str, host: str, *more: str) -> dict[str, Any]:
        (tmp_path / "little.toml").write_text(RECIPE.format(source=source, tokens=STEPS * PER_STEP))
        done = gptctl("plan", "little.toml", "--host", host, "--json", *more)
        assert done.returncode == 0, done.stderr
        (plan,) = json.loads(done.stdout)["plans"]
        return dict(plan["data"])

    return go


def test_a_machine_pulls_what_it_needs_and_files_here_are_sent_or_read_in_place(
    planned: Callable[..., dict[str, Any]], gptctl: Gptctl, tmp_path: Path
) -> None:
    content = TOKENS * b"t\0"
    (tmp_path / "train.bin").write_bytes(content)
    with FileServer({"/train.bin": content}) as web:
        pulled = until(lambda: (found := planned(web.url("/train.bin"), "box"))["unknown"] is None and found)
        web.sent_bytes = 0
        said = gptctl("plan", "little.toml", "--host", "box", "--host", "local")
        assert web.sent_bytes <= 65_536  # the headers
    sent = planned(str(tmp_path / "train.bin"), "box")
    here = planned(str(tmp_path / "train.bin"), "local")
    assert [each["way"] for each in (pulled, sent, here)] == ["pulled", "sent", "in place"]
    assert pulled["source"] == web.url("/train.bin")
    assert pulled["needed_bytes"] == sent["needed_bytes"] == here["needed_bytes"]
    assert pulled["pulled_bytes"] == sent["pulled_bytes"] < 0.1 * len(content) and here["pulled_bytes"] == 0
    assert {each["dataset_bytes"] for each in (pulled, sent, here)} == {len(content)}
    assert {each["unknown"] for each in (pulled, sent, here)} == {None}
    assert f"data: the machine pulls from {web.url('/train.bin')}: " in said.stderr


def test_what_does_not_answer_is_unknown_and_keeps_no_plan_waiting(
    planned: Callable[..., dict[str, Any]], gptctl: Gptctl, tmp_path: Path
) -> None:
    with FileServer({"/train.bin": TOKENS * b"t\0"}) as web:
        web.faults.pause_s = 120
        uri = web.url("/train.bin")
        began = time.monotonic()
        silent = planned(uri, "box")
        assert time.monotonic() - began < PATIENCE * 10  # of which two are waited, and the rest is this computer's load
        assert silent == {
            "source": uri, "way": "pulled", "needed_bytes": None, "pulled_bytes": None, "dataset_bytes": None,
            "verified_by": None, "unknown": "no answer within 2 s", "overlap": None,
        }  # fmt: skip
        before = len(web.asked)
        assert planned(uri, "box", "--offline")["unknown"] == "--offline"
        assert len(web.asked) == before
    said = gptctl("plan", "little.toml", "--host", "box")
    assert said.returncode == 0
    assert f"data: the machine pulls from {uri}: unknown: " in said.stderr


def test_a_source_that_cannot_work_is_no_plan(gptctl: Gptctl, tmp_path: Path) -> None:
    (tmp_path / "inventory.toml").write_text(INVENTORY)
    (tmp_path / "swapped.bin").write_bytes(TOKENS * b"\0t")
    (tmp_path / "pointer.bin").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:" + 64 * b"a")
    for source, why in {
        str(tmp_path / "nowhere.bin"): "does not exist",
        _few(tmp_path): "beyond the",
        str(tmp_path / "swapped.bin"): "bytes swapped",
        str(tmp_path / "pointer.bin"): "a pointer of Git LFS",
    }.items():
        (tmp_path / "little.toml").write_text(RECIPE.format(source=source, tokens=STEPS * PER_STEP))
        refused = gptctl("plan", "little.toml", "--host", "box", "--json")
        assert refused.returncode == 2 and why in refused.stderr, refused.stderr


@pytest.mark.nightly
def test_a_plan_says_what_a_comparison_found(gptctl: Gptctl, tmp_path: Path) -> None:
    (tmp_path / "inventory.toml").write_text(INVENTORY)
    texts = [f"this is document {at} " * 30 for at in range(1000)]
    for name, some in (("train", texts), ("test", [*texts[:10], *(f"another one, {at}" for at in range(90))])):
        (tmp_path / f"{name}.txt").write_text("<|endoftext|>".join(some))
        words = ("--tokenizer", "bytes", "--hold-out-every", "0", "--to", name)
        assert gptctl("data", "prepare", f"{name}.txt", *words).returncode == 0
    found = gptctl("data", "overlap", "train", "test", "--json")
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout)["b"]["shared_documents"] == 10
    (tmp_path / "little.toml").write_text(RECIPE.format(source="train", tokens=STEPS * PER_STEP))
    said = gptctl("plan", "little.toml", "--host", "box")
    assert "checked against test: 10 of its 100 documents (10.0%) are in it" in said.stderr
    refused = gptctl("data", "overlap", "train", "train.txt")
    assert refused.returncode == 2 and "is text, not tokens" in refused.stderr


def _few(folder: Path) -> str:
    path = folder / "few.bin"
    path.write_bytes(5_000 * b"t\0")
    return str(path)


@pytest.mark.parametrize(
    ("store", "why", "instead"),
    [
        ("ssh://home", "is not a place on a home box", "ssh://HOST/FOLDER"),
        ("ssh://home/mnt/../etc", "is not a place on a home box", "the folder's path is absolute"),
        ("ssh://home:70000/mnt", "is not a host for ssh", "ssh://[USER@]NAME[:PORT]/FOLDER"),
        ("ssh://-oProxyCommand=x/mnt", "is not a host for ssh", "ssh://[USER@]NAME[:PORT]/FOLDER"),
        ("ftp://home/models", "machines cannot write there; s3://, hf:// and ssh:// are supported", "in any S3"),
        ("hf://models", "is not a repository of the Hub", "hf://OWNER/NAME"),
        ("/mnt/models", "machines cannot write there; s3://, hf:// and ssh:// are supported", "in any S3"),
    ],
)
def test_a_store_that_machines_cannot_write_to_is_refused_with_what_to_write_instead(
    gptctl: Gptctl, tmp_path: Path, store: str, why: str, instead: str
) -> None:
    (tmp_path / "inventory.toml").write_text(f'{INVENTORY}checkpoint_store = "{store}"\n')
    for words in (
        ["plan", "quickstart", "--host", "box", "--offline"],
        ["run", "quickstart", "--host", "box", "--yes"],
    ):
        refused = gptctl(*words)
        assert refused.returncode == 2, refused.stderr
        assert f"checkpoint_store {store}" in refused.stderr and why in refused.stderr
        assert "write " in refused.stderr and instead in refused.stderr


def test_a_host_with_such_a_store_is_left_out_of_a_plan_of_all(gptctl: Gptctl, tmp_path: Path) -> None:
    other = INVENTORY.replace("[hosts.box]", "[hosts.other]")
    (tmp_path / "inventory.toml").write_text(f'{INVENTORY}checkpoint_store = "/mnt/models"\n{other}')
    done = gptctl("plan", "quickstart", "--offline", "--json")
    assert done.returncode == 0, done.stderr
    assert "host box is skipped: checkpoint_store /mnt/models: machines cannot write there" in done.stderr
    hosts = {plan["host"] for plan in json.loads(done.stdout)["plans"]}
    assert "other" in hosts and "box" not in hosts
