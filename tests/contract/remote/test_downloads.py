"""Files of a URI on this computer: pulled by its own agent from real servers, whatever those do."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.core.errors import StorageError, VerificationFailed
from orchestrator.datasets.downloads import bring_here
from orchestrator.remote.transfer_progress import Transfer
from tests.support.clouds.file_server import Hub

TOKEN = "hf_canary_19a0"
TEXT = random.Random(1).randbytes(3_000_000)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub


def test_a_private_dataset_comes_whole_once_and_without_its_token(hub: Hub, tmp_path: Path) -> None:
    hub.publish("me/corpus", {"data/a.parquet": TEXT, "data/b.parquet": TEXT[:500_000], "README.md": b"#"}, token=TOKEN)
    hub.storage.faults.cut_after = 700_000
    told: list[Transfer] = []
    uri = "hf://me/corpus/data/*.parquet"
    first = bring_here(tmp_path, uri, told.append)
    assert [path.read_bytes() for path in first] == [TEXT, TEXT[:500_000]]
    assert told[-1].bytes_done == told[-1].bytes_total == hub.storage.sent_bytes == 3_500_000
    assert bring_here(tmp_path, uri, told.append) == first and hub.storage.sent_bytes == 3_500_000
    assert {headers.get("Authorization") for _, _, headers in hub.storage.asked} == {None}
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]
    assert bring_here(tmp_path, str(first[0]), told.append) == [first[0]]


def test_a_flipped_byte_is_fetched_again_and_a_lasting_one_refused(hub: Hub, tmp_path: Path) -> None:
    commit = hub.publish("me/corpus", {"a.txt": TEXT})
    place = f"/datasets/me/corpus/{commit}/a.txt"
    hub.storage.faults.flips, hub.storage.faults.flip_times = {place: 1_234_567}, 1
    (found,) = bring_here(tmp_path, "hf://me/corpus", lambda told: None)
    assert found.read_bytes() == TEXT and hub.storage.sent_bytes == 2 * len(TEXT)
    hub.storage.faults.flip_times = 10**9
    with pytest.raises(VerificationFailed, match="are not what was promised"):
        bring_here(tmp_path / "other", "hf://me/corpus", lambda told: None)
    hub.storage.faults.flips = {}
    hub.storage.faults.cuts_off = {place: 1000}
    with pytest.raises(StorageError, match="2999000 bytes; 3000000 were announced"):
        bring_here(tmp_path / "third", "hf://me/corpus", lambda told: None)
