"""`gptctl notify`: shows who gets notified of what, or sends a test message."""

from __future__ import annotations

import os

from orchestrator.cli.open_ledger import open_home
from orchestrator.cli.screen import screen
from orchestrator.core.config.gptctl_home import CONFIG_FILE
from orchestrator.core.config.settings import FROM_ENVIRONMENT, HAPPENINGS, load_settings
from orchestrator.core.errors import UserError
from orchestrator.notify.send import send_test


def notify(*, test: bool) -> int:
    """Prints what config.toml says; with `test`, sends a message to every address. Never prints an address."""
    home = open_home()
    settings = load_settings(home).notify
    if not test:
        named = [
            each if FROM_ENVIRONMENT.fullmatch(each) else f"{each.partition(':')[0]}://..." for each in settings.urls
        ]
        named += [f"command {settings.command[0]}"] if settings.command else []
        print(f"notifies: {', '.join(named) or 'nobody'}")
        print(f"of: {', '.join(each for each in HAPPENINGS if each in settings.events)}")
        screen.talk(f"from {home / CONFIG_FILE}; gptctl notify --test sends a message")
        return 0
    problems = send_test(settings, os.environ)
    if problems:
        raise UserError(f"could not reach everyone: {'; '.join(problems)}", "correct [notify] in config.toml")
    print("sent")
    return 0
