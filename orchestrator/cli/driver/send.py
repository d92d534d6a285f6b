"""Checkpoints that only this computer has go along with a handover: where a run begins, and where it would go on after
its machine is lost. They arrive before the rows do; what is there already is not sent again.

Example: `send(driver, ledger, ["tiny-1130-k3f9qa"])`
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from orchestrator.cli.driver.incoming import manifest_sha256
from orchestrator.cli.driver.on_the_driver import Driver
from orchestrator.cli.screen import screen
from orchestrator.core.errors import CommandFailed, UserError
from orchestrator.core.facts.run_facts import ResumeFrom
from orchestrator.core.formats import size
from orchestrator.core.machines import nodes_in
from orchestrator.core.states import Outcome, State
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.records import RunRecord
from orchestrator.remote.transfer.transfer import push_file
from orchestrator.remote.transfer_progress import Transfer
from orchestrator.runs.handover import place_below
from orchestrator.stages.checkpoints import continue_from
from orchestrator.wiring import open_context
from trainer import run_files

PUT_WITHIN_S = 3600.0
BEFORE_TRAINING = (State.PLANNED, State.ACQUIRING, State.PREPARING)


@dataclass(frozen=True)
class _Checkpoint:
    run_id: str
    place: Path
    below: str
    """Where it belongs, below the driver's GPTCTL_HOME."""
    names: tuple[str, ...]
    """Its files; the manifest comes last."""


def send(driver: Driver, ledger: Ledger, run_ids: Sequence[str]) -> None:
    """Repeatable. Raises UserError before anything is sent where a checkpoint is not here any more, or the driver has
    too little room."""
    runs = [ledger.run(run_id) for run_id in run_ids]
    for each in [found for run in runs for found in _needed(ledger, run)]:
        _send(driver, each)
    for run in filter(may_go_on, runs):
        _send_records(driver, ledger, run)


def state(ledger: Ledger, run_ids: Sequence[str]) -> list[str]:
    """The checkpoints that are here: another list means that something came."""
    return sorted(
        str(path) for run_id in run_ids for path in (_mirror(ledger, run_id) / run_files.CHECKPOINTS).glob("step-*")
    )


def _needed(ledger: Ledger, run: RunRecord) -> Iterator[_Checkpoint]:
    found: dict[str, ResumeFrom] = {}
    if run.state in BEFORE_TRAINING:
        found |= {each.place: each for each in (run.facts.resume_from, run.facts.init_from) if each is not None}
    if may_go_on(run):
        context = open_context(ledger.home, ledger, run.id, lambda event: screen.talk(f"{run.id}: {event.text}"))
        try:
            newest = continue_from.newest(context)
        finally:
            context.disconnect()
        found |= {newest.place: newest} if newest is not None else {}
    for place, origin in found.items():
        if "://" not in place:
            yield _checkpoint(ledger, run, origin)


def may_go_on(run: RunRecord) -> bool:
    """Whether its driver may resume it on another machine."""
    in_sweep = run.facts.queue is not None and run.facts.queue.group is not None
    if run.state is State.ENDED:
        return in_sweep and run.outcome is Outcome.PREEMPTED
    return in_sweep or run.facts.recovery is not None or nodes_in(run.machine) > 1


def _checkpoint(ledger: Ledger, run: RunRecord, origin: ResumeFrom) -> _Checkpoint:
    place = Path(origin.place)
    found = list(origin.files) or [path.name for path in (place.iterdir() if place.is_dir() else ())]
    names = [*(name for name in found if name != run_files.MANIFEST_FILE), run_files.MANIFEST_FILE]
    if missing := [name for name in names if not (place / name).is_file()]:
        raise UserError(
            f"{run.id} begins with {place}, whose {missing[0]} is not here any more",
            f"fetch that checkpoint again, or end the run: gptctl stop {run.id}",
        )
    return _Checkpoint(run.id, place, place_below(ledger.home, run.id, origin), tuple(names))


def _send(driver: Driver, it: _Checkpoint) -> None:
    command = ["driver", "receive", it.run_id, it.below, manifest_sha256(it.place) or ""]
    there = _answered(driver, command)
    if there.drives:
        return
    left = {name: (it.place / name).stat().st_size for name in it.names}
    left = {name: size_bytes for name, size_bytes in left.items() if there.files.get(name) != size_bytes}
    if not left:
        return
    whole_bytes = sum(left.values())
    if whole_bytes > there.free_bytes:
        raise UserError(
            f"{it.run_id}: {it.place} is {size(whole_bytes)}, and {driver.host.name} has {size(there.free_bytes)} free",
            f"free some there, or set `folder` of {driver.host.name} to a larger disk",
        )
    screen.talk(
        f"{it.run_id}: only this computer has {it.place.name}; sending {size(whole_bytes)} to {driver.host.name}"
    )
    with screen.show_progress() as show:
        for name in left:
            push_file(driver.shell, it.place / name, f"{there.into}/{name}", partial(_tell, show, name))
    if not set(it.names) <= _answered(driver, command).files.keys():
        raise CommandFailed(f"driver {driver.host.name}: {it.place.name} did not arrive whole", "repeat the command")


def _tell(show: Callable[[Mapping[str, object]], None], name: str, moved: Transfer) -> None:
    show(
        {
            "what": name, "done": moved.bytes_done, "total": moved.bytes_total, "unit": "bytes",
            "rate": moved.rate_bytes_per_s, "eta_s": moved.eta_s,
        }
    )  # fmt: skip


def _send_records(driver: Driver, ledger: Ledger, run: RunRecord) -> None:
    """Metrics and events of the machines before: the next one continues them."""
    here = [_mirror(ledger, run.id) / name for name in (run_files.METRICS, run_files.EVENTS)]
    here = [path for path in here if path.is_file()]
    if not here or _answered(driver, ["driver", "receive", run.id, f"runs/{run.id}", ""]).drives:
        return
    for path in here:
        driver.shell.put(path, f"{driver.folder}/home/runs/{run.id}/{path.name}", mode=0o600, deadline_s=PUT_WITHIN_S)


def _mirror(ledger: Ledger, run_id: str) -> Path:
    return ledger.home / "runs" / run_id


@dataclass(frozen=True)
class _There:
    drives: bool
    into: str
    files: Mapping[str, int]
    free_bytes: float


def _answered(driver: Driver, command: Sequence[str]) -> _There:
    said = driver.answer(command, deadline_s=PUT_WITHIN_S)
    drives, into, files, free_bytes = (said.get(name) for name in ("drives", "into", "files", "free_bytes"))
    if not (isinstance(into, str) and isinstance(files, dict) and isinstance(free_bytes, int | float)):
        raise CommandFailed(
            f"driver {driver.host.name} says no folder: {str(said)[:200]}", f"gptctl check {driver.host.name} --driver"
        )
    return _There(drives is True, into, files, free_bytes)
