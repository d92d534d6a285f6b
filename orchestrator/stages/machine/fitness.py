"""Whether a machine can hold a run: the cards that its host entry means, and its folder. One verdict for `check` and
`provision`; it looks at values only, and says what helps.

The cards: those of `gpus` of the host where it is given, else of the name that `machine` means, else cards that gptctl
does not know with the memory of it. A display card beside the training card is neither. Of more than enough, free ones
come first.

    chosen_cards(facts, host, machine_type("1x3090"))      # the 3090, not the GT 710 beside it
    check_folder(facts, host, builds=True)                 # MachineUnfit: box: ... is on a file system without locks
"""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.agent.contract.facts import Facts, Gpu
from orchestrator.core.config.inventory import SLURM, HostSpec
from orchestrator.core.errors import MachineUnfit
from orchestrator.core.machines import MachineType, gpu_by_smi_name, local_machine

LEAST_OF_MEMORY = 0.92
"""nvidia-smi shows what the driver leaves: 81559 MiB of an 80 GB card, 15360 of a 16 GB one."""
MIG_SLICE = "MIG-"

CURES = (
    ("version mismatch", "reboot the machine: its driver was updated while it ran"),
    (
        "couldn't communicate with the nvidia driver",
        "reboot the machine, or install its driver again: the driver is not loaded",
    ),
    ("lost", "reboot the machine; a card that is lost again is too hot, short of power, or broken"),
    ("unable to determine the device handle", "reboot the machine; a card that is lost again is broken"),
    ("no answer within", "reboot the machine: its driver or a card hangs"),
    ("insufficient permissions", "let this user use the cards: add it to the groups video and render"),
    ("not installed", "install NVIDIA's driver on the machine"),
    ("no devices were found", "look on the machine: dmesg | grep -i nvrm; reseat or power the card"),
)
NO_SMI = "install NVIDIA's driver on the machine (on WSL2: in Windows), or set `machine` to what it has, such as 2xCPU"

ELSEWHERE = "set `folder` in its inventory entry to a place on a local disk"


def chosen_cards(facts: Facts, host: HostSpec, machine: MachineType) -> list[str]:
    """The UUIDs of the cards that train, one for each rank. Raises MachineUnfit with what is there, and the cure."""
    if not machine.cuda or host.provider == SLURM:  # a login node's cards, if it has any, train nothing
        return []
    if host.gpus:
        return _named(facts, host, machine)
    fitting = _fitting(facts["gpus"], machine)
    if len(fitting) < machine.gpus:
        raise MachineUnfit(
            f"{host.name}: {len(fitting)} of {machine.gpus} cards for {machine.name}; it has {listed(facts)}",
            cure(facts) or _suggestion(facts, host, machine),
        )
    split = [card for card in fitting[: machine.gpus] if card.get("mig")]
    if split:
        raise MachineUnfit(
            f"{host.name}: GPU {split[0]['index']} is split by MIG: a training sees one slice of it",
            f'sudo nvidia-smi -i {split[0]["index"]} -mig 0, or name slices: gpus = ["MIG-..."] (nvidia-smi -L)',
        )
    return [card["uuid"] for card in fitting[: machine.gpus]]


def listed(facts: Facts) -> str:
    """The cards that are there, and what nvidia-smi says besides."""
    cards = "; ".join(f"{card['index']}: {card['name']}, {_gib(card):.0f} GiB" for card in facts["gpus"])
    said = f"nvidia-smi says: {facts['gpu_trouble']}" if facts["gpu_trouble"] else ""
    return ". ".join(filter(None, [cards or "no card that answers", said]))


def cure(facts: Facts) -> str:
    """What helps against what nvidia-smi says; empty where it says nothing."""
    said = facts["gpu_trouble"].lower()
    found = next((help_ for words, help_ in CURES if words in said), "")
    return found or ("" if facts["gpus"] else NO_SMI)


def _fitting(cards: Sequence[Gpu], machine: MachineType) -> list[Gpu]:
    """Cards of the machine's kind, the free ones first; where those are too few, cards of no kind that gptctl knows."""
    assert machine.gpu is not None
    by_name = [card for card in cards if gpu_by_smi_name(card["name"]) == machine.gpu]
    least_gib = LEAST_OF_MEMORY * machine.gpu.memory_gib
    unknown = [card for card in cards if gpu_by_smi_name(card["name"]) is None]
    by_memory = [card for card in unknown if card["memory_total_mib"] is None or _gib(card) >= least_gib]
    if not machine.gpu.smi:  # a card of which only the memory is known may be of any name
        by_name, by_memory = [card for card in cards if _gib(card) >= least_gib], []
    found = by_name if len(by_name) >= machine.gpus else by_name + by_memory
    return sorted(found, key=lambda card: (bool(card["processes"]), card["memory_used_mib"] or 0))


def _named(facts: Facts, host: HostSpec, machine: MachineType) -> list[str]:
    """The cards that `gpus` of the host names, in its order."""
    found = []
    for name in map(str, host.gpus):
        match = [card["uuid"] for card in facts["gpus"] if name in (str(card["index"]), card["uuid"])]
        found += [name] if name.startswith(MIG_SLICE) else match
        if not match and not name.startswith(MIG_SLICE):
            raise MachineUnfit(
                f"{host.name}: `gpus` names {name}, which is not there; it has {listed(facts)}",
                cure(facts) or f"correct `gpus` of host {host.name} in the inventory",
            )
    if len(found) != machine.gpus:
        raise MachineUnfit(
            f"{host.name}: `gpus` names {len(found)} cards, and {machine.name} has {machine.gpus}",
            f"correct `gpus` or `machine` of host {host.name} in the inventory",
        )
    return found


def _suggestion(facts: Facts, host: HostSpec, machine: MachineType) -> str:
    cards = facts["gpus"]
    least_gib = min((_gib(card) for card in cards), default=0.0)
    like = local_machine([card["name"] for card in cards], facts["cpus"], least_gib).name
    return f'set machine = "{like}" of host {host.name} in the inventory, or look with: gptctl check {host.name}'


def _gib(card: Gpu) -> float:
    return (card["memory_total_mib"] or 0) / 1024


def check_folder(facts: Facts, host: HostSpec, *, builds: bool) -> None:
    """builds: an environment has to be made in it. Raises MachineUnfit with the system's words."""
    where, said = f"{host.name}: {facts['root']}", facts["folder"]
    if said["write"]:
        raise MachineUnfit(
            f"{where} cannot be written to: {said['write']}", f"free space or files there, or {ELSEWHERE}"
        )
    if said["lock"]:
        raise MachineUnfit(f"{where} is on a file system without locks: {said['lock']}", ELSEWHERE)
    if said["run"] and builds:
        raise MachineUnfit(
            f"{where} runs no programs ({said['run']}; it is mounted noexec), and an environment has to be built there",
            f"{ELSEWHERE}, or `python` to an interpreter that has torch >= 2.9",
        )
