"""How large a language model is, read from its config and counted exactly."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from hansa.core.errors import SpecError

Config = Mapping[str, Any]
OWN = "hansa-llama"
"""The family of Hansa's own decoder, that of ``tiny-llama`` and ``smollm2``."""


EMBEDDINGS: Final = frozenset(
    {"embed_tokens", "embed_positions", "embed_in", "wte", "wpe"}
)
"""Tables that are looked up in, not multiplied with."""


@dataclass(frozen=True, slots=True)
class Matrix:
    """A linear layer, or an embedding.

    Attributes:
        name: The last part of its name, as `targets` of LoRA say it.
        inputs: Numbers that go in; tokens for an embedding.
        outputs: Numbers that come out.
        bias: Whether it has one.
    """

    name: str
    inputs: int
    outputs: int
    bias: bool = False

    @property
    def numbers(self) -> int:
        """Weights and biases."""
        return self.inputs * self.outputs + (self.outputs if self.bias else 0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Adapters:
    """LoRA (arXiv 2106.09685): two thin factors beside each target, all else frozen.

    Attributes:
        rank: Of each adapter.
        targets: Names of the layers that have one.
    """

    rank: int
    targets: tuple[str, ...]

    def beside(self, matrices: tuple[Matrix, ...]) -> int:
        """Return the numbers of the adapters beside these layers."""
        chosen = (one for one in matrices if one.name in self.targets)
        return sum(self.rank * (one.inputs + one.outputs) for one in chosen)


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelShape:
    """Sizes of a decoder, all that memory depends on.

    Attributes:
        family: "llama" (Llama, Mistral, Qwen2, ...), "gpt2", "opt", "gpt-neox", or
            `OWN`.
        layers: Decoder layers.
        hidden: Width of the residual stream.
        inner: Width of the feed-forward layers.
        heads: Attention heads.
        kv_heads: Heads of keys and values; fewer with grouped queries.
        head_width: Width of one head.
        vocabulary: Tokens.
        positions: Longest sequence.
        tied: Whether the head has the embedding's weights.
        layer: The linear layers of one decoder layer.
        layer_rest: Its other numbers, those of the norms.
        outer: Embeddings and what else is linear in no decoder layer.
        outer_rest: Other numbers in no decoder layer.
        dropouts: Dropouts over the residual stream in one layer.
        attention_dropout: Whether there is one over the weights of the attention.
        adapters: LoRA; None: all is trained.
    """

    family: str
    layers: int
    hidden: int
    inner: int
    heads: int
    kv_heads: int
    head_width: int
    vocabulary: int
    positions: int
    tied: bool
    layer: tuple[Matrix, ...]
    layer_rest: int
    outer: tuple[Matrix, ...]
    outer_rest: int
    dropouts: int = 0
    attention_dropout: bool = False
    adapters: Adapters | None = None

    @property
    def layer_parameters(self) -> int:
        """Numbers of one decoder layer, without adapters."""
        return sum(one.numbers for one in self.layer) + self.layer_rest

    @property
    def outer_parameters(self) -> int:
        """Numbers in no decoder layer, without adapters."""
        return sum(one.numbers for one in self.outer) + self.outer_rest

    @property
    def base_parameters(self) -> int:
        """Numbers of the model without adapters."""
        return self.layers * self.layer_parameters + self.outer_parameters

    @property
    def layer_adapters(self) -> int:
        """Numbers of the adapters in one decoder layer."""
        return self.adapters.beside(self.layer) if self.adapters else 0

    @property
    def adapter_parameters(self) -> int:
        """Numbers of all adapters."""
        if self.adapters is None:
            return 0
        return self.layers * self.layer_adapters + self.adapters.beside(self.outer)

    @property
    def parameters(self) -> int:
        """All numbers, trained or frozen."""
        return self.base_parameters + self.adapter_parameters

    @property
    def trained(self) -> int:
        """Numbers that are trained and exchanged."""
        return self.parameters if self.adapters is None else self.adapter_parameters

    def with_adapters(self, adapters: Adapters | None) -> ModelShape:
        """Return the same model with LoRA, or without.

        Raises:
            SpecError: It has no linear layer of a target's name.
        """
        names = {one.name for one in (*self.layer, *self.outer)} - EMBEDDINGS
        missing = sorted(set(adapters.targets) - names) if adapters else []
        if missing:
            raise SpecError(
                f"The model has no linear layer {missing[0]!r} for a LoRA adapter.",
                hint=f"Its layers: {', '.join(sorted(names))}.",
            )
        return replace(self, adapters=adapters)


def from_config(config: Config, *, own: bool = False) -> ModelShape:
    """Read the shape from a Hugging Face ``config.json``.

    Args:
        config: What the file holds.
        own: Whether Hansa's own decoder computes it (``tiny-llama``, ``smollm2``),
            which keeps other activations than that of transformers.

    Raises:
        SpecError: The family is not known, or a size is missing.
    """
    kind = str(config.get("model_type"))
    if kind not in _FAMILIES:
        raise SpecError(
            f"The memory of a model of type {kind!r} can't be foretold.",
            hint=f"Known types: {', '.join(sorted(_FAMILIES))}.",
        )
    try:
        shape = _FAMILIES[kind](config)
    except KeyError as error:
        raise SpecError(f"The model's config lacks {error}.") from error
    return replace(shape, family=OWN) if own else shape


def tiny_llama(
    *,
    hidden: int,
    layers: int,
    heads: int,
    intermediate: int | None,
    vocabulary: int,
    positions: int,
) -> ModelShape:
    """Return the shape of ``source: tiny-llama`` by its options."""
    inner = intermediate or -(-hidden * 8 // (3 * _MULTIPLE)) * _MULTIPLE
    config = {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": inner,
        "vocab_size": vocabulary,
        "max_position_embeddings": positions,
        "tie_word_embeddings": True,
    }
    return replace(_llama(config), family=OWN)


_MULTIPLE = 16


def _llama(config: Config) -> ModelShape:
    hidden, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
    inner = int(config["intermediate_size"])
    kv = int(config.get("num_key_value_heads") or heads)
    width = int(config.get("head_dim") or hidden // heads)
    all_biased = bool(config.get("attention_bias", False))
    biased = all_biased or config.get("model_type") == "qwen2"
    mlp = bool(config.get("mlp_bias", False))
    tied = bool(config.get("tie_word_embeddings", False))
    vocabulary = int(config["vocab_size"])
    embedding = Matrix("embed_tokens", vocabulary, hidden)
    head = () if tied else (Matrix("lm_head", hidden, vocabulary),)
    return ModelShape(
        family="llama",
        layers=int(config["num_hidden_layers"]),
        hidden=hidden,
        inner=inner,
        heads=heads,
        kv_heads=kv,
        head_width=width,
        vocabulary=vocabulary,
        positions=int(config.get("max_position_embeddings", 0)),
        tied=tied,
        layer=(
            Matrix("q_proj", hidden, heads * width, biased),
            Matrix("k_proj", hidden, kv * width, biased),
            Matrix("v_proj", hidden, kv * width, biased),
            Matrix("o_proj", heads * width, hidden, all_biased),
            Matrix("gate_proj", hidden, inner, mlp),
            Matrix("up_proj", hidden, inner, mlp),
            Matrix("down_proj", inner, hidden, mlp),
        ),
        layer_rest=2 * hidden,
        outer=(embedding, *head),
        outer_rest=hidden,
        attention_dropout=_drops(config, "attention_dropout", 0.0),
    )


def _gpt2(config: Config) -> ModelShape:
    hidden, heads = int(config["n_embd"]), int(config["n_head"])
    inner = int(config.get("n_inner") or 4 * hidden)
    positions = int(config["n_positions"])
    vocabulary = int(config["vocab_size"])
    tied = bool(config.get("tie_word_embeddings", True))
    head = () if tied else (Matrix("lm_head", hidden, vocabulary),)
    return ModelShape(
        family="gpt2",
        layers=int(config["n_layer"]),
        hidden=hidden,
        inner=inner,
        heads=heads,
        kv_heads=heads,
        head_width=hidden // heads,
        vocabulary=vocabulary,
        positions=positions,
        tied=tied,
        layer=(
            Matrix("c_attn", hidden, 3 * hidden, bias=True),
            Matrix("c_proj", hidden, hidden, bias=True),
            Matrix("c_fc", hidden, inner, bias=True),
            Matrix("c_proj", inner, hidden, bias=True),
        ),
        layer_rest=4 * hidden,
        outer=(
            Matrix("wte", vocabulary, hidden),
            Matrix("wpe", positions, hidden),
            *head,
        ),
        outer_rest=2 * hidden,
        dropouts=2 if _drops(config, "resid_pdrop", 0.1) else 0,
        attention_dropout=_drops(config, "attn_pdrop", 0.1),
    )


_OPT_OFFSET = 2
"""OPT's table of positions begins with two that are never used."""


def _opt(config: Config) -> ModelShape:
    hidden, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
    inner, biased = int(config["ffn_dim"]), bool(config.get("enable_bias", True))
    narrow = int(config.get("word_embed_proj_dim") or hidden)
    vocabulary, tied = (
        int(config["vocab_size"]),
        bool(config.get("tie_word_embeddings", True)),
    )
    positions = int(config["max_position_embeddings"])
    norm = 2 * hidden if config.get("layer_norm_elementwise_affine", True) else 0
    first = bool(config.get("do_layer_norm_before", True))
    last = first and not config.get("_remove_final_layer_norm", False)
    projections = (
        Matrix("project_in", narrow, hidden),
        Matrix("project_out", hidden, narrow),
    )
    return ModelShape(
        family="opt",
        layers=int(config["num_hidden_layers"]),
        hidden=hidden,
        inner=inner,
        heads=heads,
        kv_heads=heads,
        head_width=hidden // heads,
        vocabulary=vocabulary,
        positions=positions,
        tied=tied,
        layer=(
            *(
                Matrix(name, hidden, hidden, biased)
                for name in ("q_proj", "k_proj", "v_proj", "out_proj")
            ),
            Matrix("fc1", hidden, inner, biased),
            Matrix("fc2", inner, hidden, biased),
        ),
        layer_rest=2 * norm,
        outer=(
            Matrix("embed_tokens", vocabulary, narrow),
            Matrix("embed_positions", positions + _OPT_OFFSET, hidden),
            *(projections if narrow != hidden else ()),
            *(() if tied else (Matrix("lm_head", narrow, vocabulary),)),
        ),
        outer_rest=norm if last else 0,
        dropouts=2 if _drops(config, "dropout", 0.1) else 0,
        attention_dropout=_drops(config, "attention_dropout", 0.0),
    )


def _gpt_neox(config: Config) -> ModelShape:
    hidden, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
    inner, vocabulary = int(config["intermediate_size"]), int(config["vocab_size"])
    biased = bool(config.get("attention_bias", True))
    tied = bool(config.get("tie_word_embeddings", False))
    head = () if tied else (Matrix("embed_out", hidden, vocabulary),)
    return ModelShape(
        family="gpt-neox",
        layers=int(config["num_hidden_layers"]),
        hidden=hidden,
        inner=inner,
        heads=heads,
        kv_heads=heads,
        head_width=hidden // heads,
        vocabulary=vocabulary,
        positions=int(config["max_position_embeddings"]),
        tied=tied,
        layer=(
            Matrix("query_key_value", hidden, 3 * hidden, biased),
            Matrix("dense", hidden, hidden, biased),
            Matrix("dense_h_to_4h", hidden, inner, bias=True),
            Matrix("dense_4h_to_h", inner, hidden, bias=True),
        ),
        layer_rest=4 * hidden,
        outer=(Matrix("embed_in", vocabulary, hidden), *head),
        outer_rest=2 * hidden,
        dropouts=2 if _drops(config, "hidden_dropout", 0.0) else 0,
        attention_dropout=_drops(config, "attention_dropout", 0.0),
    )


def _drops(config: Config, key: str, usual: float) -> bool:
    """Tell whether a dropout is on; `usual` is its value in transformers."""
    return float(config.get(key, usual)) > 0


_FAMILIES: dict[str, Callable[[Config], ModelShape]] = {
    "llama": _llama,
    "mistral": _llama,
    "qwen2": _llama,
    "gpt2": _gpt2,
    "opt": _opt,
    "gpt_neox": _gpt_neox,
}
