"""Models of other programs as runs of this ledger: brought here, read by the trainer's program, noted as imported.

An imported model has a run's folder and row, so that eval, sample, export and compare take it like a run's checkpoint.
It trained nowhere here: it has no machine, no stage and no cost.

Example: `import_model(ledger, ImportRequest("hf://models/openai-community/gpt2", "gpt2"), say, show)`
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator import storage
from orchestrator.core.errors import UserError
from orchestrator.core.facts.origin import IMPORTED, Lineage, Origin
from orchestrator.core.facts.run_facts import RunFacts
from orchestrator.core.ports import StoredFile
from orchestrator.core.states import Outcome, State
from orchestrator.core.typed_json import decode
from orchestrator.datasets.downloads import bring_here
from orchestrator.ledger.identity import new_run_id
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.records import RunRecord
from orchestrator.remote.shell.local_shell import LocalShell
from orchestrator.remote.transfer_progress import Transfer
from orchestrator.report.data_source import shown_source
from orchestrator.runs.local_python import answer, python_with
from orchestrator.runs.own_version import made_by
from trainer.run_files import BEST, CHECKPOINTS, LATEST, TEMPORARY_PREFIX, checkpoint_name

RECIPE = "imported"
NOWHERE = "-"
"""The host of a model that trained nowhere here."""
MACHINE = "1xCPU"
HUB, HUB_MODELS = "hf://", "hf://models/"
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
BESIDE = ("config.json", "gptctl.json", "meta.json", "model.json", "vocab.json", "tokenizer.json")


@dataclass(frozen=True)
class ImportRequest:
    """What to import, and what you say about it."""

    source: str
    """hf://models/OWNER/NAME[@REVISION], another URI, a folder or a file."""
    name: str | None = None
    n_head: int | None = None
    tokenizer: str | None = None
    accept_tanh_gelu: bool = False

    def options(self) -> list[str]:
        """Of `trainer.import_model`, and of `gptctl import`."""
        said = [("--n-head", self.n_head), ("--tokenizer", self.tokenizer)]
        words = [word for option, value in said if value is not None for word in (option, str(value))]
        return [*words, *(["--accept-tanh-gelu"] if self.accept_tanh_gelu else [])]


@dataclass(frozen=True)
class Brought:
    """The model's files on this computer, and what names them for good."""

    path: Path
    place: str
    base_model: str | None = None


def import_model(
    ledger: Ledger, request: ImportRequest, say: Callable[[str], None], show: Callable[[Transfer], None]
) -> tuple[RunRecord, dict[str, Any]]:
    """The new run, and what the program said. Raises UserError, StorageError, CommandFailed; then leaves nothing."""
    brought = bring(ledger.home, request.source, say, show)
    run_id = new_run_id(request.name or Path(brought.place.partition("@")[0]).stem, time.time())
    mirror = ledger.home / "runs" / run_id
    landing = mirror / CHECKPOINTS / f"{TEMPORARY_PREFIX}import"
    try:
        said = read(ledger.home, brought, landing, request)
        name = checkpoint_name(int(said["step"]))
        landing.rename(landing.with_name(name))
        for link in (LATEST, BEST):
            (landing.parent / link).symlink_to(name)
        run = _record(run_id, request, brought, said)
        ledger.add_run(run)
    except BaseException:
        shutil.rmtree(mirror, ignore_errors=True)
        raise
    return run, said


def read(home: Path, brought: Brought, to: Path, request: ImportRequest) -> dict[str, Any]:
    """Runs the program. A pickle needs torch, safetensors numpy alone. Raises UserError with its reason."""
    shell, source = LocalShell(), brought.path
    pickles = source.suffix in PICKLES or (source.is_dir() and not any(source.glob("*.safetensors")))
    python = python_with(home, shell, "numpy, torch" if pickles else "numpy")
    try:
        return answer(shell, python, "import_model", [str(source), "--to", str(to), *request.options()])
    except UserError as error:  # the place that you named, not where its files were brought
        raise UserError(error.message.replace(str(source), brought.place.partition("@")[0]), error.hint) from error


