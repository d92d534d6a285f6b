"""Which files of a project go to a machine: what git would keep, less everything that looks like a secret.

choose(Path("."))    # CodeFiles(files=("train.py", ...), excluded=(".env", "deploy/key.pem"))
"""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

from orchestrator.core.errors import UserError

SECRET_FILES = (
    ".env*", "*.env", "*.pem", "*.key", "*.p12", "*.pfx", "*.jks", "*.kdbx", "*.ppk", "*.keytab",
    ".netrc", "_netrc", ".npmrc", ".pypirc", ".git-credentials", ".htpasswd", "credentials.json",
    "id_rsa*", "id_dsa*", "id_ecdsa*", "id_ed25519*", "id_xmss*",
)  # fmt: skip
SECRET_FOLDERS = frozenset({".git", ".ssh", ".aws", ".gnupg", ".azure", ".kube"})
USELESS_FOLDERS = frozenset(
    {"__pycache__", ".venv", "venv", "node_modules", ".mypy_cache", ".ruff_cache", ".pytest_cache"}
)


@dataclass(frozen=True)
class CodeFiles:
    """Relative POSIX names, sorted. `excluded` are files that git would have kept and we do not send."""

    files: tuple[str, ...]
    excluded: tuple[str, ...]


def code_files(root: Path) -> list[str]:
    """The files to send; `choose` also lists what was left out."""
    return list(choose(root).files)


def choose(root: Path) -> CodeFiles:
    """`git ls-files` (tracked, and untracked but not ignored); every file without git. Minus secrets."""
    if not root.is_dir():
        raise UserError(f"{root} is not a folder", hint="give the project's folder")
    listed = _git_files(root)
    names = sorted(_walk(root) if listed is None else listed)
    good = [name for name in names if not is_secret(name) and _stays_inside(root, name)]
    return CodeFiles(tuple(good), tuple(name for name in names if name not in set(good)))


def is_secret(name: str) -> bool:
    """Whether a relative name looks like a key, a token or git's own folder, whatever its case."""
    path = PurePosixPath(name.lower())
    if SECRET_FOLDERS & set(path.parts):
        return True
    # A bare id_* is a key pair; id_map.py is code.
    bare_key = fnmatch(path.name, "id_*") and path.suffix in {"", ".pub"}
    return bare_key or any(fnmatch(path.name, pattern) for pattern in SECRET_FILES)


def _git_files(root: Path) -> list[str] | None:
    # core.fsmonitor in a repository's own config is a program that ls-files would start.
    ask = ["git", "-c", "core.fsmonitor=false", "-C", str(root), "ls-files", "-z", "--cached", "--others"]
    try:
        listing = subprocess.run([*ask, "--exclude-standard"], capture_output=True, timeout=60, check=False)
    except FileNotFoundError:
        return None
    if listing.returncode:
        return None
    names = {os.fsdecode(name) for name in listing.stdout.split(b"\0") if name}
    # A tracked file may be deleted in the work tree, and a submodule is listed as a folder.
    return [name for name in names if (root / name).is_file()]


def _walk(root: Path) -> list[str]:
    found = []
    for folder, folders, files in os.walk(root):
        folders[:] = [each for each in folders if each not in USELESS_FOLDERS | {".git"}]
        found += [(Path(folder) / file).relative_to(root).as_posix() for file in files]
    return [name for name in found if (root / name).is_file()]


def _stays_inside(root: Path, name: str) -> bool:
    """A link out of the tree would carry a file along that you did not choose."""
    return (root / name).resolve().is_relative_to(root.resolve())
