"""A store that calls: the two ends of its line, joined by a socket. What is sent, what goes on at which byte, what is
refused."""

from __future__ import annotations

import hashlib
import io
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orchestrator.agent.checkpoints import home_box_store, object_requests
from orchestrator.agent.checkpoints.folder_service import FolderService
from orchestrator.agent.checkpoints.home_box_store import HomeStore
from orchestrator.agent.checkpoints.object_requests import Missing, StoreTrouble

PLACE = "step-000010/model.safetensors"


class Home:
    """A box with a folder, and as many calls as it is told to make."""

    def __init__(self, folder: Path, owner: str) -> None:
        self.folder, self.owner = folder, owner
        self.services: list[FolderService] = []
        self.lines: list[socket.socket] = []

    def call(self) -> None:
        line = socket.socket(socket.AF_UNIX)
        line.connect(home_box_store.address(self.owner))
        service = FolderService(str(self.folder), line.makefile("rb"), line.makefile("wb"))
        self.lines.append(line)
        self.services.append(service)
        threading.Thread(target=self._serve, args=(service, line), daemon=True).start()

    def _serve(self, service: FolderService, line: socket.socket) -> None:
        service.serve()
        line.shutdown(socket.SHUT_RDWR)
        line.close()


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "kept", str(tmp_path))


@pytest.fixture
def store(home: Home) -> Iterator[HomeStore]:
    store = HomeStore(home.owner)
    yield store
    Path(home_box_store.address(home.owner)).unlink()


def a_file(tmp_path: Path, content: bytes) -> tuple[str, int, str]:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    return str(path), len(content), hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("content", [b"", b"x", b"weights " * 500_000])
def test_what_is_put_lies_there_and_comes_back(home: Home, store: HomeStore, tmp_path: Path, content: bytes) -> None:
    home.call()
    sent = store.put(PLACE, *a_file(tmp_path, content))
    assert store.look(PLACE) == sent == object_requests.of_bytes(content)
    assert (home.folder / PLACE).read_bytes() == content
    assert store.put_bytes("metrics.jsonl", content) == store.look("metrics.jsonl")
    store.remove([PLACE, PLACE])
    assert not (home.folder / PLACE).parent.exists()
    with pytest.raises(Missing):
        store.look(PLACE)


@pytest.mark.parametrize("have", [0, 1, 700_000, 1_000_000])
def test_it_goes_on_at_the_byte_an_earlier_try_reached(home: Home, store: HomeStore, tmp_path: Path, have: int) -> None:
    path, size, sha256 = a_file(tmp_path, bytes(range(250)) * 4000)
    part = home.folder / PLACE
    part = part.with_name(f".part-{sha256[:16]}-{part.name}")
    part.parent.mkdir(parents=True)
    part.write_bytes(Path(path).read_bytes()[:have])
    home.call()
    ticks: list[int] = []
    store.put(PLACE, path, size, sha256, ticks.append)
    assert ticks[0] == have and sum(ticks[1:]) == size - have
    assert (home.folder / PLACE).read_bytes() == Path(path).read_bytes() and not part.exists()


def test_what_an_earlier_try_left_damaged_is_seen_and_sent_anew(home: Home, store: HomeStore, tmp_path: Path) -> None:
    path, size, sha256 = a_file(tmp_path, b"w" * 1_000_000)
    part = home.folder / PLACE
    part = part.with_name(f".part-{sha256[:16]}-{part.name}")
    part.parent.mkdir(parents=True)
    part.write_bytes(b"v" * 500_000)
    home.call()
    sent = store.put(PLACE, path, size, sha256)
    assert store.look(PLACE) != sent
    store.put(PLACE, path, size, sha256)
    assert store.look(PLACE) == sent


def test_a_file_that_is_damaged_here_is_not_sent(home: Home, store: HomeStore, tmp_path: Path) -> None:
    home.call()
    path, size, _ = a_file(tmp_path, b"w" * 1000)
    assert store.put(PLACE, path, size, "0" * 64).sha256 != "0" * 64
    assert not (home.folder / PLACE).exists()


def test_a_broken_line_is_waited_for_once_and_a_new_one_goes_on(
    home: Home, store: HomeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(home_box_store, "CALLED_WITHIN_S", 0.0)
    with pytest.raises(StoreTrouble, match="does not call"):
        store.put_bytes("probe", b"1")
    monkeypatch.setattr(home_box_store, "CALLED_WITHIN_S", 20.0)
    home.call()
    store.put_bytes("probe", b"1")
    home.lines[0].shutdown(socket.SHUT_RDWR)
    threading.Timer(0.2, home.call).start()
    with pytest.raises(StoreTrouble, match="broke"):
        store.put_bytes("probe", b"2")
    assert store.put_bytes("probe", b"2") == store.look("probe")


def test_the_newest_call_counts(home: Home, store: HomeStore) -> None:
    home.call()
    store.put_bytes("probe", b"1")
    home.call()
    until_second(lambda: store.put_bytes("probe", b"2"), home)
    assert home.services[1].requests > 0


def until_second(act: Callable[[], object], home: Home) -> None:
    while home.services[1].requests == 0:
        try:
            act()
        except StoreTrouble:  # it was on the old line when that was taken away
            continue


@pytest.mark.parametrize("place", ["../out", "a/../../out", "a/b/c", ".hidden", "a/.hidden", "", "a b"])
def test_no_name_leads_out_of_the_folder(home: Home, store: HomeStore, tmp_path: Path, place: str) -> None:
    home.call()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(StoreTrouble, match=r"not a valid place|broke|Bad request"):
        store.put_bytes(place, b"x")
    assert [path for path in sorted(tmp_path.rglob("*")) if path not in before] == []


def test_at_the_end_what_never_became_whole_goes(home: Home, store: HomeStore, tmp_path: Path) -> None:
    home.call()
    store.put_bytes(PLACE, b"whole")
    (home.folder / "step-000010" / ".part-0123456789abcdef-x").write_bytes(b"half")
    store._ask("POST", "end")
    assert [path.name for path in home.folder.rglob("*") if path.is_file()] == ["model.safetensors"]
    assert home.services[0].ended


@pytest.mark.parametrize("verb", ["POST", "PUT"])
def test_what_does_not_fit_is_refused_before_its_first_byte(tmp_path: Path, verb: str) -> None:
    head = f"X-Sha256: {'a' * 64}\r\nX-Size-Bytes: {10**15 - 1}\r\nX-Offset: 0\r\nContent-Length: 5\r\n"
    said = io.BytesIO()
    FolderService(str(tmp_path), io.BytesIO(f"{verb} /{PLACE} HTTP/1.1\r\n{head}\r\nhello".encode()), said).serve()
    assert said.getvalue().startswith(b"HTTP/1.1 507 ") and b"are to come" in said.getvalue()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
