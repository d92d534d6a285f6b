"""A private repository of the Hub as a checkpoint store: what a machine is given to write there, and whether it may be.

A URL alone cannot store on the Hub, so the machine needs a token. It is HF_STORE_TOKEN and no other, fine-grained, and
may write to that one repository: whoever gets hold of the machine gets no more. The machine's side of the protocol is
orchestrator/agent/checkpoints/hub_store.py.

Example::

    check("hf://me/runs")                                  # raises UserError: the repository is public
    access("hf://models/me/runs/chinchilla-1120-k3f9qa")   # {"endpoint", "repo", "token", "folder"}
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from typing import Any

from orchestrator.core.checkpoints.store_places import hub_place
from orchestrator.core.errors import BadCredentials, StorageError, UserError
from orchestrator.remote.web.hugging_face import endpoint
from orchestrator.remote.web.range_reads import fetch

TOKEN_VARIABLE = "HF_STORE_TOKEN"
TOKENS = "https://huggingface.co/settings/tokens"
WRITING = re.compile(r"write|admin|repo\.content\.write")


def access(uri: str) -> dict[str, str]:
    """What the offload job gets as a secret. Raises UserError for another address, BadCredentials without a token."""
    repo, folder = hub_place(uri)
    token = os.environ.get(TOKEN_VARIABLE, "").strip()
    if not token:
        raise BadCredentials(
            f"{uri}: there is no {TOKEN_VARIABLE}",
            f"make a fine-grained token that may write to {repo} alone ({TOKENS}) and export {TOKEN_VARIABLE}=hf_...",
        )
    return {"endpoint": endpoint(), "repo": repo, "folder": folder, "token": token}


def check(uri: str) -> None:
    """The repository is there and private, and the token may write to it and to nothing else. Changes nothing.

    Raises UserError, BadCredentials, StorageError or NoAnswer, each with what would help.
    """
    place = access(uri)
    repo = place["repo"]
    _check_token(repo, _ask(place, "/api/whoami-v2", f"{TOKEN_VARIABLE} is refused by the Hub"))
    if not _ask(place, f"/api/models/{repo}", f"{repo} does not exist, or {TOKEN_VARIABLE} may not see it").get(
        "private"
    ):
        raise UserError(
            f"checkpoint_store {uri}: {repo} is public: everybody could read the checkpoints",
            f"make it private, or another one: hf repo create {repo}-checkpoints --private",
        )


def _check_token(repo: str, who: Mapping[str, Any]) -> None:
    token = (who.get("auth") or {}).get("accessToken") or {}
    granted = token.get("fineGrained") or {}
    beyond = [str(each) for each in granted.get("global") or [] if WRITING.search(str(each))]
    written = [
        scope for scope in granted.get("scoped") or [] if any(map(WRITING.search, scope.get("permissions") or []))
    ]
    names = [str((scope.get("entity") or {}).get("name")) for scope in written]
    beyond += [name for name in names if name != repo]
    hint = f"make one that may write to {repo} alone: {TOKENS}"
    if token.get("role") != "fineGrained" or beyond:
        what = ", ".join(beyond) or f"everything of {who.get('name')}"
        raise BadCredentials(f"{TOKEN_VARIABLE} may write to {what}: a rented machine must not have it", hint)
    if repo not in names:
        raise BadCredentials(f"{TOKEN_VARIABLE} may not write to {repo}", hint)


def _ask(place: Mapping[str, str], path: str, refusal: str) -> dict[str, Any]:
    answer = fetch(place["endpoint"] + path, headers={"Authorization": f"Bearer {place['token']}"}, size_bytes=1 << 20)
    if answer.status in (401, 403, 404):
        hint = f"hf repo create {place['repo']} --private makes it; tokens: {TOKENS}"
        raise BadCredentials(f"{refusal} ({answer.status})", hint)
    try:
        value = json.loads(answer.content) if answer.status == 200 else None
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise StorageError(
            f"{place['endpoint']} answers {answer.status} to {path}", "try again later; check HF_ENDPOINT"
        )
    return value
