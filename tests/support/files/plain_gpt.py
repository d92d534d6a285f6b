"""A second GPT-2, written independently of trainer/ from the textbook: the yardstick for its loss curve and its speed.

Everything is done by hand: separate query, key and value projections, attention scores as a whole matrix with a mask,
LayerNorm and GELU from their formulas, the full fp32 logits, AdamW tensor by tensor. It must not import the trainer.

Example: `PlainGPT(257, 64, n_layer=2, n_head=2, n_embd=64)(ids)` gives logits (batch, time, 257).
"""

import math

import torch
from torch import Tensor, nn


class PlainNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))
        self.shift = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(dim=-1, keepdim=True)
        variance = x.var(dim=-1, keepdim=True, unbiased=False)
        return self.scale * (x - mean) / torch.sqrt(variance + 1e-5) + self.shift


class PlainAttention(nn.Module):
    def __init__(self, width: int, heads: int, context: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.out = nn.Linear(width, width)
        self.register_buffer("mask", torch.triu(torch.ones(context, context, dtype=torch.bool), diagonal=1))

    def forward(self, x: Tensor) -> Tensor:
        batch, time, width = x.shape
        shape = (batch, time, self.heads, width // self.heads)
        query, key, value = (part(x).view(shape).transpose(1, 2) for part in (self.query, self.key, self.value))
        scores = query @ key.transpose(2, 3) / math.sqrt(width // self.heads)
        scores = scores.masked_fill(self.mask[:time, :time], -torch.inf)
        mixed = torch.softmax(scores, dim=-1) @ value
        return self.out(mixed.transpose(1, 2).contiguous().view(batch, time, width))


class PlainGelu(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


class PlainBlock(nn.Module):
    def __init__(self, width: int, heads: int, context: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = PlainNorm(width), PlainNorm(width)
        self.attention = PlainAttention(width, heads, context)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), PlainGelu(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PlainGPT(nn.Module):
    """ids (batch, time) int64 -> logits (batch, time, vocab_size). Untied head, no dropout, GPT-2's initialisation."""

    def __init__(self, vocab_size: int, context: int, n_layer: int, n_head: int, n_embd: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocab_size, n_embd)
        self.positions = nn.Embedding(context, n_embd)
        self.blocks = nn.Sequential(*(PlainBlock(n_embd, n_head, context) for _ in range(n_layer)))
        self.norm = PlainNorm(n_embd)
        self.head = nn.Linear(n_embd, vocab_size, bias=False)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                residual = name.endswith(("attention.out.weight", "mlp.2.weight"))
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * n_layer) if residual else 0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids) + self.positions(torch.arange(ids.shape[1], device=ids.device))
        return self.head(self.norm(self.blocks(x)))

    def loss(self, ids: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy in nats, from log-probabilities of the whole fp32 logits."""
        log_probabilities = torch.log_softmax(self(ids).float(), dim=-1)
        return -log_probabilities.gather(-1, targets[..., None]).mean()


class PlainAdamW:
    """The update of Loshchilov and Hutter (arXiv 1711.05101), tensor by tensor; decay on matrices only."""

    def __init__(self, parameters: list[nn.Parameter], rate: float, decay: float, betas: tuple[float, float]) -> None:
        self.parameters, self.rate, self.decay, self.betas, self.steps = parameters, rate, decay, betas, 0
        self.first = [torch.zeros_like(p) for p in parameters]
        self.second = [torch.zeros_like(p) for p in parameters]

    @torch.no_grad()
    def step(self) -> None:
        self.steps += 1
        beta1, beta2 = self.betas
        for parameter, first, second in zip(self.parameters, self.first, self.second, strict=True):
            gradient = parameter.grad
            if parameter.dim() >= 2:
                parameter.mul_(1 - self.rate * self.decay)
            first.mul_(beta1).add_(gradient, alpha=1 - beta1)
            second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
            corrected = (second / (1 - beta2**self.steps)).sqrt_().add_(1e-8)
            parameter.addcdiv_(first, corrected, value=-self.rate / (1 - beta1**self.steps))
            parameter.grad = None
