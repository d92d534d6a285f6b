"""A fetch that is too slow goes to `fetch_store`: the machine stores what it keeps, and what no store takes
still comes from the machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.core.config.inventory import HostSpec
from orchestrator.core.errors import AgentError, GptctlError, LinkLost, StorageError
from orchestrator.core.events import Event
from orchestrator.remote.transfer_progress import Transfer
from orchestrator.stages import fetch
from orchestrator.stages.checkpoints import copies, late_store, store_job
from orchestrator.stages.context import RunContext
from orchestrator.wiring import open_context
from tests.support.machines.lying_account import LyingAccount, rented

STORE = "s3://bucket/late"
SIZE = 4_000_000_000
STEPS = (300, 200, 100)


class Place:
    """A fetch of three checkpoints over a line of so many bytes per second, and a store that takes what it is given."""

    def __init__(self, context: RunContext, account: LyingAccount, said: list[Event], rate: float) -> None:
        self.context, self.account, self.said, self.rate = context, account, said, rate
        self.came: list[int] = []
        self.stored: list[int] = []
        self.begun: list[str] = []
        self.refusal: GptctlError | None = None
        self.takes = frozenset(STEPS)

    def start(self, context: RunContext, *, again: bool = False) -> None:
        if self.refusal is not None:
            raise self.refusal
        self.begun.append(store_job.uri(context))

    def settle(self, context: RunContext) -> frozenset[int]:
        if not self.begun:
            return frozenset()
        self.stored = sorted(self.takes)
        return self.takes

    def pull_files(
        self, shell: object, remote: str, local: Path, files: object, listen: Callable[..., None], **_: Any
    ) -> None:
        local.mkdir(parents=True, exist_ok=True)
        for second in range(0, 40, 10):
            self.account.sleep(10.0)
            listen(Transfer(int(second * self.rate), SIZE, self.rate, None, "model.safetensors"))
        (local / "MANIFEST.json").write_text("{}")
        self.came.append(int(local.name.rpartition("-")[2]))

    def fetch(self) -> None:
        fetch._fetch(self.context)

    def words(self) -> str:
        return "; ".join(event.text for event in self.said if event.kind == "warning")

    def here(self) -> list[str]:
        return sorted(path.name for path in (self.context.mirror / "checkpoints").glob("step-*"))


@contextmanager
def slow_line(
    home: Path, monkeypatch: pytest.MonkeyPatch, *, rate: float = 4e5, store: str | None = STORE
) -> Iterator[Place]:
    said: list[Event] = []
    account = LyingAccount()
    with rented(home, account, monkeypatch) as known:
        host = known.host.model_copy(update={"fetch_store": store})
        known.ledger.update_run(known.run_id, host_data=host.resolved())
        found = [
            SimpleNamespace(
                step=step, name=f"step-{step:06}", kept=True, best=step == 300, latest=step == 300, size_bytes=SIZE,
                files={}, manifest_sha256="0",
            )
            for step in STEPS
        ]  # fmt: skip
        agent = SimpleNamespace(manifest=lambda _: found, safe=lambda *_: None, root="/x")
        shell = SimpleNamespace(close=lambda: None)
        context: Any = replace(known, host=host, listener=said.append)
        context._agent, context._shell = agent, shell
        place = Place(context, account, said, rate)
        nothing: Sequence[tuple[Any, str]] = (
            (fetch.deadline, "extend"), (fetch, "stop_training"), (fetch.others, "stop_and_note"),
            (fetch, "mirror_until_end"), (copies, "require_space"),
        )  # fmt: skip
        for where, name in nothing:
            monkeypatch.setattr(where, name, lambda *_: None)
        monkeypatch.setattr(store_job, "start", place.start)
        monkeypatch.setattr(store_job, "settle", place.settle)
        monkeypatch.setattr(copies.transfer, "pull_files", place.pull_files)
        yield place


def host_in_ledger(place: Place) -> HostSpec:
    context = open_context(place.context.home, place.context.ledger, place.context.run_id, lambda event: None)
    return context.host


def test_below_the_bound_the_machine_stores_the_rest_and_nothing_more_comes_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with slow_line(tmp_path, monkeypatch) as place:
        place.fetch()
        assert place.begun == [f"{STORE}/{place.context.run_id}"] and place.stored == [100, 200, 300]
        assert place.came == [] and place.here() == [], "what had begun to come here is removed"
        assert "costs $132.62: the machine stores its checkpoints in s3://bucket/late" in place.words()
        assert (host_in_ledger(place).checkpoint_store, host_in_ledger(place).fetch_store) == (STORE, None)
        assert any("gptctl fetch" in event.text for event in place.said)


def test_above_the_bound_it_all_comes_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with slow_line(tmp_path, monkeypatch, rate=4e7) as place:
        place.fetch()
        assert place.came == [300, 200, 100] and not place.begun and not place.words()
        assert host_in_ledger(place).checkpoint_store is None


def test_what_the_store_does_not_take_comes_from_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with slow_line(tmp_path, monkeypatch) as place:
        place.takes = frozenset({300})
        place.fetch()
        assert place.came == [200, 100] and place.here() == ["step-000100", "step-000200"]


@pytest.mark.parametrize("refusal", [AgentError("no-space", "no"), StorageError("s3://bucket answers 403")])
def test_a_store_that_cannot_begin_ends_no_fetch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusal: GptctlError
) -> None:
    with slow_line(tmp_path, monkeypatch) as place:
        place.refusal = refusal
        place.fetch()
        assert place.came == [300, 200, 100]
        assert "cannot take it" in place.words() and host_in_ledger(place).checkpoint_store is None


def test_cut_off_while_it_is_handed_over_it_is_handed_over_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with slow_line(tmp_path, monkeypatch) as place:
        place.refusal = LinkLost("the link broke")
        with pytest.raises(LinkLost):
            place.fetch()
        assert host_in_ledger(place).fetch_store == STORE and place.context.host.fetch_store == STORE
        place.refusal = None
        place.fetch()
        assert place.stored == [100, 200, 300]


def test_a_line_that_is_slow_while_it_trains_hands_over_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with slow_line(tmp_path, monkeypatch) as place:
        copies.pull_newest(place.context)
        assert place.begun and store_job.wanted(place.context) and place.came == []


def test_a_store_that_is_named_later_is_the_runs_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with slow_line(tmp_path, monkeypatch, store=None) as place:
        begun = place.context.mirror / "checkpoints" / "step-000300"
        begun.mkdir(parents=True)
        late_store.begin(place.context, STORE)
        place.fetch()
        assert place.came == [] and place.here() == [], "what an earlier fetch began is removed"
        assert place.begun == [f"{STORE}/{place.context.run_id}"]
        assert host_in_ledger(place).checkpoint_store == STORE
