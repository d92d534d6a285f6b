"""The Hugging Face Hub as a place to put a model: the only user of huggingface_hub.

Reading data from the Hub is storage/hf.py's business and needs no library. Uploading is the library's: LFS, Xet and
commits are its protocols. HF_ENDPOINT and the token (HF_TOKEN, else the file that `hf auth login` writes) are found by
it; the token is never printed. What it does not repeat after 429 and 5xx is repeated here, and a commit names
its parent, so that one whose answer was lost is found instead of made twice.

    remote = look("me/model", "main")                     # Remote(exists=False, ...)
    commit = put("me/model", "main", folder, names, remote, private=True, say=print)
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from orchestrator.core.errors import StorageError, UserError
from orchestrator.remote.web.retries import Again, Patience, repeat

PUBLIC = "https://huggingface.co"
PATIENCE = Patience(within_s=float("inf"), first_pause_s=1.0, longest_pause_s=60.0, most_tries=6, most_asked_s=60.0)
REPEATED = frozenset({408, 429, 500, 502, 503, 504})
MOVED = frozenset({409, 412})
"""The branch has another head than the commit's parent."""
LOGIN = "hf auth login, or set HF_TOKEN to a token that may write: https://huggingface.co/settings/tokens"

T = TypeVar("T")
Say = Callable[[str], None]


@dataclass(frozen=True)
class Remote:
    """A repository's branch as it is now. Without the branch `head` is None and `files` are those of main."""

    exists: bool = False
    private: bool = True
    head: str | None = None
    branch: bool = False
    files: Mapping[str, str] = field(default_factory=dict)
    """Path to sha256 of what is kept as an LFS object, else to the git blob's id."""


def endpoint() -> str:
    """Scheme and host of the Hub that is talked to: HF_ENDPOINT, else the public one. Raises UserError."""
    found = os.environ.get("HF_ENDPOINT", "").rstrip("/") or PUBLIC
    if not found.startswith(("https://", "http://")):
        raise UserError(f"HF_ENDPOINT = {found!r} is not an address", "set it to https://HOST, or unset it")
    return found


def web_address(repo: str, revision: str) -> str:
    """Its page in a browser."""
    return f"{endpoint()}/{repo}" + ("" if revision == "main" else f"/tree/{quote(revision, safe='')}")


def look(repo: str, revision: str) -> Remote:
    """The repository now. Raises UserError without a token, StorageError when the Hub does not say."""
    library = _library()
    api = library.api
    info = _or_none(library, f"look at {repo}", lambda: api.repo_info(repo))
    if info is None:
        return Remote()
    branch = _or_none(library, f"look at {repo}", lambda: api.repo_info(repo, revision=revision))
    at = (branch or info).sha
    entries = _repeated(library, f"list {repo}", lambda: list(api.list_repo_tree(repo, recursive=True, revision=at)))
    files = {each.path: each.lfs.sha256 if each.lfs else each.blob_id for each in entries if hasattr(each, "blob_id")}
    return Remote(True, bool(info.private), branch.sha if branch else None, branch is not None, files)


def same(path: Path, kept: str | None) -> bool:
    """Whether the Hub's file is this one, by sha256 or by the git blob's id."""
    return kept is not None and kept in _identities(path)


def _identities(path: Path) -> tuple[str, str]:
    plain, blob = hashlib.sha256(), hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            plain.update(block)
            blob.update(block)
    return plain.hexdigest(), blob.hexdigest()


def put(
    repo: str,
    revision: str,
    folder: Path,
    names: Sequence[str],
    remote: Remote,
    *,
    private: bool,
    message: str,
    say: Say,
) -> str:
    """Creates what is missing (repository, branch), uploads and commits the files, and returns the commit's id.

    Resuming after a break sends nothing twice: objects that arrived are known by their sha256. Raises StorageError.
    """
    library = _library()
    api = library.api
    if not remote.exists:
        _create(library, f"make {repo}", lambda: api.create_repo(repo, private=private), say)
    if revision != "main" and not remote.branch:
        _create(library, f"make branch {revision}", lambda: api.create_branch(repo, branch=revision), say)
    parent = _repeated(library, f"look at {repo}", lambda: api.repo_info(repo, revision=revision).sha, say)
    if remote.branch and parent != remote.head:
        raise StorageError(
            f"{repo}: {revision} was changed meanwhile by another writer", "run the command again, and check its plan"
        )

    def commit() -> str:
        operations = [library.add(name, str(folder / name)) for name in names]
        done = api.create_commit(repo, operations, commit_message=message, revision=revision, parent_commit=parent)
        return str(done.oid)

    try:
        return _repeated(library, f"upload to {repo}", commit, say)
    except _Moved:  # the commit may be our own, and its answer lost
        now = look(repo, revision)
        if now.head is not None and all(same(folder / name, now.files.get(name)) for name in names):
            return now.head
        raise StorageError(
            f"{repo}: {revision} was changed meanwhile by another writer; nothing was written", "run the command again"
        ) from None


