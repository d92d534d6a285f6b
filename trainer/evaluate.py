"""`python -m trainer.evaluate`: loss, perplexity and bits per byte on slices of token files, and multiple choice.

Prints one JSON line for the checkpoint, then one for each slice and each file of questions. Where there are several
GPUs, all of them measure together: torchrun starts a rank on each, which takes its share of the batches, and the sums
are those of one. A torchrun over several nodes may start it, too: rank 0 hands its checkpoint over. It must not change
the run it reads.

Example, the reference test of the 163M job::

    python -m trainer.evaluate runs/chinchilla --data validation.safetensors --slice 50000000 19660800
    {"kind": "checkpoint", "step": 33165, ...}
    {"kind": "slice", "slice": [50000000, 19660800], "loss": 3.41, "perplexity": 30.3, "bits_per_byte": 1.08, ...}
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from trainer.arguments import ChosenModel, add_model_arguments, load_chosen_model
from trainer.checkpoints.broadcast import drop_received, on_every_node, said_by_all
from trainer.checkpoints.manifest import CheckpointError, checkpoint_folder
from trainer.contract import ContractError, RunConfig
from trainer.model.loss import Share, Slice, measure_slice, slice_result
from trainer.model.multiple_choice import ChoicesError, score_file
from trainer.model.precision import DTYPES, Autocast, autocast_to
from trainer.progress import count_progress, print_line
from trainer.run_files import CONFIG
from trainer.tokens.token_file import DataError
from trainer.tokens.token_stream import TokenStream
from trainer.tokens.tokenizer import TokenizerError
from trainer.training.ranks import World, join, leave, sum_over_ranks

EXPLAINED = (CheckpointError, ChoicesError, ContractError, DataError, TokenizerError, OSError)
COLLECTIVE_TIMEOUT_S = 600.0
"""How long a rank waits for another: a frozen one must not keep a paid machine busy."""


class Measurement(NamedTuple):
    """What every figure needs: the model, how it computes, and this rank among its peers."""

    options: argparse.Namespace
    chosen: ChosenModel
    autocast: Autocast
    world: World

    def tell(self, **values: object) -> None:
        """A line on stdout, of rank 0."""
        if self.world.leads:
            print_line(**values, precision=self.options.precision, device=self.world.device.type)

    def progress(self, what: str, unit: str) -> Callable[[int, int], object]:
        """Shows how far it is, of rank 0."""
        return count_progress(what, unit) if self.world.leads else lambda done, of: None

    def sums(self, values: Sequence[float]) -> list[float]:
        """Over all ranks."""
        return sum_over_ranks(self.world, values)


def _measure(options: argparse.Namespace, world: World) -> None:
    """What one rank does. Raises what the program explains."""
    chosen = load_chosen_model(options)
    if world.nodes > 1:
        drop_received(world, options.folder.parent.parent)
    at = Measurement(options, chosen, autocast_to(DTYPES[options.precision], chosen.model.device), world)
    if world.leads:
        print_line(kind="checkpoint", step=chosen.step, torch=torch.__version__, ranks=world.size)
    for file in options.choices:
        _evaluate_choices(at, file)
    if options.slice or not options.choices:
        files, dtype = _data_files(options)
        stream = TokenStream.open(files, chosen.model.config.vocab_size, dtype)
        for start, tokens in options.slice or [_default_slice(stream, options.held_out)]:
            _evaluate_slice(at, Slice(stream, start, tokens))


def _evaluate_choices(at: Measurement, file: Path) -> None:
    accuracies = score_file(
        at.chosen.model,
        file,
        at.chosen.tokenizer,
        batch_size=at.options.batch_size,
        autocast=at.autocast,
        on_progress=at.progress(f"choices {file.name}", "questions"),
        share=Share(at.world.rank, at.world.size, at.sums),
    )
    at.tell(kind="choices", name=file.name, **accuracies)


def _evaluate_slice(at: Measurement, part: Slice) -> None:
    began, report = time.monotonic(), at.progress(f"slice {part.start}+{part.tokens}", "tokens")
    share = Share(at.world.rank, at.world.size, at.sums)
    summed = measure_slice(at.chosen.model, part, at.options.batch_size, at.autocast, report, share=share)
    if at.world.leads:
        result = slice_result(part, summed, at.chosen.tokenizer, _complain)
        at.tell(kind="slice", **result, seconds=round(time.monotonic() - began, 3))


def _complain(text: str) -> None:
    print(f"evaluate: {text}", file=sys.stderr)


def _default_slice(stream: TokenStream, held_out: int) -> tuple[int, int]:
    """The last `held_out` tokens that have a target each; for 0 the whole stream."""
    return (max(0, len(stream) - held_out - 1), held_out) if held_out else (0, len(stream))


def _data_files(options: argparse.Namespace) -> tuple[list[Path], str | None]:
    """The files named, else those of the checkpoint's run: its validation files, else its training files; and the type
    of headerless ones where you vouch for it."""
    if options.data:
        return list(options.data), options.dtype
    run_folder = checkpoint_folder(options.folder).parent.parent
    data = RunConfig.from_json((run_folder / CONFIG).read_text()).data if (run_folder / CONFIG).is_file() else None
    files = (data.validation_files or data.train_files) if data is not None else ()
    if not files:
        raise DataError(f"{options.folder} names no token files: give them with --data FILE...")
    return [Path(file) for file in files], data.dtype if data is not None else None


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m trainer.evaluate",
        description="Measure the loss on slices of token files, and answer multiple-choice questions.",
    )
    add_model_arguments(parser)
    parser.add_argument("--data", type=Path, nargs="+", metavar="FILE", help="token files (default: the run's own)")
    parser.add_argument("--dtype", choices=("uint16", "uint32"), help="of headerless files that --data names")
    parser.add_argument(
        "--slice",
        type=int,
        nargs=2,
        action="append",
        metavar=("START", "COUNT"),
        help="COUNT tokens from token START; repeatable (default: all)",
    )
    parser.add_argument("--held-out", type=int, default=0, metavar="COUNT", help="evaluate the last COUNT tokens")
    parser.add_argument(
        "--choices",
        type=Path,
        action="append",
        default=[],
        metavar="FILE.jsonl",
        help="multiple-choice questions in HellaSwag's format; repeatable",
    )
    parser.add_argument("--batch-size", type=int, default=8, help="sequences per forward pass (default: 8)")
    parser.add_argument("--precision", choices=tuple(DTYPES), default="fp32", help="default: fp32")
    parser.add_argument("--ranks", type=int, help="processes that measure (default: one for each GPU)")
    options = parser.parse_args(arguments)
    options.ranks = options.ranks or (torch.cuda.device_count() if options.device == "cuda" else 1)
    return options


def rank_main(options: argparse.Namespace) -> str:
    """What each of several ranks does: the reason where it cannot, which is the same on all of them, else nothing."""
    if options.ranks == 1:
        world = World(0, 1, 0, torch.device(options.device))
    else:
        world = join(options.device, COLLECTIVE_TIMEOUT_S)
        options.device = str(world.device)
    reason = ""
    try:
        if world.nodes > 1:
            _share_checkpoint(options, world)
        _measure(options, world)
    except EXPLAINED as error:
        reason = str(error)
    if world.nodes == 1 or not reason:  # of several nodes one alone may fail: the others notice that it is gone
        leave(world)
    return reason


def _share_checkpoint(options: argparse.Namespace, world: World) -> None:
    """Leaves a folder of this node with rank 0's checkpoint. Raises what one node cannot read, on all of them: the
    others would wait for it."""
    if world.leads:
        _on_all(world, lambda: setattr(options, "folder", checkpoint_folder(options.folder)))
    else:
        _on_all(world, lambda: None)
    options.folder = on_every_node(world, options.folder, options.folder.parent.parent)
    _on_all(world, lambda: _open_files(options))


def _open_files(options: argparse.Namespace) -> None:
    if options.slice or not options.choices:
        options.data, options.dtype = _data_files(options)  # the received checkpoint is dropped once it is loaded
    for file in (*options.choices, *(options.data or ())):
        file.open("rb").close()


def _on_all(world: World, work: Callable[[], None]) -> None:
    reason = ""
    try:
        work()
    except EXPLAINED as error:
        reason = str(error)
    if said := next(filter(None, said_by_all(world, reason)), ""):
        raise DataError(said)


def _together(options: argparse.Namespace) -> str:
    """Starts the ranks with torchrun, on this machine; the reason of the first that cannot."""
    # Only here: one rank needs none of it, and it takes a second to import.
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(1, 1, options.ranks, run_id="evaluate", rdzv_backend="c10d", rdzv_endpoint="127.0.0.1:0")
    reasons = elastic_launch(config, rank_main)(options)
    return next(filter(None, reasons.values()), "")


def main(arguments: list[str] | None = None) -> int:
    """Runs the program. Returns 0, or 1 with the reason on stderr."""
    options = _parse(arguments)
    if int(os.environ.get("GROUP_WORLD_SIZE", "1")) > 1:
        options.ranks = int(os.environ["WORLD_SIZE"])
        reason = rank_main(options)
        if reason and os.environ.get("LOCAL_RANK") == "0":  # torchrun's own words come after it on stderr
            print_line(kind="failed", reason=reason)
        return 1 if reason else 0
    reason = _together(options) if options.ranks > 1 else rank_main(options)
    if reason:
        _complain(reason)
    return 1 if reason else 0


if __name__ == "__main__":
    sys.exit(main())
