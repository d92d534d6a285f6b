"""The guard on the box: a real guard process, asking a small API over loopback, ends 'its machine' when it must."""

from __future__ import annotations

import http.server
import json
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.agent.guard import api_call, api_key
from orchestrator.agent.system import lease, processes
from orchestrator.agent.system.refusal import Refusal
from tests.support.clock.waiting import until
from tests.support.files.canary import below, holders, of_processes
from tests.support.machines.agent_box import Box

CANARY = "canary-key-9f3c0d2a71b8e456"


class Api(http.server.ThreadingHTTPServer):
    """Counts what it is asked; answers `status`, or the one given for a method."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.status = {"GET": 200, "POST": 200}
        self.asked: list[tuple[str, str, str, Any]] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def count(self, method: str) -> int:
        return sum(asked[0] == method for asked in self.asked)


class Handler(http.server.BaseHTTPRequestHandler):
    server: Api

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        key = self.headers.get("Authorization") or ""
        self.server.asked.append((self.command, self.path, key, json.loads(body or b"null")))
        self.send_response(self.server.status[self.command])
        if self.server.status[self.command] in (302, 307):
            self.send_header("Location", "http://127.0.0.2:9/stolen")
        self.end_headers()
        self.wfile.write(b'{"echo": "' + key.encode() + b'"}')

    do_GET = do_POST = _answer

    def log_message(self, format: str, *args: Any) -> None:
        return None


@pytest.fixture
def api() -> Iterator[Api]:
    api = Api()
    yield api
    api.shutdown()
    api.server_close()


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    box = Box(tmp_path)
    yield box
    guard = notes(box).get("guard") or {}
    if processes.is_alive(guard):
        os.kill(guard["pid"], signal.SIGKILL)
    api_key.forget(str(box.root))
    box.end()


def notes(box: Box) -> dict[str, Any]:
    file = box.root / "guard" / "state.json"
    return dict(json.loads(file.read_text())) if file.exists() else {}


def order(api: Api, key: str = CANARY, lease_s: float = 60, deadline_s: float = 600) -> dict[str, Any]:
    return {
        "instance_id": "i-1",
        "end": {"url": f"{api.url}/terminate", "body": {"instance_ids": ["i-1"]}},
        "look_url": f"{api.url}/instances/i-1",
        "lease_s": lease_s,
        "deadline_s": deadline_s,
        "secrets": {"api_key": key},
    }


def status(box: Box) -> dict[str, Any]:
    return dict(box.call("status")["guard"])


def armed(box: Box, api: Api, **settings: Any) -> None:
    box.call("arm", **order(api, **settings))
    until(lambda: status(box)["armed"])


def test_without_an_order_there_is_no_guard(box: Box) -> None:
    assert status(box) == {"kind": "none", "armed": False, "ends_at": None}
    assert box.call("finish", within_s=1)["guard"]["kind"] == "none"
    assert box.call("renew", duration_s=5)["lease"] is None


def test_an_armed_guard_has_tried_its_key_and_says_what_is_left(box: Box, api: Api) -> None:
    armed(box, api)
    found = status(box)
    assert (found["kind"], found["problem"], found["ending"], found["holding"]) == ("key-on-box", None, False, 0)
    assert 30 < found["left_s"] <= 60 and 570 < found["deadline_left_s"] <= 600
    assert api.asked == [("GET", "/instances/i-1", f"Bearer {CANARY}", None)]


def test_at_the_end_of_the_lease_it_ends_its_own_machine_and_forgets_the_keys_file(box: Box, api: Api) -> None:
    armed(box, api, lease_s=1)
    until(lambda: api.count("POST") > 0)
    assert ("POST", "/terminate", f"Bearer {CANARY}", {"instance_ids": ["i-1"]}) in api.asked
    until(lambda: api_key.read(str(box.root)) is None)


def test_a_machine_that_lives_on_after_the_end_is_ended_again(box: Box, api: Api) -> None:
    armed(box, api, lease_s=0.5)
    until(lambda: api.count("POST") >= 3)
    assert status(box)["ending"]


def test_renewing_moves_the_end_but_never_past_the_deadline(box: Box, api: Api) -> None:
    armed(box, api, lease_s=60, deadline_s=100)
    assert 80 < box.call("renew", duration_s=500)["lease"]["left_s"] <= 100
    found = status(box)
    assert 80 < found["left_s"] <= 100 and abs(found["left_s"] - found["deadline_left_s"]) < 1
    box.call("renew", duration_s=1)
    assert status(box)["left_s"] > 80


def test_the_deadline_ends_the_machine_whatever_the_lease_says(box: Box, api: Api) -> None:
    armed(box, api, lease_s=500, deadline_s=2)
    until(lambda: api.count("POST") > 0)
    assert status(box)["deadline_left_s"] <= 0


def test_the_lease_of_a_run_keeps_the_machine(box: Box, api: Api) -> None:
    (box.root / "jobs" / "r-1").mkdir(parents=True)
    lease.renew(str(box.root / "jobs" / "r-1"), 300, None)
    armed(box, api, lease_s=0.5)
    time.sleep(2.5)
    assert api.count("POST") == 0
    assert 250 < status(box)["left_s"] < 300


def test_it_outlives_the_training_and_its_supervisor_and_ends_the_machine_when_both_are_dead(
    box: Box, api: Api
) -> None:
    box.start(steps=5000, spec_lease_s=2, spec_grace_s=0)
    box.until_steps(2)
    armed(box, api, lease_s=0.5)
    box.kill_everything()
    until(lambda: api.count("POST") > 0)
    assert box.wait()["outcome"] == "failed"


def test_a_guard_that_was_killed_is_started_again_by_the_training(box: Box, api: Api) -> None:
    armed(box, api)
    box.start(steps=5000, spec_lease_s=1)
    box.until_steps(2)
    first = notes(box)["guard"]
    os.kill(first["pid"], signal.SIGKILL)
    until(lambda: notes(box).get("guard") != first and status(box)["armed"])
    assert not processes.is_alive(first)


def test_a_killed_guard_is_not_armed_and_says_so(box: Box, api: Api) -> None:
    armed(box, api)
    os.kill(notes(box)["guard"]["pid"], signal.SIGKILL)
    until(lambda: not status(box)["armed"])
    assert "killed" in status(box)["problem"]


def test_after_a_reboot_it_is_not_armed_and_nothing_restarts_it(box: Box, api: Api) -> None:
    armed(box, api)
    os.kill(notes(box)["guard"]["pid"], signal.SIGKILL)
    file = box.root / "guard" / "order.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "boot_id": "another boot"}))
    box.start(steps=60, spec_lease_s=1)
    assert box.wait()["outcome"] == "finished"
    found = status(box)
    assert not found["armed"] and "restarted" in found["problem"]
    assert not processes.is_alive(notes(box)["guard"])


def test_a_key_that_is_refused_is_not_armed_until_a_new_one_comes(box: Box, api: Api) -> None:
    api.status["GET"] = 401
    box.call("arm", **order(api))
    until(lambda: "refused" in (status(box)["problem"] or ""))
    assert not status(box)["armed"]
    api.status["GET"] = 200
    box.call("arm", **order(api, key="another-key"))
    until(lambda: status(box)["armed"])
    assert api.asked[-1][2] == "Bearer another-key"


def test_a_key_that_is_revoked_is_tried_again_and_works_when_it_is_back(box: Box, api: Api) -> None:
    armed(box, api, lease_s=8)
    api.status["POST"] = 401
    until(lambda: api.count("POST") >= 2)
    found = status(box)
    assert not found["armed"] and found["ending"] and "401" in found["problem"]
    api.status["POST"] = 200
    until(lambda: status(box)["problem"] is None)
    assert api_key.read(str(box.root)) is None


def test_it_follows_no_redirect_with_the_key(box: Box, api: Api) -> None:
    api.status["POST"] = 307
    armed(box, api, lease_s=2)
    until(lambda: api.count("POST") >= 2)
    assert "307" in status(box)["problem"]
    assert {asked[1] for asked in api.asked} == {"/terminate", "/instances/i-1"}


def test_finish_takes_the_file_away_and_ends_the_machine_soon(box: Box, api: Api) -> None:
    armed(box, api)
    answer = box.call("finish", within_s=6)["guard"]
    assert answer["deadline_left_s"] <= 6
    assert api_key.read(str(box.root)) is None and api.count("POST") == 0
    until(lambda: api.count("POST") > 0)


def test_kept_checkpoints_that_nobody_fetched_hold_the_machine(box: Box, api: Api) -> None:
    box.start(steps=3, spec_lease_s=0.5, spec_hold_s=100)
    box.wait()
    folder = checkpoint(box, 3)
    armed(box, api, lease_s=0.5)
    time.sleep(2.5)
    assert api.count("POST") == 0 and 0 < status(box)["left_s"] <= 100
    assert status(box)["holding"] == 1
    (folder / "SAFE").touch()
    until(lambda: api.count("POST") > 0)


def test_holding_ends_after_its_hours(box: Box, api: Api) -> None:
    box.start(steps=3, spec_lease_s=0.5, spec_hold_s=3)
    box.wait()
    checkpoint(box, 3)
    armed(box, api, lease_s=0.5)
    until(lambda: api.count("POST") > 0)
    assert status(box)["holding"] == 1


def checkpoint(box: Box, step: int) -> Path:
    folder = box.root / "runs" / "r-1" / "checkpoints" / f"step-{step:06d}"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"x")
    promised = {"files": {"model.safetensors": {"size_bytes": 1, "sha256": "0" * 64}}}
    (folder / "MANIFEST.json").write_text(json.dumps(promised))
    return folder


def test_the_key_is_in_one_file_of_mode_0600_and_nowhere_else(box: Box, api: Api) -> None:
    armed(box, api, lease_s=8)
    key_file = Path(api_key.path(str(box.root)))
    assert key_file.read_text() == CANARY and key_file.stat().st_mode & 0o777 == 0o600
    until(lambda: api.count("POST") > 0)
    assert holders(CANARY, below(box.root)) == []
    assert holders(CANARY, of_processes("cmdline", "environ")) == []


def test_a_key_with_a_line_break_is_said_without_showing_it(api: Api) -> None:
    trouble = api_call.call(f"{api.url}/x", f"{CANARY}\nX: y")
    assert trouble is not None and CANARY not in trouble.text
    assert api.asked == []


@pytest.mark.parametrize("url", ["http://198.51.100.7/api", "ftp://127.0.0.1/x", "", None, "https://"])
def test_only_addresses_that_keep_the_key_secret_are_taken(url: str | None) -> None:
    with pytest.raises(Refusal, match="https"):
        api_call.checked_url(url)


@pytest.mark.parametrize(
    "change", [{"deadline_s": 0}, {"lease_s": "soon"}, {"secrets": {}}, {"end": {}}, {"look_url": 1}]
)
def test_an_order_that_cannot_be_meant_is_refused_and_leaves_nothing(
    box: Box, api: Api, change: dict[str, Any]
) -> None:
    error = box.call("arm", **{**order(api), **change})["error"]
    assert error["code"] in ("bad-request", "needs-input")
    assert not Path(api_key.path(str(box.root))).exists()
    assert re.search("guard needs", error["message"])


def test_somebody_elses_file_is_not_taken_for_the_key(tmp_path: Path) -> None:
    api_key.put(str(tmp_path), CANARY)
    file = Path(api_key.path(str(tmp_path)))
    try:
        file.chmod(0o644)
        assert api_key.read(str(tmp_path)) is None
        file.unlink()
        file.symlink_to(tmp_path / "elsewhere")
        (tmp_path / "elsewhere").write_text("theirs")
        assert api_key.read(str(tmp_path)) is None
    finally:
        api_key.forget(str(tmp_path))
