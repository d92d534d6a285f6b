"""One predicate tells that a GPU is full, whichever library noticed; the batch shrinks, and nothing goes eager."""

import contextlib
import dataclasses

import pytest
import torch
from torch import Tensor

from tests.support.files.small_runs import TINY
from trainer import probe
from trainer.contract import RunConfig, TrainConfig
from trainer.model.gpt import GPT
from trainer.training.compile_check import compile_fault
from trainer.training.failures import is_out_of_memory

FULL = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
    RuntimeError("Triton Error [CUDA]: out of memory"),
    RuntimeError("NCCL error in: ProcessGroupNCCL.cpp:94, unhandled cuda error\nCuda failure 2 'out of memory'"),
    RuntimeError("backend='inductor' raised:\nOutOfMemoryError: CUDA out of memory. Tried to allocate 1.00 GiB."),
]
OTHER = [
    RuntimeError("out of resource: shared memory, Required: 131072, Hardware limit: 101376"),
    RuntimeError("CUDA error: an illegal memory access was encountered"),
    OSError("CUDA out of memory"),
    ValueError("no"),
]


@pytest.mark.parametrize("error", FULL, ids=lambda error: str(error)[:30])
def test_a_full_gpu_is_recognised(error: RuntimeError) -> None:
    assert is_out_of_memory(error)
    wrapped = ValueError("compiling failed")
    wrapped.__cause__ = error
    assert is_out_of_memory(wrapped)


@pytest.mark.parametrize("error", OTHER, ids=lambda error: str(error)[:30])
def test_another_error_is_not(error: Exception) -> None:
    assert not is_out_of_memory(error)


class FullWhenCompiled(GPT):
    """Raises `error` in the compiled pass of more than `fits` sequences."""

    error: RuntimeError
    fits = 0
    compiled = False

    def compile_parts(self, enabled: bool) -> None:
        super().compile_parts(False)
        self.compiled = enabled

    def forward(self, ids: Tensor, targets: Tensor | None = None) -> Tensor:
        if self.compiled and len(ids) > self.fits:
            raise self.error
        return super().forward(ids, targets)


def batch(size: int) -> tuple[Tensor, Tensor]:
    ids = torch.zeros(size, 32, dtype=torch.long)
    return ids, ids


@pytest.mark.parametrize("error", FULL, ids=lambda error: str(error)[:30])
def test_the_compile_check_does_not_call_a_full_gpu_a_compiler_that_fails(error: RuntimeError) -> None:
    model = FullWhenCompiled(TINY)
    model.error = error
    before = {name: tensor.clone() for name, tensor in model.unpadded_state().items()}
    with pytest.raises(type(error)):
        compile_fault(model, [batch(2)], contextlib.nullcontext)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.unpadded_state().items())
    model.error = RuntimeError("no C++ compiler")
    assert "torch.compile fails" in str(compile_fault(model, [batch(2)], contextlib.nullcontext))


@pytest.mark.parametrize("fits", [4, 1, 0])
def test_the_probe_shrinks_the_batch_until_compiling_fits(fits: int, capsys: pytest.CaptureFixture[str]) -> None:
    config = RunConfig(model=TINY, train=TrainConfig(compile=True, global_batch=8, micro_batch=8, precision="fp32"))
    probed = dataclasses.replace(probe._build(config, torch.device("cpu")), model=FullWhenCompiled(TINY))
    assert isinstance(probed.model, FullWhenCompiled)
    probed.model.error, probed.model.fits = FULL[1], fits
    if not fits:
        with pytest.raises(probe.ProbeError, match=r"set train\.compile = false"):
            probe._compile_largest(probed, [8, 4, 2, 1])
        return
    assert probe._compile_largest(probed, [8, 4, 2, 1]) == (fits, None)
    assert capsys.readouterr().out.count('"fits": false') == {4: 1, 1: 3}[fits]
