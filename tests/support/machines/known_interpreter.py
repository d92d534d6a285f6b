"""What a machine knows of the interpreter that trains once a run has looked for it: finding out imports torch for 3 s.

plant(root)          # root/envs/HASH.json, for stories that are not about provisioning
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import subprocess
import sys
from functools import cache
from pathlib import Path

from orchestrator.agent.contract.facts import Environment
from orchestrator.agent.system import gpus, processes
from orchestrator.stages.machine.interpreter import environment_hash
from tests.support.machines.sshd import CLEAN_PATH


def plant(root: Path) -> None:
    """Makes the agent's folder `root` one in which the tests' own interpreter was found good in this very boot,
    whichever Python runs the agent and whether or not the inventory names one."""
    envs = root / "envs"
    envs.mkdir(parents=True, mode=0o700)
    record: Environment = {
        "python": sys.executable,
        "kind": "found",
        "torch": importlib.metadata.version("torch"),
        "cuda": None,
        "gpus": [],
        "boot_id": processes.boot_id(),
        "driver": gpus.read_gpus()[1],
    }
    for version in {platform.python_version(), _system_python()}:
        for given in (None, sys.executable):
            name = environment_hash(version, platform.machine(), given, cuda=False)
            (envs / f"{name}.json").write_text(json.dumps(record))


@cache
def _system_python() -> str:
    """Version of the python3 that a login finds on the machines."""
    asked = ["python3", "-I", "-S", "-c", "import platform; print(platform.python_version())"]
    done = subprocess.run(asked, env={"PATH": CLEAN_PATH}, capture_output=True, text=True, check=False)
    return done.stdout.strip() or platform.python_version()
