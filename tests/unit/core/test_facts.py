"""What a run and a rental know, as the ledgers of earlier versions stored it, and as this one does."""

from __future__ import annotations

import dataclasses
import json
import sqlite3
import time
import typing
from pathlib import Path
from typing import Any

import pytest

from orchestrator.core.checkpoints.file_entry import FileEntry
from orchestrator.core.checkpoints.store_state import StoreState
from orchestrator.core.config.recipe import load_recipe
from orchestrator.core.estimate import Estimate
from orchestrator.core.facts.rental_facts import GivenBack, RentalFactChanges, RentalFacts
from orchestrator.core.facts.run_facts import (
    CutFile,
    DataOnMachine,
    Prepared,
    ResumeFrom,
    RunFactChanges,
    RunFacts,
    Software,
    StagedFacts,
    StoreUrls,
    Synced,
)
from orchestrator.core.fleet.guard_state import GuardState
from orchestrator.core.machines import machine_type
from orchestrator.core.money.billing import MachineLife, SettledBill
from orchestrator.core.planning.planner import make_plan
from orchestrator.core.ports import Address
from orchestrator.core.typed_json import WrongJson, decode
from orchestrator.ledger import Ledger, Rental, RunRecord

PLAN = make_plan(load_recipe("quickstart"), None, machine_type("2xCPU"), None, now=0.0)

OLD_OPTIONS: dict[str, Any] = {
    "made_by": "gptctl 0.1.0", "accept_new_host_key": True, "wait": False, "abandon": None,
    "resume_from": "s3://b/run/step-000010", "resume_step": 10,
    "resume_files": {"model.safetensors": {"size_bytes": 7, "sha256": "ab"}},
    "home_boxes": [{"name": "nas", "agent_folder": "~/.gptctl", "address": {
        "host": "nas", "port": 22, "user": None, "key_file": None, "identity": "[nas]:22", "fingerprint": None}}],
    "alternatives": [PLAN.to_json()],
    "python": "/env/bin/python", "torch": "2.9.1", "boot_id": None, "driver": "580.1", "cpus": 16, "gpus": ["GPU-1"],
    "software": {"image": None, "os": "Ubuntu 24.04", "kernel": "6.8", "driver": "580.1", "python": "3.12.3",
                 "torch": "2.9.1"},
    "source": "/home/u/.gptctl/src/0123", "resume_from_there": "/home/u/.gptctl/runs/r/resume/step-000010",
    "data": {"train_files": ["/d/train.bin"], "validation_files": [], "window": [0, 2560],
             "validation_start_token": 5, "validation_tokens": 640},
    "dataset": {"train_tokens": 10_000, "validation_tokens": None, "digest": "0f"},
    "data_listed": [{"name": "train.bin", "size_bytes": 20_000, "sha256": None, "uri": "hf://a/b", "version": "c0"}],
    "data_cut": {"id": {"path": "/here", "size_bytes": 5120, "sha256": "cd"}},
    "staged": {"source": "hf://a/b", "needed_bytes": 5122, "pulled_bytes": 5122, "verified_by": "first seen"},
    "store": {"uri": "s3://b/r", "state": "waiting", "problem": None, "safe_step": 10},
    "store_urls": {"made_at": 5.0, "lasts_s": 518400.0},
}  # fmt: skip
"""A run that trains, as version 0.1.0 stored it."""

OLD_DATA: dict[str, Any] = {
    "host_key": "SHA256:x", "rekeyed": "i-1", "region": "us-east-1", "reached": 12.0,
    "booting_at": 10.0, "active_at": 11.0,
    "guard": {"kind": "key-on-box", "armed": True, "ends_at": 99.0, "acts_at": 50.0, "leased_until": 40.0,
              "problem": None, "holding": 0},
    "given_back": [{"instance_id": "i-0", "booting_at": 1.0, "gone_at": 4.0}],
}  # fmt: skip


@pytest.fixture
def old_home(tmp_path: Path) -> Path:
    """A ledger with one training run, its row written by SQL as the version before did."""
    with Ledger.open(tmp_path, time.time) as ledger:
        ledger.add_rental(Rental("m-1", "lambda", "cloud", "8xH100", 1.0, "i-1", 31.92))
        ledger.add_run(RunRecord("r-1", "quickstart", "cloud", "8xH100", 1.0, rental_id="m-1"))
    with sqlite3.connect(tmp_path / "ledger.db") as connection:
        address = {"host": "10.0.0.1", "port": 22, "user": "ubuntu", "key_file": None, "identity": "i-1",
                   "fingerprint": "SHA256:x"}  # fmt: skip
        connection.execute("UPDATE runs SET state = 'training', options = ?", (json.dumps(OLD_OPTIONS),))
        connection.execute("UPDATE rentals SET address = ?, data = ?", (json.dumps(address), json.dumps(OLD_DATA)))
    connection.close()
    return tmp_path


def stored(home: Path, column: str, table: str) -> dict[str, Any]:
    with sqlite3.connect(home / "ledger.db") as connection:
        found = json.loads(connection.execute(f"SELECT {column} FROM {table}").fetchone()[0])
    connection.close()
    return dict(found)


