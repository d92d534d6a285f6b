"""Where `--resume-from` and `model.init_from` lead, for `gptctl plan` and `gptctl run`: found and checked before
anything is priced or bought.

Example: `beginning(ledger, "chinchilla-1120-k3f9qa", recipe, storages(ledger, inventory), importer(ledger)).from_step`
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from orchestrator.cli.screen import screen
from orchestrator.core.config.inventory import Inventory
from orchestrator.core.config.recipe import Recipe
from orchestrator.core.errors import UserError
from orchestrator.core.facts import origin as facts
from orchestrator.core.facts.run_facts import ResumeFrom
from orchestrator.core.ports import Address, Shell, Storage
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.records import RunRecord
from orchestrator.remote.shell.opened import open_shell
from orchestrator.report.data_source import data_differences
from orchestrator.runs.origin import initial_weights
from orchestrator.runs.origin import resume_from as run_origins
from orchestrator.runs.origin.history import data_before, made_by, origin_facts
from orchestrator.runs.origin.imports import ImportRequest, import_model
from orchestrator.runs.origin.initial_weights import Importer
from orchestrator.runs.origin.resume_from import Origin, Wanted
from orchestrator.wiring import storage_of

StorageOf = Callable[[str], Storage]


@dataclass(frozen=True)
class Beginning:
    """What a run begins from; nothing: from random weights."""

    resume_from: ResumeFrom | None = None
    init_from: ResumeFrom | None = None
    origin: facts.Origin | None = None
    other_data: Sequence[str] = ()
    """In what its data differ from those that the checkpoint saw."""

    @property
    def from_step(self) -> int:
        return self.resume_from.step if self.resume_from else 0

    @property
    def place(self) -> str | None:
        """Of the checkpoint, its folder or URI."""
        return self.origin.place if self.origin else None


def beginning(
    ledger: Ledger, wanted: str | None, recipe: Recipe, storages: StorageOf, import_: Importer | None
) -> Beginning:
    """What --resume-from names, else the recipe's model.init_from: it exists, and its model is the recipe's. Without
    `import_`, a foreign model that was never imported is only named. Raises UserError."""
    config = recipe.model.config()
    if wanted is not None:
        found = run_origins.find(ledger, wanted, storages)
        run_origins.check_shape(found, config)
        screen.talk(f"resuming from step {found.step}: {found.place}")
        before = data_before(found, made_by(ledger, found.place))
        return Beginning(
            resume_from=_moved(found),
            origin=origin_facts(ledger, found, facts.RESUMED),
            other_data=data_differences(before, recipe.resolved()),
        )
    if recipe.model.init_from is None:
        return Beginning()
    init_from = recipe.model.init_from
    if import_ is None and initial_weights.is_foreign(init_from):
        screen.talk(f"{init_from} is imported, and its shape compared, before `gptctl run` buys anything")
        return Beginning()
    found = initial_weights.find(ledger, init_from, storages, import_ or _never)
    run_origins.check_shape(found, config, Wanted(initial_weights.KEY))
    screen.talk(f"beginning at step 0 with the weights of {found.place}")
    return Beginning(init_from=_moved(found), origin=origin_facts(ledger, found, facts.STARTED))


def _moved(found: Origin) -> ResumeFrom:
    return ResumeFrom(found.place, found.step, found.files)


def _never(source: str) -> RunRecord:
    raise UserError(f"{source} was not imported")


def importer(ledger: Ledger) -> Importer:
    """Imports a model and shows it: for `gptctl run`."""

    def import_(source: str) -> RunRecord:
        with screen.show_progress() as show:
            run, _ = import_model(
                ledger, ImportRequest(source), screen.talk, lambda moved: show({"what": "download", **vars(moved)})
            )
        screen.talk(f"imported {source} as {run.id}")
        return run

    return import_


def storages(ledger: Ledger, inventory: Inventory, *, accept_new: bool = False) -> StorageOf:
    """The storage of a URI before there is a run; a home box as the inventory has it now."""

    def connect(address: Address) -> Shell:
        return open_shell(ledger.home, address, accept_new=accept_new)

    return lambda uri: storage_of(uri, inventory.home_box, connect)


def no_storage(uri: str) -> Storage:
    """For --offline: raises UserError."""
    raise UserError(f"--offline: {uri} was not asked", "omit --offline, or name a checkpoint on this computer")
