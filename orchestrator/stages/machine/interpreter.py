"""The interpreter that trains: found on the machine, or made there, and it computes on every GPU before it counts.

The agent's install job does it, which is begun first and waited for later. What an earlier run found out still counts
while boot id, driver and environment hash are the same.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

from orchestrator.agent.contract import torch_builds
from orchestrator.agent.contract.facts import Environment, Facts, Interpreter
from orchestrator.agent.contract.names import JobName
from orchestrator.agent.contract.requests import JobSpec
from orchestrator.core.errors import MachineUnfit
from orchestrator.core.planning.rates import is_compiled
from orchestrator.core.ports import Shell
from orchestrator.remote.agent_client.decoding import decoded
from orchestrator.remote.agent_client.job_failure import failure
from orchestrator.stages.context import RunContext
from orchestrator.stages.machine.jobs import run_job, start_job

LEAST_TORCH = "2.9"


def given(context: RunContext) -> str | None:
    """The interpreter that the host names, or that its site's modules bring, which is put there. None: neither."""
    engine = context.engine
    text = engine.interpreter() if engine is not None else None
    return context.host.python if text is None else put(context.shell, context.agent.root, text)


def put(shell: Shell, root: str, text: str) -> str:
    """Where this program is then, in a folder of its content."""
    path = f"{root}/envs/modules-{hashlib.sha256(text.encode()).hexdigest()[:16]}/python"
    with tempfile.TemporaryDirectory(prefix="gptctl-python-") as folder:
        local = Path(folder) / "python"
        local.write_text(text)
        shell.put(local, path, mode=0o755)
    return path


def begin(context: RunContext, facts: Facts, gpus: Sequence[str]) -> None:
    """Starts looking for it, and returns at once. What is known already is not asked for again."""
    spec = install_spec(context, facts, gpus)
    if _known(facts, spec) is None:
        context.say("choosing an interpreter (a new environment takes a few minutes)")
        start_job(context, context.agent, JobName.INSTALL, _digest(facts, spec), spec)


def chosen(context: RunContext, facts: Facts, gpus: Sequence[str]) -> Environment:
    """The record of the chosen interpreter. Raises MachineUnfit where none computes."""
    spec = install_spec(context, facts, gpus)
    if (known := _known(facts, spec)) is not None:
        return known
    exit_record = run_job(context, context.agent, JobName.INSTALL, _digest(facts, spec), spec)
    if exit_record["outcome"] != "finished":
        failed = failure(exit_record)["message"]
        raise MachineUnfit(
            f"provision: no interpreter on {context.host.name} computes: {failed}",
            f"set `python` of host {context.host.name} to one that imports torch >= 2.9, or look with: "
            f"gptctl check {context.host.name}",
        )
    return decoded(Environment, exit_record["result"], JobName.INSTALL)


def first_choice(context: RunContext, facts: Facts) -> str | None:
    """The one that is tried first; None where an environment has to be made."""
    seen = [found for found in facts["interpreters"] if found.get("torch")]
    return context.host.python or next((found["path"] for found in seen if _counts(found, context.engine_of)), None)


def _counts(found: Interpreter, elsewhere: object) -> bool:
    """Whether a run may take it. Of what a login node has, the nodes see only what is given and what gptctl built."""
    return not elsewhere or found["kind"] in ("given", "env")


def expected(facts: Facts, python: str | None, *, cuda: bool, elsewhere: bool = False) -> str | None:
    """The interpreter that a run will take as far as files tell, in the order of the agent's install job: the given
    one, the one that an earlier run chose, the first with all packages, the first with torch, which gets the rest
    beside it. None where an environment has to be made. elsewhere: it trains on other machines."""
    seen = [found for found in facts["interpreters"] if _counts(found, elsewhere)]
    usable = [found for found in seen if _has_torch(found) and not _outdated(found)]
    name = environment_hash(facts["python"]["version"], facts["arch"], python, cuda=cuda)
    known = facts["envs"].get(name)
    chosen = [known["python"]] if known and is_fresh(known, facts) else []
    given = [found["path"] for found in usable if python and found["kind"] == "given"]
    built = [found["path"] for found in usable if f"/{name}/" in found["path"]]
    whole = [found["path"] for found in usable if found["trainer"]]
    return next(iter([*chosen, *given, *built, *whole, *(found["path"] for found in usable)]), None)


