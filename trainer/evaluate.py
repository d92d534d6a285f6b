"""`python -m trainer.evaluate`: loss, perplexity and bits per byte on slices of token files, and multiple choice.

Prints one JSON line for the checkpoint, then one for each slice and each file of questions. It must not change the run
it reads.

Example, the reference test of the 163M job::

    python -m trainer.evaluate runs/chinchilla --data validation.safetensors --slice 50000000 19660800
    {"kind": "checkpoint", "step": 33165, ...}
    {"kind": "slice", "slice": [50000000, 19660800], "loss": 3.41, "perplexity": 30.3, "bits_per_byte": 1.08, ...}
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch

from trainer.arguments import ChosenModel, add_model_arguments, load_chosen_model
from trainer.checkpoints.manifest import CheckpointError, checkpoint_folder
from trainer.contract import CONFIG, ContractError, RunConfig
from trainer.model.loss import Slice, measure_slice, slice_result
from trainer.model.multiple_choice import ChoicesError, score_file
from trainer.model.precision import DTYPES, Autocast, autocast_to
from trainer.progress import count_progress, print_line
from trainer.tokens.token_file import DataError
from trainer.tokens.token_stream import TokenStream
from trainer.tokens.tokenizer import TokenizerError


def _run(options: argparse.Namespace) -> None:
    chosen = load_chosen_model(options)
    autocast = autocast_to(DTYPES[options.precision], chosen.model.device)
    print_line(kind="checkpoint", step=chosen.step, torch=torch.__version__)
    for file in options.choices:
        _evaluate_choices(chosen, file, options, autocast)
    if options.slice or not options.choices:
        files, dtype = _data_files(options)
        stream = TokenStream.open(files, chosen.model.config.vocab_size, dtype)
        for start, tokens in options.slice or [_default_slice(stream, options.held_out)]:
            _evaluate_slice(chosen, Slice(stream, start, tokens), options, autocast)


def _evaluate_choices(chosen: ChosenModel, file: Path, options: argparse.Namespace, autocast: Autocast) -> None:
    accuracies = score_file(
        chosen.model,
        file,
        chosen.tokenizer,
        batch_size=options.batch_size,
        autocast=autocast,
        on_progress=count_progress(f"choices {file.name}", "questions"),
    )
    print_line(kind="choices", name=file.name, **accuracies, precision=options.precision, device=options.device)


def _evaluate_slice(chosen: ChosenModel, part: Slice, options: argparse.Namespace, autocast: Autocast) -> None:
    began, report = time.monotonic(), count_progress(f"slice {part.start}+{part.tokens}", "tokens")
    summed = measure_slice(chosen.model, part, options.batch_size, autocast, report)
    result = slice_result(part, summed, chosen.tokenizer, _complain)
    seconds = round(time.monotonic() - began, 3)
    print_line(kind="slice", **result, precision=options.precision, device=options.device, seconds=seconds)


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
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Runs the program. Returns 0, or 1 with the reason on stderr."""
    try:
        _run(_parse(arguments))
    except (CheckpointError, ChoicesError, ContractError, DataError, TokenizerError, OSError) as error:
        _complain(str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
