"""Which tokenizer and which step a foreign model has: what its files say, else what the size of its vocabulary means.

It must not open a tokenizer that nobody asked for: that may download.

Example: `own_tokenizer(found, model)` -> "gpt2" for 50,257 ids, "none" where nothing says it
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from trainer.contract import ModelConfig
from trainer.weights.tokenizer_files import BYTES, VocabularyError, byte_letters, open_vocabulary, spelled
from trainer.weights.weight_files import FoundWeights, WeightsError

UNKNOWN = "none"
BY_SIZE: Mapping[int, str] = {257: BYTES, 50257: "gpt2", 50304: "gpt2"}
"""Vocabularies that are known by their size; 50,304 is GPT-2's, padded by nanoGPT."""


def own_tokenizer(found: FoundWeights, model: ModelConfig) -> str:
    """As gptctl.json or meta.json say, else by the size of the vocabulary; `none` where it stays unknown."""
    for file in ("gptctl.json", "meta.json"):
        said = found.described.get(file, {}).get("tokenizer")
        if isinstance(said, str):
            return said
    return BY_SIZE.get(model.vocab_size, UNKNOWN)


def own_step(found: FoundWeights) -> int:
    """As gptctl.json or meta.json say; the reference trainer counts from 0. 0 where nothing says it."""
    for file, key, more in (("gptctl.json", "step", 0), ("meta.json", "step", 0), ("meta.json", "global_step", 1)):
        said = found.described.get(file, {}).get(key)
        if isinstance(said, int) and 0 <= said < 1 << 62:
            return said + more
    return 0


def check_tokenizer(found: FoundWeights, model: ModelConfig, name: str) -> str | None:
    """Compares the tokenizer with the model's size, and with the vocabulary beside the weights where there is one.

    Returns why it was not compared, or None. Raises WeightsError where they differ.
    """
    if name == UNKNOWN:
        return None
    try:
        ranks = open_vocabulary(name).ranks
    except VocabularyError as error:
        return f"the tokenizer was not compared: {error}"
    if max(ranks.values()) >= model.vocab_size:
        raise WeightsError(
            f"{found.place}: tokenizer {name} has ids up to {max(ranks.values())}, the model {model.vocab_size}: "
            "name its own with --tokenizer, or --tokenizer none"
        )
    theirs = _vocabulary(found)
    if theirs is None:
        return None
    letters = byte_letters()
    for token, rank in ranks.items():
        text = spelled(token, letters)
        if theirs.get(text) != rank:
            raise WeightsError(
                f"{found.place}: its vocabulary has {text!r} as id {theirs.get(text)}, tokenizer {name} as {rank}: "
                "name its own with --tokenizer, or --tokenizer none"
            )
    return None


def _vocabulary(found: FoundWeights) -> Mapping[str, int] | None:
    """Token to id, from tokenizer.json or vocab.json beside the weights. None: neither is there."""
    folder = found.files[0].parent
    for file in ("vocab.json", "tokenizer.json"):
        if not (folder / file).is_file():
            continue
        try:
            whole = json.loads((folder / file).read_text(encoding="utf-8"))
            vocabulary = whole if file == "vocab.json" else whole["model"]["vocab"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise WeightsError(f"{folder / file}: cannot be read ({error!r})") from error
        if isinstance(vocabulary, dict):
            return vocabulary
    return None
