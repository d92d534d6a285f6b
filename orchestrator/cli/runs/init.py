"""`gptctl init`: recipes and a commented inventory, copied out of the package."""

from __future__ import annotations

from pathlib import Path

from orchestrator.core.config.bundled_files import copy_to


def init(folder: Path) -> int:
    """Copies what is missing into the folder; says what it wrote and what it left alone."""
    from orchestrator.cli.screen import screen

    done = copy_to(folder)
    for path in done.written:
        print(folder / path)
    for path in done.kept:
        screen.talk(f"kept {folder / path}: it was there already")
    screen.talk("next: gptctl plan quickstart, then: gptctl run quickstart --host local")
    return 0
