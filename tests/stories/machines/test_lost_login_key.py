"""A login key that was deleted: the machine cannot be reached any more, and is given back all the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orchestrator.remote.shell.key_pairs import login_key_file
from tests.conftest import Gptctl
from tests.support.clouds.rehearsal_cloud import RehearsalCloud

INVENTORY = '[hosts.sim]\nprovider = "rehearsal"\nmachine = "8xA100-40GB-simulated"\nguard = "watcher"\n'


@pytest.mark.nightly
def test_a_machine_whose_login_key_is_gone_is_released(
    gptctl: Gptctl, gptctl_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "inventory.toml").write_text(INVENTORY)
    monkeypatch.setenv("GPTCTL_REHEARSAL", str(tmp_path / "cloud"))
    with RehearsalCloud(tmp_path / "cloud", minute_s=1) as cloud:
        rented = gptctl("check", "sim", "--drill", "--yes", "--json", "--lease-s", "1")
        assert rented.returncode == 7 and len(cloud.books()["alive"]) == 1, rented.stderr
        login_key_file(gptctl_home, None).unlink()
        run = json.loads(rented.stdout)["drill"]["run"]
        done = gptctl("release", run, "--yes", "--force")
        assert done.returncode == 0, done.stderr
        assert "destroyed" in done.stdout + done.stderr
        assert cloud.books()["alive"] == []
