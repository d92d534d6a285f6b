"""`gptctl driver` and `--driver HOST`: hands runs over, takes them back, and passes commands on to who drives.

runs/handover.py says what may change hands. The driver's ledger is the only one that writes about what it drives; this
computer keeps the rows as they were, with the name of the driver.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from orchestrator.cli.driver import send
from orchestrator.cli.driver.bring import bring, files_of
from orchestrator.cli.driver.listing import listing
from orchestrator.cli.driver.on_the_driver import GO, Driver, driver_on
from orchestrator.cli.open_ledger import open_home, open_ledger
from orchestrator.cli.screen import screen
from orchestrator.core.config.inventory import FILE_NAME, HostSpec, load_inventory
from orchestrator.core.errors import CommandFailed, UserError
from orchestrator.core.states import State
from orchestrator.ledger.handover import together
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.run_lock import TAKEN_BACK
from orchestrator.runs.handover import (
    Package,
    accept,
    driven_since,
    give,
    is_older,
    needs_driver,
    reclaim,
    runs_meant,
)

LEAVE_WITHIN_S = 120.0
"""A driver that fetches gigabytes leaves between two files."""
IF_IT_COMES_BACK = """{name} must not drive on: end its gptctl, or wipe it. A reboot ends its driving. If it comes back
by itself, it learns from the machine of these runs that you drive on, once you have reached that machine from here:
resume soon. Before, or where that machine is gone, it cannot know: it may end the machine, or rent another. What it
writes never replaces what is here. Once it answers, gptctl driver take {wanted} {name} ends its driving."""
INVENTORY = "inventory"
"""Goes along with a handover, so that `sweep add` finds its host there. It holds no secret."""
NEVER_GOT = ("no run matches", "no runs yet")
"""What a ledger says of a run that is not there."""
PASSED_ON = (
    "status", "logs", "stop", "fetch", "resume", "release", "cost", "queue", "report", "runs", "compare", "sweep",
    "orphans", "offers", "notify",
)  # fmt: skip
"""Commands that --driver HOST runs there."""


def split(words: Sequence[str]) -> tuple[str | None, list[str]]:
    """`--driver HOST` out of the words of a command, wherever it stands before `--`. The commands that start something
    have that option themselves, and `check HOST --driver` another."""
    plain = [word for word in words if not word.startswith("-")]
    if plain[:1] in (["run"], ["check"]) or plain[:2] == ["sweep", "run"]:
        return None, list(words)
    before = list(words[: words.index("--")] if "--" in words else words)
    after = list(words[len(before) :])
    for at, word in enumerate(before):
        if word == "--driver" and at + 1 < len(before):
            return before[at + 1], before[:at] + before[at + 2 :] + after
        if word.startswith("--driver="):
            return word.partition("=")[2], before[:at] + before[at + 1 :] + after
    return None, list(words)


def host_named(name: str, inventory: Path | None, home: Path) -> HostSpec:
    """The inventory's entry. Raises UserError for a name that is not there."""
    return load_inventory(inventory, home).host(name)


def pass_on(name: str, words: Sequence[str]) -> int:
    """Runs the command on the driver, its output here as it comes. Returns its exit code. `--inventory` is this
    computer's: the driver has the one that came with what it drives."""
    inventory, words = _inventory(words)
    if not words or words[0] not in PASSED_ON:
        raise UserError(
            f"--driver {name}: {words[0] if words else 'no command'} is not one of {', '.join(PASSED_ON)}",
            f"gptctl run RECIPE --host HOST --driver {name} starts a run there",
        )
    with open_ledger() as ledger:
        home, host = ledger.home, host_named(name, inventory, ledger.home)
    with driver_on(home, host, accept_new=False) as driver:
        if words[0] == "fetch":
            return _fetched(driver, home, words)
        return _streamed(driver, words)


def _fetched(driver: Driver, home: Path, words: Sequence[str]) -> int:
    """The driver fetches from a machine that is there still; of an ended run it has what there is."""
    wanted = next((word for word in words[1:] if not word.startswith("-")), None)
    listed = listing(driver.answer(files_of(wanted)))
    code = 0 if listed.ended else _streamed(driver, words)
    if code == 0:
        with open_ledger() as ledger:
            came_back = any(run.id == listed.run and run.facts.driven_by is None for run in ledger.runs())
        bring(driver, home, listed.run, only_missing=came_back)
    return code


