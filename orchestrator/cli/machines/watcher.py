"""`gptctl orphans --install-timer`: runs the watcher from this computer's timer, after a first pass."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from orchestrator.cli.open_ledger import open_home
from orchestrator.cli.screen import screen
from orchestrator.core.config.inventory import HostSpec, load_inventory
from orchestrator.core.config.settings import load_settings
from orchestrator.core.errors import UserError
from orchestrator.core.fleet.watcher_mark import watcher_alive
from orchestrator.fleet.accounts import accounts_of
from orchestrator.fleet.watcher_timer import OUR_VARIABLES, first_pass, needed_variables, put_in_place, write_files

NOT_IN_PLACE = 2


def install(file: Path | None, *, yes: bool, as_json: bool) -> int:
    """Writes the files, installs one and runs a first pass. Exit 2 with neither systemd nor cron."""
    home = open_home()
    inventory = load_inventory(file, home)
    accounts = accounts_of(inventory)
    if not accounts:
        raise UserError("no cloud account to watch", "name a paid host in inventory.toml, or set LAMBDA_API_KEY")
    variables = needed_variables(home, accounts, load_settings(home), os.environ)
    secrets = ", ".join(name for name in variables if name not in OUR_VARIABLES)
    copied = (
        f" {secrets} will be copied to {home / 'watcher' / 'environment'}, which only you can read." if secrets else ""
    )
    question = f"Let this computer end machines past their deadline every five minutes?{copied}"
    if not (yes or screen.ask(question, "gptctl orphans --install-timer")):
        screen.talk("nothing was installed")
        return 0
    files = write_files(home, variables, inventory.path)
    first_pass(files)
    kind = put_in_place(files)
    age_s = watcher_alive(home, time.time())
    written = {each.name: str(each) for each in (files.cron, files.service, files.timer, files.environment)}
    if as_json:
        print(json.dumps({"in_place": kind, "files": written, "line": files.line, "watcher_age_s": age_s}, indent=1))
    else:
        _talk(kind, files.line, files.folder, alive=age_s is not None)
    return 0 if kind else NOT_IN_PLACE


def _talk(kind: str | None, line: str, folder: Path, *, alive: bool) -> None:
    if kind is None:
        screen.talk("found neither a systemd user manager nor a crontab: nothing runs the watcher yet", style="yellow")
        screen.talk(
            f"the files are in {folder}: copy the two units to ~/.config/systemd/user, or add this line to a crontab:"
        )
        print(line, end="", flush=True)
        return
    passed = "a first pass succeeded" if alive else "a first pass ran, but not every account answered"
    print(f"{kind} runs the watcher every five minutes; {passed}", flush=True)


def warn_if_unwatched(home: Path, host: HostSpec) -> None:
    """Warns, before money is spent, if a watcher must guard the host and gptctl sees no sign of one."""
    if host.paid and host.guard == "watcher" and watcher_alive(home, time.time(), host.provider) is None:
        screen.talk(
            f"warning: no sign of a watcher here for 15 minutes; nothing else ends a forgotten {host.name}. "
            "On a computer that is always on, run: gptctl orphans --install-timer",
            style="yellow",
        )
