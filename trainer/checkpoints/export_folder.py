"""The folder of an export: what may be replaced, and how one appears whole or not at all.

It must not know what is exported.

Example::

    restore_export(to); check_target(to)
    ...                                  # write into staging_path(to)
    replace_export(staging_path(to), to)
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection
from pathlib import Path

from trainer.run_files import TEMPORARY_PREFIX

RECORD = "gptctl.json"
"""In every export: its origin and its files. A folder without it belongs to another program."""
HEADROOM_BYTES = 32_000_000
"""Space beyond the weights: the tokenizer, the card and the file system."""


class ExportError(ValueError):
    """The export is impossible, or its target is. Says what to change."""


def check_target(to: Path) -> None:
    """Raises ExportError unless `to` is new, empty, or an older export with no other files."""
    if to.is_symlink() or (to.exists() and not to.is_dir()):
        raise ExportError(f"{to} exists and is not a folder: choose another --to")
    names = set(files_below(to)) if to.is_dir() else set()
    if not names:
        return
    if RECORD not in names:
        raise ExportError(f"{to} is neither empty nor an export ({_list_some(names)}): choose another --to")
    try:
        known = json.loads((to / RECORD).read_text(encoding="utf-8"))["files"].keys()
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise ExportError(f"{to}: its {RECORD} cannot be read: choose another --to") from error
    unlisted = names - known - {RECORD}
    if unlisted:
        raise ExportError(
            f"{to} has an export and files that are not part of it ({_list_some(unlisted)}): choose another --to"
        )


def files_below(folder: Path) -> list[str]:
    """Names of the files, with the folders that they are in, and of empty folders; sorted."""
    found = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir() or not any(path.iterdir()))
    return sorted(path.relative_to(folder).as_posix() for path in found)


def _list_some(names: Collection[str]) -> str:
    shown = sorted(names)
    return ", ".join(shown[:4]) + (f" and {len(shown) - 4} more" if len(shown) > 4 else "")


def check_free_space(to: Path, weights_bytes: int) -> None:
    """Raises ExportError where the disk cannot hold the weights."""
    existing = next(folder for folder in to.parents if folder.exists())
    need, free = weights_bytes + HEADROOM_BYTES, shutil.disk_usage(existing).free
    if free < need:
        raise ExportError(f"{to} needs {need / 1e9:.2f} GB, and its disk has {free / 1e9:.2f} GB free")


def staging_path(to: Path) -> Path:
    """The folder where an export is written. Leftovers there may be deleted."""
    return to.with_name(TEMPORARY_PREFIX + to.name)


def backup_path(to: Path) -> Path:
    """The older export between the two renames: it exists while `to` does not, and is whole."""
    return to.with_name(f"{TEMPORARY_PREFIX}{to.name}-replaced")


def replace_export(staging: Path, to: Path) -> None:
    """Renames the older export aside, then the new one into place. The older one is deleted under the name of
    staging_path(): restore_export() must never find a part of it."""
    if to.exists():
        to.rename(backup_path(to))
    staging.rename(to)
    if backup_path(to).exists():
        backup_path(to).rename(staging)


def restore_export(to: Path) -> None:
    """Restores the older export where a process died between the two renames; deletes it beside a newer one."""
    aside = backup_path(to)
    if not aside.exists():
        return
    if not to.exists():
        aside.rename(to)
    else:
        shutil.rmtree(staging_path(to), ignore_errors=True)
        aside.rename(staging_path(to))
