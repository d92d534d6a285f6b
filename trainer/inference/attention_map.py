"""`python -m trainer.inference.attention_map`: how much every token of a prompt looks at every token before it.

Prints one JSON line: the tokens as text, and the weights of each layer and head in steps of 1/255, as base64. It must
not draw; `gptctl attention` makes a picture and a page of the line.

Example::

    python -m trainer.inference.attention_map runs/quickstart --prompt "def f(x):"
    {"tokens": ["d", "e", ...], "layers": 4, "heads": 4, "left_out": 0, "step": 800, "weights": "/wAA..."}
"""

from __future__ import annotations

import argparse
import base64
import math
import sys

import torch
from torch import Tensor

from trainer.arguments import add_model_arguments, load_chosen_model
from trainer.checkpoints.manifest import CheckpointError
from trainer.model.generate import SamplingError, prompt_ids
from trainer.model.gpt import GPT
from trainer.progress import print_line
from trainer.tokens.tokenizer import TokenizerError, decode, open_tokenizer

MOST_TOKENS = 128
"""144 heads of GPT-2 small are 2.4 MB of weights then."""


class AttentionRecorder:
    """Reads a text once and keeps what every head weighs, (heads, time, time) a layer; rows sum to 1."""

    def __init__(self, layers: int, device: torch.device) -> None:
        self.length, self.device = 0, device
        self.layers = [RecordingLayer() for _ in range(layers)]

    def reading(self, time: int) -> Tensor:
        """Positions (time,)."""
        return torch.arange(time, device=self.device)

    def read(self, time: int) -> None:
        """Notes the length."""
        self.length = time


class RecordingLayer:
    """Attention by its definition, softmax(q k^T / sqrt(width)) v (arXiv 1706.03762), because the fused kernels keep no
    weights."""

    def __init__(self) -> None:
        self.weights: Tensor | None = None

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Shapes (1, heads, time, head width) in and out."""
        scores = (q @ k.transpose(-2, -1)).float() / math.sqrt(q.shape[-1])
        later = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool, device=q.device).triu(1)
        weights = scores.masked_fill(later, -torch.inf).softmax(dim=-1)
        self.weights = weights[0]
        return weights.to(v.dtype) @ v


@torch.no_grad()
def attention_weights(model: GPT, ids: list[int]) -> Tensor:
    """(layers, heads, time, time) fp32 on the CPU: row i says where token i looks."""
    recorder = AttentionRecorder(model.config.n_layer, model.device)
    model.next_token_logits(torch.tensor([ids], device=model.device), recorder)
    return torch.stack([layer.weights for layer in recorder.layers if layer.weights is not None]).cpu()


def _run(options: argparse.Namespace) -> None:
    chosen = load_chosen_model(options)
    encoding = open_tokenizer(chosen.tokenizer)
    ids = prompt_ids(chosen.model, encoding, options.prompt)
    shown = ids[: min(MOST_TOKENS, chosen.model.config.context_length)]
    weights = attention_weights(chosen.model, shown)
    print_line(
        tokens=[decode(encoding, [token]) for token in shown],
        layers=weights.shape[0],
        heads=weights.shape[1],
        left_out=len(ids) - len(shown),
        step=chosen.step,
        weights=base64.b64encode((weights * 255).round().to(torch.uint8).numpy().tobytes()).decode(),
    )


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m trainer.inference.attention_map", description="The attention weights of a prompt."
    )
    add_model_arguments(parser)
    parser.add_argument("--prompt", required=True, help="the text that the model reads")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Runs the program. Returns 0, or 1 with the reason on stderr."""
    try:
        _run(_parse(arguments))
    except (CheckpointError, SamplingError, TokenizerError, OSError) as error:
        print(f"inference.attention_map: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
