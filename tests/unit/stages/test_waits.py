"""A provider that is silent, empty or odd holds no command for ever: each wait ends within its bound.

The clock is the test's. What a wait raises leads to exit code 7 while a machine may be billing."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.core.errors import GptctlError, NoAnswer, ProviderError, StillBilling
from orchestrator.core.facts.rental_facts import RentalFacts
from orchestrator.core.facts.run_facts import LostNodes
from orchestrator.core.machines import machine_type
from orchestrator.core.ports import Address, Instance, Life
from orchestrator.core.states import State
from orchestrator.ledger.records import Intent, Rental
from orchestrator.pipeline import is_verdict
from orchestrator.stages.machine import give_back, purchase
from orchestrator.stages.machine.first_contact import boot
from tests.support.machines.lying_account import of_this_thread

START = 1_795_000_000.0
SILENT = NoAnswer("no answer to GET /instances")
A_DAY_S = 86_400.0


@dataclass
class Clock:
    """Moves when something sleeps, and a little with every look, as calls take time."""

    now: float = START

    def __call__(self) -> float:
        self.now += 0.01
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        assert self.now < START + A_DAY_S, "it waits for ever"


@dataclass
class Cloud:
    """Answers every list with the same, and every question for an id with the same."""

    listed: Sequence[Instance] | NoAnswer
    word: Life | NoAnswer = "alive"
    paid: bool = True
    settle_s: float = 600.0
    longest_boot_s: float = 1800.0
    orders: int = 0

    def machines(self) -> Sequence[Instance]:
        if isinstance(self.listed, NoAnswer):
            raise self.listed
        return self.listed

    def find(self, instance_id: str, region: str = "") -> Life:
        if isinstance(self.word, NoAnswer):
            raise self.word
        return self.word

    def release(self, instance: Instance) -> bool:
        self.orders += 1
        if isinstance(self.word, NoAnswer):
            raise self.word
        return True


@dataclass
class Context:
    """As much of a RunContext as these waits use."""

    provider: Cloud
    now: Clock
    rental: Rental = field(default_factory=lambda: Rental("m-1", "lambda", "cloud", "8xA100-40GB", START, "i-1", 15.92))
    run_id: str = "r-1"
    facts: Any = field(default_factory=lambda: SimpleNamespace(wait=False, lost_nodes=LostNodes()))
    run: Any = field(default_factory=lambda: SimpleNamespace(state=State.ACQUIRING))
    machine: Any = field(default_factory=lambda: machine_type("8xA100-40GB"))
    intents: list[Intent] = field(default_factory=lambda: [Intent("int-1", "m-1", START)])
    said: list[str] = field(default_factory=list)

    @property
    def machines(self) -> tuple[Context, ...]:
        return (self,)

    @property
    def instance_ids(self) -> tuple[str, ...]:
        return self.rental.instance_ids

    node, stage = 0, None

    @property
    def machine_facts(self) -> RentalFacts:
        return self.rental.facts

    @property
    def ledger(self) -> Any:
        closed = lambda intent_id, state, answer=None: None  # noqa: E731
        return SimpleNamespace(intents=lambda rental_id, open_only=False: self.intents, close_intent=closed)

    def set_rental_facts(self, **facts: Any) -> None:
        self.rental = replace(self.rental, facts=replace(self.rental.facts, **facts))

    def emit(self, kind: str, text: str = "", **data: Any) -> None:
        self.said.append(text)

    def say(self, text: str) -> None:
        self.said.append(text)


def machine(status: str, address: Address | None = None) -> Instance:
    return Instance("lambda", "i-1", "8xA100-40GB", address, status, rental_id="m-1")


CLOUDS: dict[str, Callable[[], Cloud]] = {
    "silent": lambda: Cloud(SILENT, SILENT),
    "silent for ids": lambda: Cloud([machine("active")], SILENT),
    "silent in lists": lambda: Cloud(SILENT, "alive"),
    "empty, and no such id": lambda: Cloud([], "unknown"),
    "empty, and alive by its id": lambda: Cloud([], "alive"),
    "empty, and silent for ids": lambda: Cloud([], SILENT),
    "a status in no document": lambda: Cloud([machine("unknown")], "alive"),
    "active without an address": lambda: Cloud([machine("active")], "alive"),
    "booting for ever": lambda: Cloud([machine("booting")], "alive"),
    "ending for ever": lambda: Cloud([machine("terminating")], "terminating"),
}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(time, "sleep", of_this_thread(made.sleep))
    return made


def ended(wait: Callable[[Any], object], context: Context) -> GptctlError | None:
    """What the wait raised; None where it returned."""
    try:
        wait(context)
    except GptctlError as error:
        return error
    return None


@pytest.mark.parametrize("kind", CLOUDS)
def test_waiting_for_a_machine_to_boot_ends(clock: Clock, kind: str) -> None:
    context = Context(CLOUDS[kind](), clock)
    error = ended(boot.wait_until_active, context)
    assert isinstance(error, ProviderError)  # BadMachine and NeverListed give it back; NoAnswer says that it may bill
    assert clock.now - START < 2 * boot.LONGEST_BOOT_MINUTES * 60 + boot.SILENT_S
    if "lists" in kind or kind == "silent":
        assert isinstance(error, NoAnswer) and not is_verdict(context, error)  # type: ignore[arg-type]
        assert clock.now - START < boot.SILENT_S + 60


@pytest.mark.parametrize("kind", CLOUDS)
def test_asking_whether_it_was_taken_away_ends(clock: Clock, kind: str) -> None:
    ended(boot.was_preempted, Context(CLOUDS[kind](), clock))  # type: ignore[arg-type]
    assert clock.now - START < boot.ENDS_WITHIN_S + boot.UNLISTED_S + 60


@pytest.mark.parametrize("kind", CLOUDS)
def test_giving_back_ends_and_says_what_may_be_billing(clock: Clock, kind: str) -> None:
    context = Context(CLOUDS[kind](), clock)
    error = ended(give_back.give_back, context)
    assert clock.now - START < give_back.WITHIN_S + 60 and context.provider.orders >= 1
    if kind == "empty, and no such id":
        return  # its provider forgot it, in lists and by its id: gone, after it took the order
    assert isinstance(error, StillBilling) and "i-1" in error.message and "$15.92/h" in error.message
    assert error.hint == "gptctl release r-1"


@pytest.mark.parametrize("kind", [kind for kind in CLOUDS if not kind.startswith("silent")])
def test_looking_for_a_lost_launch_ends(clock: Clock, kind: str) -> None:
    context = Context(CLOUDS[kind](), clock)
    error = ended(purchase.find, context)
    assert error is None or isinstance(error, ProviderError)
    assert clock.now - START < context.provider.settle_s + 60


STATUSES = (None, "booting", "active", "unhealthy", "stopped", "terminating", "terminated", "preempted")
WORDS: tuple[Life | NoAnswer, ...] = ("alive", "terminating", "gone", "unknown", SILENT)


@pytest.mark.parametrize("word", WORDS, ids=str)
@pytest.mark.parametrize("status", STATUSES, ids=str)
def test_a_machine_is_given_up_when_list_and_id_agree_that_nothing_runs_there(
    clock: Clock, status: str | None, word: Life | NoAnswer
) -> None:
    context = Context(Cloud([] if status is None else [machine(status)], word), clock)
    runs_nothing = status in (None, "stopped", "terminated", "preempted")
    lives_by_its_id = word == "terminating" or (word == "alive" and status != "stopped")
    assert boot.is_gone(context) is (runs_nothing and not lives_by_its_id)  # type: ignore[arg-type]
    assert clock.now - START < boot.UNLISTED_S + 60
