"""The guide "Seven interventions under $90", command by command, on the rehearsal cloud: with recipes of its names that
train in seconds, and a machine of one rank under its host's name."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.stories.rented import BOX, SETTINGS, cloud, ended  # noqa: F401
from tests.support.clouds.rehearsal_cloud import RehearsalCloud
from tests.support.files.repository import REPOSITORY

GUIDE = (REPOSITORY / "docs" / "guides" / "seven-interventions.md").read_text(encoding="utf-8")
COMMANDS = [shlex.split(line) for line in re.findall(r"^gptctl ([^#\n]+)", GUIDE, re.MULTILINE)]
ASK = ("sweep run", "sweep add", "runs prune")
LEASE_S = 600.0


def small_recipes(folder: Path, base: str) -> None:
    """Recipes of the guide's names, each with a learning rate of its own as its one change."""
    names = [path.stem for path in sorted((REPOSITORY / "recipes" / "interventions").glob("*.toml"))]
    (folder / "interventions").mkdir(parents=True)
    baseline = folder / "chinchilla_163m_baseline.toml"
    baseline.write_text(f'extends = "{base}"\nname = "chinchilla_163m_baseline"\n{SETTINGS}')
    for number, name in enumerate(names, 1):
        change = f"[train]\nlearning_rate = {5e-3 + number * 1e-4}\n"
        (folder / "interventions" / f"{name}.toml").write_text(f'extends = "{baseline}"\nname = "{name}"\n{change}')


@pytest.mark.nightly
def test_every_command_of_the_guide_does_what_it_says(
    tmp_path: Path,
    cloud: RehearsalCloud,  # noqa: F811
    tiny: Callable[..., str],
) -> None:
    shutil.copytree(REPOSITORY / "sweeps", tmp_path / "sweeps")
    (tmp_path / "inventory.toml").write_text(BOX.replace("hosts.box", "hosts.lambda-8xa100"))
    small_recipes(tmp_path / "recipes", tiny(40))
    assert len(COMMANDS) >= 14
    said: dict[str, str] = {}
    for words in COMMANDS:
        asks = " ".join(words[:2]) in ASK
        done = ended(tmp_path, cloud, *words, *(["--yes"] if asks else []), lease_s=LEASE_S)
        assert done.returncode == 0, (words, done.stderr)
        said[" ".join(words)] = done.stdout
    assert not cloud.books()["alive"]
    status = ended(tmp_path, cloud, "sweep", "status", "interventions", "--json")
    found = json.loads(status.stdout)
    assert [arm["state"] for arm in found["arms"]] == ["finished"] * 9
    assert 0 < found["spent_usd"] <= 90 and (tmp_path / "effects.html").is_file()
    assert all(name in said["sweep compare interventions --html effects.html"] for name in ("qkv-bias", "stack"))
    kept = {path.parent.parent.name for path in (tmp_path / "home" / "runs").glob("*/checkpoints/step-*")}
    assert len(kept) == 1, "pruned but for the newest"
