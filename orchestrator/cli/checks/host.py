"""What a machine needs to train: reach, key, clock, Python, GPUs that really compute, space, rate, no sleep."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypedDict

from orchestrator.agent.contract.compute_check import PROGRAM, caches_below
from orchestrator.agent.contract.compute_check import cure as helps_against
from orchestrator.agent.contract.facts import Facts
from orchestrator.agent.contract.names import BootWay
from orchestrator.cli.checks.finding import FAIL, OK, WARN, Finding
from orchestrator.cli.connections import shell_to
from orchestrator.cli.machine_types import machine_of
from orchestrator.cli.screen.foreign import clean
from orchestrator.core.config.inventory import HostSpec
from orchestrator.core.config.recipe import Recipe
from orchestrator.core.errors import GptctlError, MachineUnfit
from orchestrator.core.fleet.own_machine import goes_on_after_reboot
from orchestrator.core.formats import duration, size
from orchestrator.core.machines import MachineType
from orchestrator.core.planning import demands
from orchestrator.core.planning.batch import choose_batch
from orchestrator.core.planning.forecast import bytes_per_token, kept_about, tokens_about
from orchestrator.core.ports import Shell
from orchestrator.remote.agent_client.client import Agent
from orchestrator.remote.agent_client.decoding import decoded, last_object
from orchestrator.stages.machine import interpreter
from orchestrator.stages.machine.fitness import check_folder, chosen_cards, cure

SKEW_WARN_S, SKEW_FAIL_S = 2.0, 60.0
ENVIRONMENT_BYTES = {True: 8_000_000_000, False: 1_500_000_000}
"""With and without CUDA: torch and its dependencies, if no interpreter has them yet."""
LITTLE_BYTES = 5_000_000_000
MEMORY_TAKEN_MIB = 1024
SLOW_BYTES_PER_S = 1e6
FIRST_PROBE_BYTES, SECOND_PROBE_BYTES = 1_000_000, 16_000_000
AFTER_REBOOT = {BootWay.SYSTEMD: "a systemd user unit", BootWay.CRON: "an @reboot line of the crontab"}
NEEDS_AN_ENVIRONMENT = "not tested: no interpreter has torch >= 2.9"


class _Computed(TypedDict):
    """What the interpreter's check prints, as far as it is shown."""

    torch: str
    cuda: str | None
    gpus: list[str]
    unusable: str
    compile_fault: str | None


def findings(home: Path, host: HostSpec, recipe: Recipe | None, *, accept_new: bool) -> Iterator[Finding]:
    """From the outside in; an unreachable machine ends the list. Of several nodes: one after the other."""
    yield from _of_one(home, host, recipe, accept_new=accept_new)
    for node in host.other_nodes:
        for each in _of_one(home, node, recipe, accept_new=accept_new):
            yield replace(each, what=f"{node.name} {each.what}")


def _of_one(home: Path, host: HostSpec, recipe: Recipe | None, *, accept_new: bool) -> Iterator[Finding]:
    machine = machine_of(host).node
    try:
        started = time.monotonic()
        with shell_to(home, host, accept_new=accept_new) as shell:
            yield _reached(host, time.monotonic() - started)
            # Later checks need the agent's answer, so a machine without Python ends the list, too.
            yield from _inside(shell, home, host, machine, recipe)
    except GptctlError as error:
        yield Finding("reach", FAIL, error.message, error.hint)


def _reached(host: HostSpec, took_s: float) -> Finding:
    address = host.reach()
    if address.host is None:
        return Finding("reach", OK, "this machine")
    return Finding("reach", OK, f"{address.identity} in {took_s * 1000:.0f} ms, host key as pinned")


def _inside(shell: Shell, home: Path, host: HostSpec, machine: MachineType, recipe: Recipe | None) -> Iterator[Finding]:
    here = shell.address.host is None
    folder = str(home / "machine") if here else host.folder
    before = time.time()
    try:
        facts = Agent(shell, folder).facts(host.python or (sys.executable if here else None))
    except MachineUnfit as error:
        yield Finding("python", FAIL, error.message, error.hint)
        return
    if shell.greeting():
        fix = "nothing needs to be done: gptctl skips it; `[ -t 0 ] || return` at the top of .bashrc ends it"
        yield Finding("login", WARN, f"the login shell prints: {clean(shell.greeting())}", fix)
    yield _clock(facts, before, time.time())
    yield _python(facts)
    try:
        mine = chosen_cards(facts, host, machine)
        yield from _gpus(facts, machine, mine)
        yield from _computes(shell, facts, host, machine, mine)
    except MachineUnfit as error:
        yield Finding("gpus", FAIL, error.message, error.hint)
    try:
        check_folder(facts, host, builds=interpreter.expected(facts, host.python, cuda=machine.cuda) is None)
        yield _disk(facts, recipe, machine)
    except MachineUnfit as error:
        yield Finding("folder", FAIL, error.message, error.hint)
    yield _memory(facts, recipe, machine)
    yield _tools(facts)
    if not here:
        yield _rate(shell)
    yield from _home_box(facts)
    if goes_on_after_reboot(host):
        yield _after_reboot(facts)


