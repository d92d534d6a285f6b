"""The hook that starts the agent again after a reboot: put once, taken away with the last training that needs it, and
nothing else of the user's crontab or units touched."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from orchestrator.agent.contract.names import BootWay, FileName, JobName
from orchestrator.agent.job.jobs import Job, write_spec
from orchestrator.agent.job.power import boot_hook
from orchestrator.agent.system import files, processes
from orchestrator.agent.system.paths import Places

CRONTAB = """#!/bin/sh
case "$1" in
    -l) test -e {table} || exit 1; exec cat {table} ;;
    -) exec cat > {table} ;;
esac
"""
THEIRS = "0 4 * * * backup  # nightly\n@reboot other # gptctl-000000000000\n"


@pytest.fixture
def places(tmp_path: Path) -> Places:
    return Places(str(tmp_path / "a home % of $ROOT" / "agent" / "agent-0123.pyz"))


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with cron and without systemd."""
    program, table = tmp_path / "bin" / "crontab", tmp_path / "table"
    program.parent.mkdir()
    program.write_text(CRONTAB.format(table=table))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setattr(processes, "names", lambda: {"cron"})
    monkeypatch.setattr(boot_hook, "SYSTEMD_RUNS", str(tmp_path / "none"))
    return table


@pytest.fixture
def units(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine whose systemd starts this user's units without a login."""
    (tmp_path / "linger").mkdir()
    (tmp_path / "linger" / processes.user_name()).touch()
    monkeypatch.setattr(boot_hook, "LINGERING", str(tmp_path / "linger"))
    monkeypatch.setattr(boot_hook, "SYSTEMD_RUNS", str(tmp_path))
    monkeypatch.setattr(boot_hook, "home_folder", lambda: str(tmp_path / "home"))
    return tmp_path / "home" / ".config" / "systemd" / "user"


def training(places: Places, run: str, on_reboot: str | None = "continue") -> Job:
    spec = {} if on_reboot is None else {"on_reboot": on_reboot}
    job = Job.of_request(places, {"run": run, "job": JobName.TRAIN, "digest": "d", "spec": spec})
    files.make_folder(job.folder)
    write_spec(job)
    return job


def begin(job: Job) -> Job:
    files.write_json(job.file(FileName.STATE), {"program": None})
    return job


def end(job: Job) -> None:
    files.write_json(job.file(FileName.EXIT), {"outcome": "finished"})
    boot_hook.settle(job.places)


def test_cron_gets_one_line_and_keeps_the_others(places: Places, table: Path) -> None:
    table.write_text(THEIRS)
    job = begin(training(places, "r-1"))
    assert (boot_hook.put(places), boot_hook.put(places)) == (BootWay.CRON, BootWay.CRON)
    added = table.read_text().removeprefix(THEIRS)
    assert added.startswith("@reboot ") and added.count("\n") == 1 and "\\%" in added and " boot " in added
    end(job)
    assert table.read_text() == THEIRS


def test_a_machine_without_a_crontab_of_this_user_has_one_then(places: Places, table: Path) -> None:
    job = begin(training(places, "r-1"))
    assert boot_hook.put(places) == BootWay.CRON and table.exists()
    end(job)
    assert table.read_text() == ""


def test_systemd_gets_a_unit_that_its_default_target_wants(places: Places, units: Path) -> None:
    job = begin(training(places, "r-1"))
    assert (boot_hook.put(places), boot_hook.put(places)) == (BootWay.SYSTEMD, BootWay.SYSTEMD)
    (unit,) = units.glob("gptctl-*.service")
    link = units / "default.target.wants" / unit.name
    assert link.resolve() == unit.resolve() and "a home %% of $$ROOT" in unit.read_text()
    end(job)
    assert not unit.exists() and not link.is_symlink()


def test_the_last_training_that_goes_on_takes_the_hook_away(places: Places, table: Path) -> None:
    first, second = begin(training(places, "r-1")), training(places, "r-2")
    files.make_folder(places.queue)
    files.write_json(places.queued("r-2"), {"run": "r-2", "position": 1.0})
    boot_hook.put(places)
    end(first)
    assert "@reboot" in table.read_text(), "r-2 waits in the queue"
    files.remove(places.queued("r-2"))
    end(begin(second))
    assert "@reboot" not in table.read_text()


@pytest.mark.parametrize("other", ["stop", None])
def test_what_stops_with_the_machine_and_what_never_began_hold_no_hook(
    places: Places, table: Path, other: str | None
) -> None:
    job = begin(training(places, "r-1"))
    begin(training(places, "r-2", other))
    training(places, "r-3")
    boot_hook.put(places)
    end(job)
    assert table.read_text() == ""


def test_without_systemd_and_cron_there_is_no_way(
    places: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(boot_hook, "SYSTEMD_RUNS", str(tmp_path / "none"))
    monkeypatch.setattr(processes, "names", set)
    assert boot_hook.put(places) is None and boot_hook.way() == BootWay.NONE
    boot_hook.settle(places)
