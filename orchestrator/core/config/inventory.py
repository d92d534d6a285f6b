"""The inventory: which machines there are and how to reach them, as frozen values read from inventory.toml. No secrets.

It must not connect to anything. `docs/reference/inventory.md` is made from the tables.

Example::

    inventory = load_inventory(None, home=Path("~/.local/share/gptctl").expanduser())
    inventory.host("home-3090").address, inventory.host("local").machine      # "192.168.1.20", None: detected later
"""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, field_validator, model_validator

from orchestrator.core.config.home_box import HomeBox, by_ssh_alone, is_home, parts
from orchestrator.core.config.node_tables import of_one, table_of
from orchestrator.core.config.slurm_table import SlurmSpec
from orchestrator.core.config.toml_tables import NAME_PATTERN, Line, PricePerHourUsd, Table, build, read_toml
from orchestrator.core.errors import UserError
from orchestrator.core.machines import machine_type
from orchestrator.core.ports import UNPAID, Address
from orchestrator.core.suggest import nearest, one_of

FILE_NAME = "inventory.toml"
COMMENTED_HOST = re.compile(r"#\s*\[hosts\.([A-Za-z0-9_-]+)\]")
LOCAL = "local"
SLURM = "slurm"
SSH = "ssh"

SPOT_MARKETS = frozenset({"ec2", "rehearsal"})
"""Providers that sell the same machines cheaper and take them away at short notice."""

FILE_SYSTEM_SELLERS = frozenset({"lambda", "rehearsal"})
"""Providers whose file systems outlive the machines that they are attached to."""

SECRET_KEYS = re.compile(r"(api|access|secret)_?key|token|password|passphrase|secret|credential", re.IGNORECASE)
API_KEY_VARIABLES = {"lambda": "LAMBDA_API_KEY", "ec2": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"}

# What ssh takes as host and user; a leading dash would be read as an option.
AddressText = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_\[:][A-Za-z0-9_.:%\[\]-]{0,253}$")]
UserName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.@-]{0,63}$")]
Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]


