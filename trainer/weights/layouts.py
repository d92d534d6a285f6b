"""Foreign weights as this trainer's model: whose layout they are, their shape, and each tensor under its own name.

Known are Hugging Face's GPT-2 (with and without `transformer.`, tied and untied), nanoGPT's, the reference trainer's
(`tok_emb`, `trf_blocks.N.att.W_query`) and the exports of this one. Whatever this trainer's GPT-2 cannot express is
refused by its name: nothing is left out or guessed.

Example::

    found = read_model(open_weights(Path("gpt2")))
    found.model.n_layer, found.tensors["blocks.0.qkv.weight"].make()
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from trainer.contract import ModelConfig
from trainer.tokens.tensor_file import Array, PlannedTensor
from trainer.weights.described import described_model, flag_of, rate_of, shown, table_of
from trainer.weights.gpt2_layout import expected_shapes, gpt2_name
from trainer.weights.weight_files import FoundWeights, Weight, WeightsError

HUGGING_FACE, NANOGPT, REFERENCE, OWN = "Hugging Face GPT-2", "nanoGPT", "the reference trainer", "gptctl"
TANH_GELU = ("gelu_new", "gelu_pytorch_tanh", "gelu_fast")
EXPRESSED: Mapping[str, tuple[object, ...]] = {
    "model_type": ("gpt2",),
    "activation_function": TANH_GELU,
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
    "layer_norm_epsilon": (1e-5,),
}
"""Keys of GPT-2's config.json that change what is computed, with the values that this trainer computes."""
MASKS = re.compile(r"(h|trf_blocks)\.\d+\.(attn\.(bias|masked_bias)|att\.mask)")
"""Buffers that other programs save beside the weights: the causal mask, which this trainer does not store."""
PARTS_OF_REFERENCE = {
    "attention_norm": "norm1", "attention_out": "att.out_proj", "mlp_norm": "norm2",
    "mlp_up": "ff.layers.0", "mlp_down": "ff.layers.2",
}  # fmt: skip
TOP_OF_REFERENCE = {
    "token_embedding.weight": "tok_emb.weight",
    "position_embedding.weight": "pos_emb.weight",
    "final_norm.weight": "final_norm.scale",
    "final_norm.bias": "final_norm.shift",
    "head.weight": "out_head.weight",
}
KINDS_OF_NORM = {"weight": "scale", "bias": "shift"}


@dataclass(frozen=True)
class ReadModel:
    """A foreign model as this trainer has it: float32 tensors by name, each made when its turn comes."""

    layout: str
    model: ModelConfig
    tensors: Mapping[str, PlannedTensor]
    dropped: tuple[str, ...] = ()
    """Buffers that are not weights."""


@dataclass(frozen=True)
class _Layout:
    """Where a tensor of this trainer is in the foreign file: the names whose rows it joins, and whether transposed."""

    name: str
    names: Callable[[str], tuple[str, ...]]
    transposed: bool = False


@dataclass(frozen=True)
class Allowed:
    """What you say about the model where nothing beside its weights does."""

    n_head: int | None = None
    tanh_gelu: bool = False
    """Take a model with the exact GELU, although this trainer computes its tanh form: the losses differ slightly."""