def _clock(facts: Facts, before: float, after: float) -> Finding:
    """The machine's clock against ours, within the time the answer took."""
    skew_s = facts["time_s"] - (before + after) / 2
    beyond = max(0.0, abs(skew_s) - (after - before) / 2)
    level = FAIL if beyond > SKEW_FAIL_S else WARN if beyond > SKEW_WARN_S else OK
    return Finding("clock", level, f"off by {beyond:.1f} s" if beyond else "agrees", "sudo timedatectl set-ntp true")


def _python(facts: Facts) -> Finding:
    own = f"{facts['python']['path']} {facts['python']['version']}"
    able = [each for each in facts["interpreters"] if each.get("torch")]
    if not able:
        return Finding("python", OK, f"{own}; none has torch: the first run builds an environment")
    listed = ", ".join(f"{each['path']} (torch {each['torch']})" for each in able[:3])
    return Finding("python", OK, f"{own}; with torch: {listed}")


def _gpus(facts: Facts, machine: MachineType, mine: Sequence[str]) -> Iterator[Finding]:
    cards = facts["gpus"]
    if machine.gpus == 0:
        extra = f", {len(cards)} GPUs not used by {machine.name}" if cards else ""
        enough = facts["cpus"] >= machine.ranks
        found = f"{facts['cpus']} cores for {machine.ranks} ranks{extra}"
        yield Finding("cores", OK if enough else WARN, found, "" if enough else f'machine = "{facts["cpus"]}xCPU"')
        return
    names = ", ".join(sorted({card["name"] for card in cards if card["uuid"] in mine}))
    unused = ", ".join(f"{card['index']}: {card['name']}" for card in cards if card["uuid"] not in mine)
    beside = f"; not used: {unused}" if unused else ""
    yield Finding("gpus", OK, f"{len(mine)} of {machine.gpus}: {names}, driver {facts['driver'] or 'none'}{beside}")
    if facts["gpu_trouble"]:
        yield Finding("gpus", WARN, f"nvidia-smi says: {clean(facts['gpu_trouble'])}", cure(facts))
    for card in (card for card in cards if card["uuid"] in mine):
        taken = [f"{each['name']} (pid {each['pid']}, {each['memory_mib']} MiB)" for each in card["processes"]]
        if taken or (card["memory_used_mib"] or 0) > MEMORY_TAKEN_MIB:
            found = f"GPU {card['index']}: {card['memory_used_mib']} MiB taken by {', '.join(taken) or 'others'}"
            yield Finding("gpu memory", WARN, found, "end those processes, or expect a smaller micro-batch")


def _computes(
    shell: Shell, facts: Facts, host: HostSpec, machine: MachineType, mine: Sequence[str]
) -> Iterator[Finding]:
    """The install job's own program, in the interpreter that a run will take and with its caches."""
    python = interpreter.expected(facts, host.python, cuda=machine.cuda)
    if python is None:
        yield Finding("computes", WARN, NEEDS_AN_ENVIRONMENT, _install_words(host, machine))
        return
    see = [f"CUDA_VISIBLE_DEVICES={','.join(mine)}"] if mine else []
    caches = [f"{name}={value}" for name, value in caches_below(f"{facts['root']}/cache").items()]
    result = shell.run(["env", *see, *caches, python, "-c", PROGRAM], deadline_s=180)
    if result.code != 0:
        last = result.stderr.decode(errors="replace").strip().splitlines()[-1:] or [f"code {result.code}"]
        fix = helps_against(last[0]) or "repair this torch, or set `python`"
        yield Finding("computes", FAIL, f"{python}: {clean(last[0])}", fix)
        return
    answer = decoded(_Computed, last_object(result.stdout), "computes")
    where = ", ".join(f"cuda:{index}" for index in range(len(answer["gpus"]))) or "cpu"
    if machine.cuda and len(answer["gpus"]) < machine.gpus:
        why = f": {clean(answer['unusable'])}" if answer["unusable"] else ""
        fix = helps_against(answer["unusable"]) or "install a CUDA torch for it"
        yield Finding("computes", FAIL, f"torch {answer['torch']} sees only {where}{why}", fix)
        return
    yield Finding("computes", OK, f"torch {answer['torch']} on {where}, in {python}")
    if machine.cuda and (fault := answer["compile_fault"]):
        fix = helps_against(fault) or "set train.compile = false, which is slower"
        yield Finding("compiles", WARN, clean(fault), fix)


