"""The text cloud-init applies at a rented machine's first boot: the host key that we made and will pin.

JSON is YAML: nothing has to be escaped by hand. Whatever runs on the machine can read this text, so it holds no other
secret, and the key is replaced over the first verified session.

Example: `user_data(new_key_pair("rental"))` starts with "#cloud-config"
"""

from __future__ import annotations

import json

from orchestrator.remote.keys import KeyPair


def user_data(host_key: KeyPair) -> str:
    """A cloud-config that makes this ed25519 pair the machine's only host key."""
    config = {
        "ssh_deletekeys": True,
        "ssh_keys": {"ed25519_private": host_key.private, "ed25519_public": host_key.public},
        "ssh_pwauth": False,
    }
    return "#cloud-config\n" + json.dumps(config, indent=1) + "\n"
