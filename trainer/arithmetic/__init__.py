"""The arithmetic of a GPT-2 run: parameters, floating-point operations, memory, and the split of a batch over GPUs.

Standard library only and clean for Python 3.8: `gptctl plan` calls it on a laptop without torch. It must not measure
anything; trainer/probe.py measures, and its result replaces `memory_gib` where it ran.

Example, the reference job on eight 40 GB cards::

    from trainer.arithmetic import chinchilla_tokens, largest_micro_batch, split_batch, steps_for
    from trainer.contract import ModelConfig
    model = ModelConfig()                                             # 163,009,536 parameters, head untied
    steps = steps_for(chinchilla_tokens(model), 96, 1024)             # 33,165
    micro_batch = largest_micro_batch(model, share=96 // 8, free_gib=39.0)   # 12 sequences at once
    accumulation = split_batch(96, ranks=8, micro_batch=12)           # 1
"""

from __future__ import annotations

import dataclasses
import typing

from trainer.contract import ModelConfig

GIB = 1024**3
VOCABULARY_MULTIPLE = 128
"""The model pads its vocabulary to this multiple internally: the head's matrix product then fills the tensor cores."""

RESERVED_GIB = 0.5
"""CUDA context and cuBLAS work space of one process."""
NCCL_GIB = 0.3
"""Buffers of NCCL, where there is more than one rank."""
FRAGMENTATION = 1.08
"""The caching allocator holds more than is live; 3 to 8 % in steady training; this is the upper end."""
LOSS_CHUNK_FEWEST_BYTES = 64 * 1024**2
"""Below this size of fp32 logits a chunk of the loss saves little memory and costs time."""
LOSS_CHUNKS = 8
"""Otherwise the logits of a micro-batch are cut into this many chunks. Each adds into the head's whole gradient, so
many small ones would cost time: a fixed number keeps memory and additions in proportion."""
FEWER_LOSS_CHUNKS = (1, 2, 4)
"""Where a card's memory is free anyway: an addition less is 464 MB of traffic less for GPT-2's head."""
FILLED = 0.7
"""Of a card's free memory, up to which chunks of the loss are made larger."""


def parameter_count(model: ModelConfig) -> int:
    """Trainable parameters; the internal padding of the vocabulary does not count.

    768/12/12 with a vocabulary of 50,257 and context 1,024: 163,009,536 untied, 124,412,160 tied.
    """
    width = model.n_embd
    positions = 0 if model.rope else model.context_length * width
    tables = model.vocab_size * table_columns(model, "input") + _projection(model, "input")
    head = 0 if model.tie_embeddings else model.vocab_size * table_columns(model, "output")
    norm = 2 * width if model.bias else width
    biases = 3 * width if model.qkv_bias else 0
    biases += width if has_attention_out_bias(model) else 0
    mlp = 8 * width * width + (5 * width if model.bias else 0)
    layer = 4 * width * width + biases + 2 * norm + (model.experts * (mlp + width) if model.experts else mlp)
    mixes = model.n_layer - 1 if model.value_residual else 0
    return positions + tables + model.n_layer * layer + norm + head + _projection(model, "output") + mixes


def active_parameter_count(model: ModelConfig) -> int:
    """Parameters that one token meets, without those of the experts that it is not sent to. 6 experts, 2 active, on the
    untied GPT-2 small: 219.7 of 446.4 million."""
    if not model.experts:
        return parameter_count(model)
    mlp = 8 * model.n_embd**2 + (5 * model.n_embd if model.bias else 0)
    return parameter_count(model) - model.n_layer * (model.experts - model.active_experts) * mlp


def table_columns(model: ModelConfig, side: str) -> int:
    """Columns of the table over the vocabulary at that side (`input`, `output`): n_embd, or the rank of its product."""
    return model.embedding_rank if model.embedding_rank and model.low_rank in (side, "both") else model.n_embd


def _projection(model: ModelConfig, side: str) -> int:
    """Parameters of the matrix between a table of low rank and the width; 0 for a whole table."""
    columns = table_columns(model, side)
    return 0 if columns == model.n_embd else columns * model.n_embd


