"""`python -m trainer.sample`: text from a trained model, from a run folder or a checkpoint folder, on CPU or CUDA.

It prints the text of each sample on stdout, or with --json one line {"prompt", "text", "tokens"} each. It must not
change the run it reads.

Example::

    python -m trainer.sample runs/quickstart --prompt "def " --tokens 200 --temperature 0.8 --top-k 50 --seed 1
    python -m trainer.sample runs/quickstart/checkpoints/step-000800 --greedy --batch 3 --json
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch

from trainer.checkpoints.checkpoint import load_model
from trainer.checkpoints.manifest import CheckpointError
from trainer.contract import DataConfig
from trainer.model.generate import Sampling, SamplingError, continuations
from trainer.tokens.tokenizer import TokenizerError, open_tokenizer


def _run(asked: argparse.Namespace) -> None:
    sampling = Sampling(asked.temperature, asked.top_k, asked.top_p, asked.greedy)
    if asked.tokens < 1 or asked.batch < 1:
        raise SamplingError(f"--tokens and --batch must be at least 1, got {asked.tokens} and {asked.batch}")
    model, meta = load_model(asked.folder, torch.device(asked.device))
    encoding = open_tokenizer(asked.tokenizer or meta.get("tokenizer") or DataConfig.tokenizer)
    for prompt in asked.prompt or [""]:
        for text, count in continuations(
            model, encoding, prompt, tokens=asked.tokens, batch=asked.batch, sampling=sampling, seed=asked.seed
        ):
            if asked.json:
                print(json.dumps({"prompt": prompt, "text": text, "tokens": count}), flush=True)
            else:
                print(text, end="\n\n", flush=True)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m trainer.sample", description="Text from a trained model.")
    parser.add_argument("folder", type=Path, metavar="RUN_OR_CHECKPOINT", help="a run (its best checkpoint) or one")
    parser.add_argument("--prompt", action="append", help="beginning to continue; repeatable (default: none)")
    parser.add_argument("--tokens", type=int, default=100, help="new tokens at most (default: 100)")
    parser.add_argument("--temperature", type=float, default=0.8, help="0 is greedy (default: 0.8)")
    parser.add_argument("--top-k", type=int, help="only the K most probable tokens")
    parser.add_argument("--top-p", type=float, help="only the most probable tokens that reach P together")
    parser.add_argument("--batch", type=int, default=1, help="samples per prompt (default: 1)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--greedy", action="store_true", help="always the most probable token")
    parser.add_argument("--tokenizer", help="bytes or a tiktoken name (default: the run's)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", action="store_true", help="one line of JSON per sample")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """The program: 0 with the samples on stdout, 1 with the reason on stderr."""
    try:
        _run(_parse(arguments))
    except (CheckpointError, SamplingError, TokenizerError, OSError) as error:
        print(f"sample: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
