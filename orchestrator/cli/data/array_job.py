"""Shards of a preparation as one array job of a queue, such as Slurm's: one element makes one shard.

The text is on the cluster's shared folder by then. The script holds no secret and stays readable: each element runs the
command of its shard.

Example: `make_in_array(load_engine("slurm"), host, shell, {3: ("/shared/.gptctl/prepare/1a2b", ["env", ...])})`
"""

from __future__ import annotations

import hashlib
import shlex
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from orchestrator.cli.screen.foreign import clean
from orchestrator.cli.screen.screen import talk
from orchestrator.core.config.inventory import HostSpec
from orchestrator.core.engine import Engine, Phase
from orchestrator.core.errors import CommandFailed, NoAnswer
from orchestrator.core.ports import Shell
from orchestrator.providers import EngineModule

LOOK_EVERY_S = 3.0
SILENT_S = 600.0
"""So long a queue may give no answer: it may be restarted meanwhile."""
CPUS = 4
"""Cores of an element, where the inventory names none."""


class Element(NamedTuple):
    """The folder of one shard on the cluster, and the command that makes it."""

    folder: str
    argv: Sequence[str]


def make_in_array(module: EngineModule, host: HostSpec, shell: Shell, elements: Mapping[int, Element]) -> None:
    """Submits the array, or finds one that was submitted for the same shards, and waits for its end.

    Raises UserError in the queue's words where it refuses, and CommandFailed with the last line of an element that
    failed.
    """
    engine = module.engine(host, shell)
    text = script(host, elements)
    name = job_name(elements)
    running = [job for job in engine.find(name) if any(_runs(engine, job, shard) for shard in elements)]
    if running:
        job = running[-1]
        talk(f"{host.name}: job {job} makes these shards already")
    else:
        path = f"{next(iter(elements.values())).folder}/array.sh"
        with tempfile.NamedTemporaryFile("w") as file:
            file.write(text)
            file.flush()
            shell.put(Path(file.name), path, mode=0o755)
        job = engine.submit(path)
        talk(f"{host.name}: job {job}, an array of {len(elements)} shards")
    _wait(engine, host, job, elements)
    for shard, element in elements.items():
        done = shell.run(["sh", "-c", 'ls "$1"/shards/*/shard.json || tail -n 3 "$1/log" >&2', "sh", element.folder])
        if done.code != 0 or not done.stdout:
            said = clean(done.stderr.decode(errors="replace")).strip().splitlines()[-1:] or ["no reason given"]
            raise CommandFailed(f"{host.name}: shard {shard} of job {job} was not made: {said[0]}")


def job_name(elements: Mapping[int, Element]) -> str:
    """The same for the same shards of the same preparation."""
    folders = repr(sorted(element.folder for element in elements.values()))
    return f"gptctl-data-{hashlib.sha256(folders.encode()).hexdigest()[:12]}"


def script(host: HostSpec, elements: Mapping[int, Element]) -> str:
    """The whole script."""
    return "\n".join(_lines(host, elements)) + "\n"


def _lines(host: HostSpec, elements: Mapping[int, Element]) -> Iterator[str]:
    slurm = host.slurm
    yield "#!/bin/bash -l" if slurm.before else "#!/bin/bash"
    yield f"#SBATCH --job-name={job_name(elements)} --array={','.join(map(str, elements))}"
    yield f"#SBATCH --nodes=1 --ntasks=1 --cpus-per-task={slurm.cpus or CPUS} --requeue --output=/dev/null"
    named = {key: getattr(slurm, key) for key in ("partition", "account", "qos", "constraint", "time")}
    if given := [f"--{key}={shlex.quote(value)}" for key, value in named.items() if value]:
        yield f"#SBATCH {' '.join(given)}"
    yield from slurm.before
    yield "case $SLURM_ARRAY_TASK_ID in"
    for shard, element in elements.items():
        words = shlex.join([*element.argv, "--workers=CORES"]).replace(
            "--workers=CORES", '--workers="$SLURM_CPUS_PER_TASK"'
        )
        yield f"{shard}) exec {words} >{shlex.quote(element.folder + '/log')} 2>&1 ;;"
    yield "esac"


def _runs(engine: Engine, job: str, shard: int) -> bool:
    found = engine.look(f"{job}_{shard}")
    return found is not None and found.phase is not Phase.ENDED


def _wait(engine: Engine, host: HostSpec, job: str, elements: Mapping[int, Element]) -> None:
    """Until no element waits or runs. A silent queue says nothing about them."""
    left, heard_at, told = set(elements), time.monotonic(), ""
    while left:
        time.sleep(LOOK_EVERY_S)
        try:
            left = {shard for shard in left if _runs(engine, job, shard)}
            heard_at = time.monotonic()
        except NoAnswer as error:
            if time.monotonic() - heard_at > SILENT_S:
                raise
            talk(clean(error.message)) if told != error.message else None
            told = error.message
            continue
        words = f"{host.name}: {len(left)} of {len(elements)} shards to go"
        talk(words) if words != told else None
        told = words
