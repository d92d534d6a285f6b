"""A terminal of the locale C gets ASCII; a pipe keeps every letter."""

from __future__ import annotations

import io

import pytest

from orchestrator.cli.screen.ascii_terminal import restrict
from orchestrator.cli.screen.live_view import View
from orchestrator.cli.screen.screen import LivePrinter, console, talk
from orchestrator.core.events import Event


class Screen(io.TextIOWrapper):
    """A stream that may be a terminal."""

    def __init__(self, is_terminal: bool) -> None:
        super().__init__(io.BytesIO(), encoding="utf-8")
        self.is_terminal = is_terminal

    def isatty(self) -> bool:
        return self.is_terminal

    def text(self) -> bytes:
        self.flush()
        return self.buffer.getvalue()  # type: ignore[attr-defined,no-any-return]


@pytest.mark.parametrize(
    ("locale", "is_ascii"),
    [
        ({"LANG": "C"}, True), ({"LC_ALL": "POSIX", "LANG": "en_US.UTF-8"}, True),
        ({"LANG": "C", "LC_CTYPE": "C.UTF-8"}, True), ({"LANG": "C.UTF-8"}, False), ({}, False),
        ({"LC_ALL": "en_US.UTF-8", "LANG": "C"}, False),
    ],
)  # fmt: skip
def test_a_terminal_of_the_locale_c_gets_ascii(
    locale: dict[str, str], is_ascii: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = Screen(is_terminal=True)
    restrict(screen, locale)
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    talk("billing now $1.00/h · today $2.00, of caf\u00e9 \u22120.1")
    live = LivePrinter(console(result=False), View(title="a run"))
    live(Event("stage_finished", 1.0, "acquire"))
    live(Event("metric", 2.0, "follow", data={"step": 1, "total_steps": 9, "loss": 5.0}))
    console(result=False).print(live.draw())
    assert screen.text().isascii() is is_ascii
    if is_ascii:
        assert b"$1.00/h - today $2.00, of caf? -0.1" in screen.text() and b"+ acquire" in screen.text()


def test_a_pipe_keeps_every_letter() -> None:
    pipe = Screen(is_terminal=False)
    restrict(pipe, {"LC_ALL": "C"})
    pipe.write("caf\u00e9 · 1")
    assert pipe.text().decode() == "caf\u00e9 · 1"