def _install_words(host: HostSpec, machine: MachineType) -> str:
    wanted = demands.install(host, machine)
    return f"the first run installs {demands.install_words(wanted)}" if wanted else "set `python` to one that has it"


def _memory(facts: Facts, recipe: Recipe | None, machine: MachineType) -> Finding:
    """Main memory: what is available, and what the recipe's training takes of it."""
    available, known = facts["memory"]["available_bytes"], size(facts["memory"]["available_bytes"])
    if recipe is None or available is None:
        return Finding("memory", OK, f"{known} available")
    needed = demands.memory(recipe, machine, choose_batch(recipe, machine))
    found = f"{known} available, {recipe.name} needs {demands.memory_words(needed, machine.ranks)}"
    enough = available >= needed.total_bytes
    return Finding("memory", OK if enough else WARN, found, "end other programs there, or take fewer ranks")


def _disk(facts: Facts, recipe: Recipe | None, machine: MachineType) -> Finding:
    free = facts["disk"]["free_bytes"]
    needed = LITTLE_BYTES if recipe is None else _needed(facts, recipe, machine)
    text = f"{size(free)} free in {facts['root']}" + (f", {recipe.name} needs {size(needed)}" if recipe else "")
    level = OK if free >= needed else FAIL if recipe else WARN
    return Finding("disk", level, text, "free some space, or set `folder` to a larger disk")


def _needed(facts: Facts, recipe: Recipe, machine: MachineType) -> int:
    """Data, kept checkpoints and one being written, and an environment where none is."""
    tokens = tokens_about(recipe)
    data = min(tokens, recipe.data.tokens or tokens) * bytes_per_token(recipe)
    built = any(each.get("trainer") for each in facts["interpreters"])
    return data + kept_about(recipe) + (0 if built else ENVIRONMENT_BYTES[machine.cuda])


def _tools(facts: Facts) -> Finding:
    if facts["tools"].get("rsync"):
        return Finding("tools", OK, "rsync")
    if facts["tools"].get("tar"):
        return Finding("tools", WARN, "no rsync: tar sends everything each time", "sudo apt install rsync")
    return Finding("tools", FAIL, "neither rsync nor tar", "sudo apt install rsync")


def _rate(shell: Shell) -> Finding:
    """Random bytes, so that nothing on the way can compress them; a second, larger probe on a quick link."""
    for probe_bytes in (FIRST_PROBE_BYTES, SECOND_PROBE_BYTES):
        payload = os.urandom(probe_bytes)
        started = time.monotonic()
        shell.run(["sh", "-c", "cat > /dev/null"], stdin=payload, deadline_s=120)
        took_s = max(time.monotonic() - started, 1e-6)
        if took_s > 1:
            break
    rate = probe_bytes / took_s
    fix = f"1 GB takes {duration(1e9 / rate)}: let the machine pull its data, or use a cable"
    return Finding("network", WARN if rate < SLOW_BYTES_PER_S else OK, f"{size(rate)}/s up, one stream", fix)


def _home_box(facts: Facts) -> Iterator[Finding]:
    """Trouble of machines at home: one that goes to sleep, one that another run uses."""
    if facts["sleep_enabled"]:
        fix = "sudo systemctl mask sleep.target suspend.target hibernate.target"
        yield Finding("sleep", WARN, "this machine may go to sleep during training", fix)
    for lock in facts["locks"]:
        holder = lock.get("run") or lock.get("holder") or lock
        yield Finding("in use", WARN, f"held by {clean(str(holder))}", "gptctl status; gptctl stop RUN")


def _after_reboot(facts: Facts) -> Finding:
    """What would start a training again, as the agent finds it."""
    found = facts.get("after_reboot")
    if found in AFTER_REBOOT:
        return Finding("reboot", OK, f"a training goes on after a reboot, by {AFTER_REBOOT[found]}")
    lacks = "your systemd does not run without a login" if found == BootWay.NO_LINGER else "no systemd and no cron"
    fix = f"sudo loginctl enable-linger {facts['user']}" if found == BootWay.NO_LINGER else "sudo apt install cron"
    return Finding("reboot", WARN, f"after a reboot a training waits for `gptctl resume`: {lacks}", fix)
