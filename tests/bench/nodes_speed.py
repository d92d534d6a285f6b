"""What several machines cost beside one: getting them ready, asking them how they are, and training over them.

    python -m tests.bench.nodes_speed              # the lines of `make bench --only nodes`
    python -m tests.bench.nodes_speed --quick      # two hosts instead of eight, four instead of 32

Hosts that are bought are machines of the rehearsal cloud, which boot in a minute, as the quickest of EC2 do. Those that
are asked stand behind a real sshd: one real agent, and others that repeat its answer after the time that it took, since
many agents on this computer would compute on its few cores what as many machines compute on their own. The dead ones
are ports that take a connection and never answer. The two that train are namespaces with a network of their own; what
the link explains of the difference to one machine is worked out from its measured speed: the gradients of a step go
over it once each way. Never a timed test.
"""

from __future__ import annotations

import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from orchestrator.core.config.inventory import HostSpec
from orchestrator.core.config.recipe import load_recipe
from orchestrator.core.machines import machine_type
from orchestrator.core.planning.planner import make_plan
from orchestrator.core.ports import Address
from orchestrator.core.states import State
from orchestrator.ledger import Ledger, Rental, RunRecord, new_rental_id
from orchestrator.remote.agent_client.package import agent_package
from tests.bench.figure import CannotRun, Figure, at_least, at_most, within
from tests.support.clock.waiting import until
from tests.support.clouds.rehearsal_cloud import RehearsalCloud
from tests.support.files.recipes import write_small
from tests.support.machines.agent_box import Box
from tests.support.machines.private_network import two_hosts
from tests.support.machines.sshd import Sshd
from trainer import run_files

REPOSITORY = Path(__file__).resolve().parents[2]
READY_FACTOR, STATUS_LIMIT_S, EFFICIENCY = 1.5, 2.5, 0.5
READY = ("acquire", "provision", "sync")
COMMAND_S = 500.0
BOOT_S = 60.0
"""Of each machine. All share this computer's cores, as real ones do not: eight load torch at the same time."""
RECORDED = """
import json, sys, time

def main(argv):
    run = json.load(sys.stdin)["run"]
    time.sleep({seconds})
    print({answer}.replace("r-0", run))
    return 0
"""
LAYERS, WIDTH, HEADS = ("n_layer = 1", "n_layer = 4"), ("n_embd = 32", "n_embd = 256"), ("n_head = 2", "n_head = 4")
INVENTORY = """
[hosts.one]
provider = "rehearsal"
machine = "1xH100-simulated"
guard = "key-on-box"
[hosts.many]
provider = "rehearsal"
machine = "1xH100-simulated"
nodes = {count}
guard = "key-on-box"
"""


