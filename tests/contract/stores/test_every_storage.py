"""What every storage scheme keeps to, found by listing the folder, each against a real server of its kind."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orchestrator import storage
from orchestrator.core.errors import BadCredentials, GptctlError, StorageError, UserError
from orchestrator.core.ports import Part, Storage, StoredFile
from orchestrator.storage import hf
from tests.support.clouds.file_server import FileServer, Hub
from tests.support.clouds.s3_server import S3Server

CONTENT = {"train-00000.bin": bytes(range(256)) * 40, "train-00001.bin": b"\1" * 3000, "val.bin": b"\2" * 2000}
INDEX = json.dumps({"files": {name: {"size_bytes": len(data)} for name, data in CONTENT.items()}}).encode()
TOKEN = "hf_canary_b2c1"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with Hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        for name in ("HF_TOKEN", "HF_TOKEN_PATH"):
            monkeypatch.delenv(name, raising=False)
        yield hub


@pytest.fixture
def web() -> Iterator[FileServer]:
    with FileServer({f"/data/{name}": data for name, data in {**CONTENT, "dataset.json": INDEX}.items()}) as server:
        yield server


@pytest.fixture(params=storage.known())
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URI of a folder with CONTENT in it, for every scheme there is; a new scheme fails here until it has one."""
    make: dict[str, Callable[[], str]] = {
        "path": lambda: _on_disk(tmp_path / "folder"),
        "http": lambda: request.getfixturevalue("web").url("/data/"),
        "hf": lambda: _on_hub(request.getfixturevalue("hub")),
        "s3": lambda: _in_bucket(request.getfixturevalue("s3")),
    }
    return make[request.param]()


def _on_disk(folder: Path) -> str:
    folder.mkdir()
    for name, data in CONTENT.items():
        (folder / name).write_bytes(data)
    return str(folder)


def _on_hub(hub: Hub) -> str:
    hub.publish("me/tokens", CONTENT)
    return "hf://me/tokens"


def _in_bucket(s3: S3Server) -> str:
    return "s3://" + s3.bucket({f"a b/{name}": data for name, data in CONTENT.items()}) + "/a b"


def got(part: Part) -> bytes:
    """As a machine gets it: by that URL and those headers alone."""
    headers = {"Range": f"bytes={part.offset}-{part.offset + part.size_bytes - 1}", **part.headers}
    with urllib.request.urlopen(urllib.request.Request(part.url, headers=headers)) as answer:
        found = answer.read()
    return found[part.offset :][: part.size_bytes] if part.url.startswith("file:") else found


def test_a_scheme_lists_reads_and_plans(place: str) -> None:
    store: Storage = storage.of(place)
    assert storage.scheme_of(place) == store.scheme
    listed = [each for each in store.manifest(place) if each.name != "dataset.json"]
    assert [(each.name, each.size_bytes) for each in listed] == [(n, len(d)) for n, d in sorted(CONTENT.items())]
    for file in listed:
        data = CONTENT[file.name]
        (same,) = store.manifest(file.uri)
        assert (same.name.rpartition("/")[2], same.size_bytes, same.version) == (file.name, len(data), file.version)
        assert store.read(file.uri, 0, 16) == data[:16]
        assert store.read(file.uri, 1000, 10**6) == data[1000:]
        assert store.read(file.uri, len(data) + 7, 16) == b""
        assert got(store.download_plan(file.uri, "x")) == data
        part = store.download_plan(file.uri, "data/x", 100, 200)
        assert (part.destination, part.offset, part.size_bytes) == ("data/x", 100, 200)
        assert got(part) == data[100:300]
        assert part.url not in repr(part) and "canary" not in repr(part)


def test_a_scheme_says_what_is_not_there(place: str) -> None:
    store = storage.of(place)
    with pytest.raises(StorageError) as caught:
        store.manifest(place.rstrip("/") + "/nothing.bin")
    assert caught.value.missing and "nothing.bin" in caught.value.message


def test_a_scheme_stores_or_says_that_it_cannot(place: str) -> None:
    store = storage.of(place)
    if store.scheme != "s3":
        with pytest.raises(UserError, match="cannot"):
            store.upload_plan(place, [StoredFile("model.bin", 10)])
        assert store.grants_end_at() is None
        return
    (upload,) = store.upload_plan(place, [StoredFile("model.bin", 10)], 60)
    urllib.request.urlopen(urllib.request.Request(upload.puts[0].url, data=b"0123456789", method="PUT")).close()
    assert store.read(f"{place}/model.bin", 0, 99) == b"0123456789"


