"""Where pages and charts go that a user asked for: a file or a folder of his own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from orchestrator.core.errors import UserError
from orchestrator.remote.whole_files import landing
from orchestrator.report.pages.chart import Chart


def write_page(path: Path, text: str) -> None:
    """Whole or not at all. Raises UserError for a folder that is not there."""
    if path.is_dir() or not path.parent.is_dir():
        raise UserError(f"--html {path}: must be a file in a folder that exists", f"--html {path / 'page.html'}")
    with landing(path, mode=0o644) as file:
        file.write(text.encode("utf-8", errors="backslashreplace"))


def charts_into(folder: Path, charts: Sequence[Chart], title: str) -> list[Path]:
    """Each chart as PNG and SVG. Raises UserError without the extra `charts`, or for a folder that refuses."""
    from orchestrator.report.pages.image_files import draw

    new = not folder.exists()
    written = draw(charts, folder, title)
    # Made to be shown to others, as the page is: what gptctl keeps for itself is private by its umask.
    if new:
        folder.chmod(0o755)
    for path in written:
        path.chmod(0o644)
    return written
