"""A run changes its driver: from this computer to one that is always on, and back. Never two drivers.

The giver ends its own driving (the lock of every run), writes that another drives, and only then lets go of the rows.
The taker refuses rows that are older than its own. Killed between the two, the same command does the rest; meanwhile
the runs have no driver, which costs nothing: their machines go on under their guards.

Example::

    package = give(ledger, ["tiny-1130-k3f9qa"], to="pi", patience_s=60)     # here
    accept(ledger, package)                                                  # there
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.core.errors import RunLocked, UserError
from orchestrator.core.facts.run_facts import ResumeFrom
from orchestrator.core.ports import UNPAID
from orchestrator.core.states import State
from orchestrator.ledger import handover, sweeps
from orchestrator.ledger.handover import Row
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.records import RENTAL_OPEN, RunRecord
from orchestrator.ledger.run_lock import TAKEN_BACK, RunLock, holder, how_to_take
from orchestrator.remote.whole_files import landing
from trainer import run_files

LOGIN_KEY = "keys/login_ed25519"
KNOWN_HOSTS = "known_hosts"
"""The login keys and the pinned host keys of GPTCTL_HOME reach the machines of a run: they go with it."""
KEY_NAME = re.compile(rf"{LOGIN_KEY}(-[0-9a-f]{{8}})?(\.pub)?")
BELOW = re.compile(r"runs/[a-z0-9-]{1,40}/(checkpoints|from)/step-[0-9]{1,12}")
LEAVE_EVERY_S = 0.2
PAST_A_SURRENDER = 2
"""A driver that comes back and lets go raises its own token by 1."""


@dataclass(frozen=True)
class Package:
    """Runs on their way to another driver: a secret, since the login key of their machines is in it."""

    token: int
    runs: tuple[str, ...]
    home: str
    """GPTCTL_HOME of the giver: paths of keys in the rows begin with it."""
    rows: Mapping[str, Sequence[Row]]
    files: Mapping[str, str]
    """Text by the name below that home; login keys and known_hosts alone."""
    places: Mapping[str, str] = field(default_factory=dict)
    """Folders of checkpoints that runs begin with, each with its place below the taker's home."""

    def to_json(self) -> dict[str, object]:
        """What travels."""
        return vars(self)

    @classmethod
    def from_json(cls, value: Mapping[str, object]) -> Package:
        """Raises UserError for what is not one."""
        try:
            token, runs, home, rows, files = (value[name] for name in ("token", "runs", "home", "rows", "files"))
            assert isinstance(token, int) and isinstance(runs, list | tuple) and isinstance(home, str)
            places = value.get("places", {})
            assert isinstance(rows, dict) and isinstance(files, dict) and isinstance(places, dict)
            return cls(token, tuple(map(str, runs)), home, rows, files, places)
        except (KeyError, AssertionError) as error:
            raise UserError("what the other gptctl sent is not a handover", "upgrade the older gptctl") from error


def runs_meant(ledger: Ledger, wanted: str | None) -> list[str]:
    """The runs of a sweep by its name or id, or one run: what you may name in a handover."""
    with contextlib.suppress(UserError):
        if wanted is not None:
            return [run.id for run in sweeps.runs_of(ledger.rows, sweeps.find(ledger.rows, wanted).id)]
    return [ledger.find_run(wanted).id]


def give(ledger: Ledger, run_ids: Sequence[str], *, to: str, patience_s: float) -> Package:
    """Ends the driving here and packs the runs, with all that share their machines or their sweep.

    Repeatable: what was given to the same driver before is packed again under the same token. Raises UserError for
    runs that another host drives, or of which `to` has a part; RunLocked when their driver here does not end in
    patience_s.
    """
    these = handover.together(ledger.rows, run_ids)
    records = [ledger.run(run_id) for run_id in these.runs]
    _refuse_other_drivers(records, to)
    done = all(run.facts.driven_by == to for run in records)
    if not done and any(run.facts.driven_by == to for run in records):
        raise _mixed(records, to)
    token = handover.highest_token(ledger.rows, these.runs) + (0 if done else 1)
    with _nobody_drives(ledger.home, these.runs, patience_s):
        handover.mark_given(ledger.rows, these.runs, to, token)
        rows = handover.taken_out(ledger.rows, these)
    return Package(token, these.runs, str(ledger.home), rows, _files(ledger.home), _places(ledger.home, records))


