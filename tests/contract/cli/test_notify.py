"""Notifications through the real library, to a real server: once each, never a secret, never the end of a run."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.core.config.settings import Notify, load_settings
from orchestrator.core.errors import UserError
from orchestrator.core.events import Event
from orchestrator.core.states import Outcome
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.records import Rental, RunRecord
from orchestrator.notify.run_events import notification_of
from orchestrator.notify.send import Message, deliver, notify, ping, send_test
from tests.conftest import Gptctl
from tests.support.clouds.receiver import Receiver
from tests.support.files.canary import below, content

CANARY = "canary-0123456789abcdef"
RUN = "tiny-1120-aaaaaa"
HELLO = Message("finished", RUN, "gptctl: done", "val loss 3.21, $13.10")


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as found:
        yield found


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger.open(tmp_path / "home", time.time) as found:
        found.add_run(RunRecord(RUN, "tiny", "local", "2xCPU", time.time()))
        yield found


def configure(ledger: Ledger, text: str) -> None:
    (ledger.home / "config.toml").write_text(text)


def kinds(ledger: Ledger) -> list[str]:
    return [event.kind for event in ledger.events(RUN)]


def everything_in(folder: Path) -> bytes:
    return b"".join(content(path) for path in below(folder))


def test_a_webhook_gets_json(receiver: Receiver) -> None:
    assert deliver(Notify(urls=(f"{receiver.url}/hook/me",)), HELLO, {}) == []
    (got,) = receiver.received
    assert (got.method, got.path) == ("POST", "/hook/me")
    assert (got.json()["title"], got.json()["message"]) == (HELLO.title, HELLO.text)


def test_ntfy_gets_its_topic(receiver: Receiver) -> None:
    assert deliver(Notify(urls=(f"ntfy://127.0.0.1:{receiver.port}/my-runs",)), HELLO, {}) == []
    (got,) = receiver.received
    assert got.json()["topic"] == "my-runs"
    assert (got.json()["title"], got.json()["message"]) == (HELLO.title, HELLO.text)


def test_a_command_gets_words_and_json_and_no_shell(tmp_path: Path) -> None:
    program = "import json, sys; open('got', 'w').write(json.dumps([sys.argv[1:], json.load(sys.stdin)]))"
    script = tmp_path / "tell.py"
    script.write_text(f"import os; os.chdir({str(tmp_path)!r})\n{program}")
    nasty = Message("failed", RUN, "$(touch owned); `id`", "{event} {title}\nsecond line")
    words = (sys.executable, str(script), "{title}", "{event}: {text}", "{other}")
    assert deliver(Notify(command=words), nasty, {}) == []
    argv, stdin = json.loads((tmp_path / "got").read_text())
    assert argv == [nasty.title, f"failed: {nasty.text}", "{other}"]
    assert stdin == {"event": "failed", "run": RUN, "title": nasty.title, "text": nasty.text}
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    ("command", "says"),
    [(("/does/not/exist",), "No such file"), ((sys.executable, "-c", "raise SystemExit(3)"), "code 3")],
)
def test_a_command_that_fails_is_a_problem(command: tuple[str, ...], says: str) -> None:
    (problem,) = deliver(Notify(command=command), HELLO, {})
    assert says in problem


def test_problems_name_no_address_and_do_not_stop_the_others(receiver: Receiver) -> None:
    environment = {"DEAD": f"json://{CANARY}@127.0.0.1:9/x", "ODD": f"nosuchkind://{CANARY}"}
    urls = ("env:DEAD", "env:ODD", "env:MISSING", f"{receiver.url}/hook")
    problems = deliver(Notify(urls=urls), HELLO, environment)
    assert [problem.partition(":")[0] for problem in problems] == ["urls, number 1", "urls, number 2", "urls, number 3"]
    assert CANARY not in " ".join(problems) and "MISSING is not set" in problems[2]
    assert len(receiver.received) == 1


def test_no_secret_of_the_environment_leaves(receiver: Receiver) -> None:
    leaky = Message("failed", RUN, "t", f"401 for key {CANARY}")
    assert deliver(Notify(urls=(f"{receiver.url}/hook",)), leaky, {"LAMBDA_API_KEY": CANARY}) == []
    assert receiver.received[0].json()["message"] == "401 for key [secret]"


def test_each_thing_is_told_once(ledger: Ledger, receiver: Receiver) -> None:
    configure(ledger, f'[notify]\nurls = ["{receiver.url}/hook"]\nevents = ["finished", "held"]')
    assert notify(ledger, RUN, "finished", "done") is True
    assert notify(ledger, RUN, "finished", "done again") is False
    assert notify(ledger, RUN, "failed", "not asked for") is False
    assert notify(ledger, RUN, "held", "waits") is True
    assert [got.json()["message"] for got in receiver.received] == ["done", "waits"]
    assert kinds(ledger) == ["notified", "notified"]


def test_another_process_knows_that_it_was_told(ledger: Ledger, receiver: Receiver) -> None:
    configure(ledger, f'[notify]\nurls = ["{receiver.url}/hook"]')
    assert notify(ledger, RUN, "finished", "done")
    with Ledger.open(ledger.home, time.time) as other:
        assert notify(other, RUN, "finished", "done") is False
    assert len(receiver.received) == 1


def test_what_was_not_delivered_is_a_warning_and_may_be_tried_again(ledger: Ledger, receiver: Receiver) -> None:
    configure(ledger, f'[notify]\nurls = ["{receiver.url}/hook"]')
    receiver.status = 500
    assert notify(ledger, RUN, "failed", "loss is NaN") is False
    assert kinds(ledger) == ["notified", "warning"]
    receiver.status = 200
    assert notify(ledger, RUN, "failed", "loss is NaN") is True
    assert notify(ledger, RUN, "failed", "loss is NaN") is False
    assert kinds(ledger) == ["notified", "warning", "notified"]


def test_a_config_that_cannot_be_read_is_a_warning(ledger: Ledger) -> None:
    configure(ledger, "[notify]\nurl = []")
    assert notify(ledger, RUN, "finished", "done") is False
    (event,) = ledger.events(RUN)
    assert event.kind == "warning" and "did you mean urls" in event.text


def test_nobody_named_costs_nothing(ledger: Ledger) -> None:
    assert notify(ledger, RUN, "finished", "done") is False
    assert kinds(ledger) == []


def test_no_address_is_written_down(ledger: Ledger, receiver: Receiver) -> None:
    environment = {"HOOK": f"json://me:{CANARY}@127.0.0.1:{receiver.port}/x", "BAD": f"tgram://{CANARY}/1"}
    configure(ledger, '[notify]\nurls = ["env:HOOK", "env:BAD"]')
    notify(ledger, RUN, "finished", "done", environment=environment)
    assert len(receiver.received) == 1 and kinds(ledger) == ["notified", "warning"]
    assert CANARY.encode() not in everything_in(ledger.home)


def test_without_the_library_it_says_what_to_install(tmp_path: Path, receiver: Receiver) -> None:
    program = f"""
