"""The live page: who may read and act, what hostile pages get, and what Chromium shows of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from orchestrator.cli.ui.actions import Actions
from orchestrator.cli.ui.page_contents import PageContents
from orchestrator.cli.ui.server import ASSETS, application
from orchestrator.cli.ui.ui import listen
from orchestrator.core.errors import UserError
from orchestrator.core.facts.run_facts import QueueFacts, RunFacts
from orchestrator.core.states import Outcome, State
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.records import Rental, RunRecord
from orchestrator.ledger.sweeps import Sweep, SweepTerms
from orchestrator.ledger.sweeps import add as add_sweep
from tests.support.clock.waiting import until
from tests.support.files.browser import Browser

TOKEN = "t0ken"
US = "http://127.0.0.1"
HERE = {"Authorization": f"Bearer {TOKEN}"}
FROM_PAGE = {**HERE, "Origin": US, "Content-Type": "application/json"}
NAME = "<img src=x onerror=alert(1)>"


def fill(home: Path, runs: int) -> None:
    with Ledger.open(home, time.time) as ledger:
        for number in range(runs):
            ledger.add_run(RunRecord(f"run-{number}", "quickstart", "local", "2xCPU", float(number), name=NAME))
            ledger.set_state(f"run-{number}", State.ENDED, outcome=Outcome.FINISHED)
        rental = Rental("own", "local", "local", "2xCPU", time.time())
        ledger.add_rental(rental)
        ledger.add_run(RunRecord("live", "quickstart", "local", "2xCPU", time.time(), rental_id="own", total_steps=80))
    write_step(home, 1)


def write_step(home: Path, step: int) -> None:
    (mirror := home / "runs" / "live").mkdir(parents=True, exist_ok=True)
    with (mirror / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": step, "loss": 5.0 - step / 100, "tokens": step, "time": step}) + "\n")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    fill(tmp_path, 3)
    return tmp_path


def client(home: Path, *, acts: bool) -> TestClient:
    sight = PageContents(home)
    sight.refresh()
    return TestClient(application(sight, Actions(home) if acts else None, TOKEN, ("127.0.0.1",)), base_url=US)


@pytest.mark.parametrize("path", ["/api/state", "/api/find", "/api/runs/live", "/api/runs/live/stop", "/api/stream"])
@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": TOKEN + "x"}])
def test_nothing_is_read_without_the_token(home: Path, path: str, headers: dict[str, str]) -> None:
    answer = client(home, acts=True).get(path, headers=headers)
    assert answer.status_code == 401 and "gptctl ui printed" in answer.json()["error"]


@pytest.mark.parametrize("path", ["/", "/api/state", "/assets/page.js"])
def test_a_name_that_was_bound_again_to_this_computer_is_refused(home: Path, path: str) -> None:
    assert client(home, acts=True).get(path, headers={**HERE, "Host": "evil.example"}).status_code == 400


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Content-Type": "application/json", "Origin": US}, 401),  # a form of another page cannot send the token
        ({**HERE, "Content-Type": "application/json"}, 403),  # no origin
        ({**FROM_PAGE, "Origin": "http://evil.example"}, 403),
        ({**FROM_PAGE, "Origin": "null"}, 403),
        ({**FROM_PAGE, "Content-Type": "text/plain"}, 403),
        (FROM_PAGE, 409),  # the question was not agreed to
    ],
)
def test_no_request_acts_but_the_page_s_own(home: Path, headers: dict[str, str], status: int) -> None:
    page = client(home, acts=True)
    answer = page.post("/api/runs/live/stop", headers=headers, content=json.dumps({"agreed_to": "yes"}))
    assert answer.status_code == status
    assert page.get("/api/state", headers=HERE).json()["actions"] == []


def test_a_page_that_only_looks_refuses_to_act_and_says_how(home: Path) -> None:
    page = client(home, acts=False)
    assert page.get("/api/state", headers=HERE).json()["may_act"] is False
    question = "Stop live on local? It keeps a checkpoint."
    answer = page.post("/api/runs/live/stop", headers=FROM_PAGE, content=json.dumps({"agreed_to": question}))
    assert answer.status_code == 403 and "--allow-actions" in answer.json()["error"]


def test_an_action_runs_the_command_after_its_question(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[list[str]] = []

    class Process(subprocess.Popen[bytes]):
        def __init__(self, argv: list[str], **how: object) -> None:
            ran.append(argv)
            super().__init__([sys.executable, "-c", "print('done')"], stdout=how["stdout"])  # type: ignore[call-overload]

    monkeypatch.setattr("orchestrator.cli.ui.actions.subprocess.Popen", Process)
    page = client(home, acts=True)
    question = page.get("/api/runs/live/release", headers=HERE).json()["question"]
    assert question.startswith("Release local (2xCPU, $0.00/h") and question.endswith("Run live ends.")
    answer = page.post("/api/runs/live/release", headers=FROM_PAGE, content=json.dumps({"agreed_to": question}))
    assert answer.status_code == 202 and ran[0][2:] == ["orchestrator", "release", "live", "--yes"]


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"x" * 20_000, json.dumps({"agreed_to": [1]}).encode()])
def test_a_body_that_is_not_an_answer_starts_nothing(home: Path, content: bytes) -> None:
    page = client(home, acts=True)
    assert page.post("/api/runs/live/stop", headers=FROM_PAGE, content=content).status_code in (403, 409)


@pytest.mark.parametrize(
    "path", ["/assets/../server.py", "/assets/%2e%2e%2fserver.py", "/assets/ui.js", "/api/runs/../x"]
)
def test_no_other_file_is_served(home: Path, path: str) -> None:
    assert client(home, acts=False).get(path, headers=HERE).status_code in (401, 404, 409)


def test_every_answer_allows_the_page_s_own_files_alone(home: Path) -> None:
    page = client(home, acts=False)
    for path in ("/", *(f"/assets/{name}" for name in ASSETS), "/api/state"):
        policy = page.get(path, headers=HERE).headers["content-security-policy"]
        assert "default-src 'none'" in policy and "script-src 'self';" in policy and "frame-ancestors 'none'" in policy


def test_a_run_has_its_curves_and_what_is_safe(home: Path) -> None:
    found = client(home, acts=False).get("/api/runs/live", headers=HERE).json()
    assert found["charts"][0]["key"] == "loss" and found["charts"][0]["xs"] == [1]
    assert found["checkpoints"] == [] and found["title"] == "live"


def test_only_what_changed_has_a_new_number(home: Path) -> None:
    sight = PageContents(home)
    sight.refresh()
    first = sight.number
    sight.refresh()
    assert sight.number == first
    with Ledger.open(home, time.time) as ledger:
        ledger.update_run("live", step=10)
    sight.refresh()
    assert sight.number == first + 1


def test_a_port_that_is_taken_is_named_and_the_default_moves_on() -> None:
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"port {port}"):
            listen("127.0.0.1", port)
    with listen("127.0.0.1", None) as first, listen("127.0.0.1", None) as second:
        assert second.getsockname()[1] > first.getsockname()[1]


@contextmanager
def serving(home: Path) -> Iterator[str]:
    """`gptctl ui` as a process of its own; its address."""
    argv = [sys.executable, "-m", "orchestrator", "ui", "--port", "0", "--allow-actions"]
    environment = {**os.environ, "GPTCTL_HOME": str(home)}
    process = subprocess.Popen(argv, env=environment, stdout=subprocess.PIPE, text=True, cwd=home)
    assert process.stdout is not None
    yield process.stdout.readline().strip()
    process.terminate()
    process.wait()


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    fill(tmp_path, 1000)
    with serving(tmp_path) as found:
        yield found


def wait_for(browser: Browser, expression: str) -> None:
    assert until(lambda: browser.evaluate(expression), 60), f"never: {expression}"


def test_chromium_shows_runs_names_as_text_and_changes_as_they_come(address: str, tmp_path: Path) -> None:
    with Browser() as browser:
        for width, dark in ((1280, False), (390, True)):
            shown = browser.open("about:blank")
            shown = browser.open(address, width=width, dark=dark)
            wait_for(browser, "document.querySelectorAll('#runs > li').length === 9")
            assert browser.evaluate("document.documentElement.scrollWidth") <= width
            assert browser.evaluate("document.querySelector('#hidden').textContent").startswith("970 older runs")
            assert browser.evaluate("document.querySelectorAll('#runs img').length") == 0
            assert NAME in browser.evaluate("document.querySelector('#runs').textContent")
            if browser.evaluate("document.querySelector('#run').hidden"):
                browser.evaluate("document.querySelector('[data-run=live]').focus()")
                browser.evaluate("document.activeElement.click()")
            wait_for(browser, "document.querySelectorAll('#run .u-wrap').length >= 1")
            write_step(tmp_path, width)
            wait_for(browser, f"document.querySelector('#run').textContent.includes('Loss') && {width} > 0 && "
                  "document.querySelectorAll('#run [role=img]').length >= 1")  # fmt: skip
            buttons = "[...document.querySelectorAll('#runs > li > button')]"
            labelled = f"{buttons}.every(each => each.ariaLabel && each.ariaExpanded)"
            assert browser.evaluate(labelled)
            assert shown.complaints == []
            ours = (address.partition("#")[0], "data:", "about:")
            assert all(url.startswith(ours) for url in shown.requests)


def fill_sweep(home: Path) -> None:
    """A sweep of three arms: the baseline, one far below it, one that waits."""
    terms = SweepTerms(baseline="base", ceiling_usd=50.0)
    with Ledger.open(home, time.time) as ledger:
        add_sweep(ledger.rows, Sweep("sw-1", "interventions", "local", time.time(), terms), [], [])
        for arm, values in (("base", (5.0, 4.0, 3.5)), (NAME, (4.0, 3.0, 2.5)), ("later", ())):
            facts, labels = RunFacts(queue=QueueFacts(group="sw-1", arm=arm)), {"arm": arm, "seed": "42"}
            run = RunRecord(
                f"sw-{len(arm)}", "quickstart", "local", "2xCPU", time.time(), facts=facts, labels=labels,
                total_steps=300,
            )  # fmt: skip
            ledger.add_run(run)
            (mirror := home / "runs" / run.id).mkdir(parents=True)
            lines = [{"event": "validated", "step": 100 * at, "val_loss": value} for at, value in enumerate(values, 1)]
            (mirror / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_a_sweep_is_panels_against_the_baseline_s_band(tmp_path: Path) -> None:
    fill(tmp_path, 1)
    fill_sweep(tmp_path)
    with serving(tmp_path) as address, Browser() as browser:
        for width, dark in ((1280, False), (390, True)):
            browser.open("about:blank")
            shown = browser.open(address, width=width, dark=dark)
            wait_for(browser, "document.querySelectorAll('.panel').length === 3")
            labels = browser.evaluate("[...document.querySelectorAll('.panel svg')].map(each => each.ariaLabel)")
            assert labels[0].endswith("validation loss 3.5000 at step 300; the baseline")
            assert labels[1].startswith(NAME) and "-1.0000, better than the baseline, beyond its band" in labels[1]
            assert "not measured yet" in labels[2]
            assert browser.evaluate("document.querySelectorAll('.panel .band').length") == 3
            assert browser.evaluate("document.documentElement.scrollWidth") <= width
            assert shown.complaints == []


SLEEPS = """
const clock = Date.now, every = setInterval;
Object.assign(window, {hiddenNow: false, aheadMs: 0});
Object.defineProperty(document, "hidden", {get: () => hiddenNow});
Date.now = () => clock() + aheadMs;
window.setInterval = (call, ms) => every(call, Math.min(ms, 200));
"""
"""A tab whose visibility and clock a test sets; what the page does every five seconds it does at once."""


def test_a_tab_that_was_hidden_or_asleep_joins_again_and_shows_the_newest(tmp_path: Path) -> None:
    def train_to(step: int) -> None:
        with Ledger.open(tmp_path, time.time) as ledger:
            ledger.update_run("live", step=step)

    def label(step: int) -> str:
        return f"document.querySelector('[data-run=live]').ariaLabel.includes('step {step} of 80')"

    def joins() -> int:
        assert browser.evaluate("1") == 1  # what happened meanwhile is read with the answer
        return sum("/api/stream" in url for url in shown.requests)

    fill(tmp_path, 1)
    link = "document.querySelector('#link').textContent"
    seen = "document.dispatchEvent(new Event('visibilitychange'))"
    with serving(tmp_path) as address, Browser() as browser:
        browser.before_each(SLEEPS)
        shown = browser.open(address)
        wait_for(browser, f"{link} === 'live' && document.querySelectorAll('#runs > li').length === 2")
        browser.evaluate(f"hiddenNow = true, {seen}, aheadMs = 61_000")
        wait_for(browser, f"{link} === 'paused while hidden'")
        train_to(42)
        browser.evaluate(f"hiddenNow = false, aheadMs = 3_600_000, {seen}")
        wait_for(browser, f"{label(42)} && {link} === 'live'")
        before = joins()
        train_to(57)
        browser.evaluate("aheadMs += 3_600_000")  # a laptop that slept, its tab in front: the connection is dead
        assert until(lambda: joins() > before, 60)
        wait_for(browser, f"{label(57)} && {link} === 'live'")
        assert shown.complaints == []
