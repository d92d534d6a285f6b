"""Pinned keys: written once, read back, never replaced, and readable by OpenSSH itself."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.core.errors import UserError
from orchestrator.remote.shell.known_hosts import HostKey, pin, pinned, vouched

ONE = HostKey("ssh-ed25519", "AAAAC3NzaC1lZDI1NTE5AAAAIJdD7y3aLq454yWBdwLWbieU1ebz9/cu7/QEXn9OIeZJ")
TWO = HostKey("ssh-ed25519", "AAAAC3NzaC1lZDI1NTE5AAAAIA6rWI3G1sz07DnfFlrouTcysQlj2P+jpNSOEWD9OJ3X")


def test_a_pinned_key_comes_back_and_is_never_replaced(tmp_path: Path) -> None:
    file = tmp_path / "state" / "known_hosts"
    assert pinned(file, "i-0abc") == ()
    pin(file, "i-0abc", ONE)
    pin(file, "i-0abc", TWO)
    pin(file, "[box]:2222", TWO)
    assert pinned(file, "i-0abc") == pinned(file, "I-0ABC") == (ONE,)
    assert pinned(file, "[box]:2222") == (TWO,)
    assert pinned(file, "[box]:22") == pinned(file, "box") == ()


def test_the_file_is_private_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        pin(tmp_path / "state" / "known_hosts", "x", ONE)
    finally:
        os.umask(before)
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "state", *(tmp_path / "state").iterdir())]
    assert modes == [0o700, 0o600, 0o600]


def test_many_processes_pin_without_losing_a_line(tmp_path: Path) -> None:
    file = tmp_path / "known_hosts"
    program = (
        "import sys; from pathlib import Path; from orchestrator.remote.shell.known_hosts import *\n"
        f"for n in range(20): pin(Path({str(file)!r}), f'{{sys.argv[1]}}-{{n}}', HostKey('k', 'AAAA')); "
        f"pin(Path({str(file)!r}), 'shared', HostKey('k', sys.argv[1]))"
    )
    processes = [subprocess.Popen([sys.executable, "-c", program, f"p{number}"]) for number in range(4)]
    assert [process.wait(240) for process in processes] == [0] * 4
    assert len(file.read_text().splitlines()) == 4 * 20 + 1
    assert len(pinned(file, "shared")) == 1


@pytest.mark.parametrize("identity", ["", "a b", "*", "a,b", "!a", "|1|x", "#", "@revoked", "a\nb", "?"])
def test_an_identity_that_openssh_would_read_as_a_pattern_is_refused(tmp_path: Path, identity: str) -> None:
    with pytest.raises(UserError, match="cannot name a machine"):
        pin(tmp_path / "known_hosts", identity, ONE)


def test_the_fingerprint_is_ssh_keygens(tmp_path: Path) -> None:
    public = tmp_path / "key.pub"
    public.write_text(f"{ONE.kind} {ONE.base64}\n")
    listing = subprocess.run(["ssh-keygen", "-lf", str(public)], capture_output=True, text=True, check=True)
    assert ONE.fingerprint == listing.stdout.split()[1]


def test_openssh_finds_what_we_pin(tmp_path: Path) -> None:
    file = tmp_path / "known_hosts"
    for identity in ("i-0abc", "[box.example]:2222", "[::1]:22"):
        pin(file, identity, ONE)
        found = subprocess.run(
            ["ssh-keygen", "-F", identity, "-f", str(file)], capture_output=True, text=True, check=True
        )
        assert ONE.base64 in found.stdout


def test_the_users_own_file_vouches_by_name_plain_or_hashed_and_never_by_a_marker(tmp_path: Path) -> None:
    mine = tmp_path / "known_hosts"
    mine.write_text(
        f"# comment\nbox,10.0.0.1 {ONE.kind} {ONE.base64} me@there\n[box]:2222 {TWO.kind} {TWO.base64}\n"
        f"@revoked gone {ONE.kind} {ONE.base64}\n@cert-authority *.example {ONE.kind} {ONE.base64}\n"
    )
    assert vouched(mine, ["box"]) == vouched(mine, ["nobody", "10.0.0.1", "box"]) == (ONE,)
    assert vouched(mine, ["[box]:2222"]) == (TWO,)
    assert vouched(mine, ["gone"]) == vouched(mine, ["a.example"]) == vouched(tmp_path / "none", ["box"]) == ()
    subprocess.run(["ssh-keygen", "-q", "-H", "-f", str(mine)], check=True, capture_output=True)
    assert "box" not in mine.read_text().replace("@", "").split("\n")[1]
    assert vouched(mine, ["box"]) == (ONE,)
