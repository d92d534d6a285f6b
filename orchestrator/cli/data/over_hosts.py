"""`gptctl data prepare --hosts`: shards of one preparation, made on hosts of the inventory and merged here.

This computer cuts the text and sends each host that of its next shard; what a host made is pulled, verified, and
removed there. A host that fails leaves its shard to the others. Shards that are here are not made again, so the same
command continues after anything. The trainer's own program makes a shard, there as here.

Example: `prepare_over([home_3090, desk], Job(texts, settings, None, to, 8, home))`
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue

from orchestrator.cli.connections import shell_to
from orchestrator.cli.data.array_job import Element, make_in_array
from orchestrator.cli.data.program import NUMPY, program_argv, run_program
from orchestrator.cli.screen.foreign import clean
from orchestrator.cli.screen.screen import talk
from orchestrator.core.checkpoints.file_entry import FileEntry
from orchestrator.core.config.inventory import HostSpec
from orchestrator.core.errors import CommandFailed, GptctlError, Unreachable, UserError, VerificationFailed
from orchestrator.core.ports import Shell
from orchestrator.core.typed_json import parse
from orchestrator.providers import EngineModule, load_engine
from orchestrator.remote.agent_client.client import Agent
from orchestrator.remote.shell.local_shell import LocalShell
from orchestrator.remote.transfer import transfer
from orchestrator.remote.transfer_progress import silent
from orchestrator.remote.whole_files import landing
from orchestrator.stages.data.sending import source_digest, source_files
from trainer import contract

SHARDS_PER_HOST = 4
SHARD_JSON, IDS, RECORDS = "shard.json", "ids.bin", "documents.bin"
SILENCE_S = 300.0
"""A line a second is usual; opening a tokenizer may download it first."""
OWN = "prepare: "
"""Begins what the program says of its input: that is the same on every host."""


@dataclass(frozen=True)
class Place:
    """A host that makes shards: a connection, the interpreter, and folders there."""

    host: HostSpec
    shell: Shell
    python: str
    source: str
    root: str


@dataclass(frozen=True)
class Sent:
    """A shard whose text is on a host: its order, and its folder there."""

    order: dict[str, object]
    folder: str

    @property
    def shard(self) -> int:
        return int(str(self.order["shard"]))

    @property
    def name(self) -> str:
        return f"{self.shard:05d}-of-{int(str(self.order['of'])):05d}"


@dataclass(frozen=True)
class Job:
    """What all shards have in common. `texts` and `settings` are arguments of trainer.prepare."""

    texts: Sequence[str]
    settings: Sequence[str]
    workers: int | None
    to: Path
    shards: int
    home: Path


def prepare_over(hosts: Sequence[HostSpec], job: Job) -> None:
    """Makes what is missing on the hosts, then merges. Raises UserError for what is wrong with the text, and
    Unreachable where shards remain that no host could make; the same command makes those alone."""
    todo: SimpleQueue[int] = SimpleQueue()
    for shard in range(1, job.shards + 1):
        todo.put(shard)
    made: list[int] = []
    faults: dict[str, str] = {}
    while not todo.empty() and (able := [host for host in hosts if host.name not in faults]):
        for host, fault in zip(able, _all_at_once(able, job, todo, made), strict=True):
            if isinstance(fault, UserError):
                raise fault
            if fault is not None:
                faults[host.name] = str(fault)
    if len(made) < job.shards:
        lost = "; ".join(f"{name}: {clean(fault)}" for name, fault in faults.items())
        raise Unreachable(
            f"{job.shards - len(made)} of {job.shards} shards were not made: {lost}",
            "repair the host, or name others, and run the same command: it makes the missing shards alone",
        )
    if (job.to / "shards").is_dir():  # else the dataset of this very text was there already
        run_program("prepare", ["--merge", f"--to={job.to.absolute()}"])


def _all_at_once(
    hosts: Sequence[HostSpec], job: Job, todo: SimpleQueue[int], made: list[int]
) -> list[Exception | None]:
    """Each host's turn after turn, until nothing is left; why a host gave up."""
    ended: SimpleQueue[tuple[str, Exception | None]] = SimpleQueue()

    def work(host: HostSpec) -> None:
        try:
            _work(host, job, todo, made)
            ended.put((host.name, None))
        except (GptctlError, OSError) as error:
            ended.put((host.name, error))

    # Daemons: Ctrl-C must not wait for shards, which the next command makes.
    for host in hosts:
        threading.Thread(target=work, args=(host,), daemon=True).start()
    faults = {}
    for _ in hosts:
        name, fault = ended.get()
        faults[name] = fault
        if isinstance(fault, UserError):
            break  # of the text: it is wrong on every host
        if fault is not None:
            talk(f"{name} makes no more shards: {clean(str(fault))}")
    return [faults.get(host.name) for host in hosts]


def number_of_shards(to: Path, hosts: int) -> int:
    """As many as an earlier command parted it into; else some for each host."""
    counts = {each.name.partition("-of-")[2] for each in (to / "shards").glob("*-of-*")}
    number = next(iter(counts), "")
    return int(number) if number.isdigit() else SHARDS_PER_HOST * hosts


