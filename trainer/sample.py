"""`python -m trainer.sample`: text from the model of a run folder or a checkpoint folder, on a CPU or a GPU.

Prints the samples on stdout, a single one as it is written; with --json a line {"prompt", "text", "tokens",
"tokens_per_second"} for each, with --stream too before it {"prompt", "piece"} as they come. It must not change the run
it reads.

Example::

    python -m trainer.sample runs/quickstart --prompt "def " --tokens 200 --temperature 0.8 --top-k 50 --seed 1
    python -m trainer.sample runs/quickstart/checkpoints/step-000800 --greedy --batch 3 --json
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable

from trainer.arguments import add_model_arguments, load_writing_model
from trainer.checkpoints.manifest import CheckpointError
from trainer.model.generate import Sampling, SamplingError, continuations, prompt_ids
from trainer.progress import print_line
from trainer.tokens.tokenizer import TokenizerError, open_tokenizer


def _run(options: argparse.Namespace) -> None:
    sampling = Sampling(options.temperature, options.top_k, options.top_p, options.greedy)
    if options.tokens < 1 or options.batch < 1:
        raise SamplingError(f"--tokens and --batch must be at least 1, got {options.tokens} and {options.batch}")
    chosen = load_writing_model(options)
    encoding = open_tokenizer(chosen.tokenizer)
    for prompt in options.prompt or [""]:
        write = _as_json(prompt) if options.json and options.stream else None
        if not options.json and options.batch == 1:
            prompt_ids(chosen.model, encoding, prompt)  # what is refused is refused before its prompt is printed
            print(prompt, end="", flush=True)
            write = _as_text
        started = time.monotonic()
        texts = list(
            continuations(
                chosen.model, encoding, prompt, tokens=options.tokens, batch=options.batch, sampling=sampling,
                seed=options.seed, say=write,
            )
        )  # fmt: skip
        rate = sum(count for _, count in texts) / max(time.monotonic() - started, 1e-9)
        for text, count in texts:
            if options.json:
                print_line(prompt=prompt, text=text, tokens=count, tokens_per_second=round(rate, 2))
            else:
                print("" if write else text, end="\n\n", flush=True)


def _as_json(prompt: str) -> Callable[[str], object]:
    return lambda piece: print_line(prompt=prompt, piece=piece)


def _as_text(piece: str) -> None:
    print(piece, end="", flush=True)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m trainer.sample", description="Sample text from a model.")
    add_model_arguments(parser)
    parser.add_argument("--prompt", action="append", help="text to continue; repeatable (default: none)")
    parser.add_argument("--tokens", type=int, default=100, help="new tokens at most (default: 100)")
    parser.add_argument("--temperature", type=float, default=0.8, help="divides the logits; 0 is greedy (default: 0.8)")
    parser.add_argument("--top-k", type=int, help="draw from the K most probable tokens")
    parser.add_argument("--top-p", type=float, help="draw from the most probable tokens that together reach P")
    parser.add_argument("--batch", type=int, default=1, help="samples per prompt (default: 1)")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same text (default: 0)")
    parser.add_argument("--greedy", action="store_true", help="take the most probable token every time")
    parser.add_argument("--json", action="store_true", help="print a line of JSON for each sample")
    parser.add_argument("--stream", action="store_true", help="with --json: also the pieces of a single text")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Runs the program. Returns 0, or 1 with the reason on stderr."""
    try:
        _run(_parse(arguments))
    except (CheckpointError, SamplingError, TokenizerError, OSError) as error:
        print(f"sample: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
