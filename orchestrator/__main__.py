"""The program `gptctl`: `python -m orchestrator`, and the console script.

Importing Typer takes about seven times as long as starting Python, so the first page of help, which people open most
often, is stored as text beside the CLI (`cli/help.txt`, written by `make docs`; a test compares it with the app's).
Everything else goes through the app. This file must import nothing heavy at the top.

Example::

    gptctl --help
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from orchestrator.cli.screen.ascii_terminal import restrict

WIDE, NARROWEST = 80, 52
"""Columns that the stored page of help takes, and the fewest for which Typer breaks lines by itself."""
HELP = Path(__file__).parent / "cli" / "help.txt"


def main() -> None:
    """Entry point; ends the process with an exit code of orchestrator/core/errors.py."""
    _take_plain(sys.argv)
    for stream in (sys.stdout, sys.stderr):
        restrict(stream, os.environ)
    columns = (os.get_terminal_size(sys.stdout.fileno()).columns if sys.stdout.isatty() else 0) or WIDE
    if sys.argv[1:] in ([], ["--help"], ["-h"]) and HELP.is_file() and columns >= WIDE:
        sys.stdout.write(HELP.read_text(encoding="utf-8"))
        return
    from orchestrator.cli.failures import call_for_a_program, explain
    from orchestrator.cli.trainer_check import check_trainer
    from orchestrator.core.errors import UserError

    try:
        check_trainer()
    except UserError as error:
        sys.exit(explain(error, verbose=False))
    if "--driver" in "".join(sys.argv[1:]):
        # Only then: it may be a command for another computer.
        from orchestrator.cli.driver.driver import pass_on, split

        # Only then, as above.
        from orchestrator.cli.failures import explained

        driver, words = split(sys.argv[1:])
        if driver is not None:
            explained(pass_on)(driver, words)
    # Only now: it imports the trainer's contract.
    from orchestrator.cli.app import app

    # Typer evaluates the annotations of every command that it holds, a tenth of a second: keep the one that is named.
    if chosen := [command for command in app.registered_commands if command.name in sys.argv[1:2]]:
        app.registered_commands, app.registered_groups = chosen, []
    if "--json" in sys.argv:
        call_for_a_program(app)
    else:
        app(prog_name="gptctl", **({} if columns >= NARROWEST else {"terminal_width": columns}))


def _take_plain(argv: list[str]) -> None:
    """`--plain` anywhere before `--`: for every command, since a screen reader reads them all."""
    own = argv[: argv.index("--")] if "--" in argv else argv
    if "--plain" in own:
        argv.remove("--plain")
        os.environ |= {"GPTCTL_PLAIN": "1", "NO_COLOR": "1"}


if __name__ == "__main__":
    main()
