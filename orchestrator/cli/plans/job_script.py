"""`gptctl plan --script`: what would be submitted to a cluster, as you can read and keep it.

Settled at the launch alone: the run's id, and where the environment and the trainer's source are on the cluster.
"""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator import providers
from orchestrator.core.config.inventory import HostSpec
from orchestrator.core.engine import JobOrder
from orchestrator.core.errors import UserError
from orchestrator.core.machines import machine_type
from orchestrator.core.planning.limits import check_plan, train_deadline_s
from orchestrator.core.planning.plan import Plan

RUN = "RUN"


def print_script(made: Sequence[tuple[HostSpec | None, Plan]]) -> int:
    """Prints the script of the one host. Raises UserError where it is not one of a cluster."""
    host, plan = made[0]
    if len(made) != 1 or host is None:
        raise UserError("--script is for one host", "name it: gptctl plan RECIPE --host HOST --script")
    jobs = providers.load_engine(host.provider)
    if jobs is None:
        raise UserError(
            f"--script: {host.name} is of provider {host.provider}, which takes no jobs",
            "name a host of provider slurm",
        )
    check_plan(plan)
    print(jobs.script(host, _order(host, plan)), end="")
    return 0


def _python(host: HostSpec, root: str) -> str:
    return f"{root}/envs/MODULES/python" if host.slurm.modules else f"{root}/envs/ENV/bin/python"


def _order(host: HostSpec, plan: Plan) -> JobOrder:

    machine = machine_type(plan.machine)
    root = host.folder.rstrip("/").replace("~", f"/home/{host.user or 'YOU'}", 1)
    return JobOrder(
        run=RUN, root=root, agent=f"{root}/agent/AGENT.pyz", python=host.python or _python(host, root),
        source=f"{root}/src/SOURCE", ranks=machine.ranks // machine.nodes,
        gpus=machine.gpus // machine.nodes if machine.cuda else 0, nodes=machine.nodes,
        longest_s=train_deadline_s(plan),
    )  # fmt: skip
