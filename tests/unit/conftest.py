"""For units: their ledgers need not survive a power cut, and a commit costs microseconds in place of milliseconds."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from orchestrator.ledger import database


@pytest.fixture(autouse=True, scope="session")
def no_power_cuts() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(database, "SYNCHRONOUS", "OFF")
        yield