def read_model(found: FoundWeights, allowed: Allowed | None = None) -> ReadModel:
    """The model, with all its tensors planned. Raises WeightsError."""
    allowed = allowed or Allowed()
    # Hugging Face's class names its body `transformer`, the reference trainer's class for the Hub `model`.
    named = {name.removeprefix("transformer."): weight for name, weight in found.tensors.items()}
    tensors = {re.sub(r"^model\.(?=tok_emb|pos_emb|trf_blocks|final_norm\.s|out_head)", "", name): weight
               for name, weight in named.items()}  # fmt: skip
    dropped = tuple(name for name in sorted(tensors) if MASKS.fullmatch(name))
    tensors = {name: weight for name, weight in tensors.items() if name not in dropped}
    if "token_embedding.weight" in tensors:
        return _own(found, tensors)
    if "tok_emb.weight" in tensors or "trf_blocks.0.att.W_query.weight" in tensors:
        layout, model = _reference(found, tensors, allowed)
    elif "wte.weight" in tensors and "h.0.attn.c_attn.weight" in tensors:
        layout, model = _gpt2(found, tensors, allowed)
    elif any(name.endswith("lora_A.weight") for name in tensors):
        raise WeightsError(
            f"{found.place}: these are adapters without their model: merge them (gptctl export, or merge_and_unload of "
            "peft), and take the merged model"
        )
    else:
        raise WeightsError(f"{found.place}: {_stranger(found)} is not a GPT-2 that this trainer can express")
    return ReadModel(layout.name, model, _planned(found, tensors, model, layout), dropped)


def _stranger(found: FoundWeights) -> str:
    """What the model says it is, else what its first tensors are called."""
    config = found.described.get("config.json", {})
    listed = config.get("architectures")
    names = [*(listed if isinstance(listed, list) else []), config.get("model_type"), "a model"]
    some = ", ".join(list(found.tensors)[:3])
    return f"{next(name for name in names if name and isinstance(name, str))} (tensors {some})"


def _own(found: FoundWeights, tensors: Mapping[str, Weight]) -> ReadModel:
    """An export with --format safetensors: the names are ours, and meta.json has the shape."""
    described = found.described.get("meta.json", {}).get("model")
    model = described_model(found.place, described, len(tensors))
    return ReadModel(OWN, model, _planned(found, tensors, model, _Layout(OWN, lambda name: (name,))))


def _gpt2(found: FoundWeights, tensors: Mapping[str, Weight], allowed: Allowed) -> tuple[_Layout, ModelConfig]:
    """Hugging Face's Conv1D has rows and columns swapped; nanoGPT has the same names and nn.Linear's order."""
    rows, width = _table(found, tensors, "wte.weight")
    conv1d = tensors["h.0.attn.c_attn.weight"].shape == (width, 3 * width)
    config = found.described.get("config.json" if conv1d else "model_args", {})
    _check_config(found, config if conv1d else {"activation_function": "gelu"}, width, allowed)
    own = found.described.get("gptctl.json", {}).get("model")
    if own is not None:  # our own export has zeros for the biases that the model does not have
        model = described_model(found.place, own, len(tensors))
    else:
        said = flag_of(found.place, config, "tie_word_embeddings")
        said = True if said is None and conv1d and config else said  # transformers' default
        tied = _tied(found, tensors, "wte.weight", "lm_head.weight", said)
        model = ModelConfig(
            vocab_size=rows,
            context_length=_table(found, tensors, "wpe.weight")[0],
            n_layer=_layers(tensors, "h"),
            n_head=_heads(found, config.get("n_head"), allowed.n_head),
            n_embd=width,
            dropout=_dropout(found, config),
            qkv_bias="h.0.attn.c_attn.bias" in tensors,
            bias="ln_f.bias" in tensors,
            attention_out_bias=_own_bias(tensors, "h.0.attn.c_proj.bias", "ln_f.bias"),
            tie_embeddings=tied,
        )

    def names(name: str) -> tuple[str, ...]:
        return (gpt2_name(name).removeprefix("transformer."),)

    return _Layout(HUGGING_FACE if conv1d else NANOGPT, names, transposed=conv1d), model


