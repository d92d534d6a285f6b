"""Data onto the machine, as much of it as the run reads, pulled there by the machine itself.

Its agent pulls from hf://, s3:// and http(s)://; nothing comes through this computer but headers. Where the source
vouches for no digest, what was seen first must be seen ever after. Not a stage of its own: sync calls it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from orchestrator.core.errors import VerificationFailed
from orchestrator.core.ports import Storage, StoredFile
from orchestrator.datasets.remote_dataset import StoredDataset, stored_dataset, token_files
from orchestrator.datasets.staging_plan import StagedData, StagedFile, staged_data
from orchestrator.remote.agent_client.pull_job import Pulled, pull
from orchestrator.remote.whole_files import landing
from orchestrator.stages.context import RunContext
from orchestrator.stages.machine import box_guard
from orchestrator.stages.machine.progress import progress

FIRST_SEEN = "first-seen.json"


def pull_dataset(context: RunContext, uri: str) -> dict[str, object]:
    """Pulls what the run needs of a dataset elsewhere, verified; returns fields of the trainer's DataConfig."""
    store = context.storage(uri)
    dataset = _dataset(context, store, uri)
    staged = staged_data(dataset, context.recipe, context.plan.steps)
    context.note(dataset=described(dataset, staged))
    context.say(
        f"data: {staged.pulled_bytes / 1e6:,.2f} MB of {uri}, {staged.needed_bytes / 1e6:,.2f} MB are needed; "
        f"verified by {staged.verified_by}"
    )
    pulled = pull(
        context.agent,
        context.run_id,
        lambda: [part for file in staged.files for part in file.parts(store)],
        progress(context, "data"),
        folder=context.host.data_folder,
        lease_s=box_guard.lease_s(),
    )
    for file in staged.files:
        check_seen(context.home / FIRST_SEEN, file, pulled[file.destination])
    note_staged(context, uri, staged)
    return fields(staged, {file.identity: pulled[file.destination].path for file in staged.files})


def fields(staged: StagedData, places: Mapping[str, str]) -> dict[str, object]:
    """What the trainer is told; `places` are paths on the machine by a file's identity."""
    return {
        "train_files": [places[file.identity] for file in staged.train],
        "validation_files": [places[file.identity] for file in staged.validation],
        **staged.fields,
    }


def check_seen(path: Path, file: StagedFile, pulled: Pulled) -> None:
    """The bytes are those that were seen the first time under this identity, which is kept in `path`."""
    promised = file.source.file.sha256 if file.is_whole else None
    known: dict[str, str] = json.loads(path.read_text()) if path.is_file() else {}
    expected = promised or known.get(file.identity)
    if expected is None:
        with landing(path) as written:
            written.write(json.dumps({**known, file.identity: pulled.sha256}, indent=1).encode())
    elif expected != pulled.sha256:
        why = "promised" if promised else "seen first"
        raise VerificationFailed(
            f"data: {file.source.file.name} has sha256 {pulled.sha256}, {why} was {expected}",
            f"the source changed under the same name. If that is meant, remove the line from {path}; "
            f"the file on the machine is {pulled.path}",
        )


def described(dataset: StoredDataset, staged: StagedData) -> dict[str, object]:
    """What is known of it, for the record and the model card; the digest covers what is pulled."""
    content = "\n".join(f"{file.source.file.name}\0{file.identity}" for file in staged.files)
    return {
        "train_tokens": dataset.train_tokens,
        "validation_tokens": dataset.validation_tokens or None,
        "digest": hashlib.sha256(content.encode()).hexdigest()[:16],
    }


def _dataset(context: RunContext, store: Storage, uri: str) -> StoredDataset:
    """The same files on every call of this run, whatever the source lists meanwhile."""
    known = context.run.options.get("data_listed")
    files = [StoredFile(**each) for each in known] if known else token_files(store, uri)
    if not known:
        context.note(data_listed=[asdict(each) for each in files])
    return stored_dataset(store, uri, files)


def note_staged(context: RunContext, uri: str, staged: StagedData) -> None:
    """For status and report: what the data is, and what vouches for it."""
    context.note(
        staged={
            "source": uri,
            "needed_bytes": staged.needed_bytes,
            "pulled_bytes": staged.pulled_bytes,
            "verified_by": staged.verified_by,
        }
    )
