"""The only user of Rich: tables on stdout, and the conversation on stderr, live on a terminal and as lines elsewhere.

It decides nothing: it shows the values it gets. It interprets no markup, since names and log lines are foreign text;
 without a terminal the output has no colour.

Example::

    with show_events(title="quickstart-1120-k3f9qa on local") as tell:
        drive(home, run_id, tell)
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from orchestrator.cli.screen import tables
from orchestrator.cli.screen.foreign import clean, finite
from orchestrator.cli.screen.live_view import (
    BARS,
    DONE,
    FAILED,
    PENDING,
    PLAIN_BARS,
    RUNNING,
    Mark,
    View,
    fold,
    metric_line,
    progress_line,
    sparkline,
    spending_line,
)
from orchestrator.cli.screen.tables import CARDS_BELOW, Column, Fitted, broken, note_lines, speaking
from orchestrator.core.errors import UserError
from orchestrator.core.events import Event, Listener
from orchestrator.core.formats import duration

T = TypeVar("T")
METRIC_EVERY_S = 30.0
"""How often to print a metric line without a live view; the trainer's own lines are always printed."""
PROGRESS_EVERY_S = 5.0
MOST_DRAWN = 200
"""Rows that are laid out and coloured."""
BAR_WIDTH, TREND_WIDTH = 40, 60
PLAIN = "GPTCTL_PLAIN"
"""Set for screen readers: one fact a line, nothing drawn and nothing redrawn. `--plain` sets it."""
PIPE_WIDTH = 200
"""Columns for tables that go to a file or a pipe: wide enough that no cell is cut."""

SPOKEN = frozenset({"said", "seen", "plan_amended", "detached"})
PREFIXES = {
    "stage_started": "...", "stage_finished": "done",
    "warning": "warning:", "failed": "failed:", "notice": "notice:", "preempted": "preempted:",
}  # fmt: skip
LASTING = frozenset({"warning", "failed", "notice", "preempted", "plan_amended", "detached"})
"""Kinds that stay on a terminal, above the live view."""

SIGNS = {PENDING: "·", RUNNING: "●", DONE: "✓", FAILED: "✗"}
PLAIN_SIGNS = {PENDING: "-", RUNNING: "*", DONE: "+", FAILED: "x"}
STYLES = {
    PENDING: "dim", RUNNING: "bold cyan", DONE: "green", FAILED: "bold red",
    "ok": "green", "warn": "yellow", "fail": "bold red",
    "live": "green", "unknown": "yellow", "finished": "green", "failed": "bold red",
}  # fmt: skip


def console(*, result: bool) -> Console:
    """A console on stdout (the result) or on stderr (the conversation)."""
    stream = sys.stdout if result else sys.stderr
    width = None if stream.isatty() or "COLUMNS" in os.environ else PIPE_WIDTH
    return Console(
        file=stream, markup=False, highlight=False, emoji=False, soft_wrap=False, width=width,
        color_system=None if is_plain() else "auto",
    )  # fmt: skip


def is_plain() -> bool:
    """Whether the output is for a screen reader."""
    return bool(os.environ.get(PLAIN))


def redraws(out: Console) -> bool:
    """Whether lines on it may be drawn again: a terminal that can, and nobody who has it read aloud."""
    return out.is_terminal and os.environ.get("TERM") != "dumb" and not is_plain()


def show_table(
    columns: Sequence[Column], rows: Sequence[Sequence[str]], *, cards: bool = False, redraw: bool = False
) -> None:
    """A table on stdout that breaks no cell, without the columns that say nothing, and nothing without rows; cells that
    are a known word (ok, warn, failed) are coloured. `cards`: two lines a row in a narrow terminal. `redraw` clears a
    terminal."""
    out = console(result=True)
    if redraw and redraws(out):
        out.clear()
    if not rows:
        return
    columns, cleaned = speaking(columns, [[clean(cell).replace("\n", " ") for cell in row] for row in rows])
    if is_plain():
        _print_lines(tables.as_facts(columns, cleaned))
        return
    if cards and out.width < CARDS_BELOW:
        _print_lines(tables.as_cards(columns, cleaned, out.width))
        return
    fitted = tables.fit(columns, cleaned, out.width)
    if not fitted.fits:
        _print_lines(tables.as_blocks(columns, cleaned, out.width))
        return
    if len(rows) > MOST_DRAWN:
        _print_lines(tables.as_lines(fitted))
    else:
        out.print(_rich_table(fitted))
    if fitted.left:
        talk(f"too narrow for {', '.join(column.name for column in fitted.left)}; --json has all", style="dim")


