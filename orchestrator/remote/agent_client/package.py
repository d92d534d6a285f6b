"""Builds the agent's zipapp: orchestrator/agent, and trainer/run_files.py, in one file.

It must not import what it packs: files are read as text, so the laptop's Python may differ from the machine's. The
archive is a function of its sources alone (fixed times, sorted names), so its name, `agent-HASH.pyz`, says all.

Example::

    package = agent_package()
    package.name            # agent-3f9c0d2a71b8e456.pyz
    package.content         # bytes of the zip, identical on every laptop
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import trainer.run_files

MAIN = b"import sys\nfrom agent.__main__ import main\nsys.exit(main(sys.argv))\n"
LONG_AGO = (1980, 1, 1, 0, 0, 0)
"""The earliest time a zip can hold: the archive must not depend on when it was made."""


@dataclass(frozen=True)
class Package:
    """A built agent: its file name, which carries the digest, and its bytes."""

    name: str
    content: bytes


def agent_sources() -> dict[str, bytes]:
    """Path inside the archive -> bytes of every source file the agent needs."""
    folder = Path(__file__).resolve().parents[2] / "agent"
    sources = {f"agent/{path.relative_to(folder).as_posix()}": path.read_bytes() for path in folder.rglob("*.py")}
    sources["trainer/__init__.py"] = b""
    sources["trainer/run_files.py"] = Path(str(trainer.run_files.__file__)).read_bytes()
    sources["__main__.py"] = MAIN
    return dict(sorted(sources.items()))


@cache
def agent_package() -> Package:
    """The zipapp of the installed agent sources; 16 hex digits of the sha256 over names and contents name it."""
    digest = hashlib.sha256()
    buffer = io.BytesIO()
    # Stored, not deflated: the far side imports from it on every call, and it is small.
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, content in agent_sources().items():
            digest.update(b"%s\0%d\0" % (name.encode(), len(content)) + content)
            archive.writestr(zipfile.ZipInfo(name, LONG_AGO), content)
    return Package(f"agent-{digest.hexdigest()[:16]}.pyz", buffer.getvalue())
