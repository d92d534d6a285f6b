"""GPT-2: pre-LayerNorm blocks (block.py), learned positions, tanh GELU, causal attention; options change each of them.

It must not know about optimizers, ranks or files. The vocabulary is padded inside to a multiple of 128, which fills the
tensor cores; it never shows: logits, loss, `unpadded_state` and `parameter_count` have `vocab_size` rows.

Example::

    model = GPT(ModelConfig(vocab_size=257, context_length=32, n_layer=2, n_head=2, n_embd=64))
    loss = model(ids, targets)          # ids, targets: (batch, time) int64 -> scalar, fp32
    logits = model(ids)                 # (batch, time, 257)
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from trainer.arithmetic import LOSS_CHUNKS, VOCABULARY_MULTIPLE, loss_chunk_rows, table_columns
from trainer.contract import ContractError, ModelConfig
from trainer.model.block import Block, Norm, Shared, rotation
from trainer.model.experts import balance_of, check_experts_and_tables, leave_uncompiled
from trainer.model.kv_cache import Reader


class GPT(nn.Module):
    """The whole model. Built on the CPU, each tensor from the current seed (`torch.manual_seed`) and its own name: any
    device starts from the same weights, and a changed model starts from the same values in every tensor that it shares.
    """

    def __init__(self, config: ModelConfig, activation_checkpointing: bool = False) -> None:
        super().__init__()
        _check(config)
        self.config = config
        self.activation_checkpointing = activation_checkpointing
        self.objective: Callable[[Tensor, Tensor], Tensor] | None = None
        rows = padded_vocabulary(config.vocab_size)
        inside, outside = table_columns(config, "input"), table_columns(config, "output")
        self.token_embedding = nn.Embedding(rows, inside)
        if inside != config.n_embd:
            self.embedding_up = nn.Linear(inside, config.n_embd, bias=False)
        if not config.rope:
            self.position_embedding = nn.Embedding(config.context_length, config.n_embd)
        self.blocks = nn.ModuleList(Block(config, n, activation_checkpointing) for n in range(config.n_layer))
        self.final_norm = Norm(config.n_embd, bias=config.bias)
        if outside != config.n_embd:
            self.head_down = nn.Linear(config.n_embd, outside, bias=False)
        self.head = nn.Linear(outside, rows, bias=False)
        if config.tie_embeddings:
            self.head.weight = self.token_embedding.weight
        self._initialise(torch.initial_seed())
        with torch.no_grad():  # a padded row has no gradient, so it stays at zero under any weight decay
            self.token_embedding.weight[config.vocab_size :].zero_()
            self.head.weight[config.vocab_size :].zero_()
        self.loss_chunks = LOSS_CHUNKS
        self.compile_parts(False)

    def _initialise(self, seed: int) -> None:
        """Draws every tensor from a stream of its own, so that a bias or a layer more changes no other tensor."""
        draw = self._as_gpt2 if self.config.init == "gpt2" else self._as_torch
        for name, parameter in self.named_parameters():
            if self.config.zero_init and name.endswith(STARTS_AT_ZERO):
                nn.init.zeros_(parameter)
            else:
                draw(name, parameter, tensor_generator(seed, name))

    def _as_gpt2(self, name: str, parameter: Tensor, generator: torch.Generator) -> None:
        """Std 0.02, for residual projections over sqrt(2 n_layer): Radford et al. 2019, as in nanoGPT's model.py.

        It matters most with tied embeddings: from the framework's N(0, 1) the first loss is 484, not ln(vocab_size).
        """
        if parameter.dim() >= 2:
            residual = name.endswith(RESIDUAL)
            std = 0.02 / math.sqrt(2 * self.config.n_layer) if residual else 0.02
            if name.endswith(LOW_RANK):  # the product with its table has the same std as a whole table
                std = 1 / math.sqrt(self.config.embedding_rank)
            nn.init.normal_(parameter, std=std, generator=generator)
        elif name.endswith(".bias"):
            nn.init.zeros_(parameter)

    def _as_torch(self, name: str, parameter: Tensor, generator: torch.Generator) -> None:
        """The distributions of torch's own modules: tables N(0, 1), weights and biases of a linear layer uniform within
        1 / sqrt(fan_in) (`nn.Linear.reset_parameters`); norms stay as they are."""
        module = self.get_submodule(name.rpartition(".")[0])
        if isinstance(module, nn.Embedding):
            nn.init.normal_(parameter, generator=generator)
        elif isinstance(module, nn.Linear):
            bound = 1 / math.sqrt(module.in_features)
            nn.init.uniform_(parameter, -bound, bound, generator=generator)

    def compile_parts(self, enabled: bool) -> None:
        """Turns `torch.compile` on or off for the expensive parts: one block, and the loss of one chunk.

        One compiled block serves all layers: it compiles in a twelfth of the time, and because the backward stays one
        node per block, DDP still overlaps communication with computation.
        """
        self._run_block: Callable[[nn.Module, Tensor, Shared], tuple[Tensor, Tensor | None]] = _run_block
        self.loss_of_chunk: LossOfChunk = loss_and_gradient_in_place
        if enabled:
            leave_uncompiled(self)
            self._run_block = torch.compile(_run_block, dynamic=False)
            self.loss_of_chunk = torch.compile(loss_and_gradient)

    def forward(self, ids: Tensor, targets: Tensor | None = None) -> Tensor:
        """Mean cross-entropy in nats over all tokens (fp32 scalar), or the task's; without targets the logits.

        ids, targets: (batch, time) int64 with time <= context_length. Logits: (batch, time, vocab_size).
        """
        hidden = self.hidden(ids)
        if targets is None:
            return F.linear(self.before_head(hidden), self.head.weight)[..., : self.config.vocab_size]
        flat, flat_targets = hidden.view(-1, hidden.shape[-1]), targets.reshape(-1)
        if self.objective is not None:
            loss = self.objective(flat, flat_targets)
        else:
            flat, size = self.before_head(flat), self.config.vocab_size
            rows = loss_chunk_rows(self.head.weight.shape[0], len(flat), self.loss_chunks)
            loss = chunked_cross_entropy(flat, self.head.weight, flat_targets, size, self.loss_of_chunk, rows=rows)
        if self.training and self.config.experts:
            balance = self.config.balance_loss * balance_of(self)
            loss = loss + (balance - balance.detach())  # its gradient, not its value: losses stay comparable
        return loss

    def next_token_logits(self, ids: Tensor, reader: Reader | None = None) -> Tensor:
        """Logits (batch, vocab_size) after the last of ids (batch, time): what sampling needs. With a reader, ids are
        the tokens that it has not read yet."""
        last = self.before_head(self.hidden(ids, reader)[:, -1])
        return F.linear(last, self.head.weight)[..., : self.config.vocab_size]

    def before_head(self, hidden: Tensor) -> Tensor:
        """What the head's table is multiplied with: hidden itself, or its projection to the table's rank."""
        low = table_columns(self.config, "output") != self.config.n_embd
        return self.head_down(hidden) if low else hidden

    def hidden(self, ids: Tensor, reader: Reader | None = None) -> Tensor:
        """What the last norm leaves of ids (batch, time): (batch, time, n_embd)."""
        time = ids.shape[1] + (reader.length if reader else 0)
        if time > self.config.context_length:
            raise ValueError(f"{time} tokens do not fit the model's context of {self.config.context_length}")
        positions = reader.reading(ids.shape[1]) if reader else torch.arange(time, device=ids.device)
        x, shared = self._embedded(ids, positions)
        for number, block in enumerate(self.blocks):
            if reader is not None:
                x, values = block(x, reader.layers[number], shared)
            elif self.activation_checkpointing and self.training:
                x, values = checkpoint(self._run_block, block, x, shared, use_reentrant=False)
            elif self.training:
                x, values = self._run_block(block, x, shared)
            else:  # validation and sampling stay eager: their shapes and modes would be compiled again
                x, values = block(x, shared=shared)
            if values is not None:
                shared = shared._replace(values=values)
        if reader is not None:
            reader.read(ids.shape[1])
        return self.final_norm(x)  # type: ignore[no-any-return]

    def _embedded(self, ids: Tensor, positions: Tensor) -> tuple[Tensor, Shared]:
        """What goes into the first block, and what all blocks share."""
        x, config = self.token_embedding(ids), self.config
        if table_columns(config, "input") != config.n_embd:
            x = self.embedding_up(x)
        if config.rope:
            shared = Shared(rotation(positions, config.n_embd // config.n_head))
        else:
            x, shared = x + self.position_embedding(positions), Shared()
        return F.dropout(x, config.dropout, self.training), shared

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.head.weight.device

    def parameter_count(self) -> int:
        """Trainable parameters, padding not counted: 163,009,536 for GPT-2 small untied, 124,412,160 tied."""
        padding = self.token_embedding.num_embeddings - self.config.vocab_size
        columns = table_columns(self.config, "input")
        columns += 0 if self.config.tie_embeddings else table_columns(self.config, "output")
        return sum(p.numel() for p in self.parameters()) - padding * columns

    def unpadded_state(self) -> dict[str, Tensor]:
        """Parameters by name with exactly vocab_size rows; a tied head is not listed twice. Views, not copies."""
        return {name: self.unpad(name, p.detach()) for name, p in self.named_parameters()}

    def load_unpadded_state(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of unpadded_state, in place. ValueError names the first tensor that does not fit."""
        own = self.unpadded_state()
        for name in sorted(own.keys() ^ state.keys()):
            raise ValueError(f"tensor {name} is {'missing' if name in own else 'not part of this model'}")
        for name, target in own.items():
            if state[name].shape != target.shape:
                raise ValueError(f"tensor {name} has shape {tuple(state[name].shape)}, expected {tuple(target.shape)}")
            target.copy_(state[name])

    def unpad(self, name: str, tensor: Tensor) -> Tensor:
        """Strips the padded rows of a tensor shaped like the parameter `name` (also its optimizer state)."""
        return tensor[: self.config.vocab_size] if name in VOCABULARY_TABLES and tensor.dim() == 2 else tensor

    def pad(self, name: str, tensor: Tensor) -> Tensor:
        """The inverse of unpad: adds rows of zeros."""
        if name not in VOCABULARY_TABLES or tensor.dim() != 2:
            return tensor
        return F.pad(tensor, (0, 0, 0, self.token_embedding.num_embeddings - tensor.shape[0]))