def _work(host: HostSpec, job: Job, todo: SimpleQueue[int], made: list[int]) -> None:
    with _ready(job.home, host) as place:
        if (queue := load_engine(host.provider)) is not None:
            return _in_queue(queue, place, job, todo, made)
        for shard in _turns(todo):
            began = time.monotonic()
            try:
                if (sent := _send(place, job, shard)) is not None:
                    _said(place.shell, command(place, job, sent))
                    _bring(place, job, sent)
                    talk(f"shard {shard}/{job.shards}: {host.name}, {time.monotonic() - began:.0f} s")
            except BaseException:
                todo.put(shard)
                raise
            made.append(shard)


def _turns(todo: SimpleQueue[int]) -> Iterator[int]:
    """The next shard that nobody has taken, as long as there is one."""
    while True:
        try:
            yield todo.get_nowait()
        except Empty:
            return


@contextmanager
def _ready(home: Path, host: HostSpec) -> Iterator[Place]:
    """Raises Unreachable, and CommandFailed where no interpreter there has what the program needs."""
    with shell_to(home, host, accept_new=False) as shell:
        here = shell.address.host is None
        agent = Agent(shell, str(home / "machine") if here else host.folder)
        facts = agent.facts(host.python or (sys.executable if here else None))
        able = [found["path"] for found in facts["interpreters"] if found.get("trainer")]
        if not able:
            raise CommandFailed(
                f"no Python on {host.name} has {', '.join(NUMPY)}",
                f"set `python` of {host.name} to one that has, or let a run build one: gptctl run quickstart --host "
                f"{host.name}",
            )
        package = Path(contract.__file__).parent
        source = f"{agent.root}/src/{source_digest(package)}"
        transfer.push_tree(shell, package, f"{source}/trainer", source_files(package), silent)
        yield Place(host, shell, able[0], source, agent.root)


def _send(place: Place, job: Job, shard: int) -> Sent | None:
    """Cuts the shard's text and sends it; None where the shard, or the whole dataset, is here already."""
    with tempfile.TemporaryDirectory(prefix="gptctl-shard-") as cut:
        which = [f"--shard={shard}/{job.shards}", f"--cut={cut}", f"--to={job.to.absolute()}"]
        told = _said(LocalShell(), program_argv("prepare", [*job.texts, *job.settings, *which]))
        if told["event"] == "unchanged":
            return None
        order, names = told["order"], told["files"]
        assert isinstance(order, dict) and isinstance(names, list)
        digest = hashlib.sha256(json.dumps(order, sort_keys=True).encode()).hexdigest()[:16]
        folder = f"{place.root}/prepare/{digest}"
        transfer.push_tree(place.shell, Path(cut), f"{folder}/text", [str(name) for name in names], silent)
        return Sent(order, folder)


def command(place: Place, job: Job, sent: Sent) -> list[str]:
    """What makes the shard there."""
    workers = [f"--workers={job.workers}"] if job.workers else []
    named = [each for each in job.texts if not each.startswith("--source=")]
    order = f"--order={json.dumps(sent.order)}"
    words = [f"--source={sent.folder}/text/*", *named, *job.settings, *workers, order, f"--to={sent.folder}"]
    return ["env", f"PYTHONPATH={place.source}", place.python, "-m", "trainer.prepare", *words]


def _in_queue(queue: EngineModule, place: Place, job: Job, todo: SimpleQueue[int], made: list[int]) -> None:
    """All shards that are left, as one array job of the host's queue."""
    turns = list(_turns(todo))
    try:
        found = [(shard, _send(place, job, shard)) for shard in turns]
        sent = {shard: each for shard, each in found if each is not None}
        if sent:
            elements = {shard: Element(each.folder, command(place, job, each)) for shard, each in sent.items()}
            make_in_array(queue, place.host, place.shell, elements)
        for each in sent.values():
            _bring(place, job, each)
    except BaseException:
        for shard in turns:
            todo.put(shard)
        raise
    made += turns


def _said(shell: Shell, argv: Sequence[str]) -> dict[str, object]:
    """The last line of the program. Raises UserError with what it says of its input."""
    last: dict[str, object] = {}
    try:
        with shell.lines(argv, silence_s=SILENCE_S) as lines:
            for line in lines:
                if line.startswith(b"{"):
                    last = dict(parse(line))
    except CommandFailed as error:
        _, found, reason = error.message.rpartition(OWN)
        if not found:
            raise
        raise UserError(f"data prepare: {clean(reason)}") from error
    return last


def _bring(place: Place, job: Job, sent: Sent) -> None:
    """Pulls the finished shard, shard.json last, and removes it there. Raises VerificationFailed for another one."""
    far, here = f"{sent.folder}/shards/{sent.name}", job.to / "shards" / sent.name
    with tempfile.TemporaryDirectory(prefix="gptctl-shard-") as folder:
        place.shell.get(f"{far}/{SHARD_JSON}", Path(folder) / SHARD_JSON)
        content = (Path(folder) / SHARD_JSON).read_bytes()
    told = parse(content)
    files = told.get("files")
    if told.get("order") != sent.order or not isinstance(files, dict) or set(files) != {IDS, RECORDS}:
        raise VerificationFailed(f"{place.host.name} made another shard than {sent.name}", "run the command again")
    here.mkdir(parents=True, exist_ok=True)
    entries = {name: FileEntry(int(each["size_bytes"]), str(each["sha256"])) for name, each in files.items()}
    transfer.pull_files(place.shell, far, here, entries, silent)
    with landing(here / SHARD_JSON, mode=0o644) as file:
        file.write(content)
    shutil.rmtree(here / ".prepare", ignore_errors=True)
    place.shell.run(["rm", "-rf", "--", sent.folder])
