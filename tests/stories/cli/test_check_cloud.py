"""`gptctl check` of a host that is rented: what its account says, what is unproven, and whether anybody watches."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Gptctl
from tests.support.clouds.rehearsal_cloud import RehearsalCloud

Check = Callable[..., tuple[int, dict[str, dict[str, Any]]]]


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[RehearsalCloud]:
    with RehearsalCloud(tmp_path / "cloud") as running:
        yield running


@pytest.fixture
def check(cloud: RehearsalCloud, gptctl: Gptctl, tmp_path: Path) -> Check:
    """Exit code and findings by name, for a lambda host with these lines in its entry."""

    def ask(*lines: str, key: str = cloud.key) -> tuple[int, dict[str, dict[str, Any]]]:
        entry = ["[hosts.lam]", 'provider = "lambda"', 'machine = "8xA100-40GB"', f'endpoint = "{cloud.entry["url"]}"']
        (tmp_path / "inventory.toml").write_text("\n".join([*entry, *lines]) + "\n")
        done = gptctl("check", "lam", "--json", env={"LAMBDA_API_KEY": key})
        assert "Traceback" not in done.stderr
        return done.returncode, {each["what"]: each for each in json.loads(done.stdout)["checks"]}

    return ask


def test_an_injected_host_key_is_said_to_be_unproven_and_the_watcher_is_looked_for(
    check: Check, cloud: RehearsalCloud, gptctl: Gptctl
) -> None:
    code, found = check('guard = "watcher"')
    assert code == 0, found
    assert found["account"]["level"] == "ok"
    assert found["host key"]["level"] == "warn" and "not proven" in found["host key"]["found"]
    assert 'host_key = "first-contact"' in found["host key"]["fix"]
    assert found["guard"]["level"] == "ok" and "watcher" in found["guard"]["found"]
    assert found["watcher"]["level"] == "warn" and "--install-timer" in found["watcher"]["fix"]
    assert gptctl("orphans", "--reap", "--yes", env={"LAMBDA_API_KEY": cloud.key}).returncode == 0
    _, found = check('guard = "watcher"', 'host_key = "first-contact"')
    assert (found["watcher"]["level"], found["host key"]["level"]) == ("ok", "ok")
    assert "alive" in found["watcher"]["found"]
    assert cloud.books()["instances"] == []


def test_no_guard_and_no_account_are_failures(check: Check) -> None:
    code, found = check()
    assert code == 4 and found["guard"]["level"] == "fail" and "watcher" in found["guard"]["fix"]
    assert "watcher" not in found
    code, found = check('guard = "key-on-box"', key="wrong")
    assert code == 4 and found["account"]["level"] == "fail" and found["guard"]["level"] == "ok"


def test_a_price_above_the_limit_is_a_failure(check: Check) -> None:
    code, found = check('guard = "watcher"', "max_price_per_hour_usd = 1.0")
    assert code == 4 and found["offer"]["level"] == "fail" and "max_price_per_hour_usd" in found["offer"]["found"]


def test_power_off_is_no_guard_where_it_ends_no_bill(check: Check) -> None:
    code, found = check('guard = "self"')
    assert code == 4 and found["guard"]["level"] == "fail" and "keeps billing" in found["guard"]["found"]


def test_a_spot_host_without_a_store_is_warned_of(gptctl: Gptctl, tmp_path: Path) -> None:
    entry = '[hosts.s]\nprovider = "rehearsal"\nmachine = "8xA100-40GB-simulated"\nguard = "self"\nspot = true\n'
    (tmp_path / "inventory.toml").write_text(entry)
    found = {each["what"]: each for each in json.loads(gptctl("check", "s", "--json").stdout)["checks"]}
    assert found["guard"]["level"] == "ok" and "powers itself off" in found["guard"]["found"]
    assert found["spot"]["level"] == "warn" and "checkpoint_store" in found["spot"]["fix"]