def _inventory(words: Sequence[str]) -> tuple[Path | None, list[str]]:
    words = list(words)
    if "--inventory" in words[:-1]:
        at = words.index("--inventory")
        return Path(words[at + 1]), words[:at] + words[at + 2 :]
    return None, words


def _streamed(driver: Driver, words: Sequence[str]) -> int:
    ssh = driver.shell.openssh()
    argv = _argv(driver) if ssh is None else [*ssh, shlex.join(_argv(driver))]
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, env=dict(os.environ))
    assert process.stdin is not None
    process.stdin.write(driver.question(words))
    process.stdin.close()
    return process.wait()


def _argv(driver: Driver) -> list[str]:
    return [os.path.expanduser(driver.python), "-c", GO]


def give_to(wanted: str | None, name: str, inventory: Path | None, *, accept_new: bool, as_json: bool = False) -> int:
    """Hands a run or a sweep over, and starts the driving there. Repeatable."""
    with open_ledger() as ledger:
        hand_over(ledger, runs_meant(ledger, wanted), host_named(name, inventory, ledger.home), accept_new=accept_new)
    if as_json:
        print(json.dumps({"driver": name, "run": wanted}))
    return 0


def hand_over(ledger: Ledger, run_ids: Sequence[str], host: HostSpec, *, accept_new: bool) -> None:
    """The driver is made ready first: while it cannot be, this computer goes on driving."""
    wanted = run_ids[0]
    if not needs_driver(ledger, run_ids):
        raise UserError(f"{run_ids[0]} has ended, and its machine is gone: nothing is left to drive", "gptctl status")
    run_ids = together(ledger.rows, run_ids).runs
    with driver_on(ledger.home, host, accept_new=accept_new) as driver:
        _can_drive(driver, ledger, run_ids)
        before = send.state(ledger, run_ids)
        send.send(driver, ledger, run_ids)
        package = give(ledger, run_ids, to=host.name, patience_s=LEAVE_WITHIN_S)
        if send.state(ledger, run_ids) != before:
            send.send(driver, ledger, run_ids)
        inventory = load_inventory(None, ledger.home).path
        sent = {**package.to_json(), INVENTORY: inventory.read_text(encoding="utf-8") if inventory else None}
        driver.answer(["driver", "accept"], stdin=json.dumps(sent).encode())
        driver.answer(["driver", "work", package.runs[0]])
    screen.talk(f"{', '.join(package.runs)}: driven by {host.name} now; this computer may go off")
    screen.talk(f"Next: gptctl status --driver {host.name}, or gptctl driver take {wanted} {host.name}")


def _can_drive(driver: Driver, ledger: Ledger, run_ids: Sequence[str]) -> None:
    """Raises before anything changes hands: a key that is missing, data that only this computer has."""
    runs = [run for run in map(ledger.run, run_ids) if run.state is not State.ENDED or send.may_go_on(run)]
    needs: set[str] = set()
    places: list[str] = []
    for run in runs:
        host = HostSpec.from_resolved(run.host_data)
        needs |= {"lambda"} if host.provider == "lambda" else {"aws"} if host.provider == "ec2" else set()
        store = host.checkpoint_store or host.fetch_store or ""
        needs |= {"aws"} if store.startswith("s3://") else {"hf"} if store.startswith("hf://") else set()
        if host.provider == "local":
            raise UserError(f"{run.id} trains on this computer, which another cannot drive", "name another --host")
        source = str((run.recipe_data.get("data") or {}).get("source") or "")
        if run.state in (*send.BEFORE_TRAINING, State.ENDED) and source and "://" not in source:
            places.append(source)
    missing = sorted(needs - set(driver.host.driver_may_hold))
    if missing:
        words = ", ".join(f'"{each}"' for each in sorted({*missing, *driver.host.driver_may_hold}))
        raise UserError(
            f"{driver.host.name} may not hold the keys of {', '.join(missing)}, which these runs need",
            f"allow it: driver_may_hold = [{words}] under [hosts.{driver.host.name}]",
        )
    answer = driver.answer(["driver", "ready", *dict.fromkeys(places)])
    lacks = answer.get("lacks")
    if lacks:
        raise UserError(
            f"{driver.host.name} does not have the data: {lacks}", "put it into s3:// or hf://, or copy it there"
        )


