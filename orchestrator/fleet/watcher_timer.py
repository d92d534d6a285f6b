"""Puts the watcher under this computer's timer: a systemd user timer where one runs, else a line in the crontab.

Both are written to GPTCTL_HOME/watcher either way, to be copied to any always-on machine. A timer starts with an empty
environment, so what the watcher needs of ours (the cloud's key above all) goes into a file there for its owner alone.

Example::

    files = write_files(home, needed_variables(accounts, settings, os.environ), inventory)
    put_in_place(files)          # "systemd", "cron", or None: this computer has neither
    first_pass(files)            # proves it, from an empty environment; raises UserError with its last words
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from orchestrator import providers
from orchestrator.core.config.settings import FROM_ENVIRONMENT, Settings
from orchestrator.core.errors import UserError
from orchestrator.core.fleet.watcher_mark import PERIOD_S
from orchestrator.fleet.accounts import Account
from orchestrator.remote.whole_files import landing

NAME = "gptctl-watcher"
MARK = f"# {NAME}"
MINUTES = round(PERIOD_S / 60)
PASS_WITHIN_S = 280
COMMAND_WITHIN_S = 30
OUR_VARIABLES = ("GPTCTL_HOME", "GPTCTL_REHEARSAL", "PYTHONPATH", "PATH")


@dataclass(frozen=True)
class Files:
    """Where they are; `line` is the crontab's, `command` what sh runs."""

    folder: Path
    line: str
    command: str

    @property
    def cron(self) -> Path:
        return self.folder / f"{NAME}.cron"

    @property
    def service(self) -> Path:
        return self.folder / f"{NAME}.service"

    @property
    def timer(self) -> Path:
        return self.folder / f"{NAME}.timer"

    @property
    def environment(self) -> Path:
        return self.folder / "environment"


def needed_variables(
    home: Path, accounts: Iterable[Account], settings: Settings, environment: Mapping[str, str]
) -> dict[str, str]:
    """What the watcher needs of this environment: our folders, the clouds' keys, and what config.toml names."""
    keys = [getattr(providers.load(account.provider.name), "KEY_VARIABLE", None) for account in accounts]
    texts = (*settings.notify.urls, settings.watcher.ping_url or "")
    named = [found[1] for text in texts if (found := FROM_ENVIRONMENT.fullmatch(text))]
    wanted = [*OUR_VARIABLES, *(key for key in keys if key), *named]
    return {**{name: environment[name] for name in wanted if environment.get(name)}, "GPTCTL_HOME": str(home)}


def write_files(home: Path, variables: Mapping[str, str], inventory: Path | None) -> Files:
    """Writes the four files. Raises UserError for a variable that no environment file can hold."""
    folder = home / "watcher"
    argv = [sys.executable, "-m", "orchestrator", "orphans", "--reap", "--yes"]
    argv += ["--inventory", str(inventory.absolute())] if inventory else []
    environment, log = folder / "environment", folder / "last-pass.log"
    # exec: one process, so that a timer that loses patience ends the watcher and not only its shell.
    command = f"set -a; . {_quoted(environment)}; exec {shlex.join(argv)} >{_quoted(log)} 2>&1"
    for_cron = command.replace("%", "\\%")  # there, a bare % ends the command
    line = f"*/{MINUTES} * * * * {for_cron} {MARK}\n"
    files = Files(folder, line, command)
    texts = {
        files.environment: "".join(f"{name}={_value(name, value)}\n" for name, value in variables.items()),
        files.cron: line,
        files.service: _service(argv, environment),
        files.timer: TIMER,
    }
    for path, text in texts.items():
        with landing(path) as file:
            file.write(text.encode())
    return files


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))


def _value(name: str, value: str) -> str:
    """In single quotes, which mean the same to sh and to systemd."""
    if "'" in value or any(ord(character) < 32 for character in value):
        raise UserError(f"{name} holds a quote or a control character; no timer can be given that", f"correct {name}")
    return f"'{value}'"


TIMER = f"""\
[Unit]
Description=Every {MINUTES} minutes: end rented machines that are past their deadline

[Timer]
OnCalendar=*:0/{MINUTES}
AccuracySec=15s
Persistent=true

[Install]
WantedBy=timers.target
"""


def _service(argv: Iterable[str], environment: Path) -> str:
    words = " ".join('"' + _escaped(word) + '"' for word in argv)
    return f"""\
[Unit]
Description=End rented machines that are past their deadline (gptctl)

[Service]
Type=oneshot
EnvironmentFile={str(environment).replace("%", "%%")}
ExecStart={words}
TimeoutStartSec={PASS_WITHIN_S}
"""


def _escaped(word: str) -> str:
    """A word between double quotes in a unit file, where % and $ mean something."""
    for plain, written in (("\\", "\\\\"), ('"', '\\"'), ("%", "%%"), ("$", "$$")):
        word = word.replace(plain, written)
    return word


def put_in_place(files: Files, environment: Mapping[str, str] | None = None) -> str | None:
    """`systemd` or `cron`: which of them now calls the watcher; None: this computer has neither. Twice is fine."""
    around = os.environ if environment is None else environment
    if _done(["systemctl", "--user", "show-environment"]):
        units = Path(around.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "systemd" / "user"
        for source in (files.service, files.timer):
            with landing(units / source.name, mode=0o644) as file:
                file.write(source.read_bytes())
        reload, enable = ["daemon-reload"], ["enable", "--now", files.timer.name]
        if all(_done(["systemctl", "--user", *words]) for words in (reload, enable)):
            _done(["loginctl", "enable-linger"])  # else a user's timers stop at logout
            return "systemd"
    if shutil.which("crontab"):
        listed = _run(["crontab", "-l"])
        kept = [row for row in listed.stdout.splitlines(keepends=True) if MARK not in row] if listed else []
        if _done(["crontab", "-"], stdin="".join(kept) + files.line):
            return "cron"
    return None


def first_pass(files: Files) -> None:
    """Runs the watcher as a timer will: by sh, from an empty environment. Raises UserError with its last words."""
    bare = {"HOME": str(Path.home()), "PATH": "/usr/bin:/bin"}
    done = _run(["sh", "-c", files.command], env=bare, within_s=PASS_WITHIN_S)
    if done is None or done.returncode not in (0, 7):  # 7: it works, and a machine would not end
        log = files.folder / "last-pass.log"
        words = log.read_text(errors="replace").strip().splitlines()[-1:] if log.exists() else []
        raise UserError(f"the watcher does not work: {' '.join(words) or 'it did not start'}", f"see {log}")


def _done(argv: list[str], stdin: str = "") -> bool:
    done = _run(argv, stdin=stdin)
    return done is not None and done.returncode == 0


def _run(
    argv: list[str], *, stdin: str = "", env: Mapping[str, str] | None = None, within_s: float = COMMAND_WITHIN_S
) -> subprocess.CompletedProcess[str] | None:
    """None when the program is not there or does not end in time."""
    try:
        return subprocess.run(argv, input=stdin, capture_output=True, text=True, timeout=within_s, check=False, env=env)
    except (OSError, subprocess.TimeoutExpired):
        return None
