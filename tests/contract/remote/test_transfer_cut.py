"""A link cut in the middle of a big file: noticed within 10 s, gone on with at the byte; every name stays quoted."""

from __future__ import annotations

import shlex
import time
from pathlib import Path

import pytest

from orchestrator.core.errors import LinkLost
from orchestrator.remote.shell.ssh_shell import SshShell, connect
from orchestrator.remote.transfer.transfer import Transfer, pull_file, push_file
from tests.contract.remote.test_transfer import a_file, entry
from tests.support.clock.waiting import PATIENCE
from tests.support.machines.sshd import Sshd

NOTICED_WITHIN_S = 10.0


@pytest.fixture
def pins(gptctl_home: Path) -> Path:
    return gptctl_home / "known_hosts"


class Cut:
    """A listener that cuts the link once a quarter of the bytes has gone."""

    def __init__(self, box: Sshd) -> None:
        self.box = box
        self.at: float | None = None

    def __call__(self, moment: Transfer) -> None:
        if self.at is None and moment.bytes_done > moment.bytes_total / 4:
            self.box.cut()
            self.at = time.monotonic()


BIG_BYTES = 256 << 20


@pytest.mark.nightly
def test_a_push_cut_in_the_middle_goes_on_at_the_byte(box: Sshd, pins: Path, tmp_path: Path) -> None:
    source, far, cut = a_file(tmp_path / "source", BIG_BYTES), tmp_path / "far" / "file", Cut(box)
    first = connect(box.address(), known_hosts=pins)
    with pytest.raises(LinkLost):
        push_file(first, source, str(far), cut)
    assert cut.at is not None
    assert time.monotonic() - cut.at < PATIENCE * NOTICED_WITHIN_S
    assert not far.exists()
    first.close()
    box.heal()
    second = connect(box.address(), known_hosts=pins)
    arrived = sum(positions(far.parent))
    report = push_file(second, source, str(far))
    second.close()
    assert 0 < report.bytes_sent == BIG_BYTES - arrived < BIG_BYTES
    assert entry(far) == entry(source)
    assert [path.name for path in far.parent.iterdir()] == ["file"]


def test_a_pull_cut_in_the_middle_goes_on_at_the_byte(box: Sshd, pins: Path, tmp_path: Path) -> None:
    far, here, cut = a_file(tmp_path / "far", BIG_BYTES), tmp_path / "here" / "file", Cut(box)
    wanted = entry(far)
    first = connect(box.address(), known_hosts=pins)
    with pytest.raises(LinkLost):
        pull_file(first, str(far), here, size_bytes=BIG_BYTES, sha256=wanted.sha256, on_progress=cut)
    assert cut.at is not None
    assert time.monotonic() - cut.at < PATIENCE * NOTICED_WITHIN_S
    assert not here.exists()
    first.close()
    box.heal()
    arrived = sum(positions(here.parent))
    second = connect(box.address(), known_hosts=pins)
    report = pull_file(second, str(far), here, size_bytes=BIG_BYTES, sha256=wanted.sha256)
    second.close()
    assert 0 < report.bytes_sent == BIG_BYTES - arrived < BIG_BYTES
    assert entry(here) == wanted


def positions(folder: Path) -> list[int]:
    """The side file that says how far each range got: eight bytes each."""
    (side,) = folder.glob(".*.part.ranges")
    data = side.read_bytes()
    return [int.from_bytes(data[at : at + 8], "little") for at in range(0, len(data), 8)]


def test_no_argument_of_bulk_transfer_reaches_a_far_shell_unquoted(shell: SshShell, tmp_path: Path) -> None:
    source = a_file(tmp_path / "a'b; touch canary", 2 << 20)
    push_file(shell, source, "dir $(touch canary)/x'; touch canary #")
    assert b"canary" not in shell.run(["ls"]).stdout.replace(b"dir $(touch canary)", b"")
    argv = shell.openssh()
    assert argv is not None and shlex.split(shlex.join(argv)) == list(argv)
