"""`gptctl chat`: a conversation with a model that was tuned on instructions, from a fetched checkpoint or a folder.

The trainer's own program talks, on this terminal and in an interpreter that has torch; this module imports nothing of
it.
"""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from orchestrator.cli.inference.local_checkpoint import model_folder
from orchestrator.cli.inference.trainer_program import failed, here
from orchestrator.cli.open_ledger import open_ledger
from orchestrator.core.errors import CommandFailed
from orchestrator.remote.shell.local_shell import LocalShell


@dataclass(frozen=True)
class ChatRequest:
    """How to answer. `prompt`: the template around what you type, None for the model's own; `turns`: the earlier ones
    that the model reads."""

    prompt: str | None
    step: int | None
    max_tokens: int
    temperature: float
    seed: int
    top_k: int | None = None
    top_p: float | None = None
    turns: int = 0

    def arguments(self, folder: str) -> list[str]:
        """Of `trainer.inference.chat`."""
        given = {
            "prompt": self.prompt, "turns": self.turns, "max-tokens": self.max_tokens, "temperature": self.temperature,
            "top-k": self.top_k, "top-p": self.top_p, "seed": self.seed,
        }  # fmt: skip
        return [folder, *(f"--{name}={value}" for name, value in given.items() if value is not None)]


def chat(run_id: str | None, request: ChatRequest) -> int:
    """Talks until the input ends. Raises UserError with the program's reason where it refuses the model."""
    from orchestrator.cli.screen import screen

    with open_ledger() as ledger:
        name, folder = model_folder(ledger, run_id, request.step)
        program = here(ledger.home, LocalShell(), "inference.chat")
    screen.talk(f"{name}: loading")
    _run(program.argv(request.arguments(str(folder))), program.module)
    return 0


def _run(argv: Sequence[str], module: str) -> None:
    """The program has this terminal and gets its Ctrl-C; what it says on stderr is read for its reason."""
    with _deaf_to_ctrl_c():
        process = subprocess.Popen(argv, stderr=subprocess.PIPE)
        assert process.stderr is not None
        said = process.stderr.read().decode(errors="replace")
        code = process.wait()
    if code:
        raise failed(module, said) if said.strip() else CommandFailed(f"{module}: it ended with code {code}")


@contextmanager
def _deaf_to_ctrl_c() -> Iterator[None]:
    """A terminal sends Ctrl-C to both programs, and it means the answer, not the conversation."""
    before = signal.signal(signal.SIGINT, lambda number, frame: None)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
