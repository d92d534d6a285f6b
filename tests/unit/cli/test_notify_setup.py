"""`gptctl notify setup URL`: a test message first, then config.toml with all that it had."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from orchestrator.cli.machines import notify
from orchestrator.core.config.settings import Notify
from orchestrator.core.errors import UserError

URL = "ntfys://ntfy.sh/my-runs"
MINE = "# mine\n[limits]\nmax_usd_per_month = 200  # a month\n"


@pytest.mark.parametrize(
    "before",
    [
        "", MINE, f"{MINE}\n[notify]\n", f'[notify]  # who\nevents = ["failed"]\n\n{MINE}',
        f'{MINE}[notify]\nurls = [ "ntfys://ntfy.sh/old" ]\n', '[notify]\nurls = [\n  "ntfys://ntfy.sh/old", # a\n]\n',
        '[watcher]\nping_url = "https://x.org"\n',
    ],
)  # fmt: skip
def test_an_address_is_added_and_everything_else_stays(before: str) -> None:
    after = notify.with_url(before, URL)
    wanted = tomllib.loads(before)
    table = wanted.setdefault("notify", {})
    table["urls"] = [URL, *table.get("urls", [])]
    assert tomllib.loads(after) == wanted
    assert all(line in after for line in before.splitlines() if "urls" not in line)


@pytest.mark.parametrize(
    "before", ["notify = {urls = []}\n", '[notify]\nevents = [\n"x"]\n"urls" = ["a"]\n', "[notify\n"]
)
def test_what_it_does_not_understand_stays_as_it_is(before: str) -> None:
    with pytest.raises(UserError, match="does not edit"):
        notify.with_url(before, URL)


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[Notify]:
    found: list[Notify] = []
    monkeypatch.setattr(notify, "send_test", lambda settings, _: found.append(settings) or [])
    return found


def test_it_sends_first_and_then_writes(gptctl_home: Path, sent: list[Notify]) -> None:
    gptctl_home.mkdir()
    (gptctl_home / "config.toml").write_text(MINE)
    assert notify.notify("setup", URL, test=False) == 0
    assert [each.urls for each in sent] == [(URL,)]
    assert (gptctl_home / "config.toml").read_text() == f'{MINE.rstrip()}\n\n[notify]\nurls = ["{URL}"]\n'
    assert notify.notify("setup", URL, test=False) == 0 and len(sent) == 1  # it has it


def test_nothing_is_written_where_the_message_does_not_arrive(
    gptctl_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gptctl_home.mkdir()
    monkeypatch.setattr(notify, "send_test", lambda settings, _: ["ntfys://...: no answer"])
    with pytest.raises(UserError, match="nothing was written"):
        notify.notify("setup", URL, test=False)
    assert not (gptctl_home / "config.toml").exists()


def test_an_address_that_is_a_secret_goes_into_a_variable(gptctl_home: Path, sent: list[Notify]) -> None:
    gptctl_home.mkdir()
    with pytest.raises(UserError, match="holds a secret") as refused:
        notify.notify("setup", "tgram://123456789:abcdefghijk/1234", test=False)
    assert refused.value.hint.endswith("gptctl notify setup env:GPTCTL_NOTIFY_URL") and sent == []
    assert notify.notify("setup", "env:GPTCTL_NOTIFY_URL", test=False) == 0


@pytest.mark.parametrize("words", [("setup", None), ("test", URL), ("add", URL), (URL, None)])
def test_other_words_are_refused(gptctl_home: Path, words: tuple[str, str | None]) -> None:
    gptctl_home.mkdir()
    with pytest.raises(UserError, match="setup URL"):
        notify.notify(*words, test=False)