def gptctl(folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The program, with its home in `folder`."""
    env = {**os.environ, "GPTCTL_HOME": str(folder / "home"), "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "orchestrator", *words], cwd=folder, env={**env, **environment}, timeout=COMMAND_S,
        capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip


def newest(folder: Path) -> RunRecord:
    """The run that was started last."""
    with Ledger.open(folder / "home", time.time) as ledger:
        return ledger.runs(limit=1)[0]


def ready_s(folder: Path, cloud: RehearsalCloud, host: str) -> float:
    """Seconds of the stages until a training could start on that host; it is given back then."""
    words = ("run", "tiny.toml", "--host", host, "--yes", "--again", "-d", "--max-cost", "50")
    done = gptctl(folder, *words, GPTCTL_REHEARSAL=str(cloud.state))
    run = newest(folder)
    with Ledger.open(folder / "home", time.time) as ledger:
        spans = [each for each in ledger.intervals(run.id) if each.stage in READY]
    gptctl(folder, "release", run.id, "--force", "--yes", GPTCTL_REHEARSAL=str(cloud.state))
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return sum((each.ended_at or each.last_at) - each.started_at for each in spans)


def ready(count: int) -> Figure:
    """Many hosts bought as one, against one: acquire, provision and sync."""
    with tempfile.TemporaryDirectory() as name, RehearsalCloud(Path(name) / "cloud", warm=True, boot_s=BOOT_S) as cloud:
        folder = Path(name)
        (folder / "inventory.toml").write_text(INVENTORY.format(count=count))
        write_small(folder, steps=4_000, every=1_000, machine="1xH100-simulated")
        recipe = folder / "tiny.toml"
        whole, _, _ = recipe.read_text().partition("[machines")
        recipe.write_text(whole.replace("global_batch = 8", f"global_batch = {count * 8}"))
        ready_s(folder, cloud, "one")  # what is compiled and digested once
        one, many = ready_s(folder, cloud, "one"), ready_s(folder, cloud, "many")
    return at_most(f"{count} hosts ready, boots of {BOOT_S:.0f} s", many, one, "s", "one", READY_FACTOR)


def status(count: int, dead: int) -> Figure:
    """`gptctl status` over many hosts, some of which take a connection and never answer."""
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        address = stack.enter_context(Sshd(folder / "sshd")).address()
        box = Box(folder / "box")
        stack.callback(box.end)
        box.start("r-0", steps=10**6, step_s=1.0, spec_ranks=1)
        until(lambda: box.metrics("r-0"))
        alive = [box.root, *_recorded(box, [folder / f"box-{number}" for number in range(1, count - dead)])]
        silent = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=dead + 8))
        gone = replace(address, host="127.0.0.1", port=int(silent.getsockname()[1]))
        with Ledger.open(folder / "home", time.time) as ledger:
            for number in range(count):
                at = (address, alive[number]) if number < len(alive) else (gone, folder)
                _training_run(ledger, number, at[0], str(at[1]))
        took = []
        for _ in range(3):
            began = time.perf_counter()
            done = gptctl(folder, "status", "--json")
            took.append(time.perf_counter() - began)
        seen = [run["seen"] for run in json.loads(done.stdout)["runs"]]
        heard = sum(each == "live" for each in seen)
    return within(f"gptctl status, {count} hosts, {dead} dead: {heard} heard", min(took), "s", STATUS_LIMIT_S)


def _recorded(box: Box, folders: Sequence[Path]) -> Sequence[Path]:
    """In place of agents: what that one says of its run, as late as it says it, of the run that is asked about."""
    took, answer = [], ""
    for _ in range(5):
        began = time.perf_counter()
        answer = json.dumps(box.call("status", run="r-0"))
        took.append(time.perf_counter() - began)
    words = RECORDED.format(seconds=statistics.median(took), answer=repr(answer))
    for folder in folders:
        program = folder / "agent" / box.program.name / "agent"
        program.mkdir(parents=True)
        (folder / "agent" / agent_package().name).touch()
        (program / "__init__.py").touch()
        (program / "__main__.py").write_text(words)
    return folders


def _training_run(ledger: Ledger, number: int, address: Address, root: str) -> None:
    now, recipe, machine = time.time(), load_recipe("quickstart"), machine_type("2xCPU")
    host = HostSpec(name=f"h{number:02d}", provider="ssh", machine="2xCPU")
    rental = Rental(new_rental_id("2xCPU", now), "ssh", host.name, "2xCPU", now, folder=root, address=address)
    ledger.add_rental(rental)
    ledger.update_rental(rental.id, facts={"reached": now})
    plan = make_plan(recipe, host, machine, None, now=now)
    run = RunRecord(
        id=f"r-{number}", recipe=recipe.name, host=host.name, machine="2xCPU",
        created_at=now, recipe_data=recipe.resolved(), host_data=host.resolved(), plan=plan, rental_id=rental.id,
        total_steps=plan.steps,
    )  # fmt: skip
    ledger.add_run(run)
    ledger.set_state(run.id, State.TRAINING)


def trained(steps: int) -> Iterator[Figure]:
    """Two nodes against one with as many ranks, by the tokens per second of the middle half of the lines."""
    if os.geteuid():
        raise CannotRun("namespaces need root")
    with tempfile.TemporaryDirectory() as name, two_hosts(Path(name)) as pair:
        folder = Path(name)
        write_small(folder, steps=steps, every=steps, machine="2xCPU")
        recipe = folder / "tiny.toml"  # a step of some hundred milliseconds, and gradients of 13 MB
        recipe.write_text(recipe.read_text().replace(*LAYERS).replace(*WIDTH).replace(*HEADS))
        rates, link_mb_per_s = [], 0.0
        cores = sorted(os.sched_getaffinity(0))
        if len(cores) < 2:
            raise CannotRun("two nodes need a core each")
        for host, own in (("pair", [{cores[0]}, {cores[1]}]), ("alone", [{*cores[:2]}, {*cores[:2]}])):
            for machine, few in zip(pair.hosts, own, strict=True):
                machine.compute_on(few)
            done = gptctl(folder, "run", "tiny.toml", "--host", host, "--inventory", pair.inventory, "--yes", "--again")
            if done.returncode:
                raise RuntimeError(done.stderr[-2000:])
            run = newest(folder)
            rates.append(_rate(folder / "home" / "runs" / run.id / run_files.METRICS))
            link_mb_per_s = link_mb_per_s or (run.facts.cluster.mb_per_s if run.facts.cluster else 0.0)
        plan = run.plan
    assert plan is not None
    both, alone = rates
    yield at_least("two nodes, tokens/s", both, alone, "tok/s", "one machine, 2 ranks", EFFICIENCY)
    tokens_per_step = plan.tokens / plan.steps
    slower_s = tokens_per_step / both - tokens_per_step / alone
    link_s = 4 * plan.parameters / (link_mb_per_s * 1e6)  # fp32, 2 (N - 1) / N of them for N = 2
    share = min(1.0, link_s / slower_s) if slower_s > 0 else 1.0  # what computes meanwhile hides some of it
    yield Figure(
        "of what a step takes longer, bytes/link explain", 100 * share, "%", against=f"{link_mb_per_s:.0f} MB/s"
    )


def _rate(path: Path) -> float:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    found = [each["tokens_per_second"] for each in lines if each.get("tokens_per_second")]
    return statistics.median(found[len(found) // 4 :])


def figures(*, quick: bool) -> Iterator[Figure]:
    """The rows of `make bench`."""
    yield status(*((4, 1) if quick else (32, 4)))
    yield ready(2 if quick else 8)
    yield from trained(40 if quick else 200)


def main() -> None:
    """Prints the rows as they come."""
    for figure in figures(quick="--quick" in sys.argv):
        print(figure.line(), flush=True)


if __name__ == "__main__":
    main()
