"""Slurm as an Engine: argv to its own commands on the login node, and their text back as values.

It must not wait, print or keep anything. A silent controller raises NoAnswer; a refusal is UserError in Slurm's words.

Example: `Slurm(host, shell).look("17").state`      # "PENDING"
"""

from __future__ import annotations

import math
import re
import shlex
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

from orchestrator.agent.contract.names import SLURM_IS_SILENT
from orchestrator.core.config.inventory import HostSpec
from orchestrator.core.engine import JobOrder, JobView, Phase, Span
from orchestrator.core.errors import MachineUnfit, NoAnswer, UserError
from orchestrator.core.formats import local_time
from orchestrator.core.ports import Result, Shell
from orchestrator.core.suggest import one_of
from orchestrator.providers.slurm import answers, script

SILENT = re.compile(SLURM_IS_SILENT, re.IGNORECASE)
NO_BOOKS = re.compile(r"accounting storage is disabled|not running a supported accounting_storage", re.IGNORECASE)
UNKNOWN_JOB = re.compile(r"invalid job id", re.IGNORECASE)
STARTED = re.compile(r"no longer pending|already (running|finished|completing)", re.IGNORECASE)
JOB_ID = re.compile(r"[0-9]{1,10}")
BEGINS = "gptctl: the answer begins"
"""A login shell may print whatever it likes before it, such as a greeting with numbers in it."""
MOST_SAID = 500
ASKS_S = 60.0
DAY_S = 86_400.0
LOOKS_BACK_S = 30 * DAY_S
"""Where nobody says how far the books are read back."""
KNOWN_NAMES = {
    "partition": ("sinfo", "-h", "-o", "%R"),
    "account": ("sacctmgr", "-n", "-P", "show", "assoc", "format=account"),
    "qos": ("sacctmgr", "-n", "-P", "show", "qos", "format=name"),
}
"""How to list what there is, by the word that Slurm's refusal has."""


