"""Each option of the block against the model written out plainly here, and the arithmetic against the model."""

import dataclasses
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from tests.support.files.small_runs import TINY
from trainer.arithmetic import checkpoint_bytes, flop_per_token, memory_gib, parameter_count
from trainer.config.task_config import LoraConfig
from trainer.contract import ContractError, ModelConfig
from trainer.model import block as block_module
from trainer.model.generate import generate
from trainer.model.gpt import GPT
from trainer.tasks.lora import add_adapters
from trainer.weights.gpt2_layout import expected_shapes

OPTIONS: dict[str, dict[str, object]] = {
    "rope": {"rope": True},
    "qk_norm": {"qk_norm": True},
    "relu2": {"activation": "relu2"},
    "value_residual": {"value_residual": True},
}
EVERY = {key: value for option in OPTIONS.values() for key, value in option.items()}
CASES = [{}, *OPTIONS.values(), EVERY, {**EVERY, "tie_embeddings": True, "bias": False, "qkv_bias": True}]


def trained(config: ModelConfig) -> GPT:
    """Weights that are not those of the start, so that every tensor matters."""
    torch.manual_seed(1)
    model = GPT(config)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return model.eval()


def plain_logits(model: GPT, ids: Tensor) -> Tensor:
    """One sequence (time,), head by head and position by position, with double precision and no library attention."""
    config, state = model.config, {name: tensor.double() for name, tensor in model.unpadded_state().items()}
    linear = lambda x, name: F.linear(x, state[f"{name}.weight"], state.get(f"{name}.bias"))  # noqa: E731
    norm = lambda x, name: F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state.get(f"{name}.bias"))  # noqa: E731
    x = state["token_embedding.weight"][ids]
    if not config.rope:
        x = x + state["position_embedding.weight"][: len(ids)]
    first: Tensor | None = None
    for layer in range(config.n_layer):
        name = f"blocks.{layer}"
        q, k, v = linear(norm(x, f"{name}.attention_norm"), f"{name}.qkv").chunk(3, dim=1)
        if config.value_residual:
            if first is None:
                first = v
            else:
                share = state[f"{name}.value_mix"]
                v = (1 - share) * v + share * first
        x = x + linear(plain_attention(config, q, k, v), f"{name}.attention_out")
        hidden = linear(norm(x, f"{name}.mlp_norm"), f"{name}.mlp_up")
        hidden = hidden.clamp(min=0) ** 2 if config.activation == "relu2" else F.gelu(hidden, approximate="tanh")
        x = x + linear(hidden, f"{name}.mlp_down")
    return F.linear(norm(x, "final_norm"), state.get("head.weight", state["token_embedding.weight"]))


