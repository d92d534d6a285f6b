"""What the commands about machines and hosts print with --json, and what every command prints when it fails.

Example: `TypeAdapter(Hosts).json_schema(mode="serialization")`
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from typing_extensions import TypedDict

from orchestrator.cli.checks.finding import Finding
from orchestrator.cli.schemas.extended_outputs import Also
from orchestrator.core.fleet.orphans import Orphan
from orchestrator.fleet.guard_drill import Drilled


class Failed(TypedDict):
    """Why a command failed: `kind` is its class, `exit_code` what the process returned, `next` the command to type, or
    the setting to change."""

    kind: str
    message: str
    exit_code: int
    next: str | None


class Failure(TypedDict):
    """What every command with --json prints instead of its result when it fails."""

    error: Failed


class Host(TypedDict):
    """A host of the inventory on one of its machine types. `state` and `capacity` null: not asked."""

    host: str
    provider: str
    machine: str
    address: str | None
    ssh_key: str | None
    price_per_hour_usd: float | None
    price_source: str | None
    state: str | None
    capacity: bool | None
    folder: str
    python: str | None
    guard: str


class Hosts(TypedDict):
    """`hosts`."""

    inventory: str | None
    hosts: list[Host]
    left_over: list[Orphan]
    warnings: list[str]


class Offered(TypedDict):
    """What can be rented. `available` null: a bundled price, nobody was asked."""

    provider: str
    machine: str
    gpu: str | None
    count: int | None
    region: str
    zone: str | None
    market: str
    available: bool | None
    price_per_hour_usd: float
    price_per_gpu_hour_usd: float | None
    source: str
    quoted_at: float | None
    sku: str


class Offers(TypedDict):
    """`offers`: cheapest first; `problems`: accounts that did not answer."""

    offers: list[Offered]
    problems: Mapping[str, str]
    warnings: list[str]


Reaped = Annotated[Orphan, Also(gone=bool, problem=str)]
"""A machine that `orphans --reap` was to end: `gone` once its provider has proved it."""


class Orphans(TypedDict):
    """`orphans`: every machine of yours by the account alone."""

    machines: list[Orphan]
    reaped: list[Reaped]
    problems: Mapping[str, str]
    warnings: list[str]


class Watcher(TypedDict):
    """`orphans --install-timer`: what runs the watcher now (null: nothing), and its files."""

    in_place: str | None
    files: Mapping[str, str]
    line: str
    watcher_age_s: float | None


class Check(TypedDict):
    """`check`: levels are ok, warn and fail."""

    host: str | None
    checks: list[Finding]


class Drill(TypedDict):
    """`check --drill`."""

    host: str
    drill: Annotated[Drilled, Also(late_s=float | None)]
