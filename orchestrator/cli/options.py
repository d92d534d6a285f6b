"""Arguments and options that several verbs share. Only Typer declarations; no behaviour."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli import completion

Recipe = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE",
        help="A recipe file, or the name of a bundled recipe.",
        autocompletion=completion.recipes,
    ),
]
Run = Annotated[
    str | None,
    typer.Argument(
        metavar="RUN",
        help="The id, name or first characters of the id of a run. Default: the newest run.",
        autocompletion=completion.runs,
    ),
]
Host = Annotated[
    str | None,
    typer.Option(
        "--host",
        metavar="HOST",
        help="Where to train: `local`, or a host of the inventory.",
        autocompletion=completion.hosts,
    ),
]
OnRental = Annotated[
    str | None,
    typer.Option(
        "--on", metavar="RENTAL", help="Use a machine that is up, by its rental.", autocompletion=completion.rentals
    ),
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a recipe field, for example train.seed=7."),
]
ResumeFrom = Annotated[
    str | None, typer.Option("--resume-from", metavar="RUN", help="Resume from a RUN, s3://... or a folder.")
]
MaxCost = Annotated[
    float | None, typer.Option("--max-cost", metavar="USD", help="End the run when it has cost this much.")
]
MaxHours = Annotated[float | None, typer.Option("--max-hours", metavar="H", help="End the run after this many hours.")]
MaxPrice = Annotated[
    float | None, typer.Option("--max-price", metavar="USD", help="Rent no machine above this price per hour.")
]
Inventory = Annotated[
    Path | None,
    typer.Option(
        "--inventory",
        metavar="FILE",
        help="Read hosts from this file. Default: inventory.toml here or in a folder above, then in GPTCTL_HOME.",
    ),
]
Driver = Annotated[
    str | None,
    typer.Option(
        "--driver", metavar="HOST", help="Hand it over to this machine of yours, which is always on.",
        autocompletion=completion.hosts,
    ),
]  # fmt: skip
AcceptKey = Annotated[
    bool, typer.Option("--accept-new-host-key", help="Trust the host key of a machine on first contact.")
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Answer yes to every question.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Show the traceback of a failure.")]
Step = Annotated[int | None, typer.Option("--step", metavar="N", min=0, help="Use the checkpoint of this step.")]
Offline = Annotated[
    bool, typer.Option("--offline", help="Do not ask any cloud; use the bundled prices with their dates.")
]
Html = Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Write the page to this file.")]
Charts = Annotated[
    Path | None,
    typer.Option(
        "--charts", metavar="DIR", help="Write the charts to this folder as PNG and SVG (needs the extra `charts`)."
    ),
]
