"""A rank that a signal ended is named with it, as torchrun's summary at the end of the log has it."""

from __future__ import annotations

import pytest

from orchestrator.agent.job.exit_record import killed_ranks

SUMMARY = """
Failures:
[1]:
  time      : 2026-11-29_23:51:02
  host      : vm
  rank      : 0 (local_rank: 0)
  exitcode  : {first} (pid: 4241)
  error_file: <N/A>
------------------------------------------------------------
Root Cause (first observed failure):
[0]:
  time      : 2026-11-29_23:51:01
  host      : vm
  rank      : 1 (local_rank: 1)
  exitcode  : {second} (pid: 4242)
  error_file: <N/A>
  traceback : Signal 9 (SIGKILL) received by PID 4242
"""


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        (1, -9, "; rank 1 was killed by SIGKILL"),
        (-15, -6, "; rank 1 was killed by SIGABRT"),
        (-6, -9, "; rank 0 was killed by SIGABRT; rank 1 was killed by SIGKILL"),
        (1, 1, ""),
    ],
)
def test_a_killed_rank_is_named_with_its_signal(first: int, second: int, words: str) -> None:
    assert killed_ranks(SUMMARY.format(first=first, second=second)) == words


def test_a_log_without_a_summary_names_nobody() -> None:
    assert killed_ranks("step 10  loss 9.1\nrank 0: lost another rank\n") == ""
