"""The batches of a run as a pure function of (seed, step, data).

It must not know about the model, and it has no position: any step's batch can be computed at any time, by any
rank, in any order. That is why 1, 2 or 8 ranks see the same tokens and a resumed run continues where it stopped.

Example::

    data = open_data(RunConfig(...))
    ids, targets = data.micro_batch(step=0, index=0, size=4, rank=0, world=2)       # two tensors (4, context_length)
"""

from __future__ import annotations

import functools
import itertools
from collections import deque
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from trainer.arithmetic.schedule import Course, Part, micro_batch_of
from trainer.config.task_config import PRETRAIN
from trainer.contract import ContractError, RunConfig
from trainer.tokens.example_rows import IGNORED, counted_in
from trainer.tokens.token_file import DataError
from trainer.tokens.token_stream import Ids, TokenStream

WIDTH_MULTIPLE = 8
"""Examples are cut to it: matrix products of other widths are slower."""


@dataclass(frozen=True)
class ValidationSlice:
    """Tokens start .. start + tokens of a stream; the target of the last one follows it where the stream continues."""

    stream: TokenStream
    start: int
    tokens: int


@dataclass(frozen=True)
class TrainingData:
    """The training window cut into sequences, and the held-out slice. Frozen: batches follow from arguments alone."""

    stream: TokenStream
    start: int
    sequences: int
    """Whole sequences of context_length in one epoch."""
    context_length: int
    course: Course
    shuffled: bool
    seed: int
    validation: ValidationSlice | None
    examples: bool = False
    """Rows are examples (example_rows.py): the loss counts some of their ids."""

    def sequences_of_step(self, step: int) -> Ids:
        """Numbers of the sequences of context_length in the batch of this step, counted from step 0."""
        numbers = np.arange(self.course.windows(step), self.course.windows(step + 1), dtype=np.int64)
        epochs, within = np.divmod(numbers, self.sequences)
        for epoch in np.unique(epochs):
            if epoch > 0 or self.shuffled:
                chosen = epochs == epoch
                within[chosen] = _permutation(self.seed, int(epoch), self.sequences)[within[chosen]]
        return within

    def micro_batch(
        self, step: int, index: int, size: int, rank: int = 0, world: int = 1
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """This rank's share of the index-th slice of world x size sequences: ids and targets, (size, time) int64; of
        examples (size, longest).

        In a stage of short sequences each sequence of context_length gives several, one after the other.
        """
        first, length = (index * world + rank) * size, self.course.at(step).context_length
        pieces = self.context_length // length
        whole = self.sequences_of_step(step)
        places = [
            int(whole[number // pieces]) * self.context_length + number % pieces * length
            for number in range(first, first + size)
        ]
        rows = torch.from_numpy(np.stack([self.stream.read(self.start + place, length + 1) for place in places]))
        return inputs_and_targets(rows) if self.examples else (rows[:, :-1].contiguous(), rows[:, 1:].contiguous())

    def weight(self, step: int, targets: torch.Tensor, share: Share) -> float:
        """What the mean loss of a micro-batch counts in the mean of its rank's step. Of examples each counted target
        weighs the same, whichever micro-batch of which rank it is in: ranks average their gradients."""
        if not self.examples:
            return 1 / share.accumulation
        length = self.context_length
        rows = [self.stream.read(self.start + row * length, length) for row in self.sequences_of_step(step).tolist()]
        return counted(targets) * share.world / max(1, sum(map(counted_in, rows)))


def inputs_and_targets(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """ids and targets (n, longest) int64 of rows (n, length + 1), each with the id after it; targets are IGNORED where
    nothing is counted. `longest`: of the longest example here, to the next multiple of eight: filling costs no time.
    """
    plain = torch.where(rows < 0, ~rows, rows)
    targets = torch.where(rows[:, 1:] < 0, plain[:, 1:], IGNORED)
    last = int((targets != IGNORED).any(dim=0).nonzero().max()) + 1 if bool((targets != IGNORED).any()) else 1
    longest = min(targets.shape[1], -(-last // WIDTH_MULTIPLE) * WIDTH_MULTIPLE)
    return plain[:, :longest].contiguous(), targets[:, :longest].contiguous()


def counted(targets: torch.Tensor) -> int:
    """How many targets the loss counts."""
    return int((targets != IGNORED).sum())


@functools.lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, count: int) -> Ids:
    """Two are cached, because a batch may end one epoch and begin the next."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, epoch]))).permutation(count)


def open_data(config: RunConfig) -> TrainingData:
    """Opens the files of a run and cuts the window. Raises DataError naming the file and what would fit."""
    data, length = config.data, config.model.context_length
    examples = config.task.kind != PRETRAIN
    if examples and config.train.stages:
        raise ContractError("train.stages: an example is one row, whatever the stage; remove the stages")
    stream = _open_stream(config, data.train_files)
    validation = _validation_slice(config, stream)
    # One token more than the slice is held out: it is the target of the slice's last token.
    end = validation.start if validation is not None and validation.stream is stream else len(stream)
    if data.tokens is not None:
        if data.start_token + data.tokens > end:
            raise DataError(
                f"{data.train_files[0]}: {data.tokens} tokens from {data.start_token} do not exist: "
                f"there are {max(0, end - data.start_token)}"
            )
        end = min(end, data.start_token + data.tokens + 1)
    sequences = (end - data.start_token - 1) // length
    if sequences < 1:
        raise DataError(
            f"{data.train_files[0]}: tokens {data.start_token} to {end} are less than one sequence of {length} + 1"
        )
    train = config.train
    return TrainingData(
        stream,
        data.start_token,
        sequences,
        length,
        course_of(config),
        shuffled=data.order == "shuffled",
        seed=train.seed,
        validation=validation,
        examples=examples,
    )


def course_of(config: RunConfig) -> Course:
    """Which steps train on what. Raises ContractError for stages that cannot be."""
    train = config.train
    try:
        return Course.of(train.stages, train.steps, train.global_batch, config.model.context_length)
    except ValueError as error:
        raise ContractError(str(error)) from error


def _open_stream(config: RunConfig, files: Sequence[str]) -> TokenStream:
    """Raises DataError also where a task meets a plain stream, or pre-training a file of examples."""
    stream = TokenStream.open([Path(file) for file in files], config.model.vocab_size, config.data.dtype)
    wants = config.task.kind != PRETRAIN
    for shard in stream.shards:
        if shard.examples != wants and not shard.is_cut:
            holds = "examples: set [task] kind" if shard.examples else "a stream of text, and [task] needs examples"
            raise DataError(f"{shard.path} holds {holds}, or name other data")
    return stream


def _validation_slice(config: RunConfig, stream: TokenStream) -> ValidationSlice | None:
    data = config.data
    if data.validation_tokens <= 0:
        return None
    if not data.validation_files:
        return ValidationSlice(stream, max(0, len(stream) - data.validation_tokens - 1), data.validation_tokens)
    held_out = _open_stream(config, data.validation_files)
    start, tokens = data.validation_start_token, data.validation_tokens
    if start + tokens > len(held_out):
        raise DataError(
            f"{data.validation_files[0]}: {len(held_out)} tokens, validation needs {start} to {start + tokens}"
        )
    return ValidationSlice(held_out, start, tokens)


@dataclass(frozen=True)
class Share:
    """What one rank reads: micro-batches of `size` sequences, `accumulation` of them per step."""

    size: int
    accumulation: int
    rank: int = 0
    world: int = 1

    def during(self, part: Part, course: Course) -> Share:
        """In this part of the course: of shorter sequences more at once. Raises ContractError."""
        if part == course.parts[-1]:
            return self
        try:
            size = micro_batch_of(part, self.size, self.world, course.length)
        except ValueError as error:
            raise ContractError(str(error)) from error
        return Share(size, part.global_batch // self.world // size, self.rank, self.world)


def prefetched(
    data: TrainingData, steps: Iterable[int], share: Share, device: torch.device
) -> Generator[tuple[torch.Tensor, torch.Tensor, float]]:
    """Micro-batches on the device, in order, each with its weight in the step, read by one thread two ahead. Pinned, so
    that the copy does not wait."""
    shares = {part: share.during(part, data.course) for part in data.course.parts}
    of_step = ((step, shares[data.course.at(step)]) for step in steps)
    places = ((step, index, own) for step, own in of_step for index in range(own.accumulation))

    def enter() -> None:
        if device.type == "cuda":  # a thread begins on GPU 0, and pinning there would cost every rank a context on it
            torch.cuda.set_device(device)

    def read(step: int, index: int, own: Share) -> tuple[torch.Tensor, torch.Tensor, float]:
        ids, targets = data.micro_batch(step, index, own.size, own.rank, own.world)
        weight = data.weight(step, targets, own)
        return (ids.pin_memory(), targets.pin_memory(), weight) if device.type == "cuda" else (ids, targets, weight)

    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="data", initializer=enter) as reader:
        waiting = deque(reader.submit(read, *place) for place in itertools.islice(places, 2))
        while waiting:
            ids, targets, weight = waiting.popleft().result()
            waiting.extend(reader.submit(read, *place) for place in itertools.islice(places, 1))
            yield ids.to(device, non_blocking=True), targets.to(device, non_blocking=True), weight
