"""Data onto the machine, as much of it as the run reads, pulled there by the machine itself.

Its agent pulls from hf://, s3:// and http(s)://; nothing comes through this computer but headers. Where the source
vouches for no digest, what was seen first must be seen ever after. Not a stage of its own: sync calls it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from orchestrator.core.datasets import overlaps
from orchestrator.core.errors import VerificationFailed
from orchestrator.core.facts.run_facts import DataOnMachine, DatasetFacts, StagedFacts
from orchestrator.core.fleet.lease import lease_s
from orchestrator.core.planning.remainder import unread_steps
from orchestrator.core.ports import Storage
from orchestrator.datasets.remote_dataset import Proof, StoredDataset, listing, stored_dataset, token_files
from orchestrator.datasets.staging_plan import StagedData, StagedFile, staged_data
from orchestrator.remote.agent_client.pull_job import Pulled, pull
from orchestrator.remote.whole_files import landing
from orchestrator.report.data_source import shown_source
from orchestrator.stages.context import RunContext
from orchestrator.stages.machine.jobs import progress

FIRST_SEEN = "first-seen.json"


def pull_dataset(context: RunContext, uri: str) -> DataOnMachine:
    """Has the machine pull what the run needs of a dataset elsewhere, verified."""
    store = context.storage(uri)
    dataset = _dataset(context, store, uri)
    unread = unread_steps(context.recipe, context.host, context.plan.from_step)
    staged = staged_data(dataset, context.recipe, context.plan.steps, unread)
    context.set_run_facts(dataset=described(dataset, staged, overlaps.about(context.home, uri, shown_source)))
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
        lease_s=lease_s(),
    )
    for file in staged.files:
        check_seen(context.home / FIRST_SEEN, file, pulled[file.destination])
    note_staged(context, uri, staged)
    return on_machine(staged, {file.identity: pulled[file.destination].path for file in staged.files})


def on_machine(staged: StagedData, places: Mapping[str, str]) -> DataOnMachine:
    """What the trainer reads; `places` are paths on the machine by a file's identity."""
    return DataOnMachine(
        tuple(places[file.identity] for file in staged.train),
        tuple(places[file.identity] for file in staged.validation),
        staged.validation_start_token,
        staged.validation_tokens,
        staged.window,
    )


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


def described(dataset: StoredDataset, staged: StagedData, overlap: str | None = None) -> DatasetFacts:
    """The dataset for the record and the model card; the digest covers what is pulled."""
    content = "\n".join(f"{file.source.file.name}\0{file.identity}" for file in staged.files)
    digest = hashlib.sha256(content.encode()).hexdigest()[:16]
    return DatasetFacts(dataset.train_tokens, dataset.validation_tokens or None, digest, overlap=overlap)


def _dataset(context: RunContext, store: Storage, uri: str) -> StoredDataset:
    """The same files on every call of this run, whatever the source lists meanwhile."""
    files = context.facts.data_listed or tuple(token_files(store, uri))
    found = listing(store, context.recipe, uri, files, context.facts.validation_listed or ())
    context.set_run_facts(data_listed=files, validation_listed=found.validation or None)
    return stored_dataset(store, uri, found, Proof.of(context.recipe))


def note_staged(context: RunContext, uri: str, staged: StagedData) -> None:
    """For status and report: what the data is, and what vouches for it."""
    facts = StagedFacts(uri, staged.needed_bytes, staged.pulled_bytes, staged.verified_by)
    context.set_run_facts(staged=facts)
