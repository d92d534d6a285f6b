"""Where `--resume-from` leads, for `gptctl plan` and `gptctl run`: found and checked before anything
is priced or bought.

Example: `origin_of(ledger, "chinchilla-1120-k3f9qa", recipe, storages(ledger, inventory))`
"""

from __future__ import annotations

from collections.abc import Callable

from orchestrator.cli.screen import screen
from orchestrator.core.config.inventory import Inventory
from orchestrator.core.config.recipe import Recipe
from orchestrator.core.errors import UserError
from orchestrator.core.ports import Address, Shell, Storage
from orchestrator.ledger.ledger import Ledger
from orchestrator.runs import resume_from as run_origins
from orchestrator.runs.resume_from import Origin
from orchestrator.wiring import open_shell, storage_of

StorageOf = Callable[[str], Storage]


def origin_of(ledger: Ledger, wanted: str | None, recipe: Recipe, storages: StorageOf) -> Origin | None:
    """The checkpoint to resume from: it exists, and its model is the recipe's. None: nothing is wanted."""
    if wanted is None:
        return None
    origin = run_origins.find(ledger, wanted, storages)
    run_origins.check_shape(origin, recipe.model.config())
    screen.talk(f"resuming from step {origin.step}: {origin.place}")
    return origin


def storages(ledger: Ledger, inventory: Inventory, *, accept_new: bool = False) -> StorageOf:
    """The storage of a URI before there is a run; a home box as the inventory has it now."""

    def connect(address: Address) -> Shell:
        return open_shell(ledger.home, address, accept_new=accept_new)

    return lambda uri: storage_of(uri, inventory.home_box, connect)


def no_storage(uri: str) -> Storage:
    """For --offline: raises UserError."""
    raise UserError(f"--offline: {uri} was not asked", "omit --offline, or name a checkpoint on this computer")
