"""Lines out of pieces of a stream, in bounded memory."""

from __future__ import annotations

LONGEST_BYTES = 1 << 20


class LineBuffer:
    """Keeps what follows the last newline. A line longer than LONGEST_BYTES is not kept: its rest comes as a line.

    Example: `LineBuffer().take(b"a\\nb")` gives [b"a"]
    """

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._held_bytes = 0

    def take(self, data: bytes) -> list[bytes]:
        """The lines that are whole now, without their newline."""
        first, *others = data.split(b"\n")
        self._pieces.append(first)
        self._held_bytes += len(first)
        if not others:
            if self._held_bytes > LONGEST_BYTES:
                self._pieces, self._held_bytes = [], 0
            return []
        *lines, last = [b"".join(self._pieces), *others]
        self._pieces, self._held_bytes = [last], len(last)
        return lines
