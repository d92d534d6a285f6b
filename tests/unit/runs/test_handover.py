"""A run has one driver: whatever is given, taken, repeated, delayed or lost on the way, one ledger drives it, and what
is older never replaces what is newer."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator import pipeline
from orchestrator.cli.driver import work
from orchestrator.cli.driver.driver import split
from orchestrator.cli.driver.on_the_driver import GO, package
from orchestrator.core.errors import RunLocked, UserError
from orchestrator.core.events import Event
from orchestrator.core.facts.rental_facts import Node
from orchestrator.core.facts.run_facts import QueueFacts, RunFacts
from orchestrator.core.ports import Address
from orchestrator.core.states import Outcome, State
from orchestrator.ledger import Ledger, Rental, RunRecord, sweeps
from orchestrator.ledger.records import Attempt
from orchestrator.ledger.run_lock import TAKEN_BACK, RunLock
from orchestrator.ledger.sweeps import Sweep
from orchestrator.remote.shell.local_shell import LocalShell
from orchestrator.runs import handover
from orchestrator.runs.handover import Package, accept, give, reclaim
from orchestrator.runs.new_run import RunRequest, new_run
from orchestrator.runs.stop import stop_run
from orchestrator.wiring import open_context
from tests.unit.runs.test_sweep_taken import HOST, MACHINE, RECIPE, make_plan

RUN = "tiny-1130-aaaaaa"


@contextmanager
def home(folder: Path) -> Iterator[Ledger]:
    with Ledger.open(folder, time.time) as ledger:
        yield ledger


def fill(ledger: Ledger, run_id: str = RUN, group: str | None = None) -> None:
    """A run that trains, with something in every table."""
    address = Address("127.0.0.9", 22, "me", str(ledger.home / "keys" / "login_ed25519"), "i-1")
    ledger.add_rental(Rental(f"m-{run_id}", "lambda", "box", "1xH100", 1.0, "i-1", 3.0, address=address))
    queue = QueueFacts(group, "base") if group else None
    host = {"name": "box", "provider": "lambda", "machine": "1xH100", "ssh_key": None}
    labels = {"arm": run_id, "seed": "1"} if group else {}
    ledger.add_run(
        RunRecord(
            run_id,
            "tiny",
            "box",
            "1xH100",
            1.0,
            rental_id=f"m-{run_id}",
            labels=labels,
            host_data=host,
            facts=RunFacts(queue=queue),
        )
    )
    ledger.close_stage(ledger.open_stage(run_id, f"m-{run_id}", "acquire", 3.0))
    ledger.tell(run_id, Event("warning", 2.0, "acquire", "something"))
    ledger.set_state(run_id, State.TRAINING)


def through(package: Package) -> Package:
    """As it travels."""
    return Package.from_json(json.loads(json.dumps(package.to_json())))


def drives(ledger: Ledger) -> bool:
    return any(run.id == RUN and run.facts.driven_by is None for run in ledger.runs())


def test_all_rows_of_a_run_arrive_and_come_back(tmp_path: Path) -> None:
    with home(tmp_path / "laptop") as laptop, home(tmp_path / "pi") as pi:
        fill(laptop)
        fill(pi, "other-1130-bbbbbb")
        assert accept(pi, through(give(laptop, [RUN], to="pi", patience_s=1)), patience_s=1)
        here, there = laptop.run(RUN), pi.run(RUN)
        assert (here.facts.driven_by, there.facts.driven_by) == ("pi", None)
        assert replace(there, facts=RunFacts()) == replace(here, facts=RunFacts())
        assert pi.events(RUN) == laptop.events(RUN) and pi.rental(f"m-{RUN}").instance_id == "i-1"
        assert pi.intervals(RUN)[0].stage == "acquire" and len(pi.events("other-1130-bbbbbb")) == 2
        pi.set_state(RUN, State.ENDED, outcome=Outcome.FINISHED)
        assert accept(laptop, through(give(pi, [RUN], to="laptop", patience_s=1)), patience_s=1)
        assert laptop.run(RUN).outcome is Outcome.FINISHED and not drives(pi) and drives(laptop)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
@given(moves=st.lists(st.sampled_from(["give", "take", "again", "old"]), max_size=8))
def test_there_are_never_two_drivers(moves: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("homes")
    with home(folder / "laptop") as laptop, home(folder / "pi") as pi:
        fill(laptop)
        sent: list[tuple[Ledger, Package]] = []
        for move in moves:
            try:
                if move in ("give", "take"):
                    giver, taker, name = (laptop, pi, "pi") if move == "give" else (pi, laptop, "laptop")
                    if not any(run.id == RUN for run in giver.runs()):
                        continue
                    sent.append((taker, give(giver, [RUN], to=name, patience_s=0)))
                    accept(*sent[-1], patience_s=0)
                elif sent:
                    taker, package = sent[-1] if move == "again" else sent[0]
                    accept(taker, through(package), patience_s=0)
            except UserError:
                pass
            assert drives(laptop) + drives(pi) == 1, moves


def test_what_was_lost_on_the_way_is_given_again_and_a_handover_that_is_late_changes_nothing(tmp_path: Path) -> None:
    with home(tmp_path / "laptop") as laptop, home(tmp_path / "pi") as pi:
        fill(laptop)
        lost = give(laptop, [RUN], to="pi", patience_s=1)
        again = give(laptop, [RUN], to="pi", patience_s=1)
        assert lost.token == again.token and accept(pi, again, patience_s=1)
        pi.update_run(RUN, step=77)
        assert not accept(pi, lost, patience_s=1) and pi.run(RUN).step == 77
        with pytest.raises(UserError, match="driven by pi already"):
            give(laptop, [RUN], to="other", patience_s=1)
        accept(laptop, give(pi, [RUN], to="laptop", patience_s=1), patience_s=1)
        with pytest.raises(UserError, match="handed over since"):
            accept(laptop, lost, patience_s=1)


def test_another_than_the_driver_is_refused_whatever_it_tries(tmp_path: Path) -> None:
    with home(tmp_path / "laptop") as laptop:
        fill(laptop)
        give(laptop, [RUN], to="pi", patience_s=1)
        tries: list[Callable[[], int]] = [
            lambda: pipeline.drive(laptop.home, RUN, lambda event: None),
            lambda: stop_run(laptop.home, RUN, lambda event: None),
        ]
        for attempt in tries:
            with pytest.raises(RunLocked, match="driven by pi") as refused:
                attempt()
            assert f"gptctl driver take {RUN} pi" in refused.value.hint and "--lost" in refused.value.hint


def test_a_group_of_which_each_side_drives_a_part_is_not_sent_over_what_is_newer(tmp_path: Path) -> None:
    with home(tmp_path / "laptop") as laptop, home(tmp_path / "pi") as pi:
        fill(laptop)
        accept(pi, give(laptop, [RUN], to="pi", patience_s=1), patience_s=1)
        beside = replace(laptop.run(RUN), id="beside-1130-b", facts=RunFacts(), created_at=2.0)
        laptop.add_run(beside)
        with pytest.raises(UserError, match="change hands together") as refused:
            give(laptop, [beside.id], to="pi", patience_s=1)
        assert f"gptctl driver take {RUN} pi, then gptctl driver give {RUN} pi" in refused.value.hint
        pi.update_run(RUN, step=500)
        assert accept(laptop, give(pi, [RUN], to=TAKEN_BACK, patience_s=1), patience_s=1)
        assert accept(pi, give(laptop, [RUN], to="pi", patience_s=1), patience_s=1)
        assert pi.run(RUN).step == 500 and pi.run(beside.id).facts.driven_by is None


def test_a_driver_that_never_comes_back_is_not_asked(tmp_path: Path) -> None:
    with home(tmp_path / "laptop") as laptop, home(tmp_path / "pi") as pi:
        fill(laptop)
        accept(pi, give(laptop, [RUN], to="pi", patience_s=1), patience_s=1)
        with pytest.raises(UserError, match="driven by pi already"):
            reclaim(laptop, [RUN], lost="another", patience_s=1)
        assert reclaim(laptop, [RUN], lost="pi", patience_s=1) == (RUN,)
        assert drives(laptop) and work.next_words(laptop, RUN) == ("resume", RUN)
        with pytest.raises(UserError, match="driven from here"):
            reclaim(laptop, [RUN], lost="pi", patience_s=1)
        pi.update_run(RUN, step=77)
        late = give(pi, [RUN], to=TAKEN_BACK, patience_s=1)
        assert handover.is_older(laptop, late) and work.next_words(pi, RUN) == ()
        with pytest.raises(UserError, match="handed over since"):
            accept(laptop, late, patience_s=1)
        assert accept(pi, give(laptop, [RUN], to="pi", patience_s=1), patience_s=1) and pi.run(RUN).step == 0


def test_a_lost_driver_that_is_back_learns_of_it_from_the_machine(tmp_path: Path) -> None:
    def reach(ledger: Ledger) -> None:
        context = open_context(ledger.home, ledger, run.id, lambda event: None)
        context.provider = Mock(paid=False)
        context.connect = lambda address: LocalShell(Address())
        assert context.shell.run(["true"]).code == 0 and context.shell is context.shell

    with home(tmp_path / "laptop") as laptop, home(tmp_path / "pi") as pi:
        plan = make_plan(RECIPE, HOST, MACHINE, None, now=time.time())
        run = new_run(laptop, RunRequest(RECIPE, HOST, MACHINE, plan), time.time())
        laptop.update_rental(str(run.rental_id), folder=str(tmp_path / "machine"))
        reach(laptop)
        assert not (tmp_path / "machine").exists(), "it never changed its driver"
        accept(pi, through(give(laptop, [run.id], to="pi", patience_s=1)), patience_s=1)
        reach(pi)
        reclaim(laptop, [run.id], lost="pi", patience_s=1)
        reach(pi)  # nothing was said to the machine yet
        reach(laptop)
        for _ in range(2):
            with pytest.raises(RunLocked, match="driven by"):
                reach(pi)
        assert work.next_words(pi, run.id) == () and work.next_words(laptop, run.id) == ("resume", run.id)
        reach(laptop)
        late = give(pi, [run.id], to=TAKEN_BACK, patience_s=1)
        assert handover.is_older(laptop, late)


def test_a_run_that_is_driven_at_this_moment_is_not_given(tmp_path: Path) -> None:
    with home(tmp_path / "laptop") as laptop:
        fill(laptop)
        left: list[int] = []
        with RunLock.acquire(laptop.home, RUN), pytest.raises(RunLocked):
            handover._lock(laptop.home, RUN, until=0.0, kill=lambda pid, number: left.append(pid))
        assert len(left) == 1 and drives(laptop)
        assert give(laptop, [RUN], to="pi", patience_s=1).runs == (RUN,)


def test_rentals_of_earlier_attempts_go_along(tmp_path: Path) -> None:
    with home(tmp_path / "laptop") as laptop, home(tmp_path / "pi") as pi:
        fill(laptop)
        laptop.add_rental(Rental("m-first", "lambda", "box", "1xH100", 0.5))
        laptop.add_attempt(Attempt(RUN, 1, "m-first", 0.5))
        accept(pi, give(laptop, [RUN], to="pi", patience_s=1), patience_s=1)
        assert {rental.id for rental in pi.rentals()} == {"m-first", f"m-{RUN}"}
        assert pi.attempts(RUN) == laptop.attempts(RUN)


def test_a_sweep_goes_as_a_whole(tmp_path: Path) -> None:
    with home(tmp_path / "laptop") as laptop, home(tmp_path / "pi") as pi:
        for name in ("one-1130-a", "two-1130-b"):
            fill(laptop, name, group="s-1")
        fill(laptop)
        sweeps.add(laptop.rows, Sweep("s-1", "small", "box", 1.0), [], [])
        given_ = give(laptop, handover.runs_meant(laptop, "small")[:1], to="pi", patience_s=1)
        assert given_.runs == ("one-1130-a", "two-1130-b")
        accept(pi, given_, patience_s=1)
        assert sweeps.find(pi.rows, "small").id == "s-1" and drives(laptop)
        assert work.next_words(pi, "one-1130-a") == ("sweep", "resume", "s-1")
        assert work.next_words(laptop, "one-1130-a") == () and work.next_words(laptop, RUN) == ("resume", RUN)


@pytest.mark.parametrize("first_ended", [True, False])
def test_every_run_of_a_machine_is_driven_to_its_end_by_one_process(
    tmp_path: Path, first_ended: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = f"{'same-thirty-characters-of-name'}-one", f"{'same-thirty-characters-of-name'}-two"
    with home(tmp_path / "laptop") as laptop, home(tmp_path / "pi") as pi:
        fill(laptop, first)
        laptop.add_run(replace(laptop.run(first), id=second, state=State.TRAINING, created_at=2.0))
        if first_ended:
            laptop.set_state(first, State.ENDED, outcome=Outcome.FINISHED)
        given_ = give(laptop, [second], to="pi", patience_s=1)
        accept(pi, given_, patience_s=1)
        fill(pi, "alone-1130-c")
        followed: list[str] = []

        def drive(argv: list[str], *, check: bool) -> subprocess.CompletedProcess[bytes]:
            followed.append(argv[-1])
            assert work.stay(second, pause=pytest.fail) == 0, "a second process of the same runs leaves at once"
            pi.set_state(argv[-1], State.ENDED, outcome=Outcome.FINISHED)
            return subprocess.CompletedProcess(argv, 0)

        monkeypatch.setattr(subprocess, "run", drive)
        monkeypatch.setattr(work, "open_ledger", lambda: home(pi.home))
        work.stay(given_.runs[0], pause=lambda seconds: None)
        assert followed == ([second] if first_ended else [first, second])
        assert work.next_words(pi, "alone-1130-c") == ("resume", "alone-1130-c")


def test_the_login_key_goes_along_and_replaces_none(tmp_path: Path) -> None:
    with home(tmp_path / "laptop") as laptop, home(tmp_path / "pi") as pi:
        fill(laptop)
        for ledger, text in ((laptop, "theirs"), (pi, "own")):
            (ledger.home / "keys").mkdir()
            (ledger.home / "keys" / "login_ed25519").write_text(text)
            (ledger.home / "keys" / "login_ed25519.pub").write_text(f"{text}.pub")
            (ledger.home / "known_hosts").write_text(f"{text} line\n")
        accept(pi, through(give(laptop, [RUN], to="pi", patience_s=1)), patience_s=1)
        key = Path(str(pi.rental(f"m-{RUN}").address.key_file))
        assert key.parent == pi.home / "keys" and key.read_text() == "theirs" and key.stat().st_mode & 0o77 == 0
        assert (
            pi.run(RUN).host_data["ssh_key"] == str(key)
            and key.with_name(f"{key.name}.pub").read_text() == "theirs.pub"
        )
        assert (pi.home / "keys" / "login_ed25519").read_text() == "own"
        assert (pi.home / "known_hosts").read_text() == "own line\ntheirs line\n"
        accept(laptop, through(give(pi, [RUN], to="laptop", patience_s=1)), patience_s=1)
        assert Path(str(laptop.rental(f"m-{RUN}").address.key_file)).read_text() == "theirs"


def test_a_disk_that_is_full_costs_no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with home(tmp_path / "laptop") as laptop, home(tmp_path / "pi") as pi:
        fill(laptop)
        key, hosts = laptop.home / "keys" / "login_ed25519", laptop.home / "known_hosts"
        key.parent.mkdir()
        key.write_text("theirs")
        key.with_name("login_ed25519.bak").write_text("not a key of a machine")
        hosts.write_text("one line\n")
        accept(pi, through(give(laptop, [RUN], to="pi", patience_s=1)), patience_s=1)
        (pi.home / "known_hosts").write_text("one line\nanother\n")
        back = through(give(pi, [RUN], to="laptop", patience_s=1))
        before = key.stat().st_ino
        monkeypatch.setattr("os.replace", Mock(side_effect=OSError(28, "No space left on device")))
        with pytest.raises(UserError, match="no space left"):
            accept(laptop, back, patience_s=1)
        assert (key.stat().st_ino, key.read_text(), hosts.read_text()) == (before, "theirs", "one line\n")


def test_every_node_is_reached_by_the_key_that_is_here(tmp_path: Path) -> None:
    with home(tmp_path / "laptop") as laptop, home(tmp_path / "pi") as pi:
        fill(laptop)
        (laptop.home / "keys").mkdir()
        (laptop.home / "keys" / "login_ed25519").write_text("theirs")
        head = laptop.rental(f"m-{RUN}").address
        laptop.update_rental(f"m-{RUN}", facts={"more": (Node("i-2", replace(head, host="127.0.0.10")),)})
        accept(pi, through(give(laptop, [RUN], to="pi", patience_s=1)), patience_s=1)
        rental = pi.rental(f"m-{RUN}")
        assert rental.facts.more[0].address.key_file == rental.address.key_file
        assert Path(str(rental.address.key_file)).parent == pi.home / "keys"


def test_a_driver_whose_question_never_comes_ends() -> None:
    done = subprocess.run(
        [sys.executable, "-c", GO], stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False
    )
    assert done.returncode == 1 and b"never came" in done.stderr


@pytest.mark.parametrize("name", ["keys/../../x", "/etc/passwd", "config.toml", "keys/login_ed25519-zzz"])
def test_a_handover_writes_no_other_file(tmp_path: Path, name: str) -> None:
    with home(tmp_path / "laptop") as laptop, home(tmp_path / "pi") as pi:
        fill(laptop)
        given_ = give(laptop, [RUN], to="pi", patience_s=1)
        with pytest.raises(UserError, match="unexpected file"):
            accept(pi, replace(given_, files={name: "x"}), patience_s=1)
        assert pi.runs() == []


def test_rows_of_another_version_are_refused(tmp_path: Path) -> None:
    with home(tmp_path / "laptop") as laptop, home(tmp_path / "pi") as pi:
        fill(laptop)
        given_ = give(laptop, [RUN], to="pi", patience_s=1)
        with pytest.raises(UserError, match="version 1"):
            accept(pi, replace(given_, rows={**given_.rows, "version": [{"version": 1}]}), patience_s=1)


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["status"], (None, ["status"])),
        (["status", "--driver", "pi", "--json"], ("pi", ["status", "--json"])),
        (["--driver=pi", "logs", "-f"], ("pi", ["logs", "-f"])),
        (["check", "pi", "--driver"], (None, ["check", "pi", "--driver"])),
        (["check", "pi", "--driver", "--json"], (None, ["check", "pi", "--driver", "--json"])),
        (["ssh", "pi", "--", "x", "--driver", "pi"], (None, ["ssh", "pi", "--", "x", "--driver", "pi"])),
        (["run", "tiny", "--driver", "pi"], (None, ["run", "tiny", "--driver", "pi"])),
        (["sweep", "run", "f", "--driver", "pi"], (None, ["sweep", "run", "f", "--driver", "pi"])),
        (["sweep", "status", "--driver", "pi"], ("pi", ["sweep", "status"])),
    ],
)
def test_the_driver_is_named_anywhere(words: list[str], found: tuple[str | None, list[str]]) -> None:
    assert split(words) == found


def test_the_package_is_the_same_every_time_and_has_all_it_reads() -> None:
    assert package() == package()
    assert b"orchestrator/ledger/schema.sql" in package() and b"recipes/quickstart.toml" in package()
