"""An account that lies as it is told, on a clock that a test moves, and a rental that holds a machine there.

with rented(tmp_path, account := LyingAccount(), monkeypatch) as context:
    give_back(context)
    account.orders           # ids whose end was ordered
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

import pytest

from orchestrator.core.config.inventory import HostSpec
from orchestrator.core.config.node_tables import table_of
from orchestrator.core.config.recipe import load_recipe
from orchestrator.core.config.toml_tables import build
from orchestrator.core.errors import NoAnswer
from orchestrator.core.machines import machine_type
from orchestrator.core.planning.planner import make_plan
from orchestrator.core.ports import Guard, Instance, Life, Offer, Provider
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.records import INTENT_BOUGHT, Intent
from orchestrator.runs.new_run import RunRequest, new_run
from orchestrator.stages.context import RunContext
from orchestrator.wiring import open_context

MACHINE = "8xA100-40GB"
PRICE = 15.92


@dataclass
class LyingAccount:
    """The part of a Provider that ending a machine needs. Every machine that is ordered to end ends, unless `on_end`
    says otherwise."""

    name: str = "lambda"
    paid: bool = True
    settle_s: float = 20.0
    longest_boot_s: float = 120.0
    billing_unit_s: float = 60.0
    now: float = 1_800_000_000.0
    rows: dict[str, Instance] = field(default_factory=dict)
    silent: bool = False
    hidden: bool = False
    """Lists are empty."""
    deadlines: list[float] = field(default_factory=list)
    on_end: Callable[[str], None] | None = None
    orders: list[str] = field(default_factory=list)

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def machines(self) -> Sequence[Instance]:
        self._answer()
        return [] if self.hidden else list(self.rows.values())

    def find(self, instance_id: str, region: str = "") -> Life:
        self._answer()
        if instance_id not in self.rows:
            return "unknown"
        return "gone" if self.rows[instance_id].status == "terminated" else "alive"

    def release(self, instance: Instance) -> bool:
        self._answer()
        self.orders.append(instance.instance_id)
        (self.on_end or self.end)(instance.instance_id)
        return True

    def set_deadline(self, instance: Instance, ends_at: float) -> None:
        self.deadlines.append(ends_at)

    def guard(self, instance: Instance) -> Guard:
        return Guard("watcher", instance.ends_at is not None, instance.ends_at)

    def take_warnings(self) -> Sequence[str]:
        return ()

    def end(self, instance_id: str) -> None:
        self.show(instance_id, status="terminated")

    def show(self, instance_id: str, **fields: object) -> None:
        self.rows[instance_id] = replace(self.rows[instance_id], **fields)  # type: ignore[arg-type]

    def _answer(self) -> None:
        self.sleep(1.0)
        if self.silent:
            self.sleep(29.0)
            raise NoAnswer("no answer", "try again")


def of_this_thread(sleep: Callable[[float], None]) -> Callable[[float], None]:
    """A time.sleep that moves the test's clock, and sleeps where a server of another test still runs in its thread."""
    ours, really = threading.get_ident(), time.sleep
    return lambda seconds: sleep(seconds) if threading.get_ident() == ours else really(seconds)


@contextmanager
def rented(
    home: Path, account: LyingAccount, monkeypatch: pytest.MonkeyPatch, held: str | None = "i-1", nodes: int = 1,
    global_batch: int = 16, **more: object,
) -> Iterator[RunContext]:  # fmt: skip
    """A run whose rental bought `held` a minute ago (None: it was refused); every wait moves the account's clock.
    nodes: more than one ordered nothing yet. more: of its host's table."""
    monkeypatch.setattr(time, "sleep", of_this_thread(account.sleep))
    recipe, host = load_recipe("quickstart"), HostSpec(name="cloud", provider="lambda", machine=MACHINE)
    recipe = recipe.model_copy(update={"train": recipe.train.model_copy(update={"global_batch": global_batch})})
    if nodes > 1:
        table = {"provider": "lambda", "machine": MACHINE, "nodes": nodes, **more}
        host = build(HostSpec, table_of(None, "cloud", {"cloud": table}), "cloud")
    machine = machine_type(str(host.machine))
    offer = Offer("lambda", machine.name, PRICE * nodes) if nodes > 1 else None
    plan = make_plan(recipe, host, machine, offer, now=account.now)
    with Ledger.open(home, lambda: account.now) as ledger:
        run = new_run(ledger, RunRequest(recipe, host, machine, plan), account.now)
        rental = str(run.rental_id)
        if nodes == 1:
            ledger.add_intent(Intent("intent-1", rental, account.now))
            ledger.close_intent("intent-1", INTENT_BOUGHT)
        ledger.update_rental(rental, instance_id=held)
        context = replace(open_context(home, ledger, run.id, lambda event: None), now=lambda: account.now)
        context.provider = cast("Provider", account)
        for instance_id in filter(None, [held]):
            account.rows[instance_id] = machine_of(context, instance_id)
        account.sleep(60.0)
        yield context


def machine_of(context: RunContext, instance_id: str, **fields: object) -> Instance:
    """A machine of this rental, as the account lists it."""
    usual = {"rental_id": context.rental.id, "intent_id": "intent-1", "price_per_hour_usd": PRICE}
    return Instance("lambda", instance_id, MACHINE, **{**usual, **fields})  # type: ignore[arg-type]
