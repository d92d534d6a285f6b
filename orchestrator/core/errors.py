"""Every failure that gptctl explains, as one tree. Each carries the cause as text and a hint: what to type next.

    GptctlError
    ├── UserError            exit 2   recipe, inventory, arguments, a run id that matches two
    │   ├── RunLocked                 another gptctl drives this run (pid and host named)
    │   └── LedgerDamaged             the database cannot be read; nothing was changed
    ├── ProviderError        exit 3   the cloud said no, or said nothing
    │   ├── NoCapacity                a documented refusal: nothing was bought
    │   ├── QuotaUsedUp               no more machines of that kind in that region; another region may do
    │   ├── BadCredentials
    │   ├── StorageError              a dataset or store: not there, or not for us
    │   ├── NoAnswer                  its API is down, slow or talks nonsense: decides nothing, try again later
    │   └── AmbiguousLaunch           the answer was lost: only looking decides, never a second request
    ├── RemoteError          exit 4   the machine
    │   ├── Unreachable               refused, timed out, no route: neither dead nor alive
    │   ├── LinkLost                  it answered before and fell silent
    │   ├── HostKeyChanged            hard stop before anything is sent
    │   ├── HostKeyUnknown            first contact without anything to compare with
    │   ├── CommandFailed             a command ended with a code that is not 0
    │   ├── AgentError                the agent's own words
    │   ├── MachineUnfit              wrong or broken GPUs, full disk, no python: a verdict, leads to the ending
    │   │   └── GaveUp                it never answered, or not with the right key: nothing was started there
    │   └── VerificationFailed        bytes do not match their digest
    ├── LimitReached         exit 6
    └── StillBilling         exit 7   a machine may still cost money

Foreign exceptions are translated in the gateway module that owns the library, and nowhere else.
"""

from __future__ import annotations


class GptctlError(Exception):
    """Base of the tree. `exit_code` is what the process returns; `hint` is the next command or setting to change."""

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UserError(GptctlError):
    """Something the user wrote or asked for cannot be: a recipe, an inventory, an argument, a folder, a run id."""

    exit_code = 2


class RunLocked(UserError):
    """Another process drives this run."""


class LedgerDamaged(UserError):
    """The ledger's database is damaged; it was left as it is."""


class ProviderError(GptctlError):
    """The place machines come from said no, or said nothing."""

    exit_code = 3


class NoCapacity(ProviderError):
    """The provider refused for lack of capacity, in words it documents: nothing was bought."""


class QuotaUsedUp(ProviderError):
    """The account may not have so many machines of that kind in that region: nothing was bought. Another may do."""


class BadCredentials(ProviderError):
    """The provider does not accept the key."""


class StorageError(ProviderError):
    """A place where data or checkpoints are stored refused. `missing`: it has nothing of that name."""

    def __init__(self, message: str, hint: str = "", *, missing: bool = False) -> None:
        super().__init__(message, hint)
        self.missing = missing


class NoAnswer(ProviderError):
    """The provider's API could not be reached, broke off, or answered with what its document does not allow.

    `sent`: whether the request may have had an effect; False when no connection was made.
    """

    def __init__(self, message: str, hint: str = "", *, sent: bool = True) -> None:
        super().__init__(message, hint)
        self.sent = sent


class AmbiguousLaunch(ProviderError):
    """A launch whose answer is unknown. It may have bought a machine: look, never ask again."""


class RemoteError(GptctlError):
    """The machine, or the way to it."""

    exit_code = 4


class Unreachable(RemoteError):
    """No connection could be made. Says nothing about the machine's life."""


class LinkLost(RemoteError):
    """A connection that worked fell silent or broke."""


class HostKeyChanged(RemoteError):
    """The machine showed another host key than the pinned one. Nothing was sent."""


class HostKeyUnknown(RemoteError):
    """First contact, and neither known_hosts, a fingerprint nor --accept-new-host-key vouches for the key."""


class CommandFailed(RemoteError):
    """A command on the machine ended badly; the message has the command, the code and the last lines."""


class AgentError(RemoteError):
    """The agent refused; `code` is its machine-readable reason, such as `gpus-taken` or `no-such-run`."""

    def __init__(self, message: str, hint: str = "", code: str = "agent") -> None:
        super().__init__(message, hint)
        self.code = code


class MachineUnfit(RemoteError):
    """The machine cannot do this job. A verdict: the run goes to its ending."""


class GaveUp(MachineUnfit):
    """First contact failed; `cause` is the error that says why."""

    def __init__(self, message: str, hint: str = "", *, cause: GptctlError) -> None:
        super().__init__(message, hint)
        self.exit_code = cause.exit_code


class VerificationFailed(RemoteError):
    """Bytes that arrived do not match the digest that was promised."""


class LimitReached(GptctlError):
    """The plan, the price or the run is beyond a limit."""

    exit_code = 6


class StillBilling(GptctlError):
    """A machine may still cost money: its name, its price per hour and the command to try again are named."""

    exit_code = 7
