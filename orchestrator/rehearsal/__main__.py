"""`python -m orchestrator.rehearsal --state DIR`: the practice cloud. See docs/guides/rehearsal.md."""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from orchestrator.rehearsal.api.server import Server
from orchestrator.rehearsal.books.books import read_books
from orchestrator.rehearsal.cloud import Cloud
from orchestrator.rehearsal.faults import KINDS, parse
from orchestrator.rehearsal.machines import daemon
from orchestrator.rehearsal.machines.disk import sshd_program
from orchestrator.rehearsal.settings import Settings

DEFAULTS = Settings()
SOME_ADDRESS = "127.63.255.254"
"""A loopback address that no machine gets: a port that is taken here is taken on all of them."""


def main(argv: Sequence[str] | None = None) -> int:
    """Exit 0; 2 for bad arguments, 1 when the cloud cannot run here."""
    parser = _parser()
    given = parser.parse_args(argv)
    try:
        parse(given.inject)
    except ValueError as error:
        parser.error(str(error))
    if given.faults:
        return _print_faults()
    if given.state is None:
        parser.error("set --state DIR or GPTCTL_HOME")
    state = daemon.state_folder(given.state)
    if given.books:
        return _print_json(read_books(state))
    if given.stop:
        return _stop(state, given.destroy)
    problem = _why_not_here(given.ssh_port)
    if problem:
        return _fail(problem)
    return _start_detached(state, given) if given.daemon else _serve(state, given)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m orchestrator.rehearsal", description=__doc__)
    home = os.environ.get("GPTCTL_HOME")
    default = Path(home) / "rehearsal" if home else None
    parser.add_argument(
        "--state", type=Path, default=default, help="folder of the cloud; default: GPTCTL_HOME/rehearsal"
    )
    parser.add_argument(
        "--port", type=int, default=0, help="port of the API; default: the last one, else any free port"
    )
    parser.add_argument(
        "--inject", default="", metavar="FAULTS", help="faults to arm, such as no-capacity,terminate-500*2"
    )
    parser.add_argument("--faults", action="store_true", help="list the faults and exit")
    parser.add_argument(
        "--daemon", action="store_true", help="start detached, or find the running cloud, and print its address"
    )
    parser.add_argument("--stop", action="store_true", help="stop the server; its machines keep running")
    parser.add_argument("--destroy", action="store_true", help="with --stop: also end every machine")
    parser.add_argument("--books", action="store_true", help="print every purchase and its cost")
    parser.add_argument("--boot-s", type=float, default=DEFAULTS.boot_s, help="seconds from launch to active")
    parser.add_argument("--minute-s", type=float, default=DEFAULTS.minute_s, help="seconds in a billing minute")
    parser.add_argument(
        "--linger-s", type=float, default=DEFAULTS.linger_s, help="seconds a terminated machine stays listed"
    )
    parser.add_argument(
        "--hang-s", type=float, default=DEFAULTS.hang_s, help="seconds before an unanswered connection closes"
    )
    parser.add_argument(
        "--notice-s", type=float, default=DEFAULTS.notice_s, help="seconds from a spot notice to the end"
    )
    parser.add_argument("--ssh-port", type=int, default=DEFAULTS.ssh_port, help="port of every machine's sshd")
    parser.add_argument("--python", default=DEFAULTS.python, help="the python3 of the machines")
    parser.add_argument("--image", type=Path, help="folder that is copied into the home of every new machine")
    parser.add_argument("--strict-rate", action="store_true", help="enforce 1 request per second and 1 launch per 12 s")
    return parser


def _why_not_here(ssh_port: int) -> str:
    """What keeps machines from running on this computer; empty: nothing."""
    if not sys.platform.startswith("linux"):
        return "its machines need Linux (/proc, loopback addresses)"
    try:
        sshd_program()
    except FileNotFoundError as error:
        return str(error)
    with socket.socket() as probe:
        try:
            probe.bind((SOME_ADDRESS, ssh_port))
        except OSError as error:
            return f"port {ssh_port} is not free for its machines ({error.strerror}); choose another with --ssh-port"
    return ""


def _serve(state: Path, given: argparse.Namespace) -> int:
    """Runs until SIGTERM or Ctrl-C."""
    lock = daemon.take_lock(state) if daemon.running(state) else daemon.wait_for_lock(state, daemon.STOP_WITHIN_S)
    if lock is None:
        return _fail(f"a cloud already runs on {state}: {json.dumps(daemon.running(state))}")
    cloud = Cloud(state, _settings(given))
    cloud.inject(given.inject)
    server = _listen(cloud, daemon.api_key(state), given.port)
    signal.signal(signal.SIGTERM, _interrupt)
    cloud.recover()
    _print_json(daemon.announce(state, server.url, given.ssh_port))
    try:
        server.serve_forever(poll_interval=0.1)
    except KeyboardInterrupt:
        server.server_close()
    return 0


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _settings(given: argparse.Namespace) -> Settings:
    return Settings(
        boot_s=given.boot_s, minute_s=given.minute_s, linger_s=given.linger_s, ssh_port=given.ssh_port,
        python=given.python, image=given.image, hang_s=given.hang_s, notice_s=given.notice_s,
        strict_rate=given.strict_rate,
    )  # fmt: skip


def _listen(cloud: Cloud, key: str, port: int) -> Server:
    """On the given port, else on the last one, so that clients find a restarted cloud, else on any."""
    last = daemon.last_entry(cloud.state)
    if not port and last:
        try:
            return Server(cloud, key, int(last["url"].rpartition(":")[2]))
        except OSError:
            pass  # another program has taken it
    return Server(cloud, key, port)


def _start_detached(state: Path, given: argparse.Namespace) -> int:
    """Prints server.json of the running cloud, or starts one; arms --inject in either."""
    entry = daemon.running(state)
    if entry is None:
        return _print_json(daemon.start_detached(state, _arguments(given)))
    if given.inject:
        daemon.inject(entry, given.inject)
    return _print_json(entry)


def _arguments(given: argparse.Namespace) -> list[str]:
    """The command line of the server: this one without the options of this process alone."""
    skipped = ("state", "daemon", "stop", "destroy", "books", "faults", "strict_rate", "image")
    named = [f"--{name.replace('_', '-')}={value}" for name, value in vars(given).items() if name not in skipped]
    named += [f"--image={given.image.resolve()}"] if given.image else []
    return [*named, "--strict-rate"] if given.strict_rate else named


def _stop(state: Path, destroy: bool) -> int:
    lock = daemon.stop(state)
    if lock is None:
        return _fail(f"the cloud on {state} did not stop: {json.dumps(daemon.running(state))}")
    if destroy:
        Cloud(state, Settings()).terminate_all()
    return _print_json({"alive": read_books(state)["alive"]})


def _print_faults() -> int:
    for name, kind in KINDS.items():
        spelled = f"{name}@{kind.default}" if kind.default else name
        print(f"{spelled:32} {kind.what}")
    return 0


def _fail(message: str) -> int:
    print(f"rehearsal: {message}", file=sys.stderr)
    return 1


def _print_json(value: object) -> int:
    print(json.dumps(value), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
