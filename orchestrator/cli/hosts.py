"""`gptctl hosts`: the inventory as a table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from orchestrator.cli.machine_here import machine_of
from orchestrator.cli.words import NOTHING, money
from orchestrator.core.home import home_folder
from orchestrator.core.inventory import HostSpec, load_inventory

COLUMNS = ("HOST", "PROVIDER", "MACHINE", "ADDRESS", "$/H", "KEY")


def hosts(file: Path | None, *, as_json: bool) -> int:
    """Prints every host, `local` included."""
    from orchestrator.cli import render

    inventory = load_inventory(file, home_folder())
    rows = [_row(host) for host in inventory.hosts.values()]
    if as_json:
        print(json.dumps({"inventory": str(inventory.path) if inventory.path else None, "hosts": rows}, indent=1))
        return 0
    shown = [[row[key] or NOTHING for key in ("host", "provider", "machine", "address")] for row in rows]
    prices = [[money(row["price_per_hour_usd"]), row["ssh_key"] or NOTHING] for row in rows]
    render.show_table(COLUMNS, [left + right for left, right in zip(shown, prices, strict=True)], right=("$/H",))
    render.talk(f"from {inventory.path}" if inventory.path else "no inventory.toml here; gptctl init writes one")
    return 0


def _row(host: HostSpec) -> dict[str, Any]:
    address = host.reach()
    port = f":{address.port}" if address.port else ""
    user = f"{address.user}@" if address.user else ""
    return {
        "host": host.name,
        "provider": host.provider,
        "machine": machine_of(host).name,
        "address": f"{user}{address.host}{port}" if address.host else None,
        "ssh_key": host.ssh_key,
        "price_per_hour_usd": host.price_per_hour_usd,
        "folder": host.folder,
        "python": host.python,
        "guard": host.guard,
    }
