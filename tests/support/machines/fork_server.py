"""A process that has imported a program and becomes it, once for every call: `fork_server.py gptctl|FOLDER ADDRESS`.

It has a single thread. For every connection to ADDRESS it forks a process that forks once more: the child takes the
arguments, environment, folder and standard streams of the call and runs the program to its end; its parent waits for it
and answers with its pid and its exit code. The server ends with its standard input. FOLDER is an unpacked agent, whose
fork is the agent of any other folder. Only the standard library at the top: the agent's Python has nothing else.
"""

from __future__ import annotations

import array
import gc
import importlib
import json
import os
import pkgutil
import select
import socket
import sys

OTHER_PROGRAMS = ("orchestrator.agent.", "orchestrator.rehearsal.")
STREAMS_BYTES = 3 * array.array("i").itemsize


def import_all(program: str) -> str:
    """Imports what the program may import; returns the module whose main() it is."""
    if program != "gptctl":
        sys.path.insert(0, program)
    package = "orchestrator" if program == "gptctl" else "agent"
    for module in pkgutil.walk_packages(importlib.import_module(package).__path__, package + "."):
        if not module.name.startswith(OTHER_PROGRAMS):
            importlib.import_module(module.name)
    gc.freeze()
    return package + ".__main__"


def serve(module: str, address: str) -> None:
    """Until standard input ends. In a fork it returns, or exits, as the program ends."""
    lives = os.dup(0)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(address)
        server.listen()
        os.write(1, b"ready\n")
        while lives not in select.select([server, lives], [], [])[0]:
            connection, _ = server.accept()
            if os.fork() == 0:
                os.close(lives)
                server.close()
                return answer(connection, module)
            connection.close()
            reap()
    return None


def reap() -> None:
    """Of the forks that wait, the ones that are done."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return


def answer(connection: socket.socket, module: str) -> None:
    """The child becomes the program; this process says its pid, waits for it, and says how it ended."""
    received, ancillary, _, _ = connection.recvmsg(32, socket.CMSG_SPACE(STREAMS_BYTES))
    head, _, text = received.partition(b"\n")
    while len(text) < int(head):
        text += connection.recv(1 << 16)
    streams = array.array("i", ancillary[0][2])
    pid = os.fork()
    if pid == 0:
        connection.close()
        return become(json.loads(text), list(streams), module)
    for stream in (0, 1, 2, *streams):
        os.close(stream)
    connection.sendall(b"%d\n" % pid)
    status = os.waitpid(pid, 0)[1]
    connection.sendall(b"%d\n" % (-os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)))
    os._exit(0)


def become(call: dict, streams: list, module: str) -> None:
    """What `python -m PACKAGE` does from here on."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.environ.clear()
    os.environ.update(call["env"])
    os.chdir(call["cwd"])
    sys.argv = call["argv"]
    main = importlib.import_module(module).main
    if module == "agent.__main__":
        sys.exit(main(sys.argv))
    sys.path[0] = call["cwd"]
    importlib.import_module("tests.support.clock.proof").shorten()
    main()


if __name__ == "__main__":
    serve(import_all(sys.argv[1]), sys.argv[2])
