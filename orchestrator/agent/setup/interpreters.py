"""Pythons on this machine and what is installed for them, found by looking at files: starting each would take seconds.

What is listed here is a candidate; only the install job, which runs a computation in it, says that one is good.

Example::

    candidates(places, "/opt/pytorch/bin/python")[0]      # {'path': ..., 'version': '3.11', 'torch': '2.13.0', ...}
"""

from __future__ import annotations

import glob
import os
import re
import sys

from ..contract.facts import Interpreter
from ..system.paths import Places

TRAINER_PACKAGES = ("torch", "numpy", "safetensors", "tiktoken")
VENDORS = ("/opt/pytorch/bin/python", "/opt/conda/bin/python", "~/miniconda3/bin/python", "~/anaconda3/bin/python")
SYSTEM = ("/usr/local/bin/python3", "/usr/bin/python3")
VERSION_PATTERN = re.compile(r"^__version__\s*=\s*['\"]([^'\"]+)", re.MULTILINE)


def candidates(places: Places, given: str | None) -> list[Interpreter]:
    """Each Python once, the preferred first: the given one, our environments, this one, the vendor's, the system's."""
    named = [(os.path.expanduser(given), "given")] if given else []
    named += [(path, "env") for path in sorted(glob.glob(os.path.join(places.envs, "*", "bin", "python")))]
    named += [(sys.executable, "own")]
    named += [(os.path.expanduser(path), "vendor") for path in VENDORS]
    named += [(path, "system") for path in SYSTEM]
    found: dict[str, Interpreter] = {}
    for path, kind in named:
        if path and os.access(path, os.X_OK) and path not in found:
            found[path] = describe(path, kind)
    return list(found.values())


def describe(path: str, kind: str) -> Interpreter:
    """Version and torch as the interpreter's folders tell; `trainer`: whether all that the trainer needs is there."""
    folders = site_folders(path)
    return {
        "path": path,
        "version": _version(folders),
        "torch": _torch_version(folders),
        "trainer": all(_has(folders, name) for name in TRAINER_PACKAGES),
        "kind": kind,
    }


def site_folders(path: str) -> list[str]:
    """Where this interpreter's packages are, its own first; a virtual environment may also see its base's."""
    prefix = os.path.dirname(os.path.dirname(os.path.abspath(path)))
    marker = os.path.join(prefix, "pyvenv.cfg")
    if not os.path.isfile(marker):
        return _system_folders(os.path.dirname(os.path.dirname(os.path.realpath(path))))
    with open(marker) as file:
        settings = dict(line.lower().split(" = ", 1) for line in file.read().splitlines() if " = " in line)
    own = _with_paths(_folders(prefix))
    if settings.get("include-system-site-packages") == "true" and "home" in settings:
        own += site_folders(os.path.join(settings["home"], "python3"))
    return own


def _system_folders(prefix: str) -> list[str]:
    """Of an interpreter outside of virtual environments: also the user's own packages and the distribution's."""
    own = _with_paths(_folders(prefix))
    versions = {os.path.basename(os.path.dirname(folder)) for folder in own}
    user = [folder for version in versions for folder in _folders(os.path.expanduser("~/.local"), version)]
    return user + own + (_folders("/usr/local") + _folders("/usr", "python3") if prefix == "/usr" else [])


def _folders(prefix: str, version: str = "python3.*") -> list[str]:
    return sorted(glob.glob(os.path.join(prefix, "lib", version, "site-packages"))) + sorted(
        glob.glob(os.path.join(prefix, "lib", version, "dist-packages"))
    )


def _with_paths(folders: list[str]) -> list[str]:
    """The folders, and those that their .pth files add: an editable install, or an environment laid over another."""
    added = []
    for folder in folders:
        for path in sorted(glob.glob(os.path.join(glob.escape(folder), "*.pth"))):
            try:
                with open(path, encoding="utf-8", errors="replace") as file:
                    lines = [line.strip() for line in file]
            except OSError:
                continue
            places = [os.path.join(folder, line) for line in lines if line and not line.startswith(("#", "import"))]
            added += [place for place in places if os.path.isdir(place)]
    return folders + added


def _has(folders: list[str], name: str) -> bool:
    return any(os.path.isdir(os.path.join(folder, name)) for folder in folders)


def _version(folders: list[str]) -> str | None:
    names = [part for folder in folders for part in folder.split(os.sep) if re.match(r"python3\.\d+$", part)]
    return names[0][len("python") :] if names else None


def _torch_version(folders: list[str]) -> str | None:
    for folder in folders:
        try:
            with open(os.path.join(folder, "torch", "version.py")) as file:
                match = VERSION_PATTERN.search(file.read())
        except OSError:
            continue
        if match:
            return match.group(1)
    return None
