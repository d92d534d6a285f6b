"""The watcher under a timer: files that systemd and sh really take, and a first pass from an empty environment."""

from __future__ import annotations

import json
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.core.config.settings import Settings
from orchestrator.core.errors import UserError
from orchestrator.core.fleet.watcher_mark import MISSED_S, last_mark, watcher_alive
from orchestrator.fleet.watcher_timer import first_pass, needed_variables, write_files
from tests.conftest import Gptctl
from tests.support.clouds.rehearsal_cloud import RehearsalCloud

CANARY = "canary-0123456789abcdef"
AWKWARD = "a home % of $HOME"


@pytest.fixture
def cloud(tmp_path: Path, gptctl_home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RehearsalCloud]:
    (tmp_path / "inventory.toml").write_text(
        '[hosts.sim]\nprovider = "rehearsal"\nmachine = "8xA100-40GB-simulated"\nguard = "watcher"\n'
    )
    monkeypatch.setenv("GPTCTL_REHEARSAL", str(tmp_path / "cloud"))
    monkeypatch.delenv("LAMBDA_API_KEY", raising=False)
    with RehearsalCloud(tmp_path / "cloud") as running:
        yield running


def test_the_files_are_for_their_owner_and_hold_the_key_in_one_place(tmp_path: Path) -> None:
    home = tmp_path / AWKWARD
    files = write_files(home, {"GPTCTL_HOME": str(home), "LAMBDA_API_KEY": CANARY}, tmp_path / "inventory.toml")
    everything = [files.cron, files.service, files.timer, files.environment]
    assert [path.name for path in everything if CANARY in path.read_text()] == ["environment"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in everything} == {0o600}
    assert stat.S_IMODE(files.folder.stat().st_mode) == 0o700
    assert files.cron.read_text() == files.line and files.line.startswith("*/5 * * * * ")


def test_sh_reads_the_environment_as_it_was(tmp_path: Path) -> None:
    value = 'sp ace "quotes" $HOME `id` \\ # %'
    files = write_files(tmp_path / AWKWARD, {"GPTCTL_HOME": value}, None)
    reads = f"set -a; . '{files.environment}'; printenv GPTCTL_HOME"
    assert subprocess.run(["sh", "-c", reads], capture_output=True, text=True, check=True).stdout == value + "\n"


def test_cron_would_give_sh_this_very_command(tmp_path: Path) -> None:
    """cron turns `\\%` into `%`, and would end the command at a bare one."""
    files = write_files(tmp_path / AWKWARD, {}, tmp_path / "in % ventory.toml")
    command = files.line.removeprefix("*/5 * * * * ").rstrip("\n").replace("\\%", "\0")
    assert "%" not in command
    assert command.replace("\0", "%").startswith(files.command)
    assert subprocess.run(["sh", "-n", "-c", files.command], check=False).returncode == 0


@pytest.mark.parametrize("value", ["it's", "two\nlines", "bell\a"])
def test_what_no_environment_file_can_hold_is_refused(tmp_path: Path, value: str) -> None:
    with pytest.raises(UserError, match="LAMBDA_API_KEY"):
        write_files(tmp_path, {"LAMBDA_API_KEY": value}, None)


def test_systemd_takes_the_units(tmp_path: Path) -> None:
    files = write_files(tmp_path / AWKWARD, {"GPTCTL_HOME": "x"}, tmp_path / 'in % $ventory "q".toml')
    service = files.service.read_text()
    assert "%%" in service and "$$" in service and '\\"q\\"' in service
    if shutil.which("systemd-analyze"):
        verify = ["systemd-analyze", "verify", "--man=no", str(files.service), str(files.timer)]
        done = subprocess.run(verify, capture_output=True, text=True, check=False)
        ours = [line for line in done.stderr.splitlines() if "gptctl-watcher" in line]
        assert (done.returncode, ours) == (0, [])


def test_it_takes_along_what_the_watcher_needs_and_nothing_else(tmp_path: Path) -> None:
    settings = Settings.model_validate({"notify": {"urls": ("env:HOOK",)}, "watcher": {"ping_url": "env:PING"}})
    around = {"HOOK": "h", "PING": "p", "PATH": "/bin", "AWS_SECRET_ACCESS_KEY": CANARY, "EDITOR": "vi"}
    assert needed_variables(tmp_path, [], settings, around) == {
        "HOOK": "h",
        "PING": "p",
        "PATH": "/bin",
        "GPTCTL_HOME": str(tmp_path),
    }


