"""Mirror: what the trainer writes over there, byte by byte over here.

Each file on this side continues at the byte that was reached (mirrored_files.py), so a link that breaks, a killed CLI
or a laptop that slept loses no line and doubles none."""

from __future__ import annotations

import math
from collections.abc import Mapping

from orchestrator.agent.contract.answers import ExitRecord, RunStatus, SpotNotice
from orchestrator.agent.contract.names import Code, JobName
from orchestrator.core.errors import AgentError, LinkLost
from orchestrator.core.states import Seen, State
from orchestrator.core.typed_json import WrongJson, parse
from orchestrator.ledger.records import RunProgress
from orchestrator.remote.agent_client.client import Data, Ended, Heartbeat
from orchestrator.remote.agent_client.lines import LineBuffer
from orchestrator.stages.checkpoints import store_job
from orchestrator.stages.checkpoints.copies import pull_newest
from orchestrator.stages.checkpoints.mirrored_files import (
    MOST_BYTES,
    append,
    begun_at,
    cut,
    last_part,
    position,
    shorten,
)
from orchestrator.stages.context import RunContext
from orchestrator.stages.machine import box_guard, engine_watch, queue_turn
from orchestrator.stages.machine.jobs import machine_status
from orchestrator.stages.machine.reported import tell_deaths
from trainer import run_files

MIRRORED = (run_files.METRICS, run_files.EVENTS, run_files.LOG)
MOST_NOW_BYTES = 512 << 20
MOST_WARNINGS = 100
"""Of one connection: each is kept in the ledger."""
SHOWN_CHARACTERS = 1000
MOST_LOG_LINES = 500
"""Of the log, shown in LOG_LINES_S; the file here has them all."""
LOG_LINES_S = 10.0
LOG_CHARACTERS = 4000
"""Of a line of it."""
MOST_LOSS = 1e9


def mirror_until_end(context: RunContext) -> ExitRecord:
    """One connection's worth of following: returns the exit record, or raises LinkLost or Unreachable. A training that
    starts again from a checkpoint repeats steps: what came of them goes, and the stream begins there."""
    progress = Progress(context)
    if not context.run.step:
        context.emit("doing", queue_turn.place(context) or "starting the ranks")
    while True:
        try:
            ended = _stream(context, progress)
        except AgentError as error:
            if error.code != Code.BAD_OFFSET or not _shorten(context):
                raise
            continue
        if ended is not None:
            return ended


def _stream(context: RunContext, progress: Progress) -> ExitRecord | None:
    """None: steps are repeated, and what came of them was dropped here."""
    offsets = {name: position(context.mirror / name) for name in MIRRORED}
    starts = Starts(context)
    with context.agent.follow(context.run_id, JobName.TRAIN, offsets) as lines:
        for line in lines:
            if isinstance(line, Data):
                repeats = starts.drop_repeated(line)
                if not append(context.mirror / line.file, line.offset, line.data):
                    progress.full(line.file)
                progress.data(line.file, line.data)
                if repeats:
                    return None
                if is_brought_along(context) and progress.take_checkpointed():
                    pull_newest(context)
            elif isinstance(line, Heartbeat):
                progress.heartbeat(line.status)
                if (record := progress.watch.look()) is not None:
                    return record
            elif isinstance(line, Ended):
                progress.ended()
                return line.exit
    raise LinkLost(f"{context.host.name} closed the stream", f"gptctl resume {context.run_id}")


def is_brought_along(context: RunContext) -> bool:
    """Whether each checkpoint comes here while it trains: its machine may go before the end, and no store has them."""
    may_go = context.provider.paid or context.host.on_node_lost != "end"
    return may_go and not store_job.wanted(context)


def _shorten(context: RunContext) -> bool:
    """Of a training that started again while nobody looked, the machine may have fewer metrics than there are here."""
    status = machine_status(context)
    return status is not None and shorten(context.mirror / run_files.METRICS, status["sizes"].get(run_files.METRICS, 0))