def plain_attention(config: ModelConfig, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    width = config.n_embd // config.n_head
    mixed = []
    for head in range(config.n_head):
        part = slice(head * width, (head + 1) * width)
        queries, keys = q[:, part], k[:, part]
        if config.qk_norm:
            queries, keys = (each / each.pow(2).mean(dim=1, keepdim=True).sqrt() for each in (queries, keys))
        if config.rope:
            queries, keys = turned(queries), turned(keys)
        scores = queries @ keys.T / math.sqrt(width)
        scores = scores.masked_fill(torch.ones_like(scores).triu(1).bool(), -math.inf)
        mixed.append(scores.softmax(dim=1) @ v[:, part])
    return torch.cat(mixed, dim=1)


def turned(x: Tensor) -> Tensor:
    """RoPE as complex numbers: pair i of position p is multiplied by exp(i p 10000^(-2 i / width))."""
    half = x.shape[1] // 2
    pairs = torch.complex(x[:, :half], x[:, half:])
    for position, pair in itertools.product(range(len(x)), range(half)):
        angle = torch.tensor(position * 10_000.0 ** (-2 * pair / x.shape[1]), dtype=torch.float64)
        pairs[position, pair] = pairs[position, pair] * torch.complex(angle.cos(), angle.sin())
    return torch.cat([pairs.real, pairs.imag], dim=1)


@pytest.mark.parametrize("options", CASES, ids=str)
def test_each_option_is_the_plain_model(options: dict[str, object]) -> None:
    model = trained(dataclasses.replace(TINY, n_layer=3, **options))
    ids = torch.arange(7, 27)
    with torch.no_grad():
        assert torch.allclose(model(ids[None])[0].double(), plain_logits(model, ids), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("options", CASES, ids=str)
def test_the_arithmetic_counts_what_the_model_has(options: dict[str, object]) -> None:
    config = dataclasses.replace(TINY, n_layer=3, **options)
    model = GPT(config)
    assert parameter_count(config) == model.parameter_count()
    assert parameter_count(config) == sum(tensor.numel() for tensor in model.unpadded_state().values())
    assert expected_shapes(config) == {name: tuple(tensor.shape) for name, tensor in model.unpadded_state().items()}
    assert checkpoint_bytes(config, weights_only=True) == 4 * model.parameter_count() + 200_000


@pytest.mark.parametrize("options", OPTIONS.values(), ids=str)
def test_an_option_costs_no_product_and_only_memory(options: dict[str, object]) -> None:
    small = ModelConfig()
    changed = dataclasses.replace(small, **options)
    assert flop_per_token(changed) == flop_per_token(small) == 854_438_400
    assert memory_gib(changed, 12) >= memory_gib(small, 12) - 0.02  # without positions there is a little less state


def test_rope_and_value_residuals_at_gpt2s_size() -> None:
    assert parameter_count(ModelConfig(rope=True)) == 163_009_536 - 1024 * 768
    assert parameter_count(ModelConfig(value_residual=True)) == 163_009_536 + 11


@pytest.mark.parametrize("checkpointing", [False, True])
def test_training_reaches_every_tensor(checkpointing: bool) -> None:
    model = GPT(dataclasses.replace(TINY, **EVERY), activation_checkpointing=checkpointing)
    ids = torch.arange(40).view(2, 20)
    model(ids, ids + 1).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_keys_that_are_kept_while_sampling_change_nothing() -> None:
    model = trained(dataclasses.replace(TINY, n_layer=3, **EVERY))
    ids = torch.tensor([[0, 5, 6, 7], [1, 2, 3, 4]])
    written = generate(model, ids, 12, generator=torch.Generator().manual_seed(1), pads=torch.tensor([1, 0]))
    alone = generate(model, ids[:1, 1:], 1, generator=torch.Generator().manual_seed(1))
    assert written.shape == (2, 16)
    assert written[0, 4] == alone[0, 3]


@pytest.mark.parametrize("tied", [False, True])
def test_zero_init_starts_with_the_uniform_guess(tied: bool) -> None:
    model = GPT(dataclasses.replace(TINY, zero_init=True, tie_embeddings=tied))
    zero = [name for name, tensor in model.unpadded_state().items() if tensor.dim() == 2 and not tensor.any()]
    kinds = ("attention_out", "mlp_down")
    expected = {f"blocks.{layer}.{kind}.weight" for layer in range(2) for kind in kinds}
    assert set(zero) == expected | (set() if tied else {"head.weight"})
    ids = torch.arange(20)[None]
    assert model(ids, ids + 1).item() == pytest.approx(math.log(257), abs=0.5 if tied else 1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"activation": "swish"}, "gelu or relu2"), ({"rope": True, "n_embd": 6, "n_head": 2}, "even width, got 3")],
)
def test_options_that_cannot_be_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ContractError, match=message):
        GPT(dataclasses.replace(TINY, **change))


@pytest.mark.parametrize("adapters", [False, True], ids=["plain", "adapters"])
@pytest.mark.parametrize(
    "options", [{}, {"activation": "relu2", "qk_norm": True, "rope": True}], ids=["gpt2", "modded"]
)
def test_a_large_input_is_recomputed_bit_for_bit_without_a_product_more(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, object], adapters: bool
) -> None:
    """What a token keeps per layer falls from seventeen values of the width to eleven. With adapters it stays."""
    config = dataclasses.replace(TINY, bias=True, **options)  # type: ignore[arg-type]
    ids = torch.randint(config.vocab_size, (2, config.context_length), generator=torch.Generator().manual_seed(1))
    found = []
    for least in (2**60, 0):
        monkeypatch.setattr(block_module, "RECOMPUTED_FROM_BYTES", least)
        torch.manual_seed(1)
        model, kept = GPT(config), []
        if adapters:
            add_adapters(model, LoraConfig(rank=2, dropout=0.5, targets=("qkv", "mlp_down")))
            torch.manual_seed(2)
        with FlopCounterMode(display=False) as flops:
            with torch.autograd.graph.saved_tensors_hooks(lambda x, kept=kept: kept.append(x) or x, lambda x: x):
                loss = model(ids, ids)
            loss.backward()
        bytes_kept = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in kept}
        gradients = [parameter.grad for parameter in model.parameters()]
        found.append((sum(bytes_kept.values()), flops.get_total_flops(), loss.detach(), gradients))
    (all_kept, flop, loss, gradients), (less_kept, same_flop, same_loss, same_gradients) = found
    assert flop == same_flop
    assert torch.equal(loss, same_loss)
    for one, other in zip(gradients, same_gradients, strict=True):
        assert (one is None and other is None) or torch.equal(one, other)  # type: ignore[arg-type]
    assert adapters or less_kept < all_kept - 5 * config.n_layer * ids.numel() * config.n_embd * 4