def test_a_watcher_that_does_not_work_is_not_installed(tmp_path: Path) -> None:
    files = write_files(tmp_path / "home", {"GPTCTL_HOME": str(tmp_path / "home")}, tmp_path / "missing.toml")
    with pytest.raises(UserError, match=r"does not work: .*(inventory|gptctl)"):
        first_pass(files)


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A PATH with nothing on it: the real crontab and systemd of whoever runs this are theirs."""
    folder = tmp_path / "programs"
    folder.mkdir()
    return folder


def test_installing_proves_itself_and_the_line_ends_machines(
    cloud: RehearsalCloud, gptctl: Gptctl, gptctl_home: Path, programs: Path
) -> None:
    done = gptctl("orphans", "--install-timer", "--yes", "--json", env={"PATH": str(programs)})
    answer = json.loads(done.stdout)
    assert (done.returncode, answer["in_place"]) == (2, None), done.stderr
    assert answer["watcher_age_s"] is not None
    tags = [{"key": "gptctl-rental", "value": "late"}, {"key": "gptctl-ends-at", "value": "5"}]
    late = cloud.up(name="gptctl-late-until-5", tags=tags)
    line = Path(answer["files"]["gptctl-watcher.cron"]).read_text()
    command = line.removeprefix("*/5 * * * * ").replace("\\%", "%")
    bare = {"HOME": str(gptctl_home.parent), "PATH": "/usr/bin:/bin"}
    assert subprocess.run(["sh", "-c", command], env=bare, check=False, timeout=480).returncode == 0
    assert cloud.row(late)["alive"] is False
    assert f"destroyed {late}" in (gptctl_home / "watcher" / "last-pass.log").read_text()


CRONTAB = """#!{python}
import pathlib, sys
table = pathlib.Path({table!r})
if sys.argv[1] == "-l":
    sys.exit(print(table.read_text(), end="") if table.exists() else "no crontab for me")
table.write_text(sys.stdin.read())
"""


@pytest.mark.nightly
def test_a_crontab_keeps_its_other_lines_and_gets_ours_once(
    cloud: RehearsalCloud, gptctl: Gptctl, programs: Path, tmp_path: Path
) -> None:
    table, program = tmp_path / "table", programs / "crontab"
    program.write_text(CRONTAB.format(python=sys.executable, table=str(table)))
    program.chmod(0o755)
    for _ in range(2):
        done = gptctl("orphans", "--install-timer", "--yes", env={"PATH": str(programs)})
        said = "cron runs the watcher every five minutes; a first pass succeeded"
        assert done.returncode == 0 and said in done.stdout, done.stderr
    assert len(table.read_text().splitlines()) == 1
    table.write_text("0 4 * * * backup\n")
    assert gptctl("orphans", "--install-timer", "--yes", env={"PATH": str(programs)}).returncode == 0
    backup, ours = table.read_text().splitlines()
    assert backup == "0 4 * * * backup" and ours.endswith("# gptctl-watcher")


def test_there_has_to_be_something_to_watch(gptctl: Gptctl, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LAMBDA_API_KEY", raising=False)
    done = gptctl("orphans", "--install-timer", "--yes")
    assert done.returncode == 2 and "no cloud account to watch" in done.stderr


@pytest.mark.parametrize(
    ("mark", "age_s"),
    [
        ({"time": 1000.0, "ok": True, "providers": ["lambda"]}, 100.0),
        ({"time": 1000.0, "ok": False, "providers": ["lambda"]}, None),
        ({"time": 1000.0, "ok": True, "providers": ["ec2"]}, None),
        ({"time": 1100.0 - MISSED_S - 1, "ok": True, "providers": ["lambda"]}, None),
        ({"time": 1130.0, "ok": True, "providers": ["lambda"]}, 0.0),
        ({"time": 9999.0, "ok": True, "providers": ["lambda"]}, None),
        ({"time": "yesterday", "ok": True, "providers": []}, None),
        ({}, None),
        ([], None),
    ],
)
def test_a_mark_says_whether_somebody_watches(tmp_path: Path, mark: object, age_s: float | None) -> None:
    assert watcher_alive(tmp_path, 1100.0, "lambda") is None
    (tmp_path / "watcher.json").write_text(json.dumps(mark))
    assert watcher_alive(tmp_path, 1100.0, "lambda") == age_s


def test_the_mark_may_lie_in_a_shared_folder(cloud: RehearsalCloud, gptctl: Gptctl, gptctl_home: Path) -> None:
    shared = gptctl_home.parent / "shared" / "mark.json"
    gptctl_home.mkdir()
    (gptctl_home / "config.toml").write_text(f'[watcher]\nmark_file = "{shared}"\n')
    assert gptctl("orphans", "--reap").returncode == 0
    mark = last_mark(gptctl_home)
    assert mark is not None and mark.ok and mark.providers == ("rehearsal",) and shared.is_file()
    assert watcher_alive(gptctl_home, time.time(), "rehearsal") is not None
