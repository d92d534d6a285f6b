"""The install job: the first interpreter that imports a new enough torch and computes on every GPU.

In this order: the one given in the inventory, the environment we built before, a candidate that has everything, a
vendor's torch with only what is missing added beside it, a new environment. No installed torch is ever replaced. What
computes on other machines (the nodes behind a login node) is the one given, or an environment that is built: nothing
else is known to be on a disk that they see.

Example, the result::

    {"python": "/root/.gptctl/envs/3f9c/bin/python", "kind": "env", "torch": "2.13.0+cpu", "cuda": null, "gpus": []}
"""

from __future__ import annotations

import fcntl
import os
import re
import subprocess
import sys
import time
from typing import Callable, Iterator, Mapping

from ..contract import torch_builds
from ..contract.compute_check import cure
from ..contract.facts import Environment
from ..contract.names import Code, JobName
from ..job.jobs import Job
from ..system import files, gpus, processes
from ..system.refusal import Refusal
from . import versions
from .interpreter_check import Checked, check

PIP = ["-m", "pip", JobName.INSTALL, "--disable-pip-version-check", "--no-input", "--retries", "2"]
UNCHECKED = "; its packages come over TLS and are not checked against hashes"
"""Which wheels fit depends on the machine's Python and driver, so gptctl ships no hashes of them."""
INDEXES = "https://download.pytorch.org/whl/"
LEAST_PYTHON = "3.10"
LOOKS_EVERY_S = 5.0
INSTALL_PYTHON = "install one: apt install python3.11 python3.11-venv"
ENV_PATTERN = re.compile(r"[a-z0-9]{1,64}\Z")
BROKEN = re.compile(
    r"error 80[23]|system not yet initialized|unsupported display driver|version mismatch|uncorrectable ECC"
    r"|unspecified launch failure|NCCL error",
    re.IGNORECASE,
)
"""Complaints of the machine itself: another interpreter will hear the same, and a new one costs minutes."""
Say = Callable[[Mapping[str, object]], None]


class Wanted:
    """What the environment must satisfy, from the job's spec."""

    def __init__(self, job: Job) -> None:
        spec = job.spec
        given = spec.get("python")
        self.given: str | None = os.path.expanduser(given) if given else None
        self.elsewhere = bool(spec.get("elsewhere"))
        """It computes on other machines: the cards of this one, and that it may have none, say nothing."""
        self.bases = [str(path) for path in spec.get("candidates") or []]
        self.candidates = [path for path in self.bases if not self.elsewhere or path == self.given]
        self.torch = str(spec.get("torch") or "")
        self.requirements = [line for line in spec.get("requirements") or [] if versions.name(line) != "torch"]
        self.cuda = bool(spec.get("cuda"))
        self.allow_build = bool(spec.get("allow_build"))
        self.folder = os.path.join(job.places.envs, str(spec.get("env") or ""))
        self.cache = job.places.cache
        self.found, self.driver = gpus.read_gpus()
        self.visible = [str(uuid) for uuid in spec.get("visible") or []]
        if self.visible:
            # The probes of this job, and what they start, see the cards that train and no other.
            os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(self.visible)
        self.count = len(self.visible) or len(self.found)


def install(job: Job, say: Say) -> Environment:
    """The chosen interpreter; also kept as envs/HASH.json, so that facts knows it."""
    wanted = Wanted(job)
    if not ENV_PATTERN.match(str(job.spec.get("env"))):
        raise Refusal(Code.BAD_REQUEST, "install: the spec needs 'env', the hash that names the environment")
    refused: list[str] = []
    for kind, python in _choices(wanted, refused, say):
        found = probe(python, wanted)
        missing = found.get("why") or unsatisfied(found, wanted)
        if not missing:
            return _record(wanted, kind, python, found)
        if BROKEN.search(missing):
            helps = cure(missing) or "give the machine back"
            raise Refusal(Code.BAD_GPU, "%s: %s" % (python, missing), "its GPUs do not compute: %s" % helps)
        refused.append("%s: %s" % (python, missing))
        say({"step": "refused", "python": python, "why": missing})
    raise Refusal(
        Code.NO_INTERPRETER,
        "no interpreter imports torch%s and computes: %s" % (wanted.torch, "; ".join(refused) or "none found"),
        "set `python` in the host's inventory entry to one that does",
    )


