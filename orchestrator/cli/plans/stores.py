"""The stores that a run uses, tried before anything is bought: for `gptctl run` and every arm of a sweep.

Example: `check_store(host, stores, needs_bytes=kept, lasts_s=7200.0, is_detached=False)`
"""

from __future__ import annotations

import time

from orchestrator.cli.plans.origin import Beginning, StorageOf
from orchestrator.cli.screen import screen
from orchestrator.core.checkpoints.store_places import check_scheme
from orchestrator.core.config.home_box import HomeBox, is_home
from orchestrator.core.config.inventory import HostSpec, Inventory
from orchestrator.core.errors import UserError
from orchestrator.stores import preflight


def check_store(
    host: HostSpec, stores: StorageOf, *, needs_bytes: int, lasts_s: float, is_detached: bool
) -> None:  # fmt: skip
    """Raises UserError, before any money is spent, if the host's store cannot be written, or not for long enough.
    needs_bytes: what is kept at the end; lasts_s: how long its machine may run."""
    store = host.checkpoint_store or host.fetch_store
    if store is None:
        return
    check_scheme(store)
    preflight.check(
        store, stores(store), hub_token_on_machine=host.hub_token_on_machine, needs_bytes=needs_bytes
    )  # fmt: skip
    short = preflight.short_of(lasts_s, host.checkpoint_store, time.time())
    if short and is_detached:
        raise UserError(
            f"-d: {short}: nothing would renew its URLs", "omit -d, set a lower limit, or use other credentials"
        )
    if short:
        screen.talk(f"warning: {short}; gptctl renews the URLs while it follows the run", style="yellow")


def home_boxes(inventory: Inventory, host: HostSpec, begun: Beginning) -> tuple[HomeBox, ...]:
    """The boxes of yours with its store or the checkpoint that it begins with, as the inventory has them now: the run
    keeps them."""
    return tuple(inventory.home_box(uri) for uri in (host.checkpoint_store, begun.place) if uri and is_home(uri))
