"""A rented machine stores its checkpoints in a private repository of the Hub; another machine goes on from there."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.stories.conftest import losses, newest_run, wait_until
from tests.stories.rented import BOX, SETTINGS, cloud, ended, gptctl, resumed_and_fetched
from tests.support.clouds.hub_uploads import STORE_TOKEN, TOKEN, Repository, UploadHub
from tests.support.clouds.rehearsal_cloud import RehearsalCloud
from tests.support.files.canary import below, holders, said_in_command_lines

__all__ = ["cloud"]
STORE = 'checkpoint_store = "hf://me/runs"\n'
LOCAL = '[hosts.local]\nmachine = "1xCPU"\n'
STEPS = 500


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[UploadHub]:
    with UploadHub() as hub:
        hub.repos["me/runs"] = Repository(private=True)
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        monkeypatch.setenv("HF_STORE_TOKEN", STORE_TOKEN)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.setenv("HF_HOME", "/nonexistent")
        yield hub


@pytest.mark.nightly
def test_with_the_laptop_away_everything_goes_to_the_hub_and_another_machine_goes_on_from_there(
    tmp_path: Path, cloud: RehearsalCloud, tiny: Callable[..., str], hub: UploadHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tmp_path / "hubbed.toml"
    recipe.write_text(f'extends = "{tiny(STEPS)}"\nname = "hubbed"\n{SETTINGS}[machines.1xCPU]\nmicro_batch = 4\n')
    (tmp_path / "inventory.toml").write_text(BOX + STORE + LOCAL)
    refused = ended(tmp_path, cloud, "run", str(recipe), "--host", "box", "--yes")
    assert refused.returncode == 2 and "hub_token_on_machine = true" in refused.stderr
    (tmp_path / "inventory.toml").write_text(f"{BOX}{STORE}hub_token_on_machine = true\n{LOCAL}")

    with said_in_command_lines(STORE_TOKEN) as said:
        process = gptctl(tmp_path, cloud, "run", str(recipe), "--host", "box", "--yes", lease_s=20)
        home = tmp_path / "home"
        wait_until(lambda: process.poll() is not None or list(home.glob("runs/*/metrics.jsonl")), 200)
        process.send_signal(signal.SIGKILL)
        _, err = process.communicate()
        run = str(newest_run(home))
        assert list(home.glob("runs/*/metrics.jsonl")), err
        wait_until(lambda: not cloud.books()["alive"], 180)
    assert said == set()
    files = hub.repos["me/runs"].files()
    index = json.loads(files[f"{run}/CHECKPOINTS.json"])
    assert index["ended"]["outcome"] == "finished"
    assert max(each["step"] for each in index["checkpoints"]) == STEPS
    assert sum(cloud.books()["launches_by_intent"].values()) == 1

    resumed_and_fetched(tmp_path, cloud, run, STEPS)

    more = ended(
        tmp_path, cloud, "run", str(recipe), "--host", "local", "--resume-from", f"hf://models/me/runs/{run}", "--yes",
        "--set", f"train.tokens={(STEPS + 20) * 256}",
    )  # fmt: skip
    said = f"resuming from step {STEPS}: hf://models/me/runs/{run}"
    assert more.returncode == 0 and said in more.stderr, more.stderr
    assert losses(home / "runs" / str(newest_run(home)))[-1][0] == STEPS + 20
    assert not holders(STORE_TOKEN, below(tmp_path))

    monkeypatch.setenv("HF_STORE_TOKEN", TOKEN)
    broad = ended(tmp_path, cloud, "run", str(recipe), "--host", "box", "--yes", "--again")
    assert broad.returncode == 3 and "may write to everything of me" in broad.stderr and TOKEN not in broad.stderr
    assert sum(cloud.books()["launches_by_intent"].values()) == 1, "nothing was bought"
