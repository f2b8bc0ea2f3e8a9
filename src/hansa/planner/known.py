"""Sizes of models that everybody knows, so that a plan needs no file."""

from __future__ import annotations

from hansa.core.errors import SpecError
from hansa.core.words import nearest
from hansa.planner.shape import Config, ModelShape, from_config


def _llama(
    hidden: int,
    layers: int,
    heads: int,
    inner: int,
    positions: int,
    *,
    vocabulary: int = 32000,
    kv_heads: int | None = None,
    tied: bool = False,
) -> Config:
    return {
        "model_type": "llama",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads or heads,
        "intermediate_size": inner,
        "max_position_embeddings": positions,
        "vocab_size": vocabulary,
        "tie_word_embeddings": tied,
    }


def _like(family: str, config: Config) -> Config:
    """Return the config for another family with the same keys."""
    return {**config, "model_type": family}


def _gpt2(hidden: int, layers: int, heads: int) -> Config:
    return {
        "model_type": "gpt2",
        "n_embd": hidden,
        "n_layer": layers,
        "n_head": heads,
        "n_positions": 1024,
        "vocab_size": 50257,
        "resid_pdrop": 0.1,
        "attn_pdrop": 0.1,
    }


def _opt(hidden: int, layers: int, heads: int) -> Config:
    return {
        "model_type": "opt",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "ffn_dim": 4 * hidden,
        "vocab_size": 50272,
        "max_position_embeddings": 2048,
        "dropout": 0.1,
    }


_CONFIGS: dict[str, Config] = {
    "llama-2-7b": _llama(4096, 32, 32, 11008, 4096),
    "llama-2-13b": _llama(5120, 40, 40, 13824, 4096),
    "llama-2-70b": _llama(8192, 80, 64, 28672, 4096, kv_heads=8),
    "llama-3-8b": _llama(4096, 32, 32, 14336, 8192, vocabulary=128256, kv_heads=8),
    "mistral-7b": _like("mistral", _llama(4096, 32, 32, 14336, 32768, kv_heads=8)),
    "qwen2-0.5b": _like(
        "qwen2",
        _llama(896, 24, 14, 4864, 131072, vocabulary=151936, kv_heads=2, tied=True),
    ),
    "qwen2-7b": _like(
        "qwen2", _llama(3584, 28, 28, 18944, 131072, vocabulary=152064, kv_heads=4)
    ),
    "smollm2": _llama(576, 30, 9, 1536, 8192, vocabulary=49152, kv_heads=3, tied=True),
    "tinyllama-1.1b": _llama(2048, 22, 32, 5632, 2048, kv_heads=4),
    "gpt2": _gpt2(768, 12, 12),
    "gpt2-xl": _gpt2(1600, 48, 25),
    "opt-125m": _opt(768, 12, 12),
    "opt-1.3b": _opt(2048, 24, 32),
    "opt-6.7b": _opt(4096, 32, 32),
    "gpt-neox-20b": {
        "model_type": "gpt_neox",
        "hidden_size": 6144,
        "num_hidden_layers": 44,
        "num_attention_heads": 64,
        "intermediate_size": 24576,
        "vocab_size": 50432,
        "max_position_embeddings": 2048,
    },
}


def known_names() -> list[str]:
    """Return the names of the known models, sorted."""
    return sorted(_CONFIGS)


def known(name: str) -> ModelShape | None:
    """Return the shape of a known model; None: it is not known.

    Folders and hub ids are known by their last part, in any case, as
    ``meta-llama/Llama-2-7b-hf``.
    """
    last = name.rstrip("/").rpartition("/")[2].lower().removesuffix("-hf")
    config = _CONFIGS.get(last)
    return from_config(config, own=last == "smollm2") if config else None


def must_know(name: str) -> ModelShape:
    """Return the shape of a known model.

    Raises:
        SpecError: It is not known; the nearest name is told.
    """
    found = known(name)
    if found is not None:
        return found
    guess = nearest(name, known_names())
    raise SpecError(
        f"The sizes of the model {name!r} are not known.",
        hint=(f"Did you mean {guess!r}? " if guess else "")
        + f"Give its folder or config.json, or one of {', '.join(known_names())}.",
    )
