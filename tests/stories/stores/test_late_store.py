"""A line to here that is too slow: the machine stores its checkpoints in a real S3 instead, and is given back."""

from __future__ import annotations

import json
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.stories.conftest import digests, wait_until
from tests.stories.stores.test_url_store import Place, place, stored  # noqa: F401
from tests.support.clouds.s3_server import S3Server

pytestmark = pytest.mark.nightly

SLOW_SSH = """#!{python}
# ssh, of which no more than RATE bytes per second come out.
import os, subprocess, sys, time
RATE = 20_000
process = subprocess.Popen([{ssh!r}, *sys.argv[1:]], stdout=subprocess.PIPE, bufsize=0)
while data := os.read(process.stdout.fileno(), RATE // 10):
    os.write(1, data)
    time.sleep(len(data) / RATE)
sys.exit(process.wait())
"""
LARGE = """
[model]
n_embd = 128
[train]
checkpoint_every = 8
validate_every = 8
[machines."1xH100-simulated"]
micro_batch = 4
"""
STEPS = 8


def slowed(place: Place, tiny: Callable[..., str], monkeypatch: pytest.MonkeyPatch, host: str) -> str:  # noqa: F811
    """A recipe whose checkpoints take minutes to come here."""
    programs = place.folder / "programs"
    programs.mkdir()
    (programs / "ssh").write_text(SLOW_SSH.format(python=sys.executable, ssh=shutil.which("ssh")))
    (programs / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin")
    (place.folder / "inventory.toml").write_text(
        f'[hosts.box]\nprovider = "rehearsal"\nmachine = "1xH100-simulated"\nguard = "key-on-box"\n'
        f"fetch_minutes = 0.1\n{host}"
    )
    path = place.folder / "slow.toml"
    path.write_text(f'extends = "{tiny(STEPS)}"\nname = "slow"\n{LARGE}')
    return str(path)


def all_is_stored_and_comes_here(place: Place, s3: S3Server) -> None:  # noqa: F811
    run = place.run()
    index = stored(s3, place, run)
    assert index["ended"]["outcome"] == "finished" and max(each["step"] for each in index["checkpoints"]) == STEPS
    books = place.cloud.books()
    assert not books["alive"] and sum(books["launches_by_intent"].values()) == 1
    code, out, err = place.gptctl("fetch", run, "--json")
    assert code == 0, err
    (latest,) = [each for each in json.loads(out)["checkpoints"] if each["step"] == STEPS]
    promised = json.loads((Path(latest["path"]) / "MANIFEST.json").read_text())["files"]
    assert digests(Path(latest["path"])) == {name: entry["sha256"] for name, entry in promised.items()}


def test_below_the_bound_the_rest_goes_to_the_store_that_the_host_names(
    place: Place,  # noqa: F811
    tiny: Callable[..., str],
    s3: S3Server,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = slowed(place, tiny, monkeypatch, f'fetch_store = "s3://{place.bucket}/models"\n')
    code, _, err = place.gptctl("run", path, "--host", "box", "--yes")
    assert code == 0, err
    assert f"the machine stores its checkpoints in s3://{place.bucket}/models instead" in err
    assert "destroyed" in err
    all_is_stored_and_comes_here(place, s3)


def test_without_one_the_store_that_you_name_takes_it(
    place: Place,  # noqa: F811
    tiny: Callable[..., str],
    s3: S3Server,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = slowed(place, tiny, monkeypatch, "")
    log = place.folder / "run.log"
    process = place.begin("run", path, "--host", "box", "--yes", log=log)
    wait_until(lambda: process.poll() is not None or "--store s3://BUCKET/PREFIX" in log.read_text(), 240)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) in (0, 7), log.read_text()
    store = f"s3://{place.bucket}/models"
    code, _, err = place.gptctl("resume", place.run(), "--store", f"s3://{place.bucket}-missing/models")
    assert code == 3 and "no such bucket" in err and place.status()["outcome"] in (None, "finished")
    code, _, err = place.gptctl("resume", place.run(), "--store", store)
    assert code == 0, err
    assert "destroyed" in err
    all_is_stored_and_comes_here(place, s3)
    code, _, err = place.gptctl("resume", place.run(), "--store", "s3://other/models")
    assert code == 2 and f"gptctl fetch {place.run()}" in err
