"""What the rehearsal cloud answers, truthfully and when told to lie, and what its books say afterwards."""

from __future__ import annotations

import base64
import http.client
import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.clock.waiting import until
from tests.support.clouds.rehearsal_cloud import API, RehearsalCloud

INTENT = [{"key": "gptctl-intent", "value": "i1"}]
LAUNCH = "instance-operations/launch"
TERMINATE = "instance-operations/terminate"


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[RehearsalCloud]:
    with RehearsalCloud(tmp_path / "cloud") as running:
        yield running


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RehearsalCloud]:
    """One cloud for all tests that buy nothing."""
    with RehearsalCloud(tmp_path_factory.mktemp("quiet") / "cloud") as running:
        yield running


def code(answer: tuple[int, dict[str, dict[str, str]]]) -> tuple[int, str]:
    return answer[0], answer[1]["error"]["code"]


def launch(cloud: RehearsalCloud, **fields: object) -> tuple[int, dict[str, dict[str, str]]]:
    return cloud.ask("POST", LAUNCH, cloud.order(tags=INTENT, **fields))


def bought(cloud: RehearsalCloud) -> int:
    return cloud.books()["launches_by_intent"].get("i1", 0)


# The truth


def test_a_life_from_launch_to_terminate_and_its_bill(cloud: RehearsalCloud) -> None:
    box = cloud.launch(name="gptctl-x", tags=INTENT)
    assert cloud.statuses() == {box: "booting"} and "ip" not in cloud.get(f"instances/{box}")
    cloud.wait_for(box, "active")
    assert cloud.get(f"instances/{box}")["instance_type"]["price_cents_per_hour"] == 1592
    assert cloud.post(f"instances/{box}", {"name": "gptctl-x-until-5"})["name"] == "gptctl-x-until-5"
    assert cloud.terminate(box)[0]["status"] == "terminating"
    cloud.wait_for(box, None)
    assert code(cloud.ask("GET", f"instances/{box}")) == (404, "global/object-does-not-exist")
    books = cloud.books()
    row = books["instances"][0]
    assert (row["name"], row["tags"], row["alive"]) == ("gptctl-x-until-5", {"gptctl-intent": "i1"}, False)
    assert (row["billed_minutes"], row["cost_cents"], books["total_cents"]) == (1, 27, 27)
    assert cloud.program("--books") == books
    assert row["launched_at"] < row["active_at"] < row["terminated_at"]
    assert books["launches_by_intent"] == {"i1": 1} and books["alive"] == []


def test_a_short_minute_bills_several(tmp_path: Path) -> None:
    with RehearsalCloud(tmp_path / "quick", minute_s=0.2) as cloud:
        box = cloud.up()
        until(lambda: cloud.row(box)["billed_minutes"] >= 3)
        cloud.terminate(box)
        row = cloud.row(box)
        exact = (row["terminated_at"] - row["active_at"]) / 0.2
        assert row["billed_minutes"] - 1 < exact <= row["billed_minutes"]
        assert row["cost_cents"] == int(row["billed_minutes"] * 1592 / 60 + 0.5)


def test_a_launch_ended_while_booting_owes_nothing(tmp_path: Path) -> None:
    with RehearsalCloud(tmp_path / "slow", boot_s=600) as cloud:
        box = cloud.launch()
        cloud.terminate(box)
        cloud.wait_for(box, None)
        assert cloud.books()["total_cents"] == 0


@pytest.mark.parametrize("scheme", ["bearer", "basic", "basic-encoded"])
def test_the_key_is_accepted_in_every_documented_way(quiet: RehearsalCloud, scheme: str) -> None:
    encoded = base64.b64encode(f"{quiet.key}:".encode()).decode()
    header = {"bearer": f"Bearer {quiet.key}", "basic": f"Basic {quiet.key}", "basic-encoded": f"Basic {encoded}"}
    assert quiet.ask("GET", "instances", headers={"Authorization": header[scheme]})[0] == 200


@pytest.mark.parametrize("header", ["", "Bearer", "Bearer wrong", "Basic d3Jvbmc6", "Basic !"])
@pytest.mark.parametrize("path", ["instances", "/rehearsal/books"])
def test_another_key_is_not(quiet: RehearsalCloud, header: str, path: str) -> None:
    assert code(quiet.ask("GET", path, headers={"Authorization": header})) == (401, "global/invalid-api-key")