import sys
sys.modules["apprise"] = None
from orchestrator.core.config.settings import Notify
from orchestrator.notify.send import Message, deliver
print(deliver(Notify(urls=("{receiver.url}/x",)), Message("failed", "r", "t", "x"), {{}}))
print(deliver(Notify(command=("true",)), Message("failed", "r", "t", "x"), {{}}))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    first, second = done.stdout.splitlines()
    assert "apprise, which is not installed" in first and second == "[]"
    assert receiver.received == []


def test_ping_is_called_and_a_dead_one_is_said(receiver: Receiver) -> None:
    ping(f"{receiver.url}/ping/me")
    assert [(got.method, got.path) for got in receiver.received] == [("GET", "/ping/me")]
    for dead in ("http://127.0.0.1:9/x", "file:///etc/passwd", "ftp://127.0.0.1/x"):
        with pytest.raises(UserError):
            ping(dead)


def test_send_test_needs_somebody(tmp_path: Path, receiver: Receiver) -> None:
    with pytest.raises(UserError, match="no address"):
        send_test(load_settings(tmp_path).notify, {})
    assert send_test(Notify(urls=(f"{receiver.url}/x",)), {}) == []
    assert "still-billing" in receiver.received[0].json()["message"]


def test_the_command_line_tries_it(gptctl: Gptctl, gptctl_home: Path, receiver: Receiver) -> None:
    gptctl_home.mkdir()
    (gptctl_home / "config.toml").write_text('[notify]\nurls = ["env:HOOK"]\n')
    environment = {"HOOK": f"json://me:{CANARY}@127.0.0.1:{receiver.port}/x"}
    done = gptctl("notify", "--test", env=environment)
    assert (done.returncode, done.stdout) == (0, "sent\n"), done.stderr
    receiver.status = 404
    refused = gptctl("notify", "--test", "-v", env=environment)
    shown = gptctl("notify", env=environment)
    assert refused.returncode == 2 and "urls, number 1" in refused.stderr
    assert shown.returncode == 0 and "env:HOOK" in shown.stdout
    assert CANARY not in done.stderr + refused.stdout + refused.stderr + shown.stdout + shown.stderr
    assert CANARY.encode() not in everything_in(gptctl_home)