def block_matrices(model: ModelConfig, active: bool = False) -> int:
    """Parameters of one block's matrices; `active`: of those that one token meets."""
    mlps = (model.active_experts if active else model.experts) if model.experts else 1
    return model.n_embd**2 * (4 + 8 * mlps) + model.experts * model.n_embd


def has_attention_out_bias(model: ModelConfig) -> bool:
    """Whether the attention output has a bias: as it is told, else as all other projections."""
    return model.bias if model.attention_out_bias is None else model.attention_out_bias


def matmul_parameters(model: ModelConfig) -> int:
    """Parameters that take part in a matrix product for every token: 123,532,032 for GPT-2 small, tied or not.

    Embedding look-ups, biases and norms count zero; the head counts even where it shares the embedding's tensor.
    """
    blocks = model.n_layer * block_matrices(model, active=True)
    projections = _projection(model, "input") + _projection(model, "output")
    return blocks + projections + model.vocab_size * table_columns(model, "output")


def flop_per_token(model: ModelConfig) -> int:
    """Training FLOP per token, forward and backward: 6 N_mm + 12 L d T (854,438,400 for GPT-2 small).

    Formula: PaLM, appendix B (arXiv 2204.02311), as nanoGPT's `estimate_mfu` has it. Causal attention is counted
    as if the whole T x T matrix were computed, recomputed activations are not counted: MFU compares across trainers.
    RoPE, QK-norm, ReLU squared and value residuals add no product of matrices, hence nothing.
    """
    return 6 * matmul_parameters(model) + 12 * model.n_layer * model.n_embd * model.context_length


def chinchilla_tokens(model: ModelConfig) -> int:
    """20 tokens per parameter (Hoffmann et al., arXiv 2203.15556): 3,260,190,720 for the untied GPT-2 small."""
    return 20 * parameter_count(model)


