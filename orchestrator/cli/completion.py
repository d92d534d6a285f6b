"""What the shell completes: runs, hosts, recipes and rentals. Asks no machine, and offers nothing on trouble.

Example: `typer.Option("--host", autocompletion=hosts)`
"""

from __future__ import annotations

import time
from collections.abc import Iterable

NEWEST = 50
"""Runs that are offered."""


def runs(incomplete: str) -> list[str]:
    """Ids and names of the newest runs."""
    from orchestrator.core.errors import GptctlError

    try:
        found = _ledger_runs()
    except (GptctlError, OSError):
        return []
    return _beginning(incomplete, (text for each in found for text in (each[0], each[1]) if text))


def rentals(incomplete: str) -> list[str]:
    """Ids of rentals that are open."""
    from orchestrator.core.config.gptctl_home import home_folder
    from orchestrator.core.errors import GptctlError
    from orchestrator.ledger.ledger import Ledger

    try:
        with Ledger.open(home_folder(), time.time) as ledger:
            return _beginning(incomplete, [rental.id for rental in ledger.rentals(open_only=True)])
    except (GptctlError, OSError):
        return []


def hosts(incomplete: str) -> list[str]:
    """Names in the inventory."""
    from orchestrator.core.config.gptctl_home import home_folder
    from orchestrator.core.config.inventory import load_inventory
    from orchestrator.core.errors import GptctlError

    try:
        return _beginning(incomplete, load_inventory(None, home_folder()).hosts)
    except (GptctlError, OSError):
        return []


def recipes(incomplete: str) -> list[str]:
    """Names of recipes here and of those that come with gptctl."""
    from orchestrator.core.config.recipe import known_recipes, search_folders

    return _beginning(incomplete, known_recipes(search_folders()))


def _ledger_runs() -> list[tuple[str, str | None]]:
    from orchestrator.core.config.gptctl_home import home_folder
    from orchestrator.ledger.ledger import Ledger

    with Ledger.open(home_folder(), time.time) as ledger:
        return [(run.id, run.name) for run in ledger.runs(limit=NEWEST)]


def _beginning(incomplete: str, words: Iterable[str]) -> list[str]:
    return [word for word in dict.fromkeys(words) if word.startswith(incomplete)]
