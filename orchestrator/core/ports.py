"""All seams on one page: Provider, Storage and Shell, and the values that cross them.

A stage receives these and never imports an implementation. `providers/`, `storage/` and `remote/` hold the
implementations, one file each; a conformance test finds a new one by listing the folder.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol


@dataclass(frozen=True)
class Address:
    """How to reach a machine. `host` None means this machine, without SSH."""

    host: str | None = None
    port: int | None = None
    user: str | None = None
    key_file: str | None = None
    identity: str = "local"
    """What the host key is pinned under: the instance id, or `[name]:port`; never an address alone."""
    fingerprint: str | None = None
    """`SHA256:...` from the inventory, which vouches for the first contact."""
    python: str | None = None
    """The host entry's own interpreter, which then runs everything of gptctl there; may start with `~/`."""


@dataclass(frozen=True)
class Offer:
    """What a provider would sell now."""

    provider: str
    machine: str
    price_per_hour_usd: float
    sku: str = ""
    region: str = ""
    zone: str = ""
    """The part of the region it would stand in, where the provider has such parts."""
    spot: bool = False
    """On the spot market: cheaper, and taken away at short notice."""
    available: bool = True
    quoted_at: float | None = None
    """UTC epoch seconds when the provider said so; None for a bundled or inventory price."""
    source: str = ""
    """Where the price comes from, in words: `inventory`, `lambda API`, `bundled 2026-08-18`."""
    disk_gib: int | None = None
    """Of its own disk; None where it is unknown, and where it is made as large as a run needs."""


@dataclass(frozen=True)
class Instance:
    """A machine that exists, as its provider describes it."""

    provider: str
    instance_id: str
    machine: str
    address: Address | None = None
    status: str = "active"
    """booting, active, unhealthy, stopped (off, and not ended), terminating, terminated or preempted."""
    rental_id: str | None = None
    intent_id: str | None = None
    price_per_hour_usd: float = 0.0
    launched_at: float | None = None
    ends_at: float | None = None
    """When a watcher may end it, as the machine's name says; the tag's only where the name carries none."""
    tags: Mapping[str, str] = field(default_factory=dict)
    name: str = ""
    region: str = ""
    zone: str = ""
    private_address: str = ""
    """IPv4 address at which other machines of the account reach it, where the list shows one."""
    image: str = ""
    """The machine image it was made from, by its id."""
    why: str = ""
    """What the provider says of how it came to this status; empty where it says nothing."""


@dataclass(frozen=True)
class LaunchRequest:
    """One purchase. Providers never retry it."""

    rental_id: str
    intent_id: str
    offer: Offer
    ends_at: float | None = None
    """Budget deadline plus grace; goes into a tag, which nothing can move."""
    tags: Mapping[str, str] = field(default_factory=dict)
    first_ends_at: float | None = None
    """The nearer deadline in the machine's name, which set_deadline moves; absent: ends_at."""
    user_data: str = field(default="", repr=False)
    """What cloud-init applies at the first boot. Holds the host's private key."""
    nodes: int = 1
    """How many machines its rental is for: they may reach each other at all ports."""
    disk_gib: int = 0
    """What the run needs of disk, where its size is chosen at launch; 0: whatever comes with the machine."""


@dataclass(frozen=True)
class Guard:
    """What ends a forgotten machine: kind none, self, watcher or key-on-box; whether it is armed; when it acts."""

    kind: str = "none"
    armed: bool = False
    ends_at: float | None = None


@dataclass(frozen=True)
class EndCall:
    """The call of a provider's API that ends one machine, for the guard on that machine: POST with a JSON body."""

    url: str
    body: Mapping[str, object]
    look_url: str
    """Answers without effect whether the key works."""
    key: str = field(repr=False)


Life = Literal["alive", "terminating", "gone", "unknown"]
"""What a provider says of one machine's id: alive (whatever its status), ending, ended, or never heard of."""

