"""Signatures and help of the verbs about trained models; app.py registers them."""

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
        str,
        typer.Option(
            "--format",
            metavar="hf|gguf|safetensors|adapters",
            help="For transformers, llama.cpp, plain tensors, or peft.",
        ),
    ] = "hf",
    to: Annotated[Path | None, typer.Option("--to", metavar="DIR", help="Default: ./exports/RUN.")] = None,
    checkpoint: Annotated[
        str, typer.Option("--step", metavar="N|best|latest", help="The checkpoint to export.")
    ] = "best",
    tokenizer: Annotated[
        str | None, typer.Option("--tokenizer", metavar="NAME", help="Default: the run's; `none` omits it.")
    ] = None,
    dtype: Annotated[
        str, typer.Option("--dtype", metavar="fp32|bf16|fp16", help="Type of the exported weights.")
    ] = "fp32",
    license_id: Annotated[
        str | None,
        typer.Option(
            "--license", metavar="ID", help="Licence of the weights, by its id on the Hub, for example apache-2.0."
        ),
    ] = None,
    language: Annotated[
        str | None, typer.Option("--language", metavar="CODE", help="Language of the training text, for example en.")
    ] = None,
    push: Annotated[
        str | None, typer.Option("--push", metavar="OWNER/NAME", help="Also upload it to the Hugging Face Hub.")
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="Make the repository public. Default: private.")] = False,
    revision: Annotated[
        str | None,
        typer.Option(
            "--revision", metavar="BRANCH", help="Branch to upload to. Default: main, if it holds no other weights."
        ),
    ] = None,
    author: Annotated[str | None, typer.Option("--author", metavar="NAME", help="Who made it, for the card.")] = None,
    link: Annotated[
        list[str] | None, typer.Option("--link", metavar="TITLE=URL", help="A link for the card; repeatable.")
    ] = None,
    space: Annotated[bool, typer.Option("--space", help="Also write a Gradio demo, to DIR-space.")] = False,
    yes: options.Yes = False,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> int:
    """Export a model with its card, as others can load it.

    The folder holds a native GPT2LMHeadModel and tokenizer files: AutoModelForCausalLM and pipelines load it without
    custom code. --push shows what goes where, and asks.
    """
    from orchestrator.cli.models import export as it

    wish = it.Wish(
        kind, to, checkpoint, tokenizer, license_id, language, push, public, revision, dtype, author, link or [], space
    )
    return it.export(run, wish, yes=yes, as_json=as_json)


def evaluate(
    run: options.Run = None,
    *,
    checkpoint: Annotated[
        str, typer.Option("--checkpoint", metavar="best|latest|STEP", help="The checkpoint to measure.")
    ] = "best",
    slices: Annotated[
        list[str] | None,
        typer.Option("--slice", metavar="START+TOKENS", help="Measure the loss on these tokens; repeatable."),
    ] = None,
    data: Annotated[
        list[Path] | None,
        typer.Option(
            "--data", metavar="FILE", help="Measure on these token files instead of the run's own; repeatable."
        ),
    ] = None,
    choices: Annotated[
        list[str] | None,
        typer.Option(
            "--choices",
            metavar="hellaswag|FILE|URI",
            help="Measure multiple choice, in HellaSwag's format; repeatable.",
        ),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option("--precision", metavar="fp32|bf16|fp16", help="Default: the run's on a GPU, else fp32."),
    ] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Sequences or questions per batch.")] = 8,
    on_host: Annotated[bool, typer.Option("--on-host", help="Measure on the run's machine instead of here.")] = False,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> int:
    """Measure a model: loss, bits per byte, multiple choice.

    Without --slice and --choices, measures the recipe's slices and choices, or else what the run validated on. Keeps
    the results for compare, report and the model card.
    """
    from orchestrator.cli.models import evaluate as it

    wish = it.Wish(checkpoint, slices or [], data or [], choices or [], precision, batch_size)
    return it.evaluate(run, wish, on_host=on_host, as_json=as_json)


def import_model(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="hf://models/OWNER/NAME[@REVISION], a folder, or a file of weights.")
    ],
    *,
    name: Annotated[str | None, typer.Option("--name", metavar="NAME", help="A name for the model.")] = None,
    tokenizer: Annotated[
        str | None, typer.Option("--tokenizer", metavar="NAME", help="Default: the model's own; `none`: it has none.")
    ] = None,
    n_head: Annotated[
        int | None, typer.Option("--n-head", min=1, metavar="N", help="Attention heads, where nothing says how many.")
    ] = None,
    accept_tanh_gelu: Annotated[
        bool, typer.Option("--accept-tanh-gelu", help="Take a model with the exact GELU; its losses differ a little.")
    ] = False,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> int:
    """Import a model of another program as a checkpoint.

    Reads the layouts of Hugging Face's GPT-2, nanoGPT and the reference trainer, and gptctl's own exports; refuses by
    name what cannot be expressed. eval, sample, export, compare and model.init_from take it like a run's checkpoint.
    """
    from orchestrator.cli.models import import_model as it
    from orchestrator.runs.origin.imports import ImportRequest

    return it.import_model(ImportRequest(source, name, n_head, tokenizer, accept_tanh_gelu), as_json=as_json)


def import_recipe(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A run folder with model.json and train.json.")],
    *,
    gpus: Annotated[
        int | None, typer.Option("--gpus", min=1, metavar="N", help="GPUs it ran on. Default: as its folder says.")
    ] = None,
    to: Annotated[
        Path | None, typer.Option("--to", metavar="FILE", help="Default: ./recipes/NAME.toml, a new file.")
    ] = None,
    verbose: options.Verbose = False,
) -> int:
    """Write a run of the reference trainer as a recipe.

    Translates every key of model.json and train.json; refuses by name one that has no counterpart.
    """
    from orchestrator.cli.models import import_recipe as it

    return it.import_recipe(folder, gpus, to)


def report(
    run: options.Run = None,
    *,
    html: options.Html = None,
    charts: options.Charts = None,
    open_page: Annotated[bool, typer.Option("--open", help="Open the page in your browser.")] = False,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> int:
    """Write a run's report: figures, curves, cost and samples.

    Writes text and a page, also while the run trains. The page is one file, needs no network, fits a phone, and follows
    light or dark mode.
    """
    from orchestrator.cli.runs import report as it

    return it.report(run, html=html, charts=charts, as_json=as_json, open_page=open_page)


def compare(
    runs: Annotated[
        list[str] | None, typer.Argument(metavar="RUN...", help="Ids, names or first characters of ids.")
    ] = None,
    *,
    baseline: Annotated[
        str | None,
        typer.Option("--baseline", metavar="RUN", help="Compare the others with this run. Default: the first."),
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option("--label", metavar="KEY=VALUE", help="Add all runs with this label; repeatable."),
    ] = None,
    html: options.Html = None,
    charts: options.Charts = None,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> int:
    """Rank runs by their test loss, else by validation loss.

    Compares each run with the baseline: the difference, the interval that holds it at 95 %, and whether seeds alone
    explain it. Shows what differs in recipe, machine and software.
    """
    from orchestrator.cli.runs import compare as it

    return it.compare_runs(runs or [], baseline, label or [], html=html, charts=charts, as_json=as_json)


def register(verb: Callable[[Callable[..., int]], Callable[..., int]]) -> None:
    """Adds them to the app; `verb` explains their failures."""
    evaluate.__name__ = "eval"  # the command's name, which Python keeps for itself
    import_model.__name__, import_recipe.__name__ = "import", "import-recipe"
    for body in (compare, evaluate, export, import_model, import_recipe, report):
        verb(body)
