"""Every place that waits has a bound, named here: an API or a machine that is silent or odd holds no command for ever.

The agent and the rehearsal cloud are programs of their own. tests/unit/stages/test_waits.py tells the waits on a
provider what they must not believe, and measures their bounds.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

from tests.support.files.repository import REPOSITORY

OTHERS = ("agent", "rehearsal")
WAITS = {"sleep", "wait", "pause"}
EVIDENT = re.compile(
    r"\b(until|deadline|deadline_s|silence_s|timeout|WITHIN_S|\w+_UP_S|STALLED_S|SILENT_S|ROUNDS)\b|\.wait\(\d"
)
"""A bound that the function itself names."""
OTHERWISE = {
    "core/parallel.py:on_each": "what is done for one of them has a bound of its own",
    "cli/driver/driver.py:_streamed": "a command there, as long as it would take here; Ctrl-C ends it",
    "cli/inference/chat.py:_run": "a conversation: until you end it; the program ends with its input",
    "cli/machines/orphans.py:_reap": "once, for a second",
    "cli/machines/track.py:_send": "while gptctl follows the run: until it has ended, or nobody holds its lock",
    "cli/models/evaluate.py:_there": "a stream of the agent: LinkLost after its silence",
    "cli/sweeps/sweep.py:_side_by_side": "as long as the runs of its machines; Ctrl-C reaches every child",
    "cli/runs/logs.py:_follow": "`logs -f`: until the run ends, or Ctrl-C",
    "remote/shell/openssh_link.py:_wait": "a thread of its own, as long as the process",
    "remote/shell/put_and_get.py:pulsing": "as long as the command whose input it is",
    "remote/transfer/parallel_ranges.py:close": "a process that was killed",
    "stages/machine/bounds.py:pause": "its caller's seconds",
    "stages/machine/bounds.py:await_replacement": "one pause; the caller asks until REPLACE_WITHIN_S are over",
    "stages/machine/purchase.py:buy_somewhere": "--wait: no machine is held, nothing is billed",
    "stages/machine/purchase.py:_offers": "--wait: no machine is held, nothing is billed",
}
"""By function: what bounds it, where its source does not name it."""


def test_every_wait_has_a_bound() -> None:
    found = waits()
    assert len(found) > 30
    unbounded = [name for name, source in found.items() if not EVIDENT.search(source) and name not in OTHERWISE]
    assert unbounded == [], "name the bound in the function, or say in OTHERWISE what it is"


def waits() -> dict[str, str]:
    """Function -> its source, for every one that sleeps or waits."""
    found = {}
    for path in sorted((REPOSITORY / "orchestrator").rglob("*.py")):
        place = path.relative_to(REPOSITORY / "orchestrator")
        if place.parts[0] not in OTHERS:
            found |= {f"{place}:{name}": source for name, source in _waiting(path)}
    return found


def _waiting(path: Path) -> list[tuple[str, str]]:
    text = path.read_text(encoding="utf-8")
    functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)]
    found = [(each.name, ast.get_source_segment(text, each) or "") for each in functions if _waits(each)]
    inner = [f"def {name}(" for name, _ in found]
    return [(name, source) for name, source in found if sum(each in source for each in inner) == 1]


def _waits(function: ast.FunctionDef) -> bool:
    calls = [node.func for node in ast.walk(function) if isinstance(node, ast.Call)]
    names = {getattr(call, "attr", getattr(call, "id", "")) for call in calls}
    return bool(names & WAITS)
