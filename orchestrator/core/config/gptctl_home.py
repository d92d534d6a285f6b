"""Where gptctl keeps its things on this computer: `GPTCTL_HOME`, else the platform's folder for user data.

It only names the folder; `cli/open_ledger.py` makes it.
"""

from __future__ import annotations

import os
from pathlib import Path

from platformdirs import user_data_dir

CONFIG_FILE = "config.toml"
"""Your settings in that folder, see settings.py."""


def home_folder() -> Path:
    """The folder, existing or not."""
    named = os.environ.get("GPTCTL_HOME")
    return Path(named).expanduser().absolute() if named else Path(user_data_dir("gptctl"))
