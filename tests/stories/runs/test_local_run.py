"""The first thing anybody does: train the quickstart's kind of model on this machine, and look at what is left."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.stories.conftest import digests, losses, write_tiny
from tests.support.files.repository import REPOSITORY
from tests.support.machines import programs


class Left:
    """A finished run, and gptctl to look at it with."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = folder / "home"
        write_tiny(folder / "tiny.toml", 120, prepares=True)
        self.run = self.gptctl("run", "tiny.toml", "--host", "local", "--yes", "--name", "my first", "--label", "a=b")
        (self.row,) = json.loads(self.gptctl("status", "--json").stdout)["runs"]

    def gptctl(self, *args: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "GPTCTL_HOME": str(self.home), "OMP_NUM_THREADS": "1", "HOME": str(self.folder)}
        environment["PYTHONPATH"] = str(REPOSITORY)
        return programs.run_gptctl(*args, cwd=self.folder, env=environment, deadline_s=720)


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory) -> Left:
    """One tiny training for all the looks at what it left."""
    return Left(tmp_path_factory.mktemp("left"))


def test_one_command_from_recipe_to_trained_fetched_costed_model(left: Left) -> None:
    assert left.run.returncode == 0, left.run.stderr
    shown = (left.row["state"], left.row["outcome"], left.row["step"], left.row["total_steps"])
    assert shown == ("ended", "finished", 120, 120)
    (cost,) = json.loads(left.gptctl("cost", "--json").stdout)["runs"]
    assert cost["id"] == left.row["id"]
    assert set(cost["by_stage"]) >= {"acquire", "provision", "sync", "launch", "follow", "fetch", "report"}

    folder = left.home / "runs" / left.row["id"]
    curve = losses(folder)
    assert curve[-1][1] < curve[0][1] - 0.5
    manifest = json.loads((folder / "checkpoints" / "latest" / "MANIFEST.json").read_text())
    assert digests(folder / "checkpoints" / "latest") == {
        name: entry["sha256"] for name, entry in manifest["files"].items()
    }
    assert json.loads((folder / "cost.json").read_text())["cost_usd"] == 0
    assert "def " in (folder / "report.md").read_text()  # the sample that the recipe's prompt asked for


def test_the_result_is_on_stdout_and_the_conversation_on_stderr(left: Left) -> None:
    assert left.run.returncode == 0, left.run.stderr
    first, *rest = left.run.stdout.splitlines()
    assert first.startswith(f"{left.row['id']}  finished  step 120/120  loss ")
    assert any(line.startswith("best: ") for line in rest) and any("sample: def " in line for line in rest)
    assert "acquire: done" in left.run.stderr and "release: done" in left.run.stderr
    assert "\x1b" not in left.run.stdout + left.run.stderr


def test_status_has_one_row_with_name_and_labels(left: Left) -> None:
    assert (left.row["name"], left.row["labels"], left.row["outcome"]) == ("my first", {"a": "b"}, "finished")
    assert left.row["val_loss"] is not None and left.row["safe_step"] == 120
    done = left.gptctl("status", "my first")
    assert done.returncode == 0, done.stderr
    assert {left.row["id"], "finished", "120/120"} <= set(done.stdout.split())


def test_logs_and_metrics(left: Left) -> None:
    assert "step 120" in left.gptctl("logs").stdout
    assert left.gptctl("logs", "-f").stdout == left.gptctl("logs").stdout
    steps = [json.loads(line)["step"] for line in left.gptctl("logs", "--metrics").stdout.splitlines()]
    assert steps == sorted(set(steps)) and steps[-1] == 120


def test_fetch_once_more_to_a_folder_of_ones_own(left: Left) -> None:
    to = left.folder / "fetched here"
    done = left.gptctl("fetch", "--to", str(to), "--json")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert (answer["run"], answer["to"]) == (left.row["id"], str(to))
    assert set(answer["checkpoints"][0]) >= {"step", "path", "size_bytes", "verified"}
    assert answer["cost"]["cost_usd"] == 0
    assert {"metrics.jsonl", "train.log", "cost.json"} <= {path.name for path in to.iterdir()}
    assert left.gptctl("fetch", "--to", str(to)).returncode == 0
    wrong = left.gptctl("fetch", "--step", "7")
    assert wrong.returncode == 2 and "no checkpoint of step 7" in wrong.stderr


def test_cost_of_one_and_of_all(left: Left) -> None:
    (cost,) = json.loads(left.gptctl("cost", "--json").stdout)["runs"]
    assert {"id", "cost_usd", "by_stage", "usd_per_billion_tokens", "gpu_hours", "energy_kwh", "co2e_kg"} <= set(cost)
    assert cost["gpu_hours"] == 0 and cost["energy_kwh"] > 0
    assert left.row["id"] in left.gptctl("cost", left.row["id"]).stdout


def text_of(sample: dict[str, object]) -> dict[str, object]:
    """A sample without its speed."""
    return {key: value for key, value in sample.items() if key != "tokens_per_second"}


@pytest.mark.nightly
def test_a_model_that_was_fetched_writes(left: Left) -> None:
    done = left.gptctl("sample", "--prompt", "import ", "--tokens", "20", "--seed", "3", "--json")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["samples"][0]["text"].startswith("import ") and answer["samples"][0]["tokens"] == 20
    there = left.gptctl("sample", "--prompt", "import ", "--tokens", "20", "--seed", "3", "--json", "--on-host")
    assert [text_of(each) for each in json.loads(there.stdout)["samples"]] == [
        text_of(each) for each in answer["samples"]
    ]


def test_an_ended_run_is_over(left: Left) -> None:
    before = losses(left.home / "runs" / left.row["id"])
    resumed = left.gptctl("resume")
    assert resumed.returncode == 0 and "finished" in resumed.stdout
    assert losses(left.home / "runs" / left.row["id"]) == before
    stopped = left.gptctl("stop")
    assert stopped.returncode == 0 and "ended already" in stopped.stderr
    released = left.gptctl("release")
    assert released.returncode == 0, released.stderr


@pytest.mark.nightly
def test_a_new_run_goes_on_from_it(left: Left) -> None:
    recipe = str(left.folder / "tiny.toml")
    longer = ("--resume-from", "my first", "--set", f"train.tokens={160 * 256}")
    done = left.gptctl("run", recipe, "--host", "local", "--yes", *longer)
    assert done.returncode == 0, done.stderr
    events = (left.home / "runs" / json.loads(left.gptctl("status", "--json").stdout)["runs"][0]["id"]) / "events.jsonl"
    assert "resumed" in [json.loads(line)["event"] for line in events.read_text().splitlines()]


def test_check_of_this_computer_and_of_host_local(left: Left) -> None:
    here = json.loads(left.gptctl("check", "--json").stdout)
    assert {"versions", "ssh", "rsync", "keys", "ledger", "inventory", "disk", "clock"} <= {
        each["what"] for each in here["checks"]
    }
    host = left.gptctl("check", "local", "--recipe", "quickstart", "--json")
    found = {each["what"]: each for each in json.loads(host.stdout)["checks"]}
    assert host.returncode == 0, host.stdout
    assert {found[name]["level"] for name in ("reach", "clock", "python", "computes", "disk")} == {"ok"}
    assert "torch" in found["computes"]["found"] and "quickstart" in found["disk"]["found"]


def test_ssh_to_local_runs_a_command_here(left: Left) -> None:
    done = left.gptctl("ssh", "local", "--", sys.executable, "-c", "print('a b', 'it''s')")
    assert (done.returncode, done.stdout) == (0, "a b its\n")
