"""Arguments and options that several verbs share, written once. Only Typer's vocabulary; no behaviour."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Recipe = Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe file, or the name of one that comes along.")]
Run = Annotated[
    str | None,
    typer.Argument(metavar="RUN", help="A run's id, name, or the beginning of its id. Default: the newest."),
]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a recipe field, e.g. train.seed=7.")
]
MaxCost = Annotated[float | None, typer.Option("--max-cost", metavar="USD", help="End the run at this cost.")]
MaxHours = Annotated[float | None, typer.Option("--max-hours", metavar="H", help="End the run after this many hours.")]
MaxPrice = Annotated[
    float | None, typer.Option("--max-price", metavar="USD", help="Rent nothing above this price per hour.")
]
Inventory = Annotated[
    Path | None,
    typer.Option("--inventory", metavar="FILE", help="Hosts. Default: ./inventory.toml, then the one in GPTCTL_HOME."),
]
AcceptKey = Annotated[
    bool, typer.Option("--accept-new-host-key", help="Trust the key of a machine that was never seen before.")
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Show the traceback of a failure.")]
Step = Annotated[int | None, typer.Option("--step", metavar="N", min=0, help="The checkpoint of this step.")]
Offline = Annotated[bool, typer.Option("--offline", help="Ask no cloud; use the bundled prices with their dates.")]
Html = Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Write the page there, one file.")]
Charts = Annotated[
    Path | None, typer.Option("--charts", metavar="DIR", help="Write the charts there, as PNG and SVG (extra charts).")
]