def mirror_now(context: RunContext) -> None:
    """Brings the mirror up to what the machine had when asked, whether the training still runs or not."""
    context.mirror.mkdir(parents=True, exist_ok=True, mode=0o700)
    wanted: Mapping[str, int] | None = None
    came_bytes = 0
    offsets = {name: position(context.mirror / name) for name in MIRRORED}
    starts = Starts(context)
    with context.agent.follow(context.run_id, JobName.TRAIN, offsets) as lines:
        for line in lines:
            if isinstance(line, Ended):
                return
            if isinstance(line, Data):
                repeats = starts.drop_repeated(line)
                append(context.mirror / line.file, line.offset, line.data)
                came_bytes += len(line.data)
                if repeats:
                    return  # the next look begins where they do
            elif wanted is None:
                wanted = line.status["sizes"]
            if wanted and all(position(context.mirror / name) >= wanted.get(name, 0) for name in MIRRORED):
                return
            if came_bytes > MOST_NOW_BYTES:
                return  # a machine that never stops sending must not hold up who only looks


class Starts:
    """Reads of the events, before they are kept, that the training was started again: the metrics here lose the steps
    that it repeats first, so that a gptctl that is killed in between reads it once more."""

    def __init__(self, context: RunContext) -> None:
        self.metrics = context.mirror / run_files.METRICS
        self.part = last_part(context.mirror / run_files.EVENTS)

    def drop_repeated(self, data: Data) -> bool:
        """Whether metrics were dropped: then those that come are of other bytes."""
        if data.file != run_files.EVENTS:
            return False
        *lines, self.part = (self.part + data.data).split(b"\n")
        steps = [step for step in map(begun_at, lines) if step is not None]
        return any([cut(self.metrics, step) for step in steps])