def show_trends(losses: Mapping[str, Sequence[float]]) -> None:
    """The loss of each run so far as a line of bars, on stdout; none for a screen reader."""
    out = console(result=True)
    bars = BARS if (out.encoding or "").lower().startswith("utf") else PLAIN_BARS
    wide = max(map(len, losses), default=0)
    for name, values in {} if is_plain() else losses.items():
        if trend := sparkline(values, min(TREND_WIDTH, out.width - wide - 2), bars):
            _print_lines([f"{name:<{wide}}  {trend}"])


def show_footnotes(notes: Mapping[str, int]) -> None:
    """The remarks that a table's cells refer to as [1], [2], on stdout below it."""
    cleaned = {clean(note): at for note, at in notes.items()}
    _print_lines(note_lines(cleaned, console(result=True).width))


def _rich_table(fitted: Fitted) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", show_edge=False)
    for column in fitted.columns:
        table.add_column(column.name, justify="right" if column.right else "left", no_wrap=True)
    for row in fitted.rows:
        table.add_row(*(Text(cell, style=STYLES.get(cell, "")) for cell in row))
    return table


def _print_lines(lines: Iterable[str]) -> None:
    print("\n".join(lines), flush=True)


def show_finding(level: str, what: str, found: str, fix: str) -> None:
    """One line of `gptctl check` on stdout, and the fix below it."""
    out, indent = console(result=True), 16
    width = max(out.width - indent, 20) if out.is_terminal else PIPE_WIDTH**2
    said = f"\n{'':<{indent}}".join(broken(clean(found), width))
    line = Text().append(f"{level:<5}", style=STYLES.get(level, "")).append(f"{what:<11}").append(said)
    if fix:  # often a command: whole on its line
        line.append(f"\n{' ' * (indent if len(fix) + 5 <= width else 2)}fix: {clean(fix)}")
    out.print(line, soft_wrap=True)


def talk(text: str, style: str = "", *, commands: Sequence[str] = ()) -> None:
    """Prints conversation on stderr, and below it commands to copy: a line each, which only the terminal wraps."""
    out = console(result=False)
    _talk_lines(out, broken(clean(text), out.width), style)
    for command in commands:
        out.print(Text(f"  {clean(command)}", style=style), soft_wrap=True)


def talk_fact(name: str, text: str, style: str = "") -> None:
    """`name  text`, the further lines of the text below its first."""
    out, indent = console(result=False), 8
    first, *more = broken(clean(text), max(out.width - indent, 20))
    _talk_lines(out, [f"{name:<{indent - 1}} {first}", *(" " * indent + line for line in more)], style)


def _talk_lines(out: Console, lines: Iterable[str], style: str) -> None:
    for line in lines:
        out.print(Text(line, style=style), soft_wrap=True)


def on_terminal() -> bool:
    """Whether a person can answer a question."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def ask(question: str, command: str, *, default: bool = False) -> bool:
    """Asks yes or no on the terminal; Enter is `default`, which must be the answer that costs nothing.

    Raises UserError with the command to type without a terminal.
    """
    if not on_terminal():
        raise UserError(f"{question} gptctl cannot ask without a terminal, and --yes is missing", f"{command} --yes")
    print(f"{clean(question)} [{'Y/n' if default else 'y/N'}] ", end="", file=sys.stderr, flush=True)
    answer = sys.stdin.readline().strip().lower()
    return answer in ("y", "yes") or (default and not answer)


@contextmanager
def show_events(title: str) -> Iterator[Listener]:
    """A listener that shows events: a live view if stderr is a terminal, else one line per event worth a line."""
    out = console(result=False)
    if not redraws(out):
        yield LinePrinter(out)
        return
    live_printer = LivePrinter(out, View(title=title))
    with Live(get_renderable=live_printer.draw, console=out, refresh_per_second=8, redirect_stdout=False):
        yield live_printer


@contextmanager
def show_progress() -> Iterator[Callable[[Mapping[str, object]], None]]:
    """A function that shows one program's progress: a bar if stderr is a terminal, else a line every few seconds."""
    out = console(result=False)
    if not redraws(out):
        lines = LinePrinter(out)
        yield lambda progress: lines(Event("progress", time.time(), data=progress))
        return
    bar = ProgressView()
    with Live(get_renderable=bar.draw, console=out, refresh_per_second=8, transient=True, redirect_stdout=False):
        yield bar


class ProgressView:
    """The newest progress, drawn by Rich's refresh thread."""

    def __init__(self) -> None:
        self.progress: Mapping[str, object] = {}

    def __call__(self, progress: Mapping[str, object]) -> None:
        self.progress = progress

    def draw(self) -> RenderableType:
        """A bar, and the line that a pipe would get."""
        if not self.progress:
            return Text("")
        done, total = (finite(self.progress.get(key)) or 0.0 for key in ("done", "total"))
        bar = Table.grid()  # a bar alone ends no line
        bar.add_row(ProgressBar(total=total or 1.0, completed=done, width=40))
        return Group(bar, Text(progress_line(self.progress)))