def _choices(wanted: Wanted, refused: list[str], say: Say) -> Iterator[tuple[str, str]]:
    """(kind, interpreter) to try, cheapest first. Lazy: what comes later is only built when asked for."""
    if wanted.given:
        yield "given", wanted.given
    built = os.path.join(wanted.folder, "bin", "python")
    if os.access(built, os.X_OK):
        yield "env", built
    for python in wanted.candidates:
        if python != wanted.given:
            yield "found", python
    if wanted.allow_build:
        yield from _new(wanted, refused, say)


def _new(wanted: Wanted, refused: list[str], say: Say) -> Iterator[tuple[str, str]]:
    """Those that are made. One job builds at a time, and those that waited take what it built."""
    lock, waited = _alone(wanted)
    try:
        if waited:
            yield "env", os.path.join(wanted.folder, "bin", "python")
        yield from _made(wanted, refused, say)
    finally:
        os.close(lock)


def _alone(wanted: Wanted) -> tuple[int, bool]:
    """The descriptor that holds the environment's lock, and whether another job had it. A file system without locks
    gives none."""
    files.make_folder(os.path.dirname(wanted.folder))
    descriptor, waited = os.open(wanted.folder + ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), False
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waited = True
            sys.stderr.write("another run builds this environment: waiting for it\n")  # a log that grows lives
            sys.stderr.flush()
            time.sleep(LOOKS_EVERY_S)
            continue
        except OSError:
            pass
        return descriptor, waited


def _made(wanted: Wanted, refused: list[str], say: Say) -> Iterator[tuple[str, str]]:
    base = _vendor(wanted)
    if base:
        say({"step": "build", "text": "adding what is missing beside the torch of %s%s" % (base, UNCHECKED)})
        yield "vendor", build(wanted, base, True, refused)
    base, chosen = _newest_python(wanted), chosen_build(wanted)
    text = "a new environment with torch %s (%s, %.1f GB to download) on %s%s"
    say({"step": "build", "text": text % (chosen.version, chosen.name, chosen.download_bytes / 1e9, base, UNCHECKED)})
    yield "built", build(wanted, base, False, refused)


def probe(python: str, wanted: Wanted) -> Checked:
    """What the interpreter's check found; see interpreter_check."""
    return check(python, [versions.name(line) for line in wanted.requirements], wanted.cache)


def unsatisfied(found: Checked, wanted: Wanted) -> str:
    """What that interpreter lacks, in words; empty when it will do."""
    if not versions.satisfies(found["torch"], wanted.torch):
        return "torch is %s, wanted %s" % (found["torch"], wanted.torch)
    if wanted.cuda and wanted.elsewhere:
        if found["cuda"] is None:
            return "torch is built without CUDA"
        lacking = lacking_requirements(found, wanted)
        return "lacks " + ", ".join(lacking) if lacking else ""
    if wanted.cuda and len(found["gpus"]) != wanted.count:
        why = ": " + found["unusable"] if found.get("unusable") else ""
        return "torch sees %d of %d GPUs%s" % (len(found["gpus"]), wanted.count, why)
    if wanted.cuda and not found["gpus"]:
        return "torch sees no GPU"
    lacking = lacking_requirements(found, wanted)
    return "lacks " + ", ".join(lacking) if lacking else ""


def lacking_requirements(found: Checked, wanted: Wanted) -> list[str]:
    """Requirement lines that the interpreter's packages do not meet."""
    have = {line: found["packages"].get(versions.name(line)) for line in wanted.requirements}
    return [
        line for line, version in have.items() if not (version and versions.satisfies(version, versions.rest(line)))
    ]


def _vendor(wanted: Wanted) -> str | None:
    """A candidate whose torch is good and computes, lacking only packages that can be added beside it."""
    for python in wanted.candidates:
        found = probe(python, wanted)
        if "why" not in found and unsatisfied(found, wanted).startswith("lacks "):
            return python
    return None


