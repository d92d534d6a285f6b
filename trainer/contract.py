"""The contract between the trainer and the program that starts it: config.json. What a run leaves behind: run_files.py.

Standard library only: orchestrator and trainer both build it, and neither loads the other for that.

Example, a run folder made by hand::

    config = RunConfig(data=DataConfig(train_files=("/data/train.bin",)), train=TrainConfig(steps=100, micro_batch=4))
    (Path("run") / "config.json").write_text(config.to_json())      # then: torchrun -m trainer run
"""

from __future__ import annotations

import dataclasses
import json
import typing
from dataclasses import dataclass, field

from trainer.config.config_tables import ContractError as ContractError
from trainer.config.config_tables import RateFactors, Stage, build
from trainer.config.task_config import SamplingConfig, TaskConfig
from trainer.run_files import Retention


@dataclass(frozen=True)
class ModelConfig:
    """Shape and initialisation of a GPT-2 (pre-LayerNorm, learned positions, tanh GELU)."""

    vocab_size: int = 50257
    context_length: int = 1024
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    dropout: float = 0.0
    qkv_bias: bool = False
    bias: bool = True  # of the attention output and MLP projections, and of the LayerNorms
    tie_embeddings: bool = False
    init: str = "gpt2"
    """`gpt2`: std 0.02, residual projections scaled by 1/sqrt(2 n_layer). `torch`: framework defaults."""
    zero_init: bool = False
    """Residual projections, and a head that is not tied, start at zero."""
    rope: bool = False
    """Rotary positions in place of learned ones."""
    qk_norm: bool = False
    """Queries and keys have a root mean square of 1."""
    activation: str = "gelu"
    """Of the MLP: `gelu` (tanh) or `relu2`, ReLU squared."""
    value_residual: bool = False
    """Later blocks mix the first block's values into theirs, by a learned share each."""
    attention_out_bias: typing.Optional[bool] = None
    """Of the attention output alone; None: as `bias`."""
    experts: int = 0
    """MLPs of a block, of which a router picks active_experts for each token; 0: one MLP and no router."""
    active_experts: int = 2
    balance_loss: float = 0.01
    """Factor of the auxiliary loss that spreads tokens over the experts; the loss that is written leaves it out."""
    embedding_rank: int = 0  # columns through which tables over the vocabulary are products; 0: they are whole
    low_rank: str = "both"  # which of these tables: `input`, `output` or `both`


@dataclass(frozen=True)
class DataConfig:
    """Where the tokens are, on the machine that trains. Files are memory-mapped, several are one stream."""

    train_files: typing.Tuple[str, ...] = ()
    validation_files: typing.Tuple[str, ...] = ()
    """Empty: the end of the training stream is held out."""
    start_token: int = 0
    tokens: typing.Optional[int] = None
    """Length of the training window in tokens; None: everything after start_token that is not held out."""
    order: str = "sequential"
    """`sequential` or `shuffled`; further epochs are always reshuffled."""
    validation_start_token: int = 0
    """Offset within validation_files; without such files the slice is the end of the training stream."""
    validation_tokens: int = 0
    """0 switches validation off. A slice held out of the training stream takes one token more: its last target."""
    tokenizer: str = "gpt2"  # only to decode samples: `bytes` (257 ids, no vocabulary download) or a tiktoken name
    dtype: typing.Optional[str] = None
    """`uint16` or `uint32`: that of headerless files, where the recipe vouches for them."""