def steps_for(tokens: int, global_batch: int, context_length: int) -> int:
    """Optimizer steps that see at least `tokens` tokens, rounded up to a whole global batch. ValueError below 1."""
    if tokens < 1 or global_batch < 1 or context_length < 1:
        raise ValueError(
            "tokens, global_batch and context_length must be at least 1, got %d, %d and %d"
            % (tokens, global_batch, context_length)
        )
    return -(-tokens // (global_batch * context_length))


def split_batch(global_batch: int, ranks: int, micro_batch: int) -> int:
    """Accumulation: how many micro-batches each rank adds up per optimizer step.

    Raises ValueError, naming the nearest global batch that divides, when ranks x micro_batch does not divide it.
    """
    if global_batch < 1 or ranks < 1 or micro_batch < 1:
        raise ValueError(
            "global_batch, ranks and micro_batch must be at least 1, got %d, %d and %d"
            % (global_batch, ranks, micro_batch)
        )
    unit = ranks * micro_batch
    if global_batch % unit:
        raise ValueError(
            "a global batch of %d does not divide into %d ranks x micro-batch %d = %d; the nearest that does is %d"
            % (global_batch, ranks, micro_batch, unit, nearest_global_batch(global_batch, unit))
        )
    return global_batch // unit


def nearest_global_batch(global_batch: int, unit: int) -> int:
    """The multiple of `unit` nearest to global_batch, at least one unit; halfway goes up."""
    return max(1, (2 * global_batch + unit) // (2 * unit)) * unit


def divisors(number: int) -> typing.List[int]:
    """All divisors of a positive number, largest first: the micro-batches a rank's share can be cut into."""
    return [candidate for candidate in range(number, 0, -1) if number % candidate == 0]


def largest_micro_batch(
    model: ModelConfig,
    share: int,
    free_gib: float,
    precision: str = "bf16",
    *,
    activation_checkpointing: bool = False,
    optimizer: str = "adamw",
    ranks: int = 2,
    zero_stage: int = 0,
    parallel: str = "ddp",
) -> typing.Optional[int]:
    """The largest divisor of a rank's share of the global batch (sequences) that fits into free_gib, or None.

    free_gib is the memory free on the card before the trainer starts, not the figure of the data sheet.
    """
    for candidate in divisors(share) if share > 0 else []:
        needed = memory_gib(
            model, candidate, precision, activation_checkpointing, optimizer, ranks=ranks, zero_stage=zero_stage,
            parallel=parallel,
        )  # fmt: skip
        if needed <= free_gib:
            return candidate
    return None


def memory_gib(
    model: ModelConfig,
    micro_batch: int,
    precision: str = "bf16",
    activation_checkpointing: bool = False,
    optimizer: str = "adamw",
    *,
    ranks: int = 2,
    zero_stage: int = 0,
    parallel: str = "ddp",
    loss_chunks: int = LOSS_CHUNKS,
) -> float:
    """Predicted peak memory of one rank on a CUDA card, in GiB: state + activations of the micro-batch + the loss.

    Structure after Korthikanti et al. (arXiv 2205.05198), with the bytes of *our* kernels: attention is fused, so no
    T x T scores are kept; the residual stream is fp32 under autocast; the loss goes in chunks, so no logits are kept.
    GPT-2 small in bf16 without dropout: 0.37 GiB per further sequence of 1,024 tokens. Raschka's fused trainer, which
    keeps the logits, took 0.55 GiB on an A100 (28 more sequences: 5.9 to 22.5 GB), the unfused reference trainer 2.35.
    GPT-2 124M in fp32 with dropout fits 4 GB, where such a run was published. A prediction: the probe measures.
    """
    tokens = micro_batch * model.context_length
    if parallel == "fsdp" and ranks > 1:
        live = _cut_bytes(model, precision, ranks)
    else:
        live = _state_bytes(model, precision, optimizer, ranks if zero_stage else 1)
        if ranks > 1 and not zero_stage:  # what several micro-batches add up lies beside DDP's buckets
            live += 4 * parameter_count(model)
    live += tokens * _activation_bytes(model, precision, activation_checkpointing)
    live += _loss_bytes(model, tokens, precision, loss_chunks)
    return RESERVED_GIB + (NCCL_GIB if ranks > 1 else 0.0) + FRAGMENTATION * live / GIB


class Kept(typing.Protocol):
    """Settings of a training by which its memory is predicted: a TrainConfig, or a recipe's."""

    @property
    def precision(self) -> str: ...
    @property
    def activation_checkpointing(self) -> bool: ...
    @property
    def optimizer(self) -> str: ...
    @property
    def zero_stage(self) -> int: ...
    @property
    def parallel(self) -> str: ...


def fewest_loss_chunks(model: ModelConfig, micro_batch: int, free_gib: float, train: Kept, ranks: int) -> int:
    """Into how many chunks the loss is cut on a card with free_gib: as few as leave a third of it free.

    fp16 keeps small ones, because a chunk's part of the head's gradient is summed over its rows in fp16.
    """
    for chunks in FEWER_LOSS_CHUNKS if train.precision != "fp16" else ():
        needed = memory_gib(
            model,
            micro_batch,
            train.precision,
            train.activation_checkpointing,
            train.optimizer,
            ranks=ranks,
            zero_stage=train.zero_stage,
            parallel=train.parallel,
            loss_chunks=chunks,
        )
        if needed <= FILLED * free_gib:
            return chunks
    return LOSS_CHUNKS


def _state_bytes(model: ModelConfig, precision: str, optimizer: str, shares: int) -> float:
    """Weights, gradients and optimizer state in fp32, and autocast's half-precision copy of the matrices. Under ZeRO
    a rank has one of `shares` parts of AdamW's state, and of the reduced gradients besides."""
    columns = table_columns(model, "input") + (0 if model.tie_embeddings else table_columns(model, "output"))
    padding = (padded_vocabulary(model) - model.vocab_size) * columns
    idle = model.n_layer * (block_matrices(model) - block_matrices(model, active=True))
    copy = 0 if precision == "fp32" else 2 * (matmul_parameters(model) + idle)
    parameters = parameter_count(model) + padding
    hidden_matrices = model.n_layer * block_matrices(model) if optimizer == "muon" else 0
    kept = _optimizer_bytes(model, optimizer) - 4 * hidden_matrices
    reduced = 4 * (parameters - hidden_matrices) if shares > 1 else 0
    return parameters * 8 + 4 * hidden_matrices + (kept + reduced) / shares + copy


def _cut_bytes(model: ModelConfig, precision: str, ranks: int) -> float:
    """FSDP: a share of fp32 weights, gradients and AdamW's moments; gathered, in the compute type, the tables with what
    else is in no block, and two blocks: that which computes and the next; and the gradients of a block and of the head,
    whole, until they are reduced in fp32."""
    size = 4 if precision == "fp32" else 2
    columns = table_columns(model, "input") + (0 if model.tie_embeddings else table_columns(model, "output"))
    parameters = parameter_count(model) + (padded_vocabulary(model) - model.vocab_size) * columns
    block = (parameter_count(model) - outside_blocks(model)) / model.n_layer
    outside = parameters - model.n_layer * block
    head = padded_vocabulary(model) * table_columns(model, "output") * (size if size == 2 else 0)
    return 16 * parameters / ranks + size * (outside + 2 * block) + (size + 4) * block + head


def outside_blocks(model: ModelConfig) -> int:
    """Parameters of the tables, the last norm and what else is in no block, without padding."""
    return parameter_count(dataclasses.replace(model, n_layer=0, value_residual=False))


def _activation_bytes(model: ModelConfig, precision: str, activation_checkpointing: bool) -> float:
    """Bytes kept for the backward pass, per token, over all layers.

    Per layer in units of n_embd values: 2 norm inputs (fp32 always), and in the compute type 2 norm outputs, q, k, v,
    the attention's output and its re-laid copy, and the 4-wide MLP twice, before and after GELU: 15 values.
    An expert keeps its 8, and its tokens gathered and its output. Dropout keeps three masks of a byte. Checkpointing
    keeps each layer's fp32 input and recomputes one layer.
    """
    width, size = model.n_embd, 4 if precision == "fp32" else 2
    values = 7 + 10 * model.active_experts if model.experts else 15
    layer = width * (2 * 4 + values * size + (3 if model.dropout else 0)) + 4 * model.n_head
    # Queries and keys before their norm in fp32 and after it, again after their rotation; values before they are mixed.
    options = (2 * 4 + 2 * size if model.qk_norm else 0) + (2 * size if model.rope else 0)
    layer += width * (options + (size if model.value_residual else 0))
    stream = width * 4
    return model.n_layer * stream + layer if activation_checkpointing else model.n_layer * layer + 2 * stream


def _loss_bytes(model: ModelConfig, tokens: int, precision: str, chunks: int) -> float:
    """Working memory of the chunked loss: about 18 bytes per logit of one chunk, the head's gradient once more, and in
    half precision copies of the head and of the hidden states."""
    size, copy = (4, 0) if precision == "fp32" else (2, 2)
    columns = padded_vocabulary(model)
    chunk = min(loss_chunk_rows(columns, tokens, chunks), tokens) * columns * 18
    width = table_columns(model, "output")
    return chunk + columns * width * (4 + copy) + tokens * width * (size + copy)


def loss_chunk_rows(columns: int, tokens: int, chunks: int = LOSS_CHUNKS) -> int:
    """Tokens whose logits over `columns` (the padded vocabulary) the loss computes at once: a multiple of 128."""
    rows = max(-(-tokens // chunks), LOSS_CHUNK_FEWEST_BYTES // (columns * 4), 1)
    return -(-rows // 128) * 128


def padded_vocabulary(model: ModelConfig) -> int:
    """Rows of the embedding and the head inside the model: 50,304 for GPT-2's vocabulary."""
    return -(-model.vocab_size // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE


def checkpoint_bytes(model: ModelConfig, optimizer: str = "adamw", weights_only: bool = False) -> int:
    """Size of a checkpoint in bytes: fp32 weights and optimizer state; 1.96 GB full, 0.65 GB weights only for 163M.

    A fixed 200 kB for headers, random-number states and the JSON files is included.
    """
    weights = 4 * parameter_count(model) + 200_000
    return weights if weights_only else weights + _optimizer_bytes(model, optimizer)


def _optimizer_bytes(model: ModelConfig, optimizer: str) -> int:
    """AdamW keeps two fp32 moments per parameter; Muon one momentum for the layers' matrices, AdamW for the rest."""
    hidden_matrices = model.n_layer * block_matrices(model) if optimizer == "muon" else 0
    return 8 * parameter_count(model) - 4 * hidden_matrices
