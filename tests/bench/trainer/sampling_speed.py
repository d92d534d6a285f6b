"""How fast a model of GPT-2 small's size writes on this CPU, with kept keys and values and by recomputing them.

    python -m tests.bench.trainer.sampling_speed             # the lines of `make bench --only sampling`

Both sides write the same greedy text after the same prompt, with random weights; rounds alternate and the best of each
counts. "Recomputed" is what `trainer.sample` did before it kept keys and values: the whole text for every token.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from tests.bench.figure import Figure, at_least
from trainer.contract import ModelConfig
from trainer.model.generate import Sampling, generate
from trainer.model.gpt import GPT

GPT2 = ModelConfig(tie_embeddings=True)
THREADS = 2
PROMPT = 64
NEW = {1: 64, 4: 8}
"""Tokens to write, by the number of texts at once: recomputing them costs 4 TFLOP in two rounds."""
QUICK = 16


@torch.no_grad()
def recomputed(model: GPT, ids: Tensor, tokens: int) -> Tensor:
    """Greedy text (batch, time + tokens)."""
    for _ in range(tokens):
        new = model.next_token_logits(ids[:, -model.config.context_length :]).argmax(dim=-1)
        ids = torch.cat([ids, new[:, None]], dim=1)
    return ids


def kept(model: GPT, ids: Tensor, tokens: int) -> Tensor:
    """The same text."""
    return generate(model, ids, tokens, Sampling(greedy=True))


def rate(write: Callable[[GPT, Tensor, int], Tensor], model: GPT, ids: Tensor, tokens: int) -> float:
    """New tokens per second."""
    began = time.perf_counter()
    write(model, ids, tokens)
    return len(ids) * tokens / (time.perf_counter() - began)


def figures(*, quick: bool) -> Iterator[Figure]:
    """One text, and four at once."""
    torch.set_num_threads(THREADS)
    torch.manual_seed(1)
    model = GPT(GPT2).eval()
    for batch, usual in NEW.items():
        new = QUICK if quick else usual
        ids = torch.randint(GPT2.vocab_size, (batch, PROMPT))
        rounds = [(rate(kept, model, ids, new), rate(recomputed, model, ids, new)) for _ in range(1 if quick else 2)]
        ours, theirs = (max(side) for side in zip(*rounds, strict=True))
        name = f"sampling, gpt2-124m, {batch} x {new} tokens after {PROMPT}"
        yield at_least(name, ours, theirs, "tok/s", "recomputed", 2.0)


if __name__ == "__main__":
    for figure in figures(quick=False):
        print(figure.line(), flush=True)
