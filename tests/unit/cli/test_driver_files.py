"""What comes from a driver: never older than what is here, and no checkpoint of two trainings."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar
from unittest.mock import Mock

import pytest

from orchestrator.cli.driver import driver as it
from orchestrator.cli.driver import incoming, send
from orchestrator.core.checkpoints.file_entry import FileEntry
from orchestrator.core.config.inventory import HostSpec
from orchestrator.core.errors import VerificationFailed
from orchestrator.core.facts.run_facts import Recovery, ResumeFrom
from orchestrator.core.ports import Address
from orchestrator.core.states import Outcome, State
from orchestrator.ledger import Ledger
from orchestrator.remote.shell.local_shell import LocalShell
from orchestrator.runs.handover import accept, give, reclaim
from orchestrator.stages.checkpoints import resume_from
from orchestrator.stages.checkpoints.continue_from import whole
from tests.unit.runs.test_handover import RUN, fill, home

STEP = "checkpoints/step-000600"


class Pi:
    """A driver on this machine: the hidden commands in this process, on its own ledger."""

    host = HostSpec(driver_may_hold=("lambda",), name="pi", provider="ssh", machine="2xCPU", address="192.168.1.30")
    shell = LocalShell(Address())
    asked: ClassVar[list[str]] = []

    def __init__(self, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ledger, self.patch = ledger, monkeypatch

    @property
    def folder(self) -> str:
        return str(self.ledger.home.parent)

    def answer(self, words: Sequence[str], *, stdin: bytes = b"", deadline_s: float = 1.0) -> dict[str, Any]:
        out = io.StringIO()
        self.asked.append(words[1])
        with self.patch.context() as patch, contextlib.redirect_stdout(out):
            for module in (it, incoming):
                patch.setattr(module, "open_ledger", lambda: home(self.ledger.home))
            patch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(stdin)))
            if words[1] != "work":
                {**vars(it), **vars(incoming), "ready": lambda *places: it.ready(places), "accept": it.accept_here}[
                    words[1]
                ](*words[2:])
            else:
                print("{}")
        return dict(json.loads(out.getvalue()))


@pytest.fixture
def both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Ledger, Ledger]]:
    """A laptop and pi, which drives RUN."""
    with home(tmp_path / "laptop") as laptop, home(tmp_path / "pi" / "home") as pi:
        fill(laptop)

        @contextmanager
        def driver_on(*ignored: object, **also: object) -> Iterator[Pi]:
            yield Pi(pi, monkeypatch)

        monkeypatch.setattr(it, "driver_on", driver_on)
        monkeypatch.setattr(it, "open_ledger", lambda: home(laptop.home))
        monkeypatch.setattr(it, "host_named", lambda *ignored: Pi.host)
        monkeypatch.setattr(it, "open_home", lambda: pi.home)
        yield laptop, pi


def hand_over(laptop: Ledger, pi: Ledger) -> None:
    accept(pi, give(laptop, [RUN], to="pi", patience_s=1), patience_s=1)


def folder(ledger: Ledger) -> Path:
    found = ledger.home / "runs" / RUN
    found.mkdir(parents=True, exist_ok=True)
    return found


def checkpoint(ledger: Ledger, content: bytes, name: str = STEP) -> Path:
    made = folder(ledger) / name
    made.mkdir(parents=True)
    files = {"model.safetensors": content, "meta.json": b"{}"}
    entries = {
        each: {"size_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for each, data in files.items()
    }
    for each, data in {
        **files,
        "MANIFEST.json": json.dumps({"format": 1, "step": 600, "files": entries}).encode(),
    }.items():
        (made / each).write_bytes(data)
    return made


def take() -> None:
    it.take_from(RUN, "pi", None, accept_new=False)


def lines(ledger: Ledger, count: int) -> None:
    (folder(ledger) / "metrics.jsonl").write_text("".join(f'{{"step": {step}}}\n' for step in range(count)))


def test_a_step_that_was_trained_twice_is_one_of_the_two(both: tuple[Ledger, Ledger]) -> None:
    laptop, pi = both
    here = checkpoint(laptop, b"weights of attempt 1")
    hand_over(laptop, pi)
    there = checkpoint(pi, b"weights of attempt 2")
    (there / "optimizer.safetensors").write_bytes(b"not in the manifest")
    take()
    assert whole(here) and (here / "model.safetensors").read_bytes() == b"weights of attempt 2"
    assert (here / "optimizer.safetensors").exists() and not list((laptop.home / "incoming").iterdir())


def test_what_is_damaged_there_replaces_nothing_here(
    both: tuple[Ledger, Ledger], capsys: pytest.CaptureFixture[str]
) -> None:
    laptop, pi = both
    here = checkpoint(laptop, b"weights of attempt 1")
    hand_over(laptop, pi)
    (checkpoint(pi, b"weights of attempt 2") / "model.safetensors").write_bytes(b"weights of nothing!!")
    take()
    assert whole(here) and (here / "model.safetensors").read_bytes() == b"weights of attempt 1"
    assert "damaged on pi, left out" in capsys.readouterr().err


def test_a_checkpoint_of_which_a_part_came_is_completed(both: tuple[Ledger, Ledger]) -> None:
    laptop, pi = both
    hand_over(laptop, pi)
    there = checkpoint(pi, b"weights")
    here = folder(laptop) / STEP
    here.mkdir(parents=True)
    (here / "MANIFEST.json").write_bytes((there / "MANIFEST.json").read_bytes())
    take()
    assert whole(here)


def test_taken_twice_nothing_older_comes(both: tuple[Ledger, Ledger]) -> None:
    laptop, pi = both
    hand_over(laptop, pi)
    lines(pi, 3)
    checkpoint(pi, b"weights")
    (folder(pi) / "checkpoints" / "latest").symlink_to("step-000600")
    take()
    latest = folder(laptop) / "checkpoints" / "latest"
    assert os.readlink(latest) == "step-000600"
    # A take that was interrupted is repeated: nothing was driven here in between.
    lines(pi, 4)
    take()
    assert len((folder(laptop) / "metrics.jsonl").read_text().splitlines()) == 4
    # Driven here to its end: what is here is newer, also where it is shorter, and only what is missing comes.
    lines(laptop, 2)
    checkpoint(laptop, b"newer", "checkpoints/step-000900")
    latest.unlink()
    latest.symlink_to("step-000900")
    checkpoint(pi, b"missing here", "checkpoints/step-000300")
    (folder(pi) / "train.log").write_text("of the machine before")
    (folder(laptop) / "attempt-1").mkdir()
    (folder(laptop) / "attempt-1" / "train.log").write_text("of the machine before")
    laptop.set_state(RUN, State.ENDED, outcome=Outcome.FINISHED)
    take()
    assert len((folder(laptop) / "metrics.jsonl").read_text().splitlines()) == 2
    assert os.readlink(latest) == "step-000900" and whole(folder(laptop) / "checkpoints" / "step-000300")
    assert not (folder(laptop) / "train.log").exists()


def test_a_driver_that_comes_back_lets_go_and_gives_what_is_missing(both: tuple[Ledger, Ledger]) -> None:
    laptop, pi = both
    hand_over(laptop, pi)
    lines(laptop, 9)
    reclaim(laptop, [RUN], lost="pi", patience_s=1)
    laptop.update_run(RUN, step=9)
    lines(pi, 3)
    checkpoint(pi, b"weights")
    take()
    assert laptop.run(RUN).step == 9 and laptop.run(RUN).facts.driven_by is None
    assert pi.run(RUN).facts.driven_by is not None and whole(folder(laptop) / STEP)
    assert len((folder(laptop) / "metrics.jsonl").read_text().splitlines()) == 9


def test_a_lost_driver_is_left_only_when_you_say_so(
    both: tuple[Ledger, Ledger], capsys: pytest.CaptureFixture[str]
) -> None:
    laptop, pi = both
    hand_over(laptop, pi)
    with pytest.raises(it.UserError, match="--yes is missing") as refused:
        it.take_from_lost(RUN, "pi", yes=False)
    assert refused.value.hint == f"gptctl driver take {RUN} pi --lost --yes"
    assert laptop.run(RUN).facts.driven_by == "pi" and "cannot know" in capsys.readouterr().err
    assert it.take_from_lost(RUN, "pi", yes=True) == 0
    assert laptop.run(RUN).facts.driven_by is None


def planned(laptop: Ledger, place: Path, **facts: Any) -> None:
    """RUN begins with the checkpoint in this folder."""
    laptop.update_run(RUN, facts={"resume_from": ResumeFrom(str(place), 600, {}), **facts})
    with laptop.rows.writing() as connection:
        connection.execute("UPDATE runs SET state = 'planned' WHERE id = ?", (RUN,))


def give_it(laptop: Ledger) -> None:
    it.hand_over(laptop, [RUN], Pi.host, accept_new=False)


@pytest.mark.parametrize("below", [f"runs/old/{STEP}", "somewhere else/of mine"])
def test_the_checkpoint_that_a_run_begins_with_goes_along_and_comes_back(
    both: tuple[Ledger, Ledger], below: str
) -> None:
    laptop, pi = both
    place = laptop.home / below
    place.parent.mkdir(parents=True)
    checkpoint(laptop, b"weights").rename(place)
    planned(laptop, place)
    Pi.asked = []
    give_it(laptop)
    assert Pi.asked == ["ready", "receive", "receive", "accept", "work"], "each question starts a gptctl there"
    begun = pi.run(RUN).facts.resume_from
    assert begun is not None and Path(begun.place).is_relative_to(pi.home) and whole(Path(begun.place))
    take()
    back = laptop.run(RUN).facts.resume_from
    assert back is not None and Path(back.place).is_relative_to(laptop.home) and whole(Path(back.place))


def test_a_checkpoint_that_is_gone_keeps_the_run_here(both: tuple[Ledger, Ledger]) -> None:
    laptop, pi = both
    planned(laptop, laptop.home / "runs" / "old" / STEP)
    with pytest.raises(it.UserError, match="not here any more"):
        give_it(laptop)
    assert laptop.run(RUN).facts.driven_by is None and pi.runs() == []


def test_a_driver_without_room_keeps_the_run_here(both: tuple[Ledger, Ledger], monkeypatch: pytest.MonkeyPatch) -> None:
    laptop, _ = both
    planned(laptop, checkpoint(laptop, b"weights"))
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=3))
    with pytest.raises(it.UserError, match="pi has 3 B free"):
        give_it(laptop)
    assert laptop.run(RUN).facts.driven_by is None


def test_what_a_lost_machine_left_here_is_where_the_driver_goes_on(
    both: tuple[Ledger, Ledger], monkeypatch: pytest.MonkeyPatch
) -> None:
    laptop, pi = both
    newest = [checkpoint(laptop, b"weights")]
    monkeypatch.setattr(send, "open_context", lambda *ignored: SimpleNamespace(disconnect=lambda: None))
    monkeypatch.setattr(send.continue_from, "newest", lambda context: whole(newest[0]))
    lines(laptop, 7)
    laptop.update_run(RUN, facts={"recovery": Recovery(most=5)})

    def given(*words: object, **also: Any) -> Any:
        newest.append(checkpoint(laptop, b"of this minute", "checkpoints/step-000700"))
        newest.reverse()
        return give(*words, **also)

    monkeypatch.setattr(it, "give", given)
    give_it(laptop)
    assert whole(folder(pi) / STEP) and whole(folder(pi) / "checkpoints" / "step-000700")
    assert len((folder(pi) / "metrics.jsonl").read_text().splitlines()) == 7
    # The same command again: pi drives, and what it has is newer.
    lines(pi, 9)
    (folder(pi) / STEP / "MANIFEST.json").write_text("of pi")
    monkeypatch.setattr(it, "give", give)
    give_it(laptop)
    assert len((folder(pi) / "metrics.jsonl").read_text().splitlines()) == 9
    assert (folder(pi) / STEP / "MANIFEST.json").read_text() == "of pi"


def test_a_checkpoint_that_was_damaged_on_the_way_is_not_used(both: tuple[Ledger, Ledger], capsys: Any) -> None:
    laptop, pi = both
    planned(laptop, made := checkpoint(laptop, b"weights"))
    (made / "model.safetensors").write_bytes(b"wrong!!")
    with pytest.raises(VerificationFailed, match="not what its manifest promises"):
        give_it(laptop)
    assert laptop.run(RUN).facts.driven_by is None and not (folder(pi) / STEP).exists()


def test_what_a_driver_needs_is_asked_of_every_run_that_goes_along(both: tuple[Ledger, Ledger]) -> None:
    laptop, _ = both
    here = {**laptop.run(RUN).host_data, "provider": "local"}
    laptop.add_run(replace(laptop.run(RUN), id="beside-1130-b", host_data=here, created_at=2.0))
    with pytest.raises(it.UserError, match="beside-1130-b trains on this computer"):
        give_it(laptop)


@pytest.mark.parametrize("below", ["../x", "runs/../../x", "keys", "runs/a/checkpoints/latest"])
def test_a_giver_names_no_other_folder(below: str, both: tuple[Ledger, Ledger]) -> None:
    with pytest.raises(it.UserError, match="not a place"):
        incoming.receive(RUN, below, "0" * 64)


@pytest.mark.parametrize("files", [{}, {"model.safetensors": FileEntry(1, "x")}])
def test_a_beginning_that_is_not_here_is_a_verdict(tmp_path: Path, files: dict[str, FileEntry]) -> None:
    """An OSError would be none: the driver would try again while the machine bills."""
    context = Mock(run_id=RUN)
    with pytest.raises(it.UserError, match="not on this computer"):
        resume_from.place_checkpoint(context, ResumeFrom(str(tmp_path / "gone"), 600, files), "resume")
