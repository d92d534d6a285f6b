"""`gptctl resume RUN --store URI`: a store for a run that began without one, where bringing its checkpoints here costs
more than you want to pay. Tried first; where it does not do, the run is as it was."""

from __future__ import annotations

from orchestrator.cli.plans.origin import storages
from orchestrator.cli.screen import screen
from orchestrator.core.checkpoints.store_places import check_scheme
from orchestrator.core.config.home_box import is_home
from orchestrator.core.config.inventory import HostSpec, load_inventory
from orchestrator.core.errors import UserError
from orchestrator.core.states import State, is_forward
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.records import RENTAL_OPEN, RunRecord
from orchestrator.ledger.run_lock import RunLock, refuse_driven_elsewhere
from orchestrator.stages.checkpoints import late_store
from orchestrator.stores import preflight
from orchestrator.wiring import open_context


def add_store(ledger: Ledger, run: RunRecord, uri: str) -> None:
    """From now on the run has this store; one that trained already gives its machine the means to write there.

    Raises UserError for a run that has nothing left to store, or stores elsewhere, RunLocked where another gptctl
    drives it, and what the store or the machine says.
    """
    refuse_driven_elsewhere(run)
    host = HostSpec.from_resolved(run.host_data)
    if host.checkpoint_store == uri:
        return
    _refuse_pointless(ledger, run, host)
    if is_home(uri):
        raise UserError(f"--store {uri}: a home box is named before the run begins", "--store s3://BUCKET/PREFIX")
    check_scheme(uri)
    stores = storages(ledger, load_inventory(None, ledger.home))
    preflight.check(uri, stores(uri), hub_token_on_machine=host.hub_token_on_machine)
    with RunLock.acquire(ledger.home, run.id):
        if is_forward(State.TRAINING, run.state):
            _begin(ledger, run, uri)
        else:
            ledger.update_run(run.id, host_data={**run.host_data, "checkpoint_store": uri, "fetch_store": None})
    screen.talk(f"{run.id}: its machine stores its checkpoints in {uri}")


def _refuse_pointless(ledger: Ledger, run: RunRecord, host: HostSpec) -> None:
    rental = ledger.rental(run.rental_id) if run.rental_id else None
    gone = rental is None or rental.state != RENTAL_OPEN or rental.facts.life.gone_at is not None
    if run.state is State.ENDED or gone:
        raise UserError(f"{run.id}: its machine is given back and stores nothing any more", f"gptctl fetch {run.id}")
    if host.checkpoint_store is not None:
        raise UserError(f"{run.id} stores its checkpoints in {host.checkpoint_store}", f"gptctl resume {run.id}")


def _begin(ledger: Ledger, run: RunRecord, uri: str) -> None:
    context = open_context(ledger.home, ledger, run.id, lambda event: screen.talk(event.text))
    try:
        late_store.begin(context, uri)
    finally:
        context.disconnect()
