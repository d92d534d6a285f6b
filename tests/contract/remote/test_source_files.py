"""Which files of a project are sent: what git keeps, minus everything that looks like a secret."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from orchestrator.core.errors import UserError
from orchestrator.remote.transfer.source_files import choose, is_secret

SECRETS = [".env", ".env.local", "prod.env", "a/b.pem", "server.KEY", "id_rsa", "id_ed25519.pub", "id_anything"]
SECRETS += [".git/config", "x/.ssh/config", ".aws/credentials", ".netrc", ".npmrc", "store.p12", ".git-credentials"]
CODE = ["train.py", "environment.yml", "keys.py", "id_map.py", "src/.gitignore", "pem.txt", "envs/a.toml", "monkey"]


def write(root: Path, names: list[str]) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)


@pytest.mark.parametrize("name", SECRETS)
def test_secrets_are_recognised(name: str) -> None:
    assert is_secret(name)


@pytest.mark.parametrize("name", CODE)
def test_code_is_not_mistaken_for_a_secret(name: str) -> None:
    assert not is_secret(name)


def git(root: Path, *args: str) -> None:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run(["git", "-C", str(root), *identity, *args], check=True, capture_output=True)


def test_git_decides_and_secrets_are_listed_as_left_out(tmp_path: Path) -> None:
    write(
        tmp_path, ["tracked.py", "untracked.py", "gone.py", "ignored/x.py", ".env", "deploy.pem", "name with 'quote'"]
    )
    (tmp_path / ".gitignore").write_text("ignored/\n")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "tracked.py", "gone.py", ".env")
    (tmp_path / "gone.py").unlink()
    chosen = choose(tmp_path)
    assert chosen.files == (".gitignore", "name with 'quote'", "tracked.py", "untracked.py")
    assert chosen.excluded == (".env", "deploy.pem")


def test_a_folder_below_the_repository_root_gives_names_relative_to_itself(tmp_path: Path) -> None:
    write(tmp_path, ["package/a.py", "other.py"])
    git(tmp_path, "init", "-q")
    assert choose(tmp_path / "package").files == ("a.py",)


def test_without_git_everything_is_walked_except_what_tools_leave(tmp_path: Path) -> None:
    write(tmp_path, ["a.py", "deep/b.py", "__pycache__/a.pyc", ".venv/lib/x.py", "deep/.env"])
    chosen = choose(tmp_path)
    assert (chosen.files, chosen.excluded) == (("a.py", "deep/b.py"), ("deep/.env",))


def test_a_link_out_of_the_tree_stays_behind_and_one_inside_comes_along(tmp_path: Path) -> None:
    root = tmp_path / "root"
    write(root, ["a.py"])
    (tmp_path / "outside").write_text("not chosen")
    (root / "out").symlink_to(tmp_path / "outside")
    (root / "in.py").symlink_to("a.py")
    chosen = choose(root)
    assert (chosen.files, chosen.excluded) == (("a.py", "in.py"), ("out",))


def test_a_hostile_repository_starts_no_program(tmp_path: Path) -> None:
    root = tmp_path / "root"
    write(root, ["a.py"])
    git(root, "init", "-q")
    canary = tmp_path / "canary"
    hook = tmp_path / "hook"
    hook.write_text(f"#!/bin/sh\ntouch {canary}\n")
    hook.chmod(0o755)
    git(root, "config", "core.fsmonitor", str(hook))
    assert choose(root).files == ("a.py",)
    assert not canary.exists()


def test_a_folder_that_is_none_is_the_users_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a folder"):
        choose(tmp_path / "nothing")
