"""A real Slurm on this machine, for tests: the controller, its accounting, and compute nodes that share one folder.

Nothing is installed or configured outside `folder`, no systemd is needed, and every daemon ends with the block, also
where this process is killed. Needs root and Debian's packages slurmctld, slurmd, slurm-client, slurmdbd, munge and
mariadb-server. A folder on tmpfs (/dev/shm) makes the database ready in two seconds.

    with Slurm(folder) as slurm:
        slurm.command("sbatch", "--wrap=hostname")
        slurm.until_state(1, "COMPLETED")
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import stat
import subprocess
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Self

from tests.support.clock.waiting import until
from tests.support.machines.reaper import reaper
from tests.support.machines.sshd import kill

GPUS_PER_NODE = 2
CRED_EXPIRE_S = 5
"""For so long a requeued job waits: until no node can take its old credential for a new one."""

MARIADB = ("--no-defaults", "--innodb-log-file-size=8M", "--innodb-buffer-pool-size=64M")

DBD_CONF = """
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire={expire}
DbdHost={host}
DbdAddr=127.0.0.1
DbdPort={dbd_port}
SlurmUser=root
PidFile={folder}/run/slurmdbd.pid
LogFile={folder}/log/slurmdbd.log
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
StorageLoc=slurm_acct_db
"""
CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ctld_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire={expire}
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/run/slurmctld.pid
SlurmdPidFile={folder}/run/slurmd-%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
MpiDefault=none
MailProg=/bin/true
SwitchType=switch/none
ReturnToService=2
SlurmdTimeout=10
SlurmctldTimeout=10
InactiveLimit=0
KillWait={kill_wait}
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=2,sched_min_interval=1000000,batch_sched_delay=0
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
SlurmdParameters=config_overrides
GresTypes=gpu
{accounting}
{nodes}
PartitionName=spot Nodes={names} Default=YES MaxTime=60 PriorityTier=1 PreemptMode=REQUEUE GraceTime={grace}
PartitionName=lost Nodes={names} MaxTime=60 PriorityTier=1 PreemptMode=CANCEL GraceTime={grace}
PartitionName=urgent Nodes={names} MaxTime=60 PriorityTier=10 PreemptMode=OFF
"""
ACCOUNTING = """
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={dbd_port}
AccountingStoragePass={folder}/munge.socket
AccountingStorageEnforce=associations,qos
AccountingStorageTRES=gres/gpu
"""
NODE = (
    "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=4 RealMemory=4000"
    f" Gres=gpu:h100:{GPUS_PER_NODE} State=UNKNOWN"
)
NULL_DEVICE = os.makedev(1, 3)