UNPAID = frozenset({"local", "ssh", "slurm"})
"""Providers whose machines are not rented."""


class Provider(Protocol):
    """A place machines come from. No waiting, no SSH, no printing; acquire is never retried."""

    name: str
    paid: bool
    """Whether acquire buys something. `ssh` and `local` machines are never paid, whatever price they carry."""

    @property
    def settle_s(self) -> float:
        """How long a machine that was bought may stay out of lists, or out of reach once it is active."""
        ...

    longest_boot_s: float
    """After this long a machine that still boots is given back."""
    ends_by_power_off: bool
    """Whether a machine that powers itself off is ended and billed no more: what guard `self` stands on."""
    billing_unit_s: float
    """What is billed in started units of, a minute at least."""

    def offers(self, deadline_s: float = 30.0) -> Sequence[Offer]: ...
    def machines(self) -> Sequence[Instance]:
        """Our machines, by tag or by name, from all pages of the list. A row that does not fit is left out, and named
        by take_warnings; a machine of ours is kept as long as its id can be read."""
        ...

    def take_warnings(self) -> Sequence[str]:
        """What offers() and machines() could not read since the last call: one line each, each line once."""
        ...

    def find(self, instance_id: str, region: str = "") -> Life:
        """The provider's word on this id, without any list. `unknown` of a machine bought moments ago may be lag.
        Raises NoAnswer."""
        ...

    def acquire(self, request: LaunchRequest) -> Instance: ...
    def release(self, instance: Instance) -> bool:
        """Sends the end of this id (and region), whether a list shows it or not; repeatable. True: the provider took
        the order, or has ended it; False: it has no such id. Neither proves that the bill has ended: find() does.

        Raises ProviderError, with nothing sent, for a machine whose tags or name are another's."""
        ...

    def ended_at(self, instance: Instance) -> float | None: ...
    def set_deadline(self, instance: Instance, ends_at: float) -> None: ...
    def guard(self, instance: Instance) -> Guard: ...
    def end_call(self, instance: Instance) -> EndCall | None: ...
    def allow_caller(self, instance: Instance, via: Shell | None = None) -> None:
        """Lets this computer in by SSH, under the address it has now; with `via` the one at its other end."""
        ...

    def notice_url(self, instance: Instance) -> str | None:
        """Where the machine may ask, as EC2's instance metadata (version 2) answers, whether it is about to be taken
        away; None: nowhere."""
        ...

    def tidy(self, rental_id: str) -> Sequence[str]:
        """Removes what was made beside the rental's machine, once that is gone; what cannot go yet, in words with the
        command that removes it."""
        ...


@dataclass(frozen=True)
class Result:
    """A finished command."""

    argv: tuple[str, ...]
    code: int
    stdout: bytes
    stderr: bytes


