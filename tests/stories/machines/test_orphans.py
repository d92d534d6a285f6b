"""The watcher against a real cloud process that keeps its own books: what it ends, and above all what it does not."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.core.config.inventory import HostSpec
from orchestrator.core.errors import ProviderError
from orchestrator.core.fleet.guard_state import GuardState
from orchestrator.core.fleet.orphans import KnownRental
from orchestrator.core.fleet.own_machine import StandingMachine
from orchestrator.core.machines import machine_type
from orchestrator.core.ports import Instance
from orchestrator.fleet.accounts import Account
from orchestrator.fleet.watcher import due, look, reap
from orchestrator.ledger.ledger import Ledger
from tests.conftest import Gptctl
from tests.support.clouds.receiver import Receiver
from tests.support.clouds.rehearsal_cloud import RehearsalCloud
from tests.support.files.canary import below, content

INVENTORY = """
[hosts.sim]
provider = "rehearsal"
machine = "8xA100-40GB-simulated"
guard = "watcher"

[hosts.sim-too]
provider = "rehearsal"
machine = "8xA100-40GB-simulated"
guard = "key-on-box"
"""
LATE_S, SOON_S = -400, 900


@pytest.fixture
def cloud(tmp_path: Path, gptctl_home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RehearsalCloud]:
    (tmp_path / "inventory.toml").write_text(INVENTORY)
    monkeypatch.setenv("GPTCTL_REHEARSAL", str(tmp_path / "cloud"))
    monkeypatch.delenv("LAMBDA_API_KEY", raising=False)
    with RehearsalCloud(tmp_path / "cloud") as running:
        yield running


def rent(cloud: RehearsalCloud, rental: str, ends_in_s: float, *, tag_ends_in_s: float = 7200, **tags: str) -> str:
    """A machine as gptctl buys it: its deadline in the name, and another one in the tag."""
    now = int(time.time())
    ours = {
        "gptctl-rental": rental,
        "gptctl-intent": f"intent-{rental}",
        "gptctl-launched-at": str(now - 3600),
        "gptctl-ends-at": str(int(now + tag_ends_in_s)),
        **{f"gptctl-{name}": value for name, value in tags.items()},
    }
    name = f"gptctl-{rental}-until-{int(now + ends_in_s)}"
    return cloud.up(name=name, tags=[{"key": key, "value": value} for key, value in ours.items()])


def listed(done: subprocess.CompletedProcess[str]) -> dict[str, dict[str, Any]]:
    return {row["rental"]: row for row in json.loads(done.stdout)["machines"]}


def lists(cloud: RehearsalCloud) -> int:
    return sum(each["method"] == "GET" for each in cloud.requests("/instances"))


def test_it_lists_ours_from_the_account_alone(cloud: RehearsalCloud, gptctl: Gptctl) -> None:
    late = rent(cloud, "late", LATE_S)
    rent(cloud, "soon", SOON_S, tag_ends_in_s=LATE_S)
    cloud.launch(name="gptctl-handmade-until-1")
    cloud.inject("decoys@3")
    before = lists(cloud)
    done = gptctl("orphans", "--json")
    assert done.returncode == 7, done.stdout + done.stderr
    rows = listed(done)
    assert {rental: (row["past"], row["known"]) for rental, row in rows.items()} == {
        "late": (True, False),
        "soon": (False, False),
        "handmade": (False, False),
    }
    assert rows["late"]["instance_id"] == late
    assert rows["late"]["cost_usd"] == pytest.approx(15.92, rel=0.05)
    assert lists(cloud) - before == 1
    assert len(cloud.books()["alive"]) == 3
    shown = gptctl("orphans")
    assert shown.returncode == 7 and f"  gptctl orphans --reap {late}\n" in shown.stderr


def test_reap_ends_what_two_lists_show_past_its_deadline_and_nothing_else(
    cloud: RehearsalCloud, gptctl: Gptctl, gptctl_home: Path
) -> None:
    late, soon = rent(cloud, "late", LATE_S), rent(cloud, "soon", SOON_S, tag_ends_in_s=LATE_S)
    handmade = cloud.up(name="gptctl-handmade-until-1")
    cloud.inject("decoys@3")
    done = gptctl("orphans", "--reap", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    answer = json.loads(done.stdout)
    assert [(row["instance_id"], row["gone"]) for row in answer["reaped"]] == [(late, True)]
    assert {row["instance_id"] for row in answer["machines"]} == {soon, handmade}
    assert set(cloud.books()["alive"]) == {soon, handmade}
    assert sum(row["foreign"] and row["alive"] for row in cloud.books()["instances"]) == 3
    mark = json.loads((gptctl_home / "watcher.json").read_text())
    assert mark["ok"] is True and mark["providers"] == ["rehearsal"] and abs(mark["time"] - time.time()) < 60


@pytest.mark.nightly
def test_the_books_close_when_it_says_destroyed(cloud: RehearsalCloud, gptctl: Gptctl) -> None:
    late = rent(cloud, "late", LATE_S)
    done = gptctl("orphans", "--reap")
    assert (done.returncode, done.stdout.strip()) == (0, f"destroyed {late} (late)")
    assert cloud.books()["alive"] == [] and cloud.row(late)["terminated_at"] is not None


def test_a_deadline_that_moves_between_the_lists_is_respected(cloud: RehearsalCloud, gptctl: Gptctl) -> None:
    late = rent(cloud, "late", LATE_S)
    cloud.post(f"instances/{late}", {"name": f"gptctl-late-until-{int(time.time()) + SOON_S}"})
    cloud.inject("list-lag@3600*1")  # the first list is from before the machine was there; the second one is fresh
    done = gptctl("orphans", "--reap", "--json")
    assert done.returncode == 0 and json.loads(done.stdout)["reaped"] == []
    assert cloud.books()["alive"] == [late]


def test_any_other_machine_only_by_id_with_its_price_and_a_yes(cloud: RehearsalCloud, gptctl: Gptctl) -> None:
    soon, other = rent(cloud, "soon", SOON_S), rent(cloud, "other", SOON_S)
    asked = gptctl("orphans", "--reap", "soon")
    assert asked.returncode == 2 and "$15.92/h" in asked.stderr and "--yes" in asked.stderr
    assert set(cloud.books()["alive"]) == {soon, other}
    stranger = cloud.up(name="somebody")
    assert gptctl("orphans", "--reap", stranger, "--yes").returncode == 2
    done = gptctl("orphans", "--reap", soon, "--yes")
    assert done.returncode == 0 and f"destroyed {soon}" in done.stdout
    assert set(cloud.books()["alive"]) == {other, stranger}


@pytest.mark.nightly
def test_terminate_that_is_ignored_is_asked_again(cloud: RehearsalCloud, gptctl: Gptctl) -> None:
    late = rent(cloud, "late", LATE_S)
    cloud.inject("terminate-ignored,terminate-500")
    done = gptctl("orphans", "--reap")
    assert done.returncode == 0 and f"destroyed {late}" in done.stdout
    assert {"terminate-ignored", "terminate-500"} <= set(cloud.fired())
    assert cloud.books()["alive"] == []


def test_a_revoked_key_is_said_and_is_no_good_pass(cloud: RehearsalCloud, gptctl: Gptctl, gptctl_home: Path) -> None:
    late = rent(cloud, "late", LATE_S)
    cloud.inject("key-revoked")
    done = gptctl("orphans", "--reap", "--json")
    assert done.returncode == 3 and "rehearsal" in json.loads(done.stdout)["problems"]
    assert json.loads((gptctl_home / "watcher.json").read_text())["ok"] is False
    cloud.ask("POST", "/rehearsal/inject", {"clear": ""})
    assert cloud.books()["alive"] == [late]


def test_a_damaged_ledger_keeps_no_forgotten_machine_alive(
    cloud: RehearsalCloud, gptctl: Gptctl, gptctl_home: Path
) -> None:
    assert gptctl("orphans").returncode == 0
    rent(cloud, "late", LATE_S)
    (gptctl_home / "ledger.db").write_bytes(b"no database" * 1000)
    done = gptctl("orphans", "--reap")
    assert done.returncode == 0 and "destroyed" in done.stdout and "continuing without it" in done.stderr
    assert cloud.books()["alive"] == []


def test_adopted_machines_can_be_released(cloud: RehearsalCloud, gptctl: Gptctl) -> None:
    one, two = rent(cloud, "one", SOON_S, run="tiny-1120-aaaaaa"), rent(cloud, "two", SOON_S)
    done = gptctl("orphans", "--adopt", "--json")
    assert done.returncode == 0, done.stderr
    assert [row["known"] for row in listed(done).values()] == [True, True]
    assert "known already" in gptctl("orphans", "--adopt").stderr
    found = json.loads(gptctl("status", "--json").stdout)
    assert {row["instance_id"] for row in found["rentals"]} == {one, two}
    assert "tiny-1120-aaaaaa" in {row["id"] for row in found["runs"]}
    assert gptctl("release", "two", "--yes").returncode == 0
    assert cloud.books()["alive"] == [one]
    lost = gptctl("release", "tiny-1120-aaaaaa", "--yes", "--force")
    assert lost.returncode == 0, lost.stderr
    assert cloud.books()["alive"] == []


def test_two_hundred_machines_take_one_list_each_time(cloud: RehearsalCloud, gptctl: Gptctl) -> None:
    now = int(time.time())
    tags = [{"key": "gptctl-rental", "value": "many"}, {"key": "gptctl-ends-at", "value": str(now + SOON_S)}]
    journal = cloud.state / "books.jsonl"
    first = cloud.up(name=f"gptctl-many-until-{now + SOON_S}", tags=tags)
    cloud.program("--stop")
    launch = next(line for line in map(json.loads, journal.read_text().splitlines()) if line["event"] == "launched")
    with journal.open("a") as file:
        for number in range(199):
            copy = {**launch["instance"], "id": f"{number:032x}", "foreign": True}
            file.write(json.dumps({**launch, "instance": copy}) + "\n")
            file.write(json.dumps({"event": "active", "time": launch["time"], "id": copy["id"], "ip_at": now}) + "\n")
    cloud.start()
    before = lists(cloud)
    found = json.loads(gptctl("orphans", "--json").stdout)["machines"]
    assert len(found) == 200 and first in {row["instance_id"] for row in found}
    assert lists(cloud) - before == 1


def test_status_knows_whether_somebody_watches(cloud: RehearsalCloud, gptctl: Gptctl, gptctl_home: Path) -> None:
    rent(cloud, "one", SOON_S, run="tiny-1120-aaaaaa")
    assert gptctl("orphans", "--adopt").returncode == 0
    with Ledger.open(gptctl_home, time.time) as ledger:
        (rental,) = ledger.rentals()
        guard = GuardState("watcher", armed=True, ends_at=time.time() + SOON_S)
        ledger.update_rental(rental.id, facts={"guard": guard})
    (unwatched,) = json.loads(gptctl("status", "--json").stdout)["runs"]
    assert (unwatched["guard"]["armed"], unwatched["guard"]["watcher_seen_s"]) == (False, None)
    assert "no sign of its watcher" in gptctl("status").stderr
    assert gptctl("orphans", "--reap").returncode == 0
    (watched,) = json.loads(gptctl("status", "--json").stdout)["runs"]
    assert watched["guard"]["armed"] is True and watched["guard"]["watcher_seen_s"] < 60
    assert "no sign of a watcher" not in gptctl("status").stderr


@pytest.mark.nightly
def test_a_run_that_nobody_watches_is_warned_of(cloud: RehearsalCloud, gptctl: Gptctl) -> None:
    asked = gptctl("run", "quickstart", "--host", "sim")
    assert asked.returncode == 2 and "no sign of a watcher" in asked.stderr
    assert gptctl("orphans", "--reap").returncode == 0
    assert "no sign of a watcher" not in gptctl("run", "quickstart", "--host", "sim").stderr
    assert cloud.books()["instances"] == []


def test_the_lambda_provider_over_the_same_api_and_its_key_nowhere(
    cloud: RehearsalCloud, gptctl: Gptctl, gptctl_home: Path, tmp_path: Path
) -> None:
    entry = f'[hosts.lam]\nprovider = "lambda"\nmachine = "8xA100-40GB"\nendpoint = "{cloud.entry["url"]}"\n'
    (tmp_path / "inventory.toml").write_text(entry)
    late, soon = rent(cloud, "late", LATE_S), rent(cloud, "soon", SOON_S)
    done = gptctl("orphans", "--reap", "--yes", "--json", "-v", env={"LAMBDA_API_KEY": cloud.key})
    assert done.returncode == 0, done.stderr
    assert cloud.books()["alive"] == [soon]
    wrong = gptctl("orphans", "-v", env={"LAMBDA_API_KEY": "secret_wrong_" + cloud.key})
    assert wrong.returncode == 3 and "did not answer" in wrong.stderr
    said = done.stdout + done.stderr + wrong.stdout + wrong.stderr
    written = b"".join(content(path) for path in below(gptctl_home))
    assert cloud.key not in said and cloud.key.encode() not in written
    tokens = [
        json.loads(line)["instance"]["jupyter_token"]
        for line in (cloud.state / "books.jsonl").open()
        if late in line and '"launched"' in line
    ]
    assert tokens and all(token not in said and token.encode() not in written for token in tokens)


def test_the_watcher_tells_what_it_ended_although_no_ledger_knows_it(
    cloud: RehearsalCloud, gptctl: Gptctl, gptctl_home: Path
) -> None:
    gptctl_home.mkdir(exist_ok=True)
    with Receiver() as receiver:
        (gptctl_home / "config.toml").write_text(f'[notify]\nurls = ["{receiver.url}/hook"]\n')
        late = rent(cloud, "late", LATE_S)
        assert gptctl("orphans", "--reap").returncode == 0
        (told,) = [got.json() for got in receiver.received]
        assert told["title"] == "gptctl: late reaped" and late in told["message"] and "$15.92/h" in told["message"]


def test_a_deadline_that_is_moved_while_it_will_not_end_is_respected() -> None:
    now = 1_800_000_000.0
    late = Instance("sim", "i-1", "8xH100", rental_id="r", name="gptctl-r-until-5", price_per_hour_usd=1.0)
    moved = replace(late, name=f"gptctl-r-until-{int(now) + 900}")

    @dataclass
    class Stubborn(StandingMachine):
        """Refuses the first order; by the next list somebody has moved the deadline."""

        orders: int = 0

        def machines(self) -> list[Instance]:
            return [moved if self.orders else late]

        def release(self, instance: Instance) -> None:
            self.orders += 1
            raise ProviderError("not now")

    host = HostSpec(name="sim", provider="lambda", machine="8xH100")
    provider = Stubborn("sim", host, machine_type("8xH100"))
    sight = look([Account("sim", provider, (host,))], {"r": KnownRental(now)}, lambda: now)
    ticks = iter(range(0, 1000, 50))
    (outcome,) = reap(sight, due(sight, sight), clock=lambda: next(ticks), sleep=lambda _: None)
    assert (outcome.gone, provider.orders) == (False, 1) and "moved" in outcome.problem
    provider.orders = 0
    ticks = iter(range(0, 1000, 50))
    (outcome,) = reap(sight, due(sight, sight), by_id=True, clock=lambda: next(ticks), sleep=lambda _: None)
    assert not outcome.gone and provider.orders > 1