def _newest_python(wanted: Wanted) -> str:
    """The base of a new environment: of the candidates the newest Python that the trainer runs on. For other machines
    rather the one given or the system's, which they have too."""
    known = []
    for python in [*wanted.bases, sys.executable]:
        asked = subprocess.run(
            [python, "-I", "-S", "-c", "import sys; print('%d.%d' % sys.version_info[:2])"],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL, check=False,
        )  # fmt: skip
        version = asked.stdout.decode().strip()
        if asked.returncode == 0 and versions.satisfies(version, ">=" + LEAST_PYTHON):
            there = wanted.elsewhere and (python == wanted.given or os.path.dirname(python) == "/usr/bin")
            known.append((there, versions.numbers(version), python))
    if not known:
        message = "no Python >= %s on this machine" % LEAST_PYTHON
        helps = 'name a module with one: modules = ["python/3.11"]' if wanted.elsewhere else INSTALL_PYTHON
        raise Refusal(Code.NO_INTERPRETER, message, helps)
    return max(known)[2]


def build(wanted: Wanted, base: str, keep_torch: bool, refused: list[str]) -> str:
    """A virtual environment at envs/HASH; with keep_torch it sees the base's packages, torch among them."""
    files.make_folder(os.path.dirname(wanted.folder))
    python = os.path.join(wanted.folder, "bin", "python")
    options = ["--clear", *(["--system-site-packages"] if keep_torch else [])]
    pip = [python, *PIP]
    if _run([base, "-m", "venv", *options, wanted.folder]):
        # Debian without python3-venv: an environment without its own pip, filled by the base's.
        failed = _run([base, "-m", "venv", "--without-pip", *options, wanted.folder])
        if failed:
            refused.append("%s -m venv: %s" % (base, failed))
            return base
        pip = [base, "-m", "pip", "--python", python, *PIP[2:]]
    if keep_torch:
        _see_packages_of(base, wanted.folder)
        lines = lacking_requirements({"packages": {}, **probe(python, wanted)}, wanted)
    else:
        chosen = chosen_build(wanted)
        if not _installed(pip, ["--index-url", INDEXES + chosen.name, "torch==" + chosen.version], refused):
            return python
        lines = wanted.requirements
    if lines:
        _installed(pip, lines, refused)
    return python


def _installed(pip: list[str], words: list[str], refused: list[str]) -> bool:
    failed = _run([*pip, *words])
    if failed:
        refused.append("pip install %s: %s" % (" ".join(words), failed))
    return not failed


def chosen_build(wanted: Wanted) -> torch_builds.Build:
    """The build of torch for a new environment. Raises Refusal where this driver and these cards have none."""
    if not wanted.cuda:
        return torch_builds.CPU
    if wanted.elsewhere:
        return torch_builds.newest(())
    try:
        return torch_builds.choose(wanted.driver, gpus.capabilities(wanted.visible))
    except ValueError as error:
        hint = "or set `python` in the host's inventory entry"
        raise Refusal(Code.NO_INTERPRETER, "no torch can be installed: %s" % error, hint) from error


def _see_packages_of(base: str, folder: str) -> None:
    """When the base is itself a virtual environment, --system-site-packages skips its packages: name them by a .pth."""
    asked = subprocess.run(
        [base, "-c", "import sysconfig; print(sysconfig.get_path('purelib')); print(sysconfig.get_path('platlib'))"],
        stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, check=True,
    )  # fmt: skip
    libraries = os.path.join(folder, "lib")
    for version in files.listing(libraries):
        files.write_bytes(os.path.join(libraries, version, "site-packages", "zz-gptctl-base.pth"), asked.stdout)


def _run(argv: list[str]) -> str:
    """Empty when the command succeeded, else its last line. Its output goes to the job's log."""
    last = ""
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        assert process.stdout is not None
        for line in process.stdout:
            text = line.decode(errors="replace")
            # Line by line: a log that grows keeps the lease alive, and the follower from doubting.
            sys.stderr.write(text)
            sys.stderr.flush()
            last = text.strip() or last
    return (last or "code %d" % process.returncode) if process.returncode else ""


def _record(wanted: Wanted, kind: str, python: str, found: Checked) -> Environment:
    record = Environment(
        python=python,
        kind=kind,
        torch=found["torch"],
        cuda=found["cuda"],
        gpus=found["gpus"],
        boot_id=processes.boot_id(),
        driver=wanted.driver,
        visible=wanted.visible,
        compile_fault=found.get("compile_fault"),
    )
    files.make_folder(os.path.dirname(wanted.folder))
    files.write_json(wanted.folder + ".json", record)
    return record
