"""`gptctl notify`: shows who gets notified of what, adds an address, or sends a test message."""

from __future__ import annotations

import os
import re
import tempfile
import tomllib
from pathlib import Path

from orchestrator.cli.open_ledger import open_home
from orchestrator.cli.screen import screen
from orchestrator.core.config.gptctl_home import CONFIG_FILE
from orchestrator.core.config.settings import FROM_ENVIRONMENT, HAPPENINGS, load_settings
from orchestrator.core.errors import UserError
from orchestrator.notify.send import send_test
from orchestrator.remote.whole_files import landing

SECTION = re.compile(r"^\[notify\][^\n]*\n", re.MULTILINE)
URLS = re.compile(r"^urls\s*=\s*\[", re.MULTILINE)
BY_HAND = "add it to urls under [notify] by hand"


def notify(action: str | None, url: str | None, *, test: bool) -> int:
    """Prints what config.toml says; `setup` adds an address after a test message; with `test`, sends a message to every
    address. Never prints an address."""
    home = open_home()
    if action == "setup" and url is not None:
        return _set_up(home, url)
    if action not in (None, "test") or url is not None:
        raise UserError(
            "gptctl notify takes nothing, test, or setup URL", "gptctl notify setup ntfys://ntfy.sh/my-runs"
        )
    test = test or action == "test"
    settings = load_settings(home).notify
    if not test:
        named = [
            each if FROM_ENVIRONMENT.fullmatch(each) else f"{each.partition(':')[0]}://..." for each in settings.urls
        ]
        named += [f"command {settings.command[0]}"] if settings.command else []
        print(f"notifies: {', '.join(named) or 'nobody'}")
        print(f"of: {', '.join(each for each in HAPPENINGS if each in settings.events)}")
        screen.talk(f"from {home / CONFIG_FILE}; gptctl notify --test sends a message")
        return 0
    problems = send_test(settings, os.environ)
    if problems:
        raise UserError(f"could not reach everyone: {'; '.join(problems)}", "correct [notify] in config.toml")
    print("sent")
    return 0


def _set_up(home: Path, url: str) -> int:
    """Sends a test message to the address; only once it arrived is config.toml written, with all that it had."""
    path = home / CONFIG_FILE
    before = path.read_text(encoding="utf-8") if path.is_file() else ""
    known = load_settings(home).notify.urls
    if url in known:
        screen.talk("config.toml has it already; gptctl notify --test sends a message")
        return 0
    after = with_url(before, url)
    with tempfile.TemporaryDirectory() as folder:  # the same rules as for the file itself: no secret, a known scheme
        (Path(folder) / CONFIG_FILE).write_text(after, encoding="utf-8")
        try:
            settings = load_settings(Path(folder)).notify
        except UserError as error:
            hint = "export GPTCTL_NOTIFY_URL=ADDRESS, then: gptctl notify setup env:GPTCTL_NOTIFY_URL"
            raise UserError(error.message.replace(folder, str(home)), hint) from None
    if problems := send_test(settings.model_copy(update={"urls": (url,), "command": ()}), os.environ):
        raise UserError(f"the test message did not arrive, and nothing was written: {'; '.join(problems)}", BY_HAND)
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    with landing(path) as file:
        file.write(after.encode())
    print(f"sent a test message; {path} has the address now")
    return 0


def with_url(text: str, url: str) -> str:
    """config.toml with one more address, its comments and order kept. Raises UserError where it is written in a way
    that this does not understand."""
    word = '"' + url.replace("\\", "\\\\").replace('"', '\\"') + '"'
    after = _with(text, word)
    try:
        wanted = tomllib.loads(text)
        table = wanted.setdefault("notify", {})
        table["urls"] = [url, *table.get("urls", [])]
        if tomllib.loads(after) == wanted:
            return after
    except tomllib.TOMLDecodeError:
        pass
    raise UserError("config.toml is written in a way that gptctl does not edit", BY_HAND)


def _with(text: str, word: str) -> str:
    section = SECTION.search(text)
    if section is None:
        return f"{text.rstrip()}\n\n[notify]\nurls = [{word}]\n".lstrip("\n")
    end = re.search(r"^\[", text[section.end() :], re.MULTILINE)
    inside = text[section.end() : section.end() + end.start()] if end else text[section.end() :]
    urls = URLS.search(inside)
    at = section.end() + (urls.end() if urls else 0)
    return text[:at] + (f"{word}, " if urls else f"urls = [{word}]\n") + text[at:]
