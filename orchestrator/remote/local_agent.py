"""The agent of this computer: it pulls, prepares and cuts files here as an agent does on a machine."""

from __future__ import annotations

from pathlib import Path

from orchestrator.remote.agent_client.client import Agent
from orchestrator.remote.shell.local_shell import LocalShell


def agent_here(home: Path) -> Agent:
    """In the folder that host `local` uses too."""
    return Agent(LocalShell(), str(home / "machine"))
