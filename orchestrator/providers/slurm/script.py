"""The sbatch script of a run, at most 30 lines that you can read: what `gptctl plan --script` prints is submitted.

The script itself decides nothing. The agent's `slurm` verbs beside it do: `begin` and `end` on the first node, `step`
on every node, `time` when Slurm says that the time is nearly up (agent/slurm.py).

Example: `text(order, host)`
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator

from orchestrator.core.config.inventory import HostSpec
from orchestrator.core.engine import JobOrder

CPUS_PER_GPU = 4
AGENT = '"${AGENT[@]}"'
FIRST_PORT, PORTS = 20_000, 10_000
"""The ranks of two jobs on one node must not meet: each job has a port of its own, by its number."""


def text(order: JobOrder, host: HostSpec) -> str:
    """The whole script."""
    slurm = host.slurm
    python = shlex.quote(order.python)
    lines = [
        shell(host),
        f"# {'sweep' if order.arms else 'run'} {order.run} of gptctl, kept in the run's folder as job.sh",
        *(f"#SBATCH {option}" for option in options(order, host)),
        *slurm.before,
        *_run(order),
        f"AGENT=({python} -I -S {shlex.quote(order.agent)} slurm)",
        f"export PYTHONPATH={shlex.quote(order.source)} PYTHONUNBUFFERED=1 SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK",
        *_interface(slurm.interface),
        f"trap '{AGENT} time $RUN' USR1   # the time is nearly up: the trainer saves, and the job comes back",
        "trap : TERM                     # scancel: the trainer saves, and the job ends",
        f"{AGENT} begin $RUN || exit 0",
        *_srun(order, python),
        "while wait $!; rc=$?; kill -0 $! 2>/dev/null; do :; done   # a signal ends `wait` early",
        f"{AGENT} end $RUN $rc",
    ]
    return "\n".join(lines) + "\n"


def shell(host: HostSpec) -> str:
    """A login shell where the site's own lines come first: `module` is a function of login shells."""
    return "#!/bin/bash -l" if host.slurm.before else "#!/bin/bash"


def interpreter(host: HostSpec) -> str | None:
    """A program that is the `python3` of the site's modules, on the login node and on the nodes alike; None where there
    are none, or the host names its `python`."""
    if host.python or not host.slurm.modules:
        return None
    return "\n".join([shell(host), *(f"{line} >&2" for line in host.slurm.before), 'exec python3 "$@"']) + "\n"


def _run(order: JobOrder) -> Iterator[str]:
    """Which run it is: of a sweep's job, that of this element."""
    if order.arms:
        yield f"ARMS=({' '.join(order.arms)})"
    yield "RUN=${ARMS[$SLURM_ARRAY_TASK_ID]}" if order.arms else f"RUN={order.run}"
    yield f"FOLDER={shlex.quote(order.root)}/runs/$RUN"


def trial(order: JobOrder, host: HostSpec) -> str:
    """A job of a minute with the same demands: each node says its name, and whether it sees the folder and torch."""
    python = shlex.quote(order.python)
    asked = f'{python} -c "import torch; print(torch.__version__, torch.cuda.device_count())" 2>&1 | tail -1'
    there = f"cd {shlex.quote(order.folder)} && echo folder"
    lines = [
        shell(host),
        *(f"#SBATCH {option}" for option in demands(order, host)),
        f"#SBATCH --output={shlex.quote(order.folder)}/slurm.log",
        *host.slurm.before,
        f"srun sh -c {shlex.quote(f'echo node $SLURMD_NODENAME; {there}; {asked}')}",
    ]
    return "\n".join(lines) + "\n"


def options(order: JobOrder, host: HostSpec) -> Iterator[str]:
    """The lines of #SBATCH."""
    yield from demands(order, host)
    longest = _time(host.slurm.time, order.longest_s)
    log = f"{order.root}/jobs/{order.name}-%a.log" if order.arms else f"{order.folder}/slurm.log"
    if order.arms:
        yield f"--array=0-{len(order.arms) - 1} --hold"
    warn_s = host.slurm.warn_s if longest is None else min(host.slurm.warn_s, int(seconds(longest) / 2))
    yield f"--requeue --signal=B:USR1@{warn_s} --open-mode=append --output={shlex.quote(log)}"


def demands(order: JobOrder, host: HostSpec) -> Iterator[str]:
    """What the job asks of the cluster."""
    slurm = host.slurm
    cpus = slurm.cpus or (CPUS_PER_GPU * order.gpus if order.gpus else order.ranks)
    yield f"--job-name={order.name} --comment=gptctl:run={order.run}"
    yield f"--nodes={order.nodes} --ntasks-per-node=1 --cpus-per-task={cpus}"
    if slurm.gres or order.gpus:
        yield f"--gres={slurm.gres}" if slurm.gres else f"--gpus-per-node={order.gpus}"
    named = {key: getattr(slurm, key) for key in ("partition", "account", "qos", "constraint")}
    if given := [f"--{key}={shlex.quote(value)}" for key, value in named.items() if value]:
        yield " ".join(given)
    if longest := _time(slurm.time, order.longest_s):
        yield f"--time={longest}"


def _time(given: str | None, longest_s: float | None) -> str | None:
    """What sbatch takes as --time: the inventory's, or what the limits of the run leave if that is less."""
    if longest_s is None or (given is not None and seconds(given) <= longest_s):
        return given
    return str(max(1, math.ceil(longest_s / 60)))


def seconds(given: str) -> float:
    """Seconds of a time as sbatch reads it: MINUTES, MINUTES:SECONDS, HOURS:MINUTES:SECONDS, DAYS-HOURS[:MINUTES]."""
    days, dash, rest = given.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    if dash:
        hours, minutes, secs = [*parts, 0, 0][:3]
    elif len(parts) == 3:
        hours, minutes, secs = parts
    else:
        hours, (minutes, secs) = 0, [*parts, 0][:2]
    return int(days or 0) * 86_400 + hours * 3600 + minutes * 60 + secs


def _interface(name: str | None) -> Iterator[str]:
    if name:
        named = shlex.quote(name)
        yield f"export GLOO_SOCKET_IFNAME={named} NCCL_SOCKET_IFNAME={named}"


def _srun(order: JobOrder, python: str) -> Iterator[str]:
    """The training: one task on each node. torchrun must be deaf to SIGTERM, which Slurm sends to every process: it
    would end its ranks before they have saved, and fail."""
    if order.nodes == order.ranks == 1:
        program = f'{python} -m trainer "$FOLDER" &'
    else:
        yield """head=$(scontrol show node "$SLURMD_NODENAME" | sed -n 's/.*NodeAddr=\\([^ ]*\\).*/\\1/p')"""
        program = (
            f'{python} -m torch.distributed.run --nnodes="$SLURM_NNODES" --nproc-per-node={order.ranks}'
            f' --master-addr="$head" \\\n  --master-port=$(({FIRST_PORT} + SLURM_JOB_ID % {PORTS}))'
            ' --signals-to-handle=SIGINT -m trainer "$FOLDER" &'
        )
    yield f'srun --kill-on-bad-exit=1 --open-mode=append --output="$FOLDER/train.log" {AGENT} step $RUN \\'
    yield f"  {program}"
