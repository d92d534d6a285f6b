"""`python -m trainer.inference.answers`: a model's answers to a file of instructions, many at once.

The file is what `[task] kind = "instruct"` trains on; the model does not see its outputs. Prints {"total", "step"},
then one line per example, in order: {"number", "instruction", "input", "output", "answer", "cut"}. It must not judge.

Example::

    python -m trainer.inference.answers runs/instruct --test test.json --batch 16
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import tiktoken
import torch

from trainer.arguments import ChosenModel, add_model_arguments, load_writing_model
from trainer.checkpoints.manifest import CheckpointError
from trainer.inference.tuned_prompt import answering_prompt
from trainer.model.generate import Sampling, SamplingError, new_tokens
from trainer.progress import count_progress, print_line
from trainer.prompt_template import prompt_of
from trainer.tasks.example_files import ExamplesError, read_examples
from trainer.tokens.tokenizer import TokenizerError, decode, open_tokenizer


class Answer(NamedTuple):
    """What the model wrote. `cut`: the prompt was longer than the context and lost its beginning."""

    text: str
    cut: bool


def answers(
    chosen: ChosenModel, prompts: Sequence[str], *, tokens: int, batch: int, sampling: Sampling, seed: int
) -> Iterator[Answer]:
    """The answers in the order of the prompts, each ended by the end-of-text mark or after `tokens`. The rows of a
    batch are filled up at their left, and progress is reported: a batch may take minutes. Raises
    SamplingError for ids beyond the vocabulary, TokenizerError."""
    encoding = open_tokenizer(chosen.tokenizer)
    generator, report = torch.Generator().manual_seed(seed), count_progress("answers", "tokens of a batch")
    for first in range(0, len(prompts), batch):
        rows = [encoding.encode_ordinary(text) for text in prompts[first : first + batch]]
        if max(map(max, rows)) >= chosen.model.config.vocab_size:
            raise SamplingError("the model does not know this tokenizer's ids: name its own with --tokenizer")
        yield from _answered(chosen, encoding, rows, tokens, drawn=(sampling, generator), report=report)


def _answered(
    chosen: ChosenModel,
    encoding: tiktoken.Encoding,
    rows: Sequence[list[int]],
    tokens: int,
    *,
    drawn: tuple[Sampling, torch.Generator],
    report: Callable[[int, int], object],
) -> Iterator[Answer]:
    model, end = chosen.model, encoding.eot_token
    room = model.config.context_length - 1
    width = min(room, max(map(len, rows)))
    pads = [max(0, width - len(row)) for row in rows]
    ids = torch.tensor([[end] * pad + row[-width:] for pad, row in zip(pads, rows, strict=True)], device=model.device)
    filling = torch.tensor(pads, device=model.device)
    steps = new_tokens(model, ids, tokens, drawn[0], generator=drawn[1], stop_id=end, pads=filling)
    drawn_ids = []
    for number, new in enumerate(steps, start=1):
        drawn_ids.append(new)
        report(number, tokens)
    for row, written in zip(rows, torch.stack(drawn_ids, dim=1).tolist(), strict=True):
        own = written[: written.index(end)] if end in written else written
        yield Answer(decode(encoding, own).strip(), len(row) > room)


def _run(options: argparse.Namespace) -> None:
    template = answering_prompt(options.folder, options.prompt)
    if options.max_tokens < 1 or options.batch < 1:
        raise SamplingError(
            f"--max-tokens and --batch must be at least 1, got {options.max_tokens} and {options.batch}"
        )
    examples = read_examples(options.test, ("instruction", "output"), ("input",))
    chosen = load_writing_model(options)
    print_line(total=len(examples), step=chosen.step)
    left = examples[options.skip :]
    prompts = [prompt_of(template, each.texts["instruction"], each.texts["input"]) for each in left]
    found = answers(
        chosen, prompts, tokens=options.max_tokens, batch=options.batch, sampling=Sampling(options.temperature),
        seed=options.seed,
    )  # fmt: skip
    for number, (example, answer) in enumerate(zip(left, found, strict=True), start=options.skip):
        print_line(number=number, **example.texts, answer=answer.text, cut=answer.cut)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m trainer.inference.answers", description="Answers to a test file.")
    add_model_arguments(parser)
    parser.add_argument("--test", type=Path, required=True, help="JSON or JSON Lines: instruction, input, output")
    parser.add_argument("--prompt", help="alpaca, or a text with {instruction} (default: the run's)")
    parser.add_argument("--skip", type=int, default=0, help="examples that have an answer already (default: 0)")
    parser.add_argument("--max-tokens", type=int, default=256, help="of an answer (default: 256)")
    parser.add_argument("--batch", type=int, default=16, help="answers at once (default: 16)")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy (default: 0)")
    parser.add_argument("--seed", type=int, default=0, help="of the draws (default: 0)")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Runs the program. Returns 0, or 1 with the reason on stderr."""
    try:
        _run(_parse(arguments))
    except (CheckpointError, ExamplesError, SamplingError, TokenizerError, OSError) as error:
        print(f"inference.answers: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
