"""`gptctl hosts`: the inventory as a table, with what answers now, prices and capacity."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orchestrator.cli.machine_types import machines_of
from orchestrator.cli.machines.left_over import exit_code, of_home, show
from orchestrator.cli.machines.left_over import rows as left_rows
from orchestrator.cli.screen.tables import Column
from orchestrator.core.config.gptctl_home import home_folder
from orchestrator.core.config.inventory import HostSpec, Inventory, load_inventory
from orchestrator.core.formats import DASH, dollars
from orchestrator.core.machines import MachineType, machine_type

COLUMNS = (
    Column("HOST"),
    Column("PROVIDER", leaves=3),
    Column("MACHINE"),
    Column("ADDRESS", leaves=2),
    Column("STATE"),
    Column("$/H", right=True),
    Column("CAPACITY", leaves=1),
    Column("KEY", leaves=4),
)


def hosts(file: Path | None, *, offline: bool, as_json: bool) -> int:
    """Prints every host, `local` included, one row per machine type. `offline`: asks neither machines nor clouds."""
    from orchestrator.cli.screen import screen

    inventory = load_inventory(file, home_folder())
    rows = [_row(host, machine) for host in inventory.hosts.values() for machine in machines_of(host)]
    warnings = [] if offline else _add_live(inventory, rows)
    left = None if offline else of_home(home_folder())
    if as_json:
        path = str(inventory.path) if inventory.path else None
        found = {"inventory": path, "hosts": rows, "left_over": [row.to_json() for row in left_rows(left)]}
        print(json.dumps({**found, "warnings": [*(left.warnings if left else ()), *warnings]}, indent=1))
        return exit_code(left)
    screen.show_table(COLUMNS, [_cells(row) for row in rows])
    screen.talk(f"from {inventory.path}" if inventory.path else "no inventory.toml found; gptctl init writes one")
    return show(left, warnings)


def stop_rehearsal() -> int:
    """Ends the rehearsal cloud and its simulated machines, if it runs."""
    from orchestrator.cli.screen import screen
    from orchestrator.providers.rehearsal import provider as rehearsal

    rehearsal.stop()
    screen.talk("the rehearsal cloud and its machines are off")
    return 0


def _row(host: HostSpec, machine: MachineType) -> dict[str, Any]:
    address = host.reach()
    port = f":{address.port}" if address.port else ""
    user = f"{address.user}@" if address.user else ""
    return {
        "host": host.name,
        "provider": host.provider,
        "machine": machine.name,
        "address": f"{user}{address.host}{port}" if address.host and not host.paid else None,
        "ssh_key": host.ssh_key,
        "price_per_hour_usd": host.price_per_hour_usd,
        "price_source": None if host.price_per_hour_usd is None else "inventory",
        "state": None,
        "capacity": None,
        "folder": host.folder,
        "python": host.python,
        "guard": host.guard,
    }


def _add_live(inventory: Inventory, rows: list[dict[str, Any]]) -> list[str]:
    """Asks every machine and cloud at once, and fills their answers into the rows. Returns what could not be read."""
    from orchestrator.fleet.offers import ask_for, offer_for
    from orchestrator.fleet.reachability import look_at

    seen = look_at(inventory.hosts.values(), home_folder())
    market = ask_for(inventory.hosts.values())
    for row in rows:
        host = inventory.hosts[row["host"]]
        row["state"] = seen.states[host.name]
        if host.paid:
            offer = offer_for(host, machine_type(row["machine"]), market.offers)
            row["price_per_hour_usd"] = offer.price_per_hour_usd if offer else None
            row["price_source"] = offer.source if offer else None
            row["capacity"] = None if offer is None or offer.quoted_at is None else offer.available
    return [*seen.warnings, *market.warnings]


def _cells(row: Mapping[str, Any]) -> list[str]:
    left = [row[key] or DASH for key in ("host", "provider", "machine", "address", "state")]
    capacity = {True: "yes", False: "none", None: DASH}[row["capacity"]]
    return [*left, dollars(row["price_per_hour_usd"]), capacity, row["ssh_key"] or DASH]
