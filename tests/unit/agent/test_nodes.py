"""What supervisors of several nodes conclude from each other's words, without sockets and with a clock of their own."""

import json
from typing import Any

import pytest

from orchestrator.agent.contract.requests import Cluster
from orchestrator.agent.job.nodes import SILENT_S, Watch
from orchestrator.agent.job.program import MEET_WITHIN_S


def cluster(node: int = 0) -> Cluster:
    return {"id": "r.1", "node": node, "addresses": ["10.0.0.2", "10.0.0.3"], "names": ["a", "b"], "port": 29500}


def line(watch: Watch, words: str = "step 7", ended: str = "", reason: str = "") -> dict[str, Any]:
    said = json.loads(watch.says(words, 100, ended, reason))
    assert isinstance(said, dict)
    return said


def test_a_node_that_falls_silent_is_lost_with_its_last_words() -> None:
    head, other = Watch(cluster(0), 0.0), Watch(cluster(1), 0.0)
    head.hear(line(other, "step 20 loss 3.2"), 5.0)
    assert head.look(5.0 + SILENT_S) == ""
    said = head.look(5.1 + SILENT_S)
    assert said == "node b (10.0.0.3) is lost: no word for 15 s; its last line: step 20 loss 3.2"
    assert head.look(1000.0) == said
    assert head.lost == {1}


def test_nodes_have_time_to_meet() -> None:
    head = Watch(cluster(0), 0.0)
    assert head.look(MEET_WITHIN_S) == ""
    assert head.look(MEET_WITHIN_S + 1) == "node b (10.0.0.3) is lost: no word for 120 s, and it never said one"


def test_the_head_tells_every_node_what_the_trouble_is() -> None:
    head, other = Watch(cluster(0), 0.0), Watch(cluster(1), 0.0)
    head.trouble = "node c (10.0.0.4) is lost"
    other.hear(line(head), 1.0)
    assert other.look(2.0) == "node c (10.0.0.4) is lost"


def test_a_node_that_ended_well_is_not_lost_and_one_that_failed_is_the_trouble() -> None:
    other = Watch(cluster(1), 0.0)
    head = Watch(cluster(0), 0.0)
    head.hear(line(other, ended="finished"), 1.0)
    assert head.look(1e6) == ""
    head.hear(line(other, ended="failed", reason="rank 1: no space left"), 2.0)
    assert head.look(3.0) == "node b (10.0.0.3) failed: rank 1: no space left"


def test_lines_of_another_start_and_of_strangers_are_not_heard() -> None:
    head, other = Watch(cluster(0), 0.0), Watch(cluster(1), 0.0)
    for said in ({**line(other), "id": "r.0"}, {**line(other), "node": 7}, {"node": 1}, {**line(other), "node": 0}):
        head.hear(said, 50.0)
    assert head.look(MEET_WITHIN_S + 1).startswith("node b (10.0.0.3) is lost")


def test_the_heads_growth_is_progress_on_every_node() -> None:
    head, other = Watch(cluster(0), 0.0), Watch(cluster(1), 0.0)
    other.hear(line(head), 1.0)
    assert other.progress == 100


@pytest.mark.parametrize("outcome", ["limit", "preempted", "stopped"])
def test_a_node_that_was_asked_to_end_ends_the_others_likewise(outcome: str) -> None:
    head, other = Watch(cluster(0), 0.0), Watch(cluster(1), 0.0)
    assert head.wish == ("", "")
    head.hear(line(other, ended=outcome, reason="its lease is over"), 1.0)
    assert (head.wish, head.look(1e6)) == ((outcome, "node b (10.0.0.3): its lease is over"), "")
    assert head.lost == ({1} if outcome == "preempted" else set())


def test_every_node_has_the_lease_that_the_head_has() -> None:
    head, other = Watch(cluster(0), 0.0), Watch(cluster(1), 0.0)
    other.hear(json.loads(head.says("step 7", 100, "", "", 1780.5)), 1.0)
    assert (other.lease_left_s, head.lease_left_s) == (1780.5, 0.0)