def test_patterns_and_unknown_schemes(hub: Hub, s3: S3Server, tmp_path: Path) -> None:
    for folder in (_on_disk(tmp_path / "x"), _on_hub(hub), _in_bucket(s3)):
        found = storage.of(folder).manifest(f"{folder}/train-*.bin")
        assert found[0].name.endswith("train-00000.bin") and not [each for each in found if "val" in each.name]
    with pytest.raises(UserError, match=r"nothing here reads gs://.*known: a path, hf://, http://, s3://"):
        storage.of("gs://bucket/x")


def test_the_hub_is_read_at_one_commit_with_a_token_that_goes_nowhere_else(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = hub.publish("me/private", CONTENT, token=TOKEN)
    uri = "hf://me/private"
    with pytest.raises(StorageError, match="is private and you have set no token") as caught:
        storage.of(uri).manifest(uri)
    assert "HF_TOKEN to a token with read access to me/private" in caught.value.hint
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(StorageError, match="the token of HF_TOKEN may not read it"):
        storage.of(uri).manifest(uri)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    store = storage.of(uri)
    (train, *_) = store.manifest(uri)
    assert train.uri == f"hf://datasets/me/private@{commit}/train-00000.bin" and train.sha256 is not None
    assert store.read(train.uri, 0, 10) == CONTENT["train-00000.bin"][:10]
    part = store.download_plan(train.uri, "x")
    assert part.headers == {"Authorization": f"Bearer {TOKEN}"} and TOKEN not in part.url + repr(store) + repr(part)
    assert {headers.get("Authorization") for _, _, headers in hub.storage.asked} == {None}
    hub.publish("me/gated", CONTENT, gated=True)
    with pytest.raises(StorageError, match="is gated"):
        store.manifest("hf://me/gated")
    with pytest.raises(StorageError, match="no revision v9"):
        store.manifest("hf://me/private@v9")


def test_the_hubs_own_token_file_is_found(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("hf_file\n")
    assert hf.find_token({"HF_HOME": str(tmp_path)}) == ("hf_file", str(tmp_path / "token"))
    assert hf.find_token({"HF_HOME": str(tmp_path), "HF_TOKEN": "hf_env"}) == ("hf_env", "HF_TOKEN")
    assert hf.find_token({"HF_HOME": str(tmp_path / "none")}) == (None, "")


def test_throttling_is_waited_out_and_names_that_lead_out_are_refused(hub: Hub, web: FileServer) -> None:
    hub.publish("me/tokens", CONTENT)
    hub.faults.refusals = [(429, {"Retry-After": "1"}), (503, {})]
    assert len(storage.of("hf://x/x").manifest("hf://me/tokens")) == len(CONTENT)
    hub.publish("me/evil", {"../../.ssh/authorized_keys": b"x"})
    web.files["/data/dataset.json"] = INDEX.replace(b"val.bin", b"../v.bin")
    for uri in ("hf://me/evil", web.url("/data/")):
        with pytest.raises(UserError, match="leads out of its folder"):
            storage.of(uri).manifest(uri)


def test_s3_says_what_is_wrong_and_ends_with_its_credentials(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = "s3://" + s3.bucket({"x": b"1"})
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(StorageError, match="SignatureDoesNotMatch"):
        storage.of(bucket).manifest(bucket)
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    with pytest.raises(BadCredentials, match="no AWS credentials"):
        storage.of(bucket).manifest(bucket)
    s3.use(monkeypatch)
    monkeypatch.setenv("AWS_CREDENTIAL_EXPIRATION", "2999-01-01T00:00:00Z")
    assert storage.of(bucket).grants_end_at() == 32472144000.0
    large = storage.of(bucket).upload_plan(f"{bucket}/run", [StoredFile("model.bin", 5 << 30)], 6 * 86_400)[0]
    assert len(large.puts) == 20 and large.complete_url and large.abandon_url
    urllib.request.urlopen(urllib.request.Request(large.abandon_url, method="DELETE")).close()
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    with pytest.raises(GptctlError, match="Could not connect"):
        storage.of(bucket).manifest(bucket)