class _Moved(StorageError):
    """The branch is not where it was."""


@dataclass(frozen=True)
class _Library:
    """What is used of huggingface_hub."""

    api: Any
    add: Any
    errors: Any
    token: str


def _library() -> _Library:
    """huggingface_hub, quiet about addresses that may be signed. Raises UserError without it, or without a token."""
    if endpoint() != PUBLIC:
        os.environ.setdefault("HF_HUB_DISABLE_XET", "1")  # other Hubs speak plain LFS
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        # Only now: it takes longer to load than most commands take to run, and is an extra.
        from huggingface_hub import CommitOperationAdd, HfApi, errors, get_token, utils
    except ImportError as error:
        raise UserError("the Hub needs huggingface_hub", f"{sys.executable} -m pip install 'gptctl[hub]'") from error
    utils.logging.set_verbosity_error()
    if not sys.stderr.isatty():
        utils.disable_progress_bars()
    token = get_token()
    if not token:
        raise UserError("the Hub needs a token, and none was found", LOGIN)
    return _Library(HfApi(token=token), CommitOperationAdd, errors, token)


def _or_none(library: _Library, what: str, call: Callable[[], Any]) -> Any:
    """The call's answer; None for a repository or branch that does not exist."""
    try:
        return _repeated(library, what, call)
    except StorageError as error:
        if error.missing:
            return None
        raise


def _create(library: _Library, what: str, call: Callable[[], object], say: Say) -> None:
    """Creates what did not exist a moment ago: if it exists now, an earlier try went through."""
    try:
        _repeated(library, what, call, say)
    except _Moved:
        return


def _repeated(library: _Library, what: str, call: Callable[[], T], say: Say = lambda text: None) -> T:
    """The call's answer, asked for again while the Hub is busy or out of reach. Raises StorageError in our words."""
    # The library has changed the HTTP library below it twice; the root of that one's errors is its own error's base.
    root = library.errors.HfHubHTTPError.__bases__[0]

    def ask() -> T:
        try:
            return call()
        except (root, OSError, ValueError) as error:
            translated = _translated(library, what, error)
            status = _status(error)
            if isinstance(error, ValueError) or (status is not None and status not in REPEATED):
                raise translated from None
            raise Again(translated, asked_s=_asked_s(error)) from None

    return repeat(ask, PATIENCE, before_pause=lambda error, wait_s: say(f"{error}; trying again in {wait_s:.0f} s"))


def _status(error: BaseException) -> int | None:
    response = getattr(error, "response", None)
    return None if response is None else int(response.status_code)


def _asked_s(error: BaseException) -> float:
    """The pause that the Hub asks for, in seconds; 0 if it asks for none."""
    asked = str(getattr(getattr(error, "response", None), "headers", {}).get("Retry-After", ""))
    return float(asked) if asked.isdigit() else 0.0


def _translated(library: _Library, what: str, error: BaseException) -> StorageError:
    status = _status(error)
    said = " ".join((getattr(error, "server_message", None) or str(error)).split())
    said = said.replace(library.token, "***")
    words = f"{what}: the Hub at {endpoint()} " + (f"answered {status}: {said[:300]}" if status else said[:300])
    if status in MOVED:
        return _Moved(words)
    if isinstance(error, library.errors.RepositoryNotFoundError | library.errors.RevisionNotFoundError):
        return StorageError(words, LOGIN, missing=True)
    if status in (401, 403):
        return StorageError(words, LOGIN)
    return StorageError(words, "try again later: what arrived is not sent again")
