"""The one exception of the agent: a refusal with a code that programs read and a message that people read.

Example::

    raise Refusal("no-such-run", "no run quickstart-1120-k3f9qa on this machine")
"""

from __future__ import annotations

import errno

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

    def answer(self) -> dict[str, dict[str, str]]:
        """The line that goes to stdout."""
        return {"error": {"code": self.code, "message": self.message, "hint": self.hint}}


def from_os_error(error: OSError) -> Refusal:
    """A full disk or a folder that cannot be written, in words; anything else by its own text."""
    where = " (%s)" % error.filename if error.filename else ""
    return Refusal(OS_CODES.get(error.errno or 0, Code.OS_ERROR), "%s%s" % (error.strerror or error, where))