def _check_config(found: FoundWeights, config: Mapping[str, Any], width: int, allowed: Allowed) -> None:
    """Raises WeightsError for a setting that computes something else than this trainer. nanoGPT's code has the exact
    GELU, and its files do not say so."""
    if config.get("activation_function") == "gelu":
        if not allowed.tanh_gelu:
            raise WeightsError(
                f"{found.place}: its GELU is the exact one, this trainer's the tanh form: losses would differ a "
                "little. --accept-tanh-gelu imports it as it is"
            )
        config = {**config, "activation_function": TANH_GELU[0]}
    for key, known in EXPRESSED.items():
        if key in config and config[key] not in known:
            raise WeightsError(f"{found.place}: {key} = {shown(config[key])} cannot be expressed; known: {known[0]!r}")
    if config.get("n_inner") not in (None, 4 * width):
        raise WeightsError(
            f"{found.place}: n_inner = {shown(config['n_inner'])} cannot be expressed; known: {4 * width}"
        )


def _dropout(found: FoundWeights, config: Mapping[str, Any]) -> float:
    """This trainer has one rate, GPT-2 three. A rate that is not said is 0."""
    keys = [key for key in ("dropout", "resid_pdrop", "embd_pdrop", "attn_pdrop") if config.get(key) is not None]
    rates = {rate_of(found.place, config, key) for key in keys}
    if len(rates) > 1:
        different = ", ".join(f"{key} = {config[key]:g}" for key in keys)
        raise WeightsError(f"{found.place}: {different} cannot be expressed: this trainer has one dropout rate")
    return rates.pop() if rates else 0.0


def _reference(found: FoundWeights, tensors: Mapping[str, Weight], allowed: Allowed) -> tuple[_Layout, ModelConfig]:
    cfg = found.described.get("config.json", {}).get("cfg")
    config = found.described.get("model.json") or table_of(found.place, cfg, "cfg of config.json")
    if config.get("moe"):
        raise WeightsError(f"{found.place}: a mixture of experts (`moe`) cannot be expressed")
    table = "tok_emb.weight" if "tok_emb.weight" in tensors else "out_head.weight"  # a tied one is saved once
    rows, width = _table(found, tensors, table)
    if (said := config.get("emb_dim", width)) != width:
        raise WeightsError(f"{found.place}: its description says emb_dim {shown(said)}, the tensors have {width}")
    tied = flag_of(found.place, config, "tie_weights")
    model = ModelConfig(
        vocab_size=rows,
        context_length=_table(found, tensors, "pos_emb.weight")[0],
        n_layer=_layers(tensors, "trf_blocks"),
        n_head=_heads(found, config.get("n_heads"), allowed.n_head),
        n_embd=width,
        dropout=rate_of(found.place, config, "drop_rate"),
        qkv_bias="trf_blocks.0.att.W_query.bias" in tensors,
        bias=True,
        attention_out_bias=_own_bias(tensors, "trf_blocks.0.att.out_proj.bias", "trf_blocks.0.ff.layers.0.bias"),
        tie_embeddings=_tied(found, tensors, "tok_emb.weight", "out_head.weight", tied),
        init="torch",
    )

    def names(name: str) -> tuple[str, ...]:
        if name == "token_embedding.weight":
            return (table,)
        if name in TOP_OF_REFERENCE:
            return (TOP_OF_REFERENCE[name],)
        _, layer, part, kind = name.split(".")
        block = f"trf_blocks.{layer}"
        if part == "qkv":
            return tuple(f"{block}.att.{each}.{kind}" for each in ("W_query", "W_key", "W_value"))
        kind = KINDS_OF_NORM[kind] if part.endswith("norm") else kind
        return (f"{block}.{PARTS_OF_REFERENCE[part]}.{kind}",)

    return _Layout(REFERENCE, names), model


def _table(found: FoundWeights, tensors: Mapping[str, Weight], name: str) -> tuple[int, int]:
    if name not in tensors or len(tensors[name].shape) != 2:
        raise WeightsError(f"{found.place}: tensor {name} is missing, or is not a table")
    rows, width = tensors[name].shape
    return rows, width


def _layers(tensors: Mapping[str, Weight], prefix: str) -> int:
    numbers = (re.match(rf"{prefix}\.(\d{{1,6}})\.", name) for name in tensors)
    return 1 + max((int(number[1]) for number in numbers if number), default=-1)


