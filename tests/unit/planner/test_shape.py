"""Parameter counts against models that transformers, peft and Hansa itself build."""

from __future__ import annotations

from typing import Any

import pytest

from hansa.core.errors import SpecError
from hansa.planner.known import known, known_names, must_know
from hansa.planner.shape import Adapters, ModelShape, from_config, tiny_llama

torch = pytest.importorskip("torch")

PUBLISHED = {
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "llama-2-70b": 68_976_648_192,
    "llama-3-8b": 8_030_261_248,
    "mistral-7b": 7_241_732_096,
    "qwen2-0.5b": 494_032_768,
    "qwen2-7b": 7_615_616_512,
    "smollm2": 134_515_008,
    "tinyllama-1.1b": 1_100_048_384,
    "gpt2": 124_439_808,
    "gpt2-xl": 1_557_611_200,
    "opt-125m": 125_239_296,
    "opt-1.3b": 1_315_758_080,
    "opt-6.7b": 6_658_473_984,
    "gpt-neox-20b": 20_554_567_680,
}
SIZES: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 40,
}
WIDE = {**SIZES, "intermediate_size": 80}
GROUPED = {**WIDE, "num_key_value_heads": 2}
GPT2 = {"vocab_size": 97, "n_embd": 48, "n_layer": 3, "n_head": 4, "n_positions": 40}
OPT = {**SIZES, "ffn_dim": 96, "word_embed_proj_dim": 48}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", WIDE),
    "llama, biased": (
        "LlamaConfig",
        {**GROUPED, "attention_bias": True, "mlp_bias": True},
    ),
    "llama, wide heads": ("LlamaConfig", {**GROUPED, "head_dim": 20}),
    "mistral": ("MistralConfig", {**GROUPED, "tie_word_embeddings": True}),
    "qwen2": ("Qwen2Config", GROUPED),
    "gpt2": ("GPT2Config", GPT2),
    "gpt2, inner": ("GPT2Config", {**GPT2, "n_inner": 100}),
    "opt": ("OPTConfig", OPT),
    "opt, projected": (
        "OPTConfig",
        {**OPT, "word_embed_proj_dim": 24, "do_layer_norm_before": False},
    ),
    "gpt-neox": ("GPTNeoXConfig", WIDE),
    "gpt-neox, tied": (
        "GPTNeoXConfig",
        {**WIDE, "tie_word_embeddings": True, "attention_bias": False},
    ),
}


def built(kind: str, sizes: dict[str, Any]) -> tuple[Any, ModelShape]:
    """Return transformers' model on the meta device, and our shape of its config."""
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, kind)(**sizes)
    config.bos_token_id = config.eos_token_id = config.pad_token_id = 1
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    return model, from_config(config.to_dict())


@pytest.mark.parametrize("name", MODELS)
def test_the_counts_are_those_of_transformers(name: str) -> None:
    model, shape = built(*MODELS[name])
    counts = {n: p.numel() for n, p in model.named_parameters()}
    assert shape.parameters == shape.trained == sum(counts.values())
    in_layers = sum(v for n, v in counts.items() if ".layers." in n or ".h." in n)
    assert shape.layers * shape.layer_parameters == in_layers


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_counts_of_known_models_are_the_published_ones(name: str) -> None:
    assert must_know(name).parameters == PUBLISHED[name]


def test_all_known_models_are_counted_here() -> None:
    assert known_names() == sorted(PUBLISHED)


def test_of_all_known_models_the_longest_sequence_is_known() -> None:
    """So that a longer one is refused before anything is submitted."""
    positions = {name: must_know(name).positions for name in known_names()}
    assert all(positions.values())
    assert (positions["llama-2-7b"], positions["smollm2"]) == (4096, 8192)


def test_names_of_folders_and_hubs_are_known_too() -> None:
    assert known("meta-llama/Llama-2-7b-hf") == known("/models/llama-2-7b/")
    assert known("my-own") is None
    with pytest.raises(SpecError, match="'llama2-7b' are not known") as caught:
        must_know("llama2-7b")
    assert "Did you mean 'llama-2-7b'?" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("name", "targets"),
    [
        ("llama", ("q_proj", "down_proj")),
        ("qwen2", ("k_proj", "v_proj", "o_proj")),
        ("gpt2", ("c_attn", "c_proj")),
        ("opt", ("out_proj", "fc1")),
        ("gpt-neox", ("query_key_value", "dense_4h_to_h")),
    ],
)
def test_the_counts_of_adapters_are_those_of_peft(
    name: str, targets: tuple[str, ...]
) -> None:
    peft = pytest.importorskip("peft")
    model, shape = built(*MODELS[name])
    config = peft.LoraConfig(
        r=5, target_modules=list(targets), fan_in_fan_out=name == "gpt2"
    )
    peft.inject_adapter_in_model(config, model)
    thin = shape.with_adapters(Adapters(rank=5, targets=targets))
    trained = {n: p.numel() for n, p in model.named_parameters() if "lora_" in n}
    assert thin.trained == sum(trained.values())
    assert thin.parameters == sum(p.numel() for p in model.parameters())
    assert thin.base_parameters == shape.parameters


@pytest.mark.parametrize("target", ["q_proj", "wte"])
def test_adapters_need_linear_layers_of_their_names(target: str) -> None:
    shape = must_know("gpt2")
    with pytest.raises(SpecError, match=f"no linear layer '{target}'") as caught:
        shape.with_adapters(Adapters(rank=8, targets=("c_attn", target)))
    assert caught.value.hint == "Its layers: c_attn, c_fc, c_proj."


def test_tiny_llama_is_hansas_own_model() -> None:
    from hansa.worker.trainers.llama import Llama, LlamaShape

    shape = tiny_llama(
        hidden=40, layers=3, heads=5, intermediate=None, vocabulary=300, positions=64
    )
    assert shape.inner == 112  # 8/3 of 40, up to a multiple of 16
    sizes = LlamaShape(
        vocab_size=300,
        hidden_size=40,
        intermediate_size=112,
        num_hidden_layers=3,
        num_attention_heads=5,
        max_position_embeddings=64,
    )
    with torch.device("meta"):
        count = sum(p.numel() for p in Llama(sizes, 0).parameters())
    assert shape.parameters == count
    other = from_config(sizes.to_config(bos=0, eos=1))
    assert (other.parameters, other.family) == (count, "llama")


def test_what_is_not_known_is_told() -> None:
    with pytest.raises(SpecError, match="of type 'mamba'"):
        from_config({"model_type": "mamba"})
    with pytest.raises(SpecError, match="lacks 'hidden_size'"):
        from_config({"model_type": "llama", "num_attention_heads": 4})
