"""The matrix lie x stage: lists that lie while a machine is bought, followed, resumed, released or looked for."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.faults.cloud.lies import LIES, STAGES, play
from tests.faults.conftest import Rehearsal

pytestmark = pytest.mark.faults


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("lie", LIES)
def test_a_list_that_lies(rehearse: Callable[..., Rehearsal], lie: str, stage: str) -> None:
    assert play(rehearse(f"list {lie} at {stage}"), lie, stage)
