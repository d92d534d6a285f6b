"""Signatures and help of the verbs about trained models; app.py says how they work, and registers them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli import options


def export(
    run: options.Run = None,
    *,
    kind: Annotated[
        str, typer.Option("--format", metavar="hf|safetensors", help="hf: loads with plain transformers.")
    ] = "hf",
    to: Annotated[Path | None, typer.Option("--to", metavar="DIR", help="Default: ./exports/RUN.")] = None,
    checkpoint: Annotated[str, typer.Option("--step", metavar="N|best|latest", help="Which checkpoint.")] = "best",
    tokenizer: Annotated[
        str | None, typer.Option("--tokenizer", metavar="NAME", help="Default: the run's; `none` leaves it out.")
    ] = None,
    license_id: Annotated[
        str | None,
        typer.Option("--license", metavar="ID", help="Of the weights, by the Hub's name, e.g. apache-2.0."),
    ] = None,
    language: Annotated[
        str | None, typer.Option("--language", metavar="CODE", help="Of the training text, e.g. en.")
    ] = None,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> int:
    """Make a model folder that others can load, with its card.

    A native GPT2LMHeadModel with tokenizer files: AutoModelForCausalLM and pipelines load it without custom code.
    """
    from orchestrator.cli import export as it

    wish = it.Wish(kind, to, checkpoint, tokenizer, license_id, language)
    return it.export(run, wish, as_json=as_json)


def register(verb: Callable[[Callable[..., int]], Callable[..., int]]) -> None:
    """Adds them to the app; `verb` explains their failures."""
    for body in (export,):
        verb(body)
