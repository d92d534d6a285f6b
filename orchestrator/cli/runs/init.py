"""`gptctl init`: copies the bundled recipes and a commented inventory."""

from __future__ import annotations

from pathlib import Path

from orchestrator.core.config.bundled_files import copy_to


def init(folder: Path) -> int:
    """Copies what is missing into the folder, and prints what it wrote and what it kept."""
    from orchestrator.cli.screen import screen

    done = copy_to(folder)
    for path in done.written:
        print(folder / path)
    for path in done.kept:
        screen.talk(f"kept {folder / path}, which already existed")
    screen.talk("next: gptctl plan quickstart, then: gptctl run quickstart --host local")
    return 0
