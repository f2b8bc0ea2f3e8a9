"""Llama against transformers, AdamW against torch, the tokenizer, the options."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("tokenizers")

import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from hansa.core.errors import WorkerError
from hansa.worker.base import Example
from hansa.worker.llm_options import CausalLMModelOptions, CausalLMWorkOptions
from hansa.worker.trainers.adamw import AdamW
from hansa.worker.trainers.collate import separate
from hansa.worker.trainers.llama import Llama, LlamaShape
from hansa.worker.trainers.sgd import SGD
from hansa.worker.trainers.tokenizer import read_tokenizer, train_tokenizer

SHAPE = LlamaShape(
    vocab_size=270,
    hidden_size=16,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=2,
    max_position_embeddings=64,
)
TEXTS = ["What is <SMILES> CCO </SMILES>?", "<IUPAC> ethanol </IUPAC>"] * 3
TOKENIZER = train_tokenizer(TEXTS, 280)


def test_llama_is_the_llama_of_transformers() -> None:
    """Also with heads that share keys, another base of the angles, and packed rows."""
    transformers = pytest.importorskip("transformers")
    shape = replace(SHAPE, num_key_value_heads=1, rope_theta=3e4, rms_norm_eps=1e-4)
    for sizes in (SHAPE, shape):
        ours = Llama(sizes, seed=3)
        config = transformers.LlamaConfig(**sizes.to_config(bos=0, eos=1))
        theirs = transformers.LlamaForCausalLM(config)
        with torch.no_grad():
            for parameter in ours.parameters():  # weights of visible size
                parameter.copy_(torch.randn(parameter.shape) * 0.3)
        result = theirs.load_state_dict(ours.state_dict(), strict=False)
        assert list(result.unexpected_keys) == []
        assert set(result.missing_keys) <= {"lm_head.weight"}
        theirs.tie_weights()
        ids = torch.randint(0, 270, (3, 21))
        everywhere = torch.ones(3, 21, dtype=torch.bool)
        with torch.no_grad():
            expected = theirs(input_ids=ids).logits.reshape(-1, 270)
            torch.testing.assert_close(
                ours(ids, everywhere), expected, rtol=1e-4, atol=1e-4
            )
            one, other = ids[:1, :9], ids[1:2, :12]
            places = torch.tensor([[*range(9), *range(12)]])
            segments = torch.tensor([[1] * 9 + [2] * 12])
            packed = ours(
                torch.cat((one, other), 1), everywhere[:1], places, separate(segments)
            )
            apart = torch.cat([theirs(input_ids=i).logits[0] for i in (one, other)])
        torch.testing.assert_close(packed, apart, rtol=1e-4, atol=1e-4)


def test_padding_on_the_right_changes_no_score() -> None:
    model = Llama(SHAPE, seed=3)
    ids = torch.randint(0, 270, (1, 9))
    wanted = torch.ones(1, 9, dtype=torch.bool)
    padded = torch.cat((ids, torch.ones(1, 5, dtype=torch.long)), dim=1)
    first = torch.arange(14)[None] < 9
    with torch.no_grad():
        torch.testing.assert_close(model(padded, first), model(ids, wanted))


def test_adamw_is_the_adamw_of_torch() -> None:
    start = [torch.randn(5, 3), torch.randn(4)]
    ours = [torch.nn.Parameter(t.clone()) for t in start]
    theirs = [torch.nn.Parameter(t.clone()) for t in start]
    mine = AdamW(ours, weight_decay=0.1)
    torchs = torch.optim.AdamW(theirs, lr=0.01, weight_decay=0.1, fused=True)
    for step in range(4):
        for parameters in (ours, theirs):
            for parameter in parameters:
                parameter.grad = torch.sin(parameter.detach() * (step + 1))
        mine.step(0.01)
        torchs.step()
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one, other)
    state = torchs.state_dict()["state"]
    for index, entry in enumerate(mine.state()):
        for key, value in entry.items():
            assert torch.equal(value, state[index][key])


def test_sgd_is_the_sgd_of_torch() -> None:
    start = [torch.randn(5, 3), torch.randn(4)]
    ours = [torch.nn.Parameter(t.clone()) for t in start]
    theirs = [torch.nn.Parameter(t.clone()) for t in start]
    mine = SGD(ours, weight_decay=0.1)
    torchs = torch.optim.SGD(theirs, lr=0.01, weight_decay=0.1)
    for step in range(4):
        for parameters in (ours, theirs):
            for parameter in parameters:
                parameter.grad = torch.sin(parameter.detach() * (step + 1))
        mine.step(0.01)
        torchs.step()
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)


def test_short_jobs_import_neither_transformers_nor_torchs_compiler() -> None:
    program = (
        "import sys, torch\n"
        "import hansa.worker.trainers.causal_lm\n"
        "from hansa.worker.trainers.adamw import AdamW\n"
        "from hansa.worker.trainers.empty import allocate, without_memory\n"
        "from hansa.worker.trainers.llama import Llama, LlamaShape\n"
        "shape = LlamaShape(vocab_size=30, hidden_size=8, intermediate_size=16,\n"
        "    num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=9)\n"
        "with without_memory():\n"
        "    model = Llama(shape, None)\n"
        "allocate(model, torch.device('cpu'))\n"
        "weight = torch.nn.Parameter(torch.ones(2)); weight.sum().backward()\n"
        "AdamW([weight], weight_decay=0.0).step(0.1)\n"
        "heavy = {'transformers', 'peft', 'scipy', 'sklearn', 'pandas', 'sympy', \n"
        "         'torch._dynamo', 'torch.distributed.fsdp'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        check=True,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.stdout.strip() == "[]"


@given(st.text(max_size=60))
def test_any_text_survives_the_tokenizer(text: str) -> None:
    (entry,) = TOKENIZER.encode([Example("t", "", text)], 10_000)
    assert TOKENIZER.decode(entry.ids[entry.prompt :]) == text


@given(st.integers(0, 90), st.integers(0, 90), st.integers(8, 64))
def test_long_examples_are_cut_and_keep_some_answer(
    given_: int, answer: int, longest: int
) -> None:
    (entry,) = TOKENIZER.encode([Example("t", "q" * given_, "z" * answer)], longest)
    assert len(entry.ids) <= longest
    assert entry.ids[0] == TOKENIZER.bos
    assert 1 <= entry.prompt < len(entry.ids)
    if given_ + answer + 3 <= longest:
        assert entry.ids[-1] == TOKENIZER.eos
        assert TOKENIZER.decode(entry.ids) == "q" * given_ + "\n" + "z" * answer


def test_a_long_prompt_loses_its_beginning() -> None:
    example = Example("t", "0123456789", "987")
    (entry,) = TOKENIZER.encode([example], 12)
    assert TOKENIZER.decode(entry.ids[: entry.prompt]) == "456789\n"
    assert TOKENIZER.decode(entry.ids[entry.prompt :]) == "987"


def test_training_learns_the_tags_and_is_deterministic(tmp_path: Path) -> None:
    again = train_tokenizer(TEXTS, 280)
    TOKENIZER.write(tmp_path)
    one = (tmp_path / "tokenizer.json").read_bytes()
    again.write(tmp_path)
    assert (tmp_path / "tokenizer.json").read_bytes() == one
    (entry,) = again.encode([Example("t", "", "<SMILES>")], 64)
    assert entry.answer < len("<SMILES>")


def test_tokenizer_is_read_with_the_configs_marks(tmp_path: Path) -> None:
    TOKENIZER.write(tmp_path)
    read = read_tokenizer(tmp_path, {"bos_token_id": None, "eos_token_id": [7, 8]})
    assert (read.bos, read.eos) == (None, 7)
    (entry,) = read.encode([Example("t", "", "a")], 64)
    assert entry.ids[-1] == 7
    with pytest.raises(WorkerError, match="no eos_token_id"):
        read_tokenizer(tmp_path, {})
    with pytest.raises(WorkerError, match=r"no tokenizer\.json"):
        read_tokenizer(tmp_path / "none", {"eos_token_id": 1})


@pytest.mark.parametrize(
    ("model", "options"),
    [
        (CausalLMModelOptions, {"hidden": 10, "heads": 4}),
        (CausalLMModelOptions, {"vocabulary": 100}),
        (CausalLMModelOptions, {"width": 3}),
        (CausalLMModelOptions, {"lora": {"rank": 0}}),
        (CausalLMWorkOptions, {"lr": 0}),
        (CausalLMWorkOptions, {"batch_size": 3}),
    ],
)
def test_options_that_make_no_sense_are_refused(model: Any, options: Any) -> None:
    with pytest.raises(ValidationError):
        model.model_validate(options)


def test_every_option_is_described() -> None:
    for model in (CausalLMModelOptions, CausalLMWorkOptions):
        assert all(field.description for field in model.model_fields.values())
