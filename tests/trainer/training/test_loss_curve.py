"""The loss curve of a whole run on real text against a plain trainer that shares no line with ours."""

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from tests.support.files.plain_gpt import PlainAdamW, PlainGPT
from tests.support.files.small_runs import TINY
from tests.support.files.training_runs import losses, small_config, train_here, write_config
from trainer.contract import RunConfig
from trainer.model.gpt import GPT

STEPS = 120
RATE = 2e-3
DECAY = 0.05
BETAS = (0.9, 0.95)


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunConfig, list[float]]:
    """A run by the trainer: constant learning rate, no clipping, two micro-batches per step."""
    folder = tmp_path_factory.mktemp("curve") / "run"
    config = small_config(
        folder,
        steps=STEPS,
        learning_rate=RATE,
        weight_decay=DECAY,
        betas=BETAS,
        schedule="constant",
        warmup_fraction=0.0,
        checkpoint_every=STEPS,
        validate_every=STEPS,
    )
    train_here(write_config(folder, config))
    return config, list(losses(folder).values())


def plain_losses(config: RunConfig, model: PlainGPT) -> list[float]:
    """The textbook loop over the same text: batch n is the n-th stretch of the file."""
    tokens = torch.from_numpy(load_file(config.data.train_files[0])["tokens"].astype(np.int64))
    optimizer = PlainAdamW(list(model.parameters()), RATE, DECAY, BETAS)
    length, batch = config.model.context_length, config.train.global_batch
    curve = []
    for step in range(STEPS):
        stretch = tokens[step * batch * length : (step + 1) * batch * length + 1]
        loss = model.loss(stretch[:-1].view(batch, length), stretch[1:].view(batch, length))
        loss.backward()
        optimizer.step()
        curve.append(loss.item())
    return curve


def plain_model() -> PlainGPT:
    return PlainGPT(TINY.vocab_size, TINY.context_length, TINY.n_layer, TINY.n_head, TINY.n_embd)


def with_our_weights(plain: PlainGPT, config: RunConfig) -> PlainGPT:
    torch.manual_seed(config.train.seed)
    state = GPT(config.model).unpadded_state()
    theirs = {"tokens.weight": "token_embedding.weight", "positions.weight": "position_embedding.weight"}
    theirs |= {"head.weight": "head.weight", "norm.scale": "final_norm.weight", "norm.shift": "final_norm.bias"}
    for layer in range(TINY.n_layer):
        pairs = {"norm1.scale": "attention_norm.weight", "norm1.shift": "attention_norm.bias"}
        pairs |= {"norm2.scale": "mlp_norm.weight", "norm2.shift": "mlp_norm.bias"}
        for kind in ("weight", "bias"):
            pairs |= {f"attention.out.{kind}": f"attention_out.{kind}"}
            pairs |= {f"mlp.0.{kind}": f"mlp_up.{kind}", f"mlp.2.{kind}": f"mlp_down.{kind}"}
        theirs |= {f"blocks.{layer}.{name}": f"blocks.{layer}.{own}" for name, own in pairs.items()}
    with torch.no_grad():
        for name, own in theirs.items():
            plain.get_parameter(name).copy_(state[own])
        for layer in range(TINY.n_layer):
            parts = state[f"blocks.{layer}.qkv.weight"].chunk(3)
            for part, tensor in zip(("query", "key", "value"), parts, strict=True):
                plain.get_parameter(f"blocks.{layer}.attention.{part}.weight").copy_(tensor)
    assert len(theirs) + 3 * TINY.n_layer == len(list(plain.parameters()))
    return plain


@pytest.mark.nightly
def test_from_the_same_weights_the_curves_are_one(ours: tuple[RunConfig, list[float]]) -> None:
    config, curve = ours
    plain = plain_losses(config, with_our_weights(plain_model(), config))
    assert curve[:20] == pytest.approx(plain[:20], rel=1e-5)
    assert curve == pytest.approx(plain, rel=2e-3)
    assert curve[-1] < 0.65 * curve[0]


@pytest.mark.nightly
def test_from_other_weights_the_curves_agree_within_noise(ours: tuple[RunConfig, list[float]]) -> None:
    config, curve = ours
    ends = []
    for seed in (1, 2, 3):
        torch.manual_seed(seed)
        ends.append(np.mean(plain_losses(config, plain_model())[-30:]))
    spread = max(ends) - min(ends)
    assert min(ends) - 2 * spread - 0.02 < np.mean(curve[-30:]) < max(ends) + 2 * spread + 0.02
