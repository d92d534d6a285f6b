"""`gptctl check` of a host with a checkpoint store: tried from here, and nothing stays there."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Gptctl
from tests.support.clouds.s3_server import S3Server
from tests.support.machines.sshd import Sshd

LOCAL = '[hosts.box]\nprovider = "local"\nmachine = "1xCPU"\n'
Checked = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture
def boxes(tmp_path: Path) -> Iterator[tuple[Sshd, Sshd]]:
    """A machine that trains, and one at home."""
    with Sshd(tmp_path) as box, Sshd(tmp_path, name="nas") as nas:
        yield box, nas


@pytest.fixture
def checked(gptctl: Gptctl, tmp_path: Path) -> Checked:
    """Exit code and the finding on the store, for a host with this entry, and others, that stores at this URI."""

    def ask(uri: str, host: str = LOCAL, others: str = "") -> tuple[int, dict[str, Any]]:
        (tmp_path / "inventory.toml").write_text(f'{host}checkpoint_store = "{uri}"\n{others}')
        done = gptctl("check", "box", "--json")
        assert "Traceback" not in done.stderr and done.stdout, done.stderr
        (store,) = [each for each in json.loads(done.stdout)["checks"] if each["what"] == "store"]
        return done.returncode, store

    return ask


@pytest.mark.nightly
def test_a_bucket_that_takes_an_object_is_well_and_stays_empty(checked: Checked, s3: S3Server) -> None:
    bucket = s3.bucket()
    code, store = checked(f"s3://{bucket}/models")
    assert (code, store["level"]) == (0, "ok"), store
    assert s3.client().list_objects_v2(Bucket=bucket)["KeyCount"] == 0


@pytest.mark.nightly
def test_a_bucket_that_is_not_there_is_a_failure_with_the_fix(checked: Checked, s3: S3Server) -> None:
    code, store = checked("s3://no-such-bucket-here/models")
    assert (code, store["level"]) == (4, "fail")
    assert "no such bucket" in store["found"] and "create it" in store["fix"]


@pytest.mark.nightly  # by day tests/contract/stores/test_home_box.py
def test_a_box_at_home_is_asked_itself(checked: Checked, boxes: tuple[Sshd, Sshd], tmp_path: Path) -> None:
    box, nas = (each.inventory_entry(machine="1xCPU") for each in boxes)
    _, store = checked(f"ssh://nas{tmp_path}/kept", box, nas)
    assert store["level"] == "ok", store
    (tmp_path / "file").write_text("")
    code, store = checked(f"ssh://nas{tmp_path}/file/kept", box, nas)
    assert (code, store["level"]) == (4, "fail") and "choose another folder" in store["fix"], store


def test_the_hub_is_named_before_a_machine_gets_a_token(checked: Checked) -> None:
    code, store = checked("hf://somebody/models")
    assert (code, store["level"]) == (4, "fail") and "hub_token_on_machine" in store["fix"]
