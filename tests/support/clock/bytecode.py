"""The bytecode of test files in a fresh clone, made once by all workers together instead of once by each.

pytest rewrites the asserts of every file that it collects: twelve seconds of processor, and every worker collects
every file. It keeps what it made beside the file, so a worker begins with a share of its own and finds the rest there.
"""

from __future__ import annotations

import importlib
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support.files.repository import REPOSITORY


def import_own_share(config: pytest.Config) -> None:
    """In a worker of pytest-xdist: imports every n-th test file of the folders that are asked for."""
    worker: dict[str, object] = getattr(config, "workerinput", {})
    if not worker:
        return
    ignored = [Path(place).resolve() for place in config.getoption("ignore") or []]
    folders = [Path(place).resolve() for place in config.args if Path(place).is_dir()]
    files = sorted({file for folder in folders for file in folder.rglob("test_*.py")})
    wanted = [file for file in files if not any(file.is_relative_to(place) for place in ignored)]
    number, count = int(str(worker["workerid"]).removeprefix("gw")), int(str(worker["workercount"]))
    for file in wanted[number::count]:
        with suppress(Exception):  # collection says what is wrong with it
            importlib.import_module(".".join(file.relative_to(REPOSITORY).with_suffix("").parts))
