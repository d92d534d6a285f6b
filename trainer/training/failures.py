"""What an error means for a run: its reason in words, whether memory ran out, and work whose failure a run survives.

Example::

    with Expendable(journal.event, step, "no samples"):
        sample(run, model, step)          # an error becomes the warning "no samples: OSError: ..."
"""

from __future__ import annotations

import re
from collections.abc import Callable
from types import TracebackType

import torch

from trainer.model.precision import LossScaler
from trainer.run_files import EVENT_WARNING

LOST_PEER = ("closed by peer", "Connection reset", "Broken pipe", "imed out", "Timeout")
OUT_OF_MEMORY = re.compile(
    r"CUDA out of memory|CUDA error: out of memory|CU(BLAS|BLASLT|DNN|SPARSE)_STATUS_ALLOC_FAILED"
    r"|Triton Error \[CUDA\]: out of memory|Cuda failure (2 )?'out of memory'"
)
"""What torch's allocator, CUDA, cuBLAS and cuDNN, Triton and NCCL write when a GPU's memory is full."""

FAULTS_OF_A_CARD = (
    (
        r"uncorrectable ECC",
        "its memory is damaged: take another machine, or reset the card and look at nvidia-smi -q -d ECC",
    ),
    (
        r"GPU is lost|fallen off the bus|no longer available|device not ready",
        "reboot, or take another machine",
    ),
    (r"NVLink|NCCL.*(internal error|unhandled cuda error)", "the link between cards failed: take another machine"),
    (
        r"unspecified launch failure|illegal memory access|illegal instruction|hardware stack|misaligned address",
        "the card or a kernel is faulty: dmesg | grep Xid tells which; a second time, take another machine",
    ),
)
"""What CUDA and NCCL say of a card that fails while it trains, and the cure."""

Emit = Callable[..., None]
"""journal.event: (name, step, **fields)."""


def is_ours(error: BaseException) -> bool:
    """Whether the trainer raised this error: then its message says everything and the traceback adds nothing."""
    return type(error).__module__.startswith("trainer.")


def explain(error: BaseException) -> str:
    """The reason of a failure: the trainer's own messages unchanged, any other with its type."""
    text = str(error).strip() or "no message"
    if is_ours(error):
        return text
    if isinstance(error, RuntimeError) and (cure := cure_of_a_card(text)):
        return f"{type(error).__name__}: {text.splitlines()[0]}: {cure}; the checkpoints are intact"
    if isinstance(error, RuntimeError) and any(phrase in text for phrase in LOST_PEER):
        return f"lost another rank, killed or frozen: {text.splitlines()[0]}"
    return f"{type(error).__name__}: {text}"


def cure_of_a_card(text: str) -> str:
    """What helps against a card that fails; empty where the text does not speak of one."""
    found = (cure for pattern, cure in FAULTS_OF_A_CARD if re.search(pattern, text, re.IGNORECASE))
    return next(found, "")


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether the GPU's memory was full, whichever library found out, also as the cause of another error."""
    if error is None:
        return False
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return (isinstance(error, RuntimeError) and OUT_OF_MEMORY.search(str(error)) is not None) or is_out_of_memory(
        error.__cause__
    )


class Expendable:
    """A block whose result the run can spare. Any error in it ends the block with a `warning` event, not the run.

    `loss` says in the warning what the error costs. KeyboardInterrupt and SystemExit still pass.
    """

    def __init__(self, emit: Emit, step: int, loss: str) -> None:
        self.emit, self.step, self.loss = emit, step, loss

    def __enter__(self) -> None:
        """Nothing to prepare."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> bool:
        if not isinstance(error, Exception):
            return False
        self.emit(EVENT_WARNING, self.step, reason=f"{self.loss}: {explain(error)}")
        return True


def nonfinite_words(streak: int, step: int, scaler: LossScaler) -> str:
    """Why training ends after so many skipped steps in a row. The weights are those before the first of them."""
    fault = f"gradients were not finite in {streak} steps in a row up to step {step}, all skipped"
    if scaler.scale is not None:
        return (
            f"{fault}: fp16 overflows although the loss is scaled by no more than {scaler.scale.item():g}. Set "
            'train.precision = "bf16" on a card that has it, else "fp32", and resume'
        )
    return f"{fault}. Try a lower learning_rate, a longer warmup_fraction, grad_clip = 1.0 or skip_back, and resume"
