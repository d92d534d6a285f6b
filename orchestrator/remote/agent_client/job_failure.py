"""Why a job of the agent failed: its code, message and hint, out of the job's exit record.

An agent of version 0.1 put them into its log only. A machine that was rented then may still run, so `failure` reads
those lines too; nothing else reads a log to decide.

Example::

    failure(exit_record)["code"]        # 'disk-full'
"""

from __future__ import annotations

import re

from orchestrator.agent.contract.answers import ExitRecord, Failure
from orchestrator.agent.contract.names import CODES, Code

CODE_LINE = re.compile(r"(?P<code>[a-z][a-z-]*): (?P<message>.*)")
HINT = "hint: "
STATUS = re.compile(r" answers (\d{3}) ")
CODES_BY_STATUS = {
    "401": Code.SOURCE_DENIED,
    "403": Code.SOURCE_DENIED,
    "404": Code.SOURCE_CHANGED,
    "416": Code.SOURCE_CHANGED,
}


def failure(exit_record: ExitRecord) -> Failure:
    """Never empty: a job that said nothing has its reason as message, and no code."""
    stated = exit_record.get("refusal") or _from_log(exit_record.get("last_lines") or [])
    return stated or Failure(code="", message=exit_record["reason"] or "the job ended without a message", hint="")


def _from_log(lines: list[str]) -> Failure | None:
    """What an agent of version 0.1 wrote: `CODE: MESSAGE`, then perhaps `hint: HINT`."""
    matches = [match for match in map(CODE_LINE.fullmatch, lines) if match and match["code"] in CODES]
    if not matches:
        return None
    hint = next((line.removeprefix(HINT) for line in lines if line.startswith(HINT)), "")
    return Failure(code=_refined(matches[0]["code"], matches[0]["message"]), message=matches[0]["message"], hint=hint)


def _refined(code: str, message: str) -> str:
    """Version 0.1 had one code for every refusal of a server."""
    if code != Code.SOURCE_REFUSED:
        return code
    if "ignores byte ranges" in message:
        return Code.SOURCE_WITHOUT_RANGES
    if "announced were" in message:
        return Code.SOURCE_CHANGED
    status = STATUS.search(message)
    return CODES_BY_STATUS.get(status[1], code) if status else code