class Progress:
    """Turns mirrored bytes into metric and log events, and into the run's row in the ledger, at most once a second."""

    def __init__(self, context: RunContext) -> None:
        self.context = context
        self.watch = engine_watch.Watch(context)
        self.lines = {name: LineBuffer() for name in MIRRORED}
        self.row: RunProgress = {}
        self.written_at = 0.0
        self.notice: SpotNotice | None = None
        self.skipped_lines = 0
        """Lines of metrics with a value of a wrong type."""
        self._checkpointed = False
        self._warnings = 0
        self._full: set[str] = set()
        self._log_lines = 0
        """Since _log_since."""
        self._log_since = 0.0

    def take_checkpointed(self) -> bool:
        """Whether a checkpoint was written since the last call."""
        found, self._checkpointed = self._checkpointed, False
        return found

    def data(self, name: str, data: bytes) -> None:
        for line in self.lines[name].take(data):
            if name == run_files.LOG:
                self._log(line)
            else:
                self._record(name, line)

    def _log(self, line: bytes) -> None:
        """Shows the line, unless a flood comes."""
        if self.context.now() - self._log_since > LOG_LINES_S:
            self._end_flood()
            self._log_since = self.context.now()
        self._log_lines += 1
        if self._log_lines <= MOST_LOG_LINES:
            self.context.emit("log", line.decode(errors="replace")[:LOG_CHARACTERS])

    def _end_flood(self) -> None:
        """Says how many lines were left out, and starts counting again."""
        if self._log_lines > MOST_LOG_LINES:
            left_out = self._log_lines - MOST_LOG_LINES
            self.context.emit("log", f"... {left_out} lines more: gptctl logs {self.context.run_id}")
        self._log_lines = 0

    def _record(self, name: str, line: bytes) -> None:
        try:
            record = parse(line)
        except WrongJson:
            return  # the first line after a reconnect may be the rest of one already shown
        if not isinstance(record, dict):
            return
        if name == run_files.METRICS:
            self._metric(record)
        elif record.get("event") == run_files.EVENT_VALIDATED:
            self._validated(record.get("step"), record.get("val_loss"))
        elif record.get("event") == run_files.EVENT_PREPARING:
            self.context.emit("doing", str(record.get("doing"))[:SHOWN_CHARACTERS])
        elif record.get("event") == run_files.EVENT_CHECKPOINTED:
            self._checkpointed = True
        elif record.get("event") == run_files.EVENT_EVALUATED:
            part = record.get("slice")
            start, tokens = part if isinstance(part, list) and len(part) == 2 else (None, None)
            self.context.say(f"loss {record.get('loss')} on the slice {start}+{tokens}"[:SHOWN_CHARACTERS])
        elif record.get("event") in (run_files.EVENT_WARNING, run_files.EVENT_MICRO_BATCH_REDUCED):
            self._warn(
                self._named(record.get("node")) + str(record.get("reason") or record.get("text") or record["event"])
            )

    def _named(self, node: object) -> str:
        """The name of the node that a warning is about; ranks know numbers only."""
        names = self.context.host.nodes
        return f"{names[node]}: " if isinstance(node, int) and 0 <= node < len(names) else ""

    def _warn(self, text: str) -> None:
        """Bounded, in number and length: each warning stays in the ledger."""
        self._warnings += 1
        if self._warnings <= MOST_WARNINGS:
            self.context.emit("warning", text[:SHOWN_CHARACTERS])
        elif self._warnings == MOST_WARNINGS + 1:
            self.context.emit("warning", f"further warnings are in {run_files.EVENTS} alone")

    def full(self, name: str) -> None:
        """Says once that nothing more of a file is kept here."""
        if name not in self._full:
            self._full.add(name)
            self.context.emit("warning", f"{name} has {MOST_BYTES >> 20} MiB: nothing more of it is kept here")

    def _validated(self, step: object, loss: object) -> None:
        """Into the row, and on the screen at once: the next line of metrics may be minutes away."""
        if isinstance(loss, int | float) and abs(loss) < MOST_LOSS:
            self.row["val_loss"] = float(loss)
            self.context.emit("metric", val_loss=float(loss), validated_at=step)

    def _metric(self, record: dict[str, object]) -> None:
        line = run_files.metric_line(record)
        if line is None:
            self._skip()
            return
        plan, rate = self.context.plan, line.tokens_per_second or 0.0
        eta_s = (plan.tokens - line.tokens) / rate if rate else math.inf
        self.row |= {
            "step": line.step,
            "loss": line.loss,
            "tokens_per_second": rate,
            "mfu": line.mfu,
            "eta_s": eta_s if math.isfinite(eta_s) else None,
        }
        self.context.emit("metric", **{**record, **self.row, "total_steps": plan.steps})

    def _skip(self) -> None:
        """Counts a line of metrics with a wrong type; says so the first time."""
        self.skipped_lines += 1
        if self.skipped_lines == 1:
            self.context.emit("warning", f"{run_files.METRICS}: skipping lines with values of a wrong type")

    def heartbeat(self, status: RunStatus | None) -> None:
        """The machine is alive now."""
        now = self.context.now()
        if status and now - self.written_at < 1:
            return
        self.written_at = now
        self.context.ledger.update_run(
            self.context.run_id, seen=Seen.LIVE, seen_at=now, seen_via=self.context.seen_via, **self.row
        )
        if status is not None:
            box_guard.record(self.context, status["guard"])
            for node in self.context.machines[1:]:
                box_guard.renew(node)
            self._tell_notice(status["notice"])
            queue_turn.note(self.context, status)
            tell_deaths(self.context, status["deaths"])
            store_job.look_after(self.context, status)
        self.context.ledger.touch_stage(self.context.interval, now)

    def ended(self) -> None:
        """The stream is over, and all that came is here."""
        self._end_flood()
        self.heartbeat(None)

    def _tell_notice(self, notice: SpotNotice | None) -> None:
        """What the provider said of taking the machine away, once."""
        if notice is None or notice == self.notice or self.context.run.state != State.TRAINING:
            return
        self.notice, taken = notice, notice["taken"]
        if taken is not None:
            text = f"the provider takes the machine away in {taken['left_s']:.0f} s: the training saves and ends"
            self.context.emit("notice", text, **taken)
        elif notice["warning"]:
            self._warn(notice["warning"])
