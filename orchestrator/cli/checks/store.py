"""Whether a machine can store its checkpoints in its host's store: tried from here, as `run` does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from orchestrator.cli.checks.finding import FAIL, OK, Finding
from orchestrator.core.checkpoints.store_places import check_scheme
from orchestrator.core.config.inventory import HostSpec, Inventory
from orchestrator.core.config.recipe import Recipe
from orchestrator.core.errors import GptctlError
from orchestrator.core.planning.forecast import kept_about
from orchestrator.core.ports import Address, Shell
from orchestrator.remote.shell.opened import open_shell
from orchestrator.stores import preflight
from orchestrator.wiring import storage_of


def findings(
    home: Path, host: HostSpec, inventory: Inventory, recipe: Recipe | None, *, accept_new: bool
) -> Iterator[Finding]:
    """One finding, or none for a host without a store. Writes an empty object there and removes it."""
    uri = host.checkpoint_store or host.fetch_store
    if uri is None:
        return

    def connect(address: Address) -> Shell:
        return open_shell(home, address, accept_new=accept_new)

    try:
        check_scheme(uri)
        preflight.check(
            uri,
            storage_of(uri, inventory.home_box, connect),
            hub_token_on_machine=host.hub_token_on_machine,
            needs_bytes=kept_about(recipe) if recipe else 0,
        )
    except GptctlError as error:
        yield Finding("store", FAIL, error.message, error.hint or "")
    else:
        yield Finding("store", OK, f"{uri} can be written to")
