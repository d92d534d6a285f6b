"""What a stage receives: the run, the ports and the machine's agent. Holds the connection; makes no decision.

Example::

    def acquire(context: RunContext) -> None:
        context.say("connecting")
        context.agent.facts()
"""

from __future__ import annotations

import typing
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar, Unpack

from orchestrator.core.config.inventory import HostSpec
from orchestrator.core.config.recipe import Recipe
from orchestrator.core.engine import Engine
from orchestrator.core.errors import ProviderError, RunLocked, UserError
from orchestrator.core.events import EPHEMERAL, Event, Listener
from orchestrator.core.facts.rental_facts import OF_NODE, RentalFactChanges, RentalFacts, with_node
from orchestrator.core.facts.run_facts import PeerFacts, Prepared, RunFactChanges, RunFacts, Synced
from orchestrator.core.foreign_text import clean
from orchestrator.core.machines import MachineType
from orchestrator.core.planning.plan import Plan
from orchestrator.core.ports import Address, Provider, Shell, Storage
from orchestrator.core.states import State, is_forward
from orchestrator.ledger import handover
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.records import Attempt, Rental, RunRecord
from orchestrator.ledger.run_lock import TAKEN_BACK
from orchestrator.remote.agent_client.client import Agent
from orchestrator.remote.transfer_progress import Transfer

Known = TypeVar("Known")
NEWEST_TOKEN = """
known=$(cat "$1" 2>/dev/null)
case "$known" in ""|*[!0-9]*) known=0 ;; esac
if [ "$known" -lt "$2" ]; then
    { mkdir -p "${1%/*}" && printf %s "$2" > "$1.$$" && mv "$1.$$" "$1"; } 2>/dev/null
fi
echo "$known"
"""
"""Prints the token in a file, and raises it to one that is higher."""


