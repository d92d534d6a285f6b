"""The text cloud-init applies at a rented machine's first boot: the host key that we made and will pin, and where the
machine is to end itself the timer that powers it off, armed before anything else and at every boot.

JSON is YAML: nothing has to be escaped by hand. Whatever runs on the machine can read this text, so it holds no other
secret, and the key is replaced over the first verified session.

Example: `user_data(new_key_pair("rental"), Timer("8xa100-1126-k3f9qa", 5400))` starts with "#cloud-config"
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from orchestrator.remote.shell.key_pairs import KeyPair

PROGRAM = Path(__file__).with_name("gptctl-self.sh")
# bootcmd, since it comes first, before write_files too, and at every boot; so it has to write the program itself.
# Into the first folder of the PATH: /usr/local/sbin.
INSTALL = """d=${PATH%%:*}; mkdir -p "$d" && printf %s "$1" > "$d/gptctl-self.new" && chmod 755 "$d/gptctl-self.new" &&
mv "$d/gptctl-self.new" "$d/gptctl-self" && exec "$d/gptctl-self" boot "$2" "$3"
"""


@dataclass(frozen=True)
class Timer:
    """A machine that powers itself off `first_s` seconds after its boot, unless its agent moves that moment."""

    rental_id: str
    """Whose machine it is: the timer obeys no agent that was armed for another."""
    first_s: int


def user_data(host_key: KeyPair | None, timer: Timer | None = None) -> str:
    """A cloud-config that makes this ed25519 pair the machine's only host key, and arms the timer."""
    config: dict[str, object] = {}
    if host_key is not None:
        config["ssh_deletekeys"] = True
        config["ssh_keys"] = {"ed25519_private": host_key.private, "ed25519_public": host_key.public}
        config["ssh_pwauth"] = False
    if timer is not None:
        config["bootcmd"] = [
            ["sh", "-c", INSTALL, "sh", PROGRAM.read_text("utf-8"), timer.rental_id, str(timer.first_s)]
        ]
    return "#cloud-config\n" + json.dumps(config, indent=1) + "\n" if config else ""
