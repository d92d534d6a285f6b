"""How long a login that OpenSSH makes may take: a person may have to touch a key."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from orchestrator.core.ports import Address
from orchestrator.remote.shell import ssh_shell
from orchestrator.remote.shell.dial import Refused


@pytest.mark.parametrize(("asked_s", "given_s"), [(10.0, 60.0), (30.0, 60.0), (2.0, 2.0)])
def test_a_person_has_a_minute_unless_the_caller_only_looks(
    gptctl_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked_s: float, given_s: float
) -> None:
    given: list[float] = []

    def dialled(*_: object, **__: object) -> object:
        raise Refused("accepts none of our keys", "check ssh_key")

    def hand_over(endpoint: object, address: object, known_hosts: object, deadline_s: float) -> object:
        given.append(deadline_s)
        return SimpleNamespace(argv=["ssh", "box"])

    monkeypatch.setattr(ssh_shell, "dialled", dialled)
    monkeypatch.setattr(ssh_shell, "hand_over", hand_over)
    ssh_shell.connect(Address("127.0.0.9"), known_hosts=tmp_path / "pins", connect_deadline_s=asked_s)
    assert given == [given_s]