class HostSpec(Table):
    """One machine, or one kind of machine to rent: a table [hosts.NAME]."""

    name: Name
    """The table's name; `gptctl run RECIPE --host NAME`."""
    provider: Name = SSH
    """Where it comes from: `local`, `ssh` (a machine that is already on) or a cloud."""
    machine: Name | None = None
    """Machine type, such as `1x3090`, `8xA100-40GB` or `2xCPU`; only host `local` detects it."""
    nodes: tuple[Name, ...] = ()
    """Other hosts of this inventory that train together, such as `["a", "b"]`: the first is the head, and the rest of
    this entry is as there. All are machines of provider `ssh`, and of one `machine`. Of a cloud a number, such as 2: so
    many machines are rented as one, all or none; prices and limits are those of all."""
    link_gbit_per_s: float | None = Field(default=None, gt=0, le=100_000)
    """Network between the machines of `nodes`, each way; absent: 10. `plan` compares with one machine by it."""
    on_node_lost: Literal["end", "continue", "replace"] = "end"
    """What a training over `nodes` does when it loses one, within `train.restarts`: `end`, `continue` with the others
    at the same global batch, or (of a cloud) `replace` it by another machine, under the same ceiling."""
    private_address: Annotated[str, StringConstraints(pattern=r"^[0-9]{1,3}(\.[0-9]{1,3}){3}$")] | None = None
    """IPv4 address at which the other nodes reach this one; absent: `address` where an interface has it, else the
    first private one."""
    peers: tuple[dict[str, object], ...] = ()
    """Set by gptctl: the tables of the nodes after the first."""
    machines: tuple[Name, ...] = ()
    """Further machine types to rent: of those with capacity, the one whose run costs least is taken."""
    address: AddressText | None = None
    """Provider `ssh`: name, address or ~/.ssh/config alias. The host's own name in the inventory when absent."""
    port: int | None = Field(default=None, ge=1, le=65_535)
    """SSH port; absent: that of ~/.ssh/config, else 22."""
    user: UserName | None = None
    """SSH user; absent: that of ~/.ssh/config, else yours."""
    ssh_key: Line | None = None
    """Private key file; absent: those of ~/.ssh/config and the SSH agent."""
    fingerprint: Annotated[str, StringConstraints(pattern=r"^SHA256:[A-Za-z0-9+/]{43}=?$")] | None = None
    """Host key as `ssh-keygen -lf` prints it, `SHA256:...`: vouches for the first contact, and stays pinned."""
    host_key: Literal["injected", "first-contact"] = "injected"
    """Rented machines: pin the key injected at launch, or whatever the machine shows first."""
    folder: Line = "~/.gptctl"
    """Where gptctl lives on the machine; give a folder on the large disk."""
    data_folder: Annotated[str, StringConstraints(pattern=r"^/[^\x00-\x1f]+$", max_length=1_000)] | None = None
    """Absolute path for datasets, such as a file system that outlives the machine; absent: in `folder`."""
    python: Line | None = None
    """Interpreter that has torch, when gptctl should not choose one; it then runs everything of gptctl there. `~/` is
    the home folder on the machine."""
    gpus: tuple[Annotated[int, Field(ge=0, le=63)] | Line, ...] = ()
    """Cards that train, by the index or UUID that nvidia-smi shows, such as `[1]` or `["GPU-..."]`; empty: those that
    `machine` means."""
    price_per_hour_usd: PricePerHourUsd | None = None
    """Your own price of the machine, electricity for instance. A cloud's price comes from the cloud."""
    max_price_per_hour_usd: float | None = Field(default=None, gt=0, le=10_000)
    """Never rent above this."""
    max_cost_usd: float | None = Field(default=None, gt=0, le=10_000_000)
    """Ceiling over one run on this host."""
    max_hours: float | None = Field(default=None, gt=0, le=100_000)
    """Longest time of one run on this host."""
    regions: tuple[Name, ...] = ()
    """Regions to rent in, best first; empty: all (`ec2`: the one that the AWS configuration names)."""
    file_systems: tuple[Name, ...] = ()
    """Lambda: persistent file systems to attach, at /lambda/nfs/NAME. Machines are then rented in their region only."""
    image: Line | None = None
    """Machine image to start from; absent: the provider's usual one with a GPU driver."""
    spot: bool = False
    """Rent on the spot market: cheaper, and taken away at two minutes' notice."""
    metadata_endpoint: Annotated[str, StringConstraints(pattern=r"^https?://[A-Za-z0-9.:\[\]-]+$")] | None = None
    """Replaces the address at which a machine asks about itself (EC2: http://169.254.169.254)."""
    guard: Literal["none", "self", "watcher", "key-on-box"] = "none"
    """What ends a forgotten rented machine."""
    checkpoint_store: Line | None = None
    """Where kept checkpoints go by themselves: `s3://BUCKET/PREFIX`, `hf://OWNER/NAME` (a private repository), or
    `ssh://HOST/FOLDER`, a computer of yours that calls the machine and keeps them."""
    fetch_store: Annotated[str, StringConstraints(pattern=r"^(s3|hf)://[^\x00-\x1f]+$", max_length=1_000)] | None = None
    """Rented machines without `checkpoint_store`: where bringing the checkpoints here takes longer than
    `fetch_minutes`, the machine stores them here instead and is given back: `s3://BUCKET/PREFIX` or `hf://OWNER/NAME`."""
    fetch_minutes: float = Field(default=30.0, gt=0, le=100_000)
    """Rented machines: where bringing the checkpoints here takes longer, they go to `fetch_store`; without one, gptctl
    says what it costs."""
    hub_token_on_machine: bool = False
    """Lets the machine have HF_STORE_TOKEN, which `checkpoint_store = "hf://..."` needs."""
    endpoint: Annotated[str, StringConstraints(pattern=r"^https?://[A-Za-z0-9.:\[\]-]+$")] | None = None
    """Replaces scheme and host of the provider's API."""
    driver_may_hold: tuple[Literal["lambda", "aws", "hf"], ...] = ()
    """Keys that this machine may get where it drives your runs (`--driver`): in the memory of its processes, never on
    its disk."""
    on_reboot: Literal["continue", "stop"] | None = None
    """What a training does after a reboot of your machine: `continue`, from its newest checkpoint and within
    `train.restarts`, or `stop`. Absent: `continue` for provider `ssh`, `stop` for `local`."""
    slurm: SlurmSpec = SlurmSpec()
    """Provider `slurm`: what jobs are submitted with; keys below."""
    board_power_w: float | None = Field(default=None, gt=0, le=100_000)
    """Watts of one card under load (of the machine, where it has none); absent: the data sheet's."""
    grid_kg_co2e_per_kwh: float | None = Field(default=None, ge=0, le=3)
    """Carbon intensity of its electricity."""

    @field_validator("machine", "machines")
    @classmethod
    def _machine_is_known(cls, given: str | tuple[str, ...] | None) -> str | tuple[str, ...] | None:
        for name in (given,) if isinstance(given, str) else given or ():
            try:
                machine_type(name)
            except UserError as error:
                raise ValueError(f"{error.message} ({error.hint})") from error
        return given

    @model_validator(mode="after")
    def _says_its_machine(self) -> Self:
        if self.machine is None and self.provider != LOCAL:
            raise ValueError('needs `machine`, such as machine = "1x3090"')
        return self

    @model_validator(mode="after")
    def _may_choose_its_machine(self) -> Self:
        if self.machines and not self.paid:
            raise ValueError(f"machines: a machine of provider {self.provider} is what it is; name it in `machine`")
        return self

    @model_validator(mode="after")
    def _may_choose_its_cards(self) -> Self:
        if self.gpus and self.paid:
            raise ValueError(f"gpus: a machine of provider {self.provider} trains on all of its cards")
        if self.on_reboot == "continue" and self.provider not in (LOCAL, SSH):
            raise ValueError(f"on_reboot: a machine of provider {self.provider} is not yours; omit it")
        return self

    @model_validator(mode="after")
    def _has_nodes_to_lose(self) -> Self:
        if self.on_node_lost != "end" and not self.nodes:
            raise ValueError(f'on_node_lost = "{self.on_node_lost}": only a host with `nodes` can lose one; omit it')
        if self.on_node_lost == "replace" and not self.paid:
            raise ValueError(f'on_node_lost: provider {self.provider} sells no other machine; use "continue" or "end"')
        return self

    @model_validator(mode="after")
    def _has_a_spot_market(self) -> Self:
        if self.spot and self.provider not in SPOT_MARKETS:
            raise ValueError(f"spot = true: {self.provider} has no spot market; {one_of(SPOT_MARKETS)} has one")
        return self

    @model_validator(mode="after")
    def _has_file_systems(self) -> Self:
        if self.file_systems and self.provider not in FILE_SYSTEM_SELLERS:
            raise ValueError(f"file_systems: {self.provider} attaches none; {one_of(FILE_SYSTEM_SELLERS)} does")
        return self

    @model_validator(mode="after")
    def _can_be_called(self) -> Self:
        if self.provider == LOCAL and is_home(self.checkpoint_store):
            raise ValueError("checkpoint_store: a home box calls machines over SSH, not this computer")
        return self

    @model_validator(mode="after")
    def _fetches_slowly(self) -> Self:
        if self.fetch_store and not self.paid:
            raise ValueError(f"fetch_store: a machine of provider {self.provider} waits for free; omit it")
        if self.fetch_store and self.checkpoint_store:
            raise ValueError("fetch_store: checkpoint_store takes all of them anyway; omit it")
        return self

    @model_validator(mode="after")
    def _has_a_queue(self) -> Self:
        if self.slurm != SlurmSpec() and self.provider != SLURM:
            raise ValueError(f'slurm: a machine of provider {self.provider} has no queue; set provider = "slurm"')
        return self

    @property
    def paid(self) -> bool:
        """Whether machines of this host are bought by the hour."""
        return self.provider not in UNPAID

    def reach(self) -> Address:
        """How to reach a machine that is already there. The host key is pinned under `[name]:port`."""
        if self.provider == LOCAL:
            return Address(python=self.python)
        host = self.address or self.name
        key_file = str(Path(self.ssh_key).expanduser()) if self.ssh_key else None
        return Address(
            host, self.port, self.user, key_file, f"[{host}]:{self.port or 22}", self.fingerprint, self.python
        )

    @property
    def one(self) -> HostSpec:
        """This entry for one of its nodes: what its provider sells, and what a node's agent works for."""
        if not self.nodes or not self.paid:
            return self
        each = {"machine": of_one(self.machine or ""), "machines": tuple(map(of_one, self.machines))}
        return self.model_copy(update={**each, "nodes": (), "peers": ()})

    @property
    def other_nodes(self) -> tuple[HostSpec, ...]:
        """The hosts of `nodes` after the first."""
        return tuple(build(HostSpec, table, f"hosts.{self.name}: node {table.get('name')}") for table in self.peers)

    def resolved(self) -> dict[str, object]:
        """Everything as JSON-able values: what the ledger stores with a run."""
        return self.model_dump(mode="json")

    @classmethod
    def from_resolved(cls, value: Mapping[str, object]) -> HostSpec:
        """The host that resolved() came from."""
        return build(cls, value, f"stored host {value.get('name', '?')}")


