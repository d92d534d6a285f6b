"""`gptctl check`: finds what would go wrong. Each finding is ok, warn or fail, with the fix.

It starts no job, but for one of a minute on a cluster. It writes only the agent on a machine, and an empty object in a
store, which it removes again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from itertools import chain
from pathlib import Path

from orchestrator.cli.checks import cloud, driver, laptop
from orchestrator.cli.checks import host as check_host
from orchestrator.cli.checks import slurm as check_queue
from orchestrator.cli.checks import store as check_store
from orchestrator.cli.checks.finding import FAIL, OK, Finding
from orchestrator.cli.open_ledger import open_home
from orchestrator.cli.screen import screen
from orchestrator.core.config.inventory import SLURM, load_inventory
from orchestrator.core.config.recipe import load_recipe
from orchestrator.core.errors import RemoteError, UserError


def check(
    host_name: str | None, recipe_name: str | None, inventory: Path | None, *, accept_new: bool, as_json: bool,
    as_driver: bool = False,
) -> int:  # fmt: skip
    """Prints each finding as soon as it is known. Returns 2 for a failing laptop, 4 for a failing host, else 0."""
    recipe = load_recipe(recipe_name) if recipe_name else None
    home = open_home()
    if as_driver:
        if host_name is None:
            raise UserError("--driver checks a host", "gptctl check HOST --driver")
        findings = driver.findings(home, load_inventory(inventory, home).host(host_name), accept_new=accept_new)
        failed = RemoteError.exit_code
    elif host_name is None:
        findings = laptop.findings(home, inventory, recipe)
        failed = UserError.exit_code
    else:
        known = load_inventory(inventory, home)
        host = known.host(host_name)
        look = check_queue.findings if host.provider == SLURM else check_host.findings
        there = look(home, host, recipe, accept_new=accept_new)
        store = check_store.findings(home, host, known, recipe, accept_new=accept_new)
        findings = chain(cloud.findings(home, host) if host.paid else there, store)
        failed = RemoteError.exit_code
    found = _json(findings, host_name) if as_json else _table(findings)
    return failed if any(each.level == FAIL for each in found) else 0


def _table(findings: Iterator[Finding]) -> list[Finding]:
    """Prints one line at a time: checking a machine takes seconds."""
    seen = []
    for each in findings:
        screen.show_finding(each.level, each.what, each.found, each.fix if each.level != OK else "")
        seen.append(each)
    return seen


def _json(findings: Iterator[Finding], host_name: str | None) -> list[Finding]:
    seen = list(findings)
    print(json.dumps({"host": host_name, "checks": [asdict(each) for each in seen]}, indent=1))
    return seen
