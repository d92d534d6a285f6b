"""What starts the agent again when an own machine boots: a unit of the user's systemd where that runs without a login
(linger), else an @reboot line of the crontab. One per ROOT, there as long as a training may have to go on.

It must not start anything itself; reboot.py is what the hook runs.

Example::

    put(places)        # 'systemd', 'cron', or None: this machine has neither
    settle(places)     # gone, once no training needs it any more
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import pwd
import shlex
import shutil
import subprocess
import sys
from typing import Iterator, Sequence

from ...contract.names import BootWay, FileName, JobName
from ...system import files, processes
from ...system.paths import RUN_PATTERN, Places
from .. import jobs

CONTINUE = "continue"
WITHIN_S = 10.0
LINGERING = "/var/lib/systemd/linger"
SYSTEMD_RUNS = "/run/systemd/system"
CRON_DAEMONS = ("cron", "crond", "fcron")
UNIT = """\
[Unit]
Description=gptctl: continue the trainings in %(root)s after a reboot

[Service]
Type=simple
KillMode=process
ExecStart=%(argv)s

[Install]
WantedBy=default.target
"""
"""KillMode: what it starts outlives it."""


def way() -> str:
    """How a training here could go on after a reboot, as it stands; changes nothing."""
    if _lingers():
        return BootWay.SYSTEMD
    if _has_cron():
        return BootWay.CRON
    return BootWay.NO_LINGER if os.path.isdir(SYSTEMD_RUNS) else BootWay.NONE


def put(places: Places) -> str | None:
    """Installs the hook and returns its kind; None where the machine has neither. Repeatable."""
    with _alone(places):
        if os.path.isdir(SYSTEMD_RUNS) and not _lingers():
            _run(["loginctl", "--no-ask-password", "enable-linger"])
        if _lingers():
            _write_unit(places)
            found = BootWay.SYSTEMD
        elif _has_cron() and _edit_crontab(places, [_cron_line(places)]):
            found = BootWay.CRON
        else:
            return None
        files.write_json(_record(places), {"by": found})
        return found


def settle(places: Places) -> None:
    """Takes the hook away once no training that would go on after a reboot is left."""
    if not os.path.exists(_record(places)):
        return
    with _alone(places):
        if any(map(is_needed, _trainings(places))):
            return
        for path in _unit_files(places):
            files.remove(path)
        if (files.read_json(_record(places)) or {}).get("by") == BootWay.CRON:
            _edit_crontab(places, [])
        files.remove(_record(places))


def is_needed(job: jobs.Job) -> bool:
    """Whether this training goes on after a reboot: that was agreed to, it began or waits, and it has not ended."""
    waits = os.path.exists(job.places.queued(job.run))
    return goes_on(job) and (waits or jobs.was_touched(job)) and job.exit_record() is None


def goes_on(job: jobs.Job) -> bool:
    """Whether it was agreed that this training goes on after a reboot."""
    return job.is_train and job.spec.get("on_reboot") == CONTINUE


def _trainings(places: Places) -> list[jobs.Job]:
    runs = [name for name in files.listing(places.jobs) if RUN_PATTERN.match(name)]
    found = [jobs.load(places, run, JobName.TRAIN) for run in runs]
    return [job for job in found if job is not None]


def _lingers() -> bool:
    """Whether this user's systemd runs from the boot on."""
    return os.path.isdir(SYSTEMD_RUNS) and os.path.exists(os.path.join(LINGERING, processes.user_name()))


def _has_cron() -> bool:
    return shutil.which("crontab") is not None and any(name in CRON_DAEMONS for name in processes.names())


def _name(places: Places) -> str:
    return "gptctl-" + hashlib.sha256(places.root.encode()).hexdigest()[:12]


def _record(places: Places) -> str:
    return os.path.join(places.agent, FileName.BOOT_HOOK)


def _argv(places: Places) -> list[str]:
    return [sys.executable, "-I", "-S", places.program, "boot"]


def home_folder() -> str:
    """This user's, as systemd knows it, whatever this login's variables say."""
    return pwd.getpwuid(os.getuid()).pw_dir


def _unit_files(places: Places) -> list[str]:
    """The unit, and the link that makes the user's systemd start it: read at the next boot, so nothing is reloaded."""
    folder = os.path.join(home_folder(), ".config", "systemd", "user")
    name = _name(places) + ".service"
    return [os.path.join(folder, name), os.path.join(folder, "default.target.wants", name)]


def _write_unit(places: Places) -> None:
    unit, link = _unit_files(places)
    argv = " ".join('"%s"' % _escaped(word) for word in _argv(places))
    for path in (unit, link):
        files.make_folder(os.path.dirname(path))
    files.write_bytes(unit, (UNIT % {"root": _escaped(places.root), "argv": argv}).encode())
    if not os.path.islink(link):
        os.symlink(unit, link)


def _escaped(word: str) -> str:
    """A word between double quotes in a unit file, where % and $ mean something."""
    for plain, written in (("\\", "\\\\"), ('"', '\\"'), ("%", "%%"), ("$", "$$")):
        word = word.replace(plain, written)
    return word


def _cron_line(places: Places) -> str:
    """For cron a bare % ends the command."""
    command = " ".join(map(shlex.quote, _argv(places))).replace("%", "\\%")
    return "@reboot %s >/dev/null 2>&1 # %s\n" % (command, _name(places))


def _edit_crontab(places: Places, lines: Sequence[str]) -> bool:
    """Puts these lines in the place of ours. Whether the crontab has them now."""
    listed = _run(["crontab", "-l"])
    before = listed.splitlines(keepends=True) if listed is not None else []
    kept = [row for row in before if not row.rstrip().endswith("# " + _name(places))]
    after = [*kept, *lines]
    return after == before or _run(["crontab", "-"], "".join(after)) is not None


def _run(argv: Sequence[str], stdin: str = "") -> str | None:
    """What it printed; None where it is not there, fails, or does not end in time."""
    try:
        done = subprocess.run(
            list(argv), input=stdin.encode(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=WITHIN_S,
            check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode(errors="replace") if done.returncode == 0 else None


@contextlib.contextmanager
def _alone(places: Places) -> Iterator[None]:
    """Two trainings may begin and end at once: the later sees what the earlier wrote."""
    with open(os.path.join(files.make_folder(places.agent), FileName.BOOT_HOOK + ".lock"), "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