def _has_torch(found: Interpreter) -> bool:
    digits = re.findall(r"\d+", found["torch"] or "")[:2]
    return [int(part) for part in digits] >= [int(part) for part in LEAST_TORCH.split(".")]


def _digest(facts: Facts, spec: JobSpec) -> str:
    return f"{spec['env']}-{facts['boot_id']}-{','.join(spec['visible'])}"


def _known(facts: Facts, spec: JobSpec) -> Environment | None:
    """What an earlier look found."""
    known = facts["envs"].get(spec["env"])
    return known if known and is_fresh(known, facts) and known.get("visible", []) == spec["visible"] else None


def is_fresh(known: Environment, facts: Facts) -> bool:
    """Whether that probe was made in this very boot, with this driver: a card may break between two. A kernel that
    hides its boot id leaves nothing to go by."""
    return bool(facts["boot_id"]) and (known["boot_id"], known["driver"]) == (facts["boot_id"], facts["driver"])


def install_spec(context: RunContext, facts: Facts, gpus: Sequence[str]) -> JobSpec:
    """The install job's input; `env` is the hash of everything an environment depends on."""
    python, cuda = given(context), context.machine.cuda
    return {
        "python": python,
        "candidates": [found["path"] for found in facts["interpreters"] if not _outdated(found)],
        "requirements": trainer_requirements(),
        "torch": f">={LEAST_TORCH}",
        "env": environment_hash(facts["python"]["version"], facts["arch"], python, cuda=cuda),
        "cuda": cuda,
        "visible": list(gpus),
        "allow_build": context.host.python is None,
        "elsewhere": context.engine_of is not None,
    }


def environment_hash(version: str, arch: str, python: str | None, *, cuda: bool) -> str:
    """Names an environment by everything it depends on: version of the machine's Python, architecture, the host's
    `python`, whether it computes on GPUs, what the trainer needs, and the torch that each machine is given."""
    builds = [torch_builds.CPU, *torch_builds.BUILDS]
    seeds = [trainer_requirements(), version, arch, python, cuda, builds]
    return hashlib.sha256(json.dumps(seeds).encode()).hexdigest()[:16]


def _outdated(found: Interpreter) -> bool:
    """Whether it is an environment that an earlier gptctl built, with a torch that this one does not pin."""
    pinned = {build.version for build in (torch_builds.CPU, *torch_builds.BUILDS)}
    return found["kind"] == "env" and (found.get("torch") or "").partition("+")[0] not in pinned


def check_compiles(context: RunContext, chosen: Environment) -> None:
    """Before any data moves: whether torch.compile works where the plan counts on it.

    Raises MachineUnfit on a machine you pay for, if the recipe says `compile = true`; else a warning says it.
    """
    fault = chosen.get("compile_fault")
    if not fault or not is_compiled(context.recipe, context.machine):
        return
    if context.recipe.train.compile and context.host.paid:
        raise MachineUnfit(
            f"provision: torch.compile does not work on {context.host.name}: {fault}; uncompiled the run costs more "
            "than the plan says",
            "repair it there, or agree to the slower run: gptctl run RECIPE --set train.compile=false",
        )
    context.emit("warning", f"torch.compile does not work on {context.host.name}: {fault}; the run stays uncompiled")


def trainer_requirements() -> list[str]:
    """What the trainer needs, from this distribution's own `trainer` extra."""
    lines = importlib.metadata.requires("gptctl") or []
    return sorted(line.split(";")[0].strip() for line in lines if 'extra == "trainer"' in line.replace("'", '"'))