@dataclass
class RunContext:
    """One run being driven. `connect` opens a Shell to an address; the shell is kept until `disconnect`."""

    home: Path
    ledger: Ledger
    run_id: str
    recipe: Recipe
    host: HostSpec
    machine: MachineType
    provider: Provider
    connect: Callable[[Address], Shell]
    storage: Callable[[str], Storage]
    """What answers for a URI."""
    now: Callable[[], float]
    listener: Listener
    bring_text: Callable[[str, Callable[[Transfer], None]], tuple[Sequence[str], str]]
    """Downloads a URI's text to this computer: its paths there, and the commit."""
    engine_of: Callable[[Shell], Engine] | None = None
    """The queue of jobs behind the host, over a connection to it; None: the machine itself trains."""
    stage: str | None = None
    interval: int = 0
    """The ledger's id of the stage interval that is open, which costs money while it is."""
    guard_renewed_at: float = 0.0
    """When the lease of the guard on the machine was last renewed from here."""
    sent_ahead: Synced | None = None
    """Where the trainer's source and the data went, if this process has sent them before their turn."""
    node: int = 0
    """Of several nodes: which one this is the context of; 0: the head, and the run as a whole."""
    _peers: tuple[RunContext, ...] | None = field(default=None, repr=False)
    _shell: Shell | None = field(default=None, repr=False)
    _agent: Agent | None = field(default=None, repr=False)

    @property
    def run(self) -> RunRecord:
        """The run as the ledger has it now."""
        return self.ledger.run(self.run_id)

    @property
    def rental(self) -> Rental:
        """The rental this run is on; of another node with its machine in place of the head's."""
        rental_id = self.run.rental_id
        if rental_id is None:
            raise UserError(f"run {self.run_id} has no rental", "start a new run")
        rental = self.ledger.rental(rental_id)
        if self.provider.paid:
            return rental.of_node(self.node)
        return replace(rental, address=self.host.reach(), folder=self.host.folder) if self.node else rental

    @property
    def nodes(self) -> tuple[RunContext, ...]:
        """This context, and one for each other node: with its host entry, its connection, and facts of its own."""
        if self._peers is None:
            self._peers = tuple(
                replace(
                    self, host=host, machine=self.machine.node, node=node, _shell=None, _agent=None, sent_ahead=None
                )
                for node, host in enumerate(self.host.other_nodes, start=1)
            )
        for peer in self._peers:
            peer.stage, peer.interval, peer.machine = self.stage, self.interval, self.machine.node
        return (self, *self._peers)

    @property
    def others(self) -> tuple[RunContext, ...]:
        """Of the other nodes those that are there: one that was lost may have no machine yet, or none any more."""
        if not self.provider.paid:
            return self.nodes[1:]
        rentals = [(node, node.rental) for node in self.nodes[1:]]
        return tuple(node for node, its in rentals if its.instance_id is not None and not its.facts.life.gone_at)

    @property
    def machines(self) -> tuple[RunContext, ...]:
        """One context for each machine that is rented for it: those of its nodes, which are bought and ended as one."""
        return self.nodes if self.provider.paid else (self,)

    @property
    def instance_ids(self) -> tuple[str, ...]:
        """All machines that the rental holds, in the order of its nodes."""
        return self.ledger.rental(self.rental.id).instance_ids

    @property
    def attempt(self) -> Attempt | None:
        """The run's training on this rental; None before it was noted there."""
        found = self.ledger.attempts(self.run_id)
        return next((each for each in reversed(found) if each.rental_id == self.rental.id), None)

    @property
    def facts(self) -> RunFacts:
        """What is known about the run."""
        return self.run.facts

    @property
    def prepared(self) -> Prepared:
        """What `provision` found out. Raises UserError before it did."""
        return self._known((self._peer_facts if self.node else self.facts).prepared, "provision")

    @property
    def synced(self) -> Synced:
        """What `sync` left on the machine. Raises UserError before it did."""
        return self._known((self._peer_facts if self.node else self.facts).synced, "sync")

    @property
    def _peer_facts(self) -> PeerFacts:
        known = self.facts.peers
        return known[self.node - 1] if len(known) >= self.node else PeerFacts()

    def _known(self, value: Known | None, stage: str) -> Known:
        if value is None:
            raise UserError(f"run {self.run_id}: the ledger has no result of stage {stage}", "start a new run")
        return value

    @property
    def machine_facts(self) -> RentalFacts:
        """What is known about the rental and its machine."""
        return self.rental.facts

    @property
    def plan(self) -> Plan:
        """The plan as it stands, amended or not."""
        plan = self.run.plan
        if plan is None:
            raise UserError(f"run {self.run_id}: the ledger has no plan of it that can be read", "start a new run")
        return plan

    @property
    def mirror(self) -> Path:
        """The run's folder on this side, which follow and fetch fill."""
        return self.home / "runs" / self.run_id

    @property
    def shell(self) -> Shell:
        """The connection to the rental, opened on first use."""
        if self._shell is None:
            self.open_firewall()
            shell = self.connect(self.rental.address)
            try:
                self._refuse_superseded(shell)
            except BaseException:
                shell.close()
                raise
            self._shell = shell
        return self._shell

    def _refuse_superseded(self, shell: Shell) -> None:
        """Of a run that changed its driver, the machine keeps the newest token: a driver that was given up as lost,
        and is back, learns of it here before it asks the machine for anything. Raises RunLocked."""
        token = self.facts.driver_token
        if not token or self.node:
            return
        path = f"{self.rental.folder}/drivers/{self.run_id}".removeprefix("~/")
        found = shell.run(["sh", "-c", NEWEST_TOKEN, "sh", path, str(token)], deadline_s=60).stdout.strip()
        if found.isdigit() and int(found) > token:
            group = handover.together(self.ledger.rows, [self.run_id]).runs
            handover.mark_given(self.ledger.rows, group, TAKEN_BACK, token)
            raise RunLocked(f"{self.run_id} is driven by {TAKEN_BACK}: its machine says so", "type the command there")

    def open_firewall(self, via: Shell | None = None) -> None:
        """Lets this computer, or the one at the other end of `via`, reach the machine by SSH: its address may be
        another one than last time. Where that fails, the connection may work anyway."""
        if self.provider.paid and self.rental.instance_id is not None:
            try:
                self.provider.allow_caller(self.rental.instance, via)
            except ProviderError as error:
                self.emit("seen", f"{error.message}; connecting anyway")

    @property
    def agent(self) -> Agent:
        """The agent on the rental."""
        if self._agent is None:
            self._agent = Agent(self.shell, self.rental.folder)
        return self._agent

    @property
    def engine(self) -> Engine | None:
        """The queue that takes this run's job; None where a machine of its own trains."""
        return self.engine_of(self.shell) if self.engine_of is not None else None

    def disconnect(self) -> None:
        """Closes the connection, dead or alive; the next use opens a new one."""
        shell, self._shell, self._agent = self._shell, None, None
        if shell is not None:
            shell.close()
        for peer in self._peers or ():
            peer.disconnect()

    def emit(self, kind: str, text: str = "", /, **data: object) -> None:
        """Shows an event, and records it unless its kind is ephemeral. One of another node begins with its name."""
        whose = f"{self.host.name}: " if self.node and text else ""
        event = Event(kind, self.now(), self.stage, clean(whose + text), data)
        with self.ledger.rows.turn:  # of several nodes that get ready at the same time
            if kind not in EPHEMERAL:
                self.ledger.tell(self.run_id, event)
            self.listener(event)

    def say(self, text: str) -> None:
        """Shows you a line, and records it."""
        self.emit("said", text)

    @property
    def seen_via(self) -> str:
        """How the machine is reached, for `seen 4s ago via ssh`."""
        return "local" if self.rental.address.host is None else "ssh"

    def advance(self, state: State) -> None:
        """Moves the run forward to `state`; a run that is there or beyond, because it was driven before, stays."""
        with suppress(ValueError):  # another gptctl may have ended the run in this very moment
            if is_forward(self.run.state, state):
                self.ledger.set_state(self.run_id, state)

    def set_run_facts(self, **facts: Unpack[RunFactChanges]) -> None:
        """Records what this stage found out about the run and later ones need. Never a secret."""
        if self.node:
            return self._set_peer_facts(facts)
        self.ledger.update_run(self.run_id, facts=facts)

    def _set_peer_facts(self, facts: RunFactChanges) -> None:
        """Of what a stage finds out, only this is the node's own; all else is the run's, and the head has found it."""
        with self.ledger.rows.turn:
            known, mine = self._peer_facts, self.node - 1
            peers = list(self.facts.peers) + [PeerFacts()] * (self.node - len(self.facts.peers))
            peers[mine] = PeerFacts(facts.get("prepared", known.prepared), facts.get("synced", known.synced))
            self.ledger.update_run(self.run_id, facts={"peers": tuple(peers)})

    def set_rental_facts(self, **facts: Unpack[RentalFactChanges]) -> None:
        """Records what this stage found out about the rental and its machine. Never a secret."""
        self.update_rental(facts=facts)

    def update_rental(self, *, facts: RentalFactChanges | None = None, **fields: object) -> None:
        """As Ledger.update_rental. What each machine of a rental has for itself is written for this node's."""
        rental_id, facts = self.rental.id, facts or {}
        with self.ledger.rows.turn:
            if self.node and self.provider.paid:
                own = {name: value for name, value in {**fields, **facts}.items() if name in OF_NODE}
                more = with_node(self.ledger.rental(rental_id).facts.more, self.node, own)
                fields = {name: value for name, value in fields.items() if name not in own}
                shared = {name: value for name, value in facts.items() if name not in own}
                facts = typing.cast("RentalFactChanges", {**shared, "more": more})
            self.ledger.update_rental(rental_id, facts=facts, **fields)
