"""`gptctl ui`: serves the live page until Ctrl-C. The runs do not notice whether anybody looks."""

from __future__ import annotations

import errno
import secrets
import socket
import webbrowser
from dataclasses import dataclass

from orchestrator.cli.open_ledger import open_home
from orchestrator.cli.screen import screen
from orchestrator.core.errors import UserError

PORT = 8765
TRIED = 20
"""Ports after the first that are tried unless you name one."""


@dataclass(frozen=True)
class Wish:
    """What you typed after `gptctl ui`."""

    port: int | None
    listen: str
    allow_actions: bool
    open_browser: bool


def ui(wish: Wish) -> int:
    """Prints the address, which holds the page's token, and serves. Raises UserError without the extra `ui`."""
    try:
        import uvicorn

        from orchestrator.cli.ui.actions import Actions
        from orchestrator.cli.ui.page_contents import PageContents
        from orchestrator.cli.ui.server import application
    except ModuleNotFoundError as error:
        raise UserError(f"the page needs {error.name}", "pip install 'gptctl[ui]'") from error
    home, token = open_home(), secrets.token_urlsafe(24)
    listening = listen(wish.listen, wish.port)
    port = listening.getsockname()[1]
    shown = f"[{wish.listen}]" if ":" in wish.listen else wish.listen
    address = f"http://{shown}:{port}/#{token}"
    hosts = ("localhost", "127.0.0.1", "[::1]", shown)
    app = application(PageContents(home), Actions(home) if wish.allow_actions else None, token, hosts)
    print(address, flush=True)
    screen.talk("anyone with this address sees your runs" + (" and can end them" if wish.allow_actions else ""))
    screen.talk("Ctrl-C ends the page; trainings continue")
    if wish.open_browser:
        webbrowser.open(address)
    config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=1)
    try:
        uvicorn.Server(config).run(sockets=[listening])
    except KeyboardInterrupt:
        screen.talk("the page has ended")
    return 0


def listen(address: str, port: int | None) -> socket.socket:
    """A socket at that port, or at the first free one from PORT on. Raises UserError for a port that is taken."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    last: OSError | None = None
    for each in [port] if port is not None else range(PORT, PORT + TRIED):
        taken = socket.socket(family, socket.SOCK_STREAM)
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            taken.bind((address, each))
            taken.listen(128)
        except OSError as error:
            taken.close()
            last = error
            if error.errno != errno.EADDRINUSE:
                break
        else:
            return taken
    what = f"port {port}" if port is not None else f"{address}, ports {PORT} to {PORT + TRIED - 1}"
    raise UserError(f"cannot listen on {what}: {last.strerror if last else 'no port'}", "gptctl ui --port 0 takes any")
