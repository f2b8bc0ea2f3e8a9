"""Rows of tokens: padded or packed, the same losses, and nothing lost."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from hansa.core.errors import SpecError, WorkerError
from hansa.worker.base import Example, TrainerContext
from hansa.worker.llm_options import CausalLMModelOptions, CausalLMWorkOptions
from hansa.worker.trainers.causal_lm import CausalLM
from hansa.worker.trainers.collate import (
    Rows,
    _packed,
    check_length,
    check_separate,
    longest_question,
    passes,
    rows,
)
from hansa.worker.trainers.llama import Llama, LlamaShape
from hansa.worker.trainers.models import LanguageModel
from hansa.worker.trainers.tokenizer import Encoded, ExampleTokenizer, train_tokenizer

CPU = torch.device("cpu")
TOKENIZER = train_tokenizer(["a"], 260)


def entry(size: int, prompt: int = 1, start: int = 10) -> Encoded:
    ids = tuple((start * 7 + 5 * place) % 97 for place in range(size))
    return Encoded(ids, tuple(place >= prompt for place in range(size)))


def test_padded_rows_by_hand() -> None:
    talk = Encoded((1, 11, 12, 13, 14, 2), (False, False, True, False, True, True))
    made = rows([talk, Encoded((1, 21, 2), (False, False, True))], 9, CPU)
    assert made.ids.tolist() == [[1, 11, 12, 13, 14], [1, 21, 9, 9, 9]]
    assert made.wanted.int().tolist() == [[0, 1, 0, 1, 1], [0, 1, 0, 0, 0]]
    assert made.targets.tolist() == [12, 14, 2, 2]
    assert made.example.tolist() == [0, 0, 0, 1]
    assert made.answers.tolist() == [3, 1]
    assert (made.tokens, made.padding) == (7, 3)
    assert made.positions is None
    assert made.segments is None


def test_what_nothing_comes_before_does_not_count_as_learned() -> None:
    bare = ExampleTokenizer(TOKENIZER.tokenizer, bos=None, eos=1)
    talk = [{"role": role, "content": "ab"} for role in ("assistant", "user")]
    (first,) = bare.encode([Example("t", talk, "c")], 64)
    assert first.learned == (*[True] * 3, *[False] * 3, True, True)
    made = rows([first], 0, CPU)
    assert made.answers.tolist() == [len(made.targets)] == [4]
    with pytest.raises(WorkerError, match="no answer to learn"):
        bare.encode([Example("t", [], "")], 64)
    # Its first answer is the mark of the end alone, its second is cut away.
    talk = [{"role": "assistant", "content": ""}, {"role": "user", "content": "b" * 99}]
    with pytest.raises(WorkerError, match="no answer to learn"):
        bare.encode([Example("t", talk, "c")], 64)


def test_packed_rows_by_hand() -> None:
    few = [entry(3, start=1), entry(5, start=2), entry(4, 2, start=3)]
    made = rows(few, 0, CPU, 8)  # 7 places: 4 + 3, then 2
    assert made.ids.tolist() == [
        [*few[1].ids[:-1], *few[2].ids[:-1]],
        [*few[0].ids[:-1], 0, 0, 0, 0, 0],
    ]
    assert made.positions is not None
    assert made.positions.tolist() == [[0, 1, 2, 3, 0, 1, 2], [0, 1, 0, 0, 0, 0, 0]]
    assert made.segments is not None
    assert made.segments.tolist() == [[1, 1, 1, 1, 2, 2, 2], [1, 1, 0, 0, 0, 0, 0]]
    assert made.targets.tolist() == [*few[1].ids[1:], *few[2].ids[2:], *few[0].ids[1:]]
    assert made.example.tolist() == [1, 1, 1, 1, 2, 2, 0, 0]
    assert (made.tokens, made.padding) == (9, 5)


def test_a_rank_without_examples_has_a_row_that_teaches_nothing() -> None:
    for length in (None, 16):
        made = rows([], 3, CPU, length)
        assert made.ids.tolist() == [[3]]
        assert made.targets.shape == made.answers.shape == (0,)
        scores = torch.zeros(0, 260, requires_grad=True)
        assert made.losses(scores).sum().item() == 0.0


@given(
    sizes=st.lists(st.integers(2, 24), max_size=40),
    rows_at_once=st.integers(1, 6),
    length=st.integers(24, 60),
)
@settings(max_examples=80, deadline=None)
def test_each_example_is_in_one_pass_and_the_rows_are_few(
    sizes: list[int], rows_at_once: int, length: int
) -> None:
    encoded = [entry(size) for size in sizes]
    for pack in (None, length):
        planned = passes(encoded, rows_at_once, pack)
        assert sorted(i for one in planned for i in one) == list(range(len(sizes)))
        done = 0
        for chosen in planned:
            made = rows([encoded[index] for index in chosen], 0, CPU, pack)
            assert len(made.ids) <= rows_at_once
            assert made.ids.shape[1] < length
            done += len(made.ids)
        if pack is not None:
            assert done == len(_packed(encoded, length))
    filled = [
        sum(len(encoded[index].ids) - 1 for index in row)
        for row in _packed(encoded, length)
    ]
    # No two rows could be one.
    assert sum(one <= (length - 1) // 2 for one in filled) <= 1
    assert [len(encoded[i].ids) for one in passes(encoded, 3) for i in one] == sorted(
        sizes
    )


def tiny() -> nn.Module:
    shape = LlamaShape(
        vocab_size=260,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
    )
    return Llama(shape, 1)


def llama(attention: str) -> nn.Module:
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = LlamaConfig(
        vocab_size=260,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,
    )
    return AutoModelForCausalLM.from_config(config, attn_implementation=attention)


def gpt2() -> nn.Module:
    from transformers import AutoModelForCausalLM, GPT2Config

    size = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
    config = GPT2Config(vocab_size=260, initializer_range=0.3, **size)
    return AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize(
    "make", [tiny, partial(llama, "sdpa"), partial(llama, "eager"), gpt2]
)
def test_packed_and_padded_rows_have_the_same_losses(
    make: Callable[[], nn.Module],
) -> None:
    torch.manual_seed(3)
    module = make().eval()
    model = LanguageModel(module, TOKENIZER, {})
    encoded = [entry(size, 1 + size // 3, size) for size in (9, 4, 17, 3, 12, 30, 2)]

    def measured(made: Rows) -> tuple[Tensor, list[Tensor]]:
        losses = made.losses(model.scores(made))
        return losses.detach(), [
            *torch.autograd.grad(losses.sum(), list(module.parameters()))
        ]

    padded, gradients = measured(rows(encoded, 0, CPU))
    packed = rows(encoded, 0, CPU, 32)
    assert packed.ids.shape == (3, 31)  # 29 + 2, 16 + 11 + 3 + 1, 8
    losses, others = measured(packed)
    torch.testing.assert_close(losses, padded, rtol=1e-5, atol=1e-5)
    for gradient, other in zip(gradients, others, strict=True):
        torch.testing.assert_close(other, gradient, rtol=1e-4, atol=1e-5)
    check_separate(model.scores, CPU, 64)

    def mixed(made: Rows) -> Tensor:
        plain = Rows(made.ids, made.wanted, made.targets, made.example, made.answers, 0)
        return model.scores(plain)

    with pytest.raises(SpecError, match=r"does not keep the examples .* apart"):
        check_separate(mixed, CPU, 64)


@pytest.mark.parametrize(
    ("config", "fits"),
    [
        ({"max_position_embeddings": 64}, True),
        ({"max_position_embeddings": 63}, False),
        ({"n_positions": 63}, False),
        ({"text_config": {"max_position_embeddings": 32}}, False),
        ({"hidden_size": 8}, True),  # no limit is known
    ],
)
def test_sequences_longer_than_the_model_are_refused(
    config: dict[str, object], fits: bool
) -> None:
    if fits:
        check_length(config, 64)
        return
    with pytest.raises(SpecError, match=r"sequence_length is 64, .* at most \d\d"):
        check_length(config, 64)


def test_a_question_leaves_room_for_its_answer() -> None:
    config = {"max_position_embeddings": 64}
    assert longest_question(config, 64, 10) == 54
    assert longest_question(config, 32, 10) == 32
    assert longest_question({}, 64, 1000) == 64
    with pytest.raises(SpecError, match="may have 64 tokens, and the model is made"):
        longest_question(config, 64, 64)


def test_a_mask_has_the_dtype_of_the_arithmetic() -> None:
    class Wide(nn.Linear):
        def forward(self, **given: Any) -> Any:
            self.dtype = given["attention_mask"].dtype
            return SimpleNamespace(logits=torch.zeros(*given["input_ids"].shape, 3))

    module = Wide(2, 2)
    made = rows([entry(5, 2, 1), entry(4, 1, 2)], 0, CPU, 32)
    model = LanguageModel(module, TOKENIZER, {})
    for dtype, expected in ((None, torch.float32), (torch.bfloat16, torch.bfloat16)):
        model.scores(made, dtype=dtype)
        assert module.dtype == expected


QUESTIONS = [
    Example("t", "q" * size, "abc"[: size % 4] + "z") for size in range(2, 40, 5)
]


def trainer(**work: object) -> CausalLM:
    given = {"batch": 8, "sequence_length": 48, "micro_batch": 8, "lr": 1e-2} | work
    size = {"hidden": 32, "layers": 1, "heads": 4, "vocabulary": 260, "positions": 48}
    return CausalLM(
        TrainerContext(
            source="tiny-llama",
            dtype="float32",
            model_options=CausalLMModelOptions.model_validate(size),
            work=CausalLMWorkOptions.model_validate(given),
            seed=1,
            corpus=lambda: QUESTIONS,
        )
    )


def test_a_trainer_learns_the_same_from_packed_rows_and_counts_what_it_did() -> None:
    padded, packed = trainer(), trainer(packing=True)
    for _ in range(3):
        losses = [one.step(QUESTIONS) for one in (padded, packed)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    reports = [dict(one.report().numbers) for one in (padded, packed)]
    # Lengths: 7, 7, 10, 10, 12, 12, 15, 15; the last token never goes in.
    assert [one["tokens"] for one in reports] == [3 * 80, 3 * 80]
    assert [one["padding"] for one in reports] == [3 * (8 * 14 - 80), 3 * (2 * 45 - 80)]
    assert [one["truncated"] for one in reports] == [0, 0]
    cut = trainer(sequence_length=12)
    cut.step(QUESTIONS)
    assert cut.report().numbers["truncated"] == 2
    with pytest.raises(WorkerError, match=r"has \d+ tokens, more than"):
        trainer(sequence_length=12, too_long="refuse").step(QUESTIONS)
    with pytest.raises(SpecError, match="made for at most 48 tokens"):
        trainer(sequence_length=49)
