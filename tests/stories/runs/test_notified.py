"""Somebody who is away: a real run tells a real server of its beginning and its end, once each."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Gptctl
from tests.support.clouds.receiver import Receiver

pytestmark = pytest.mark.usefixtures("known_machine")


@pytest.mark.nightly
def test_a_whole_run_tells_its_beginning_and_its_end(
    gptctl: Gptctl, gptctl_home: Path, tiny: Callable[..., str]
) -> None:
    gptctl_home.mkdir(exist_ok=True)
    with Receiver() as receiver:
        (gptctl_home / "config.toml").write_text(f'[notify]\nurls = ["{receiver.url}/hook"]\n')
        done = gptctl("run", tiny(steps=10), "--host", "local", "--yes", "--json")
        assert done.returncode == 0, done.stderr
        (run,) = json.loads(done.stdout)["runs"]
        told = [got.json() for got in receiver.received]
        assert [each["title"] for each in told] == [f"gptctl: {run['id']} started", f"gptctl: {run['id']} finished"]
        assert "10 steps of tiny" in told[0]["message"]
        assert f"val loss {run['val_loss']:.4f}" in told[1]["message"] and "step 10 of 10" in told[1]["message"]


@pytest.mark.nightly
def test_a_run_ends_well_although_nobody_can_be_told(
    gptctl: Gptctl, gptctl_home: Path, tiny: Callable[..., str]
) -> None:
    gptctl_home.mkdir(exist_ok=True)
    (gptctl_home / "config.toml").write_text('[notify]\nurls = ["env:NOT_SET", "json://127.0.0.1:9/x"]\n')
    done = gptctl("run", tiny(steps=10), "--host", "local", "--yes")
    assert done.returncode == 0 and "finished" in done.stdout, done.stderr
    assert "warning: notifying of finished: urls, number 1: config.toml names env:NOT_SET" in done.stderr
    assert not (gptctl_home / "traceback.txt").exists()