def test_the_state_is_for_its_owner_alone_and_the_log_has_no_secret(cloud: RehearsalCloud) -> None:
    box = cloud.up()
    token = cloud.get(f"instances/{box}")["jupyter_token"]
    files = [file for file in cloud.state.rglob("*") if file.is_file() and file.parent == cloud.state]
    assert {file.stat().st_mode & 0o077 for file in files if not file.name.endswith(".pub")} == {0}
    named = [file.name for file in files if cloud.key in file.read_text()]
    assert named == ["api_key"]
    assert token not in (cloud.state / "requests.jsonl").read_text()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"ssh_key_names": []}, (400, "global/invalid-parameters")),
        ({"ssh_key_names": ["me", "me"]}, (400, "global/invalid-parameters")),
        ({"ssh_key_names": ["nobody"]}, (404, "global/object-does-not-exist")),
        ({"region_name": "moon"}, (404, "global/object-does-not-exist")),
        ({"instance_type_name": "gpu_9x"}, (404, "global/object-does-not-exist")),
        ({"name": "x" * 65}, (400, "global/invalid-parameters")),
        ({"hostname": "-x"}, (400, "global/invalid-parameters")),
        ({"tags": [{"key": "Upper", "value": "x"}]}, (400, "global/invalid-parameters")),
        ({"tags": [{"key": "long", "value": "x" * 129}]}, (400, "global/invalid-parameters")),
        ({"user_data": "#" * 1_000_001}, (400, "global/invalid-parameters")),
        ({"image": {"family": "beos"}}, (404, "global/object-does-not-exist")),
        ({"quantity": 1}, (400, "global/invalid-parameters")),
    ],
)
def test_a_launch_that_breaks_the_document_buys_nothing(
    quiet: RehearsalCloud, change: dict[str, object], expected: tuple[int, str]
) -> None:
    assert code(quiet.ask("POST", LAUNCH, quiet.order(**change))) == expected
    assert quiet.books()["instances"] == []


def test_terminate_of_what_is_not_there(quiet: RehearsalCloud) -> None:
    answer = quiet.ask("POST", TERMINATE, {"instance_ids": ["0" * 32]})
    assert code(answer) == (404, "global/object-does-not-exist")


def test_ssh_keys_come_and_go(quiet: RehearsalCloud) -> None:
    made = quiet.post("ssh-keys", {"name": "made-there"})
    assert "OPENSSH PRIVATE KEY" in made["private_key"]
    assert [key["name"] for key in quiet.get("ssh-keys")] == ["me", "made-there"]
    assert quiet.ask("DELETE", f"ssh-keys/{made['id']}") == (200, {"data": {}})
    assert [key["name"] for key in quiet.get("ssh-keys")] == ["me"]
    assert code(quiet.ask("POST", "ssh-keys", {"name": "me", "public_key": "ssh-ed25519 AAAA"}))[0] == 400


def test_audit_events_tell_who_ended_what_and_when(cloud: RehearsalCloud) -> None:
    box = cloud.up()
    cloud.terminate(box)
    events = cloud.get("audit-events?resource_type=instance")
    assert [one["action"] for one in events] == ["launched", "activated", "terminated"]
    assert {one["additional_details"]["instance_lrn"] for one in events} == {f"lrn:cloud:instance:{box}"}
    later = cloud.get(f"audit-events?start={events[2]['event_time']}")
    assert [one["action"] for one in later][-1:] == ["terminated"]


def test_a_client_that_is_too_fast_is_told_so_on_request(tmp_path: Path) -> None:
    with RehearsalCloud(tmp_path / "strict", "--strict-rate") as cloud:
        statuses = [cloud.ask("GET", "instances")[0] for _ in range(3)]
        assert statuses.count(429) == 3  # adding the SSH key was the one request of this second


# Lies about launches


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ("no-capacity", (400, "instance-operations/launch/insufficient-capacity")),
        ("listed-but-refused", (400, "instance-operations/launch/insufficient-capacity")),
        ("quota", (400, "global/quota-exceeded")),
        ("500@launch", (500, "global/internal-error")),
        ("429", (429, "global/too-many-requests")),
        ("unknown-error-code", (400, "global/mercury-retrograde")),
    ],
)
def test_a_refused_launch_buys_nothing_and_the_next_one_does(
    cloud: RehearsalCloud, fault: str, expected: tuple[int, str]
) -> None:
    cloud.inject(fault)
    assert code(launch(cloud)) == expected
    assert bought(cloud) == 0
    assert launch(cloud)[0] == 200 and bought(cloud) == 1
    assert cloud.fired() == [fault.partition("@")[0]]


def test_capacity_is_refused_by_region(cloud: RehearsalCloud) -> None:
    cloud.inject("no-capacity@us-west-1*forever")
    assert launch(cloud, region_name="us-east-1")[0] == 200
    assert launch(cloud)[0] == 400
    regions = cloud.get("instance-types")["gpu_8x_a100"]["regions_with_capacity_available"]
    assert "us-west-1" not in [region["name"] for region in regions]
    cloud.inject("listed-but-refused@us-east-1")
    assert launch(cloud, region_name="us-east-1")[0] == 400
    assert "us-east-1" in str(cloud.get("instance-types")["gpu_8x_a100"]["regions_with_capacity_available"])


