"""Continues token sequences, and texts, with a model: greedy, or sampled with temperature, top-k and top-p.

It must not read files or print; trainer/sample.py and training/finish.py do.

Example::

    ids = torch.tensor([[105, 109, 112]])                            # (batch, time) int64
    longer = generate(model, ids, 32, Sampling(temperature=0.8, top_k=50), generator=torch.Generator().manual_seed(1))
    longer.shape                                                     # (1, 35)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import tiktoken
import torch
from torch import Tensor

from trainer.model.gpt import GPT
from trainer.model.kv_cache import KeyValueCache
from trainer.tokens.tokenizer import Pieces, decode


class SamplingError(ValueError):
    """Invalid sampling settings, or a prompt the model cannot read."""


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn from the logits. The filters apply in the order temperature, top_k, top_p."""

    temperature: float = 1.0
    """Divides the logits; 0 is the same as greedy."""
    top_k: int | None = None
    """Only the k most probable tokens."""
    top_p: float | None = None
    """Only the most probable tokens that together reach this probability, always at least one (arXiv 1904.09751)."""
    greedy: bool = False

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise SamplingError(f"temperature must be 0 or more, got {self.temperature}")
        if self.top_k is not None and self.top_k < 1:
            raise SamplingError(f"top_k must be at least 1, got {self.top_k}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise SamplingError(f"top_p must be above 0 and at most 1, got {self.top_p}")


def generate(
    model: GPT,
    ids: Tensor,
    tokens: int,
    sampling: Sampling | None = None,
    *,
    generator: torch.Generator | None = None,
    stop_id: int | None = None,
    pads: Tensor | None = None,
) -> Tensor:
    """Appends up to `tokens` tokens to ids (batch, time) int64; returns (batch, time + new) on the same device."""
    steps = new_tokens(model, ids, tokens, sampling, generator=generator, stop_id=stop_id, pads=pads)
    return torch.cat([ids, *(new[:, None] for new in steps)], dim=1)


@torch.no_grad()
def new_tokens(
    model: GPT,
    ids: Tensor,
    tokens: int,
    sampling: Sampling | None = None,
    *,
    generator: torch.Generator | None = None,
    stop_id: int | None = None,
    pads: Tensor | None = None,
) -> Iterator[Tensor]:
    """Up to `tokens` times the next token (batch,) of ids (batch, time) int64, as soon as each is drawn.

    The model sees the last context_length tokens; once there are more, every token reads them all again, because each
    one's position has moved. pads (batch,): tokens at the left of a row that only fill it up. Ends early when every
    row has produced stop_id. `generator` is a CPU generator: draws happen there, so that a seed means the same on
    every device. Dropout is off.
    """
    if ids.dim() != 2 or ids.shape[1] < 1:
        raise SamplingError(f"ids must be (batch, time) with at least one token each, got shape {tuple(ids.shape)}")
    chosen, context = sampling or Sampling(), model.config.context_length
    was_training = model.training
    model.eval()
    try:
        ended = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
        capacity = min(context, ids.shape[1] + tokens)
        cache = KeyValueCache(model.config, len(ids), capacity, ids.device, pads)
        for _ in range(tokens):
            beyond = ids.shape[1] - context
            if beyond > 0:
                left = None if pads is None else (pads - beyond).clamp(min=0)
                cache = KeyValueCache(model.config, len(ids), context, ids.device, left)
            logits = model.next_token_logits(ids[:, max(beyond, 0) + cache.length :], cache)
            new = next_token(logits.float().cpu(), chosen, generator).to(ids.device)
            ids = torch.cat([ids, new[:, None]], dim=1)
            yield new
            if stop_id is not None:
                ended |= new == stop_id
                if bool(ended.all()):
                    break
    finally:
        model.train(was_training)


def next_token(logits: Tensor, sampling: Sampling, generator: torch.Generator | None = None) -> Tensor:
    """Draws one token per row of logits (batch, vocab_size); returns (batch,) int64."""
    if sampling.greedy or sampling.temperature == 0:
        return logits.argmax(dim=-1)
    allowed = filtered(logits / sampling.temperature, sampling)
    return torch.multinomial(allowed.softmax(dim=-1), num_samples=1, generator=generator).squeeze(1)


def filtered(logits: Tensor, sampling: Sampling) -> Tensor:
    """logits (batch, vocab_size) with minus infinity for the tokens that top_k and top_p exclude."""
    if sampling.top_k is not None:
        smallest = logits.topk(min(sampling.top_k, logits.shape[-1])).values[:, -1:]
        logits = logits.masked_fill(logits < smallest, -torch.inf)
    if sampling.top_p is not None:
        ordered, order = logits.softmax(dim=-1).sort(dim=-1, descending=True)
        before = ordered.cumsum(dim=-1) - ordered  # 0 for the most probable token, which therefore stays
        out = torch.zeros_like(logits, dtype=torch.bool).scatter(1, order, before >= sampling.top_p)
        logits = logits.masked_fill(out, -torch.inf)
    return logits


def continuations(
    model: GPT,
    encoding: tiktoken.Encoding,
    prompt: str,
    *,
    tokens: int,
    batch: int = 1,
    sampling: Sampling | None = None,
    seed: int = 0,
    say: Callable[[str], object] | None = None,
) -> Iterator[tuple[str, int]]:
    """`batch` continuations of one prompt as (text with the prompt, number of new tokens).

    A text ends at the end-of-text mark: what the model writes after it belongs to another document. An empty prompt
    begins a document. The same seed gives the same texts. `say` gets the pieces of a single text as they are written.
    Raises SamplingError for ids beyond the model's vocabulary.
    """
    end = encoding.eot_token
    ids = prompt_ids(model, encoding, prompt)
    rows = torch.tensor([ids] * batch, device=model.device)
    generator = torch.Generator().manual_seed(seed)
    written: list[list[int]] = []
    pieces = Pieces(encoding)
    for new in new_tokens(model, rows, tokens, sampling, generator=generator, stop_id=end):
        written.append(new.tolist())
        if say is not None and batch == 1 and written[-1][0] != end and (piece := pieces.add(written[-1][0])):
            say(piece)
    if say is not None and batch == 1 and (rest := pieces.end()):
        say(rest)
    for row in zip(*written, strict=True):
        own = list(row[: row.index(end)] if end in row else row)
        yield prompt + decode(encoding, own), len(own)


def prompt_ids(model: GPT, encoding: tiktoken.Encoding, prompt: str) -> list[int]:
    """The ids of a prompt; of an empty one the mark that begins a document. Raises SamplingError for ids beyond the
    model's vocabulary."""
    ids = encoding.encode_ordinary(prompt) or [encoding.eot_token]
    vocab_size = model.config.vocab_size
    if max(ids) >= vocab_size:
        raise SamplingError(
            f"the tokenizer gives id {max(ids)}, but the model knows {vocab_size}: name the model's own --tokenizer"
        )
    return ids