def tensor_generator(seed: int, name: str) -> torch.Generator:
    """The random stream of one tensor's initial values: seeded by SHA-256 of the run's seed and the tensor's name."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


RESIDUAL = ("attention_out.weight", "mlp_down.weight")
"""The projections that add into the residual stream."""
LOW_RANK = ("embedding_up.weight", "head_down.weight")
"""The projections beside the tables of low rank."""
STARTS_AT_ZERO = (*RESIDUAL, "head.weight")
VOCABULARY_TABLES = ("token_embedding.weight", "head.weight")
LossOfChunk = Callable[[Tensor, Tensor, Tensor, int], tuple[Tensor, Tensor]]


def padded_vocabulary(vocab_size: int) -> int:
    """vocab_size rounded up to a multiple of 128: 50,257 becomes 50,304 (1.14x on an A100, measured by Raschka)."""
    return -(-vocab_size // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE


def _run_block(block: nn.Module, x: Tensor, shared: Shared) -> tuple[Tensor, Tensor | None]:
    return block(x, shared=shared)  # type: ignore[no-any-return]


def _check(config: ModelConfig) -> None:
    if config.n_embd % config.n_head:
        raise ContractError(f"model.n_embd {config.n_embd} is not divisible by model.n_head {config.n_head}")
    if config.init not in ("gpt2", "torch"):
        raise ContractError(f"model.init must be gpt2 or torch, got {config.init!r}")
    if config.activation not in ("gelu", "relu2"):
        raise ContractError(f"model.activation must be gelu or relu2, got {config.activation!r}")
    check_experts_and_tables(config)
    if config.rope and config.n_embd // config.n_head % 2:
        raise ContractError(f"model.rope needs heads of an even width, got {config.n_embd // config.n_head}")


def loss_and_gradient(hidden: Tensor, weight: Tensor, targets: Tensor, vocab_size: int) -> tuple[Tensor, Tensor]:
    """Summed cross-entropy of some rows, and its gradient by the logits: softmax minus one-hot.

    hidden (rows, n_embd), weight (padded, n_embd), targets (rows,) -> scalar fp32, (rows, padded) in hidden's dtype.
    Padded columns get probability zero, hence gradient zero. Written for `torch.compile`, which fuses all of it.
    """
    logits = (hidden @ weight.T).float()
    columns = torch.arange(weight.shape[0], device=weight.device)
    logits = logits.masked_fill(columns >= vocab_size, -torch.inf)
    log_normaliser = logits.logsumexp(dim=-1, keepdim=True)
    loss = (log_normaliser.squeeze(-1) - logits.gather(1, targets[:, None]).squeeze(-1)).sum()
    gradient = (logits - log_normaliser).exp() - (columns == targets[:, None]).float()
    return loss, gradient.to(hidden.dtype)


def loss_and_gradient_in_place(
    hidden: Tensor, weight: Tensor, targets: Tensor, vocab_size: int
) -> tuple[Tensor, Tensor]:
    """loss_and_gradient for eager mode: three passes over the logits instead of ten."""
    logits = hidden @ weight.T
    logits[:, vocab_size:] = -torch.inf
    log_probabilities = F.log_softmax(logits, dim=-1, dtype=torch.float32)
    loss = -log_probabilities.gather(1, targets[:, None]).sum()
    gradient = log_probabilities.exp_()
    gradient.scatter_add_(1, targets[:, None], gradient.new_full((len(targets), 1), -1.0))
    return loss, gradient.to(hidden.dtype)


def chunked_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    vocab_size: int,
    loss_of_chunk: LossOfChunk = loss_and_gradient_in_place,
    *,
    rows: int | None = None,
) -> Tensor:
    """Mean cross-entropy in nats of hidden (tokens, n_embd) @ weight.T against targets (tokens,); fp32 scalar.

    `rows` at a time: the logits of all tokens (196 MB per 1,024-token sequence in fp32) need not exist at once.
    """
    loss: Tensor = _ChunkedCrossEntropy.apply(
        hidden,
        weight,
        targets,
        vocab_size,
        loss_of_chunk,
        torch.is_grad_enabled(),
        rows or loss_chunk_rows(weight.shape[0], len(hidden)),
    )  # type: ignore[no-untyped-call]
    return loss


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Computes the gradients in the forward pass, chunk by chunk: it keeps no logits and recomputes none.

    The idea is Liger's fused linear cross-entropy (arXiv 2410.10989), in plain PyTorch. The gradient of the logits is
    kept unscaled until the end, so fp16 does not lose it to the division by the number of tokens.
    """

    @staticmethod
    def forward(  # noqa: PLR0917 - autograd hands the arguments over by position
        ctx: torch.autograd.function.FunctionCtx,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        vocab_size: int,
        loss_of_chunk: LossOfChunk,
        learning: bool,
        rows: int,
    ) -> Tensor:
        kind = hidden.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
        narrow, table = hidden.to(dtype), weight.to(dtype)
        by_hidden = torch.empty_like(narrow) if learning else None
        by_weight = torch.zeros_like(weight, dtype=torch.float32) if learning else None  # FSDP's weight is bf16
        total = torch.zeros((), device=hidden.device)
        for start in range(0, len(narrow), rows):
            part = slice(start, start + rows)
            if by_hidden is None or by_weight is None:
                total += F.cross_entropy(
                    (narrow[part] @ table.T)[:, :vocab_size].float(), targets[part], reduction="sum"
                )
                continue
            loss, by_logits = loss_of_chunk(narrow[part], table, targets[part], vocab_size)
            total += loss
            torch.mm(by_logits, table, out=by_hidden[part])
            if by_weight.dtype == by_logits.dtype:
                by_weight.addmm_(by_logits.T, narrow[part])
            else:
                by_weight += by_logits.T @ narrow[part]
        ctx.gradients = (by_hidden, by_weight, hidden.dtype)  # type: ignore[attr-defined]
        return total / len(narrow)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: torch.autograd.function.FunctionCtx, by_loss: Tensor
    ) -> tuple[Tensor, Tensor, None, None, None, None, None]:
        by_hidden, by_weight, dtype = ctx.gradients  # type: ignore[attr-defined]
        del ctx.gradients  # type: ignore[attr-defined]  # the last reference: autograd takes the head's without a copy
        scale = by_loss / len(
            by_hidden
        )  # in place: these are ours alone, and the head's is the largest tensor there is
        return by_hidden.to(dtype).mul_(scale), by_weight.mul_(scale), None, None, None, None, None