def bring(home: Path, source: str, say: Callable[[str], None], show: Callable[[Transfer], None]) -> Brought:
    """The folder or file on this computer. Raises UserError for a source that is not there."""
    if "://" not in source:
        path = Path(source).expanduser()
        if not path.exists():
            raise UserError(f"{source} does not exist", "name hf://models/OWNER/NAME, a folder or a file of weights")
        return Brought(path.absolute(), str(path.absolute()))
    uri = f"{HUB_MODELS}{source.removeprefix(HUB).removeprefix('models/')}" if source.startswith(HUB) else source
    files = storage.of(uri).manifest(uri)
    chosen = choose([each.name for each in files], uri)
    size_bytes = sum(each.size_bytes for each in files if each.name in chosen)
    say(f"{uri}: {len(chosen)} of {len(files)} files, {size_bytes / 1e9:.3f} GB, are downloaded to this computer")
    paths = bring_here(home, uri, show, lambda name: name in chosen)
    return Brought(paths[0].parent, *_named(uri, files))


def choose(names: list[str], where: str) -> frozenset[str]:
    """The weights, as safetensors where the repository has them, and what describes them. Raises UserError."""
    top = [name for name in names if "/" not in name]
    safe = [name for name in top if name.endswith((".safetensors", ".safetensors.index.json"))]
    weights = safe or [name for name in top if name.endswith((*PICKLES, ".bin.index.json"))]
    if "model.safetensors" in weights:
        weights = ["model.safetensors"]
    if not any(name.endswith((".safetensors", *PICKLES)) for name in weights):
        some = ", ".join(sorted(names)[:5]) or "nothing"
        raise UserError(f"{where} has no weights; it has: {some}", "name a model that has model.safetensors")
    return frozenset([*weights, *(name for name in top if name in BESIDE)])


def _named(uri: str, files: Sequence[StoredFile]) -> tuple[str, str | None]:
    """The URI that names these very bytes, and the model's id where it is one of the Hub."""
    if not uri.startswith(HUB_MODELS):
        return uri, None
    owner_and_name = "/".join(uri.removeprefix(HUB_MODELS).split("/")[:2]).partition("@")[0]
    commit = next((each.version for each in files if each.version), "")
    return f"{HUB_MODELS}{owner_and_name}" + (f"@{commit}" if commit else ""), owner_and_name


def _record(run_id: str, request: ImportRequest, brought: Brought, said: dict[str, Any]) -> RunRecord:
    now = time.time()
    known = decode(Lineage, said["lineage"], lenient=True)
    origin = Origin(
        IMPORTED,
        brought.place,
        step=int(said["step"]),
        sha256=str(said["sha256"]),
        base_model=brought.base_model or (known.origin.base_model if known.origin else None),
        seen=known.seen,
        layout=str(said["layout"]),
        files={str(name): str(digest) for name, digest in said["source_sha256"].items()},
    )
    return RunRecord(
        id=run_id,
        name=request.name,
        recipe=RECIPE,
        recipe_data={
            "name": RECIPE,
            "description": f"imported from {shown_source(brought.place)}",
            "model": said["model"],
            "data": {"tokenizer": said["tokenizer"]},
        },
        host=NOWHERE,
        machine=MACHINE,
        facts=RunFacts(made_by=made_by(), origin=origin),
        state=State.ENDED,
        outcome=Outcome.IMPORTED,
        created_at=now,
        ended_at=now,
        step=int(said["step"]),
    )


def imported_from(ledger: Ledger, place: str, same: Callable[[dict[str, str]], bool]) -> RunRecord | None:
    """The newest import of this place, if its files, by name with their sha256, are still the same."""
    for run in ledger.runs(ended_only=True):
        origin = run.facts.origin
        if run.outcome is Outcome.IMPORTED and origin is not None and origin.place == place:
            return run if same(dict(origin.files)) else None
    return None
