"""The HTTP client against servers that misbehave, each a real socket."""

from __future__ import annotations

import email.utils
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from orchestrator.core.errors import BadCredentials, NoAnswer, UserError
from orchestrator.remote.web.json_api import Answer, WebApi
from orchestrator.remote.web.request_pace import Pace
from tests.support.clock.waiting import PATIENCE

KEY = "canary_key_0123456789"
Talk = Callable[[socket.socket], None]


class Server:
    """Answers each connection as told, one after the other; the last way for all that follow."""

    def __init__(self, *talks: Talk) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.received: list[bytes] = []
        self._talks = talks
        threading.Thread(target=self._serve, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.listener.getsockname()[1]}"

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(60)
                self.received.append(_request(connection))
                talk = self._talks[min(len(self.received), len(self._talks)) - 1]
                try:
                    talk(connection)
                except OSError:
                    continue  # the client has hung up, which is what some of these tests are about


def _request(connection: socket.socket) -> bytes:
    """Head and body, however they arrive."""
    received = b""
    while b"\r\n\r\n" not in received or (b"content-length" in received.lower() and not received.endswith(b"}")):
        received += connection.recv(65536)
    return received


def reply(body: bytes, status: str = "200 OK", *headers: str) -> Talk:
    head = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close", *headers]
    return lambda connection: connection.sendall("\r\n".join(head).encode() + b"\r\n\r\n" + body)


def drip(connection: socket.socket) -> None:
    """One byte of a header at a time, each well within any timeout of a single read."""
    connection.sendall(b"HTTP/1.1 200 OK\r\nX: ")
    for _ in range(1200):
        connection.sendall(b"x")
        time.sleep(0.05)


def endless(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
    for _ in range(1000):
        connection.sendall(b" " * (1 << 20))


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Callable[..., tuple[WebApi, Server]]]:
    with ExitStack() as stack:

        def make(*talks: Talk) -> tuple[WebApi, Server]:
            server = Server(*talks)
            stack.callback(server.listener.close)
            return WebApi("Cloud", server.url + "/api", KEY, Pace(tmp_path / "pace.json")), server

        yield make


Api = Callable[..., tuple[WebApi, Server]]


def test_one_request_one_answer(api: Api) -> None:
    client, server = api(reply(b'{"data": [1]}'))
    answer = client.once("POST", "/things", body={"a": 1}, query={"page": "x y"})
    assert (answer.status, answer.body) == (200, {"data": [1]})
    (request,) = server.received
    assert request.startswith((b"POST /api/things?page=x%20y HTTP/1.1", b"POST /api/things?page=x+y HTTP/1.1"))
    assert f"authorization: bearer {KEY}".encode() in request.lower()
    assert request.endswith(b'{"a":1}')


