"""Where torch and Triton keep what they compile: a folder of ours, on the disk that holds the environments.

Example: `{**os.environ, **compile_caches("/root/.gptctl/cache")}`
"""

from __future__ import annotations

import os
import tempfile

from ..contract.compute_check import caches_below
from . import files, folder_trial


def compile_caches(folder: str) -> dict[str, str]:
    """Variables that keep compiled code below `folder`, which is where environments are: torch's own choice is /tmp,
    which may be full, forbid to execute, or be emptied between two starts. What you have set yourself stays.

    TMPDIR, too, where /tmp is full or runs no programs: compilers write there, and torchrun its logs.
    """
    wanted = {name: value for name, value in caches_below(folder).items() if name not in os.environ}
    trial = folder_trial.tried(tempfile.gettempdir())
    if trial["write"] or trial["run"]:
        wanted["TMPDIR"] = os.path.join(folder, "tmp")
        files.make_folder(wanted["TMPDIR"])
    return wanted
