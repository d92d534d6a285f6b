"""Fills a dataset from several sources by weight, up to a budget, without the documents of another dataset.

Example::

    fill_mixed(split, work_folder, [(source, files), ...], budget=10_000, settings=settings, workers=4, exclusion=None)
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace

from trainer.corpus.documents import SourceFile, read_batches
from trainer.corpus.encode import EncodeSettings, encode_batch
from trainer.corpus.exclusion import Exclusion
from trainer.corpus.mixture import Results, Taken, mixed
from trainer.corpus.pool import ordered
from trainer.corpus.request import MixRequest, Request
from trainer.corpus.split import Split
from trainer.corpus.work_folder import WorkFolder
from trainer.progress import ByteProgress
from trainer.tokens.digests import DatasetJson, Excluded, MixShare

Inputs = Sequence[tuple[MixRequest, Sequence[SourceFile]]]


def fill_mixed(
    split: Split,
    work_folder: WorkFolder,
    inputs: Inputs,
    *,
    budget: int | None,
    settings: EncodeSettings,
    workers: int,
    exclusion: Exclusion | None,
) -> None:
    """Takes documents until the budget is reached, or the sources end; stores a state every few seconds."""
    taken = split.done.mix or tuple(Taken() for _ in inputs)
    progress = ByteProgress(sum(file.size_bytes for _, files in inputs for file in files))
    with ExitStack() as stack:
        results: list[Results] = []
        for (source, files), state in zip(inputs, taken, strict=True):
            work = functools.partial(encode_batch, settings=replace(settings, column=source.column))
            batches = read_batches(files, state.place, source.column)
            results.append(stack.enter_context(ordered(work, batches, max(1, workers // len(inputs)))))
        weights = [source.weight for source, _ in inputs]
        for encoded, after in mixed(results, weights, budget, taken, exclusion):
            split.take(encoded, split.done.place, after)
            work_folder.keep(split)
            progress.report(sum(each.done_bytes for each in after), split.done.documents, split.tokens)
            if split.done.full:
                break


def mixture_json(request: Request, taken: Sequence[Taken]) -> DatasetJson:
    """What dataset.json says of a mixture and of what was left out; nothing for a plain preparation."""
    found: DatasetJson = {}
    if request.mix:
        tokens = max(1, sum(each.tokens for each in taken))
        found["mixture"] = [
            MixShare(
                source=source.source,
                weight=source.weight,
                documents=each.documents,
                tokens=each.tokens,
                share=round(each.tokens / tokens, 6),
                ended=each.ended,
            )
            for source, each in zip(request.mix, taken, strict=True)
        ]
    if request.exclude:
        found["excluded"] = Excluded(
            source=request.exclude,
            documents=sum(each.left_out_documents for each in taken),
            tokens=sum(each.left_out_tokens for each in taken),
        )
    return found