class Shell(Protocol):
    """Commands and small files on one machine. Every call has a deadline; argv is a list and is quoted in one place.

    Raises Unreachable when no connection can be made, LinkLost when one falls silent, HostKeyChanged or HostKeyUnknown
    before anything is sent. A command's own failure is a Result, not an exception.
    """

    address: Address

    def run(self, argv: Sequence[str], *, stdin: bytes = b"", deadline_s: float = 30.0) -> Result: ...
    def lines(
        self, argv: Sequence[str], *, stdin: bytes = b"", silence_s: float = 10.0, pulse_s: float = 0.0
    ) -> AbstractContextManager[Iterator[bytes]]:
        """Lines of stdout as they come, without the newline. Silence longer than silence_s raises LinkLost; a code
        other than 0 at the end raises CommandFailed. Leaving the context closes the channel. With pulse_s the
        command's stdin stays open and gets a newline every pulse_s seconds; on this machine a pipe tells as much."""
        ...

    def put(self, local: Path, remote: str, *, mode: int = 0o644, deadline_s: float = 120.0) -> None:
        """Temp name, sha256 compared on the far side, rename. Never a truncated file under the final name."""
        ...

    def get(self, remote: str, local: Path, *, deadline_s: float = 120.0) -> None: ...

    def openssh(self) -> Sequence[str] | None:
        """The `ssh` argv (options only, then user@host) with exactly this connection's key, port and pinned host key;
        None on this machine, where bulk transfer needs no ssh."""
        ...

    def greeting(self) -> str:
        """What the machine's login shell printed before our commands began, on one line; mostly nothing."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Part:
    """Bytes offset .. offset + size_bytes of `url`, to be moved; `url` may be presigned, which makes it a secret, and
    `headers` may hold a token: both travel by stdin only."""

    url: str = field(repr=False)
    offset: int
    size_bytes: int
    destination: str
    sha256: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    expires_at: float | None = None
    """UTC epoch seconds after which the URL is refused; None: never."""
    literal: bytes | None = field(default=None, repr=False)
    """Bytes to write in place of what a URL has, such as the new header of a slice."""
    gap: bool = False
    """Bytes that are never read: filled with 0xff, a token id beyond every vocabulary."""
    before: bytes = field(default=b"", repr=False)
    """What sha256 covers in front of these bytes, and the destination does not hold."""
    of_bytes: int | None = None
    """Size of the whole file at the URL; another one there means that it changed."""


@dataclass(frozen=True)
class StoredFile:
    """A file behind a URI, with the strongest digest there is."""

    name: str
    """Its place below the URI it was listed for, `/` between folders; checked: nothing leads elsewhere."""
    size_bytes: int
    sha256: str | None = None
    uri: str = ""
    """Of this file alone, pinned to the very bytes where the scheme can: what read and download_plan take."""
    version: str = ""
    """What changes when the bytes change: a commit, an etag, a modification time. Empty where nothing says so."""


@dataclass(frozen=True)
class Upload:
    """How a machine stores one file: `puts` in the order of its bytes, each a PUT of that range. With more
    than one, the ETags that were answered go to complete_url, as the XML of CompleteMultipartUpload."""

    name: str
    puts: Sequence[Part]
    complete_url: str | None = field(default=None, repr=False)
    abandon_url: str | None = field(default=None, repr=False)
    """DELETE frees what was sent of an upload in several puts that is never completed."""
    remove_url: str | None = field(default=None, repr=False)
    """DELETE takes the stored file away again, where the scheme can."""


class Storage(Protocol):
    """Where data and checkpoints are stored. Gives plans: the machine pulls and stores itself, and the only bytes that
    come through here are the few that `read` is asked for.

    Raises UserError for a URI that cannot be or a name that leads elsewhere, StorageError when it is not there or not
    for us (the message says which credential would help), NoAnswer when the service is silent.
    """

    scheme: str

    def manifest(self, uri: str) -> Sequence[StoredFile]:
        """The files of a folder in name order, or the one file that the URI names."""
        ...

    def read(self, uri: str, start: int, size_bytes: int) -> bytes:
        """Some bytes of one file, fewer only at its end: for headers and manifests, 16 MiB at most."""
        ...

    def download_plan(
        self, uri: str, destination: str, start: int = 0, size_bytes: int | None = None, expires_s: float = 21_600
    ) -> Part:
        """How a machine gets these bytes of one file; all of them without size_bytes. expires_s: for how long the
        plan should hold, where it ends at all; `expires_at` says what came of it."""
        ...

    def upload_plan(self, uri: str, files: Sequence[StoredFile], expires_s: float = 21_600) -> Sequence[Upload]:
        """How a machine stores these files below the URI, in their order. A size may be an upper bound. Raises
        UserError where the scheme cannot be written to from a machine."""
        ...

    def grants_end_at(self) -> float | None:
        """UTC epoch seconds when our own credentials end, and every plan with them; None: they do not, or none are
        needed."""
        ...
