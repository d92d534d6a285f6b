"""Adapters against `peft`: outputs, the exported files, and the merged model."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.files.small_runs import TINY
from trainer.checkpoints.checkpoint import Snapshot, load_model, write_checkpoint
from trainer.config.task_config import LORA_TARGETS, LoraConfig, TaskConfig
from trainer.contract import ContractError, RunConfig, TrainConfig
from trainer.export import main as export
from trainer.model.gpt import GPT
from trainer.tasks.lora import merged
from trainer.tasks.objective import apply_task
from trainer.tokens.example_rows import IGNORED
from trainer.training.start import check_settings

IDS = torch.randint(257, (2, 20), generator=torch.Generator().manual_seed(1))
CPU = torch.device("cpu")


def tuned(folder: Path, lora: LoraConfig | None) -> Path:
    """A checkpoint whose adapters (or weights) have moved away from their initial values."""
    task = TaskConfig("instruct", lora=lora)
    torch.manual_seed(3)
    model = GPT(dataclasses.replace(TINY, qkv_bias=True))
    apply_task(model, task)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("lora_b"):
                parameter.copy_(0.1 * torch.randn(parameter.shape))
    meta = {
        "step": 7,
        "model": dataclasses.asdict(model.config),
        "tokenizer": "bytes",
        "task": dataclasses.asdict(task),
    }
    return write_checkpoint(folder, Snapshot(7, model.unpadded_state(), {}, meta))  # type: ignore[typeddict-item]


@pytest.mark.parametrize("targets", [LORA_TARGETS, ("qkv",), ("attention_out", "mlp_down")])
def test_merged_unmerged_and_peft_agree(
    tmp_path: Path, targets: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    # Only here: both take five seconds of processor to import, in every worker that collects this file.
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    lora = LoraConfig(4, 6.0, targets)
    checkpoint = tuned(tmp_path / "run", lora)
    bare = tuned(tmp_path / "bare", None)
    assert export([str(checkpoint), "--to", str(tmp_path / "merged")]) == 0
    assert export([str(bare), "--to", str(tmp_path / "foundation")]) == 0
    assert export([str(checkpoint), "--format", "adapters", "--to", str(tmp_path / "adapters")]) == 0
    ours = load_model(checkpoint, CPU)[0](IDS)
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    foundation = AutoModelForCausalLM.from_pretrained(tmp_path / "foundation").eval()
    assert not torch.allclose(ours, foundation(IDS).logits, atol=1e-2)
    adapted = PeftModel.from_pretrained(foundation, tmp_path / "adapters").eval()
    assert torch.allclose(ours, whole(IDS).logits, atol=1e-5)
    assert torch.allclose(ours, adapted(IDS).logits, atol=1e-5)


def test_merging_here_and_as_exported_is_the_same_model(tmp_path: Path) -> None:
    lora = LoraConfig(4, 6.0)
    model, _ = load_model(tuned(tmp_path, lora), CPU)
    plain = GPT(model.config).eval()
    plain.load_unpadded_state(merged(model.unpadded_state(), lora))
    assert torch.allclose(model(IDS), plain(IDS), atol=1e-5)


def test_gradients_are_those_of_peft(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # Only here, as above.
    from peft import LoraConfig as PeftConfig
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM

    bare = tuned(tmp_path / "bare", None)
    assert export([str(bare), "--to", str(tmp_path / "foundation")]) == 0
    model = load_model(bare, CPU)[0]
    apply_task(model, TaskConfig("instruct", lora=LoraConfig(4, 6.0, ("qkv",))))
    theirs = get_peft_model(
        AutoModelForCausalLM.from_pretrained(tmp_path / "foundation"),
        PeftConfig(r=4, lora_alpha=6.0, target_modules=["c_attn"], fan_in_fan_out=True, task_type="CAUSAL_LM"),
    )
    low = {name: tensor for name, tensor in theirs.named_parameters() if "lora_A" in name}
    with torch.no_grad():
        for number, tensor in enumerate(low.values()):
            tensor.copy_(model.blocks[number].qkv.lora_a)
    model(IDS[:, :-1], IDS[:, 1:]).backward()
    theirs(IDS, labels=IDS).loss.backward()
    high = [tensor.grad for name, tensor in theirs.named_parameters() if "lora_B" in name]
    for number, gradient in enumerate(high):
        assert gradient is not None
        assert torch.allclose(model.blocks[number].qkv.lora_b.grad, gradient, atol=1e-5)


def test_a_model_without_adapters_has_none_to_export(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = tuned(tmp_path / "bare", None)
    assert export([str(checkpoint), "--format", "adapters", "--to", str(tmp_path / "x")]) == 1
    assert "has no adapters: every weight was trained, or they are merged" in capsys.readouterr().err


@pytest.mark.parametrize("options", [{}, {"tie_embeddings": True}, {"embedding_rank": 4}, {"experts": 2}])
def test_every_weight_that_learns_gets_a_gradient_of_a_classifier(options: dict[str, Any]) -> None:
    model = GPT(dataclasses.replace(TINY, **options))
    apply_task(model, TaskConfig("classify", labels=("a", "b")))
    targets = torch.full((2, 8), IGNORED)
    targets[:, -1] = 1
    model(torch.ones(2, 8, dtype=torch.long), targets).backward()
    assert [name for name, each in model.named_parameters() if each.requires_grad and each.grad is None] == []


@pytest.mark.parametrize(
    ("task", "said"),
    [
        (TaskConfig("instruct", lora=LoraConfig(targets=("q_proj",))), "must be some of qkv, attention_out"),
        (TaskConfig("instruct", lora=LoraConfig(rank=0)), "needs rank >= 1"),
        (TaskConfig("instruct", lora=LoraConfig(alpha=0.0)), "alpha > 0"),
        (TaskConfig("pretrain", lora=LoraConfig()), "adapters need a task"),
        (TaskConfig("clasify"), "task.kind must be one of"),
        (TaskConfig("classify", labels=("a",)), "at least two different classes"),
    ],
)
def test_a_task_without_sense_is_refused(task: TaskConfig, said: str) -> None:
    with pytest.raises(ContractError, match=said):
        apply_task(GPT(TINY), task)


def test_the_trainer_refuses_adapters_whose_state_would_be_shared_out() -> None:
    task = TaskConfig("instruct", lora=LoraConfig())
    check_settings(RunConfig(task=task, train=TrainConfig(steps=1)))
    with pytest.raises(ContractError, match=r"zero_stage must be 0 with task\.lora"):
        check_settings(RunConfig(task=task, train=TrainConfig(steps=1, zero_stage=1)))
