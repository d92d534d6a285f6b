"""Sends notifications by apprise (ntfy, Telegram, Slack, webhooks and a hundred more) or by a command.

A run sends each notification once; the ledger remembers. Nothing here can break a run: failures become warnings among
its events. It never shows an address, since an address may be the secret. The only user of apprise.

Example::

    notify(ledger, run_id, "finished", "val loss 3.21, $13.10")      # True: it reached someone
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import re
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from orchestrator.core.config.settings import HAPPENINGS, Notify, load_settings, revealed
from orchestrator.core.errors import UserError
from orchestrator.core.events import Event, Listener
from orchestrator.ledger.ledger import Ledger

NOTIFIED = "notified"
COMMAND_WITHIN_S = 10.0
PING_WITHIN_S = 5.0
EXTRA_HINT = "pip install 'gptctl[notify]', or use notify.command, which needs nothing"
SECRET_NAME = re.compile(r"KEY|TOKEN|SECRET|PASSW", re.IGNORECASE)
SHORTEST_SECRET = 8
LONGEST_TEXT = 1000


@dataclass(frozen=True)
class Message:
    """One thing that happened, in words. `event` is one of HAPPENINGS."""

    event: str
    run: str
    title: str
    text: str


def notify(
    ledger: Ledger,
    run_id: str,
    event: str,
    text: str,
    *,
    now: Callable[[], float] = time.time,
    environment: Mapping[str, str] | None = None,
    listener: Listener | None = None,
) -> bool:
    """Sends to the addresses in your config, once per run and event. Returns whether this call reached anyone.

    It records the attempt before it sends: a process that is killed meanwhile does not send twice. If it reached
    nobody, the next call may try again. Warnings go into the run's events and to `listener`.
    """

    def warn(words: str, **data: str) -> None:
        warning = Event("warning", now(), None, words, data)
        ledger.tell(run_id, warning)
        if listener is not None:
            listener(warning)

    around = os.environ if environment is None else environment
    try:
        settings = load_settings(ledger.home).notify
    except UserError as error:
        warn(f"nobody was notified: {error.message}")
        return False
    if event not in settings.events or not _number_of(settings) or _is_sent(ledger, run_id, event):
        return False
    ledger.tell(run_id, Event(NOTIFIED, now(), None, event, {"event": event}))
    message = Message(event, run_id, f"gptctl: {run_id} {_words(event)}", text)
    problems = deliver(settings, message, around)
    nobody = len(problems) == _number_of(settings)
    if problems:
        warn(f"notifying of {event}: {'; '.join(problems)}", **({"undelivered": event} if nobody else {}))
    return not nobody


def _is_sent(ledger: Ledger, run_id: str, event: str) -> bool:
    """Whether the ledger has more attempts than failures of this notification."""
    events = ledger.events(run_id)
    tries = sum(each.kind == NOTIFIED and each.data.get("event") == event for each in events)
    return tries > sum(each.data.get("undelivered") == event for each in events)


def _words(event: str) -> str:
    return event.replace("-", " ")


def notify_without_run(
    home: Path, event: str, subject: str, text: str, environment: Mapping[str, str] | None = None
) -> list[str]:
    """Notifies of a machine whose run this ledger does not know. The caller makes sure to do so once.

    Returns what went wrong, one line each. Raises UserError for a config.toml that cannot be read.
    """
    settings = load_settings(home).notify
    if event not in settings.events:
        return []
    message = Message(event, "", f"gptctl: {subject} {_words(event)}", text)
    return deliver(settings, message, os.environ if environment is None else environment)


def _number_of(settings: Notify) -> int:
    """How many addresses and commands there are."""
    return len(settings.urls) + bool(settings.command)


def deliver(settings: Notify, message: Message, environment: Mapping[str, str]) -> list[str]:
    """Sends to every address and to the command. Returns what went wrong, one line each, without addresses."""
    message = Message(message.event, message.run, message.title, scrubbed(message.text, environment)[:LONGEST_TEXT])
    problems = []
    for number, address in enumerate(settings.urls, start=1):
        problem = _isolated(_by_apprise, address, message, environment)
        problems += [f"urls, number {number}: {problem}"] if problem else []
    if settings.command:
        problem = _isolated(_by_command, settings.command, message, environment)
        problems += [f"command {settings.command[0]}: {problem}"] if problem else []
    return problems


def scrubbed(text: str, environment: Mapping[str, str]) -> str:
    """The text without the values of variables that are called key, token, secret or password."""
    for name, value in environment.items():
        if SECRET_NAME.search(name) and len(value) >= SHORTEST_SECRET:
            text = text.replace(value, "[secret]")
    return text


def _isolated(send: Callable[..., str], *arguments: object) -> str:
    """What `send` returns or the kind of error it died of: a library of a hundred services may raise anything."""
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(send, *arguments)
        error = future.exception()
        if error is None:
            return future.result()
        return f"{error.message}; {error.hint}" if isinstance(error, UserError) else type(error).__name__


def _by_apprise(address: str, message: Message, environment: Mapping[str, str]) -> str:
    """Empty when the service took it. apprise bounds connecting and reading by 4 s each."""
    apprise = _apprise()
    target = apprise.Apprise()
    url = revealed(address, environment)
    # An unknown webhook gets JSON, which apprise calls json:// and jsons://.
    if not (target.add(url) or target.add(re.sub(r"^http(s?)://", r"json\1://", url))):
        return "apprise does not know this kind of address; see https://appriseit.com/services"
    return "" if target.notify(title=message.title, body=message.text) else "the service did not accept the message"


def _apprise() -> Any:
    """The library, silenced: its own log lines show addresses. Raises UserError when the extra is missing."""
    try:
        library = importlib.import_module("apprise")
    except ModuleNotFoundError:
        raise UserError("notify.urls needs the library apprise, which is not installed", EXTRA_HINT) from None
    logging.getLogger("apprise").disabled = True
    return library


def _by_command(words: Sequence[str], message: Message, environment: Mapping[str, str]) -> str:
    """Runs the program, without a shell; the message is filled into its words and given as JSON on stdin."""
    fields = asdict(message)
    argv = [re.sub(r"\{(event|run|title|text)\}", lambda found: fields[found[1]], word) for word in words]
    try:
        done = subprocess.run(
            argv,
            input=json.dumps(fields).encode(),
            capture_output=True,
            timeout=COMMAND_WITHIN_S,
            check=False,
            env=dict(environment),
        )
    except OSError as error:
        return str(error.strerror)
    except subprocess.TimeoutExpired:
        return f"it took longer than {COMMAND_WITHIN_S:.0f} s"
    return "" if done.returncode == 0 else f"it ended with code {done.returncode}"


def send_test(settings: Notify, environment: Mapping[str, str]) -> list[str]:
    """Sends a test message to every address. Returns what went wrong. Raises UserError without an address."""
    if not _number_of(settings):
        raise UserError(
            "config.toml has no address to notify",
            'add urls = ["ntfys://ntfy.sh/TOPIC"] under [notify]; docs/reference/config.md',
        )
    happenings = ", ".join(each for each in HAPPENINGS if each in settings.events)
    return deliver(settings, Message("test", "", "gptctl: a test", f"You get notified of: {happenings}."), environment)


def ping(url: str) -> None:
    """Calls an address and ignores the answer. Raises UserError if there is none within PING_WITHIN_S."""
    if not url.startswith(("https://", "http://")):
        raise UserError("watcher.ping_url must begin with https://", "correct it in config.toml")
    try:
        with urllib.request.urlopen(url, timeout=PING_WITHIN_S):
            return
    except (urllib.error.URLError, OSError, ValueError) as error:
        raise UserError(
            f"watcher.ping_url did not answer: {type(error).__name__}", "correct it in config.toml"
        ) from None
