"""gptctl's folder on this computer, created if missing. Only its owner can read it, whatever the umask."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from orchestrator.core.config.gptctl_home import home_folder
from orchestrator.core.errors import UserError
from orchestrator.ledger.ledger import Ledger


def open_home() -> Path:
    """The folder, created if missing (mode 0700). Raises UserError if it cannot be written."""
    os.umask(0o077)
    home = home_folder()
    hint = "point GPTCTL_HOME at a folder you can write to"
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot create the folder {home}: {error.strerror}", hint) from error
    if not os.access(home, os.R_OK | os.W_OK | os.X_OK):
        raise UserError(f"cannot write to the folder {home}", hint)
    return home


def open_ledger() -> Ledger:
    """The ledger in the home folder; use it as a context manager."""
    return Ledger.open(open_home(), time.time, _say)


def _say(text: str) -> None:
    """On stderr, without Rich: a verb that prints JSON loads none."""
    print(f"gptctl: {text}", file=sys.stderr, flush=True)
