"""The lines of docs/guides/first-day.md, typed one after another on a terminal, with small recipes and a real sshd."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.stories.cli.test_terminal import Terminal
from tests.support.clouds.rehearsal_cloud import RehearsalCloud
from tests.support.files.repository import REPOSITORY
from tests.support.machines import known_interpreter
from tests.support.machines.sshd import Sshd

PAGE = REPOSITORY / "docs" / "guides" / "first-day.md"
MOST_COMMANDS = 12
CLOUD = '[hosts.rehearsal-8xa100]\nprovider = "rehearsal"\nmachine = "1xH100-simulated"\nguard = "key-on-box"\n'
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def blocks(kind: str) -> str:
    return "".join(re.findall(rf"```{kind}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL))


def commands() -> list[list[str]]:
    return [shlex.split(line, comments=True)[1:] for line in blocks("sh").splitlines()]


@pytest.mark.nightly
def test_the_first_day_goes_as_the_guide_says(
    tmp_path: Path, gptctl_home: Path, box: Sshd, tiny: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(commands()) <= MOST_COMMANDS
    known_interpreter.plant(gptctl_home / "machine")
    simulated = '[machines."1xH100-simulated"]\nmicro_batch = 4\n'
    with RehearsalCloud(tmp_path / "cloud", minute_s=1, warm=True) as cloud:
        monkeypatch.setenv("GPTCTL_REHEARSAL", str(cloud.state))
        for number, words in enumerate(commands(), 1):
            screen = Terminal(*words, cwd=tmp_path)
            try:
                if words == ["run", "quickstart", "--host", "local"]:
                    screen.wait_for(r"\[y/N\]")
                    screen.type("y\n")
                assert screen.wait(600) == 0, f"{' '.join(words)}: {screen.shown[-3000:]}"
            finally:
                screen.close()
            if "rehearsal-8xa100" in words:
                last = ESCAPES.sub("", screen.shown).strip().splitlines()[-1]
                assert "destroyed" in last, last
                assert cloud.books()["alive"] == []
            if number == 1:  # what `init` wrote, small
                own = box.inventory_entry(extra=f'python = "{sys.executable}"\n').replace(
                    "[hosts.box]", "[hosts.home-3090]"
                )
                (tmp_path / "inventory.toml").write_text(f'[hosts.local]\nmachine = "1xCPU"\n{own}{CLOUD}')
                (tmp_path / "recipes" / "quickstart.toml").write_text(Path(tiny(60)).read_text() + simulated)
                (tmp_path / "rates.toml").write_text(blocks("toml"))
    assert (tmp_path / "my-model" / "model.safetensors").is_file()
    assert "rates" in (tmp_path / "rates.html").read_text() and (tmp_path / "report.html").is_file()