def reclaim(ledger: Ledger, run_ids: Sequence[str], *, lost: str, patience_s: float) -> tuple[str, ...]:
    """Drives runs from here although `lost`, which drives them, never let go of them: from this ledger's last state,
    under a token that is higher than that of what `lost` may still send. Returns all runs that change hands.

    Repeatable. Raises UserError where another host drives them, or none does.
    """
    these = handover.together(ledger.rows, run_ids)
    records = [ledger.run(run_id) for run_id in these.runs]
    _refuse_other_drivers(records, lost)
    if all(run.facts.driven_by is None for run in records):
        raise UserError(f"{run_ids[0]} is driven from here", f"gptctl resume {run_ids[0]}")
    with _nobody_drives(ledger.home, these.runs, patience_s):
        token = handover.highest_token(ledger.rows, these.runs) + PAST_A_SURRENDER
        handover.mark_given(ledger.rows, these.runs, None, token)
    return these.runs


def _refuse_other_drivers(records: Sequence[RunRecord], known: str) -> None:
    for run in records:
        driver = run.facts.driven_by
        if driver not in (None, known):
            raise UserError(f"{run.id} is driven by {driver} already", how_to_take(run.id, driver))


def _mixed(records: Sequence[RunRecord], to: str) -> UserError:
    """Rows of here beside rows of there: sent again, those of here would replace what `to` has written since."""
    there = next(run.id for run in records if run.facts.driven_by == to)
    here = ", ".join(run.id for run in records if run.facts.driven_by is None)
    words = f"{there} is driven by {to}, and {here}, which belongs to it, from here: they change hands together"
    if to == TAKEN_BACK:
        return UserError(words, f"gptctl driver give {there} HOST, on {to}, with this host; then take it again")
    return UserError(words, f"gptctl driver take {there} {to}, then gptctl driver give {there} {to}")


def place_below(home: Path, run_id: str, origin: ResumeFrom) -> str:
    """Where the checkpoint in a folder of this side belongs, below the GPTCTL_HOME of another driver."""
    root, place = home.resolve(), Path(origin.place).resolve()
    below = place.relative_to(root).as_posix() if place.is_relative_to(root) else ""
    return below if BELOW.fullmatch(below) else f"runs/{run_id}/from/{run_files.checkpoint_name(origin.step)}"


def _places(home: Path, runs: Sequence[RunRecord]) -> dict[str, str]:
    begun = [(run.id, each) for run in runs for each in (run.facts.resume_from, run.facts.init_from)]
    return {each.place: place_below(home, run_id, each) for run_id, each in begun if each and "://" not in each.place}


def needs_driver(ledger: Ledger, run_ids: Sequence[str]) -> bool:
    """Whether anything of them is left to do."""
    these = handover.together(ledger.rows, run_ids)
    open_rental = any(ledger.rental(each).state == RENTAL_OPEN for each in these.rentals)
    return open_rental or any(ledger.run(each).state is not State.ENDED for each in these.runs)


def accept(ledger: Ledger, package: Package, *, patience_s: float) -> bool:
    """Takes the runs into this ledger, which drives them from now on; False where it does already."""
    with _nobody_drives(ledger.home, package.runs, patience_s):
        moved = _keep_files(ledger.home, package)
        rows = _with_places(_with_keys(package.rows, package, ledger.home, moved), package.places, ledger.home)
        return handover.put_in(ledger.rows, rows, package.token)


def is_older(ledger: Ledger, package: Package) -> bool:
    """Whether this ledger drives these runs since, without having asked who sends them (reclaim)."""
    known = [run for run in ledger.runs() if run.id in package.runs]
    drives = all(run.facts.driven_by is None for run in known)
    return drives and handover.highest_token(ledger.rows, package.runs) > package.token


def driven_since(ledger: Ledger, package: Package, run_id: str) -> bool:
    """Whether this ledger drove the run after it took what is sent here once more."""
    known = handover.taken_out(ledger.rows, handover.Together((run_id,), (), ()))
    return _came_to(known, run_id) != _came_to(package.rows, run_id)


def _came_to(rows: Mapping[str, Sequence[Row]], run_id: str) -> tuple[object, ...]:
    run = next(row for row in rows["runs"] if row["id"] == run_id)
    stages = sum(row["run_id"] == run_id for row in rows["stage_intervals"])
    return run["state"], run["outcome"], run["rental_id"], stages


