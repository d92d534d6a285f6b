"""What a job runs: the argv, the environment and the files its output goes to. Starts it, or adopts one that runs.

No secret is put into an argv or an environment: a program that needs one reads it from stdin.

Example::

    program = spawn(job, {}, held=[5])
    program.poll()               # None while it runs, else its exit code (negative: the signal)
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from typing import Sequence, TypeVar

from trainer import run_files

from ..contract.names import COMPILE_WORKERS, Code, FileName, JobName
from ..contract.requests import Cluster
from ..system import files, processes
from ..system.compile_caches import compile_caches
from ..system.refusal import Refusal
from . import interfaces
from .jobs import Job, Secrets

TRAINER = ("-m", "trainer")
FAILING_FAST = {
    "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "10",
    "TORCH_FR_BUFFER_SIZE": "2000",
    "TORCH_NCCL_DUMP_ON_TIMEOUT": "1",
}
"""A rank whose peer died waits in a collective and cannot hear SIGTERM: torchrun would give it 30 s. NCCL's flight
recorder keeps the last collectives, and writes them beside the job's files when one of them times out."""
MEET_WITHIN_S = 120
"""How long torchrun waits for the other nodes: they start at different moments."""
T = TypeVar("T")
UNKNOWN_CODE = 255
"""The code of an adopted program: only its parent could have learnt the real one."""


class Program:
    """A running program: our own child, or one that an earlier supervisor started."""

    def __init__(self, known: processes.Identity, child: subprocess.Popen[bytes] | None) -> None:
        self.identity = known
        self.child = child
        self.pid = int(known["pid"])

    @property
    def adopted(self) -> bool:
        return self.child is None

    def poll(self) -> int | None:
        """None while it runs."""
        if self.child is not None:
            return self.child.poll()
        return None if processes.is_alive(self.identity) else UNKNOWN_CODE


def find_running(job: Job) -> Program | None:
    """The job's program, from any supervisor: the recorded one, else the oldest process with the job's mark."""
    recorded = job.state_file().get("program")
    if recorded and processes.is_alive(recorded):
        return Program(recorded, None)
    found = [known for known in map(processes.identity, processes.of_job(job.folder)) if known]
    return Program(found[0], None) if found else None


def has_ended(job: Job) -> bool:
    """Whether a training has already written how it ended: its supervisor may have died before it recorded the start,
    and a short training is over before the next one looks."""
    return job.is_train and os.path.exists(os.path.join(job.run_folder, run_files.EXIT))


