"""The arithmetic of ranges and of progress."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

import orchestrator
from orchestrator.core.errors import VerificationFailed
from orchestrator.remote.shell.put_and_get import split_lines
from orchestrator.remote.transfer import far_program
from orchestrator.remote.transfer.parallel_ranges import PARALLEL_FROM_BYTES, STREAMS, Range, resumed, split
from orchestrator.remote.transfer_progress import Meter, Transfer


@pytest.mark.parametrize("size", [0, 1, 3, PARALLEL_FROM_BYTES, PARALLEL_FROM_BYTES + 1, 10**10 + 7])
def test_ranges_cover_every_byte_once(size: int) -> None:
    ranges = split(size)
    assert [each.slot for each in ranges] == list(range(len(ranges)))
    assert [each.start for each in ranges] == [sum(e.size_bytes for e in ranges[:n]) for n in range(len(ranges))]
    assert sum(each.size_bytes for each in ranges) == size
    assert len(ranges) == (STREAMS if size > PARALLEL_FROM_BYTES else 1)


def test_a_position_beyond_its_range_counts_as_nothing() -> None:
    ranges = [Range(0, 0, 100), Range(1, 100, 50)]
    assert [each.done_bytes for each in resumed(ranges, [100, 51])] == [100, 0]


def test_progress_counts_what_was_there_and_rates_what_moved() -> None:
    told: list[Transfer] = []
    meter = Meter("file", 1000, told.append, bytes_before=600)
    meter.count(100)
    meter.tell(now=True)
    meter.count(300)
    meter.tell(note="almost")
    assert [(each.bytes_done, each.bytes_total, each.note) for each in told] == [
        (700, 1000, ""),
        (1000, 1000, "almost"),
    ]
    first = told[0]
    assert first.eta_s == pytest.approx(300 / first.rate_bytes_per_s)
    assert told[1].eta_s == 0


def test_progress_is_told_now_and_then_and_not_for_every_byte() -> None:
    told: list[Transfer] = []
    meter = Meter("file", 10_000, told.append)
    for _ in range(10_000):
        meter.count(1)
        meter.tell()
    assert len(told) < 100


def test_the_far_half_needs_nothing_but_python_3_8() -> None:
    tree = ast.parse(Path(far_program.__file__).read_text(), feature_version=(3, 8))
    modules = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    modules |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert modules <= set(sys.stdlib_module_names)


def test_lines_come_whole_and_none_may_be_endless() -> None:
    assert list(split_lines([b"a", b"b\n\nc", b"\n", b"d"], 10)) == [b"ab", b"", b"c", b"d"]
    assert list(split_lines([b"12345\n" * 10], 10)) == [b"12345"] * 10
    with pytest.raises(VerificationFailed, match="longer than"):
        list(split_lines([b"12345"] * 3, 10))


def test_every_fabric_connection_comes_from_the_one_factory() -> None:
    """Fabric accepts any host key, so a Connection made elsewhere would be a hole; `env=` would be another."""
    made, with_env = [], []
    for path in Path(orchestrator.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("Connection", "SSHClient")):
                made.append((path.name, ast.unparse(node.func)))
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith((".run", ".exec_command")):
                with_env += [
                    path.name for keyword in node.keywords if keyword.arg == "env" and path.parent.name == "shell"
                ]
    assert [each for each in made if each[1] == "fabric.Connection"] == [("dial.py", "fabric.Connection")]
    assert [each for each in made if "SSHClient" in each[1]] == with_env == []
