"""Files of multiple choice: named, at a URI, or on this computer. What is far is downloaded once, verified.

choices_here(home, ["hellaswag"])     # [Path(".../hellaswag_val.jsonl")]
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from orchestrator.cli.data.prepare import show_download
from orchestrator.cli.screen import screen
from orchestrator.core.errors import UserError
from orchestrator.core.suggest import did_you_mean
from orchestrator.datasets.downloads import bring_here

NAMED_CHOICES = {
    "hellaswag": "https://raw.githubusercontent.com/rowanz/hellaswag/master/data/hellaswag_val.jsonl",
}
"""Zellers et al. 2019 (arXiv 1905.07830): the 10,042 questions of the validation split, which published figures use."""


def choices_here(home: Path, names: Sequence[str]) -> list[Path]:
    """The files on this computer. Raises UserError for one that is not there, StorageError for one out of reach."""
    return [path for name in names for path in _here(home, name)]


def _here(home: Path, name: str) -> Sequence[Path]:
    uri = NAMED_CHOICES.get(name, name)
    if "://" not in uri:
        path = Path(uri).expanduser()
        if not path.is_file():
            meant = did_you_mean(name, list(NAMED_CHOICES))
            raise UserError(f"no such file: {name}{meant}", "name a .jsonl file in HellaSwag's format, or hellaswag")
        return [path]
    screen.talk(f"{name}: {uri}, downloaded once to this computer")
    with screen.show_progress() as show:
        return bring_here(home, uri, lambda moved: show(show_download(moved)))