class Slurm:
    """The queue of one cluster."""

    def __init__(self, host: HostSpec, shell: Shell, asks_s: float = ASKS_S, since: float | None = None) -> None:
        """since: no job that is asked for was submitted before this, in UTC epoch seconds. Slurm gives its numbers
        again some day, and the books know both."""
        self.host, self.shell, self.asks_s = host, shell, asks_s
        self.looks_back_s = LOOKS_BACK_S if since is None else max(0.0, time.time() - since)

    @property
    def _since(self) -> str:
        """As sacct takes it: whole days, and one more for clocks that are apart."""
        return f"now-{math.ceil(self.looks_back_s / DAY_S) + 1}days"

    def script(self, order: JobOrder) -> str:
        """The sbatch script."""
        return script.text(order, self.host)

    def interpreter(self) -> str | None:
        """That of the site's modules."""
        return script.interpreter(self.host)

    def trial(self, order: JobOrder) -> str:
        """A job of a minute."""
        return script.trial(order, self.host)

    def submit(self, script: str) -> str:
        """sbatch: the id."""
        done = self._run("sbatch", "--parsable", script)
        if done.code != 0:
            raise self._refusal(done)
        job = _text(done).partition(";")[0]
        if not JOB_ID.fullmatch(job):
            raise NoAnswer(f"{self.host.name}: sbatch names no job: {job[:MOST_SAID]!r}", "gptctl resume looks for it")
        return job

    def look(self, job: str) -> JobView | None:
        """squeue, and the books for a job that it has forgotten."""
        done = self._run("squeue", "-h", "-r", "-t", "all", "-j", job, "-o", answers.VIEW_FIELDS)
        lines = _text(done).splitlines()
        if done.code == 0 and lines:
            return self._with_who(answers.view(lines[-1]))
        if done.code != 0 and not UNKNOWN_JOB.search(_said(done)):
            raise NoAnswer(f"{self.host.name}: squeue: {_said(done)}")
        lines = self._books([job]) or []
        if not lines:
            return None
        found = answers.from_books(lines[-1])  # which may not have heard of its end yet
        return found if done.code == 0 else replace(found, phase=Phase.ENDED)

    def _with_who(self, found: JobView) -> JobView:
        """Of a job that ended, the books say who cancelled it."""
        with suppress(NoAnswer):
            lines = (self._books([found.id]) or []) if found.phase is Phase.ENDED else []
            return replace(found, reason=answers.from_books(lines[-1]).reason or found.reason) if lines else found
        return found

    def words(self, found: JobView) -> str:
        """Slurm's reason, explained where it is known."""
        return answers.words(found)

    def let_go(self, job: str) -> None:
        """scontrol release; of a job that is not held it changes nothing. A refusal ends no run: it waits."""
        done = self._run("scontrol", "release", job)
        if done.code != 0 and not STARTED.search(_said(done)):
            raise NoAnswer(f"{self.host.name}: scontrol release {job}: {_said(done)}", "gptctl resume tries it again")

    def cancel(self, job: str) -> None:
        """scancel."""
        done = self._run("scancel", job)
        if done.code != 0 and not UNKNOWN_JOB.search(_said(done)):
            raise UserError(f"{self.host.name}: scancel {job}: {_said(done)}", "ask the cluster's administrators")

    def find(self, name: str) -> Sequence[str]:
        """By the queue, and by the books where there are any."""
        queued = self._run("squeue", "-h", "-t", "all", "--name", name, "-o", "%F")
        if queued.code != 0:
            raise NoAnswer(f"{self.host.name}: squeue: {_said(queued)}")
        kept = self._run("sacct", "-X", "-n", "-P", "-S", self._since, "--name", name, "-o", "JobID")
        found = {*_text(queued).split(), *(_text(kept).split() if kept.code == 0 else ())}
        return sorted({each[0] for each in map(JOB_ID.match, found) if each}, key=int)

    def usage(self, jobs: Sequence[str]) -> Sequence[Span] | None:
        """sacct -D: without it only the last start of a job is shown."""
        lines = self._books(jobs)
        return None if lines is None else [answers.span(line) for line in lines]

    def test(self, order: JobOrder) -> str:
        """sbatch --test-only."""
        done = self._run("sbatch", "--test-only", stdin=self.script(order).encode())
        if done.code != 0:
            raise self._refusal(done)
        said = re.search(r"to start at ([0-9]{1,11}) using (.*)", _said(done))
        return f"would start at {local_time(float(said[1]))}, {said[2]}" if said else _said(done)

    def _books(self, jobs: Sequence[str]) -> list[str] | None:
        """Lines of the accounting; None where it is off."""
        done = self._run(
            "sacct", "-X", "-D", "-n", "-P", "-S", self._since, "-j", ",".join(jobs), "-o", answers.SPAN_FIELDS
        )
        if done.code != 0 and NO_BOOKS.search(_said(done)):
            return None
        if done.code != 0:
            raise NoAnswer(f"{self.host.name}: sacct: {_said(done)}")
        return [line for line in _text(done).splitlines() if line.count("|") >= answers.SPAN_FIELDS.count(",")]

    def _run(self, *argv: str, stdin: bytes = b"") -> Result:
        """The command with times in UTC epoch seconds. A login shell: many sites put Slurm on the path there only."""
        words = ["env", "SLURM_TIME_FORMAT=%s", *argv]
        run = f'echo {shlex.quote(BEGINS)}; echo {shlex.quote(BEGINS)} >&2; exec "$@"'
        done = self._after_greeting(
            self.shell.run(["sh", "-lc", run, "sh", *words], stdin=stdin, deadline_s=self.asks_s)
        )
        if done.code == 127:
            raise MachineUnfit(
                f"{self.host.name}: {argv[0]} is not there: {_said(done)}",
                "set `address` to a login node of the cluster, or put Slurm's commands on the PATH of a login shell",
            )
        if done.code != 0 and SILENT.search(_said(done)):
            raise NoAnswer(f"{self.host.name}: Slurm does not answer: {_said(done)}", "gptctl resume continues it")
        return done

    def _after_greeting(self, done: Result) -> Result:
        """Without what the login shell printed before."""
        mark = BEGINS.encode() + b"\n"
        if done.code == 0 and mark not in done.stdout:
            raise NoAnswer(f"{self.host.name}: the login shell's answer has no beginning", "gptctl resume continues it")
        stdout, stderr = (text.rpartition(mark)[2] for text in (done.stdout, done.stderr))
        return replace(done, stdout=stdout, stderr=stderr)

    def _refusal(self, done: Result) -> UserError:
        """Slurm's own line, and the names that there are."""
        said = _said(done)
        listing = next((argv for word, argv in KNOWN_NAMES.items() if word in said.lower()), None)
        names: list[str] = []
        with suppress(NoAnswer, MachineUnfit):
            names = sorted(set(_text(self._run(*listing)).split())) if listing else []
        known = f"; known: {one_of(names)}" if names else ""
        return UserError(
            f"{self.host.name}: Slurm refuses the job: {said}{known}",
            f"correct [hosts.{self.host.name}.slurm] in the inventory, then: gptctl check {self.host.name}",
        )


def _text(done: Result) -> str:
    return done.stdout.decode(errors="replace").strip()


def _said(done: Result) -> str:
    """What went wrong, on one line."""
    lines = done.stderr.decode(errors="replace").splitlines() or [f"code {done.code}"]
    words = (line.removeprefix("sbatch: ").removeprefix("error: ") for line in lines if line.strip())
    return "; ".join(words)[:MOST_SAID]
