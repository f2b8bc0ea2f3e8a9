"""Greedy generation, against transformers' own on the same weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("tokenizers")

import torch

from hansa.core.errors import SpecError
from hansa.worker.base import Example, Generating, TrainerContext
from hansa.worker.generate import _by_llama, _by_transformers, answers
from hansa.worker.llm_options import CausalLMModelOptions, CausalLMWorkOptions
from hansa.worker.scores import exact_matches, first_of_each
from hansa.worker.trainers.causal_lm import CausalLM
from hansa.worker.trainers.llama import Llama, LlamaShape
from hansa.worker.trainers.models import LanguageModel
from hansa.worker.trainers.tokenizer import train_tokenizer

SHAPE = LlamaShape(
    vocab_size=300,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
)
TOKENIZER = train_tokenizer(["What is <SMILES> CCO </SMILES>? ethanol"] * 3, 300)


def llama() -> Llama:
    """Return a decoder whose tokens differ, unlike those of one at its beginning."""
    made = Llama(SHAPE, seed=3)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.3, generator=generator)
    return made.eval()


def questions(*lengths: int) -> list[tuple[int, ...]]:
    generator = torch.Generator().manual_seed(7)
    drawn = (torch.randint(2, 300, (n,), generator=generator) for n in lengths)
    return [tuple(row.tolist()) for row in drawn]


def test_our_llama_generates_as_that_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    ours, asked = llama(), questions(3, 17, 8, 1)
    config = transformers.LlamaConfig(**SHAPE.to_config(bos=0, eos=1))
    theirs = transformers.LlamaForCausalLM(config).eval()
    theirs.load_state_dict(ours.state_dict(), strict=False)
    theirs.tie_weights()
    ends = frozenset({1})
    with torch.no_grad():
        own = _by_llama(ours, asked, 12, ends)
        same = _by_transformers(theirs, asked, 12, ends, pad=1)
        alone = [_by_llama(ours, [one], 12, ends)[0] for one in asked]
    assert own == same == alone
    assert len({tuple(row) for row in own}) == 4
    # An end mark ends a row and leaves the others alone.
    ends = frozenset({own[0][2], 1})
    with torch.no_grad():
        cut = _by_llama(ours, asked, 12, ends)
        same = _by_transformers(theirs, asked, 12, ends, pad=1)
    stop = own[0].index(own[0][2]) + 1
    assert cut[0][:stop] == same[0][:stop] == own[0][:stop]
    for row, other in zip(cut[1:], own[1:], strict=True):
        upto = next((i for i, t in enumerate(other) if t in ends), len(other))
        assert row[:upto] == other[:upto]


def test_each_token_is_the_likeliest_after_all_before_it() -> None:
    model, asked = llama(), questions(5, 9)
    with torch.no_grad():
        made = _by_llama(model, asked, 6, frozenset())
        for question, row in zip(asked, made, strict=True):
            ids = torch.tensor([[*question, *row]])
            scores = model(ids, torch.ones_like(ids, dtype=torch.bool))
            best = scores.argmax(-1).tolist()
            assert row == best[len(question) - 1 : -1]


def test_answers_come_in_the_order_of_the_questions() -> None:
    model = LanguageModel(llama(), TOKENIZER, {})
    texts = ["What is it?", "CCO", "A far longer question than the others, is it?"]
    examples = [Example("t", text, "") for text in texts] * 3
    found = answers(model, iter(examples), tokens=5, longest=64, rows=2)
    alone = [
        answers(model, [one], tokens=5, longest=64, rows=1)[0] for one in examples[:3]
    ]
    assert found == alone * 3
    assert len(set(alone)) == 3


@dataclass
class _Countdown:
    """Examples that raise when the third is asked for."""

    left: int = 2

    def __iter__(self) -> Any:
        return self

    def __next__(self) -> Example:
        if not self.left:
            raise TimeoutError
        self.left -= 1
        return Example("t", "What?", "")


def trainer() -> CausalLM:
    return CausalLM(
        TrainerContext(
            source="tiny-llama",
            dtype="float32",
            model_options=CausalLMModelOptions(
                hidden=16, layers=1, heads=2, vocabulary=260
            ),
            work=CausalLMWorkOptions(lr=0.02),
            seed=1,
            corpus=lambda: [Example("t", "What is it?", "ethanol")],
        )
    )


def test_the_trainer_generates_and_can_be_stopped() -> None:
    alone = trainer()
    assert isinstance(alone, Generating)
    # A model that has learned an answer gives it, and stops there.
    one = Example("t", "What is it?", "ethanol")
    for _ in range(40):
        loss = alone.step([one])
    assert loss < 0.5
    assert alone.generate([one], 20) == ["ethanol"]
    with pytest.raises(TimeoutError):
        alone.generate(_Countdown(), 4)
    with pytest.raises(SpecError, match="Answers may have 512 tokens"):
        alone.generate([one], 512)


def test_scores_without_a_comparison_of_the_tasks_own() -> None:
    examples = [Example(task, "?", "yes") for task in ("a", "b", "a", "a")]
    assert first_of_each(examples, 2) == [examples[0], examples[1], examples[2]]
    found = exact_matches(examples, [" yes\n", "no", "no", "Yes"])
    assert found == {"a": {"exact": pytest.approx(1 / 3)}, "b": {"exact": 0.0}}
