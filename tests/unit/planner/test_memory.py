"""The parts of the memory, worked out by hand for a model of round sizes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hansa.planner.memory import GPU_BASE, predict
from hansa.planner.setting import Setting
from hansa.planner.shape import Adapters, ModelShape, from_config

WIDTH, INNER, LAYERS, WORDS = 1000, 3000, 10, 20000
CONFIG = {
    "model_type": "llama",
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 10,
    "intermediate_size": INNER,
    "vocab_size": WORDS,
    "tie_word_embeddings": True,
}
SHAPE: ModelShape = from_config(CONFIG)
LAYER = 4 * WIDTH**2 + 3 * WIDTH * INNER + 2 * WIDTH
NUMBERS = LAYERS * LAYER + WORDS * WIDTH + WIDTH
OUTSIDE = (8 + 4) * WIDTH
"""The last norm keeps two forms in float32; the head's input is there twice."""
SETTING = Setting(
    sharding="none",
    precision="mixed",
    optimizer="adamw",
    micro_batch=1,
    sequence_length=8,
    accumulation=2,
)


def test_the_numbers_are_those_of_the_model() -> None:
    assert (SHAPE.layer_parameters, SHAPE.parameters) == (LAYER, NUMBERS)


@pytest.mark.parametrize(
    ("precision", "weights", "optimizer"),
    [("float32", 4, 8), ("bfloat16", 2, 4), ("mixed", 2, 12)],
)
def test_widths_of_weights_and_optimizer(
    precision: str, weights: int, optimizer: int
) -> None:
    """ZeRO, section 3.1: "mixed" keeps float32 weights and two moments."""
    parts = predict(SHAPE, replace(SETTING, precision=precision))
    assert parts.weights == weights * NUMBERS
    assert parts.optimizer == optimizer * NUMBERS
    assert parts.base == GPU_BASE


def test_plain_sgd_has_no_moments() -> None:
    parts = predict(SHAPE, replace(SETTING, precision="float32", optimizer="sgd"))
    assert parts.optimizer == 0
    assert predict(SHAPE, replace(SETTING, optimizer="sgd")).optimizer == 4 * NUMBERS


@pytest.mark.parametrize(
    ("sharding", "weights", "optimizer"),
    [("ddp", 1, 1), ("zero1", 1, 16), ("fsdp", 16, 16)],
)
def test_what_is_spread_is_divided_by_the_ranks(
    sharding: str, weights: int, optimizer: int
) -> None:
    parts = predict(
        SHAPE, replace(SETTING, sharding=sharding, ranks=16, precision="float32")
    )
    assert parts.weights == -(-4 * NUMBERS // weights)
    assert parts.optimizer == -(-8 * NUMBERS // optimizer)


def test_activations_grow_with_tokens_and_layers() -> None:
    """Far more tokens than weights: the forward pass is the fullest moment."""
    many = replace(SETTING, micro_batch=64, sequence_length=1024, answer=0)
    tokens = 64 * 1024
    norms = 2 * (10 * WIDTH + 4)  # input and normed in float32, output in bfloat16
    attention = 2 * 4 * WIDTH + 4 * 10
    gated = 2 * 4 * INNER
    at_work = 2 * (3 * INNER + 2 * WIDTH)
    parts = predict(from_config(CONFIG, own=True), many)
    layers = LAYERS * (norms + attention + gated)
    assert parts.activations == tokens * (layers + at_work + OUTSIDE)


def test_checkpointing_keeps_one_input_a_layer() -> None:
    many = replace(
        SETTING,
        micro_batch=64,
        sequence_length=1024,
        answer=0,
        activation_checkpointing=True,
    )
    whole = predict(SHAPE, replace(many, activation_checkpointing=False))
    layer = 2 * (8 * WIDTH + 4) + 8 * WIDTH + 40 + 8 * INNER
    at_work = 2 * (3 * INNER + 2 * WIDTH)
    kept = 64 * 1024 * (LAYERS * 2 * WIDTH + layer + at_work + OUTSIDE)
    assert predict(SHAPE, many).activations == kept < whole.activations / 4


def test_the_loss_is_computed_where_answers_are() -> None:
    """Three times float32 scores; transformers' scores are of all tokens."""
    short = replace(SETTING, precision="float32", optimizer="sgd", accumulation=1)
    many = replace(short, micro_batch=16, sequence_length=512, answer=8)
    own = from_config(CONFIG, own=True)
    assert predict(own, replace(many, answer=None)).logits == 12 * 16 * 512 * WORDS
    scores = 4 * 16 * 512 * WORDS + 8 * 16 * 8 * WORDS
    assert predict(SHAPE, many).logits == scores


def test_adapters_are_all_that_has_an_optimizer() -> None:
    thin = SHAPE.with_adapters(Adapters(rank=4, targets=("q_proj", "v_proj")))
    adapters = LAYERS * 2 * 4 * 2 * WIDTH
    assert thin.trained == adapters
    parts = predict(thin, SETTING)
    assert parts.weights == 2 * (NUMBERS + adapters)
    assert parts.optimizer == 12 * adapters
    parts = predict(thin, replace(SETTING, precision="bfloat16"))
    assert parts.weights == 2 * NUMBERS + 4 * adapters
    assert parts.optimizer == 8 * adapters
    assert parts.gradients == 4 * adapters


def test_fsdp_has_two_layers_and_the_outermost_unit_whole() -> None:
    many = replace(
        SETTING, sharding="fsdp", ranks=1000, micro_batch=16, sequence_length=512
    )
    outer = WORDS * WIDTH + WIDTH
    assert predict(SHAPE, many).buffers == 2 * (2 * LAYER + outer)


def test_on_the_processor_freed_blocks_add_up() -> None:
    """Moments that follow each other, as the allocator does not use blocks again."""
    few = replace(SETTING, precision="float32", accumulation=1)
    there = predict(SHAPE, few)
    here = predict(SHAPE, replace(few, host=True, base=there.base))
    assert there.activations == 0  # the backward pass is through at its fullest moment
    assert here.activations > 0
    assert here.gradients == round(1.08 * there.gradients)
    assert (here.weights, here.optimizer) == (there.weights, there.optimizer)
    many = replace(few, sequence_length=16384)  # blocks of more than 32 MiB
    again = predict(SHAPE, replace(many, host=True, base=there.base))
    assert again == predict(SHAPE, many)


def test_a_base_that_was_measured_is_taken() -> None:
    assert predict(SHAPE, replace(SETTING, base=17)).base == 17


def test_the_total_is_the_sum_of_the_parts() -> None:
    parts = predict(SHAPE, SETTING)
    assert parts.total == sum(parts.to_json().values())
    assert next(iter(parts.to_json())) == "weights"
