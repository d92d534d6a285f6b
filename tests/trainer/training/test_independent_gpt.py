"""The trainer against a GPT written independently of it (plain_gpt.py), on real text: the loss curves are the same."""

import json
import subprocess
import sys

import pytest
import torch

from tests.support.files.plain_gpt import PlainAdamW, PlainGPT
from tests.support.files.small_runs import python_source, write_tokens
from trainer.contract import DataConfig, ModelConfig, RunConfig, TrainConfig
from trainer.model.gpt import GPT
from trainer.tokens.batches import TrainingData, open_data

STEPS = 120
MODEL = ModelConfig(vocab_size=257, context_length=48, n_layer=2, n_head=2, n_embd=48)
TRAIN = TrainConfig(
    steps=STEPS,
    global_batch=8,
    micro_batch=4,
    learning_rate=2e-3,
    schedule="constant",
    warmup_fraction=0.0,
    weight_decay=0.1,
    betas=(0.9, 0.95),
    precision="fp32",
    log_every=1,
    checkpoint_every=10**6,
)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    tokens = write_tokens(tmp_path_factory.mktemp("text") / "train.safetensors", python_source(200_000))
    return RunConfig(model=MODEL, data=DataConfig(train_files=(str(tokens),), tokenizer="bytes"), train=TRAIN)


@pytest.fixture(scope="module")
def trainer_losses(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """The real program, from its own metrics.jsonl."""
    run = tmp_path_factory.mktemp("run")
    (run / "config.json").write_text(config.to_json())
    subprocess.run([sys.executable, "-m", "trainer", str(run)], check=True, capture_output=True)
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def plain_losses(model: PlainGPT, data: TrainingData, rate: float = TRAIN.learning_rate) -> list[float]:
    """The same text in the same order, everything else by hand."""
    optimizer = PlainAdamW(list(model.parameters()), rate, TRAIN.weight_decay, TRAIN.betas)
    losses = []
    for step in range(STEPS):
        loss = model.loss(*data.micro_batch(step, 0, TRAIN.global_batch))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def plain_model(seed: int) -> PlainGPT:
    torch.manual_seed(seed)
    return PlainGPT(MODEL.vocab_size, MODEL.context_length, MODEL.n_layer, MODEL.n_head, MODEL.n_embd)


def as_plain(ours: GPT) -> dict[str, torch.Tensor]:
    """The trainer's weights under the plain model's names."""
    state = ours.unpadded_state()
    plain = {
        "tokens.weight": state["token_embedding.weight"],
        "positions.weight": state["position_embedding.weight"],
        "head.weight": state["head.weight"],
        "norm.scale": state["final_norm.weight"],
        "norm.shift": state["final_norm.bias"],
    }
    for layer in range(MODEL.n_layer):
        block = f"blocks.{layer}."
        query, key, value = state[block + "qkv.weight"].chunk(3)
        plain |= {block + "attention.query.weight": query, block + "attention.key.weight": key}
        plain[block + "attention.value.weight"] = value
        for kind in ("weight", "bias"):
            plain[f"{block}attention.out.{kind}"] = state[f"{block}attention_out.{kind}"]
            plain[f"{block}mlp.0.{kind}"] = state[f"{block}mlp_up.{kind}"]
            plain[f"{block}mlp.2.{kind}"] = state[f"{block}mlp_down.{kind}"]
        for norm, name in (("norm1", "attention_norm"), ("norm2", "mlp_norm")):
            plain[f"{block}{norm}.scale"] = state[f"{block}{name}.weight"]
            plain[f"{block}{norm}.shift"] = state[f"{block}{name}.bias"]
    return plain


def smoothed(losses: list[float]) -> torch.Tensor:
    """Means of 20 steps."""
    return torch.tensor(losses).view(-1, 20).mean(dim=1)


@pytest.mark.nightly
def test_from_the_same_weights_the_program_follows_the_plain_model_step_by_step(
    config: RunConfig, trainer_losses: list[float]
) -> None:
    model = plain_model(0)
    torch.manual_seed(TRAIN.seed)  # as the program starts
    missing = model.load_state_dict(as_plain(GPT(MODEL)), strict=False)
    assert all(name.endswith("mask") for name in missing.missing_keys)
    assert missing.unexpected_keys == []
    expected = plain_losses(model, open_data(config))
    assert trainer_losses == pytest.approx(expected, rel=2e-3)
    assert trainer_losses[:10] == pytest.approx(expected[:10], rel=1e-4)


@pytest.mark.nightly
def test_from_its_own_weights_the_plain_models_curve_is_the_same_within_noise(
    config: RunConfig, trainer_losses: list[float]
) -> None:
    """The seeds of the plain model say what noise is."""
    data = open_data(config)
    curves = torch.stack([smoothed(plain_losses(plain_model(seed), data)) for seed in (1, 2, 3)])
    noise = float((curves - curves.mean(dim=0)).abs().max())
    distance = float((smoothed(trainer_losses) - curves.mean(dim=0)).abs().max())
    assert distance < max(3 * noise, 0.03)
    assert smoothed(trainer_losses)[-1] < 3.0 < trainer_losses[0]


@pytest.mark.nightly
def test_the_test_would_notice_another_learning_rate(config: RunConfig, trainer_losses: list[float]) -> None:
    """A curve that differs by one setting lies outside what the others call noise."""
    losses = plain_losses(plain_model(1), open_data(config), rate=TRAIN.learning_rate / 2)
    assert float((smoothed(losses) - smoothed(trainer_losses)).abs().max()) > 0.1
