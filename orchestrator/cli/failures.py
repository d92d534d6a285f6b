"""Exceptions become a message, a hint and an exit code; the traceback goes to a file. The only `except Exception` here.

A failure that gptctl explains (core/errors.py) prints two lines. Anything else is a bug: exit 1 and the name of the
file with the traceback. `-v` also prints the traceback. A command with --json prints the same on stdout, as the object
that `gptctl schema failure` describes. This module decides nothing about runs.

Example::

    @explained
    def status(verbose: bool = False) -> int: ...
"""

from __future__ import annotations

import functools
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from contextvars import ContextVar
from pathlib import Path
from typing import NoReturn, ParamSpec, cast

INTERRUPTED = 130
"""Ctrl-C while nothing was running on a machine: the shell's convention, 128 + SIGINT."""

P = ParamSpec("P")

run_folder: ContextVar[Path | None] = ContextVar("run_folder", default=None)
"""Where tracebacks of this command go; set once the run is known."""


def explained(verb: Callable[P, int]) -> Callable[P, NoReturn]:
    """Runs a verb and ends the process with its exit code, or with that of the error it raised."""

    @functools.wraps(verb)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> NoReturn:
        try:
            code = verb(*args, **kwargs)
            sys.stdout.flush()
        except KeyboardInterrupt:
            say("interrupted; a training that had started continues. Next: gptctl status")
            code = INTERRUPTED
            if kwargs.get("as_json"):
                _print_failure(
                    "Interrupted", "interrupted; a training that had started continues", code, "gptctl status"
                )
        except BrokenPipeError:
            # The reader left (`| head`). Python would complain again at exit, when it flushes stdout.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            code = 0
        except Exception as error:
            code = explain(error, verbose=bool(kwargs.get("verbose")), as_json=bool(kwargs.get("as_json")))
        sys.exit(code)

    return wrapper


def leave_on_signals() -> None:
    """SIGTERM and SIGHUP act like Ctrl-C: gptctl leaves in order, the training continues."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)


def say(text: str) -> None:
    """Prints one line of conversation without Rich: the error path must not depend on anything that can fail."""
    red = sys.stderr.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    begin, end = ("\x1b[31m", "\x1b[0m") if red else ("", "")
    print(f"{begin}gptctl:{end} {text}", file=sys.stderr, flush=True)


def _broken(text: str) -> str:
    """In lines that the terminal holds, broken at spaces alone."""
    try:
        width = os.get_terminal_size(sys.stderr.fileno()).columns
    except (OSError, ValueError):  # not a terminal
        width = 0
    if not width:
        return text
    # Only here: what fails on a pipe needs no lines.
    from orchestrator.cli.screen.tables import broken

    return "\n".join(broken(f"gptctl: {text}", max(width, 20))).removeprefix("gptctl: ")


def explain(error: Exception, *, verbose: bool, as_json: bool = False) -> int:
    """Prints what failed and what to do next; returns the exit code. as_json: on stdout too, where no result was."""
    import traceback

    from orchestrator.cli.screen.foreign import clean
    from orchestrator.core.errors import GptctlError

    trace = "".join(traceback.format_exception(error))
    if verbose:
        print(clean(trace), file=sys.stderr, end="")
    # A wrong argument needs no traceback on disk; a run's failure has one beside its logs.
    written = _keep(trace) if run_folder.get() or not isinstance(error, GptctlError) else None
    if isinstance(error, GptctlError):
        say(_broken(clean(error.message)))
        if error.hint:
            say(f"next: {clean(error.hint)}")
        if as_json:
            _print_failure(type(error).__name__, clean(error.message), error.exit_code, clean(error.hint))
        return error.exit_code
    bug = f"this is a bug in gptctl: {type(error).__name__}: {clean(str(error))}"
    say(bug)
    say(f"the traceback is in {written}" if written else "could not write the traceback; -v shows it")
    if as_json:
        _print_failure("Bug", bug, 1, "")
    return 1


def _print_failure(kind: str, message: str, exit_code: int, hint: str) -> None:
    error = {"kind": kind, "message": message, "exit_code": exit_code, "next": hint or None}
    print(json.dumps({"error": error}, indent=1), flush=True)


def _keep(trace: str) -> Path | None:
    """Appends the traceback to a file in the run's folder, else in GPTCTL_HOME: the first that works."""
    from orchestrator.core.config.gptctl_home import home_folder

    for folder in (run_folder.get(), home_folder()):
        if folder is None or not folder.is_dir():
            continue
        try:
            path = folder / "traceback.txt"
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
            with os.fdopen(descriptor, "a", encoding="utf-8") as file:
                file.write(f"{time.strftime('%Y-%m-%dT%H:%M:%S%z')} {' '.join(sys.argv[:2])}\n{trace}\n")
            return path
        except OSError:
            continue
    return None


def call_for_a_program(app: Callable[..., object]) -> None:
    """The Typer app for who gave --json: wrong arguments end as every failure does, with an object on stdout."""
    from typer import BadParameter

    from orchestrator.core.errors import UserError

    usage_error = cast(type[Exception], BadParameter.__mro__[1])  # Click's, which Typer does not export
    try:
        code = app(prog_name="gptctl", standalone_mode=False)
    except usage_error as error:
        words = " ".join(["gptctl", *(word for word in sys.argv[1:2] if not word.startswith("-")), "--help"])
        message = getattr(error, "format_message", error.__str__)()
        code = explain(UserError(message, words), verbose=False, as_json=True)
    sys.exit(code if isinstance(code, int) else 0)
