"""Files of any storage scheme on this computer, whole and verified: what `data prepare` reads its text from.

This computer's own agent pulls them, as a machine does: in parallel, resumed at the byte, once per content. A path
stays where it is. You may delete GPTCTL_HOME/machine/data at any time.

Example: `bring_here(home, "hf://me/corpus/data/*.parquet", show)` -> [Path(".../train-00000.parquet"), ...]
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from orchestrator import storage
from orchestrator.core.datasets.text_files import choose
from orchestrator.core.ports import Part, Storage, StoredFile
from orchestrator.remote.agent_client.pull_job import pull
from orchestrator.remote.local_agent import agent_here
from orchestrator.remote.transfer_progress import Transfer


def bring_here(
    home: Path, uri: str, tell: Callable[[Transfer], None], wanted: Callable[[str], bool] = lambda name: True
) -> list[Path]:
    """The files that the URI names (a file, a folder, a pattern), in name order; `wanted` chooses among their names.

    Raises StorageError, VerificationFailed, or MachineUnfit for a disk that is too small, all before a file counts.
    """
    store = storage.of(uri)
    files = [each for each in store.manifest(uri) if wanted(each.name)]
    if store.scheme == storage.PATH:
        return [Path(each.uri) for each in files]
    if not files:
        return []
    content = hashlib.sha256(repr([(f.uri, f.version, f.sha256, f.size_bytes) for f in files]).encode()).hexdigest()[
        :16
    ]
    here = agent_here(home)
    pulled = pull(here, f"download-{content}", lambda: _whole(store, files, f"data/{content}"), tell)
    return [Path(each.path) for each in pulled.values()]


def _whole(store: Storage, files: Sequence[StoredFile], folder: str) -> list[Part]:
    return [
        replace(
            store.download_plan(each.uri, f"{folder}/{each.name}", 0, each.size_bytes),
            sha256=each.sha256,
            of_bytes=each.size_bytes,
        )
        for each in files
    ]


@dataclass(frozen=True)
class Text:
    """Files of text on this computer; `revision` is the commit of a repository, else empty."""

    paths: Sequence[str]
    revision: str = ""


def bring_text(home: Path, uri: str, tell: Callable[[Transfer], None], say: Callable[[str], None]) -> Text:
    """The files of a URI that `data prepare` reads; says first how many there are, and how large."""
    files = storage.of(uri).manifest(uri)
    chosen = set(choose([each.name for each in files], uri))
    size_gb = sum(each.size_bytes for each in files if each.name in chosen) / 1e9
    say(f"{uri}: {len(chosen)} of {len(files)} files, {size_gb:.3f} GB, are downloaded to this computer")
    paths = bring_here(home, uri, tell, lambda name: name in chosen)
    version = next((each.version for each in files), "")
    return Text([str(path) for path in paths], version if storage.scheme_of(uri) == "hf" else "")
