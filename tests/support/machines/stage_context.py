"""A run as a stage meets it, on a machine with a real sshd, for tests of one stage.

with context_of(home, recipe_file, inventory_file) as context:
    place_data(context)
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from orchestrator.core.config.inventory import load_inventory
from orchestrator.core.config.recipe import load_recipe
from orchestrator.core.machines import machine_type
from orchestrator.core.planning.planner import make_plan
from orchestrator.ledger.ledger import Ledger
from orchestrator.runs.new_run import RunRequest, new_run
from orchestrator.stages.context import RunContext
from orchestrator.wiring import open_context


@contextmanager
def context_of(home: Path, recipe_file: Path, inventory: Path) -> Iterator[RunContext]:
    """A new run of the recipe on host `box`, whose machine is held already."""
    recipe, host = load_recipe(str(recipe_file)), load_inventory(inventory, home).host("box")
    machine = machine_type("2xCPU")
    plan = make_plan(recipe, host, machine, None, now=time.time())
    with Ledger.open(home, time.time) as ledger:
        run = new_run(ledger, RunRequest(recipe, host, machine, plan), time.time())
        ledger.update_rental(str(run.rental_id), address=host.reach())
        context = open_context(home, ledger, run.id, lambda event: None)
        try:
            yield context
        finally:
            context.disconnect()
