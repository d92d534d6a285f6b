"""`gptctl track`: sends a run's metrics to the services of [track], and keeps on while gptctl follows the run.

`run` and `resume` start it as a process of its own, so that a service that is slow, down or broken costs the training
nothing: what it did not get is in the mirror, and the next `gptctl track` sends it.
"""

from __future__ import annotations

import fcntl
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from orchestrator.cli.open_ledger import open_ledger
from orchestrator.cli.screen import screen
from orchestrator.core.config.gptctl_home import CONFIG_FILE
from orchestrator.core.config.settings import Track, load_settings
from orchestrator.core.errors import GptctlError, ProviderError, UserError
from orchestrator.core.states import State
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.records import RunRecord
from orchestrator.ledger.run_lock import holder
from orchestrator.report.redaction import shown_recipe
from orchestrator.track.feed import Progress, feed
from orchestrator.track.services import Service, TrackedRun, open_service

EVERY_S = 5.0
LOG, LOCK = "track.log", "track.lock"
EXAMPLE = '[track]\nto = ["trackio"]'


def track(wanted: str | None, *, follow: bool) -> int:
    """Prints what each service got. With `follow`: until the run ends, or nobody follows it. Raises ProviderError where
    a service does not answer, after the others have everything."""
    with open_ledger() as ledger:
        settings = load_settings(ledger.home).track
        if not settings.to:
            raise UserError(f"no service to send to: write {EXAMPLE!r} into {ledger.home / CONFIG_FILE}")
        run = ledger.find_run(wanted)
        mirror = ledger.home / "runs" / run.id
        mirror.mkdir(parents=True, exist_ok=True, mode=0o700)
        with _alone(mirror) as is_alone:
            if not is_alone:
                screen.talk(f"another gptctl track sends {run.id} already")
                return 0
            return _send(ledger, run, mirror, settings, follow=follow)


def _send(ledger: Ledger, run: RunRecord, mirror: Path, settings: Track, *, follow: bool) -> int:
    problems: list[GptctlError] = []
    services: dict[str, Service] = {}
    told = TrackedRun(run.id, run.name or run.id, run.labels, tomllib.loads(shown_recipe(run.recipe_data)))
    for wanted in settings.to:
        try:
            services[wanted] = open_service(wanted, told, settings, ledger.home)
        except GptctlError as error:
            problems.append(error)
    sent = dict.fromkeys(services, 0)
    while services:
        run = ledger.run(run.id)
        is_over = run.state is State.ENDED or holder(ledger.home, run.id) is None
        for name, service in list(services.items()):
            try:
                progress, more = feed(mirror, service, Progress.of(mirror, name))
            except ProviderError as error:
                problems.append(error)
                del services[name]
                continue
            progress.keep(mirror, name)
            sent[name] += more
        if is_over or not follow:
            break
        time.sleep(EVERY_S)
    for name, service in services.items():
        try:
            service.end(run.outcome.value if run.outcome else None)
        except ProviderError as error:
            problems.append(error)
            continue
        print(f"{name}: {sent[name]} lines of {run.id}", flush=True)
    if problems:
        raise ProviderError("; ".join(each.message for each in problems), problems[0].hint)
    return 0


@contextmanager
def _alone(mirror: Path) -> Iterator[bool]:
    """Whether no other process sends this run."""
    with (mirror / LOCK).open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
        else:
            yield True


def start_tracking(home: Path, run_id: str) -> None:
    """Starts `gptctl track RUN --follow` where config.toml has [track]; what it says goes to track.log of the run."""
    if not (home / CONFIG_FILE).is_file() or not load_settings(home).track.to:
        return
    mirror = home / "runs" / run_id
    mirror.mkdir(parents=True, exist_ok=True, mode=0o700)
    argv = [sys.executable, "-m", "orchestrator", "track", run_id, "--follow"]
    with (mirror / LOG).open("ab") as log:
        subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
