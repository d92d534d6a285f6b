"""Bulk transfer, both ways: the three doors are push_tree, push_file and pull_files (with pull_file behind it).

Trees go by rsync (`trees.py`), files over 64 MiB as parallel ranges (`ranges.py`), and where rsync is missing one tar
stream does it. Everything is looked at first, verified by sha256 afterwards, and only then gets its name; running it
again sends nothing. Names of files to fetch come from our manifest, never from the machine.

    push_file(shell, Path("train.bin"), "/data/train.bin", print)
    pull_files(shell, "runs/x/checkpoints/step-000617", folder, checkpoint.files, print, manifest="MANIFEST.json")
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Protocol

from orchestrator.core.errors import MachineUnfit, UserError, VerificationFailed
from orchestrator.core.ports import Shell
from orchestrator.core.safe_names import stays_inside
from orchestrator.core.typed_json import parse
from orchestrator.remote.transfer import far_calls, far_program, parallel_ranges
from orchestrator.remote.transfer.source_files import CodeFiles, choose, code_files
from orchestrator.remote.transfer.trees import push_tree
from orchestrator.remote.transfer_progress import Listener, Meter, Transfer, TransferReport, silent
from orchestrator.remote.whole_files import cannot_write, require_space

__all__ = [
    "CodeFiles",
    "Transfer",
    "TransferReport",
    "choose",
    "code_files",
    "pull_file",
    "pull_files",
    "push_file",
    "push_tree",
]

SMALL_BYTES = 1 << 20
"""Up to here a file travels inside the connection that is open; above, ssh's own handshake is worth its second."""
SMALL_WITHIN_S = 300.0
LONGEST_NAME_BYTES = 1000


class Entry(Protocol):
    """A line of a verified manifest."""

    @property
    def size_bytes(self) -> int: ...
    @property
    def sha256(self) -> str: ...


def push_file(shell: Shell, source: Path, destination: str, on_progress: Listener = silent) -> TransferReport:
    """Make `destination` on the machine hold the bytes of `source`; nothing is sent where it does.

    Errors: MachineUnfit (space, python3), VerificationFailed, LinkLost: run it again to resume at that byte.
    """
    size_bytes, mode, stamp = identity(source)
    what = f"push {source.name} to {destination}"
    small = size_bytes <= SMALL_BYTES or shell.openssh() is None
    plan = [] if small else parallel_ranges.split(size_bytes)
    question = far_program.File(path=destination, size_bytes=size_bytes, stamp=stamp, streams=len(plan), afresh=False)
    there = far_calls.prepare_file(shell, question, what)
    if there.sha256 is not None:
        if there.sha256 == _sha256(source):
            return TransferReport(0, 0, "none")
        there = far_calls.prepare_file(shell, {**question, "afresh": True}, what)
    _require_far_space(there, what)
    plan = parallel_ranges.resumed(plan, there.positions)
    meter = Meter(source.name, size_bytes, on_progress, bytes_before=sum(each.done_bytes for each in plan))
    if small:
        shell.put(source, there.path, mode=mode, deadline_s=SMALL_WITHIN_S)
        meter.count(size_bytes)
    else:
        try:
            parallel_ranges.push_ranges(shell, source, there.part, plan, meter)
        except VerificationFailed:
            far_calls.discard_parts(shell, there, what)
            raise
        far_calls.commit_file(shell, there, mode, what)
    meter.tell(now=True)
    return TransferReport(1, meter.moved_bytes, _way(shell, small, "put"))


def pull_file(
    shell: Shell, remote: str, local: Path, *, size_bytes: int, sha256: str, on_progress: Listener = silent
) -> TransferReport:
    """Fetch one file of known size and digest. Nothing moves where `local` has it already.

    Errors: UserError (no space here), VerificationFailed, LinkLost: run it again to resume at that byte.
    """
    if _is_here(local, size_bytes, sha256):
        return TransferReport(0, 0, "none")
    small = size_bytes <= SMALL_BYTES or shell.openssh() is None
    part = Path(far_program.part_name(str(local), sha256[:16]))
    meter = (_pull_at_once if small else _pull_in_ranges)(shell, remote, part, size_bytes, on_progress)
    _land(part, local, sha256, remote)
    meter.tell(now=True)
    return TransferReport(1, meter.moved_bytes, _way(shell, small, "get"))


def pull_files(
    shell: Shell,
    remote_folder: str,
    local_folder: Path,
    files: Mapping[str, Entry],
    on_progress: Listener = silent,
    *,
    manifest: str | None = None,
) -> TransferReport:
    """Fetch exactly these files of a folder, under exactly these names; what is here already is left alone.

    `manifest` names a further file, fetched last, whose JSON must list the same files: a folder that has it is whole.
    """
    for name in [*files, *([manifest] if manifest else [])]:
        check_name(name)
    wanted = {name: entry for name, entry in files.items() if not _is_here(local_folder / name, *_pair(entry))}
    require_space(local_folder, sum(entry.size_bytes for entry in wanted.values()))
    moved_bytes, ways = 0, set()
    for name, entry in wanted.items():
        size_bytes, sha256 = _pair(entry)
        remote, local = f"{remote_folder}/{name}", _inside(local_folder, name)
        report = pull_file(shell, remote, local, size_bytes=size_bytes, sha256=sha256, on_progress=on_progress)
        moved_bytes += report.bytes_sent
        ways.add(report.way)
    if manifest is not None:
        _pull_manifest(shell, f"{remote_folder}/{manifest}", _inside(local_folder, manifest), files)
    way = "none" if not ways else "ranges" if "ranges" in ways else ways.pop()
    return TransferReport(len(wanted), moved_bytes, way)


