"""The account's key is looked for everywhere during a whole run and after it: it is only where it belongs."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from tests.conftest import gptctl_command
from tests.faults.conftest import Rehearsal

pytestmark = pytest.mark.faults
LEAST_LOOKS = 20


def holders(key: bytes, files: Iterable[Path]) -> list[Path]:
    """Those of these files that contain it."""
    return [file for file in files if key in content(file)]


def content(file: Path) -> bytes:
    try:
        return file.read_bytes() if file.is_file() else b""
    except OSError:  # it ended, or is not for us to read
        return b""


def below(folder: Path) -> Iterator[Path]:
    """Every file below, also while the folder is being removed."""
    for place, _, names in os.walk(folder):
        yield from (Path(place) / name for name in names)


def command_lines() -> list[Path]:
    return list(Path("/proc").glob("[0-9]*/cmdline"))


@pytest.mark.parametrize("guard", ["watcher", "key-on-box"])
def test_the_api_key_appears_nowhere(rehearse: Callable[..., Rehearsal], guard: str) -> None:
    """In any argv, in any file but the account's own, in any word that was said; with failures on the way."""
    place = rehearse(f"S6 canary API key, guard {guard}", guard=guard)
    key = place.cloud.key.encode()
    shown: set[str] = set()
    looks = 0
    process = subprocess.Popen(
        gptctl_command("run", "tiny.toml", "--host", "cloud", "--yes"), env=place.env, cwd=place.folder,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    place.cloud.inject("500@list,terminate-500,timeout-before-effect@terminate")
    place.started.append(process)
    homes: set[Path] = set()
    while process.poll() is None:
        looks += 1
        shown |= {str(file) for file in holders(key, command_lines())}
        homes |= set(place.cloud.state.glob("machines/*"))
        shown |= {str(file) for home in homes for file in holders(key, below(home))}
    said, _ = process.communicate()
    assert process.returncode == 0, said
    assert looks >= LEAST_LOOKS and homes
    assert key not in said
    own = Path(place.cloud.entry["key_file"])
    shown |= {str(file) for file in holders(key, (one for one in below(place.folder) if one != own))}
    shown |= {str(file) for file in holders(key, below(Path("/dev/shm")))}
    assert shown == set()
    place.check()
