"""What the live view shows, from events alone; and the same events as plain lines."""

from __future__ import annotations

import io
from collections.abc import Iterator

import pytest
from rich.console import Console

from orchestrator.cli.screen.live_view import (
    DONE,
    FAILED,
    MOST_LOSSES,
    RUNNING,
    View,
    fold,
    metric_line,
    progress_line,
    sparkline,
    with_loss,
)
from orchestrator.cli.screen.screen import LinePrinter, LivePrinter, show_events, show_table
from orchestrator.cli.screen.spinner import waiting
from orchestrator.cli.screen.tables import Column
from orchestrator.core.events import Event


def told(*events: Event) -> View:
    view = View(title="a run")
    for event in events:
        view = fold(view, event)
    return view


def test_stages_run_and_end() -> None:
    view = told(
        Event("stage_started", 10.0, "acquire"),
        Event("stage_finished", 12.5, "acquire"),
        Event("stage_started", 12.5, "provision"),
        Event("stage_failed", 13.0, "provision"),
        Event("stage_started", 14.0, "release"),
    )
    assert [view.marks[name].state for name in ("acquire", "provision", "release")] == [DONE, FAILED, RUNNING]
    assert view.marks["acquire"].took_s == 2.5
    assert "sync" not in view.marks


def test_a_metric_without_validation_loss_keeps_the_last_one() -> None:
    view = told(
        Event("metric", 1.0, "follow", data={"step": 1, "total_steps": 9, "loss": 5.0, "val_loss": 5.5}),
        Event("metric", 2.0, "follow", data={"step": 2, "total_steps": 9, "loss": 4.0, "val_loss": None}),
    )
    assert (view.step, view.total_steps, view.loss) == (2, 9, 4.0)
    assert "val 5.5000" in metric_line(view.metric)


def test_a_metric_line_leaves_out_what_is_not_known() -> None:
    assert metric_line({"loss": 2.0, "mfu": 0, "eta_s": None, "val_loss": float("nan")}) == "loss 2.0000"
    full = {"loss": 2, "val_loss": 3, "tokens_per_second": 33_600, "mfu": 0.382, "cost_usd": 0.12, "eta_s": 80}
    assert metric_line(full) == "loss 2.0000  val 3.0000  33.6k tok/s  MFU 38.2%  $0.12  ETA 1m 20s"


@pytest.mark.parametrize(
    ("data", "line"),
    [
        (
            {"what": "data", "done": 1e9, "total": 2e9, "unit": "bytes", "rate": 1e8, "eta_s": 10},
            "data: 1.00 GB of 2.00 GB  (50%)  100.00 MB/s  ETA 10s",
        ),
        ({"what": "install", "text": "a new environment\x1b[31m"}, "install: a new environment"),
        ({"what": "prepare", "documents": 5, "of": 20}, "prepare: 5 of 20  (25%)"),
        ({"what": "pull", "bytes_done": 0, "bytes_total": 1000}, "pull: 0 B of 1.00 kB  (0%)"),
        ({"what": "probe"}, "probe"),
    ],
)
def test_progress_in_a_line(data: dict[str, object], line: str) -> None:
    assert progress_line(data) == line


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    yield io.StringIO()


def test_plain_lines_are_thinned_and_have_no_escapes(stream: io.StringIO) -> None:
    clock = iter([0.0, 1.0, 31.0, 32.0, 33.0])
    tell = LinePrinter(Console(file=stream), now=lambda: next(clock))
    for step in (10, 20, 30, 40):
        tell(Event("metric", 0.0, "follow", data={"step": step, "total_steps": 40, "loss": 1.0, "cost_usd": 0.5}))
    tell(Event("log", 0.0, "follow", "\x1b]0;title\x07step 40"))
    tell(Event("warning", 0.0, "launch", "slow"))
    tell(Event("state_changed", 0.0, "launch", "not for people"))
    assert stream.getvalue().splitlines() == [
        "follow: step 10/40  $0.50",
        "follow: step 30/40  $0.50",
        "follow: step 40/40  $0.50",
        "step 40",
        "launch: warning: slow",
    ]


def test_the_live_view_has_stages_bar_numbers_and_the_last_log_lines(stream: io.StringIO) -> None:
    out = Console(file=stream, force_terminal=True, width=120)
    live = LivePrinter(out, View(title="quickstart on local"), now=lambda: 64.0)
    live(Event("stage_started", 1.0, "acquire"))
    live(Event("stage_finished", 4.0, "acquire"))
    live(Event("stage_started", 4.0, "follow"))
    live(Event("metric", 5.0, "follow", data={"step": 50, "total_steps": 200, "loss": 3.25, "cost_usd": 0.5}))
    for number in range(9):
        live(Event("log", 5.0, "follow", f"line {number}"))
    with out.capture() as captured:
        out.print(live.draw())
    shown = captured.get()
    for part in (
        "quickstart on local",
        "acquire 3s",
        "follow 1m 00s",
        "step 50/200",
        "25%",
        "loss 3.2500",
        "$0.50",
        "line 8",
    ):
        assert part in shown
    assert "line 3" not in shown


def test_a_warning_stays_above_the_live_view(stream: io.StringIO) -> None:
    live = LivePrinter(Console(file=stream), View())
    live(Event("warning", 1.0, "follow", "disk nearly full"))
    assert "disk nearly full" in stream.getvalue()


