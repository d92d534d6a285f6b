"""config.toml: strict like every file of the user's, and never a secret in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.core.config.settings import HAPPENINGS, Settings, load_settings, revealed
from orchestrator.core.errors import UserError

CANARY = "canary-0123456789abcdef"


def written(home: Path, text: str) -> Settings:
    (home / "config.toml").write_text(text)
    return load_settings(home)


def test_without_a_file_nothing_is_limited_and_nobody_is_told(tmp_path: Path) -> None:
    settings = load_settings(tmp_path)
    assert settings.limits.max_usd_per_month is None
    assert (settings.notify.urls, settings.notify.command, settings.notify.events) == ((), (), HAPPENINGS)


def test_a_whole_file(tmp_path: Path) -> None:
    settings = written(
        tmp_path,
        """
        [limits]
        max_usd_per_month = 200
        [notify]
        urls = ["ntfys://ntfy.sh/my-runs", "env:TELEGRAM_URL", "https://example.com/hook", "json://127.0.0.1:8080/x"]
        command = ["notify-send", "{title}"]
        events = ["finished", "still-billing"]
        [watcher]
        ping_url = "env:PING"
        mark_file = "/srv/shared/watcher.json"
        """,
    )
    assert settings.limits.max_usd_per_month == 200.0
    assert len(settings.notify.urls) == 4 and settings.notify.events == ("finished", "still-billing")
    assert settings.watcher.mark_file == "/srv/shared/watcher.json"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[limits]\nmax_usd_per_mont = 1", "did you mean max_usd_per_month"),
        ("[limits]\nmax_usd_per_month = 0", "greater than 0"),
        ("[limits]\nmax_usd_per_month = nan", "finite"),
        ('[limits]\nmax_usd_per_month = "200"', "number"),
        ('[notify]\nevents = ["finishd"]', "finishd"),
        ('[notify]\nurls = "ntfys://ntfy.sh/x"', "array"),
        ('[notify]\ncommand = ["x", "env:TOKEN"]', "must not hold env:NAME"),
        ("[notify", "not valid TOML"),
        ("[hosts.x]\nmachine = 1", "hosts: unknown key"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(UserError) as caught:
        written(tmp_path, text)
    assert says in caught.value.message and str(tmp_path / "config.toml") in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize(
    "address",
    [
        f"tgram://{CANARY}/12315544",
        f"slack://{CANARY}/B/C",
        f"https://hooks.slack.com/services/{CANARY}",
        f"https://discord.com/api/webhooks/1/{CANARY}",
        f"https://me:{CANARY}@example.com/hook",
        f"https://example.com/hook?token={CANARY}",
        f"ntfys://{CANARY}@ntfy.sh/topic",
        f"HTTPS://Hooks.Slack.com/services/{CANARY}",
        f"http://[bad/{CANARY}",
    ],
)
@pytest.mark.parametrize("place", ['[notify]\nurls = ["{}"]', '[watcher]\nping_url = "{}"', '[notify]\nurls = "{}"'])
def test_an_address_that_is_a_secret_is_refused_without_being_shown(tmp_path: Path, address: str, place: str) -> None:
    with pytest.raises(UserError) as caught:
        written(tmp_path, place.format(address))
    assert "secret" in caught.value.message and "env:NAME" in caught.value.hint
    assert CANARY not in caught.value.message + caught.value.hint


def test_env_names_a_variable(tmp_path: Path) -> None:
    assert revealed("env:WHERE", {"WHERE": "ntfy://x/y"}) == "ntfy://x/y"
    assert revealed("ntfy://x/y", {}) == "ntfy://x/y"
    for environment in ({}, {"WHERE": ""}):
        with pytest.raises(UserError, match="WHERE is not set"):
            revealed("env:WHERE", environment)
