"""Wrong input: one clear message with the cause and the next command, the right exit code, nothing half-written."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest

from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.records import Rental, RunRecord
from tests.conftest import Gptctl

NASTY = ['it\'s "quoted"', "line\nbreak", "semi;touch owned", "$(touch owned)", "-rf", "../up"]


def refused(done: object, code: int, *parts: str) -> str:
    """What the command said: it ended with this code, all of this on stderr, and nothing else anywhere."""
    assert getattr(done, "returncode", None) == code, done
    said = str(getattr(done, "stderr", ""))
    for part in parts:
        assert part in said, f"{part!r} not in {said!r}"
    assert getattr(done, "stdout", None) == ""
    assert "Traceback" not in said
    return said


@pytest.mark.parametrize("name", NASTY)
def test_a_recipe_of_any_name_is_looked_for_and_nothing_else(
    gptctl: Gptctl, tmp_path: Path, gptctl_home: Path, name: str
) -> None:
    before = {path.name for path in tmp_path.iterdir()}
    assert refused(gptctl("run", "--host", "local", "--", name), 2, "gptctl: ")
    assert {path.name for path in tmp_path.iterdir()} - before <= {"gptctl-home"}
    assert not (gptctl_home / "runs").exists()


@pytest.mark.parametrize("name", NASTY)
def test_a_host_of_any_name_is_looked_up_and_nothing_else(gptctl: Gptctl, tmp_path: Path, name: str) -> None:
    assert refused(gptctl("run", "quickstart", f"--host={name}", "--yes"), 2, "unknown host", "known: local")
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("name", ["line\nbreak", "", "   ", "bell\x07", "x" * 600])
def test_a_run_name_must_be_printable(gptctl: Gptctl, name: str) -> None:
    assert refused(gptctl("run", "quickstart", "--host", "local", "--yes", f"--name={name}"), 2, "--name", "printable")


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("plan", "quickstrat"), ("unknown recipe quickstrat", "did you mean quickstart?")),
        (("plan", "quickstart", "--set", "train.lerning_rate=1"), ("unknown key", "did you mean learning_rate?")),
        (("plan", "quickstart", "--set", "train.seed=high"), ("train.seed",)),
        (("plan", "quickstart", "--host", "lokal"), ("unknown host 'lokal'", "did you mean local?")),
        (("plan", "quickstart", "--inventory", "nowhere.toml"), ("nowhere.toml", "gptctl init")),
        (("plan", "quickstart", "--max-cost", "-1"), ("--max-cost", "above 0")),
        (("plan", "quickstart", "--max-cost", "1e11"), ("--max-cost", "at most 10,000,000")),
        (("plan", "quickstart", "--max-hours", "nan"), ("--max-hours", "above 0")),
        (("run", "quickstart"), ("no host given", "known: local", "gptctl run quickstart --host local")),
        (("run", "quickstart", "--host", "local"), ("without a terminal", "gptctl run quickstart --host local --yes")),
        (("run", "quickstart", "--host", "local", "--label", "novalue"), ("KEY=VALUE",)),
        (("run", "quickstart", "--on", "nothing-1"), ("nothing-1", "gptctl status")),
        (("run", "quickstart", "--host", "local", "--resume-from", "x"), ("no runs yet",)),
        (("run", "quickstart", "--host", "local", "--set", "train.global_batch=15", "--yes"), ("15", "divi")),
        (("status", "nothing"), ("no runs yet", "gptctl run")),
        (("logs",), ("no runs yet",)),
        (("fetch", "nothing"), ("no runs yet",)),
        (("resume",), ("no runs yet",)),
        (("stop", "--yes"), ("no runs yet",)),
        (("release", "--yes"), ("no runs yet",)),
        (("sample",), ("no runs yet",)),
        (("ssh", "nothing"), ("neither a host (local) nor a run",)),
    ],
)
def test_a_wrong_argument_says_what_would_be_right(
    gptctl: Gptctl, arguments: tuple[str, ...], parts: tuple[str, ...], gptctl_home: Path
) -> None:
    assert refused(gptctl(*arguments), 2, *parts)
    assert not (gptctl_home / "runs").exists()


@pytest.mark.parametrize("arguments", [("run",), ("status", "--bogus"), ("bogus",), ("fetch", "--step", "minus")])
def test_what_the_parser_refuses_is_wrong_input_too(gptctl: Gptctl, arguments: tuple[str, ...]) -> None:
    done = gptctl(*arguments)
    assert done.returncode == 2
    assert "Usage: gptctl" in done.stderr


def test_an_inventory_that_does_not_parse_names_file_and_place(gptctl: Gptctl, tmp_path: Path) -> None:
    (tmp_path / "inventory.toml").write_text('[hosts.box]\nprovider = "ssh"\nmachine = "1x3090"\nprot = 22\n')
    assert refused(gptctl("hosts"), 2, "hosts.box", "prot", "did you mean port?")
    (tmp_path / "inventory.toml").write_text("[hosts.box\n")
    assert refused(gptctl("hosts"), 2, "inventory.toml", "not valid TOML")
    (tmp_path / "inventory.toml").write_text('[hosts.box]\nmachine = "1x3090"\nprice_per_hour_usd = -1\n')
    assert refused(gptctl("plan", "quickstart"), 2, "price_per_hour_usd")


def test_a_dataset_that_is_missing_or_empty_stops_plan_and_run(gptctl: Gptctl, tmp_path: Path) -> None:
    recipe = tmp_path / "mine.toml"
    recipe.write_text('name = "mine"\n[data]\nsource = "tokens"\n[train]\ntokens = 100000\n')
    assert refused(gptctl("plan", str(recipe)), 2, "tokens", "does not exist")
    assert refused(gptctl("run", str(recipe), "--host", "local", "--yes"), 2, "tokens", "does not exist")
    (tmp_path / "tokens").mkdir()
    assert refused(gptctl("run", str(recipe), "--host", "local", "--yes"), 2, "no .safetensors, .bin or .npy file")
    (tmp_path / "tokens" / "train.bin").write_bytes(b"")
    assert refused(gptctl("run", str(recipe), "--host", "local", "--yes"), 2, "0 bytes are not a whole number")


def test_a_home_that_is_a_file_is_said(gptctl: Gptctl, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = gptctl("status", env={"GPTCTL_HOME": str(tmp_path / "file")})
    assert refused(done, 2, str(tmp_path / "file"), "GPTCTL_HOME")


def test_a_damaged_ledger_is_said_and_left_as_it_is(gptctl: Gptctl, gptctl_home: Path) -> None:
    gptctl_home.mkdir()
    (gptctl_home / "ledger.db").write_bytes(b"no database at all" * 100)
    done = gptctl("status")
    assert done.returncode == 2
    assert "ledger" in done.stderr and "Traceback" not in done.stderr
    assert (gptctl_home / "ledger.db").read_bytes() == b"no database at all" * 100


def test_everything_in_the_home_folder_is_for_its_owner_alone(gptctl: Gptctl, gptctl_home: Path) -> None:
    assert gptctl("status").returncode == 0
    assert gptctl_home.stat().st_mode & 0o777 == 0o700
    assert [path for path in gptctl_home.iterdir() if path.is_file() and path.stat().st_mode & 0o077] == []


@pytest.fixture
def unfinished(gptctl_home: Path) -> str:
    """A ledger with two runs whose ids begin alike; the newer one is unfinished, on host local."""
    gptctl_home.mkdir(mode=0o700)
    with Ledger.open(gptctl_home, time.time) as ledger:
        ledger.add_rental(Rental("2xcpu-1120-aaaaaa", "local", "local", "2xCPU", created_at=1.0))
        for number, run_id in enumerate(("tiny-1120-aaaaaa", "tiny-1120-aabbbb")):
            ledger.add_run(
                RunRecord(run_id, "tiny", "local", "2xCPU", created_at=float(number), rental_id="2xcpu-1120-aaaaaa")
            )
    return "tiny-1120-aabbbb"


def test_a_prefix_that_matches_two_runs_names_both(gptctl: Gptctl, unfinished: str) -> None:
    assert refused(gptctl("status", "tiny-1120-aa"), 2, "matches 2 runs", "tiny-1120-aaaaaa", unfinished)
    done = gptctl("status", "tiny-1120-aab", "--json")
    assert [row["id"] for row in json.loads(done.stdout)["runs"]] == [unfinished]


def test_what_destroys_asks_first_and_says_what_to_type_where_nobody_can_answer(
    gptctl: Gptctl, unfinished: str
) -> None:
    assert refused(gptctl("stop", unfinished), 2, "Stop", "without a terminal", f"gptctl stop {unfinished} --yes")
    assert refused(gptctl("release", unfinished), 2, "Release", "2xCPU", "without a terminal", "--yes")


def test_logs_of_a_run_that_has_none_say_so(gptctl: Gptctl, unfinished: str) -> None:
    done = gptctl("logs", unfinished)
    assert (done.returncode, done.stdout) == (0, "")
    assert "nothing mirrored yet" in done.stderr


def test_a_mirrored_log_is_printed_whole_lines_only(gptctl: Gptctl, unfinished: str, gptctl_home: Path) -> None:
    folder = gptctl_home / "runs" / unfinished
    folder.mkdir(parents=True)
    (folder / "train.log").write_bytes("one\ntwo\nFüße\nhalf a li".encode())
    assert gptctl("logs", unfinished).stdout == "one\ntwo\nFüße\n"
    assert gptctl("logs", "--lines", "1").stdout == "Füße\n"
    assert gptctl("logs", "-n", "0").stdout == ""


def test_a_folder_that_is_not_ours_is_not_filled(gptctl: Gptctl, unfinished: str, tmp_path: Path) -> None:
    (tmp_path / "theirs" / "checkpoints").mkdir(parents=True)
    assert refused(gptctl("fetch", "--to", str(tmp_path / "theirs")), 2, "that gptctl did not put there", "--to DIR")
    (tmp_path / "file").write_text("")
    assert refused(gptctl("fetch", "--to", str(tmp_path / "file")), 2, "cannot write to")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / ".gptctl-run").write_text("somebody-else\n")
    assert refused(gptctl("fetch", "--to", str(tmp_path / "other")), 2, "holds run somebody-else")


def test_init_copies_what_is_missing_and_keeps_what_is_there(gptctl: Gptctl, tmp_path: Path) -> None:
    folder = tmp_path / "a project"
    folder.mkdir()
    (folder / "inventory.toml").write_text("# mine\n")
    done = gptctl("init", str(folder))
    assert done.returncode == 0
    assert (folder / "inventory.toml").read_text() == "# mine\n"
    assert "kept" in done.stderr
    assert str(folder / "recipes" / "quickstart.toml") in done.stdout.splitlines()
    assert gptctl("plan", "quickstart", "--host", "local", "--json", cwd=folder).returncode == 0


def test_plan_lists_hosts_and_machines_and_marks_the_cheapest(gptctl: Gptctl, tmp_path: Path) -> None:
    (tmp_path / "inventory.toml").write_text('[hosts.box]\nmachine = "1x3090"\nprice_per_hour_usd = 0.11\n')
    plans = json.loads(gptctl("plan", "chinchilla_163m", "--json").stdout)["plans"]
    assert {"host", "machine", "ranks", "micro_batch", "accumulation", "steps", "tokens", "epochs", "fits", "why",
            "tokens_per_second", "rate_source", "hours", "cost_usd", "guard", "ending"} <= set(plans[0])  # fmt: skip
    by_host = {plan["host"]: plan for plan in plans if plan["host"]}
    assert set(by_host) == {"local", "box"}
    assert by_host["box"]["steps"] == 33_165
    table = gptctl("plan", "chinchilla_163m").stdout
    assert "cheapest" in table and "fastest" in table and "\x1b" not in table


def test_a_reader_that_leaves_is_no_failure(gptctl_home: Path, tmp_path: Path) -> None:
    command = f"{shlex.quote(sys.executable)} -m orchestrator plan quickstart --json | head -c 1"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert (done.stdout, done.stderr) == ("{", "")
