"""The account's key is looked for everywhere during a whole run and after it: it is only where it belongs."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import gptctl_command
from tests.faults.conftest import Rehearsal
from tests.support.files.canary import below, holders, of_processes

pytestmark = pytest.mark.faults
LEAST_LOOKS = 20


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
        shown |= {str(file) for file in holders(key, of_processes("cmdline"))}
        homes |= set(place.cloud.state.glob("machines/*"))
        shown |= {str(file) for file in holders(key, below(*homes))}
    said, _ = process.communicate()
    assert process.returncode == 0, said
    assert looks >= LEAST_LOOKS and homes
    assert key not in said
    own = Path(place.cloud.entry["key_file"])
    shown |= {str(file) for file in holders(key, (one for one in below(place.folder) if one != own))}
    shown |= {str(file) for file in holders(key, below(Path("/dev/shm")))}
    assert shown == set()
    place.check()
