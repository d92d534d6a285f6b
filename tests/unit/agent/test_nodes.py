"""What supervisors of several nodes conclude from each other's words, without sockets and with a clock of their own."""

import json
from typing import Any

import pytest

from orchestrator.agent.contract.requests import Cluster
from orchestrator.agent.job.nodes import MOST_LINE_BYTES, SILENT_S, Watch
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


@pytest.mark.parametrize(
    "text", ["x" * 9000, "ошибка данных " * 110, "\x00" * 4000, "\U0001f525" * 4000, "\udc80" * 4000]
)
def test_no_text_is_so_long_that_its_line_is_not_heard(text: str) -> None:
    """All others would take the head for lost, and say that in place of the cause."""
    head, other = Watch(cluster(0), 0.0), Watch(cluster(1), 0.0)
    other.hear(line(head), 1.0)
    head.note_death(0, text, 2.0)
    head.trouble = head.first_cause()
    said = head.says(text, 100, "failed", text, now_s=3.0)
    assert len(said) <= MOST_LINE_BYTES and said.count(b"\n") == 1
    other.hear(json.loads(said), 3.0)
    assert other.look(4.0).startswith("node a (10.0.0.2) failed: ") and other.lost == set()


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
    other.hear(json.loads(head.says("step 7", 100, "", "", lease_left_s=1780.5)), 1.0)
    assert (other.lease_left_s, head.lease_left_s) == (1780.5, 0.0)


def died(watch: Watch, reason: str, at_s: float) -> dict[str, Any]:
    """What its node says a second later."""
    watch.note_death(watch.node, reason, at_s)
    said = json.loads(watch.says("step 7", 100, "", "", now_s=at_s + 1.0))
    assert isinstance(said, dict)
    return said


@pytest.mark.parametrize(
    ("here", "there", "cause"),
    [
        pytest.param(("peer closed", 5.0), ("out of memory", 4.0), "node b (10.0.0.3) failed: out of memory", id="b"),
        pytest.param(("out of memory", 4.0), ("peer closed", 5.0), "node a (10.0.0.2) failed: out of memory", id="a"),
        pytest.param(
            ("peer closed", 4.0), ("rank 1 was killed by SIGKILL", 4.1),
            "node b (10.0.0.3) failed: rank 1 was killed by SIGKILL", id="a killed rank, however soon it was missed",
        ),
        pytest.param(
            ("rank 0: lost another rank, killed or frozen: Connection reset", 4.0), ("rank 1: CUDA error", 6.0),
            "node b (10.0.0.3) failed: rank 1: CUDA error", id="an error, however late its node wrote it down",
        ),
    ],
)  # fmt: skip
def test_the_first_cause_by_time_counts(here: tuple[str, float], there: tuple[str, float], cause: str) -> None:
    head, other = Watch(cluster(0), 0.0), Watch(cluster(1), 1000.0)  # clocks of their own
    reason, at_s = there
    head.hear(died(other, reason, 1000.0 + at_s), at_s + 1.0)
    head.note_death(0, *here)
    assert head.first_cause() == cause
    assert head.all_ended() and not head.ended


def test_a_further_start_forgets_the_deaths_before_it_and_hears_no_late_word_of_them() -> None:
    head, other = Watch(cluster(0), 0.0), Watch(cluster(1), 0.0)
    late = died(other, "out of memory", 4.0)
    head.hear(late, 5.0)
    assert head.look(5.0) == "node b (10.0.0.3) failed: out of memory"
    head.begin(2)
    head.hear(late, 6.0)
    assert (head.look(6.0), head.died) == ("", {})
    other.hear(line(head), 6.0)
    assert (other.heads_start, other.look(6.0)) == (2, "")
    other.begin(other.heads_start)
    head.hear(line(other), 7.0)
    assert head.look(7.0) == "" and head.due_s == {1: 7.0 + SILENT_S}