def spawn(job: Job, secrets: Secrets, held: Sequence[int]) -> Program:
    """Starts the job's program; it inherits the descriptors `held`, so that the locks outlive a killed supervisor."""
    if job.name == JobName.PULL and not secrets:
        raise Refusal(Code.NEEDS_INPUT, "pull of run %s: its URLs are only ever in memory; send them again" % job.run)
    argv, cwd = argv_of(job), _cwd(job)
    prepare_folders(job, cwd)
    output, errors = _outputs(job)
    with open(output, "ab") as stdout, open(errors, "ab") as stderr:
        try:
            child = subprocess.Popen(
                argv, cwd=cwd, env=_environment(job, held), stdin=subprocess.PIPE, stdout=stdout, stderr=stderr,
                pass_fds=tuple(held), start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            raise Refusal(Code.BAD_REQUEST, "cannot start %s: %s" % (argv[0], error.strerror)) from error
    record_start(job, child.pid)
    _give_secrets(child, secrets)
    # A child that is already a zombie has no identity any more; its pid and our waitpid are enough then.
    return Program(processes.identity(child.pid) or {"pid": child.pid, "start_ticks": 0, "boot_id": ""}, child)


def record_start(job: Job, pid: int) -> None:
    """One line per process ever started, by its starter or by the supervisor that finds it without one."""
    files.append_json(job.file(FileName.STARTS), {"pid": pid, "time": time.time()})


def argv_of(job: Job) -> list[str]:
    """The command line. Raises Refusal for a spec that lacks something."""
    if job.name in (JobName.INSTALL, JobName.MEET, JobName.PULL, JobName.OFFLOAD, JobName.KEEP):
        return [sys.executable, "-I", "-S", job.places.code, "work", job.run, os.path.basename(job.folder)]
    cluster = job.spec.get("cluster")
    if not job.is_train:
        argv = [str(word) for word in required(job, "argv", list)]
        if cluster:  # python -m MODULE, over all nodes
            ranks = required(job, "ranks", int)
            return [argv[0], "-m", "torch.distributed.run", *_over_nodes(job, cluster, ranks), *argv[1:]]
        return argv
    python, ranks = required(job, "python", str), required(job, "ranks", int)
    if cluster:
        return [python, "-m", "torch.distributed.run", *_over_nodes(job, cluster, ranks), *TRAINER, job.run_folder]
    if ranks == 1:
        return [python, *TRAINER, job.run_folder]
    # Ranks talk over loopback only: the host name may not resolve, and the store must not face the network.
    return [
        python, "-m", "torch.distributed.run",
        "--nnodes=1", "--nproc-per-node=%d" % ranks,
        "--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0", "--rdzv-id=%s" % job.run, "--local-addr=127.0.0.1",
        "--log-dir=%s" % job.file("ranks"),
        *TRAINER, job.run_folder,
    ]  # fmt: skip


def _over_nodes(job: Job, cluster: Cluster, ranks: int) -> list[str]:
    """torchrun's options on one of several nodes. Static: who takes part is fixed for a start, and the ranks are dealt
    by the number of the node. Addresses only: names need not resolve."""
    return [
        "--nnodes=%d" % len(cluster["addresses"]), "--node-rank=%d" % cluster["node"], "--nproc-per-node=%d" % ranks,
        "--rdzv-backend=static", "--master-addr=%s" % cluster["addresses"][0], "--master-port=%d" % cluster["port"],
        "--rdzv-id=%s" % cluster["id"], "--rdzv-conf=timeout=%d" % MEET_WITHIN_S,
        "--local-addr=%s" % cluster["addresses"][cluster["node"]], "--log-dir=%s" % job.file("ranks"),
    ]  # fmt: skip


def required(job: Job, key: str, kind: type[T]) -> T:
    """A field of the spec, of that type."""
    value = job.spec.get(key)
    if not isinstance(value, kind):
        raise Refusal(Code.BAD_REQUEST, "%s: the spec needs %r as %s" % (job.name, key, kind.__name__))
    return value


def _environment(job: Job, held: Sequence[int]) -> dict[str, str]:
    variables = dict(os.environ)
    variables[processes.JOB_VARIABLE] = job.folder
    variables["PYTHONUNBUFFERED"] = "1"
    if job.spec.get("pythonpath"):
        variables["PYTHONPATH"] = str(job.spec["pythonpath"])
    if "gpus" in job.spec:
        # Also when empty: a CPU training on a machine with GPUs must not touch those it holds no lock for.
        variables["CUDA_VISIBLE_DEVICES"] = ",".join(job.spec["gpus"])
    if job.name in (JobName.TRAIN, JobName.PROBE):
        variables.update(compile_caches(job.places.cache))
        variables.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")  # less of a GPU lost to fragments
    cluster = job.spec.get("cluster") if job.name != JobName.MEET else None
    if job.is_train:
        variables = environment_of_ranks(job, variables)
        variables[run_files.HELD_DESCRIPTORS] = ",".join(map(str, held))
    if job.is_train or cluster:
        variables["GLOO_SOCKET_IFNAME"] = variables["NCCL_SOCKET_IFNAME"] = _interface(cluster)
    if cluster:
        variables[run_files.LEADS] = "1" if cluster["node"] == 0 else "0"
        variables["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] = "3"  # a rank that lost a node hears nothing
    return variables


def environment_of_ranks(job: Job, given: dict[str, str]) -> dict[str, str]:
    """What the ranks of a training find, on whatever machine they run."""
    variables = dict(given)
    threads = int(job.spec.get("threads_per_rank") or 1)
    variables["OMP_NUM_THREADS"] = str(threads)
    # Each rank would start up to 32 compilers: with eight ranks more than cores, and more memory than the model.
    variables.setdefault("TORCHINDUCTOR_COMPILE_THREADS", str(min(threads, COMPILE_WORKERS)))
    variables["TORCHELASTIC_ERROR_FILE"] = job.file(FileName.ERROR)
    for name, value in {**FAILING_FAST, "TORCH_FR_DUMP_TEMP_FILE": job.file("nccl-rank")}.items():
        variables.setdefault(name, value)
    if job.spec.get("ranks") == 1 and not job.spec.get("cluster"):
        variables["LOCAL_RANK"] = "0"  # without torchrun the program is the rank
    return variables


def _interface(cluster: Cluster | None) -> str:
    """The interface that ranks talk over: loopback on one node, else the one with this node's address."""
    if cluster is None:
        return "lo"
    own = cluster["addresses"][cluster["node"]]
    name = interfaces.carrier(own)
    if name is None:
        raise Refusal(
            Code.BAD_REQUEST,
            "no interface of this machine has %s; it has %s" % (own, interfaces.addresses() or "none"),
            "set private_address of the host in inventory.toml to one of them",
        )
    return name


def _cwd(job: Job) -> str:
    return job.run_folder if job.is_train else str(job.spec.get("cwd") or job.folder)


def _outputs(job: Job) -> tuple[str, str]:
    """Where stdout and stderr go; a job that starts again begins with empty files."""
    if job.is_train:
        log = os.path.join(job.run_folder, run_files.LOG)
        return log, log
    for name in (FileName.PROGRESS, FileName.LOG, FileName.REFUSAL):
        files.remove(job.file(name))
    return job.file(FileName.PROGRESS), job.file(FileName.LOG)


def prepare_folders(job: Job, cwd: str) -> None:
    """Those that the program finds; of a training its config, and no word of an earlier start."""
    if not job.is_train:
        if not os.path.isdir(cwd):
            raise Refusal(Code.BAD_REQUEST, "%s: no folder %s" % (job.name, cwd))
        return
    files.make_folder(job.run_folder)
    config = job.spec.get("config")
    if config is not None:
        files.write_bytes(os.path.join(job.run_folder, run_files.CONFIG), str(config).encode())
    for name in (run_files.STOP, run_files.EXIT):
        files.remove(os.path.join(job.run_folder, name))


def _give_secrets(child: subprocess.Popen[bytes], secrets: Secrets) -> None:
    assert child.stdin is not None
    try:
        if secrets:
            child.stdin.write(json.dumps(secrets).encode())
        child.stdin.close()
    except BrokenPipeError:
        # It ended before it read them: its exit says why.
        pass
