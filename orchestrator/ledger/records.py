"""What the ledger keeps, as frozen values: rentals, runs, attempts, intents, measured rates and evaluations.

A field's name is its column's name, unless its metadata has another. Times are UTC epoch seconds, money is USD before
tax.
This module must not import sqlite3: a record is a value that any layer above may hold.

    record = RunRecord(id="quickstart-1120-k3f9qa", recipe="quickstart", host="local", machine="2xCPU", created_at=now)
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypedDict

from orchestrator.core.facts.rental_facts import OF_NODE, Node, RentalFacts
from orchestrator.core.facts.run_facts import RunFacts
from orchestrator.core.machines import nodes_in
from orchestrator.core.money.billing import SettledBill, settled
from orchestrator.core.planning.plan import Plan
from orchestrator.core.ports import Address, Instance
from orchestrator.core.states import Outcome, Seen, State

RENTAL_OPEN = "open"
RENTAL_RELEASED = "released"

INTENT_OPEN = "open"
INTENT_BOUGHT = "bought"
INTENT_REFUSED = "refused"
INTENT_UNSEEN = "unseen"
INTENT_ADOPTED = "adopted"

RecipeTables = Mapping[str, Any]
"""A recipe as it was planned: table -> key -> value, read by those who show it; core.config.Recipe is what decides."""

AWAY = "away"
"""The stage of the time in which a training went on and no gptctl drove the run."""


@dataclass(frozen=True)
class Rental:
    """A machine that we hold and may pay for. `ssh` and `local` machines are rentals without a bill."""

    id: str
    provider: str
    host: str
    machine: str
    created_at: float
    instance_id: str | None = None
    price_per_hour_usd: float = 0.0
    state: str = RENTAL_OPEN
    """`open` until the provider lists it gone; `released` for good after that."""
    released_at: float | None = None
    folder: str = ""
    """gptctl's folder on the machine."""
    ends_at: float | None = None
    address: Address = field(default=Address())
    """Of this computer until the machine has one."""
    facts: RentalFacts = field(default=RentalFacts(), metadata={"column": "data"})

    @property
    def nodes(self) -> int:
        """How many machines it is for: 2 of `2x8xH100`. Its price is that of all."""
        return nodes_in(self.machine)

    @property
    def each_per_hour_usd(self) -> float:
        """The price of one of its machines."""
        return self.price_per_hour_usd / self.nodes

    @property
    def instance_ids(self) -> tuple[str, ...]:
        """The machines that it holds, in the order of its nodes."""
        ids = (self.instance_id, *(each.instance_id for each in self.facts.more))
        return tuple(each for each in ids if each is not None)

    @property
    def held(self) -> str:
        """Their ids, in words; empty where it holds none."""
        return ", ".join(self.instance_ids)

    def of_node(self, node: int) -> Rental:
        """The same with what is known of the machine of this node in place of the first one's."""
        if node == 0:
            return self
        more = self.facts.more
        own = more[node - 1] if len(more) >= node else Node()
        row = {"instance_id": own.instance_id, "address": own.address, "ends_at": own.ends_at}
        facts = replace(self.facts, **{name: getattr(own, name) for name in OF_NODE - row.keys()})
        return replace(self, **row, facts=facts)  # type: ignore[arg-type]

    @property
    def instance(self) -> Instance:
        """Its machine, for calls to its provider; the provider's own list may say more."""
        return Instance(
            self.provider,
            self.instance_id or "",
            self.machine,
            rental_id=self.id,
            price_per_hour_usd=self.each_per_hour_usd,
            launched_at=self.created_at,
            region=self.facts.region,
            zone=self.facts.zone,
            image=self.facts.image,
        )

    def settled_bill(self, unit_s: float, audited_ends: Sequence[float | None]) -> SettledBill:
        """The bill of all its machines, which are gone; see core/money/billing.settled. audited_ends: of those that it
        holds, in their order."""
        first, *ends = audited_ends or (None,)
        more = [
            each.life if end is None else replace(each.life, alive_at=end, gone_at=end)
            for each, end in itertools.zip_longest(self.facts.more, ends[: len(self.facts.more)])
        ]
        others = [*(each.life for each in self.facts.given_back), *more]
        return settled(self.facts.life, others, self.each_per_hour_usd, unit_s, first)