def test_what_happens_before_the_first_step_is_shown_with_its_time_until_that_step() -> None:
    console = Console(file=io.StringIO(), width=80)
    live = LivePrinter(console, View(title="a run"), now=lambda: 22.0)
    live(Event("doing", 10.0, "follow", "compiling the model"))
    assert "compiling the model  12s" in drawn(live)
    live(Event("metric", 23.0, "follow", data={"step": 1, "total_steps": 9, "loss": 5.0}))
    assert "compiling" not in drawn(live)


def test_each_thing_before_the_first_step_counts_its_own_time_and_a_resumed_run_shows_it_too() -> None:
    live = LivePrinter(Console(file=io.StringIO(), width=80), View(title="a run"), now=lambda: 30.0)
    live(Event("metric", 1.0, "follow", data={"step": 40, "total_steps": 90, "loss": 3.0}))
    for at, doing in ((2.0, "starting the ranks"), (5.0, "building the model"), (12.0, "waiting for the first batch")):
        live(Event("doing", at, "follow", doing))
        assert f"{doing}  {30 - at:.0f}s" in drawn(live)
    assert "starting" not in drawn(live) and "step 40/90" in drawn(live)
    live(Event("metric", 23.0, "follow", data={"val_loss": 3.25}))
    assert "waiting for the first batch" in drawn(live), "a validation is not a step"


def test_a_screen_reader_gets_what_is_done_before_the_first_step_once_from_the_log() -> None:
    stream = io.StringIO()
    LinePrinter(Console(file=stream))(Event("doing", 1.0, "follow", "building the model"))
    assert stream.getvalue() == "", "the trainer's own line says it"


@pytest.mark.parametrize("width", [24, 40, 60, 80, 200])
def test_a_stage_and_its_sign_stay_together(width: int) -> None:
    live = LivePrinter(Console(file=io.StringIO(), width=width), View(title="a run"))
    live(Event("stage_started", 1.0, "acquire"))
    live(Event("stage_finished", 62.0, "acquire"))
    lines = [line.rstrip() for line in drawn(live).splitlines()[1:]]
    assert all(line[0] in "✓+" or line[0] in "·-" for line in lines), lines
    assert lines[0].startswith(("✓ acquire 1m 01s", "+ acquire 1m 01s")) and max(map(len, lines)) <= width


def drawn(live: LivePrinter) -> str:
    console = live.out
    with console.capture() as captured:
        console.print(live.draw())
    return captured.get()


def test_a_validation_is_shown_at_once_and_printed_once() -> None:
    validated = Event("metric", 3.0, "follow", data={"val_loss": 3.25, "validated_at": 40})
    view = told(Event("metric", 1.0, "follow", data={"step": 30, "total_steps": 90, "loss": 3.0}), validated)
    assert (view.step, view.loss) == (30, 3.0) and "val 3.2500" in metric_line(view.metric)
    stream = io.StringIO()
    LinePrinter(Console(file=stream))(validated)  # the trainer's own line says it there
    assert stream.getvalue() == ""


@pytest.mark.parametrize(
    ("values", "width", "line"),
    [([], 9, ""), ([1.0], 9, ""), ([3, 2, 1], 9, "█▅▁"), ([1, 1], 9, "▁▁"), ([4, 4, 2, 2, 1, 1], 3, "█▃▁")],
)
def test_a_curve_is_a_line_of_bars(values: list[float], width: int, line: str) -> None:
    assert sparkline(values, width) == line


def test_a_long_curve_is_thinned_and_keeps_its_first_and_last() -> None:
    losses: tuple[float, ...] = ()
    for number in range(5000):
        losses = with_loss(losses, float(number))
    assert len(losses) <= MOST_LOSSES and losses[0] == 0.0 and losses[-1] == 4999.0


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_the_live_view_fits_a_terminal_that_is_resized_while_it_draws(encoding: str) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    console = Console(file=stream, width=100, force_terminal=True, color_system=None)
    live = LivePrinter(console, View(title="quickstart-1130-abcdef on local (2xCPU)"))
    for name in ("acquire", "provision", "sync"):
        live(Event("stage_started", 0.0, name))
    for step in range(1, 400):
        data = {
            "step": step,
            "total_steps": 33_165,
            "loss": 5.0 - step / 400,
            "tokens_per_second": 33600,
            "cost_usd": 1,
        }
        live(Event("metric", 1.0, "follow", data=data))
    for width in (100, 40, 24, 160):
        console.width = width
        lines = drawn(live).splitlines()
        assert max(map(len, lines)) <= width and any("400" in line or "399" in line for line in lines)
        assert all(line.encode(encoding) is not None for line in lines)


def test_a_screen_reader_gets_lines_and_one_fact_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GPTCTL_PLAIN", "1")
    show_table((Column("RUN"), Column("STEP", right=True), Column("LOSS")), [["a", "1/9", "-"], ["b", "2/9", "3.1"]])
    assert capsys.readouterr().out == "run a\nstep: 1/9\nrun b\nstep: 2/9\nloss: 3.1\n"
    with show_events("a run") as tell:
        tell(Event("said", 0.0, "sync", "hello"))
    assert capsys.readouterr().err == "sync: hello\n"


def test_a_spinner_turns_on_a_terminal_alone_and_ends_with_the_first_line(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: dict[bool, str] = {}
    for is_terminal in (True, False):
        stream = io.StringIO()
        out = Console(file=stream, width=80, force_terminal=is_terminal, color_system=None)
        monkeypatch.setattr("orchestrator.cli.screen.spinner.console", lambda result, out=out: out)
        monkeypatch.setenv("TERM", "xterm")
        with waiting("loading the model") as stop:
            stop()
            stop()
        shown[is_terminal] = stream.getvalue()
    assert "loading the model" in shown[True] and shown[False] == ""