@pytest.mark.parametrize(
    ("talk", "words"),
    [
        (reply(b'{"data": [1'), "Expecting"),
        (reply(b'{"data": NaN}'), "NaN is not JSON"),
        (reply(b"[" * 200_000), "recursion"),
        (reply(b"\xff\xff"), "decode"),
        (endless, "more than 16 MiB"),
        (lambda connection: None, "no answer"),
        (lambda connection: connection.sendall(b"SSH-2.0-OpenSSH\r\n"), "no answer"),
        (lambda connection: connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{"), "no answer"),
        (reply(b"", "302 Found", "Location: http://127.0.0.2:9/stolen"), "redirects to 127.0.0.2"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_no_answer(api: Api, talk: Talk, words: str) -> None:
    client, server = api(talk)
    with pytest.raises(NoAnswer, match=words) as caught:
        client.once("POST", "/launch", body={})
    assert caught.value.sent
    assert len(server.received) == 1
    assert KEY not in f"{caught.value!r}{caught.value.hint}"


@pytest.mark.parametrize("talk", [drip, lambda connection: time.sleep(60)])
def test_the_deadline_is_for_everything(api: Api, talk: Talk) -> None:
    client, _ = api(talk)
    started = time.monotonic()
    with pytest.raises(NoAnswer, match="nothing within") as caught:
        client.once("GET", "/slow", deadline_s=0.4)
    assert time.monotonic() - started < PATIENCE * 4
    assert caught.value.sent


def test_a_redirect_gets_nothing_to_the_other_host(api: Api) -> None:
    _, thief = api(reply(b"{}"))
    client, _ = api(reply(b"", "307 Temporary Redirect", f"Location: {thief.url}/stolen"))
    with pytest.raises(NoAnswer):
        client.until("GET", "/list", lambda answer: answer.body, deadline_s=0.8)
    assert thief.received == []


def test_errors_are_answers_whoever_wrote_them(api: Api) -> None:
    client, _ = api(reply(b'{"error": {"code": "x"}}', "400 Bad Request"), reply(b"<html>", "502 Bad Gateway"))
    assert client.once("GET", "/a").body == {"error": {"code": "x"}}
    assert client.once("GET", "/a") == Answer(502, None)


def test_it_asks_again_until_there_is_an_answer(api: Api) -> None:
    client, server = api(reply(b"", "500 Oh"), reply(b"{", "200 OK"), reply(b'{"n": 3}'))
    assert client.until("GET", "/list", lambda answer: answer.body["n"]) == 3
    assert len(server.received) == 3


def test_a_reader_that_cannot_make_sense_of_it_gets_another(api: Api) -> None:
    client, server = api(reply(b'{"n": "three"}'), reply(b'{"n": 3}'))

    def read(answer: Answer) -> int:
        if not isinstance(answer.body["n"], int):
            raise NoAnswer("no number")
        return int(answer.body["n"])

    assert client.until("GET", "/list", read) == 3
    assert len(server.received) == 2


def test_it_waits_as_long_as_it_is_told_to(api: Api) -> None:
    client, server = api(reply(b"", "429 Too Many", "Retry-After: 1"), reply(b"{}"))
    started = time.monotonic()
    assert client.until("GET", "/list", lambda answer: answer.status) == 200
    assert time.monotonic() - started >= 1
    assert len(server.received) == 2


def test_it_does_not_wait_beyond_its_deadline(api: Api) -> None:
    client, server = api(reply(b"", "429 Too Many", "Retry-After: 3600"))
    with pytest.raises(NoAnswer, match="status 429"):
        client.until("GET", "/list", lambda answer: answer.status, deadline_s=30)
    assert len(server.received) == 1


def test_retry_after_may_be_a_date(api: Api) -> None:
    client, _ = api(
        reply(b"", "429 Too Many", "Retry-After: " + email.utils.formatdate(time.time() + 100, usegmt=True)),
        reply(b"", "429 Too Many", "Retry-After: soon"),
    )
    assert 90 < client.once("GET", "/").retry_after_s <= 100
    assert client.once("GET", "/").retry_after_s == 0


def test_nothing_was_sent_where_nobody_listens(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    client = WebApi("Cloud", f"http://127.0.0.1:{port}", KEY, Pace(tmp_path / "pace.json"))
    with pytest.raises(NoAnswer) as caught:
        client.once("POST", "/launch")
    assert not caught.value.sent


def test_the_key_leaves_this_computer_encrypted_or_not_at_all(tmp_path: Path) -> None:
    pace = Pace(tmp_path / "pace.json")
    for url in ("http://cloud.example", "ftp://127.0.0.1", "http://127.0.0.1.example.com", "http://128.0.0.1"):
        with pytest.raises(UserError, match="unencrypted"):
            WebApi("Cloud", url, KEY, pace)
    for url in ("http://127.0.0.9:1", "http://[::1]:1", "http://localhost", "https://cloud.example"):
        assert WebApi("Cloud", url, KEY, pace).url == url


@pytest.mark.parametrize("key", ["two words", "line\nX-Evil: 1", "schlüssel", ""])
def test_a_key_that_could_not_be_one_is_not_shown(tmp_path: Path, key: str) -> None:
    with pytest.raises(BadCredentials) as caught:
        WebApi("Cloud", "https://cloud.example", key, Pace(tmp_path / "pace.json"))
    assert not key or key not in str(caught.value)


def test_texts_are_one_line_without_the_key(api: Api) -> None:
    client, _ = api(reply(b"{}"))
    text = client.redacted(f"bad key {KEY}\r\n\x1b[31mred" + "x" * 1000)
    assert text.startswith("bad key [key] [31mred")
    assert len(text) == 300
    assert KEY not in repr(client)


def test_a_proxy_has_no_part_in_talks_with_this_computer(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    _, proxy = api(reply(b"{}"))
    monkeypatch.setenv("HTTP_PROXY", proxy.url)
    monkeypatch.setenv("ALL_PROXY", proxy.url)
    client, server = api(reply(b"{}"))
    assert client.once("GET", "/").status == 200
    assert (len(server.received), proxy.received) == (1, [])


WAITING = """
import signal, sys
from pathlib import Path
from orchestrator.remote.web.request_pace import Pace
from orchestrator.remote.web.json_api import WebApi
signal.signal(signal.SIGTERM, signal.default_int_handler)
try:
    WebApi("Cloud", sys.argv[1], "key", Pace(Path(sys.argv[2]))).once("GET", "/slow", deadline_s=60)
except KeyboardInterrupt:
    print("left")
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_waiting(api: Api, tmp_path: Path, number: signal.Signals) -> None:
    asked = threading.Event()

    def hang(connection: socket.socket) -> None:
        asked.set()
        connection.recv(1)

    _, server = api(hang)
    command = [sys.executable, "-c", WAITING, server.url, str(tmp_path / "turns.json")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert asked.wait(120)
        process.send_signal(number)
        assert process.communicate(timeout=120)[0] == "left\n"