RENTAL = Rental("r", "lambda", "box", "8xA100-40GB", 1.0, "i-1", 15.92)
HOME = Rental("h", "ssh", "box", "1x3090", 1.0, "box", 0.11)


@pytest.mark.parametrize(
    ("kind", "stage", "outcome", "rental", "happening", "says"),
    [
        ("stage_finished", "acquire", None, RENTAL, "capacity", "$15.92/h"),
        ("stage_finished", "acquire", None, HOME, None, ""),
        ("stage_finished", "launch", None, RENTAL, "started", "1,000 steps of tiny"),
        ("stage_finished", "launch", None, HOME, "started", "no rent"),
        ("stage_started", "fetch", "finished", RENTAL, "finished", "val loss 3.2110, $13.10 so far"),
        ("stage_started", "fetch", "failed", RENTAL, "failed", "NaN"),
        ("stage_started", "fetch", "never_started", HOME, "failed", "NaN"),
        ("stage_started", "fetch", "preempted", RENTAL, "preempted", "step 617"),
        ("stage_started", "fetch", "limit", RENTAL, "over-budget", "$13.10"),
        ("stage_started", "fetch", "stopped", RENTAL, None, ""),
        ("stage_failed", "release", "finished", RENTAL, "still-billing", "gptctl release"),
        ("stage_failed", "report", "finished", RENTAL, "still-billing", "i-1 ($15.92/h)"),
        ("stage_failed", "fetch", "finished", RENTAL, "held", "i-1 ($15.92/h) holds checkpoints that are not here"),
        ("stage_failed", "fetch", "finished", None, None, ""),
        ("stage_finished", "release", "finished", RENTAL, None, ""),
        ("stage_failed", "release", "finished", HOME, None, ""),
        ("stage_failed", "release", "finished", replace(RENTAL, state="released"), None, ""),
        ("stage_failed", "sync", None, RENTAL, None, ""),
    ],
)
def test_what_is_worth_telling(
    kind: str, stage: str, outcome: str | None, rental: Rental, happening: str | None, says: str
) -> None:
    run = RunRecord(
        RUN, "tiny", "box", "8xA100-40GB", 1.0, step=617, total_steps=1000, loss=3.3, val_loss=3.211,
        outcome=Outcome(outcome) if outcome else None, cause="NaN" if outcome else "",
    )  # fmt: skip
    notification = notification_of(Event(kind, 1.0, stage, "no answer"), run, rental, cost_usd=13.1)
    found, text = notification or (None, "")
    assert found == happening and says in text


def test_a_kept_machine_is_told_of_while_it_is_up() -> None:
    kept = RunRecord(RUN, "tiny", "box", "8xA100-40GB", 1.0, keep=True)
    notification = notification_of(Event("stage_finished", 1.0, "release"), kept, RENTAL, cost_usd=0.0)
    assert notification == ("held", f"i-1 ($15.92/h) is kept, as you asked. Next: gptctl release {RUN}")
    released = replace(RENTAL, state="released")
    assert notification_of(Event("stage_finished", 1.0, "release"), kept, released, cost_usd=0.0) is None


def test_what_reached_somebody_is_not_sent_again(ledger: Ledger, receiver: Receiver) -> None:
    configure(ledger, f'[notify]\nurls = ["{receiver.url}/hook", "json://127.0.0.1:9/dead"]')
    heard: list[Event] = []
    assert notify(ledger, RUN, "finished", "done", listener=heard.append) is True
    assert notify(ledger, RUN, "finished", "done") is False
    assert len(receiver.received) == 1
    assert kinds(ledger) == ["notified", "warning"] and [event.kind for event in heard] == ["warning"]
