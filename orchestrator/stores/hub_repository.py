"""A private repository of the Hub as a checkpoint store: what a machine is given to write there, and whether it may be.

A URL alone cannot store on the Hub, so the machine needs a token. It is HF_STORE_TOKEN and no other, fine-grained, and
may write to that one repository: anyone who gets into the machine gets no more. The machine's side of the protocol is
orchestrator/agent/checkpoints/hub_store.py.

Example::

    check("hf://me/runs")                                  # raises UserError: the repository is public
    access("hf://models/me/runs/chinchilla-1120-k3f9qa")   # {"endpoint", "repo", "token", "folder"}
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from orchestrator.core.checkpoints.store_places import hub_place
from orchestrator.core.errors import BadCredentials, StorageError, UserError
from orchestrator.core.typed_json import parse
from orchestrator.remote.web.hugging_face import endpoint
from orchestrator.remote.web.range_reads import fetch

TOKEN_VARIABLE = "HF_STORE_TOKEN"
TOKENS = "https://huggingface.co/settings/tokens"
WRITING = re.compile(r"write|admin|repo\.content\.write")

T = TypeVar("T")


def access(uri: str) -> dict[str, str]:
    """What the offload job gets as a secret. Raises UserError for another address, BadCredentials without a token."""
    repo, folder = hub_place(uri)
    token = os.environ.get(TOKEN_VARIABLE, "").strip()
    if not token:
        raise BadCredentials(
            f"{uri}: {TOKEN_VARIABLE} is not set",
            f"make a fine-grained token that may write to {repo} alone ({TOKENS}) and export {TOKEN_VARIABLE}=hf_...",
        )
    return {"endpoint": endpoint(), "repo": repo, "folder": folder, "token": token}


def check(uri: str) -> None:
    """The repository is there and private, and the token may write to it and to nothing else. Changes nothing.

    Raises UserError, BadCredentials, StorageError or NoAnswer, each with what would help.
    """
    place = access(uri)
    repo = place["repo"]
    _check_token(repo, _ask(place, "/api/whoami-v2", f"the Hub refuses {TOKEN_VARIABLE}", Grant.from_json))
    unseen = f"{repo} does not exist, or {TOKEN_VARIABLE} may not see it"
    if not _ask(place, f"/api/models/{repo}", unseen, lambda found: bool(found.get("private"))):
        raise UserError(
            f"checkpoint_store {uri}: {repo} is public: anyone could read the checkpoints",
            f"make it private, or another one: hf repo create {repo}-checkpoints --private",
        )


@dataclass(frozen=True)
class Grant:
    """What the Hub says that a token may write to."""

    user: str
    fine_grained: bool
    everywhere: tuple[str, ...]
    """Rights to write that hold for everything of the user."""
    repositories: tuple[str, ...]

    @classmethod
    def from_json(cls, who: Any) -> Grant:
        """From whoami. Raises TypeError or AttributeError for what is not that answer."""
        token = (who.get("auth") or {}).get("accessToken") or {}
        granted = token.get("fineGrained") or {}
        scopes = [
            scope for scope in granted.get("scoped") or [] if any(map(WRITING.search, scope.get("permissions") or []))
        ]
        return cls(
            user=str(who.get("name")),
            fine_grained=token.get("role") == "fineGrained",
            everywhere=tuple(str(each) for each in granted.get("global") or [] if WRITING.search(str(each))),
            repositories=tuple(str((scope.get("entity") or {}).get("name")) for scope in scopes),
        )


def _check_token(repo: str, grant: Grant) -> None:
    beyond = [*grant.everywhere, *(name for name in grant.repositories if name != repo)]
    hint = f"make one that may write to {repo} alone: {TOKENS}"
    if not grant.fine_grained or beyond:
        what = ", ".join(beyond) or f"everything of {grant.user}"
        raise BadCredentials(f"{TOKEN_VARIABLE} may write to {what}: a rented machine must not have it", hint)
    if repo not in grant.repositories:
        raise BadCredentials(f"{TOKEN_VARIABLE} may not write to {repo}", hint)


def _ask(place: Mapping[str, str], path: str, refusal: str, read: Callable[[Any], T]) -> T:
    answer = fetch(place["endpoint"] + path, headers={"Authorization": f"Bearer {place['token']}"}, size_bytes=1 << 20)
    if answer.status in (401, 403, 404):
        hint = f"hf repo create {place['repo']} --private makes it; tokens: {TOKENS}"
        raise BadCredentials(f"{refusal} ({answer.status})", hint)
    try:
        if answer.status == 200:
            return read(parse(answer.content))
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    raise StorageError(f"{place['endpoint']} answers {answer.status} to {path}", "try again later; check HF_ENDPOINT")