def test_sold_out_is_seen_in_the_list(quiet: RehearsalCloud) -> None:
    quiet.inject("sold-out,sold-out@us-east-1")
    seen = [quiet.get("instance-types")["gpu_8x_a100"]["regions_with_capacity_available"] for _ in range(3)]
    assert [len(regions) for regions in seen] == [0, 2, 3]


@pytest.mark.parametrize(
    ("fault", "status", "buys"),
    [
        ("timeout-before-effect", 0, 0),
        ("timeout-after-effect", 0, 1),
        ("500-after-effect", 500, 1),
        ("empty-ids", 200, 1),
        ("empty-ids@nothing", 200, 0),
        ("broken-body@launch", 200, 1),
    ],
)
def test_ambiguous_launches(cloud: RehearsalCloud, fault: str, status: int, buys: int) -> None:
    cloud.inject(fault)
    connection = http.client.HTTPConnection(cloud.entry["url"].removeprefix("http://"), timeout=80)
    try:
        body = json.dumps(cloud.order(tags=INTENT))
        connection.request("POST", f"{API}/{LAUNCH}", body, {"Authorization": f"Bearer {cloud.key}"})
        seen = connection.getresponse().status
    except http.client.RemoteDisconnected:
        seen = 0
    assert seen == status
    assert bought(cloud) == buys == len(cloud.statuses())


def test_prices_change_after_they_were_listed_and_running_machines_keep_theirs(cloud: RehearsalCloud) -> None:
    old = cloud.up()
    cloud.inject("price-change@200,price-change@0,price-change@-100")
    seen = [cloud.get("instance-types")["gpu_8x_a100"]["instance_type"]["price_cents_per_hour"] for _ in range(4)]
    assert seen == [1592, 3184, 0, -1592]
    assert cloud.get(f"instances/{old}")["instance_type"]["price_cents_per_hour"] == 1592
    assert cloud.row(old)["price_cents_per_hour"] == 1592


# Lies about booting


def test_stuck_booting_is_never_billed(cloud: RehearsalCloud) -> None:
    cloud.inject("stuck-booting")
    stuck, good = cloud.launch(), cloud.launch()
    cloud.wait_for(good, "active")
    assert cloud.statuses()[stuck] == "booting" and cloud.row(stuck)["cost_cents"] == 0
    cloud.terminate(stuck)
    cloud.wait_for(stuck, None)
    assert cloud.row(stuck)["faults"] == ["stuck-booting"] and cloud.row(stuck)["cost_cents"] == 0


@pytest.mark.parametrize(("fault", "cents"), [("unhealthy", 0), ("unhealthy-billed", 27)])
def test_unhealthy(cloud: RehearsalCloud, fault: str, cents: int) -> None:
    cloud.inject(fault)
    box = cloud.launch()
    cloud.wait_for(box, "unhealthy")
    assert cloud.row(box)["cost_cents"] == cents and cloud.row(box)["active_at"] is None


def test_active_without_address(cloud: RehearsalCloud) -> None:
    cloud.inject("active-without-ip@1")
    box = cloud.up()
    assert "ip" not in cloud.get(f"instances/{box}")
    until(lambda: "ip" in cloud.get(f"instances/{box}"))


def test_slow_boot(cloud: RehearsalCloud) -> None:
    cloud.inject("slow-boot@600")
    slow, quick = cloud.launch(), cloud.launch()
    cloud.wait_for(quick, "active")
    assert cloud.statuses()[slow] == "booting"


# Lies about ending


@pytest.mark.parametrize(
    ("fault", "status", "named"),
    [
        ("terminate-ignored", 200, 1),
        ("terminate-ignored@unlisted", 200, 0),
        ("terminate-500", 500, 0),
        ("terminate-401", 401, 0),
        ("timeout-before-effect@terminate", 0, 0),
    ],
)
def test_a_terminate_that_does_nothing(cloud: RehearsalCloud, fault: str, status: int, named: int) -> None:
    box = cloud.up()
    cloud.inject(fault)
    answer = cloud.ask("POST", TERMINATE, {"instance_ids": [box]})
    assert answer[0] == status
    assert len(answer[1].get("data", {}).get("terminated_instances", [])) == named
    assert cloud.row(box)["alive"] and cloud.statuses() == {box: "active"}
    assert cloud.ssh(box, "echo still").stdout == "still\n"
    cloud.terminate(box)
    cloud.wait_for(box, None)
    assert not cloud.row(box)["alive"]


