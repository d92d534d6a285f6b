"""The user's own settings: GPTCTL_HOME/config.toml, the same for every run. Never a secret: those are `env:NAME`.

Example::

    [limits]
    max_usd_per_month = 200

    [notify]
    urls = ["ntfys://ntfy.sh/my-runs", "env:TELEGRAM_URL"]      # apprise's addresses; `gptctl notify --test` tries them
    command = ["notify-send", "{title}", "{text}"]
    events = ["finished", "failed", "still-billing"]

    [track]
    to = ["trackio"]

    [watcher]
    ping_url = "env:HEALTHCHECK_URL"
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal, get_args
from urllib.parse import parse_qsl, urlsplit

from pydantic import Field, field_validator

from orchestrator.core.config.gptctl_home import CONFIG_FILE
from orchestrator.core.config.toml_tables import Line, Table, build, read_toml
from orchestrator.core.errors import UserError

FROM_ENVIRONMENT = re.compile(r"env:([A-Za-z_][A-Za-z0-9_]*)")

Happening = Literal[
    "capacity", "started", "finished", "failed", "preempted", "over-budget", "held", "still-billing", "reaped"
]
"""What gptctl can notify you of."""
HAPPENINGS: tuple[str, ...] = get_args(Happening)

OPEN_SCHEMES = frozenset(
    {"ntfy", "ntfys", "json", "jsons", "xml", "xmls", "form", "forms", "http", "https", "dbus", "gnome", "macosx", ""}
)
"""Kinds of address that need not hold a token. In every other kind the address itself is the secret."""
SECRET_HOSTS = re.compile(r"(^|\.)(slack\.com|telegram\.org|discord(app)?\.com|office\.com|googleapis\.com)$")
SECRET_WORDS = re.compile(r"token|secret|passw|key|auth", re.IGNORECASE)


class MonthlyLimits(Table):
    """What all runs together may cost."""

    max_usd_per_month: float | None = Field(default=None, gt=0, le=10_000_000)
    """Ceiling over all runs of a calendar month, USD before tax. A run whose plan goes beyond it is refused."""


class Compare(Table):
    """How `gptctl compare` compares."""

    baseline: Line | None = None
    """The run that others are compared with, by id, beginning of it or name; `--baseline` comes first."""


class Notify(Table):
    """Whom to tell what. Needs the extra: pip install 'gptctl[notify]'; a command alone needs nothing."""

    urls: tuple[Line, ...] = ()
    """Addresses as apprise writes them (`ntfys://`, `tgram://`, `slack://`), a webhook's `https://`, or `env:NAME`."""
    command: tuple[Line, ...] = ()
    """A program and its words; `{event}`, `{run}`, `{title}`, `{text}` are filled in, and stdin gets them as JSON."""
    events: tuple[Happening, ...] = HAPPENINGS  # type: ignore[assignment]
    """Which ones to tell; absent: all."""

    @field_validator("command")
    @classmethod
    def _no_secret_in_argv(cls, words: tuple[str, ...]) -> tuple[str, ...]:
        if any(FROM_ENVIRONMENT.fullmatch(word) for word in words):
            raise ValueError("must not hold env:NAME: everybody here sees a command's words; it inherits the variables")
        return words


class Track(Table):
    """Where metrics are copied to while gptctl follows a run: services of your own, off unless named. Each needs its
    package: wandb, trackio or mlflow-skinny. Keys come from the service's own variables, such as WANDB_API_KEY."""

    to: tuple[Literal["wandb", "trackio", "mlflow"], ...] = ()
    """Services; none: nothing leaves this computer."""
    project: Line = "gptctl"
    """The project, or MLflow's experiment."""
    mlflow_uri: Line | None = None
    """MLflow's server or store; absent: MLFLOW_TRACKING_URI, else `mlruns` in GPTCTL_HOME."""
    offline: bool = False
    """Keep what is for wandb in GPTCTL_HOME; `wandb sync` uploads it."""


class Watcher(Table):
    """How the watcher (`gptctl orphans --reap` from a timer) shows that it is alive."""

    mark_file: Line | None = None
    """Where it leaves its mark; absent: watcher.json in GPTCTL_HOME. A shared folder lets other computers see it."""
    ping_url: Line | None = None
    """Called after every good pass, for a dead man's alarm such as healthchecks.io; may be `env:NAME`."""


class Aws(Table):
    """How provider `ec2` asks its way."""

    caller_address_url: Line = "https://checkip.amazonaws.com"
    """Answers with the address under which the network knows this computer; port 22 is opened for that one alone."""
    settle_s: float = Field(default=300.0, gt=0, le=3600)
    """Seconds that a machine may stay out of lists after its launch, or out of reach once it runs."""


class Settings(Table):
    """The whole file."""

    aws: Aws = Aws()

    compare: Compare = Compare()
    limits: MonthlyLimits = MonthlyLimits()
    notify: Notify = Notify()
    track: Track = Track()
    watcher: Watcher = Watcher()


def load_settings(home: Path) -> Settings:
    """Reads config.toml in GPTCTL_HOME; without one, limits and notifications are off.

    Raises UserError when it does not parse, has an unknown key, a wrong type, or an address that holds a secret.
    """
    path = home / CONFIG_FILE
    if not path.is_file():
        return Settings()
    table = read_toml(path, "config")
    _refuse_secrets(path, table)
    return build(Settings, table, f"config {path}")


def revealed(value: str, environment: Mapping[str, str]) -> str:
    """The value itself, or the variable's that `env:NAME` names. Raises UserError when that is not set."""
    named = FROM_ENVIRONMENT.fullmatch(value)
    if not named:
        return value
    if not environment.get(named[1]):
        raise UserError(
            f"{CONFIG_FILE} names {value}, and {named[1]} is not set", f"export {named[1]}=... and try again"
        )
    return environment[named[1]]


def _refuse_secrets(path: Path, table: Mapping[str, object]) -> None:
    """Runs first, since other messages show values. This one never does."""
    for key, text in _texts(table, ""):
        if "://" in text and _holds_secret(text):
            raise UserError(
                f"config {path}: {key}: this address holds a secret, which does not belong in a file",
                hint=f'put it into a variable and write "env:NAME" for it in {CONFIG_FILE}',
            )


def _texts(value: object, key: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _texts(inner, f"{key}.{name}".lstrip("."))
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner, key)


def _holds_secret(url: str) -> bool:
    try:
        parts = urlsplit(url)
        words = parse_qsl(parts.query, keep_blank_values=True)
        host = parts.hostname or ""
    except ValueError:
        return True
    return (
        parts.scheme.lower() not in OPEN_SCHEMES
        or "@" in parts.netloc
        or bool(SECRET_HOSTS.search(host))
        or any(SECRET_WORDS.search(name) for name, _ in words)
    )
