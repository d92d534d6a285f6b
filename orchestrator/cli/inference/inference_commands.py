"""Signatures and help of the verbs that let a trained model answer; app.py registers them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli import options

RunOrFolder = Annotated[
    str | None, typer.Argument(metavar="RUN|FOLDER", help="A run, or a folder with a model. Default: the newest run.")
]
Temperature = Annotated[float, typer.Option("--temperature", min=0.0, help="0: the likeliest token.")]
TopK = Annotated[int | None, typer.Option("--top-k", metavar="K", min=1, help="Draw from the K likeliest tokens.")]
TopP = Annotated[
    float | None,
    typer.Option("--top-p", metavar="P", min=0.0, max=1.0, help="Draw from the likeliest that together reach P."),
]
Seed = Annotated[int, typer.Option("--seed", help="The same seed gives the same text.")]
Template = Annotated[
    str | None,
    typer.Option("--prompt", metavar="alpaca|TEXT", help="Words around {instruction}. Default: the model's own."),
]
AnswerTokens = Annotated[int, typer.Option("--max-tokens", metavar="N", min=1, help="The longest answer.")]


def sample(
    run: RunOrFolder = None,
    *,
    prompt: Annotated[list[str] | None, typer.Option("--prompt", "-p", help="Text to continue; repeatable.")] = None,
    step: options.Step = None,
    tokens: Annotated[
        int, typer.Option("--max-tokens", "--tokens", metavar="N", min=1, help="How many tokens to add at most.")
    ] = 200,
    temperature: Temperature = 0.8,
    top_k: TopK = None,
    top_p: TopP = None,
    batch: Annotated[int, typer.Option("--batch", metavar="N", min=1, help="Texts per prompt.")] = 1,
    seed: Seed = 0,
    on_host: Annotated[bool, typer.Option("--on-host", help="Sample on the run's machine instead of here.")] = False,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> int:
    """Let a trained model write text, from a fetched checkpoint.

    A single text appears as it is written. FOLDER is a checkpoint, a run's folder or an export.
    """
    from orchestrator.cli.inference import sample as it

    request = it.SampleRequest(prompt or [], step, tokens, temperature, seed, top_k, top_p, batch)
    return it.sample(run, request, on_host=on_host, as_json=as_json)


def chat(
    run: RunOrFolder = None,
    *,
    template: Template = None,
    step: options.Step = None,
    tokens: AnswerTokens = 256,
    turns: Annotated[int, typer.Option("--turns", metavar="N", min=0, help="Earlier turns that the model reads.")] = 0,
    temperature: Temperature = 0.7,
    top_k: TopK = None,
    top_p: TopP = None,
    seed: Seed = 0,
    verbose: options.Verbose = False,
) -> int:
    """Talk with a model that was tuned on instructions.

    Ctrl-C ends an answer, Ctrl-D the conversation. A model tuned on single instructions reads each by itself; --turns
    gives it what was said before, as far as its context reaches.
    """
    from orchestrator.cli.inference import chat as it

    return it.chat(run, it.ChatRequest(template, step, tokens, temperature, seed, top_k, top_p, turns))


def judge(
    runs: Annotated[
        list[str] | None, typer.Argument(metavar="RUN|FOLDER...", help="Models to compare. Default: the newest run.")
    ] = None,
    *,
    test: Annotated[
        Path, typer.Option("--test", metavar="FILE", help="JSON with instruction, output and, where needed, input.")
    ],
    endpoint: Annotated[
        str, typer.Option("--endpoint", metavar="URL", help="An OpenAI-compatible API, such as https://HOST/v1.")
    ],
    by: Annotated[str, typer.Option("--judge", metavar="NAME", help="The model there that scores.")],
    key_variable: Annotated[
        str, typer.Option("--key-variable", metavar="NAME", help="The environment variable with the key.")
    ] = "OPENAI_API_KEY",
    template: Template = None,
    step: options.Step = None,
    tokens: AnswerTokens = 256,
    batch: Annotated[int, typer.Option("--batch", metavar="N", min=1, help="Answers to write at once.")] = 16,
    save: Annotated[
        Path | None, typer.Option("--save", metavar="FILE", help="Also write answers and scores, as JSON lines.")
    ] = None,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> int:
    """Score the answers of models with another model.

    Writes the answers here, greedily, and asks the judge for a score from 0 to 100 for each. Keeps both: the same
    command resumes, and asks nothing twice.
    """
    from orchestrator.cli.inference import judge as it

    request = it.JudgeRequest(test, endpoint, by, key_variable, template, step, tokens, batch, save)
    return it.judge(runs or [], request, as_json=as_json)


def attention(
    run: RunOrFolder = None,
    *,
    prompt: Annotated[str, typer.Option("--prompt", "-p", help="The text that the model reads.")],
    step: options.Step = None,
    to: Annotated[Path, typer.Option("--to", metavar="DIR", help="The folder for picture and page.")] = Path(
        "attention"
    ),
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> int:
    """Show where a model looks in a prompt. It draws a picture and a page, one square per head.

    Writes attention.png and attention.html. The page is one file and needs no network.
    """
    from orchestrator.cli.inference import attention as it

    return it.attention(run, prompt, step, to, as_json=as_json)


def register(verb: Callable[[Callable[..., int]], Callable[..., int]]) -> None:
    """Adds them to the app; `verb` explains their failures."""
    for body in (sample, chat, judge, attention):
        verb(body)
