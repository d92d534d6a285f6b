"""Checks that the package `trainer` on the import path is gptctl's own, without importing it.

PyPI has another package of that name. Installed over ours it replaces files, and every command would fail in foreign
code. Runs before each command: one look-up on the import path, and one file of a few lines.

Example::

    check_trainer()      # raises UserError if another package shadows ours
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from orchestrator.core.errors import UserError

MARKER = 'DISTRIBUTION = "gptctl"'
"""A line of trainer/__init__.py."""
CURE = "give gptctl an environment of its own: uv tool install 'gptctl[trainer]', or pipx install 'gptctl[trainer]'"


def check_trainer() -> None:
    """Raises UserError if the package is missing or belongs to another distribution."""
    spec = importlib.util.find_spec("trainer")
    if spec is None or spec.origin is None:
        raise UserError("gptctl's package `trainer` is missing; another package's uninstall may have removed it", CURE)
    origin = Path(spec.origin)
    if MARKER not in origin.read_text(encoding="utf-8", errors="replace").splitlines():
        raise UserError(f"another package named `trainer` shadows gptctl's own: {origin}{_owner(origin)}", CURE)


def _owner(path: Path) -> str:
    """`, installed by trainer 0.0.36`; empty for a file that no distribution lists."""
    # Only now: the metadata of every installed distribution is read.
    from importlib.metadata import distributions

    for distribution in distributions():
        name = distribution.metadata["Name"]
        files = [file for file in distribution.files or () if file.parts[-2:] == path.parts[-2:]]
        if name != "gptctl" and any(Path(str(file.locate())).resolve() == path.resolve() for file in files):
            return f", installed by {name} {distribution.version}"
    return ""
