"""The files of a run come from its driver: each verified, each checkpoint as a whole. It must not replace what was
written here after the run came back.

Example: `bring(driver, home, "tiny-1130-k3f9qa", only_missing=False)`
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from orchestrator.cli.driver.incoming import arrive, incoming, manifest_sha256
from orchestrator.cli.driver.listing import Listed, Listing, listing
from orchestrator.cli.driver.on_the_driver import Driver
from orchestrator.cli.screen import screen
from orchestrator.core.errors import VerificationFailed
from trainer import run_files

GET_WITHIN_S = 3600.0


def files_of(wanted: str | None) -> list[str]:
    """The command that lists a run's files there."""
    return ["driver", "files", *([wanted] if wanted else [])]


def bring(driver: Driver, home: Path, wanted: str | None, *, only_missing: bool) -> None:
    """The run's folder, as the driver has it, into this GPTCTL_HOME.

    only_missing: the run was driven elsewhere since, and what is here is newer.
    """
    listed = listing(driver.answer(files_of(wanted)))
    folder = home / "runs" / listed.run
    checkpoints: dict[str, list[Listed]] = {}
    plain: list[Listed] = []
    for file in listed.files:
        path = PurePosixPath(file.name)
        if any(part.startswith(".") for part in path.parts):  # half written
            continue
        is_checkpoint = file.link is None and run_files.checkpoint_step(path.parent.name) is not None
        (checkpoints.setdefault(str(path.parent), []) if is_checkpoint else plain).append(file)
    for name, files in checkpoints.items():
        try:
            _checkpoint(driver, home, listed, name, files, only_missing=only_missing)
        except VerificationFailed as error:
            screen.talk(f"{listed.run}: damaged on {driver.host.name}, left out: {error.message}", style="yellow")
    for file in plain:
        if not (only_missing and _has_been_here(folder, file.name)):
            _file(driver, listed, file, folder / file.name)
    screen.talk(f"{listed.run}: {len(listed.files)} files from {driver.host.name} in {folder}")


def _has_been_here(folder: Path, name: str) -> bool:
    """Also the log of a machine that is gone, which was put aside."""
    return os.path.lexists(folder / name) or any(folder.glob(f"attempt-*/{name}"))


def _file(driver: Driver, listed: Listing, file: Listed, path: Path) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if file.link is None:
        driver.shell.get(f"{listed.folder}/{file.name}", path, deadline_s=GET_WITHIN_S)
        return
    coming = path.with_name(f".{path.name}")
    coming.unlink(missing_ok=True)
    coming.symlink_to(file.link)
    os.replace(coming, path)


def _checkpoint(
    driver: Driver, home: Path, listed: Listing, name: str, files: Sequence[Listed], *, only_missing: bool
) -> None:
    """The same here is completed; another one of that step gives way, unless it is newer."""
    here = home / "runs" / listed.run / name
    known = manifest_sha256(here)
    manifest = next((each for each in files if PurePosixPath(each.name).name == run_files.MANIFEST_FILE), None)
    if manifest is None or (only_missing and known is not None):
        return  # it is still written there
    with tempfile.TemporaryDirectory() as temporary:
        _file(driver, listed, manifest, Path(temporary) / run_files.MANIFEST_FILE)
        theirs = manifest_sha256(Path(temporary)) or ""
    into = here if known == theirs else incoming(home, f"{listed.run}/{name}", theirs)
    for each in files:
        path = into / PurePosixPath(each.name).name
        if not path.is_file() or path.stat().st_size != each.size_bytes:
            _file(driver, listed, each, path)
    if into is not here:
        arrive(into, here)
