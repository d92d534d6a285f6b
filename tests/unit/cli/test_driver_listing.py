"""What a driver lists becomes paths here: of whatever type and name it is, nothing outside of the run is touched."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.cli.driver.listing import Listed, listing
from orchestrator.core.errors import CommandFailed

FILE = ["checkpoints/latest/model.safetensors", 3, None]


def said(**more: Any) -> dict[str, Any]:
    return {"run": "tiny-1130-k3f9qa", "ended": True, "folder": "/d/runs/tiny", "files": [FILE], **more}


def test_a_listing_is_typed() -> None:
    found = listing(said(files=[FILE, ["checkpoints/best", 0, "step-000007"]]))
    assert found.ended and found.run == "tiny-1130-k3f9qa"
    assert found.files == (
        Listed("checkpoints/latest/model.safetensors", 3, None),
        Listed("checkpoints/best", 0, "step-000007"),
    )


@pytest.mark.parametrize(
    "lie",
    [
        {"run": "../../.ssh"}, {"run": "a/b"}, {"run": ""}, {"run": 7}, {"run": None}, {"folder": None}, {"files": {}},
        {"files": None}, {"files": ["a.log"]}, {"files": [["a.log"]]}, {"files": [["../../ledger.db", 1, None]]},
        {"files": [["/etc/passwd", 1, None]]}, {"files": [["", 1, None]]}, {"files": [["a\0b", 1, None]]},
        {"files": [["up", 0, ".."]]}, {"files": [["up", 0, "x/.."]]}, {"files": [["up", 0, "/"]]},
        {"files": [["a", "1", None]]}, {"files": [["a", True, None]]}, {"files": [["a", 1, 5]]},
    ],
)  # fmt: skip
def test_a_lying_driver_writes_nothing_elsewhere(lie: dict[str, Any]) -> None:
    with pytest.raises(CommandFailed):
        listing(said(**lie))
