"""What a host key is compared with before anybody is dialled."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.core.errors import HostKeyChanged
from orchestrator.remote.shell.host_key_check import Trust
from orchestrator.remote.shell.known_hosts import HostKey, repin
from orchestrator.remote.shell.ssh_endpoint import Endpoint

ONE = HostKey("ssh-ed25519", "AAAAC3NzaC1lZDI1NTE5AAAAIJdD7y3aLq454yWBdwLWbieU1ebz9/cu7/QEXn9OIeZJ")
TWO = HostKey("ssh-ed25519", "AAAAC3NzaC1lZDI1NTE5AAAAIA6rWI3G1sz07DnfFlrouTcysQlj2P+jpNSOEWD9OJ3X")
BOX = Endpoint("192.0.2.7", 22, "me", "[box]:22")


def trust(folder: Path, *keys: HostKey) -> Trust:
    repin(folder / "known_hosts", BOX.identity, keys)
    return Trust(folder / "known_hosts", folder / "mine", accept_new=True)


def test_a_fingerprint_that_no_pinned_key_has_is_refused_with_both(tmp_path: Path) -> None:
    with pytest.raises(HostKeyChanged) as caught:
        trust(tmp_path, ONE).expected(BOX, TWO.fingerprint)
    assert ONE.fingerprint in caught.value.message and TWO.fingerprint in caught.value.message
    assert "ssh-keygen -R '[box]:22'" in caught.value.hint


@pytest.mark.parametrize("keys", [(ONE,), (ONE, TWO), (TWO, ONE)])
@pytest.mark.parametrize("ending", ["", "="])
def test_one_pinned_key_of_that_fingerprint_is_enough(tmp_path: Path, keys: tuple[HostKey, ...], ending: str) -> None:
    known = trust(tmp_path, *keys)
    assert known.expected(BOX, ONE.fingerprint + ending) == known.expected(BOX, None) == keys
