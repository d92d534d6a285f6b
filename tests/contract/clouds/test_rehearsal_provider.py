"""Provider `rehearsal`: the cloud starts when something is bought, never to say a price, and is found again."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.core.config.inventory import HostSpec
from orchestrator.core.errors import NoCapacity, UserError
from orchestrator.core.machines import machine_type
from orchestrator.core.ports import LaunchRequest, Provider
from orchestrator.providers.rehearsal import provider as rehearsal
from tests.support.clock.waiting import until


@pytest.fixture
def provider(gptctl_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Provider]:
    monkeypatch.setenv("LAMBDA_API_KEY", "canary-key-of-the-real-account")
    host = HostSpec(name="practice", provider="rehearsal", machine="8xA100-40GB", guard="watcher")
    yield rehearsal.provider(host, machine_type("8xA100-40GB"))
    rehearsal.stop()


def request(provider: Provider) -> LaunchRequest:
    offer = provider.offers()[0]
    return LaunchRequest("8xa100-1120-abcdef", str(uuid.uuid4()), offer, ends_at=2e9)


def test_prices_and_machines_are_told_without_a_cloud(provider: Provider, gptctl_home: Path) -> None:
    (offer,) = provider.offers()
    assert (offer.provider, offer.machine, offer.price_per_hour_usd) == ("rehearsal", "8xA100-40GB", 15.92)
    assert offer.source.startswith("simulated")
    assert provider.machines() == []
    assert rehearsal.running() is None
    assert not gptctl_home.exists()


def test_buying_starts_it_and_a_later_command_finds_it(provider: Provider, gptctl_home: Path) -> None:
    bought = provider.acquire(request(provider))
    entry = rehearsal.running()
    assert entry is not None
    assert (bought.provider, bought.machine, bought.status) == ("rehearsal", "8xA100-40GB", "booting")
    assert rehearsal.start().pid == entry.pid
    assert all("simulated" in offer.source for offer in provider.offers())
    provider.set_deadline(bought, 1_900_000_000)
    (seen,) = provider.machines()
    assert (seen.instance_id, seen.ends_at) == (bought.instance_id, 1_900_000_000)
    environment = Path(f"/proc/{entry.pid}/environ").read_bytes()
    assert b"canary" not in environment
    provider.release(seen)
    until(lambda: list(provider.machines()) == [])
    assert provider.ended_at(bought) is not None


def test_a_machine_that_was_left_is_found_when_the_cloud_is_off(provider: Provider) -> None:
    bought = provider.acquire(request(provider))
    rehearsal.stop(destroy=False)
    assert rehearsal.running() is None
    assert [one.instance_id for one in provider.machines()] == [bought.instance_id]
    rehearsal.stop()
    assert provider.machines() == []
    assert rehearsal.running() is None


def test_faults_reach_a_cloud_that_runs(provider: Provider) -> None:
    rehearsal.start()
    rehearsal.start("no-capacity")
    with pytest.raises(NoCapacity):
        provider.acquire(request(provider))
    with pytest.raises(UserError, match="unknown fault"):
        rehearsal.start("no-such-fault")


def test_another_state_folder_outlives_the_home_folder(
    provider: Provider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPTCTL_REHEARSAL", str(tmp_path / "elsewhere"))
    bought = provider.acquire(request(provider))
    monkeypatch.setenv("GPTCTL_HOME", str(tmp_path / "new-home"))
    assert [one.instance_id for one in provider.machines()] == [bought.instance_id]
    assert (tmp_path / "elsewhere" / "books.jsonl").exists()
