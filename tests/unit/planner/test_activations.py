"""What layers keep, against what autograd really saves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from hansa.planner.activations import kept_by_layer
from hansa.planner.shape import ModelShape, from_config, tiny_llama

torch = pytest.importorskip("torch")

EXAMPLES, LENGTH = 2, 24
WIDE = {
    "vocab_size": 64,
    "hidden_size": 48,
    "num_attention_heads": 4,
    "max_position_embeddings": 40,
    "intermediate_size": 80,
}
GROUPED = {**WIDE, "num_key_value_heads": 2}
GPT2 = {"vocab_size": 64, "n_embd": 48, "n_head": 4, "n_positions": 40}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", GROUPED),
    "qwen2": ("Qwen2Config", GROUPED),
    "gpt2, dropout": ("GPT2Config", GPT2),
    "gpt2": ("GPT2Config", {**GPT2, "resid_pdrop": 0.0, "attn_pdrop": 0.0}),
    "opt, dropout": ("OPTConfig", {**WIDE, "ffn_dim": 96, "word_embed_proj_dim": 48}),
    "gpt-neox": ("GPTNeoXConfig", WIDE),
}


def saved(model: Any, forward: Callable[[], Any]) -> int:
    """Return the bytes that autograd keeps in a forward pass, beside the weights."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, Any] = {}

    def pack(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        output = forward()
    del output
    return sum(storage.nbytes() for storage in kept.values())


def of_transformers(kind: str, sizes: dict[str, Any], dtype: Any) -> int:
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, kind)(**sizes)
    config.bos_token_id = config.eos_token_id = config.pad_token_id = 1
    model = transformers.AutoModelForCausalLM.from_config(config).to(dtype).train()
    ids = torch.zeros(EXAMPLES, LENGTH, dtype=torch.long)
    return saved(model, lambda: model(input_ids=ids, use_cache=False).logits)


@pytest.mark.parametrize("width", [4, 2])
@pytest.mark.parametrize("name", MODELS)
def test_a_layer_keeps_what_is_foretold(name: str, width: int) -> None:
    kind, sizes = MODELS[name]
    dtype = {4: torch.float32, 2: torch.bfloat16}[width]
    key = "n_layer" if kind == "GPT2Config" else "num_hidden_layers"
    two, three = (of_transformers(kind, {**sizes, key: n}, dtype) for n in (2, 3))
    kept = kept_by_layer(_shape(kind, {**sizes, key: 2}), width, LENGTH, host=True)
    assert three - two == EXAMPLES * LENGTH * kept


def _shape(kind: str, sizes: dict[str, Any]) -> ModelShape:
    transformers = pytest.importorskip("transformers")
    return from_config(getattr(transformers, kind)(**sizes).to_dict())


@pytest.mark.parametrize("width", [4, 2])
def test_a_layer_of_tiny_llama_keeps_what_is_foretold(width: int) -> None:
    from hansa.worker.trainers.llama import Llama, LlamaShape

    def of(layers: int) -> int:
        sizes = LlamaShape(
            vocab_size=300,
            hidden_size=40,
            intermediate_size=112,
            num_hidden_layers=layers,
            num_attention_heads=5,
            max_position_embeddings=64,
        )
        model = Llama(sizes, 0).to({4: torch.float32, 2: torch.bfloat16}[width])
        ids = torch.zeros(EXAMPLES, LENGTH, dtype=torch.long)
        return saved(model, lambda: model(ids, ids == 0))

    shape = tiny_llama(
        hidden=40, layers=2, heads=5, intermediate=112, vocabulary=300, positions=64
    )
    foretold = kept_by_layer(shape, width, LENGTH, host=True)
    assert of(3) - of(2) == EXAMPLES * LENGTH * foretold


def test_a_dropout_costs_less_on_a_gpu() -> None:
    """One byte a number for the mask, and attention stays fused."""
    shape = from_config({**GPT2, "model_type": "gpt2", "n_layer": 2})
    plain = from_config(
        {**GPT2, "model_type": "gpt2", "n_layer": 2, "resid_pdrop": 0, "attn_pdrop": 0}
    )
    more = kept_by_layer(shape, 2, 1024) - kept_by_layer(plain, 2, 1024)
    assert more == 2 * 48
