"""A launch over several nodes that is lost on the way and done again: in the end all are in the same attempt."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.agent.contract.names import FileName, JobName, State
from orchestrator.agent.job import jobs
from orchestrator.agent.job.jobs import Job
from orchestrator.agent.system import files
from orchestrator.agent.system.paths import Places
from orchestrator.core.errors import LinkLost
from orchestrator.core.facts.run_facts import LostNodes
from orchestrator.stages import launch

RUN = "tiny-1130-abcdef"


@dataclass
class Machine:
    """A real agent's `start` over a real folder; what it starts is only noted."""

    places: Places
    reached: bool = True
    runs: bool = False

    def job(self) -> Job:
        return Job(self.places, RUN, JobName.TRAIN, "d", {})

    def start(self, name: str, run: str, digest: str, spec: dict[str, Any]) -> Any:
        if not self.reached:
            raise LinkLost("no answer")
        return SimpleNamespace(state=jobs.start(Job(self.places, run, name, digest, spec), {})["state"])

    def stop(self, run: str, *, grace_s: float) -> dict[str, Any]:
        if self.runs:
            self.end()
        return {"exit": self.job().exit_record()}

    def end(self) -> None:
        """As one does that waited for its head for too long."""
        files.write_json(self.job().file(FileName.EXIT), {"outcome": "failed", "reason": "no head", "ended_at": 0.0})
        self.runs = False

    @property
    def attempt(self) -> int:
        stored = files.read_json(self.job().file(FileName.SPEC)) or {}
        return int(stored["spec"]["attempt"])


@pytest.mark.parametrize(
    ("silent", "gave_up"),
    [each for each in itertools.product((0, 1, 2), ([], [1], [2], [1, 2])) if each[0] not in each[1]],
)
def test_all_nodes_start_in_one_attempt_which_of_them_were_lost_or_gave_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, silent: int, gave_up: list[int]
) -> None:
    machines = [Machine(Places(str(tmp_path / name / "agent" / "agent.pyz"))) for name in "abc"]
    by_folder = {machine.job().folder: machine for machine in machines}

    def look(job: Job) -> dict[str, Any]:
        ended, runs = job.exit_record(), by_folder[job.folder].runs
        state = State.ENDED if ended else State.RUNNING if runs else State.NONE
        return {"state": state, "supervised": True, "pid": 1, "started_at": 0.0, "exit": ended}

    monkeypatch.setattr(jobs, "read_state", look)
    monkeypatch.setattr(jobs, "_supervise", lambda job, *_: setattr(by_folder[job.folder], "runs", True))
    monkeypatch.setattr(launch, "resolved_config", lambda *_: SimpleNamespace(to_json=lambda: "{}"))
    facts = SimpleNamespace(lost_nodes=LostNodes(), queue=None, cluster=True)
    monkeypatch.setattr(launch, "_spec", lambda *_: {"attempt": facts.lost_nodes.attempt})
    nodes = [SimpleNamespace(agent=machine, run_id=RUN, plan=None, facts=facts) for machine in machines]
    head: Any = nodes[0]
    head.nodes, head.others, head.machine, head.engine_of = nodes, nodes[1:], SimpleNamespace(nodes=3), None
    head.set_run_facts = lambda **found: setattr(facts, "lost_nodes", found["lost_nodes"])

    machines[silent].reached = False
    with pytest.raises(LinkLost):
        launch._start(head)
    machines[silent].reached = True
    for node in gave_up:
        machines[node].end()
    launch._start(head)
    assert [machine.runs for machine in machines] == [True] * 3
    assert len({machine.attempt for machine in machines}) == 1
