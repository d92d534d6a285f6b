"""A pause between tries that doubles, up to a limit, until a try succeeds.

Example::

    pause = Pause(1.0, 30.0)
    pause.next_s(), pause.next_s(), pause.next_s()      # 1.0, 2.0, 4.0
    pause.reset()                                       # the next one is 1.0 again
"""

from __future__ import annotations


class Pause:
    """Seconds only; it does not sleep."""

    def __init__(self, first_s: float, longest_s: float) -> None:
        self.first_s, self.longest_s = first_s, longest_s
        self.seconds = first_s

    def next_s(self) -> float:
        """How long to wait now; the next pause is twice as long."""
        now_s, self.seconds = self.seconds, min(2 * self.seconds, self.longest_s)
        return now_s

    def reset(self) -> None:
        """A try succeeded."""
        self.seconds = self.first_s
