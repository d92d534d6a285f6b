"""Token files on this computer: made ready while no machine costs anything, sent when there is one.

Text is prepared, the files are digested, and of large ones only what the run reads is cut out. Not a stage of its own:
acquire calls `before_buying`, and sync finds it done.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from orchestrator.core.datasets import local_dataset, overlaps
from orchestrator.core.datasets.windows import validation_slice
from orchestrator.core.facts.run_facts import CutFile, DataOnMachine, DatasetFacts
from orchestrator.datasets.remote_dataset import StoredDataset, TokenFile, open_dataset
from orchestrator.datasets.staging_plan import StagedData, staged_data
from orchestrator.remote.agent_client.pull_job import pull
from orchestrator.remote.local_agent import agent_here
from orchestrator.remote.whole_files import landing
from orchestrator.report.data_source import shown_source
from orchestrator.stages.context import RunContext
from orchestrator.stages.data.prepared_text import prepared_folder
from orchestrator.stages.data.pulled_data import note_staged, on_machine
from orchestrator.stages.machine.jobs import progress

Push = Callable[[Path, str, str], str]
"""Sends a file into the folder of its digest, under a name, and returns its place on the machine."""


def is_elsewhere(context: RunContext) -> bool:
    """Whether the machine pulls the data itself."""
    return context.recipe.data.prepare is None and "://" in (context.recipe.data.source or "")


def before_buying(context: RunContext) -> None:
    """Prepares what is sent from here. For machines without a bill, sync does it."""
    if context.provider.paid:
        make_ready(context)


def make_ready(context: RunContext) -> None:
    """Prepares and cuts what is sent from here, and digests it."""
    if not is_elsewhere(context):
        folder, dataset, _ = found_here(context)
        _cut(context, folder, dataset)


def found_here(context: RunContext) -> tuple[Path, StoredDataset, str]:
    """The folder or file, what is in it, and its digest; noted for the record and the model card."""
    source = context.recipe.data.source or ""
    folder = prepared_folder(context) if context.recipe.data.prepare else Path(source).expanduser()
    dataset = _opened(context, folder)
    digest = _digest(context, dataset)
    context.set_run_facts(dataset=_described(context, dataset, digest))
    return folder, dataset, digest


def size_bytes(context: RunContext) -> int:
    """How much is sent from here at most; large where that is not known yet, since text has to be prepared first."""
    cut = context.facts.data_cut
    if cut:
        return sum(made.size_bytes for made in cut.values())
    if context.recipe.data.prepare is not None:
        return sys.maxsize
    return _opened(context, Path(context.recipe.data.source or "").expanduser()).size_bytes


def _opened(context: RunContext, folder: Path) -> StoredDataset:
    return open_dataset(context.storage(str(folder)), context.recipe, str(folder))


def path_of(shard: TokenFile) -> Path:
    """Where it is on this computer."""
    return Path(shard.file.uri)


def send(context: RunContext, push: Push) -> DataOnMachine:
    """Sends what is missing on the machine."""
    folder, dataset, digest = found_here(context)
    if (cut := _cut(context, folder, dataset)) is None:
        return in_place(
            context, dataset, {shard: push(path_of(shard), digest, shard.file.name) for shard in dataset.files}
        )
    staged, files = cut
    note_staged(context, str(folder), staged)
    return on_machine(
        staged, {identity: push(Path(file.path), file.sha256[:16], "") for identity, file in files.items()}
    )


def in_place(context: RunContext, dataset: StoredDataset, places: Mapping[TokenFile, str]) -> DataOnMachine:
    """The whole files, read where they are."""
    start, tokens = validation_slice(context.recipe, dataset.train_tokens, dataset.validation_tokens)
    return DataOnMachine(
        tuple(places[shard] for shard in dataset.train),
        tuple(places[shard] for shard in dataset.validation),
        start,
        tokens,
    )


def _cut(context: RunContext, folder: Path, dataset: StoredDataset) -> tuple[StagedData, Mapping[str, CutFile]] | None:
    """Files with what the run needs, by identity; once made, they are found again. None: send the whole ones."""
    store = context.storage(str(folder))
    staged = staged_data(dataset, context.recipe, context.plan.steps)
    whole = dataset.size_bytes
    if staged.sent_bytes(whole) == whole:
        return None
    known = context.facts.data_cut
    wanted = {file.identity for file in staged.files}
    if known.keys() == wanted and all(_is_there(made) for made in known.values()):
        return staged, known
    context.say(f"data: {staged.pulled_bytes / 1e6:,.2f} MB of {whole / 1e6:,.2f} MB are needed and sent")
    here = agent_here(context.home)
    parts = [part for file in staged.files for part in file.parts(store)]
    made = pull(here, context.run_id, lambda: parts, progress(context, "cut"))
    pulled = {file.identity: made[file.destination] for file in staged.files}
    files = {identity: CutFile(each.path, each.size_bytes, each.sha256) for identity, each in pulled.items()}
    context.set_run_facts(data_cut=files)
    return staged, files


def _is_there(made: CutFile) -> bool:
    path = Path(made.path)
    return path.is_file() and path.stat().st_size == made.size_bytes


def _described(context: RunContext, dataset: StoredDataset, digest: str) -> DatasetFacts:
    """The dataset for the record and the model card."""
    folder = path_of(dataset.train[0]).parent
    made = local_dataset.prepared(folder)
    source = context.recipe.data.source or str(folder)
    overlap = (
        "; ".join(filter(None, (made.excluded_words(shown_source), overlaps.about(context.home, source, shown_source))))
        or None
    )
    tokens = dataset.train_tokens, dataset.validation_tokens or None
    return DatasetFacts(*tokens, digest, made.documents, overlap, made.mixture_words(shown_source))


def _digest(context: RunContext, dataset: StoredDataset) -> str:
    cache = context.home / "data-digests.json"
    known = json.loads(cache.read_text()) if cache.is_file() else {}
    before = len(known)
    digest = local_dataset.digest([(each.file.name, path_of(each)) for each in dataset.files], known)
    if len(known) != before:
        with landing(cache) as file:
            file.write(json.dumps(known, indent=1).encode())
    return digest