def check_name(name: str) -> None:
    """VerificationFailed for a name that could lead out of its folder or hide on a terminal."""
    if not stays_inside(name, most_bytes=LONGEST_NAME_BYTES):
        raise VerificationFailed(f"the manifest names {name!r}: refused", hint="the machine's files were tampered with")


def _way(shell: Shell, small: bool, in_one: str) -> str:
    return "copy" if shell.openssh() is None else in_one if small else "ranges"


def _pull_at_once(shell: Shell, remote: str, part: Path, size_bytes: int, on_progress: Listener) -> Meter:
    require_space(part.parent, size_bytes)
    meter = Meter(PurePosixPath(remote).name, size_bytes, on_progress)
    shell.get(remote, part, deadline_s=SMALL_WITHIN_S)
    meter.count(part.stat().st_size)
    return meter


def _pull_in_ranges(shell: Shell, remote: str, part: Path, size_bytes: int, on_progress: Listener) -> Meter:
    plan = parallel_ranges.split(size_bytes)
    try:
        part.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        positions = far_program.open_part(str(part), size_bytes, len(plan))
    except OSError as error:
        raise cannot_write(part, error) from error
    require_space(part.parent, size_bytes - part.stat().st_blocks * 512)
    plan = parallel_ranges.resumed(plan, positions)
    meter = Meter(
        PurePosixPath(remote).name, size_bytes, on_progress, bytes_before=sum(each.done_bytes for each in plan)
    )
    parallel_ranges.pull_ranges(shell, remote, part, plan, meter)
    return meter


def _land(part: Path, local: Path, sha256: str, remote: str) -> None:
    """The final name, for the right bytes only; they are on the disk before anybody may delete the original."""
    with part.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
        os.fsync(file.fileno())
    if found != sha256:
        far_program.drop_parts(str(local))
        raise VerificationFailed(
            f"fetch {remote}: sha256 {sha256} was promised, {found} arrived", hint=parallel_ranges.AGAIN
        )
    part.chmod(0o600)
    os.replace(part, local)
    far_program.drop_parts(str(local))


def _pull_manifest(shell: Shell, remote: str, local: Path, files: Mapping[str, Entry]) -> None:
    promised = {name: _pair(entry) for name, entry in files.items()}
    if _listed(local) == promised:
        return
    arrived = local.with_name(f".{local.name}.part")
    shell.get(remote, arrived)
    if _listed(arrived) != promised:
        arrived.unlink()
        raise VerificationFailed(f"{remote} lists other files than the machine said before", hint=parallel_ranges.AGAIN)
    os.replace(arrived, local)


def _listed(manifest: Path) -> dict[str, tuple[int, str]] | None:
    """The files a MANIFEST.json lists; None for none or one that is not a manifest."""
    try:
        found = parse(manifest.read_text(encoding="utf-8"))["files"]
        return {name: (int(entry["size_bytes"]), str(entry["sha256"])) for name, entry in found.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError):
        return None


def _inside(folder: Path, name: str) -> Path:
    """Where a checked name lies; refuses to write through a link."""
    path = folder
    for part in PurePosixPath(name).parts[:-1]:
        path = path / part
        if path.is_symlink():
            raise VerificationFailed(f"{path} is a link: refused to write through it", hint="remove it")
    return folder / name


def _pair(entry: Entry) -> tuple[int, str]:
    return entry.size_bytes, entry.sha256


def identity(source: Path) -> tuple[int, int, str]:
    """Size in bytes, mode, and a stamp that changes when the file does: only under the same stamp is a part resumed."""
    try:
        info = source.stat()
    except OSError as error:
        raise UserError(f"cannot read {source}: {error.strerror}", hint="check the path") from error
    if not source.is_file():
        raise UserError(f"{source} is not a file", hint="push its files, or give a file")
    stamp = hashlib.sha256(f"{info.st_size} {info.st_mtime_ns} {info.st_ino}".encode()).hexdigest()[:16]
    return info.st_size, info.st_mode & 0o755 | 0o600, stamp


def _is_here(local: Path, size_bytes: int, sha256: str) -> bool:
    if local.is_symlink() or not local.is_file() or local.stat().st_size != size_bytes:
        return False
    return _sha256(local) == sha256


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _require_far_space(there: far_calls.FileState, what: str) -> None:
    if there.free_bytes < there.needed_bytes:
        raise MachineUnfit(
            f"{what}: needs {there.needed_bytes / 1e9:.2f} GB, the machine has {there.free_bytes / 1e9:.2f} GB free",
            hint="free space there, or set `folder` in its inventory entry to a larger disk",
        )