def test_a_running_machine_of_the_version_before_is_known(old_home: Path) -> None:
    with Ledger.open(old_home, time.time) as ledger:
        run, rental = ledger.run("r-1").facts, ledger.rental("m-1")
    assert run.prepared == Prepared("/env/bin/python", "2.9.1", None, "580.1", 16, ("GPU-1",))
    data = DataOnMachine(("/d/train.bin",), (), 5, 640, (0, 2560))
    assert run.synced == Synced("/home/u/.gptctl/src/0123", data, "/home/u/.gptctl/runs/r/resume/step-000010")
    files = {"model.safetensors": FileEntry(7, "ab")}
    assert run.resume_from == ResumeFrom("s3://b/run/step-000010", 10, files)
    assert [box.address for box in run.home_boxes] == [Address("nas", 22, identity="[nas]:22")]
    assert run.alternatives == (PLAN,) and run.alternatives[0].digest == PLAN.digest
    assert (run.accept_new_host_key, run.wait, run.abandon) == (True, False, False)
    assert run.software == Software(None, "Ubuntu 24.04", "6.8", "580.1", "3.12.3", "2.9.1")
    assert run.data_cut == {"id": CutFile("/here", 5120, "cd")} and run.data_listed[0].version == "c0"
    assert run.staged == StagedFacts("hf://a/b", 5122, 5122, "first seen")
    assert run.store == StoreState("s3://b/r", "waiting", None, 10) and run.store_urls == StoreUrls(5.0, 518400.0)
    assert rental.address == Address("10.0.0.1", 22, "ubuntu", None, "i-1", "SHA256:x")
    assert rental.facts == RentalFacts(
        region="us-east-1", host_key="SHA256:x", rekeyed="i-1", reached=12.0,
        life=MachineLife(booting_at=10.0, active_at=11.0),
        guard=GuardState("key-on-box", True, 99.0, 50.0, 40.0, None, 0),
        given_back=(GivenBack("i-0", MachineLife(booting_at=1.0, gone_at=4.0)),),
    )  # fmt: skip


def holds(value: object, old: object) -> bool:
    """Whether the value says all that the old one said; keys that a later version adds may be null."""
    if isinstance(old, dict) and isinstance(value, dict):
        added = [each for key, each in value.items() if key not in old]
        return added.count(None) == len(added) and all(holds(value.get(key), each) for key, each in old.items())
    if isinstance(old, list) and isinstance(value, list):
        return len(value) == len(old) and all(map(holds, value, old))
    return value == old


def test_what_is_written_again_has_the_same_keys(old_home: Path) -> None:
    with Ledger.open(old_home, time.time) as ledger:
        run, rental = ledger.run("r-1").facts, ledger.rental("m-1").facts
    for value, before in ((run.to_json(), OLD_OPTIONS), (rental.to_json(), OLD_DATA)):
        for key, old in before.items():
            if key in ("abandon", "boot_id", "alternatives", "given_back", "dataset"):
                continue
            assert holds(json.loads(json.dumps(value[key])), old), key
    assert RunFacts.from_json(run.to_json()) == run and RentalFacts.from_json(rental.to_json()) == rental


def test_a_change_leaves_what_others_wrote_and_keys_of_a_later_version(old_home: Path) -> None:
    with sqlite3.connect(old_home / "ledger.db") as connection:
        connection.execute("UPDATE runs SET options = ?", (json.dumps({**OLD_OPTIONS, "from_later": [1]}),))
    connection.close()
    with Ledger.open(old_home, time.time) as ours, Ledger.open(old_home, time.time) as theirs:
        ours.run("r-1")
        theirs.update_run("r-1", facts={"store_urls": StoreUrls(6.0, 1.0)})
        ours.update_run("r-1", step=7, facts={"abandon": True})
        ours.update_rental("m-1", facts={"life": MachineLife(gone_at=3.0), "bill": SettledBill(Estimate(2.5))})
        found = theirs.run("r-1")
        assert (found.step, found.facts.abandon, found.facts.store_urls) == (7, True, StoreUrls(6.0, 1.0))
        assert found.facts.prepared is not None
        with pytest.raises(TypeError):
            ours.update_run("r-1", facts={"no_such_fact": 1})  # type: ignore[typeddict-unknown-key]
    assert stored(old_home, "options", "runs")["from_later"] == [1]
    rental = stored(old_home, "data", "rentals")
    assert "active_at" not in rental and rental["gone_at"] == 3.0 and rental["bill"]["cost_usd"] == 2.5


@pytest.mark.parametrize("key", [*OLD_OPTIONS])
@pytest.mark.parametrize("wrong", [17.5, "x", [], {}, [None], {"a": 1}, None, True])
def test_a_wrong_type_counts_as_unknown(key: str, wrong: object) -> None:
    facts = RunFacts.from_json({**OLD_OPTIONS, key: wrong})
    assert RunFacts.from_json(facts.to_json()) == facts


@pytest.mark.parametrize("key", [*OLD_DATA])
@pytest.mark.parametrize("wrong", [17.5, "x", [], {}, [None], {"a": 1}, None, True])
def test_a_wrong_type_counts_as_unknown_for_a_rental_too(key: str, wrong: object) -> None:
    facts = RentalFacts.from_json({**OLD_DATA, key: wrong})
    assert RentalFacts.from_json(facts.to_json()) == facts


def test_strict_decoding_names_the_key() -> None:
    with pytest.raises(WrongJson, match='safe_step: "x" is not a whole number'):
        decode(StoreState, {"uri": "s3://b", "safe_step": "x"})
    with pytest.raises(WrongJson, match="uri is missing"):
        decode(StoreState, {})
    with pytest.raises(WrongJson, match="not an object"):
        decode(StoreState, [])
    assert decode(StoreState, {"uri": "s3://b", "later": 1}) == StoreState("s3://b")


@pytest.mark.parametrize(("kind", "changes"), [(RunFacts, RunFactChanges), (RentalFacts, RentalFactChanges)])
def test_the_keywords_are_the_fields(kind: type, changes: type) -> None:
    hints = typing.get_type_hints(kind)
    assert typing.get_type_hints(changes) == {item.name: hints[item.name] for item in dataclasses.fields(kind)}
