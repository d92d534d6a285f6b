"""Which Python runs what gptctl sends to a machine: one rule for the agent, transfers, the checks and the home box.

Example: `far_python(shell)` -> "~/venv/bin/python", the host entry's own, else "python3"
"""

from __future__ import annotations

import sys

from orchestrator.core.ports import Shell


def far_python(shell: Shell) -> str:
    """The host entry's `python`, else `python3` there; on this computer the Python that runs gptctl."""
    return shell.address.python or (sys.executable if shell.openssh() is None else "python3")