@dataclass(frozen=True)
class Inventory:
    """All hosts of one file, by name; `local` is always among them."""

    hosts: Mapping[str, HostSpec]
    path: Path | None = None
    """The file, or None when there is none."""

    def host(self, name: str) -> HostSpec:
        """The host of that name. Raises UserError listing the known ones."""
        if name in self.hosts:
            return self.hosts[name]
        asleep = self._commented_out()
        near = nearest(name, [*self.hosts, *asleep])
        where = (
            f"add [hosts.{name}] to {self.path}" if self.path else "gptctl init writes an inventory.toml to start from"
        )
        if near in asleep:
            where = f"{near} is commented out in {self.path}, line {asleep[near]}: remove the # before its lines"
        elif near:
            where = f"did you mean {near}?"
        raise UserError(f"unknown host {name!r} in {self.path or 'any inventory'}; known: {one_of(self.hosts)}", where)

    def _commented_out(self) -> dict[str, int]:
        """Hosts of the file, as gptctl init writes it, that wait behind a #, and their lines."""
        text = self.path.read_text(encoding="utf-8") if self.path else ""
        lines = enumerate(text.splitlines(), start=1)
        return {found[1]: at for at, line in lines if (found := COMMENTED_HOST.match(line))}

    def home_box(self, uri: str) -> HomeBox:
        """The box that ssh://HOST/FOLDER names: one of ours by its name, else whatever ssh itself would make of it."""
        name, _ = parts(uri)
        host = self.hosts.get(name)
        if host is None:
            return by_ssh_alone(uri)
        if host.provider != "ssh":
            raise UserError(
                f"{uri}: {name} is of provider {host.provider}; a home box is one that is always there",
                "name a host of provider ssh",
            )
        return HomeBox(name, host.reach(), host.folder)


