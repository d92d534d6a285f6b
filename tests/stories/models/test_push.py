"""`gptctl export --push` to a Hub on loopback: what arrives, what is refused, what survives, who sees the token."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import Gptctl
from tests.support.clouds.hub_uploads import READ_TOKEN, TOKEN, UploadHub
from tests.support.files.canary import below, holders
from tests.support.files.texts import as_text, paragraphs

pytestmark = pytest.mark.usefixtures("known_machine")

MODEL = "model.safetensors"
Push = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def hub() -> Iterator[UploadHub]:
    with UploadHub() as running:
        yield running


@pytest.mark.nightly
@pytest.mark.parametrize("to_others", [False, True])
def test_an_export_goes_to_the_hub_and_nothing_is_lost_or_shown(
    gptctl: Gptctl, gptctl_home: Path, tmp_path: Path, tiny: Callable[..., str], hub: UploadHub, to_others: bool
) -> None:
    """to_others: also to repositories that hold something else, and to public ones; each push imports torch."""
    source = f"data.prepare.source={as_text(tmp_path / 'corpus.txt', paragraphs(300_000))}"
    assert gptctl("run", tiny(20, prepares=True), "--host", "local", "--set", source, "--yes").returncode == 0

    def push(*arguments: str, token: str = TOKEN, code: int = 0) -> subprocess.CompletedProcess[str]:
        environment = {"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": token, "HF_HOME": str(tmp_path / "hf")}
        done = gptctl("export", "--push", *arguments, env=environment)
        assert TOKEN not in done.stdout + done.stderr
        assert "signature=" not in done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        assert done.returncode == code, done.stderr
        return done

    check_what_is_asked_first(push, hub)
    check_what_survives(push, hub, tmp_path)
    if to_others:
        check_what_is_not_replaced(push, hub)
        check_who_may_see(push, hub)
    assert not [asked for asked in hub.asked if asked[1].startswith("/objects/") and asked[2]]
    assert holders(TOKEN, below(tmp_path)) == []


def check_what_is_asked_first(push: Push, hub: UploadHub) -> None:
    """Nothing is made without a yes, a token that may write, and a name that can be."""
    asked = push("me/model", code=2)
    assert "a new model repository me/model, branch main, private" in asked.stderr
    assert MODEL in asked.stderr
    assert "--yes is missing" in asked.stderr
    assert hub.repos == {}
    assert "needs a token" in push("me/model", "--yes", token="", code=2).stderr
    assert "answered 403" in push("me/model", "--yes", token=READ_TOKEN, code=3).stderr
    assert "answered 401" in push("me/model", "--yes", token="hf_wrong", code=3).stderr
    assert "must be OWNER/NAME" in push("model", code=2).stderr
    assert hub.repos == {}


def check_what_survives(push: Push, hub: UploadHub, folder: Path) -> None:
    """429 and 5xx everywhere, an answer that was lost, and an upload that is done again."""
    hub.fail("repos/create", 503)
    hub.fail("objects/", 500)
    hub.fail("preupload", 429, Retry_After="1")
    hub.fail("commit/", 429, Retry_After="0")
    hub.fail("commit/", 502, after=True)
    done = json.loads(push("me/model", "--yes", "--json").stdout)
    assert done["pushed"]["url"] == f"{hub.endpoint}/me/model"
    repo = hub.repos["me/model"]
    assert repo.private
    assert len(repo.branches["main"]) == 2  # the lost answer's commit was found, not made again
    assert done["pushed"]["commit"] == repo.head()
    here = {path.name: path.read_bytes() for path in Path(done["to"]).iterdir()}
    assert repo.files() == here
    assert [name for name, content in here.items() if str(folder).encode() in content] == []
    assert 'source = "corpus.txt"' in here["recipe.toml"].decode()
    assert "corpus.txt" in here["README.md"].decode()
    assert f'model="{"me/model"}"' in here["README.md"].decode()

    uploads = hub.count("PUT", "/objects/")
    again = push("me/model", "--yes")
    assert "already holds exactly these files" in again.stderr
    hub.repos["me/second"] = type(repo)(private=True)
    push("me/second", "--yes")
    assert hub.count("PUT", "/objects/") == uploads  # what arrived once is not sent again
    assert hub.repos["me/second"].files()[MODEL] == here[MODEL]


def check_what_is_not_replaced(push: Push, hub: UploadHub) -> None:
    """Other weights stay where they are, unless a branch is named."""
    repo = hub.repos["me/second"]
    repo.branches["main"].append(("1" * 40, {"pytorch_model.bin": b"older", "notes.md": b"mine"}))
    refused = push("me/second", "--yes", code=2)
    assert "holds other weights: pytorch_model.bin" in refused.stderr
    assert "--revision" in refused.stderr
    assert repo.head() == "1" * 40
    done = json.loads(push("me/second", "--yes", "--revision", "gptctl", "--json").stdout)
    assert done["pushed"]["url"] == f"{hub.endpoint}/me/second/tree/gptctl"
    assert repo.head() == "1" * 40
    assert {"notes.md", MODEL, "README.md"} <= repo.files("gptctl").keys()


def check_who_may_see(push: Push, hub: UploadHub) -> None:
    """Public only when it was said."""
    push("me/open", "--yes", "--public")
    assert not hub.repos["me/open"].private
    assert "me/open is public" in push("me/open", "--yes", code=2).stderr
    assert "does not change that" in push("me/model", "--yes", "--public", code=2).stderr
