"""The command line: signatures and help only. Each body imports its verb and calls it.

The imports are inside the bodies so that `gptctl --help` and `gptctl VERB --help` load none of fabric, paramiko, boto3,
pydantic, httpx, torch, numpy or rich. A verb returns its exit code; failures.py explains what it raises.

Example, in a shell::

    gptctl run recipes/quickstart.toml --host local
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli import completion, options
from orchestrator.cli.checks import check_commands
from orchestrator.cli.data import data_commands
from orchestrator.cli.driver import commands as driver_commands
from orchestrator.cli.examples import examples_of
from orchestrator.cli.failures import explained
from orchestrator.cli.history import commands as history_commands
from orchestrator.cli.inference import inference_commands
from orchestrator.cli.machines import machine_commands
from orchestrator.cli.models import model_commands
from orchestrator.cli.sweeps import commands as sweep_commands
from orchestrator.cli.ui import ui_commands

EPILOG = (
    "Start with: gptctl run quickstart --host local. Docs: https://gptctl.github.io/gptctl/ "
    "Exit codes: 0 ok, 1 bug, 2 wrong input, 3 provider, 4 machine, 5 training failed, 6 limit reached, "
    "7 a machine may still be billing."
)

app = typer.Typer(
    help="Train GPT-2-class language models on GPU machines, yours or rented, over SSH.",
    epilog=EPILOG,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def verb(body: Callable[..., int]) -> Callable[..., int]:
    """Registers a command under its function's name and explains its failures."""
    app.command(name=body.__name__, epilog=examples_of(body.__name__))(explained(body))
    return body


def show_version(wanted: bool) -> None:
    """Prints the versions of gptctl, Python and torch, and ends."""
    if wanted:
        import platform
        from importlib.metadata import PackageNotFoundError, version

        try:
            torch = f"torch {version('torch')}"
        except PackageNotFoundError:
            torch = "no torch here"
        typer.echo(f"gptctl {version('gptctl')} (Python {platform.python_version()}, {torch})")
        raise typer.Exit


@app.callback()
def top(
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    driver: Annotated[
        # __main__.py takes it out of the words, wherever it stands, and passes the command on.
        str | None, typer.Option("--driver", metavar="HOST", help="Ask the machine that drives your runs.")
    ] = None,
    plain: Annotated[
        bool, typer.Option("--plain", help="For screen readers, with any command: one fact a line, nothing drawn.")
    ] = False,
) -> None:
    """Train GPT-2-class language models on GPU machines, yours or rented, over SSH."""


@verb
def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder to copy into.")] = Path("."),
    verbose: options.Verbose = False,
) -> int:
    """Copy the bundled recipes and inventory.toml. Existing files stay as they are."""
    from orchestrator.cli.runs import init as it

    return it.init(folder)


@verb
def skill(verbose: options.Verbose = False) -> int:
    """Print what a coding agent should know to use gptctl."""
    typer.echo(Path(__file__).parents[1].joinpath("SKILL.md").read_text(encoding="utf-8"), nl=False)
    return 0


@verb
def schema(
    command: Annotated[list[str] | None, typer.Argument(help="Such as `status`, or `failure`. Default: all.")] = None,
    verbose: options.Verbose = False,
) -> int:
    """Print what a command's --json prints, as a JSON Schema."""
    from orchestrator.cli.schemas.schema import schema as print_schema

    return print_schema(command or [])


@verb
def recipes(as_json: options.Json = False, verbose: options.Verbose = False) -> int:
    """List the recipes: size, tokens, what each is for."""
    from orchestrator.cli.plans import recipes as it

    return it.recipes(as_json=as_json)


@verb
def run(
    recipe: options.Recipe,
    *,
    host: options.Host = None,
    on: options.OnRental = None,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Leave as soon as the training runs.")] = False,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the machine after the run, until its lease ends.")] = False,
    again: Annotated[
        bool, typer.Option("--again", help="Start another run even if one of this recipe is unfinished.")
    ] = False,
    name: Annotated[str | None, typer.Option("--name", help="A name for this run.")] = None,
    label: Annotated[
        list[str] | None, typer.Option("--label", metavar="KEY=VALUE", help="Add a label; repeatable.")
    ] = None,
    note: Annotated[str | None, typer.Option("--note", help="A note, shown in the report.")] = None,
    sets: options.Set = None,
    resume_from: options.ResumeFrom = None,
    max_cost: options.MaxCost = None,
    max_hours: options.MaxHours = None,
    max_price: options.MaxPrice = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for capacity.")] = False,
    queue: Annotated[
        bool, typer.Option("--queue", help="Wait for the machine's turn if another run trains there.")
    ] = False,
    spot: Annotated[
        bool, typer.Option("--spot", help="Rent on the spot market, and go on by itself after an interruption.")
    ] = False,
    max_interruptions: Annotated[
        int | None,
        typer.Option("--max-interruptions", metavar="N", min=0, max=1000, help="Go on by itself so often; --spot: 5."),
    ] = None,
    driver: options.Driver = None,
    unguarded: Annotated[
        bool, typer.Option("--unguarded", help="Rent without a guard: nothing ends a forgotten machine.")
    ] = False,
    inject: Annotated[
        str | None,
        typer.Option("--inject", metavar="FAULTS", help="Rehearsal only, e.g. no-capacity,ssh-drop,terminate-500."),
    ] = None,
    accept_new_host_key: options.AcceptKey = False,
    inventory: options.Inventory = None,
    yes: options.Yes = False,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> int:
    """Train a recipe on a host and bring the model home.

    Shows the plan and asks, then runs these stages: acquire, provision, sync, launch, follow, fetch, report, release.
    Ctrl-C detaches: the training continues. If gptctl is killed, `gptctl resume` continues the run.
    """
    from orchestrator.cli.runs import run as it

    wish = it.Wish(
        recipe, host, on, detach, keep, again, name, label or [], note, sets or [], resume_from, max_cost, max_hours,
        max_price, wait, unguarded, inject, accept_new_host_key, inventory, queue, spot,
        max_interruptions, driver,
    )  # fmt: skip
    return it.run(wish, yes=yes, as_json=as_json)