def take_from(wanted: str, name: str, inventory: Path | None, *, accept_new: bool) -> int:
    """Takes a run or a sweep back: the driver leaves in order, and this computer drives it again."""
    with open_ledger() as ledger:
        host = host_named(name, inventory, ledger.home)
        with driver_on(ledger.home, host, accept_new=accept_new) as driver:
            package = Package.from_json(surrendered(driver, ledger, wanted))
            newer = None if is_older(ledger, package) else accept(ledger, package, patience_s=LEAVE_WITHIN_S)
            for run_id in package.runs:
                went_on = newer is None or (not newer and driven_since(ledger, package, run_id))
                bring(driver, ledger.home, run_id, only_missing=went_on)
        unfinished = needs_driver(ledger, package.runs)
    screen.talk(f"{', '.join(package.runs)}: driven from here again")
    screen.talk(f"Next: gptctl {'resume' if unfinished else 'status'} {wanted}")
    return 0


def take_from_lost(wanted: str, name: str, *, yes: bool) -> int:
    """Drives a run or a sweep from here although its driver, which never comes back, did not let go of it. Asks."""
    with open_ledger() as ledger:
        run_ids = runs_meant(ledger, wanted)
        screen.talk(IF_IT_COMES_BACK.format(name=name, wanted=wanted))
        question = f"Drive {wanted} from here, as of the handover to {name}?"
        if not (yes or screen.ask(question, f"gptctl driver take {wanted} {name} --lost")):
            screen.talk("nothing was changed")
            return 0
        taken = reclaim(ledger, run_ids, lost=name, patience_s=LEAVE_WITHIN_S)
        unfinished = needs_driver(ledger, taken)
    screen.talk(f"{', '.join(taken)}: driven from here, as of the handover to {name}")
    if unfinished:
        screen.talk(f"gptctl orphans lists machines that {name} rented since")
    screen.talk(f"Next: gptctl {'resume' if unfinished else 'status'} {wanted}")
    return 0


def surrendered(driver: Driver, ledger: Ledger, wanted: str) -> dict[str, object]:
    """Raises UserError where the driver's ledger, which answers, does not know the run: this computer was interrupted
    between its own note and the handover."""
    try:
        return driver.answer(["driver", "surrender", wanted], deadline_s=LEAVE_WITHIN_S + 60)
    except CommandFailed as error:
        if not any(words in error.message for words in NEVER_GOT):
            raise
        name = driver.host.name
        if any(ledger.run(run_id).facts.driven_by != name for run_id in runs_meant(ledger, wanted)):
            raise
        raise UserError(f"{name} never got {wanted}", f"gptctl driver give {wanted} {name} repeats that") from error


# There, on the driver


def ready(places: Sequence[str]) -> int:
    """Says which of these folders are not here, and that gptctl runs."""
    lacks = ", ".join(place for place in places if not Path(place).expanduser().exists())
    free_bytes = shutil.disk_usage(open_home()).free
    print(json.dumps({"lacks": lacks, "free_bytes": free_bytes, "time_s": time.time()}))
    return 0


def accept_here() -> int:
    """Takes what stdin has into this ledger."""
    given = json.loads(sys.stdin.buffer.read())
    package = Package.from_json(given)
    with open_ledger() as ledger:
        if given.get(INVENTORY):
            (ledger.home / FILE_NAME).write_text(given[INVENTORY], encoding="utf-8")
        print(json.dumps({"new": accept(ledger, package, patience_s=LEAVE_WITHIN_S)}))
    return 0


def surrender(wanted: str) -> int:
    """Ends the driving here and prints the runs as a handover."""
    with open_ledger() as ledger:
        package = give(ledger, runs_meant(ledger, wanted), to=TAKEN_BACK, patience_s=LEAVE_WITHIN_S)
    print(json.dumps(package.to_json()))
    return 0


def files(wanted: str | None) -> int:
    """Lists the files of a run's folder: name, bytes, and of a link its target."""
    with open_ledger() as ledger:
        run = ledger.find_run(wanted)
        folder = ledger.home / "runs" / run.id
    found: list[tuple[str, int, str | None]] = []
    for path in sorted(folder.rglob("*")) if folder.is_dir() else ():
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            found.append((name, 0, os.readlink(path)))
        elif path.is_file():
            found.append((name, path.stat().st_size, None))
    print(json.dumps({"run": run.id, "ended": run.state is State.ENDED, "folder": str(folder), "files": found}))
    return 0
