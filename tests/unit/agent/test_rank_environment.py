"""What the ranks of a training find around them: few compilers, an early end, and a record of the last collectives."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest

from orchestrator.agent.contract.requests import JobSpec
from orchestrator.agent.job.jobs import Job
from orchestrator.agent.job.program import environment_of_ranks
from orchestrator.agent.system.paths import Places


def environment(folder: Path, given: dict[str, str], threads: int) -> dict[str, str]:
    spec = cast("JobSpec", {"ranks": 8, "threads_per_rank": threads})
    return environment_of_ranks(
        Job(Places(str(folder / "agent" / "agent-0.pyz")), "run", "train", "digest", spec), given
    )


@pytest.mark.parametrize(("threads", "compilers"), [(1, "1"), (4, "4"), (26, "4")])
def test_eight_ranks_that_compile_at_once_start_few_compilers(tmp_path: Path, threads: int, compilers: str) -> None:
    found = environment(tmp_path, {}, threads)
    assert (found["OMP_NUM_THREADS"], found["TORCHINDUCTOR_COMPILE_THREADS"]) == (str(threads), compilers)


def test_a_dead_peer_costs_ten_seconds_and_the_last_collectives_are_kept_beside_the_job(tmp_path: Path) -> None:
    found = environment(tmp_path, {}, 4)
    assert found["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] == "10"
    assert found["TORCH_NCCL_DUMP_ON_TIMEOUT"] == "1"
    assert int(found["TORCH_FR_BUFFER_SIZE"]) > 0
    assert found["TORCH_FR_DUMP_TEMP_FILE"].startswith(str(tmp_path))


def test_what_you_have_set_on_the_machine_holds(tmp_path: Path) -> None:
    given = {"TORCHINDUCTOR_COMPILE_THREADS": "16", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "60"}
    assert given.items() <= environment(tmp_path, given, 4).items()
