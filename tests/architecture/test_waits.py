"""Every place that waits has a bound, named here: an API or a machine that is silent or odd holds no command for ever.

The agent and the rehearsal cloud are programs of their own. tests/unit/stages/test_waits.py tells the waits on a
provider what they must not believe, and measures their bounds.
"""

from __future__ import annotations

import ast
from pathlib import Path

from tests.support.files.repository import REPOSITORY

OTHERS = ("agent", "rehearsal")
WAITS = {"sleep", "wait"}
BOUNDS: dict[str, str] = {
    "cli/machines/orphans.py:_reap": "time.sleep(BETWEEN_LISTS_S)",  # once
    "cli/models/evaluate.py:_there": "agent.wait(",  # LinkLost after silence
    "cli/runs/logs.py:_follow": "State.ENDED",  # `logs -f`: until the run ends, or Ctrl-C
    "cli/runs/status.py:status": "KeyboardInterrupt",  # `status --watch`
    "fleet/guard_drill.py:_watch": "while context.now() < until",
    "fleet/watcher.py:reap": "clock() >= until",
    "ledger/run_lock.py:_flock": "time.monotonic() >= deadline",
    "providers/ec2/provider.py:set_deadline": "time.monotonic() > until",
    "providers/lambda_cloud/provider.py:set_deadline": "time.monotonic() > until",
    "remote/agent_client/pull_job.py:pull": "range(ROUNDS)",
    "remote/shell/dial.py:dialled": "until - time.monotonic()",
    "remote/shell/local_shell.py:_each_line": "process.wait(silence_s)",
    "remote/shell/openssh_link.py:_wait": "self._process.wait()",  # a thread of its own, as long as its command
    "remote/shell/openssh_link.py:close": "self._master.kill()",
    "remote/shell/openssh_link.py:hand_over": "time.monotonic() < until",
    "remote/shell/openssh_link.py:is_lost": "self._master.wait(0.5)",
    "remote/shell/put_and_get.py:pulsing": "ended.wait(pulse_s)",  # as long as its command
    "remote/shell/ssh_shell.py:_exec": "cut_after(until",
    "remote/shell/ssh_shell.py:_chunks": "status_event.wait(silence_s)",
    "remote/transfer/parallel_ranges.py:_streams": "meter.quiet_s > STALLED_S",
    "remote/transfer/parallel_ranges.py:close": "self._process.kill()",
    "remote/transfer/trees.py:_rsync": "--timeout={RSYNC_SILENCE_S}",
    "remote/web/request_pace.py:turn": "self._take(paced)",  # a turn lasts IN_FLIGHT_S at most
    "stages/acquire.py:_first_contact": "context.now() >= until",
    "stages/checkpoints/store_job.py:require": "time.monotonic() > until",
    "stages/checkpoints/store_job.py:settle": "trouble.lasts_s",  # the machine works; its guard ends it
    "stages/follow.py:follow": "GIVE_UP_S",
    "stages/machine/boot.py:wait_until_active": "SILENT_S",
    "stages/machine/boot.py:is_gone": "context.now() > until",
    "stages/machine/boot.py:was_preempted": "context.now() > until",
    "stages/machine/box_guard.py:require": "time.monotonic() > until",
    "stages/machine/give_back.py:give_back": "context.now() > deadline",
    "stages/machine/give_back.py:tidy": "context.now() < until",
    "stages/machine/jobs.py:run_job": "agent.wait(",  # LinkLost after silence
    "stages/machine/new_host_key.py:_shows": "time.monotonic() < until",
    "stages/machine/purchase.py:find": "context.now() >= until",
    "stages/machine/purchase.py:buy_somewhere": "context.facts.wait",  # --wait: no machine is held, nothing is billed
    "stages/machine/purchase.py:_offers": "context.facts.wait",  # the same
}
"""By function: what bounds it, as its source says it."""


def test_every_wait_has_a_bound_that_is_named_here() -> None:
    found = waits()
    assert sorted(found) == sorted(BOUNDS)
    assert [name for name, source in found.items() if BOUNDS[name] not in source] == []


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
