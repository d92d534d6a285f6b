"""The one exception of the agent: a refusal with a code that programs read and a message that people read.

Example::

    raise Refusal("no-such-run", "no run quickstart-1120-k3f9qa on this machine")
"""

from __future__ import annotations

import errno

from ..contract.answers import Failure, RefusalLine
from ..contract.names import Code

OS_CODES = {
    errno.ENOSPC: Code.DISK_FULL,
    errno.EDQUOT: Code.DISK_FULL,
    errno.EROFS: Code.READ_ONLY,
    errno.EACCES: Code.READ_ONLY,
    errno.EPERM: Code.READ_ONLY,
}


class Refusal(Exception):
    """The agent will not or cannot; `code` is one of those listed in docs/reference/agent-protocol.md."""

    def __init__(self, code: str, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint

    def failure(self) -> Failure:
        """As it stands in answers and exit records."""
        return {"code": self.code, "message": self.message, "hint": self.hint}

    def answer(self) -> RefusalLine:
        """The line that goes to stdout."""
        return {"error": self.failure()}


def as_refusal(error: Refusal | OSError) -> Refusal:
    """A full disk or a folder that cannot be written gets its code; any other OSError its own text."""
    if isinstance(error, Refusal):
        return error
    where = " (%s)" % error.filename if error.filename else ""
    return Refusal(OS_CODES.get(error.errno or 0, Code.OS_ERROR), "%s%s" % (error.strerror or error, where))
