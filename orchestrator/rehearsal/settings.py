"""Options of the cloud, as its command line sets them.

Example: `Settings(boot_s=1, minute_s=1)`
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Settings:
    """Options of the cloud; the defaults suit a person who watches."""

    boot_s: float = 4.0
    """Seconds from launch to active."""
    minute_s: float = 60.0
    """Length of a billing minute; tests make it short."""
    linger_s: float = 1.0
    """Seconds a terminated instance is still listed."""
    ssh_port: int = 2222
    """Port of every machine's sshd; the API has no field for it."""
    python: str = sys.executable
    """The `python3` of the machines."""
    image: Path | None = None
    """A folder whose content every new machine has in its home, as a machine from an image you prepared."""
    hang_s: float = 0.2
    """Seconds before an unanswered connection closes."""
    notice_s: float = 120.0
    """Seconds from the notice to a spot machine to its preemption."""
    strict_rate: bool = False
    """Enforce Lambda's limits: 1 request per second, 1 launch per 12 s."""
