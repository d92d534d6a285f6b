"""A checkpoint store before anything is bought: whether it can be written to from anywhere, and for how long.

What a machine will do with presigned URLs is done here once with an empty object: a bucket without write permission, a
wrong region or a clock that is off is found before the first dollar. It must not move checkpoints.

Example: `check(uri, storage.of(uri))`, of "s3://bucket/prefix", raises StorageError with the store's own words
"""

from __future__ import annotations

import re
import time
from uuid import uuid4

from orchestrator import storage
from orchestrator.core.checkpoints.store_index import GRANT_S
from orchestrator.core.errors import BadCredentials, NoAnswer, StorageError, UserError
from orchestrator.core.ports import Storage, StoredFile
from orchestrator.remote.web.http_client import send
from orchestrator.stores import hub_repository
from orchestrator.stores.home_box import HomeBoxStorage

DEADLINE_S = 20.0
CHECK_S = 600.0


def check(uri: str, storage: Storage, *, hub_token_on_machine: bool = False, needs_bytes: int = 0) -> None:
    """Writes an empty object below the store and takes it away; of a repository of the Hub it asks what the token may,
    of a home box whether it has what it needs to keep `needs_bytes`. Raises UserError, BadCredentials, StorageError,
    NoAnswer or RemoteError, each with what would help."""
    if isinstance(storage, HomeBoxStorage):
        return storage.check(uri, needs_bytes)
    if uri.startswith("hf://"):
        return _check_hub(uri, hub_token_on_machine)
    (upload,) = storage.upload_plan(uri, [StoredFile(f"gptctl-check-{uuid4().hex[:8]}", 0)], CHECK_S)
    answer = send("PUT", upload.puts[0].url, {"Content-Length": "0"}, most_bytes=4096, deadline_s=DEADLINE_S)
    if not 200 <= answer.status < 300:
        raise _refusal(uri, answer.status, answer.content)
    if upload.remove_url is not None:
        send("DELETE", upload.remove_url, {}, most_bytes=4096, deadline_s=DEADLINE_S)


def _check_hub(uri: str, allowed: bool) -> None:
    """Never without a word of the user's: the machine gets a token."""
    if not allowed:
        raise UserError(
            f"checkpoint_store {uri}: the machine would get a token of yours, {hub_repository.TOKEN_VARIABLE}",
            "set hub_token_on_machine = true in the host's entry if it may; s3:// stores need no credential there",
        )
    hub_repository.check(uri)


def _refusal(uri: str, status: int, said: bytes) -> Exception:
    code = re.search(rb"<Code>([A-Za-z0-9]{1,60})</Code>", said)
    words = f"{status} {code.group(1).decode() if code else ''}".strip()
    if b"Skewed" in said or b"not yet valid" in said:
        return StorageError(f"{uri} answers {words}: this computer's clock is off", "set the clock, by NTP")
    if status == 404:
        return StorageError(f"{uri} answers {words}: no such bucket", "create it, or correct the name")
    if status in (401, 403):
        return StorageError(
            f"{uri} answers {words}: these credentials may not write there",
            "allow s3:PutObject, s3:GetObject and s3:DeleteObject below the prefix, or choose another AWS_PROFILE",
        )
    if status >= 500:
        return NoAnswer(f"{uri} answers {words}", "try again later")
    return StorageError(f"{uri} answers {words}", "check the address, the region (AWS_REGION) and the endpoint")


def short_of(whole_s: float, uri: str | None, now: float) -> str:
    """Why URLs made now would not last for the `whole_s` that the machine may run; empty when they do."""
    if uri is None or not uri.startswith("s3://"):
        return ""
    try:
        ends_at = storage.of(uri).grants_end_at()
    except BadCredentials:
        return ""  # said where it is tried
    lasts_s = GRANT_S if ends_at is None else min(GRANT_S, ends_at - now)
    if lasts_s >= whole_s:
        return ""
    until = time.strftime("%b %d %H:%M", time.localtime(now + lasts_s))
    why = "six days are the longest" if lasts_s == GRANT_S else "so long do the AWS credentials last"
    return f"the machine can store checkpoints until {until} ({why}), and may run {whole_s / 3600:.1f} h"