def _heads(found: FoundWeights, said: object, given: int | None) -> int:
    """The number of heads is in no tensor. Raises WeightsError where nothing says it."""
    if isinstance(said, int) and not isinstance(said, bool) and given in (None, said):
        return said
    if said is None and given is not None:
        return given
    if said is None:
        raise WeightsError(f"{found.place}: nothing there says how many attention heads it has: add --n-head N")
    raise WeightsError(f"{found.place}: --n-head {given}, but its description says {shown(said)}")


def _own_bias(tensors: Mapping[str, Weight], name: str, other: str) -> bool | None:
    """Whether attention's output has a bias, where that is not as for the MLP; None: as there."""
    return None if (name in tensors) == (other in tensors) else name in tensors


def _tied(found: FoundWeights, tensors: Mapping[str, Weight], table: str, head: str, said: bool | None) -> bool:
    """Whether the head is the embedding. A file may have a tied table once or twice."""
    if table not in tensors or head not in tensors:
        if said is False:
            raise WeightsError(f"{found.place}: its description says an untied head, and tensor {head} is missing")
        return True
    equal = np.array_equal(tensors[table].read(), tensors[head].read())
    if said is True and not equal:
        raise WeightsError(f"{found.place}: its description says a tied head, and {head} is not {table}")
    return equal if said is None else said


def _planned(
    found: FoundWeights, tensors: Mapping[str, Weight], model: ModelConfig, layout: _Layout
) -> dict[str, PlannedTensor]:
    """Every tensor of the model, and proof that nothing else is in the file. Raises WeightsError."""
    if model.n_head < 1 or model.n_embd % model.n_head:
        raise WeightsError(f"{found.place}: width {model.n_embd} does not divide into {shown(model.n_head)} heads")
    expected = expected_shapes(model)
    used: set[str] = set()
    planned = {}
    for name, shape in expected.items():
        sources = layout.names(name)
        for source in sources:
            if source not in tensors:
                raise WeightsError(f"{found.place}: tensor {source} is missing: this trainer has no model without it")
        used.update(sources)
        turned = layout.transposed and name.startswith("blocks.") and len(shape) == 2
        weights = [tensors[source] for source in sources]
        _check_shape(found, sources, weights, shape[::-1] if turned else shape)
        planned[name] = PlannedTensor("F32", shape, _joined(weights, turned))
    _check_rest(found, tensors, used, model, layout)
    return planned


def _check_shape(found: FoundWeights, names: tuple[str, ...], weights: list[Weight], shape: tuple[int, ...]) -> None:
    wanted = (shape[0] // len(weights), *shape[1:])
    for name, weight in zip(names, weights, strict=True):
        if weight.shape != wanted:
            raise WeightsError(f"{found.place}: tensor {name} has shape {weight.shape}, expected {wanted}")


def _joined(weights: list[Weight], turned: bool) -> Callable[[], Array]:
    def make() -> Array:
        parts = [weight.read() for weight in weights]
        whole = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return np.ascontiguousarray(whole.T if turned else whole)

    return make


def _check_rest(
    found: FoundWeights, tensors: Mapping[str, Weight], used: set[str], model: ModelConfig, layout: _Layout
) -> None:
    """What is left over must say nothing: the second copy of a tied table, or our own export's zeros for biases."""
    full = dataclasses.replace(model, bias=True, qkv_bias=True, tie_embeddings=False)
    spare = {source for name in expected_shapes(full) for source in layout.names(name)}
    for name in sorted(tensors.keys() - used):
        weight = tensors[name]
        if name in spare and name.endswith("bias") and not weight.read().any():
            continue
        if name in spare and model.tie_embeddings and not name.endswith("bias"):
            continue
        raise WeightsError(f"{found.place}: tensor {name} {weight.shape} has no place in this trainer's GPT-2")
