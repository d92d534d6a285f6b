"""Which gptctl this is: the version, and the commit where it runs from a clone. For run records and model cards.

made_by()      # "gptctl 0.1.0 (commit 3f2a91c04d77)", "gptctl 0.1.0"
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from orchestrator.remote.shell.local_shell import LocalShell

ROOT = Path(__file__).resolve().parents[2]


@cache
def made_by() -> str:
    """In words; a commit with changes on top of it says so."""
    commit = _commit()
    return f"gptctl {_version()}" + (f" (commit {commit})" if commit else "")


def _version() -> str:
    try:
        return version("gptctl")
    except PackageNotFoundError:  # run from a folder that was never installed
        return "of unknown version"


def _commit() -> str | None:
    """None for an installed gptctl, and without git."""
    if not (ROOT / ".git").exists():
        return None
    describe = ["git", "-C", str(ROOT), "describe", "--always", "--dirty= and changes", "--abbrev=12", "--exclude=*"]
    answer = LocalShell().run(describe, deadline_s=10)
    return answer.stdout.decode(errors="replace").strip() or None if answer.code == 0 else None
