"""A language model behind an OpenAI-compatible API (`POST .../chat/completions`): one prompt, one text back.

Repeats what waiting may mend (429, 5xx, silence), within bounds. The key goes to the one host you name and into no
message. It must not know what is asked.

Example::

    model = RemoteModel("https://api.openai.com/v1", "gpt-4o-mini", key)
    model.check("OPENAI_API_KEY")
    complete(model, "Given the input ...")              # "85"
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any

from orchestrator.core.errors import BadCredentials, NoAnswer, ProviderError, QuotaUsedUp, UserError
from orchestrator.remote.web.http_client import CONTROL, Response, is_loopback, send
from orchestrator.remote.web.retries import Again, Patience, repeat

MOST_BYTES = 1 << 20
ATTEMPT_S = 120.0
"""A model that thinks before it answers takes a minute."""
PATIENCE = Patience(within_s=300.0, first_pause_s=1.0, longest_pause_s=30.0, most_tries=8, most_asked_s=90.0)
KEPT = "run the command again later: what is scored is kept"


@dataclass(frozen=True)
class RemoteModel:
    """An endpoint with its path (`.../v1`), the model's name there, and the key; "" for a server on this computer."""

    endpoint: str
    name: str
    key: str = field(repr=False, default="")

    def check(self, variable: str) -> None:
        """Raises UserError for an address that would carry the key in the open, BadCredentials without a key."""
        local = self.endpoint.startswith("http://") and is_loopback(self.endpoint)
        if not (local or self.endpoint.startswith("https://")):
            raise UserError(
                f"--endpoint {self.endpoint} is neither https:// nor on this computer: key and answers would travel "
                "unencrypted",
                "write it as https://HOST/v1",
            )
        if not self.key and not local:
            raise BadCredentials(f"{self.endpoint} needs a key, and {variable} is not set", f"export {variable}=...")
        if self.key and not re.fullmatch(r"[!-~]+", self.key):
            raise BadCredentials(f"{variable} has spaces or characters that no key has", "copy the key again")


def complete(model: RemoteModel, prompt: str, patience: Patience = PATIENCE, attempt_s: float = ATTEMPT_S) -> str:
    """What the model writes; "" where the answer is not the API's. Temperature 0, where the model takes one.

    Raises BadCredentials, QuotaUsedUp or UserError for what the endpoint refuses, NoAnswer or ProviderError where
    patience ends.
    """
    body: dict[str, object] = {"model": model.name, "messages": [{"role": "user", "content": prompt}]}
    answer = repeat(lambda: _ask(model, {**body, "temperature": 0}, attempt_s), patience)
    if answer.status == 400 and "temperature" in _reason(answer):
        answer = repeat(lambda: _ask(model, body, attempt_s), patience)
    if answer.status != 200:
        raise UserError(
            f"{model.endpoint} refuses the request for {model.name}: HTTP {answer.status}{_reason(answer, model.key)}",
            "check --endpoint and --judge",
        )
    return _content(answer.content)


def _ask(model: RemoteModel, body: dict[str, object], attempt_s: float) -> Response:
    headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {model.key}"} if model.key else {})}
    url = f"{model.endpoint.rstrip('/')}/chat/completions"
    try:
        answer = send(
            "POST", url, headers, content=json.dumps(body).encode(), most_bytes=MOST_BYTES, deadline_s=attempt_s
        )
    except NoAnswer as error:
        raise Again(NoAnswer(error.message, KEPT)) from error
    if answer.status in (401, 403):
        raise BadCredentials(
            f"{model.endpoint} refuses the key: HTTP {answer.status}", "check the key and what it may do"
        )
    if answer.status == 429 and "insufficient_quota" in _text(answer):
        raise QuotaUsedUp(f"{model.endpoint}: the account has no credit left{_reason(answer, model.key)}", KEPT)
    if answer.status == 429 or answer.status >= 500:
        trouble = ProviderError(
            f"{model.endpoint} keeps answering HTTP {answer.status}{_reason(answer, model.key)}", KEPT
        )
        raise Again(trouble, asked_s=answer.retry_after_s)
    return answer


def _text(answer: Response) -> str:
    return answer.content[:4000].decode(errors="replace")


def _reason(answer: Response, key: str = "") -> str:
    """ ": " and the endpoint's own words, without the key; nothing where it has none."""
    try:
        value: Any = json.loads(answer.content)
        words = value["error"]["message"]
    except (ValueError, RecursionError, KeyError, IndexError, TypeError):
        return ""
    if not isinstance(words, str) or not words:
        return ""
    return ": " + CONTROL.sub(" ", words.replace(key, "KEY") if key else words)[:300]


def _content(raw: bytes) -> str:
    try:
        value: Any = json.loads(raw)
        content = value["choices"][0]["message"]["content"]
    except (ValueError, RecursionError, KeyError, IndexError, TypeError):
        return ""
    return content if isinstance(content, str) else ""
