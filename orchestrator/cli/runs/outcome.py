"""What a run leaves on the screen: how it ended, where its checkpoints are, what it cost, or how to continue it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from orchestrator.cli.runs.machine_story import machine_end, machine_story
from orchestrator.cli.runs.status import collect
from orchestrator.cli.screen import screen
from orchestrator.cli.screen.foreign import clean
from orchestrator.core.formats import dollars, duration, loss
from orchestrator.core.states import Outcome, State
from orchestrator.core.typed_json import parse
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.records import RunRecord
from trainer.run_files import BEST, CHECKPOINTS, EVENT_SAMPLED, EVENTS, LATEST

CAN_CONTINUE = (Outcome.PREEMPTED, Outcome.FAILED, Outcome.LIMIT, Outcome.STOPPED)
"""Outcomes after which you may want to continue on another machine."""


def show_next_commands(run_id: str, *, training: bool) -> None:
    """Prints the commands for a run that gptctl has left."""
    if not training:
        commands = [f"gptctl resume {run_id}", f"gptctl release {run_id}"]
        screen.talk("gptctl left before the training began. To continue, or to end it:", commands=commands)
        return
    screen.talk("gptctl left; the training continues without it")
    for command, why in (
        (f"gptctl logs {run_id} -f", "watch it"),
        (f"gptctl status {run_id}", "see where it is"),
        (f"gptctl stop {run_id}", "end it and keep a checkpoint"),
        (f"gptctl resume {run_id}", "follow it to its end, fetch and release"),
    ):
        screen.talk(f"to {why}:", commands=[command])


def show_ending(ledger: Ledger, run_id: str, *, as_json: bool) -> None:
    """The result of run, resume, stop and release, on stdout."""
    found = collect(ledger, run_id, answer_within_s=0)
    if as_json:
        print(json.dumps(found, indent=1), flush=True)
        return
    run, row = ledger.run(run_id), found["runs"][0]
    print(_headline(run, row), flush=True)
    folder = ledger.home / "runs" / run_id
    for line in (*machine_story(ledger, run), *_checkpoints(folder / CHECKPOINTS), *_samples(folder / EVENTS)):
        print(line, flush=True)
    _show_what_follows(run, has_checkpoint=(folder / CHECKPOINTS / LATEST).is_dir())
    if end := machine_end(ledger, run):
        print(end, flush=True)


def _show_what_follows(run: RunRecord, *, has_checkpoint: bool) -> None:
    """The commands that you may want next."""
    again = f"gptctl run {run.recipe} --host {run.host}"
    if run.state is not State.ENDED:
        screen.talk(f"not ended yet ({run.state}). To continue:", commands=[f"gptctl resume {run.id}"])
    elif run.outcome is Outcome.FINISHED:
        look = [f"gptctl report {run.id} --html {run.id}.html", f"gptctl export {run.id}"]
        screen.talk("to look at it, and to publish it:", commands=look)
    elif run.outcome in CAN_CONTINUE and has_checkpoint:
        screen.talk("to continue from its newest checkpoint:", commands=[f"{again} --resume-from {run.id}"])
    elif run.outcome is Outcome.PREEMPTED and run.facts.recovery is not None and run.facts.resume_from is not None:
        # The index in the store is that of the last machine, which may have stored nothing.
        place = run.facts.resume_from.place
        screen.talk("to continue from its newest checkpoint:", commands=[f"{again} --resume-from {place}"])
    elif run.outcome is Outcome.PREEMPTED:
        screen.talk("to start it again:", commands=[again])


def _headline(run: RunRecord, row: dict[str, Any]) -> str:
    took = None if run.ended_at is None else run.ended_at - run.created_at
    parts = [
        run.id,
        f"{run.outcome or run.state}",
        f"step {run.step}/{run.total_steps}",
        f"loss {loss(run.loss)}" if run.loss is not None else "",
        f"val {loss(run.val_loss)}" if run.val_loss is not None else "",
        dollars(row["cost_usd"]),
        f"in {duration(took)}" if took is not None else "",
    ]
    well = run.outcome in (None, Outcome.FINISHED, Outcome.IMPORTED)
    cause = "" if well or not run.cause else f"\ncause: {clean(run.cause)}"
    return "  ".join(part for part in parts if part) + cause


def _checkpoints(folder: Path) -> list[str]:
    """`best: /.../step-000400` and `latest: ...`, if they are here."""
    return [f"{name}: {(folder / name).resolve()}" for name in (BEST, LATEST) if (folder / name).is_dir()]


def _samples(path: Path) -> list[str]:
    """What the model wrote at the end, from the mirrored events."""
    if not path.is_file():
        return []
    shown = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        if EVENT_SAMPLED in line:
            event = _object(line)
            if event.get("event") == EVENT_SAMPLED:
                shown.append(f"sample: {clean(str(event.get('text', '')))}")
    return shown


def _object(line: str) -> dict[str, Any]:
    try:
        value = parse(line)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