@dataclass(frozen=True)
class RunRecord:
    """One run: what it was given, where it is, and how it goes."""

    id: str
    recipe: str
    host: str
    machine: str
    created_at: float
    name: str | None = None
    labels: dict[str, str] = field(default_factory=dict)
    note: str | None = None
    recipe_digest: str = ""
    recipe_data: dict[str, Any] = field(default_factory=dict)
    host_data: dict[str, Any] = field(default_factory=dict)
    rental_id: str | None = None
    plan: Plan | None = field(default=None, metadata={"none": "{}"})
    facts: RunFacts = field(default=RunFacts(), metadata={"column": "options"})
    """What you agreed to, which `resume` never asks for again, and what the stages found out."""
    state: State = State.PLANNED
    outcome: Outcome | None = None
    cause_code: int | None = None
    """The exit code of the cause, for outcomes whose code depends on it (never_started)."""
    cause: str = ""
    started_at: float | None = None
    """When the run first reached `training`."""
    ended_at: float | None = None
    """When the run reached `ended`."""
    stage: str | None = None
    step: int = 0
    total_steps: int = 0
    loss: float | None = None
    val_loss: float | None = None
    tokens_per_second: float | None = None
    mfu: float | None = None
    eta_s: float | None = None
    seen: Seen | None = None
    seen_at: float | None = None
    seen_via: str | None = None
    safe_step: int | None = None
    """The newest checkpoint verified somewhere that is not the machine."""
    keep: bool = False
    """The machine stays up after the run, under its lease."""

    @property
    def tokens_trained(self) -> int:
        """By its own steps so far, without those of the run it resumes from; 0 without a plan."""
        if not self.plan or not self.plan.steps:
            return 0
        return max(0, self.step - self.plan.from_step) * self.plan.tokens // self.plan.steps


class RunProgress(TypedDict, total=False):
    """Fields of a run's row that a training changes as it goes."""

    step: int
    loss: float | None
    val_loss: float | None
    tokens_per_second: float | None
    mfu: float | None
    eta_s: float | None
    seen: Seen
    seen_at: float
    seen_via: str


@dataclass(frozen=True)
class IntentRequest:
    """What was ordered, and where."""

    region: str = ""
    zone: str = ""
    sku: str = ""
    node: int = 0
    """Which of the machines of its rental."""


@dataclass(frozen=True)
class IntentAnswer:
    """The machine that was bought, or why none was."""

    instance_id: str | None = None
    error: str | None = None


@dataclass(frozen=True)
class Intent:
    """The will to buy one machine, committed before the request is sent. One intent, one request, never two."""

    id: str
    rental_id: str
    created_at: float
    state: str = INTENT_OPEN
    closed_at: float | None = None
    request: IntentRequest = IntentRequest()
    answer: IntentAnswer = IntentAnswer()


@dataclass(frozen=True)
class Attempt:
    """One continuous try of a run on one rental, numbered from 1."""

    run_id: str
    number: int
    rental_id: str
    started_at: float
    ended_at: float | None = None
    last_step: int = 0
    from_step: int = 0
    """Of the checkpoint that it began with."""


@dataclass(frozen=True)
class RateRecord:
    """A throughput that a run reached: what later plans start from. The fields of core.rates.MeasuredRate, which this
    module does not import because it brings pydantic, and `status` has to be quick."""

    run_id: str
    machine: str
    tokens_per_second: float
    """Over the whole machine."""
    flop_per_token: float
    measured_at: float
    compiled: bool
    precision: str
    """`bf16`, `fp16`, `tf32` or `fp32`."""


@dataclass(frozen=True)
class Evaluation:
    """What a checkpoint of a run scored on one thing, or wrote: unique by run, step, kind and name."""

    run_id: str
    step: int
    kind: str
    """`slice` (loss on a slice of tokens), `choices` (multiple choice), `sample` (a text) or `judge` (scores)."""
    name: str
    """Of a slice `START+TOKENS`, of choices their file's name, of a sample or a judge the sha256 of the settings."""
    measured_at: float
    loss: float | None = None
    """Nats per token, of a slice."""
    result: dict[str, Any] = field(default_factory=dict)
    """All that the trainer's program said: perplexity, bits_per_byte, tokens_sha256, accuracy, text and so on."""


@dataclass(frozen=True)
class StageInterval:
    """A stretch of time that a run spent in one stage, at a price."""

    run_id: str
    rental_id: str | None
    stage: str
    started_at: float
    ended_at: float | None
    """None while the stage is open."""
    last_at: float
    """When its driver was last heard of; the end, if the driver was killed."""
    price_per_hour_usd: float
