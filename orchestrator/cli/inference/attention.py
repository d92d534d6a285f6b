"""`gptctl attention`: pictures of where a model looks in a prompt, from a fetched checkpoint or a folder.

The trainer's own program measures, in an interpreter that has torch; this module imports nothing of it.
"""

from __future__ import annotations

import base64
import binascii
import json
from pathlib import Path

from orchestrator.cli.inference.local_checkpoint import model_folder
from orchestrator.cli.inference.trainer_program import ProgramLine, here, results
from orchestrator.cli.open_ledger import open_ledger
from orchestrator.core.errors import CommandFailed, UserError
from orchestrator.remote.shell.local_shell import LocalShell
from orchestrator.remote.whole_files import landing
from orchestrator.report.pages.attention import AttentionWeights, page, picture

PICTURE, PAGE = "attention.png", "attention.html"


def attention(run_id: str | None, prompt: str, step: int | None, to: Path, *, as_json: bool) -> int:
    """Writes attention.png and attention.html into the folder, and prints their paths."""
    if to.exists() and not to.is_dir():
        raise UserError(f"--to {to}: is a file", "name a folder")
    with open_ledger() as ledger:
        name, folder = model_folder(ledger, run_id, step)
        shell = LocalShell()
        program = here(ledger.home, shell, "inference.attention_map")
        lines = results(shell, program, [str(folder), f"--prompt={prompt}"], lambda line: None)
    weights, left_out = _weights(lines), lines[-1].get("left_out") or 0
    note = f"The first {len(weights.tokens)} tokens of the prompt; {left_out:,} more were left out." if left_out else ""
    files = {PICTURE: picture(weights), PAGE: page(weights, name, note).encode("utf-8", errors="backslashreplace")}
    to.mkdir(parents=True, exist_ok=True)
    for file, content in files.items():
        with landing(to / file, mode=0o644) as target:
            target.write(content)
    if as_json:
        print(json.dumps({"model": name, "tokens": list(weights.tokens), "files": [str(to / file) for file in files]}))
    else:
        print(f"{to / PICTURE}\n{to / PAGE}")
    return 0


def _weights(lines: list[ProgramLine]) -> AttentionWeights:
    """The program's line. Raises CommandFailed for one that contradicts itself."""
    line = lines[-1] if lines else {}
    try:
        tokens = tuple(map(str, line["tokens"]))
        weights = AttentionWeights(tokens, int(line["layers"]), int(line["heads"]), base64.b64decode(line["weights"]))
    except (KeyError, TypeError, ValueError, binascii.Error) as error:
        raise CommandFailed(f"inference.attention_map: it printed no weights: {error}") from error
    if not tokens or len(weights.cells) != weights.layers * weights.heads * len(tokens) ** 2:
        raise CommandFailed("inference.attention_map: its weights do not fit its tokens")
    return weights
