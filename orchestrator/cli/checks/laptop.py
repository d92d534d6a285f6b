"""What this computer needs to drive runs: ssh, keys, space, a correct clock, a sound ledger, versions."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from orchestrator.cli.checks.finding import FAIL, OK, WARN, Finding
from orchestrator.core.config.inventory import load_inventory
from orchestrator.core.config.recipe import Recipe
from orchestrator.core.errors import UserError
from orchestrator.core.formats import size
from orchestrator.core.planning.forecast import kept_about
from orchestrator.ledger.ledger import Ledger

LITTLE_BYTES = 10_000_000_000
NO_SPACE_BYTES = 500_000_000
KEYS = ("id_ed25519", "id_ecdsa", "id_rsa", "id_ed25519_sk", "id_ecdsa_sk")
INSTALL = {"ssh": "install OpenSSH (apt install openssh-client)", "rsync": "apt install rsync, or brew install rsync"}


def findings(home: Path, inventory: Path | None, recipe: Recipe | None) -> Iterator[Finding]:
    """In the order in which a first run needs them."""
    yield _versions()
    yield _program("ssh", ("ssh", "-V"), missing=FAIL)
    yield _program("rsync", ("rsync", "--version"), missing=WARN)
    yield from _keys()
    yield _ledger(home)
    yield _inventory(inventory, home)
    yield _disk(home, recipe)
    yield _clock()
    yield _torch()


def _versions() -> Finding:
    try:
        ours = version("gptctl")
    except PackageNotFoundError:
        ours = "from source"
    return Finding("versions", OK, f"gptctl {ours}, Python {platform.python_version()} on {platform.system()}")


def _program(name: str, argv: Sequence[str], *, missing: str) -> Finding:
    if shutil.which(name) is None:
        return Finding(name, missing, "not found", INSTALL[name])
    said = _said(argv)
    return Finding(name, OK, said.splitlines()[0][:80] if said else "found")


def _said(argv: Sequence[str]) -> str:
    """What a command prints on either stream; empty when it cannot be run."""
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return (done.stdout or done.stderr).strip() if done.returncode == 0 else ""


def _keys() -> Iterator[Finding]:
    """Private keys where ssh looks for them, or in an SSH agent; ssh refuses a key that others can read."""
    folder = Path.home() / ".ssh"
    present = [folder / name for name in KEYS if (folder / name).is_file()]
    held = [line for line in _said(("ssh-add", "-l")).splitlines() if line] if "SSH_AUTH_SOCK" in os.environ else []
    if present or held:
        names = ", ".join([path.name for path in present] + ([f"{len(held)} in the SSH agent"] if held else []))
        yield Finding("keys", OK, names)
    else:
        yield Finding("keys", WARN, f"none in {folder}, none in an SSH agent", "ssh-keygen -t ed25519")
    for path in present:
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & 0o077:
            yield Finding("keys", FAIL, f"{path} has mode {mode:o}; ssh ignores it", f"chmod 600 {path}")


def _ledger(home: Path) -> Finding:
    try:
        with Ledger.open(home, time.time) as ledger:
            runs = len(ledger.runs())
            return Finding("ledger", OK, f"{runs} run{'s' if runs != 1 else ''} in {home}")
    except UserError as error:
        return Finding("ledger", FAIL, error.message, error.hint)


def _inventory(given: Path | None, home: Path) -> Finding:
    try:
        found = load_inventory(given, home)
    except UserError as error:
        return Finding("inventory", FAIL, error.message, error.hint)
    where = f"{found.path}: {', '.join(found.hosts)}" if found.path else "none: only host local"
    return Finding("inventory", OK, where)


def _disk(home: Path, recipe: Recipe | None) -> Finding:
    free = shutil.disk_usage(home).free
    needed = kept_about(recipe) if recipe else 0
    text = f"{size(free)} free for {home}" + (f", kept checkpoints take {size(needed)}" if recipe else "")
    fix = "free some space, or point GPTCTL_HOME at another disk"
    if free < max(NO_SPACE_BYTES, needed):
        return Finding("disk", FAIL, text, fix)
    return Finding("disk", WARN if free < LITTLE_BYTES else OK, text, fix)


def _clock() -> Finding:
    """Without the network: a time before gptctl's files were written is wrong; systemd may know about NTP."""
    newest = Path(__file__).stat().st_mtime
    if time.time() < newest - 86_400:
        return Finding("clock", FAIL, f"{time.ctime()} is before gptctl was installed", "set the clock")
    synchronized = _said(("timedatectl", "show", "-p", "NTPSynchronized", "--value"))
    if synchronized == "no":
        return Finding("clock", WARN, f"{time.ctime()}, not synchronized", "timedatectl set-ntp true")
    return Finding("clock", OK, time.strftime("%Y-%m-%d %H:%M:%S %Z") + (", by NTP" if synchronized == "yes" else ""))


def _torch() -> Finding:
    """Only for host `local`, preparing data and `gptctl sample`; machines have their own."""
    missing = [name for name in ("torch", "numpy", "safetensors", "tiktoken") if not importlib.util.find_spec(name)]
    if missing:
        fix = f"{sys.executable} -m pip install 'gptctl[trainer]'"
        return Finding("trainer", WARN, f"{', '.join(missing)} missing: cannot train or sample on this computer", fix)
    return Finding("trainer", OK, f"torch {version('torch')}: can train and sample here")
