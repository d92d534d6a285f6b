"""Writes the pages and charts that you asked for to your own file or folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from orchestrator.core.errors import UserError
from orchestrator.remote.whole_files import landing
from orchestrator.report.pages.chart import Chart


def write_page(path: Path, text: str) -> None:
    """Writes the whole file or nothing. Raises UserError if the folder does not exist."""
    if path.is_dir() or not path.parent.is_dir():
        raise UserError(f"--html {path}: must be a file in an existing folder", f"--html {path / 'page.html'}")
    with landing(path, mode=0o644) as file:
        file.write(text.encode("utf-8", errors="backslashreplace"))


def charts_into(folder: Path, charts: Sequence[Chart], title: str) -> list[Path]:
    """Writes each chart as PNG and SVG. Raises UserError without matplotlib, or if the folder cannot be written."""
    from orchestrator.report.pages.image_files import draw

    new = not folder.exists()
    written = draw(charts, folder, title)
    # Meant for others, like the page; the umask makes everything else private.
    if new:
        folder.chmod(0o755)
    for path in written:
        path.chmod(0o644)
    return written