@verb
def plan(
    recipe: options.Recipe,
    *,
    host: Annotated[
        list[str] | None,
        typer.Option("--host", metavar="HOST", help="Only this host; repeatable.", autocompletion=completion.hosts),
    ] = None,
    sets: options.Set = None,
    resume_from: options.ResumeFrom = None,
    max_cost: options.MaxCost = None,
    max_hours: options.MaxHours = None,
    everything: Annotated[bool, typer.Option("--all", help="Show every machine type, not only the best five.")] = False,
    script: Annotated[bool, typer.Option("--script", help="Print the job script of the Slurm host alone.")] = False,
    offline: options.Offline = False,
    inventory: options.Inventory = None,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> int:
    """Show steps, hours and dollars on every machine. Buys nothing.

    Asks the clouds of the inventory for prices, for at most two seconds.
    """
    from orchestrator.cli.plans import plan as it

    limits = it.typed_limits(max_cost, max_hours)
    return it.plan(
        recipe,
        host or [],
        sets or [],
        limits,
        inventory,
        resume_from=resume_from,
        offline=offline,
        everything=everything,
        as_json=as_json,
        script=script,
    )


@verb
def status(
    run: options.Run = None,
    *,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Refresh every few seconds until Ctrl-C.")] = False,
    everything: Annotated[bool, typer.Option("--all", help="Show all ended runs, not only the newest ten.")] = False,
    running: Annotated[bool, typer.Option("--running", help="Show only runs that have not ended.")] = False,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> int:
    """Show your runs, one row each.

    Asks the machines of unfinished runs, all at once, for at most two seconds.
    """
    from orchestrator.cli.runs import status as it

    return it.status(run, watch=watch, everything=everything, running=running, as_json=as_json)


@verb
def logs(
    run: options.Run = None,
    *,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Print new lines until the run ends.")] = False,
    metrics: Annotated[bool, typer.Option("--metrics", help="Print the metrics as JSON lines.")] = False,
    lines: Annotated[int | None, typer.Option("--lines", "-n", min=0, help="Print only the last N lines.")] = None,
    node: Annotated[int, typer.Option("--node", min=0, help="Of several nodes: this one; 0 is the head.")] = 0,
    verbose: options.Verbose = False,
) -> int:
    """Print the training log; -f follows it live. Ctrl-C ends only the printing."""
    from orchestrator.cli.runs import logs as it

    return it.logs(run, follow=follow, metrics=metrics, lines=lines, node=node)


@verb
def fetch(
    run: options.Run = None,
    *,
    to: Annotated[
        Path | None,
        typer.Option("--to", metavar="DIR", help="Default: the run's folder in GPTCTL_HOME."),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Fetch every complete checkpoint.")] = False,
    step: options.Step = None,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> int:
    """Fetch checkpoints, logs and cost, verified. Resumable.

    Without options, fetches the best and the latest checkpoint.
    """
    from orchestrator.cli.runs import fetch as it

    return it.fetch(run, to=to, everything=everything, step=step, as_json=as_json)


@verb
def stop(
    run: options.Run = None, yes: options.Yes = False, as_json: options.Json = False, verbose: options.Verbose = False
) -> int:
    """Stop a training early and keep what it learned.

    The training saves a checkpoint; gptctl fetches it and releases the machine.
    """
    from orchestrator.cli.runs import run as it

    return it.stop(run, yes=yes, as_json=as_json)


@verb
def resume(
    run: options.Run = None,
    *,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Leave as soon as the training runs.")] = False,
    store: Annotated[
        str | None, typer.Option(metavar="URI", help="Let its machine store the checkpoints there, s3://BUCKET/DIR.")
    ] = None,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> int:
    """Continue a run that gptctl left, whatever the reason.

    Does only what is missing and asks nothing again. Works at every stage.
    """
    from orchestrator.cli.runs import run as it

    return it.resume(run, detach=detach, as_json=as_json, store=store)


@verb
def release(
    run: options.Run = None,
    *,
    force: Annotated[
        bool,
        typer.Option(
            "--force", help="End the machine by its id without contacting it; unfetched checkpoints are lost."
        ),
    ] = False,
    yes: options.Yes = False,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> int:
    """Give a run's machine back.

    Ends its jobs and frees its locks. gptctl never switches off a machine of your own.
    """
    from orchestrator.cli.runs import run as it

    return it.release(run, force=force, yes=yes, as_json=as_json)


machine_commands.register(verb)
driver_commands.register(lambda group: app.add_typer(group, name="driver"))
history_commands.register(lambda group: app.add_typer(group, name="runs"))
sweep_commands.register(verb, lambda group: app.add_typer(group, name="sweep"))
data_commands.register(lambda group: app.add_typer(group, name="data"))


check_commands.register(verb)
ui_commands.register(verb)


inference_commands.register(verb)
model_commands.register(verb)