def _files(home: Path) -> dict[str, str]:
    found = sorted((home / LOGIN_KEY).parent.glob(f"{Path(LOGIN_KEY).name}*"))
    found = [path for path in found if KEY_NAME.fullmatch(path.relative_to(home).as_posix())]
    found += [home / KNOWN_HOSTS] if (home / KNOWN_HOSTS).is_file() else []
    return {path.relative_to(home).as_posix(): path.read_text(encoding="utf-8") for path in found}


def _keep_files(home: Path, package: Package) -> dict[str, str]:
    """Adds known hosts, and every key, under another name where one of that name is here. Path there -> path here."""
    moved: dict[str, str] = {}
    for name, text in package.files.items():
        if name == KNOWN_HOSTS:
            known = (home / name).read_text(encoding="utf-8").splitlines() if (home / name).is_file() else []
            more = [line for line in text.splitlines() if line not in known]
            _write(home / name, "\n".join([*known, *more, ""]))
            continue
        if not KEY_NAME.fullmatch(name):
            raise UserError(f"unexpected file in a handover: {name!r}")
        private = package.files.get(name.removesuffix(".pub"), text)
        here = _free_name(home, name.removesuffix(".pub"), private) + (".pub" if name.endswith(".pub") else "")
        moved[f"{package.home}/{name}"] = str(home / here)
        _write(home / here, text)
    return moved


def _free_name(home: Path, name: str, text: str) -> str:
    path = home / name
    if not path.exists() or path.read_text(encoding="utf-8") == text:
        return name
    return f"{LOGIN_KEY}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _write(path: Path, text: str) -> None:
    """Whole or not at all: with the login key, the way to every machine would be lost."""
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        with landing(path, mode=0o600) as file:
            file.write(text.encode())


def _with_keys(
    rows: Mapping[str, Sequence[Row]], package: Package, home: Path, moved: Mapping[str, str]
) -> dict[str, Sequence[Row]]:
    """The rows with the keys where they are here. A host entry that means the home's own login key says so by path
    where that is another key here."""
    usual = moved.get(f"{package.home}/{LOGIN_KEY}")
    renamed = usual if usual != str(home / LOGIN_KEY) else None

    def here(row: Row) -> Row:
        texts = {name: str(row[name]) for name in ("address", "data", "host_data") if name in row}
        for old, new in sorted(moved.items(), key=lambda pair: -len(pair[0])):
            texts = {
                name: text.replace(f'{json.dumps(old)[:-1]}"', f'{json.dumps(new)[:-1]}"')
                for name, text in texts.items()
            }
        if renamed is not None and "host_data" in texts:
            host = json.loads(texts["host_data"])
            host["ssh_key"] = host.get("ssh_key") or (renamed if host.get("provider") not in UNPAID else None)
            texts["host_data"] = json.dumps(host)
        return {**row, **texts}

    return {table: [here(row) for row in found] for table, found in rows.items()}


def _with_places(rows: Mapping[str, Sequence[Row]], places: Mapping[str, str], home: Path) -> dict[str, Sequence[Row]]:
    """The rows with the checkpoints that runs begin with where they are here."""

    def here(run: Row) -> Row:
        options = json.loads(str(run["options"]))
        for stored in (options, options.get("init_from") or {}):
            if (below := places.get(str(stored.get("resume_from")))) is not None:
                if not BELOW.fullmatch(below):
                    raise UserError(f"unexpected place in a handover: {below!r}")
                stored["resume_from"] = str(home / below)
        return {**run, "options": json.dumps(options)}

    return {**rows, "runs": [here(run) for run in rows["runs"]]}


@contextlib.contextmanager
def _nobody_drives(home: Path, run_ids: Sequence[str], patience_s: float) -> Iterator[None]:
    """Holds the lock of every run; asks the process that drives one here to leave in order, as Ctrl-C does."""
    until = time.monotonic() + patience_s
    with contextlib.ExitStack() as held:
        for run_id in run_ids:
            held.enter_context(_lock(home, run_id, until))
        yield


def _lock(home: Path, run_id: str, until: float, kill: Callable[[int, int], None] = os.kill) -> RunLock:
    asked: set[int] = set()
    while True:
        try:
            return RunLock.acquire(home, run_id)
        except RunLocked:
            driver = holder(home, run_id)
            if (
                driver is not None
                and driver.pid > 0
                and driver.host == socket.gethostname()
                and driver.pid not in asked
            ):
                asked.add(driver.pid)
                with contextlib.suppress(ProcessLookupError):
                    kill(driver.pid, signal.SIGTERM)
            if time.monotonic() > until:
                raise
            time.sleep(LEAVE_EVERY_S)
