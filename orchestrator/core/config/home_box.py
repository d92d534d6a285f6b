"""A home box: a computer of the user's that is always on, which keeps a run's checkpoints. What its address says.

    ssh://HOST/FOLDER       HOST: an entry of the inventory with provider `ssh`, or [USER@]NAME[:PORT] as for ssh itself

Example: `parts("ssh://nas/mnt/models")` -> ("nas", "/mnt/models")
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from orchestrator.core.errors import UserError
from orchestrator.core.ports import Address
from orchestrator.core.safe_names import stays_inside

SCHEME = "ssh"
FOLDER = "~/.gptctl"
"""Where the agent is installed on a box that is not in the inventory."""
FORM = re.compile(r"ssh://([^/\s]+)((?:/[^/\x00-\x1f]+)+)/?")
LOGIN = re.compile(
    r"(?:(?P<user>[A-Za-z0-9_][A-Za-z0-9_.-]{0,63})@)?(?P<name>[A-Za-z0-9_][A-Za-z0-9_.-]{0,253})(?::(?P<port>\d{1,5}))?"
)


@dataclass(frozen=True)
class HomeBox:
    """How it is reached from here, and where gptctl's agent lives on it."""

    name: str
    """As in the URI: what stands between ssh:// and the folder."""
    address: Address
    agent_folder: str = FOLDER


def is_home(uri: str | None) -> bool:
    """Whether this is a place on a home box."""
    return uri is not None and uri.startswith(f"{SCHEME}://")


def parts(uri: str) -> tuple[str, str]:
    """(HOST, absolute folder). Raises UserError for anything else, and for a folder with `..`."""
    found = FORM.fullmatch(uri)
    if found is None or not stays_inside(found[2][1:], plain=False):
        raise UserError(
            f"{uri} is not a place on a home box", "write it as ssh://HOST/FOLDER; the folder's path is absolute"
        )
    return found[1], found[2]


def by_ssh_alone(uri: str) -> HomeBox:
    """A box that no inventory names: what ssh would be given. Raises UserError."""
    name, _ = parts(uri)
    found = LOGIN.fullmatch(name)
    port = int(found["port"]) if found and found["port"] else None
    if found is None or (port is not None and not 1 <= port <= 65_535):
        raise UserError(f"{uri}: {name!r} is not a host for ssh", "write ssh://[USER@]NAME[:PORT]/FOLDER")
    return HomeBox(name, Address(found["name"], port, found["user"], identity=f"[{found['name']}]:{port or 22}"))
