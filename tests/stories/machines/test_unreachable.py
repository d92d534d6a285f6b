"""A paid machine that answers no SSH: `release --force` ends it by its id at once, `release` and `stop` name its price
and what would be lost; and after Ctrl-C before the training, Enter gives the machine back."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.stories.cli.test_terminal import Terminal
from tests.stories.conftest import events, newest_run, wait_until
from tests.stories.rented import BOX, gptctl, killed_when
from tests.support.clouds.rehearsal_cloud import RehearsalCloud
from tests.support.files.recipes import write_small


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[RehearsalCloud]:
    """With a small recipe and a host `box` beside it; `frozen` machines are active and billed."""
    write_small(tmp_path, steps=4000, every=20)
    (tmp_path / "inventory.toml").write_text(BOX.replace("key-on-box", "watcher"))
    with RehearsalCloud(tmp_path / "cloud", warm=True) as running:
        yield running


def trained_and_left(tmp_path: Path, cloud: RehearsalCloud) -> str:
    """The id of a run whose gptctl was killed while it trained, and whose machine is frozen since."""
    log = tmp_path / "home" / "runs"
    process = gptctl(tmp_path, cloud, "run", "tiny.toml", "--host", "box", "--yes")
    run = killed_when(process, tmp_path, lambda: any(file.stat().st_size > 500 for file in log.glob("*/metrics.jsonl")))
    cloud.inject("frozen@-1")
    wait_until(lambda: "frozen" in cloud.fired(), 30)
    return run


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """(exit code, everything it said)."""
    out, err = process.communicate(timeout=480)
    return process.returncode, out + err


@pytest.mark.nightly
def test_release_says_the_price_and_what_would_be_lost_and_force_ends_it(tmp_path: Path, cloud: RehearsalCloud) -> None:
    run = trained_and_left(tmp_path, cloud)
    for command in ("release", "stop"):
        code, said = ended(gptctl(tmp_path, cloud, command, run, "--yes"))
        assert code == 7, said
        assert "$4.29/h" in said and "lost" in said and f"gptctl release {run} --force" in said, said
    (machine,) = cloud.books()["alive"]
    began = time.time()
    code, said = ended(gptctl(tmp_path, cloud, "release", run, "--force", "--yes"))
    assert f"destroyed {machine}" in said, said
    assert code == 0, said
    assert cloud.requests("/terminate")[0]["started"] - began < 30
    assert cloud.books()["alive"] == []


@pytest.mark.nightly
def test_force_reaches_the_gptctl_that_follows(tmp_path: Path, cloud: RehearsalCloud) -> None:
    process = gptctl(tmp_path, cloud, "run", "tiny.toml", "--host", "box", "--yes")
    log = tmp_path / "home" / "runs"
    wait_until(lambda: any(file.stat().st_size > 500 for file in log.glob("*/metrics.jsonl")), 120)
    cloud.inject("ssh-gone@-1")
    wait_until(lambda: "ssh-gone" in cloud.fired(), 30)
    code, said = ended(gptctl(tmp_path, cloud, "release", str(newest_run(tmp_path / "home")), "--force", "--yes"))
    assert code == 0 and f"pid {process.pid}" in said, said
    code, said = ended(process)
    assert code == 0 and "destroyed" in said, said
    assert cloud.books()["alive"] == []


def test_enter_gives_an_idle_machine_back(
    tmp_path: Path, cloud: RehearsalCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    monkeypatch.setenv("GPTCTL_HOME", str(home))
    monkeypatch.setenv("GPTCTL_REHEARSAL", str(cloud.state))
    cloud.inject("slow-boot@600")
    screen = Terminal("run", "tiny.toml", "--host", "box", "--yes", cwd=tmp_path)
    try:
        wait_until(lambda: cloud.books()["alive"] and (run := newest_run(home)) and events(home, run), 120)
        screen.wait_for("booting")
        screen.type("\x03")
        screen.wait_for(r"\$4\.29/h\) that trains nothing\. Release it now\? \[Y/n\]")
        screen.type("\n")
        screen.wait()
    finally:
        screen.close()
    assert cloud.books()["alive"] == [], screen.shown