@dataclass(frozen=True)
class TrainConfig:
    """How long and how to train. The global batch never depends on the machine; micro_batch does."""

    steps: int = 0
    global_batch: int = 96
    """Sequences per optimizer step over all ranks."""
    stages: typing.Tuple[Stage, ...] = ()
    """First parts of the training with another batch or shorter sequences; after the last, global_batch sequences of
    the model's context_length. Arithmetic: trainer/arithmetic/schedule.py."""
    micro_batch: int = 1
    """Sequences per forward pass of one rank; accumulation = global_batch / (micro_batch * ranks)."""
    optimizer: str = "adamw"
    """`adamw` or `muon` (Muon for the hidden matrices, AdamW for the rest)."""
    split_qkv: bool = False
    """Muon makes the query, key and value projections of a block orthogonal each by itself."""
    betas: typing.Tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.01
    decay: str = "matrices"
    """`matrices`: weight decay on tensors with two dimensions or more; `all`: on every tensor."""
    learning_rate: float = 1.4e-3
    schedule: str = "cosine"
    """`constant`, `cosine`, `linear` or `wsd` (warmup, stable, decay)."""
    decay_fraction: float = 0.2
    """Of `wsd`: the last part of the steps after the warm-up, in which the rate falls (arXiv 2404.06395: 10-20 %)."""
    rate_factors: RateFactors = field(default_factory=RateFactors)
    warmup_fraction: float = 0.05
    min_learning_rate_fraction: float = 0.1
    grad_clip: typing.Optional[float] = None
    precision: str = "bf16"
    """`bf16`, `fp16` (with a gradient scaler), `fp32`. A card without bf16 trains in fp16, with a warning event."""
    tf32: bool = True
    compile: typing.Optional[bool] = None
    """None: on for CUDA, off on CPU."""
    require_compile: bool = False
    """Where it cannot be compiled, fail at the start: on a machine you pay for."""
    activation_checkpointing: bool = False
    parallel: str = "ddp"  # how ranks share: `ddp`, or `fsdp`, which cuts weights, gradients and optimizer state
    zero_stage: int = 0  # 1: a rank keeps the optimizer state of its share of the weights only (arXiv 1910.02054)
    reduce_dtype: str = "fp32"
    """Of gradients on their way between ranks: `fp32`, or `bf16` for half the traffic."""
    seed: int = 42
    log_every: int = 10
    checkpoint_every: int = 617
    validate_every: int = 617
    """Only validated checkpoints can become the best: set both equal, or one to a multiple of the other."""
    max_nonfinite_steps: int = 10  # in a row with non-finite gradients, after which the run fails
    skip_back: bool = False  # after that the next start goes back to a checkpoint before them, and skips their batches
    process_group_timeout_s: float = 600.0


@dataclass(frozen=True)
class RetentionConfig:
    """Which checkpoints are kept: best, the newest keep_last, and every keep_every steps (0: none)."""

    keep_last: int = Retention().keep_last
    keep_every: int = Retention().keep_every
    require_safe: bool = False
    """Delete only folders with a SAFE mark, unless the disk is too small for the next checkpoint."""


@dataclass(frozen=True)
class RunConfig:
    """config.json, with every value resolved."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    task: TaskConfig = field(default_factory=TaskConfig)
    retention: RetentionConfig = field(default_factory=RetentionConfig)
    init_from: typing.Optional[str] = None  # a checkpoint folder: its weights alone, at step 0
    lineage: typing.Dict[str, typing.Any] = field(default_factory=dict)  # "source", "from_step", "before", "origin"
    resume_from: typing.Optional[str] = None
    """A checkpoint folder to continue from, unless the run has its own."""
    peak_flops_per_gpu: float = 0.0
    """Dense peak FLOP/s of this GPU in the chosen precision; 0: unknown."""
    device: str = "auto"
    """`auto`, `cuda` or `cpu`."""
    prompts: typing.Tuple[str, ...] = ()  # sampled once at the end by rank 0
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    slices: typing.Tuple[typing.Tuple[int, int], ...] = ()
    """Pairs of first token and length in the validation files, else in the training stream: measured after the end."""

    def to_json(self) -> str:
        """The text of config.json."""
        return json.dumps(dataclasses.asdict(self), indent=1) + "\n"

    @staticmethod
    def from_json(text: str) -> RunConfig:
        """Parses config.json. Raises ContractError for invalid JSON, an unknown key or a wrong type."""
        try:
            value = json.loads(text)
        except ValueError as error:
            raise ContractError("config.json is not JSON: %s" % error) from error
        return typing.cast(RunConfig, build(RunConfig, value, ""))