class LinePrinter:
    """Prints events as plain lines: metrics and progress now and then, log lines unchanged."""

    def __init__(self, out: Console, now: Callable[[], float] = time.monotonic) -> None:
        self.out, self.now = out, now
        self._last = {"metric": -METRIC_EVERY_S, "progress": -PROGRESS_EVERY_S}

    def __call__(self, event: Event) -> None:
        text = self._text(event)
        if text:
            print(text, file=self.out.file, flush=True)

    def _text(self, event: Event) -> str:
        said = clean(event.text).rstrip()
        if event.kind == "metric" and "step" not in event.data:
            return ""  # a validation, of which the trainer's own line says more
        if event.kind == "log":
            return said
        if event.kind == "metric":
            step, total = event.data.get("step"), event.data.get("total_steps")
            due = self._due("metric", METRIC_EVERY_S) or step == total
            said = f"step {step}/{total or '?'}  {spending_line(event.data)}" if due else ""
        elif event.kind == "progress":
            due = self._due("progress", PROGRESS_EVERY_S) or "text" in event.data
            said = progress_line(event.data) if due else ""
        elif event.kind == "stage_failed":
            said = "failed"  # the error message says why, with its hint
        elif event.kind in PREFIXES:
            said = f"{PREFIXES[event.kind]} {said}".rstrip()
        elif event.kind not in SPOKEN:
            return ""
        return f"{event.stage}: {said}" if said and event.stage else said

    def _due(self, kind: str, every_s: float) -> bool:
        now = self.now()
        if now - self._last[kind] < every_s:
            return False
        self._last[kind] = now
        return True


class LivePrinter:
    """Folds events into one view, which Rich's refresh thread draws. Warnings stay above it."""

    def __init__(self, out: Console, view: View, now: Callable[[], float] = time.time) -> None:
        self.out, self.view, self.now = out, view, now

    def __call__(self, event: Event) -> None:
        if event.kind in LASTING and event.text:
            self.out.print(Text(clean(event.text), style="yellow"))
        self.view = fold(self.view, event)

    def draw(self) -> RenderableType:
        """The view as it is now."""
        view = self.view
        parts: list[RenderableType] = [Text(view.title, style="bold"), self._stages(view)]
        if view.total_steps:
            parts += [self._bar(view.step, view.total_steps, "step"), Text(metric_line(view.metric))]
        if trend := sparkline(view.losses, min(TREND_WIDTH, self.out.width - 5), self._either(BARS, PLAIN_BARS)):
            parts.append(Text(f"loss {trend}", no_wrap=True))
        if view.doing and view.doing_since is not None:
            parts.append(Text(f"{view.doing}  {duration(max(0.0, self.now() - view.doing_since))}"))
        if view.progress:
            parts.append(Text(progress_line(view.progress)))
        if view.notice:
            parts.append(Text(view.notice, style="dim"))
        parts += [Text(line, style="dim", no_wrap=True, overflow="ellipsis") for line in view.log]
        return Group(*parts)

    def _either(self, drawn: T, plain: T) -> T:
        return drawn if (self.out.encoding or "").lower().startswith("utf") else plain

    def _stages(self, view: View) -> Text:
        signs = self._either(SIGNS, PLAIN_SIGNS)
        lines: list[Text] = []
        for name in view.stages:
            mark = view.marks.get(name, Mark())
            state, took_s = mark.state, mark.took_s
            if state == RUNNING and mark.started_at is not None:
                took_s = self.now() - mark.started_at
            took = f" {duration(took_s)}" if took_s is not None and took_s >= 1 else ""
            said = Text(f"{signs[state]} {name}{took}", style=STYLES[state])
            if lines and lines[-1].cell_len + 2 + said.cell_len <= self.out.width:
                lines[-1] = Text("  ").join((lines[-1], said))
            else:
                lines.append(said)
        return Text("\n").join(lines)

    def _bar(self, done: int, total: int, what: str) -> RenderableType:
        count, share = f"{what} {done:,}/{total:,}", f"{100 * done / total:.0f}%"
        left = self.out.width - len(count) - len(share) - 6
        if left < 8:
            return Text(f"{count}  {share}")
        grid = Table.grid(padding=(0, 2))
        grid.add_row(Text(count), ProgressBar(total=total, completed=done, width=min(BAR_WIDTH, left)), Text(share))
        return grid
