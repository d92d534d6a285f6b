"""What a machine can ask about itself: the part of EC2's instance metadata, version 2, that announces its end.

EC2 answers at a link-local address and knows the machine by it; here the path names the machine, and only this computer
can ask. Both require a token.

Example: `PUT /metadata/i-1/latest/api/token`, then `GET /metadata/i-1/latest/meta-data/spot/instance-action`
"""

from __future__ import annotations

import json
import re
import time
from email.message import Message

from orchestrator.rehearsal.answer_faults import Answer
from orchestrator.rehearsal.cloud import Cloud

PREFIX = "/metadata/"
PATH = re.compile(r"^/metadata/(?P<id>[0-9a-f]+)/latest/(?P<what>.*)$")
TOKEN = "rehearsal-metadata-token"
LIFETIME_HEADER, TOKEN_HEADER = "X-aws-ec2-metadata-token-ttl-seconds", "X-aws-ec2-metadata-token"


def answer(cloud: Cloud, method: str, path: str, headers: Message) -> Answer:
    """404 without news, 401 without the token."""
    match = PATH.match(path)
    if match is None:
        return _text(404, "")
    if (method, match["what"]) == ("PUT", "api/token"):
        return _text(200, TOKEN) if headers.get(LIFETIME_HEADER) else _text(400, "")
    if headers.get(TOKEN_HEADER) != TOKEN:
        return _text(401, "")
    found = _document(cloud, match["id"], match["what"]) if method == "GET" else None
    return _text(404, "") if found is None else _text(200, json.dumps(found))


def _document(cloud: Cloud, instance_id: str, what: str) -> dict[str, str] | None:
    history = [event for event in cloud.events() if event.get("id") == instance_id]
    for event in reversed(history):
        if (what, event["event"]) == ("meta-data/spot/instance-action", "notice"):
            return {"action": "terminate", "time": _moment(event["taken_at"])}
        if (what, event["event"]) == ("meta-data/events/recommendations/rebalance", "rebalance"):
            return {"noticeTime": _moment(event["time"])}
    return None


def _moment(epoch: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(epoch))


def _text(status: int, text: str) -> Answer:
    return Answer(status, None, raw=text.encode())