def test_a_terminate_whose_answer_is_lost(cloud: RehearsalCloud) -> None:
    box = cloud.up()
    cloud.inject("timeout-after-effect@terminate")
    assert cloud.ask("POST", TERMINATE, {"instance_ids": [box]})[0] == 0
    cloud.wait_for(box, None)
    assert not cloud.row(box)["alive"]


def test_a_rename_that_does_nothing(cloud: RehearsalCloud) -> None:
    box = cloud.up(name="old")
    cloud.inject("rename-ignored")
    assert cloud.post(f"instances/{box}", {"name": "new"})["name"] == "new"
    assert cloud.get(f"instances/{box}")["name"] == "old"


# Lies of the API


def test_too_many_requests_says_when_to_come_again(quiet: RehearsalCloud) -> None:
    quiet.inject("429@list")
    connection = http.client.HTTPConnection(quiet.entry["url"].removeprefix("http://"), timeout=80)
    connection.request("GET", f"{API}/instances", headers={"Authorization": f"Bearer {quiet.key}"})
    answer = connection.getresponse()
    assert (answer.status, answer.headers["Retry-After"]) == (429, "1")


def test_a_revoked_key_stays_revoked_until_it_is_cleared(cloud: RehearsalCloud) -> None:
    box = cloud.up()
    cloud.inject("key-revoked")
    for _ in range(3):
        assert code(cloud.ask("GET", "instances")) == (401, "global/invalid-api-key")
    assert code(cloud.ask("POST", TERMINATE, {"instance_ids": [box]}))[0] == 401
    assert cloud.ask("POST", "/rehearsal/inject", {"clear": "key-revoked"})[0] == 200
    assert cloud.statuses() == {box: "active"}


def test_a_redirect_leads_to_another_host(quiet: RehearsalCloud) -> None:
    quiet.inject("redirect@launch")
    connection = http.client.HTTPConnection(quiet.entry["url"].removeprefix("http://"), timeout=80)
    connection.request("POST", f"{API}/{LAUNCH}", "{}", {"Authorization": f"Bearer {quiet.key}"})
    answer = connection.getresponse()
    assert answer.status == 302
    assert not answer.headers["Location"].startswith(quiet.entry["url"])


def test_a_giant_answer_is_a_gigabyte(quiet: RehearsalCloud) -> None:
    quiet.inject("giant-answer")
    connection = http.client.HTTPConnection(quiet.entry["url"].removeprefix("http://"), timeout=80)
    connection.request("GET", f"{API}/instances", headers={"Authorization": f"Bearer {quiet.key}"})
    answer = connection.getresponse()
    assert int(answer.headers["Content-Length"]) > 1 << 30
    assert answer.read(1 << 20) == b" " * (1 << 20)
    connection.close()
    assert quiet.statuses() == {}


def test_wrong_types(cloud: RehearsalCloud) -> None:
    cloud.up()
    cloud.inject("wrong-types,wrong-types@types")
    listed = cloud.get("instances")[0]
    assert listed["id"] == 17 and listed["instance_type"]["price_cents_per_hour"] == "1592"
    assert cloud.get("instance-types")["gpu_8x_a100"]["instance_type"]["name"] == 17


def test_lists_that_lag_show_the_past(cloud: RehearsalCloud) -> None:
    box = cloud.launch()
    cloud.inject("list-lag@600*2")
    assert cloud.statuses() == {}
    assert cloud.ask("GET", f"instances/{box}")[0] == 404
    assert list(cloud.statuses()) == [box]
    cloud.wait_for(box, "active")
    active_at = cloud.row(box)["active_at"]
    until(lambda: time.time() > active_at + 2)  # so that "while it was active" is not missed by a slow request
    cloud.terminate(box)
    cloud.wait_for(box, None)
    row = cloud.row(box)
    ago_s = time.time() - (row["active_at"] + row["terminated_at"]) / 2
    cloud.inject(f"list-lag@{ago_s:.3f}")
    assert cloud.statuses() == {box: "active"}
    assert cloud.statuses() == {}


def test_machines_of_somebody_else_are_there_and_cost_us_nothing(cloud: RehearsalCloud) -> None:
    cloud.inject("decoys@2")
    mine = cloud.up()
    listed = cloud.get("instances")
    assert len(listed) == 3 and sorted(len(one["tags"]) for one in listed) == [0, 0, 2]
    books = cloud.books()
    assert books["alive"] == [mine] and books["total_cents"] == 27
    foreign = next(one for one in books["instances"] if one["foreign"])
    cloud.terminate(foreign["id"])
    assert not cloud.row(foreign["id"])["alive"]