class Slurm:
    """A cluster of `nodes` nodes with two pretended GPUs each; a context manager. accounting False: sacct is off."""

    def __init__(
        self, folder: Path, *, nodes: int = 2, grace_s: int = 20, kill_wait_s: int = 15, accounting: bool = True
    ) -> None:
        self.folder, self.accounting = folder, accounting
        self.nodes = [f"n{number}" for number in range(1, nodes + 1)]
        self.conf = folder / "slurm.conf"
        self._host = socket.gethostname().split(".")[0]
        self._ports = free_ports(nodes + 2)
        self._values = {
            "folder": folder, "host": self._host, "expire": CRED_EXPIRE_S, "grace": grace_s, "kill_wait": kill_wait_s,
            "ctld_port": self._ports[0], "dbd_port": self._ports[1], "names": ",".join(self.nodes),
        }  # fmt: skip
        self._until_it_ends = ExitStack()
        self._database: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        shutil.rmtree(self.folder, ignore_errors=True)
        self._until_it_ends.enter_context(reaper(f"SLURM_CONF={self.conf}", self.folder))
        for name in ("run", "log", "state", "dev"):
            (self.folder / name).mkdir(parents=True)
        self.folder.chmod(0o755)
        try:
            self._configure()
            self._start_munge()
            if self.accounting:
                self._start_accounting()
            self.start("slurmctld", "-c", "-s")
            for name in self.nodes:
                self.start("slurmd", "-N", name)
            until(lambda: self.idle() == len(self.nodes), interval_s=0.1)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._until_it_ends.close()
        if self._database is not None:
            self._database.wait()

    def _configure(self) -> None:
        nodes = "\n".join(
            NODE.format(name=name, host=self._host, port=port)
            for name, port in zip(self.nodes, self._ports[2:], strict=True)
        )
        accounting = ACCOUNTING.format(**self._values) if self.accounting else ""
        self.conf.write_text(CONF.format(**self._values, nodes=nodes, accounting=accounting))
        (self.folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\nCgroupAutomount=no\n")
        gres = []
        for name in self.nodes:
            for number in range(GPUS_PER_NODE):
                os.mknod(self.folder / "dev" / f"{name}-gpu{number}", 0o666 | stat.S_IFCHR, NULL_DEVICE)
            gres.append(f"NodeName={name} Name=gpu Type=h100 File={self.folder}/dev/{name}-gpu[0-{GPUS_PER_NODE - 1}]")
        (self.folder / "gres.conf").write_text("\n".join(gres) + "\n")

    def _start_munge(self) -> None:
        key = self.folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(64))
        files = {"key-file": key, "socket": "munge.socket", "pid-file": "run/munged.pid", "log-file": "log/munged",
                 "seed-file": "munge.seed"}  # fmt: skip
        self.start("munged", "--force", *(f"--{option}={self.folder / name}" for option, name in files.items()))

    def _start_accounting(self) -> None:
        data, sock = self.folder / "db", self.folder / "db.socket"
        shutil.rmtree(data, ignore_errors=True)
        make = ["mariadb-install-db", *MARIADB, f"--datadir={data}", "--auth-root-authentication-method=normal"]
        subprocess.run([*make, "--skip-test-db", "--user=root"], check=True, capture_output=True, timeout=240)
        argv = ["/usr/sbin/mariadbd", *MARIADB, f"--datadir={data}", "--user=root", "--skip-networking"]
        with (self.folder / "log" / "mariadb").open("wb") as log:
            self._database = subprocess.Popen(
                [*argv, f"--socket={sock}", "--innodb-lock-wait-timeout=900", "--innodb-flush-log-at-trx-commit=0"],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, env=self.env,
            )  # fmt: skip
        ask = ["mariadb", "--no-defaults", "-uroot", f"--socket={sock}", "-e", "create database slurm_acct_db"]
        until(lambda: subprocess.run(ask, capture_output=True, check=False).returncode == 0, interval_s=0.1)
        dbd = self.folder / "slurmdbd.conf"
        dbd.touch(mode=0o600)
        dbd.write_text(DBD_CONF.format(**self._values))
        self.start("slurmdbd", "-s", env={"MYSQL_UNIX_PORT": str(sock)})
        until(lambda: _listens(self._ports[1]))
        self.manage("add cluster test", "add account lab Description=lab Organization=lab", "add user root Account=lab")

    def start(self, name: str, *options: str, env: dict[str, str] | None = None) -> None:
        """Starts a daemon, which goes to the background by itself. Raises with what it says."""
        whole = {**self.env, **(env or {})}
        argv = [shutil.which(name, path="/usr/sbin:/usr/bin") or name, *options]
        done = subprocess.run(argv, env=whole, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, f"{name}: {done.stderr}"

    def end(self, name: str, number: int = signal.SIGTERM) -> None:
        """Ends one daemon by its pid file and waits until it is gone."""
        file = self.folder / "run" / f"{name}.pid"
        text = file.read_text().strip() if file.exists() else ""
        if not text:
            return
        pid = int(text)
        with suppress(ProcessLookupError):
            os.kill(pid, number)
        try:
            until(lambda: not _runs(pid), 30, 0.05)
        except AssertionError:
            kill(pid)
        file.unlink(missing_ok=True)

    def restart_controller(self) -> None:
        """As an upgrade does: jobs run on meanwhile."""
        self.end("slurmctld")
        self.start("slurmctld", "-s")

    @property
    def env(self) -> dict[str, str]:
        """What every command of Slurm needs to find this cluster."""
        return {**os.environ, "SLURM_CONF": str(self.conf)}

    def take_back(self, *nodes: str) -> None:
        """Lets these nodes work again; one that is back by itself refuses to be told so."""
        for node in nodes:
            self.command("scontrol", "update", f"nodename={node}", "state=resume", check=False)

    def command(self, *argv: str, check: bool = True) -> str:
        """stdout of a command of Slurm."""
        done = subprocess.run(argv, env=self.env, capture_output=True, text=True, timeout=120, check=False)
        assert not check or done.returncode == 0, f"{argv}: {done.stderr}"
        return done.stdout

    def manage(self, *commands: str) -> None:
        """Commands for sacctmgr, in one session of it: a session takes seconds to begin."""
        text = "\n".join(commands) + "\n"
        subprocess.run(["sacctmgr", "-i"], env=self.env, input=text, capture_output=True, text=True, check=True)

    def idle(self) -> int:
        """How many nodes wait for work."""
        return len(set(self.command("sinfo", "-h", "-N", "-t", "idle", "-o", "%N", check=False).split()))

    def job_ids(self) -> list[str]:
        """Every job that has not ended."""
        return self.command("squeue", "-h", "-o", "%A", check=False).split()

    def state(self, job: str) -> str:
        """The job's state, in squeue's word; empty once Slurm has forgotten it."""
        return self.command("squeue", "-h", "-t", "all", "-j", job, "-o", "%T", check=False).strip()

    def until_state(self, job: str, *states: str) -> None:
        until(lambda: self.state(job) in states, interval_s=0.2)

    def attempts(self, job: str) -> Sequence[str]:
        """The states of every start of the job, from the accounting."""
        return self.command("sacct", "-D", "-X", "-n", "-P", "-j", job, "-o", "State").split("\n")[:-1]


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [int(each.getsockname()[1]) for each in sockets]
    for each in sockets:
        each.close()
    return ports


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
