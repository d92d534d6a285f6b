"""`gptctl export --push`: uploads the exported folder to the Hugging Face Hub, and first shows what it sends.

Private unless --public. A repository that holds other weights stays as it is unless you name a revision.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.cli.screen import screen
from orchestrator.core.errors import StorageError, UserError
from orchestrator.core.formats import size
from orchestrator.remote.web import hugging_face

REPO_PATTERN = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
MAIN = "main"
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".gguf", ".onnx")


@dataclass(frozen=True)
class Target:
    """Where to upload, and whether everyone may see it."""

    repo: str
    revision: str | None = None
    public: bool = False

    @property
    def branch(self) -> str:
        return self.revision or MAIN


def check(target: Target) -> None:
    """Before anything is exported. Raises UserError."""
    if not REPO_PATTERN.fullmatch(target.repo):
        raise UserError(f"--push {target.repo}: must be OWNER/NAME on the Hub", "for example --push me/my-model")


def push(target: Target, folder: Path, sizes: Mapping[str, int], *, yes: bool, message: str) -> dict[str, Any] | None:
    """Uploads what is new; None if you said no. Raises UserError, StorageError."""
    remote = hugging_face.look(target.repo, target.branch)
    refuse(target, folder, sizes, remote)
    news = [
        name
        for name in sizes
        if not hugging_face.same(folder / name, remote.files.get(name) if remote.branch else None)
    ]
    address = hugging_face.web_address(target.repo, target.branch)
    done = {"repo": target.repo, "revision": target.branch, "url": address, "private": not target.public}
    if not news:
        screen.talk(f"{address} already holds exactly these files")
        return {**done, "commit": remote.head, "files": []}
    show(target, remote, sizes, news)
    if not yes and not screen.ask(f"Upload to {address}?", f"gptctl export --push {target.repo}"):
        return None
    commit = hugging_face.put(
        target.repo, target.branch, folder, news, remote, private=not target.public, message=message, say=screen.talk
    )
    there = hugging_face.look(target.repo, target.branch)
    missing = [name for name in sizes if not hugging_face.same(folder / name, there.files.get(name))]
    if missing:
        raise StorageError(f"{address}: {', '.join(missing)} did not arrive as sent", "run the command again")
    return {**done, "commit": commit, "files": news}


def refuse(target: Target, folder: Path, sizes: Mapping[str, int], remote: hugging_face.Remote) -> None:
    """Raises UserError rather than replace other weights, or make something private public."""
    if not remote.exists:
        return
    if not remote.private and not target.public:
        raise UserError(
            f"{target.repo} is public, so the model would be, too", "give --public, or choose another --push REPO"
        )
    if remote.private and target.public:
        raise UserError(
            f"{target.repo} is private, and --public does not change that",
            "change it on the Hub, or omit --public",
        )
    if target.revision is not None:
        return
    kept = {name: each for name, each in remote.files.items() if name.lower().endswith(WEIGHTS)}
    strange = [name for name, each in kept.items() if name not in sizes or not hugging_face.same(folder / name, each)]
    if strange:
        raise UserError(
            f"{target.repo} holds other weights: {', '.join(sorted(strange)[:4])}",
            "give --revision BRANCH to put these beside them (main replaces them), or choose another --push REPO",
        )


def show(target: Target, remote: hugging_face.Remote, sizes: Mapping[str, int], news: Sequence[str]) -> None:
    """Shows what goes where, file by file."""
    how = "public: everyone can see it" if target.public else "private"
    kind = "the existing" if remote.exists else "a new"
    screen.talk(f"{hugging_face.endpoint()}: {kind} model repository {target.repo}, branch {target.branch}, {how}")
    for name in news:
        screen.talk(f"{size(sizes[name]):>10}  {name}")
    rest = len(sizes) - len(news)
    same = f"; {rest} files are already there" if rest else ""
    screen.talk(f"{size(sum(sizes[name] for name in news)):>10}  in {len(news)} files{same}")
