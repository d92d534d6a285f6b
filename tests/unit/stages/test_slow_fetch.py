"""A fetch that is too slow says once what the rest costs."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.core.events import Event
from orchestrator.remote.transfer_progress import Transfer
from orchestrator.stages.checkpoints.slow_fetch import Watch
from tests.support.machines.lying_account import LyingAccount, rented

WHOLE = 4_000_000_000


def warnings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rates: list[float], *, paid: bool = True, store: str | None = None
) -> list[str]:
    said: list[Event] = []
    account = LyingAccount(paid=paid)
    with rented(tmp_path, account, monkeypatch) as known:
        host = known.host.model_copy(update={"checkpoint_store": store})
        context = replace(known, listener=said.append, host=host)
        context.ledger.update_rental(context.rental.id, price_per_hour_usd=15.92)
        listen = Watch(context, WHOLE).beside(lambda _: None)
        for number, rate in enumerate(rates):
            account.sleep(15.0)
            listen(Transfer(number * 100_000_000, WHOLE, rate, None, "model.safetensors"))
    return [event.text for event in said if event.kind == "warning"]


def test_it_is_said_once_with_what_it_costs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (text,) = warnings(tmp_path, monkeypatch, [4e5, 4e5, 4e5, 4e5])
    assert "bringing the other 3.90 GB here at 0.4 MB/s takes 2h 42m and costs $43.12" in text
    assert re.search(r"Ctrl-C, then gptctl resume quickstart-\S+ --store s3://BUCKET/PREFIX", text)
    assert "fetch_store in [hosts.cloud]" in text


@pytest.mark.parametrize(
    ("rates", "paid"), [([4e5], True), ([4e7, 4e7, 4e7], True), ([0.0, 0.0, 0.0], True), ([4e5, 4e5, 4e5], False)]
)
def test_the_first_seconds_a_good_line_a_silent_one_and_an_own_machine_say_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rates: list[float], paid: bool
) -> None:
    assert warnings(tmp_path, monkeypatch, rates, paid=paid) == []


def test_what_a_store_did_not_take_names_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (text,) = warnings(tmp_path, monkeypatch, [4e5, 4e5, 4e5], store="s3://bucket/models")
    assert "--store" not in text