def load_inventory(path: Path | None, home: Path) -> Inventory:
    """Reads `path`, else inventory.toml here or in a folder above, else in `home` (GPTCTL_HOME), else knows only
    `local`.

    Raises UserError when a file does not parse, has an unknown key (the nearest is named), a wrong type or a secret.
    """
    if path is None:
        path = next((file for file in (*_upwards(), home / FILE_NAME) if file.is_file()), None)
    elif not path.is_file():
        raise UserError(f"no inventory found at {path}", hint="gptctl init writes one to start from")
    tables = _host_tables(path) if path else {}
    hosts = {name: build(HostSpec, table_of(path, name, tables), f"inventory {path}: hosts.{name}") for name in tables}
    hosts.setdefault(LOCAL, HostSpec(name=LOCAL, provider=LOCAL))
    return Inventory(hosts, path)


def _upwards() -> Iterator[Path]:
    """inventory.toml in this folder and those above it, up to one where others may write: theirs could name a host of
    their own."""
    yield Path(FILE_NAME)
    for folder in Path.cwd().parents:
        if folder.stat().st_mode & stat.S_IWOTH:
            return
        yield folder / FILE_NAME


def _host_tables(path: Path) -> dict[str, dict[str, object]]:
    table = read_toml(path, "inventory")
    hosts = table.pop("hosts", {})
    if table:
        raise UserError(f"inventory {path}: unknown key {next(iter(table))}; every host is a table [hosts.NAME]")
    if not isinstance(hosts, dict):
        raise UserError(f"inventory {path}: hosts: must be tables [hosts.NAME]")
    for name, entry in hosts.items():
        if not isinstance(entry, dict):
            raise UserError(f"inventory {path}: hosts.{name}: must be a table, got {entry!r}")
        _refuse_secrets(path, name, entry)
        if name == LOCAL:
            entry.setdefault("provider", LOCAL)
    return hosts


def _refuse_secrets(path: Path, name: str, entry: Mapping[str, object]) -> None:
    """The value is never printed: this message may end up in a log."""
    for key in entry:
        if key not in HostSpec.model_fields and SECRET_KEYS.search(key):
            variable = API_KEY_VARIABLES.get(str(entry.get("provider")), "an environment variable")
            raise UserError(
                f"inventory {path}: hosts.{name}.{key}: secrets do not belong in a file that gets committed",
                hint=f"delete the line, change the secret if it was shared, and set {variable}",
            )
