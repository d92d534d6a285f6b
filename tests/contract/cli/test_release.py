"""What scripts/release.py refuses, in checkouts of one commit each."""

from __future__ import annotations

import subprocess
import zipfile
from pathlib import Path

import pytest

from scripts.release import IN_WHEEL, refusals, wrong_in_wheel

DATED = "# Changelog\n\n## 1.2.0 (2027-01-31)\n\n### Added\n\n- A thing.\n\n## 1.1.0 (2026-12-01)\n\n- Older.\n"


def git(folder: Path, *words: str) -> None:
    who = ("-c", "user.name=t", "-c", "user.email=t@example.com")
    subprocess.run(["git", *who, *words], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A repository that may be released as 1.2.0."""
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "gptctl"\nversion = "1.2.0"\n')
    (tmp_path / "uv.lock").write_text('[[package]]\nname = "gptctl"\nversion = "1.2.0"\n')
    (tmp_path / "CHANGELOG.md").write_text(DATED)
    git(tmp_path, "init", "-q")
    commit(tmp_path)
    return tmp_path


def commit(folder: Path) -> None:
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "x")


def test_a_dated_entry_in_a_clean_tree_is_released(checkout: Path) -> None:
    assert [*refusals(checkout, expected_tag="v1.2.0", tags=True)] == []


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("2027-01-31", "unreleased", "1.2.0 is (unreleased); write the day"),
        ("2027-01-31", "2027-02-31", "1.2.0 is (2027-02-31); write the day"),
        ("## 1.2.0 (2027-01-31)\n", "", "begins with 1.1.0, pyproject.toml says 1.2.0"),
        ("- A thing.", "", "1.2.0 has no entry"),
        (DATED, "# Changelog\n", "begins with no entry"),
    ],
)
def test_the_changelog_names_the_version_the_day_and_what_changed(
    checkout: Path, old: str, new: str, reason: str
) -> None:
    (checkout / "CHANGELOG.md").write_text(DATED.replace(old, new))
    commit(checkout)
    (refusal,) = refusals(checkout)
    assert reason in refusal


@pytest.mark.parametrize("name", ["CHANGELOG.md", "new.txt"])
def test_a_dirty_tree_is_refused(checkout: Path, name: str) -> None:
    with (checkout / name).open("a") as file:
        file.write("- More.\n")
    (refusal,) = refusals(checkout)
    assert "not clean" in refusal and name in refusal


def test_versions_that_differ_are_refused(checkout: Path) -> None:
    (checkout / "uv.lock").write_text('[[package]]\nname = "gptctl"\nversion = "1.1.0"\n')
    commit(checkout)
    tag, lock = refusals(checkout, expected_tag="v1.3.0")
    assert "the tag is v1.3.0" in tag and "uv.lock says 1.1.0" in lock


def test_a_tag_is_never_moved(checkout: Path) -> None:
    git(checkout, "tag", "v1.2.0")
    assert [*refusals(checkout, expected_tag="v1.2.0")] == []
    (refusal,) = refusals(checkout, tags=True)
    assert "the tag v1.2.0 exists" in refusal


def test_a_wheel_holds_both_packages_and_their_data(tmp_path: Path) -> None:
    wheel = tmp_path / "gptctl-1.2.0-py3-none-any.whl"
    metadata = ("gptctl-1.2.0.dist-info/METADATA", "Metadata-Version: 2.4\nName: gptctl\nVersion: 1.2.0\n")
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in [metadata, *((name, "") for name in IN_WHEEL)]:
            archive.writestr(name, text)
    assert [*wrong_in_wheel(wheel, "1.2.0")] == []
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in [metadata, *((name, "") for name in IN_WHEEL[1:]), ("tests/conftest.py", "")]:
            archive.writestr(name, text)
    assert [*wrong_in_wheel(wheel, "1.2.0")] == [f"{wheel.name} lacks {IN_WHEEL[0]}", f"{wheel.name} holds tests"]
