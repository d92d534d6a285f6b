"""Checks, builds and tags a release: `make release`, or `python scripts/release.py [--expect vX.Y.Z] [--tag]`.

It refuses a missing or undated changelog entry, a dirty tree, and versions that differ between pyproject.toml,
CHANGELOG.md, uv.lock and the tag. Then it builds dist/ and checks what is in the wheel. It never pushes.
"""

from __future__ import annotations

import argparse
import datetime
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ENTRY = re.compile(r"^## (?P<version>\S+) \((?P<date>[^)]+)\)\n(?P<text>.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)
IN_WHEEL = (
    "orchestrator/py.typed",
    "trainer/py.typed",
    "orchestrator/templates/inventory.toml",
    "orchestrator/templates/recipes/quickstart.toml",
)
"""What a wheel must hold beside the modules."""


def main(words: list[str]) -> int:
    """0 when the release is built (and tagged); 1 with the reasons on stderr."""
    parser = argparse.ArgumentParser(description="Check, build and tag a release of gptctl.")
    parser.add_argument("--expect", metavar="vX.Y.Z", help="refuse unless this is the tag of the version")
    parser.add_argument("--tag", action="store_true", help="create the annotated git tag; push it yourself")
    options = parser.parse_args(words)
    version = version_of(ROOT)
    reasons = [*refusals(ROOT, expected_tag=options.expect, tags=options.tag)]
    if not reasons:
        reasons = [*wrong_in_wheel(build(ROOT), version)]
    for reason in reasons:
        print(f"release: {reason}", file=sys.stderr)
    if reasons:
        return 1
    if options.tag:
        subprocess.run(["git", "tag", "-a", f"v{version}", "-m", f"gptctl {version}"], cwd=ROOT, check=True)
        print(f"tagged v{version}; publish it with: git push origin v{version}")
    return 0


def version_of(root: Path) -> str:
    """The version in pyproject.toml."""
    return str(tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"])


def refusals(root: Path, *, expected_tag: str | None = None, tags: bool = False) -> Iterator[str]:
    """Why this checkout must not be released; nothing when it may."""
    version = version_of(root)
    if expected_tag and expected_tag != f"v{version}":
        yield f"the tag is {expected_tag}, pyproject.toml says {version}"
    if tags and _git(root, "tag", "--list", f"v{version}"):
        yield f"the tag v{version} exists; raise the version in pyproject.toml"
    yield from _wrong_in_changelog((root / "CHANGELOG.md").read_text(encoding="utf-8"), version)
    locked = {package["name"]: package.get("version") for package in _lock(root)}
    if locked.get("gptctl") != version:
        yield f"uv.lock says {locked.get('gptctl')}, pyproject.toml says {version}; run: uv lock"
    if changed := _git(root, "status", "--porcelain"):
        yield "the tree is not clean:\n" + changed


def _wrong_in_changelog(text: str, version: str) -> Iterator[str]:
    newest = ENTRY.search(text)
    if newest is None or newest["version"] != version:
        found = newest["version"] if newest else "no entry"
        yield f"CHANGELOG.md begins with {found}, pyproject.toml says {version}"
        return
    try:
        datetime.date.fromisoformat(newest["date"])
    except ValueError:
        yield f"CHANGELOG.md: {version} is ({newest['date']}); write the day of the release, as (2027-01-31)"
    if not re.search(r"^- \S", newest["text"], re.MULTILINE):
        yield f"CHANGELOG.md: {version} has no entry"


def build(root: Path) -> Path:
    """Builds dist/ afresh, checks its metadata, and returns the wheel."""
    shutil.rmtree(root / "dist", ignore_errors=True)
    subprocess.run([sys.executable, "-m", "build", "--outdir", "dist"], cwd=root, check=True)
    built = sorted(str(path) for path in (root / "dist").iterdir())
    subprocess.run([sys.executable, "-m", "twine", "check", "--strict", *built], cwd=root, check=True)
    (wheel,) = (root / "dist").glob("*.whl")
    return wheel


def wrong_in_wheel(wheel: Path, version: str) -> Iterator[str]:
    """What the wheel lacks or must not hold."""
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = archive.read(f"gptctl-{version}.dist-info/METADATA").decode()
    yield from (f"{wheel.name} lacks {name}" for name in IN_WHEEL if name not in names)
    tops = {name.partition("/")[0] for name in names} - {"orchestrator", "trainer", f"gptctl-{version}.dist-info"}
    yield from (f"{wheel.name} holds {top}" for top in sorted(tops))
    if f"\nVersion: {version}\n" not in metadata:
        yield f"{wheel.name}: its metadata is not of {version}"


def _lock(root: Path) -> list[dict[str, str]]:
    packages: list[dict[str, str]] = tomllib.loads((root / "uv.lock").read_text(encoding="utf-8"))["package"]
    return packages


def _git(root: Path, *words: str) -> str:
    return subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=True).stdout.rstrip()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
