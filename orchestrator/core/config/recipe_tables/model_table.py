"""The recipe's [model] table: trainer.contract.ModelConfig with ranges and help.

Model(n_layer=6).config()
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from orchestrator.core.config.toml_tables import Line, Table
from trainer.contract import ModelConfig


class Model(Table):
    """Shape and initialisation of the GPT-2."""

    vocab_size: int = Field(default=ModelConfig.vocab_size, ge=2, le=10_000_000)
    """Number of token ids."""
    context_length: int = Field(default=ModelConfig.context_length, ge=2, le=1_000_000)
    """Tokens per sequence."""
    n_layer: int = Field(default=ModelConfig.n_layer, ge=1, le=1_000)
    """Transformer blocks."""
    n_head: int = Field(default=ModelConfig.n_head, ge=1, le=1_000)
    """Attention heads; must divide n_embd."""
    n_embd: int = Field(default=ModelConfig.n_embd, ge=1, le=100_000)
    """Width of the residual stream."""
    dropout: float = Field(default=ModelConfig.dropout, ge=0, lt=1)
    """Dropout probability after the embedding, attention and MLP."""
    qkv_bias: bool = ModelConfig.qkv_bias
    """Bias of the query, key and value projections."""
    bias: bool = ModelConfig.bias
    """Bias of the attention output and MLP projections, and of the LayerNorms."""
    attention_out_bias: bool | None = ModelConfig.attention_out_bias
    """Bias of the attention output alone; absent: as `bias`."""
    tie_embeddings: bool = ModelConfig.tie_embeddings
    """Whether the output head shares the token embedding's weights."""
    init: Literal["gpt2", "torch"] = "gpt2"
    """`gpt2`: std 0.02, residual projections scaled by 1/sqrt(2 n_layer). `torch`: the framework's defaults."""
    zero_init: bool = ModelConfig.zero_init
    """Residual projections, and a head that is not tied, start at zero."""
    rope: bool = ModelConfig.rope
    """Rotary positions in place of learned ones. No longer a GPT-2: exports as `safetensors` only."""
    qk_norm: bool = ModelConfig.qk_norm
    """Queries and keys of root mean square 1. No longer a GPT-2: exports as `safetensors` only."""
    activation: Literal["gelu", "relu2"] = "gelu"
    """Of the MLP; `relu2`, ReLU squared, is no longer a GPT-2: exports as `safetensors` only."""
    value_residual: bool = ModelConfig.value_residual
    """Later blocks mix in the first one's values. No longer a GPT-2: exports as `safetensors` only."""
    init_from: Line | None = None
    """Begins with the weights of a run (`RUN`, `RUN@STEP`), a model of the Hub (`hf://OWNER/NAME`) or a folder, at step
    0, with a fresh optimizer and this recipe's schedule; without it: with random weights."""
    experts: int = Field(default=ModelConfig.experts, ge=0, le=1_024)
    """MLPs of a block, of which a router picks `active_experts` for each token; 0: one MLP. No longer a GPT-2: exports
    as `safetensors` only."""
    active_experts: int = Field(default=ModelConfig.active_experts, ge=1, le=1_024)
    """Experts that each token is sent to."""
    balance_loss: float = Field(default=ModelConfig.balance_loss, ge=0, le=100)
    """Factor of the auxiliary loss that spreads tokens over the experts."""
    embedding_rank: int = Field(default=ModelConfig.embedding_rank, ge=0, le=100_000)
    """Tables over the vocabulary are products through so many columns; 0: whole. No longer a GPT-2: exports as
    `safetensors` only."""
    low_rank: Literal["input", "output", "both"] = "both"
    """Which tables have that rank."""

    @model_validator(mode="after")
    def _experts_and_tables_fit(self) -> Self:
        if self.experts and self.active_experts > self.experts:
            raise ValueError(f"active_experts = {self.active_experts} are more than experts = {self.experts}")
        if self.embedding_rank >= self.n_embd:
            raise ValueError(f"embedding_rank = {self.embedding_rank} must be below n_embd = {self.n_embd}")
        if self.tie_embeddings and self.embedding_rank and self.low_rank != "both":
            raise ValueError('tie_embeddings needs tables of one shape: low_rank = "both"')
        return self

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Self:
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd = {self.n_embd} does not divide into n_head = {self.n_head} heads")
        if self.rope and self.n_embd // self.n_head % 2:
            raise ValueError(f"rope needs heads of an even width, and n_embd / n_head is {self.n_embd // self.n_head}")
        return self

    def config(self) -> ModelConfig:
        """The same as the trainer's value."""
        return ModelConfig(**self.model_dump(exclude={"init_from"}))
