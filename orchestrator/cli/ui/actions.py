"""What the page may do, if you allowed it: the same commands that you would type, after the same questions.

Example::

    Actions(home).question("stop", "quickstart-1130")   # "Stop quickstart-1130 on local? It keeps a checkpoint."
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.cli.runs.run import release_question
from orchestrator.cli.screen.foreign import clean
from orchestrator.core.errors import UserError
from orchestrator.ledger.ledger import Ledger

COMMANDS: Mapping[str, tuple[str, ...]] = {
    "stop": ("stop", "--yes"), "release": ("release", "--yes"), "fetch": ("fetch",), "resume": ("resume", "--detach"),
}  # fmt: skip


@dataclass
class Started:
    """A command that the page started."""

    run: str
    verb: str
    process: subprocess.Popen[bytes]
    log: Path

    def to_json(self) -> dict[str, object]:
        """Its state, and the end of what it said."""
        text = self.log.read_text(encoding="utf-8", errors="replace") if self.log.is_file() else ""
        said = [clean(line) for line in text.splitlines() if line.strip()]
        return {"run": self.run, "verb": self.verb, "exit_code": self.process.poll(), "said": said[-1] if said else ""}


@dataclass
class Actions:
    """The commands that the page started."""

    home: Path
    started: list[Started] = field(default_factory=list)

    def question(self, verb: str, run_id: str) -> str:
        """What the terminal would ask. Raises UserError for an unknown run or verb."""
        with Ledger.open(self.home, time.time) as ledger:
            run = ledger.run(run_id)
            if verb == "stop":
                return f"Stop {run.id} on {run.host}? It keeps a checkpoint."
            if verb == "release":
                return release_question(ledger, run, force=False)
        if verb not in COMMANDS:
            raise UserError(f"unknown action {verb}")
        return f"{verb.capitalize()} {run_id}?"

    def start(self, verb: str, run_id: str, agreed_to: str) -> Started:
        """Starts the command. Raises UserError unless `agreed_to` is the question as it reads now: a price or a step
        that changed since is asked about again."""
        question = self.question(verb, run_id)
        if agreed_to != question:
            raise UserError(f"the question has changed: {question}")
        word, *options = COMMANDS[verb]
        handle, name = tempfile.mkstemp(prefix=f"ui-{verb}-", suffix=".log", dir=self.home)
        argv = [sys.executable, "-m", "orchestrator", word, run_id, *options]
        environment = {**os.environ, "GPTCTL_HOME": str(self.home)}
        with open(handle, "wb") as log:
            # A session of its own: the page's server may end, the command does not.
            process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
                env=environment,
            )  # fmt: skip
        self.started.append(Started(run_id, verb, process, Path(name)))
        return self.started[-1]

    def to_json(self) -> list[dict[str, object]]:
        """Newest first."""
        return [each.to_json() for each in reversed(self.started[-20:])]
