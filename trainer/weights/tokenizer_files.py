"""The files by which transformers' AutoTokenizer finds a checkpoint's tokenizer, made from tiktoken's own ranks.

It downloads only what tiktoken itself needs, and nothing for `bytes`. transformers and tokenizers have a converter, but
they would be two large dependencies for a program that writes JSON.

Example::

    vocabulary = open_vocabulary("gpt2")
    for name, text in tokenizer_files(vocabulary, context_length=1024).items():
        (folder / name).write_text(text, encoding="utf-8")
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

BYTES = "bytes"
END_OF_TEXT = "<|endoftext|>"


class VocabularyError(ValueError):
    """A tokenizer that does not exist, or whose vocabulary cannot be downloaded."""


@dataclass(frozen=True)
class Vocabulary:
    """A byte-pair encoding: ids of byte strings in the order of merging, and marks such as end-of-text."""

    name: str
    pattern: str | None
    """Cuts text into pieces that no merge crosses, in tiktoken's dialect; None: no cut."""
    ranks: Mapping[bytes, int]
    special: Mapping[str, int]

    @property
    def end_of_text(self) -> int | None:
        return self.special.get(END_OF_TEXT)

    def within(self, vocab_size: int) -> Vocabulary:
        """Without the marks beyond a model's vocab_size."""
        return Vocabulary(
            self.name, self.pattern, self.ranks, {mark: at for mark, at in self.special.items() if at < vocab_size}
        )


def open_vocabulary(name: str) -> Vocabulary:
    """`bytes`, or a tiktoken name. Raises VocabularyError for an unknown name or a failed download."""
    if name == BYTES:
        return Vocabulary(BYTES, None, {bytes([value]): value for value in range(256)}, {END_OF_TEXT: 256})
    try:
        # Only here: the export of a `bytes` model needs no tiktoken.
        from trainer.tokens.tokenizer import TokenizerError, open_tokenizer
    except ImportError as error:
        raise VocabularyError(f"tokenizer {name!r} needs tiktoken, which is not installed here") from error
    try:
        encoding = open_tokenizer(name)
    except TokenizerError as error:
        raise VocabularyError(f"{error}; `none` exports without a tokenizer") from error
    # The three names that tiktoken's README gives for building one encoding from another.
    return Vocabulary(name, encoding._pat_str, encoding._mergeable_ranks, encoding._special_tokens)


def tokenizer_files(vocabulary: Vocabulary, context_length: int) -> dict[str, str]:
    """File name to text. Adds vocab.json and merges.txt where GPT-2's own pattern cuts the text."""
    pairs = merges(vocabulary.ranks)
    letters = byte_letters()
    ids = {spelled(token, letters): rank for token, rank in vocabulary.ranks.items()}
    written = [(spelled(left, letters), spelled(right, letters)) for left, right in pairs]
    everything = {**ids, **vocabulary.special}
    marks = _marks(vocabulary)
    like_gpt2 = is_gpt2_pattern(vocabulary.pattern)
    settings = {
        "tokenizer_class": "GPT2Tokenizer" if like_gpt2 else "PreTrainedTokenizerFast",
        "model_max_length": context_length,
        "padding_side": "left",  # a model that continues a text must see its end last
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        **marks,
    }
    files = {
        "tokenizer.json": json.dumps(_tokenizer(vocabulary, everything, written), ensure_ascii=False) + "\n",
        "tokenizer_config.json": _json(settings),
        "special_tokens_map.json": _json(marks),
    }
    if like_gpt2:
        files["vocab.json"] = json.dumps(everything, ensure_ascii=False) + "\n"
        files["merges.txt"] = "#version: 0.2\n" + "".join(f"{left} {right}\n" for left, right in written)
    return files


def merges(ranks: Mapping[bytes, int]) -> list[tuple[bytes, bytes]]:
    """The two parts each token is merged from, in order of rank: which tiktoken omits and tokenizers needs.

    Merging a token's own bytes by the ranks below its own ends with exactly these two (minbpe's recover_merges); where
    only one cut leaves two tokens, that is the pair. A token that merging does not reach has no pair: it only
    matches a whole piece.
    """
    pairs = []
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        cuts = [at for at in range(1, len(token)) if token[:at] in ranks and token[at:] in ranks]
        parts = [token[: cuts[0]], token[cuts[0] :]] if len(cuts) == 1 else _merged(token, ranks, rank) if cuts else []
        if len(parts) == 2:
            pairs.append((parts[0], parts[1]))
    return pairs


def _merged(token: bytes, ranks: Mapping[bytes, int], below: int) -> list[bytes]:
    """The parts of a token after every merge of a rank below `below`, lowest rank first, leftmost first."""
    parts = [token[at : at + 1] for at in range(len(token))]
    while len(parts) > 2:
        best, at = below, -1
        for index in range(len(parts) - 1):
            rank = ranks.get(parts[index] + parts[index + 1], below)
            if rank < best:
                best, at = rank, index
        if at < 0:
            return parts
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts


def byte_letters() -> dict[int, str]:
    """GPT-2's printable letter for each byte, by which vocabularies are written as text (`bytes_to_unicode`)."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [value for value in range(256) if value not in plain]
    return {**{value: chr(value) for value in plain}, **{value: chr(256 + at) for at, value in enumerate(others)}}


def spelled(token: bytes, letters: Mapping[int, str]) -> str:
    """A token as GPT-2's vocabulary writes it: a printable letter for each byte."""
    return token.decode("latin-1").translate(letters)  # one character a byte


def is_gpt2_pattern(pattern: str | None) -> bool:
    """Whether text is cut as GPT-2 does, which tokenizers has built in."""
    return pattern is not None and pattern.startswith("'(?:[sdmt]|ll|ve|re)| ?")


def portable(pattern: str) -> str:
    """The pattern for Oniguruma, which tokenizers uses: there `++` repeats again, and `$` is any line's end.

    Possessive quantifiers only make the match faster here.
    """
    return re.sub(r"(?<=[+*?])\+|(?<=\d\})\+", "", pattern).replace(r"\s+$", r"\s+\z")


def _marks(vocabulary: Vocabulary) -> dict[str, str]:
    """End-of-text marks begin, end and padding, as in GPT-2."""
    names = ("bos_token", "eos_token", "unk_token", "pad_token") if END_OF_TEXT in vocabulary.special else ()
    return dict.fromkeys(names, END_OF_TEXT)


def _tokenizer(vocabulary: Vocabulary, ids: Mapping[str, int], pairs: list[tuple[str, str]]) -> dict[str, object]:
    """tokenizer.json. `ignore_merges`: a whole piece that has an id gets it, as tiktoken does."""
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": rank,
                "content": mark,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for mark, rank in sorted(vocabulary.special.items(), key=lambda item: item[1])
        ],
        "normalizer": None,
        "pre_tokenizer": _cut(vocabulary.pattern),
        "post_processor": _byte_level(use_regex=True, trim_offsets=False),
        "decoder": _byte_level(use_regex=True),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": True,
            "vocab": ids,
            "merges": [list(pair) for pair in pairs],
        },
    }


def _cut(pattern: str | None) -> dict[str, object]:
    if pattern is None or is_gpt2_pattern(pattern):
        return _byte_level(use_regex=pattern is not None)
    split = {"type": "Split", "pattern": {"Regex": portable(pattern)}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [split, _byte_level(use_regex=False)]}


def _byte_level(*, use_regex: bool, trim_offsets: bool = True) -> dict[str, object]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": trim_offsets, "use_regex": use_regex}


def _json(value: object) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"
