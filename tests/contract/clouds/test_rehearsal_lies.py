"""Lies of the practice cloud about lists, launches and ends: what its API shows, and what its books know meanwhile."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.clock.waiting import until
from tests.support.clouds.rehearsal_cloud import RehearsalCloud

LAUNCH = "instance-operations/launch"
TAGS = [{"key": "gptctl-rental", "value": "r-1"}, {"key": "gptctl-intent", "value": "i-1"}]


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[RehearsalCloud]:
    with RehearsalCloud(tmp_path / "cloud") as running:
        yield running


def page(cloud: RehearsalCloud, query: str = "") -> dict[str, object]:
    """The whole answer of a list."""
    status, answer = cloud.ask("GET", f"instances{query}")
    assert status == 200
    return answer


def test_a_list_is_empty_for_as_long_as_the_fault_says(cloud: RehearsalCloud) -> None:
    box = cloud.up()
    cloud.inject("list-empty@2")
    assert cloud.get("instances") == [] and cloud.get(f"instances/{box}")["status"] == "active"
    until(lambda: [one["id"] for one in cloud.get("instances")] == [box])
    assert cloud.fired() == ["list-empty"]


def test_a_window_can_wait_for_the_next_terminate(cloud: RehearsalCloud) -> None:
    box, other = cloud.up(), cloud.up()
    cloud.inject("list-empty@terminate+600")
    assert len(cloud.get("instances")) == 2
    cloud.terminate(box)
    assert cloud.get("instances") == [] and cloud.row(other)["alive"]
    cloud.ask("POST", "/rehearsal/inject", {"clear": "list-empty"})
    assert other in cloud.statuses()


def test_rows_lose_tags_and_names(cloud: RehearsalCloud) -> None:
    box = cloud.up(name="gptctl-r-1", tags=TAGS)
    cloud.inject("list-untagged@600")
    assert [(one["name"], one["tags"]) for one in cloud.get("instances")] == [("gptctl-r-1", [])]
    assert cloud.get(f"instances/{box}")["tags"] == []
    cloud.inject("list-nameless@600")
    assert [(one["name"], one["tags"]) for one in cloud.get("instances")] == [("", [])]
    assert cloud.row(box)["tags"] == {"gptctl-rental": "r-1", "gptctl-intent": "i-1"}


def test_the_second_row_is_on_the_second_page(cloud: RehearsalCloud) -> None:
    cloud.inject("decoys@1,list-paged@600")
    box = cloud.launch()
    first = page(cloud)
    assert first["page_token"] == "1" and box not in str(first)
    second = page(cloud, "?page_token=1")
    assert second["page_token"] is None and box in str(second)


@pytest.mark.parametrize("odd", ["stranger", "id", "type", "region", "ours"])
def test_one_row_is_odd(cloud: RehearsalCloud, odd: str) -> None:
    box = cloud.up(tags=TAGS)
    cloud.inject(f"list-odd-row@{odd}")
    rows = cloud.get("instances")
    assert box in [one["id"] for one in rows]
    assert len(rows) == (1 if odd == "ours" else 2)
    assert (rows[-1]["status"] == 17) == (odd == "ours")


def test_one_launch_buys_two(cloud: RehearsalCloud) -> None:
    cloud.inject("double-launch")
    box = cloud.launch(tags=TAGS)
    assert cloud.books()["launches_by_intent"] == {"i-1": 2}
    assert box in cloud.books()["alive"]


@pytest.mark.parametrize(("fault", "code"), [("refused-but-bought", "insufficient-capacity"),
                                             ("refused-but-bought@quota", "quota-exceeded")])  # fmt: skip
def test_a_refused_launch_bought(cloud: RehearsalCloud, fault: str, code: str) -> None:
    cloud.inject(fault)
    status, answer = cloud.ask("POST", LAUNCH, cloud.order(tags=TAGS))
    assert status == 400 and answer["error"]["code"].endswith(code)
    assert cloud.books()["launches_by_intent"] == {"i-1": 1}


def test_a_launch_that_is_dearer_than_the_list_says_so_in_its_row(cloud: RehearsalCloud) -> None:
    cloud.inject("dearer-launch@200")
    box = cloud.launch()
    assert cloud.get(f"instances/{box}")["instance_type"]["price_cents_per_hour"] == 2 * 1592
    assert cloud.row(box)["price_cents_per_hour"] == 2 * 1592


def test_a_terminate_relapses_and_the_bill_never_stopped(cloud: RehearsalCloud) -> None:
    box = cloud.up()
    cloud.inject("terminate-relapse@2")
    assert [one["status"] for one in cloud.terminate(box)] == ["terminated"]
    assert cloud.statuses() == {box: "terminated"} and cloud.row(box)["alive"]
    cloud.wait_for(box, "active")
    assert cloud.ssh(box, "echo up").stdout == "up\n"


def test_a_get_denies_what_the_list_shows(cloud: RehearsalCloud) -> None:
    box = cloud.up()
    cloud.inject("get-missing@600")
    assert cloud.ask("GET", f"instances/{box}")[0] == 404 and box in cloud.statuses()


def test_the_api_is_silent_and_then_closes(cloud: RehearsalCloud) -> None:
    cloud.inject("silent@2")
    began = time.monotonic()
    assert cloud.ask("GET", "instances")[0] == 0
    assert time.monotonic() - began >= 1.9
    assert cloud.get("instances") == []


def test_an_error_in_a_good_answer(cloud: RehearsalCloud) -> None:
    cloud.inject("error-in-200@600")
    status, answer = cloud.ask("POST", LAUNCH, cloud.order())
    assert status == 200 and answer["error"]["code"] == "global/internal-error"
    assert cloud.books()["instances"] == []


def test_a_page_of_html(cloud: RehearsalCloud) -> None:
    cloud.inject("html@600")
    with pytest.raises(ValueError, match="Expecting value"):
        cloud.ask("GET", "instances")


def test_machines_that_answer_no_ssh_are_active_and_billed(cloud: RehearsalCloud) -> None:
    frozen = cloud.up()
    cloud.inject("frozen@-1")
    until(lambda: cloud.fired() == ["frozen"])
    until(lambda: cloud.ssh(frozen, "echo up", "-o", "ConnectTimeout=2").returncode == 255)
    gone = cloud.up()
    cloud.inject("ssh-gone@-1*2")
    until(lambda: cloud.ssh(gone, "echo up", "-o", "ConnectTimeout=2").returncode == 255)
    assert cloud.statuses() == {frozen: "active", gone: "active"}
    assert cloud.row(gone)["alive"]


def test_a_reboot_changes_the_address(cloud: RehearsalCloud) -> None:
    box = cloud.up()
    before = cloud.get(f"instances/{box}")["ip"]
    cloud.inject("reboot-elsewhere@-1")
    until(lambda: cloud.get(f"instances/{box}")["ip"] != before)
    assert until(lambda: cloud.ssh(box, "echo up").stdout == "up\n")


def test_the_clock_of_a_machine_is_ahead(cloud: RehearsalCloud) -> None:
    cloud.inject("clock-off@5000")
    box = cloud.up()
    until(lambda: cloud.ssh(box, "true").returncode == 0)
    said = cloud.ssh(box, "python3 -I -S -c 'import time; print(time.time())'").stdout
    assert 4900 < float(said) - time.time() < 5100
