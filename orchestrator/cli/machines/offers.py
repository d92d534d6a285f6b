"""`gptctl offers`: what you can rent now, and for how much."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.cli.machines.left_over import show_warnings
from orchestrator.cli.open_ledger import open_home
from orchestrator.cli.screen import screen
from orchestrator.cli.screen.tables import Column
from orchestrator.core.config.inventory import Inventory, load_inventory
from orchestrator.core.errors import UserError
from orchestrator.core.formats import DASH, dollars, local_time
from orchestrator.core.machines import machine_type
from orchestrator.core.ports import Offer
from orchestrator.fleet.accounts import accounts_of
from orchestrator.fleet.offers import Market, ask, bundled

COLUMNS = (
    Column("PROVIDER"),
    Column("MACHINE"),
    Column("GPU", leaves=4),
    Column("COUNT", right=True, leaves=5),
    Column("REGION", leaves=1),
    Column("CAPACITY"),
    Column("$/H", right=True),
    Column("$/GPU H", right=True, leaves=2),
    Column("SOURCE", leaves=3),
)
SKU_COUNT = re.compile(r"(?:^|_)(\d{1,2})x")


@dataclass(frozen=True)
class Wish:
    """Which offers to show; None: any."""

    gpu: str | None
    count: int | None
    max_price: float | None


def offers(wish: Wish, file: Path | None, *, offline: bool, as_json: bool) -> int:
    """Prints the offers, cheapest first; those without capacity last."""
    if wish.max_price is not None and not wish.max_price > 0:
        raise UserError(f"--max-price {wish.max_price:g}: must be above 0")
    market = market_of(load_inventory(file, open_home()), offline=offline)
    rows = [row for row in map(_row, market.offers) if _fits(row, wish)]
    rows.sort(key=lambda row: (row["available"] is False, row["price_per_hour_usd"], row["machine"], row["region"]))
    if as_json:
        found = {"offers": rows, "problems": dict(market.problems), "warnings": market.warnings}
        print(json.dumps(found, indent=1))
        return 0
    screen.show_table(COLUMNS, [_cells(row) for row in rows])
    show_problems(market)
    if not rows:
        screen.talk("no offer fits; omit --gpu, --count or --max-price to see all")
    return 0


def market_of(inventory: Inventory, *, offline: bool) -> Market:
    """The offers of the inventory's accounts; all bundled prices without an account, or with `offline`."""
    accounts = [] if offline else accounts_of(inventory)
    return ask(accounts) if accounts else Market(tuple(bundled()))


def show_problems(market: Market) -> None:
    """Prints which clouds did not answer, and which rows of their lists could not be read."""
    show_warnings(market.warnings)
    for name, text in market.problems.items():
        screen.talk(f"{name}: {text}; using its bundled prices", style="yellow")


def _row(offer: Offer) -> dict[str, Any]:
    gpu, count = _cards(offer)
    live = offer.quoted_at is not None
    return {
        "provider": offer.provider,
        "machine": offer.machine,
        "gpu": gpu,
        "count": count,
        "region": offer.region,
        "zone": offer.zone or None,
        "market": "spot" if offer.spot else "on demand",
        "available": offer.available if live else None,
        "price_per_hour_usd": offer.price_per_hour_usd,
        "price_per_gpu_hour_usd": offer.price_per_hour_usd / count if count else None,
        "source": offer.source,
        "quoted_at": offer.quoted_at,
        "sku": offer.sku,
    }


def _cards(offer: Offer) -> tuple[str | None, int | None]:
    """Model and number of GPUs, if the machine's name or the seller's name for it says so."""
    try:
        machine = machine_type(offer.machine)
    except UserError:
        found = SKU_COUNT.search(offer.sku or offer.machine)
        return None, int(found[1]) if found else None
    return (machine.gpu.name if machine.gpu else None), machine.gpus


def _fits(row: dict[str, Any], wish: Wish) -> bool:
    words = f"{row['machine']} {row['gpu'] or ''} {row['sku']}".lower()
    return (
        (wish.gpu is None or wish.gpu.lower() in words)
        and (wish.count is None or row["count"] == wish.count)
        and (wish.max_price is None or row["price_per_hour_usd"] <= wish.max_price)
    )


def _cells(row: dict[str, Any]) -> list[str]:
    return [
        row["provider"],
        row["machine"],
        row["gpu"] or DASH,
        str(row["count"] or DASH),
        (row["zone"] or row["region"] or DASH) + " spot" * (row["market"] == "spot"),
        {True: "yes", False: "none", None: "not asked"}[row["available"]],
        dollars(row["price_per_hour_usd"]),
        dollars(row["price_per_gpu_hour_usd"]),
        row["source"] + (f", {local_time(row['quoted_at'])}" if row["quoted_at"] else ""),
    ]
