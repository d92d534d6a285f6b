"""User data as cloud-init would read it."""

from __future__ import annotations

import json

import pytest

from orchestrator.rehearsal.machines.cloud_config import parse

CONFIG = """#cloud-config
# what a client sends
ssh_deletekeys: true
ssh_keys:
  ed25519_private: |
    -----BEGIN OPENSSH PRIVATE KEY-----
    b3BlbnNzaC1rZXk=

    -----END OPENSSH PRIVATE KEY-----
  ed25519_public: "ssh-ed25519 AAAA me: here"
write_files:
- path: /etc/motd   # seen at login
  content: 'it''s here'
  permissions: '0600'
-   path: /a
    content: |-
      x
        y
runcmd:
  - [touch, /tmp/x]
  - echo a > b
  -
    - sh
    - -c
packages: []
count: 3
empty:
"""


def test_a_block_style_cloud_config() -> None:
    assert parse(CONFIG) == {
        "ssh_deletekeys": True,
        "ssh_keys": {
            "ed25519_private": "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXk=\n\n"
            "-----END OPENSSH PRIVATE KEY-----\n",
            "ed25519_public": "ssh-ed25519 AAAA me: here",
        },
        "write_files": [
            {"path": "/etc/motd", "content": "it's here", "permissions": "0600"},
            {"path": "/a", "content": "x\n  y"},
        ],
        "runcmd": [["touch", "/tmp/x"], "echo a > b", ["sh", "-c"]],
        "packages": [],
        "count": 3,
        "empty": None,
    }


def test_json_is_yaml() -> None:
    value = {"ssh_keys": {"ed25519_private": "a\nb\n"}, "runcmd": [["true"]]}
    assert parse("#cloud-config\n" + json.dumps(value, indent=1)) == value


def test_a_script_is_kept_whole() -> None:
    assert parse("#!/bin/sh\ntrue\n") == {"script": "#!/bin/sh\ntrue\n"}


@pytest.mark.parametrize("bad", ["Content-Type: multipart/mixed\n", "#cloud-config\n- a\n", "#cloud-config\na: {b\n"])
def test_what_cannot_be_read_is_an_error(bad: str) -> None:
    with pytest.raises(ValueError, match=r"user data starts|not a mapping|cannot read"):
        parse(bad)
