"""What a cluster needs to train: a login node with Slurm's commands, a folder that every node sees, and a job of a
minute that starts. What is still pending after that minute is cancelled: its reason is the finding."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from orchestrator.cli.checks.finding import FAIL, OK, WARN, Finding
from orchestrator.cli.connections import shell_to
from orchestrator.cli.machine_types import machine_of
from orchestrator.cli.screen.foreign import clean
from orchestrator.core.config.inventory import HostSpec
from orchestrator.core.config.recipe import Recipe
from orchestrator.core.engine import Engine, JobOrder, JobView, Phase
from orchestrator.core.errors import GptctlError
from orchestrator.core.formats import local_time
from orchestrator.core.ports import Shell
from orchestrator.providers import load_engine
from orchestrator.remote.agent_client.client import Agent
from orchestrator.stages.machine import interpreter

STARTS_WITHIN_S = 60.0
LOOK_EVERY_S = 2.0
MINUTE_S = 60.0
IMPORTS_WITHIN_S = 120.0
"""torch, from a file system that others read too."""
VERSION = "import torch; print(torch.__version__)"


def findings(home: Path, host: HostSpec, recipe: Recipe | None, *, accept_new: bool) -> Iterator[Finding]:
    """From the outside in; what fails ends the list."""
    jobs = load_engine(host.provider)
    assert jobs is not None, "only hosts with a queue come here"
    try:
        with shell_to(home, host, accept_new=accept_new) as shell:
            yield Finding("reach", OK, f"{host.reach().identity}, host key as pinned")
            agent = Agent(shell, host.folder)
            engine = jobs.engine(host, shell)
            site = engine.interpreter()
            given = host.python if site is None else interpreter.put(shell, agent.root, site)
            facts = agent.facts(given)
            python = interpreter.expected(facts, given, cuda=machine_of(host).cuda, elsewhere=True)
            order = _order(host, agent.root, given or python or "python3")
            yield Finding("queue", OK, f"Slurm takes such a job: {clean(engine.test(order))}")
            yield _books(engine)
            yield _python(shell, host, given, python, agent.root)
            yield from _trial(shell, engine, order)
    except GptctlError as error:
        yield Finding("queue", FAIL, clean(error.message), error.hint)


def _order(host: HostSpec, root: str, python: str) -> JobOrder:
    machine = machine_of(host)
    return JobOrder(
        run=f"check-{time.time_ns() // 1_000_000}", root=root, agent="", python=python, source="",
        ranks=machine.ranks // machine.nodes, gpus=machine.gpus // machine.nodes if machine.cuda else 0,
        nodes=machine.nodes, longest_s=MINUTE_S,
    )  # fmt: skip


def _books(engine: Engine) -> Finding:
    if engine.usage(["1"]) is None:
        return Finding("books", WARN, "sacct is off: the cost comes from what jobs note themselves", "nothing to do")
    return Finding("books", OK, "sacct answers: GPU hours come from it")


def _python(shell: Shell, host: HostSpec, given: str | None, python: str | None, root: str) -> Finding:
    """Which of the three trains: the one given, that of the site's modules, or one that gptctl builds here."""
    builds = (
        f"the first run builds an environment in {root}/envs on this login node, which downloads torch; nodes need "
    )
    builds += "no network"
    if given is None:
        return Finding("python", OK, f"built on this login node: {python}" if python else f"none yet: {builds}")
    done = shell.run([given, "-c", VERSION], deadline_s=IMPORTS_WITHIN_S)
    found = clean(done.stdout.decode(errors="replace")).strip()
    what = f"given: {given}" if host.python else f"python3 of modules {' '.join(host.slurm.modules)}"
    if done.code == 0:
        return Finding("python", OK, f"{what}, torch {found}")
    said = (clean(done.stderr.decode(errors="replace")).strip().splitlines() or ["no answer"])[-1]
    if host.python:
        return Finding("python", FAIL, f"{what}: {said}", "set `python` to one that imports torch >= 2.9, or omit it")
    return Finding("python", WARN, f"{what}: {said}; {builds}", "name a module that brings torch, or leave it so")


def _trial(shell: Shell, engine: Engine, order: JobOrder) -> Iterator[Finding]:
    """Submits the job of a minute, waits for it, and removes what it left."""
    shell.run(["mkdir", "-p", order.folder])
    job = engine.submit(_put(shell, f"{order.folder}/job.sh", engine.trial(order)))
    try:
        found = _wait(engine, job)
        if found is None or found.phase is not Phase.ENDED:
            yield _pending(engine, job, found)
            return
        said = shell.run(["cat", f"{order.folder}/slurm.log"]).stdout.decode(errors="replace")
        yield _ended(found, said)
    finally:
        engine.cancel(job)
        shell.run(["rm", "-rf", order.folder])


def _put(shell: Shell, path: str, text: str) -> str:
    with tempfile.TemporaryDirectory(prefix="gptctl-check-") as folder:
        local = Path(folder) / "job.sh"
        local.write_text(text)
        shell.put(local, path)
    return path


def _wait(engine: Engine, job: str) -> JobView | None:
    """The job once it has ended; one that waits for longer as it is then."""
    deadline = time.monotonic() + STARTS_WITHIN_S
    while True:
        found = engine.look(job)
        if found is None or found.phase is Phase.ENDED or time.monotonic() > deadline:
            return found
        if found.phase is Phase.RUNNING:
            deadline = max(deadline, time.monotonic() + MINUTE_S)
        time.sleep(LOOK_EVERY_S)


def _pending(engine: Engine, job: str, found: JobView | None) -> Finding:
    if found is None:
        return Finding("trial", FAIL, f"Slurm knows nothing of job {job}", "look on the login node: squeue")
    expected = f", expected to start at {local_time(found.starts_at)}" if found.starts_at else ""
    why = clean(engine.words(found)) or found.state
    return Finding("trial", WARN, f"job {job} did not start within {STARTS_WITHIN_S:.0f} s: {why}{expected}", "wait")


def _ended(found: JobView, said: str) -> Finding:
    lines = [line for line in said.splitlines() if line.strip()]
    nodes = [line.split()[1] for line in lines if line.startswith("node ") and len(line.split()) > 1]
    if found.state != "COMPLETED" or not nodes:
        last = clean(lines[-1]) if lines else found.state
        return Finding("trial", FAIL, f"the job of a minute ended as {found.state}: {last}", "look at slurm.log there")
    if lines.count("folder") < len(nodes):
        return Finding(
            "trial", FAIL, f"{', '.join(nodes)}: not every node sees gptctl's folder",
            "set `folder` to one that the login node and all compute nodes share",
        )  # fmt: skip
    torch = next((clean(line) for line in reversed(lines) if line[:1].isdigit()), "none yet: the first run installs it")
    return Finding("trial", OK, f"ran on {', '.join(nodes)}, which see the folder; torch and cards there: {torch}")
