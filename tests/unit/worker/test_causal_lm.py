"""The trainer causal-lm on a model of a few thousand parameters."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("tokenizers")

import torch
from torch.nn import functional

from hansa.core.errors import SpecError, WorkerError
from hansa.worker.base import Example, TrainerContext
from hansa.worker.llm_options import CausalLMModelOptions, CausalLMWorkOptions
from hansa.worker.trainers.causal_lm import CausalLM, write_assets

EXAMPLES = [
    Example("upper", f"Write {word} in capitals.", word.upper())
    for word in ("ash", "birch", "cedar", "elm", "fir", "hazel", "larch", "maple")
] + [Example("length", f"How long is {'o' * n}?", str(n)) for n in range(1, 9)]
SIZES = {"hidden": 16, "layers": 2, "heads": 2, "vocabulary": 270}


def context(
    *,
    assets: Path | None = None,
    seed: int = 1,
    source: str = "tiny-llama",
    dtype: str = "float32",
    lora: dict[str, Any] | None = None,
    **work: Any,
) -> TrainerContext:
    work = {"batch": 4, "lr": 1e-2, "sequence_length": 64, "micro_batch": 3} | work
    return TrainerContext(
        source=source,
        dtype=dtype,
        model_options=CausalLMModelOptions.model_validate(SIZES | {"lora": lora}),
        work=CausalLMWorkOptions.model_validate(work),
        seed=seed,
        assets=assets,
        corpus=lambda: EXAMPLES,
    )


def arrays(trainer: CausalLM) -> dict[str, Any]:
    return dict(trainer.tensors())


def assert_same(one: Mapping[str, Any], other: Mapping[str, Any]) -> None:
    assert list(one) == list(other)
    for name, value in one.items():
        np.testing.assert_array_equal(value, other[name], err_msg=name)


def later(first: CausalLM, folder: Path, **changes: Any) -> CausalLM:
    """Return a trainer of the version that `first` made, as a job builds it."""
    write_assets(first, folder)
    trainer = CausalLM(context(assets=folder, **{"seed": 99} | changes))
    trainer.load(arrays(first).__getitem__)
    return trainer


def test_first_version_depends_on_the_seed_only() -> None:
    one, same, other = (arrays(CausalLM(context(seed=s))) for s in (1, 1, 2))
    assert_same(one, same)
    name = "model.embed_tokens.weight"
    assert not np.array_equal(one[name], other[name])


def test_tensors_are_sorted_float32_copies_with_shared_ones_once() -> None:
    trainer = CausalLM(context())
    tensors = arrays(trainer)
    assert list(tensors) == sorted(tensors)
    assert "lm_head.weight" not in tensors  # it is the embedding
    assert {value.dtype for value in tensors.values()} == {np.dtype(np.float32)}
    # Embedding 270x16, final norm 16; a layer: 4 of 16x16, 3 of 16x48, 2 norms.
    layer = 4 * 16 * 16 + 3 * 16 * 48 + 2 * 16
    assert sum(value.size for value in tensors.values()) == 270 * 16 + 16 + 2 * layer
    before = {name: value.copy() for name, value in tensors.items()}
    trainer.step(EXAMPLES[:4])
    assert_same(tensors, before)


def test_loss_is_of_the_answer_only_by_hand() -> None:
    trainer = CausalLM(context())
    example = EXAMPLES[0]
    tokenizer = trainer._model.tokenizer
    (encoded,) = tokenizer.encode([example], 64)
    ids = torch.tensor([encoded.ids])
    everywhere = torch.ones(1, len(encoded.ids) - 1, dtype=torch.bool)
    with torch.no_grad():
        scores = trainer._model.module(ids[:, :-1], everywhere)
    surprise = -functional.log_softmax(scores, dim=-1)
    answer = [
        float(surprise[place - 1, encoded.ids[place]])
        for place in range(encoded.prompt, len(encoded.ids))
    ]
    assert tokenizer.decode(encoded.ids[encoded.prompt :]) == "ASH"
    assert encoded.ids[-1] == tokenizer.eos
    assert trainer.evaluate([example]) == {
        "upper": pytest.approx(sum(answer) / len(answer), rel=1e-5)
    }


def test_evaluation_is_the_mean_over_examples_of_each_task() -> None:
    trainer = CausalLM(context())
    alone = [next(iter(trainer.evaluate([e]).values())) for e in EXAMPLES]
    together = trainer.evaluate(iter(EXAMPLES))
    assert list(together) == ["length", "upper"]
    assert together["upper"] == pytest.approx(sum(alone[:8]) / 8, rel=1e-5)
    assert together["length"] == pytest.approx(sum(alone[8:]) / 8, rel=1e-5)


def test_evaluation_reads_a_long_stream_window_by_window() -> None:
    trainer = CausalLM(context(micro_batch=2))
    repeated = trainer.evaluate(example for _ in range(5) for example in EXAMPLES)
    assert repeated == pytest.approx(trainer.evaluate(EXAMPLES), rel=1e-5)


def test_step_returns_the_loss_before_it() -> None:
    trainer = CausalLM(context())
    batch = [EXAMPLES[0], EXAMPLES[1], EXAMPLES[2]]
    before = trainer.evaluate(batch)["upper"]
    assert trainer.step(batch) == pytest.approx(before, rel=1e-5)


def test_micro_batches_change_nothing_but_rounding() -> None:
    whole, parts = (CausalLM(context(micro_batch=size)) for size in (8, 2))
    assert whole.step(EXAMPLES[4:12]) == pytest.approx(
        parts.step(EXAMPLES[4:12]), rel=1e-5
    )
    for (name, one), (_, other) in zip(whole.tensors(), parts.tensors(), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-4, err_msg=name)


def test_loss_falls() -> None:
    trainer = CausalLM(context(batch=16))
    losses = [trainer.step(EXAMPLES) for _ in range(20)]
    assert losses[-1] < 0.7 * losses[0]


def test_warm_up_and_clipping_by_hand() -> None:
    # Adam's first step moves each weight with a gradient by the learning rate.
    trainer = CausalLM(context(lr=0.1, warmup_steps=4, clip=1e-3))
    before = arrays(trainer)
    trainer.step(EXAMPLES[:4])
    moved = [np.abs(v - before[name]).max() for name, v in trainer.tensors()]
    assert max(moved) == pytest.approx(0.1 / 4, rel=1e-2)


def test_restore_continues_bit_identically(tmp_path: Path) -> None:
    straight = CausalLM(context(weight_decay=0.1, warmup_steps=3))
    for _ in range(2):
        straight.step(EXAMPLES[:4])
    straight.save(tmp_path)
    expected = [straight.step(EXAMPLES[i : i + 4]) for i in range(3)]
    resumed = CausalLM(context(weight_decay=0.1, warmup_steps=3))
    resumed.restore(tmp_path)
    assert [resumed.step(EXAMPLES[i : i + 4]) for i in range(3)] == expected
    assert_same(arrays(straight), arrays(resumed))


def test_a_version_is_rebuilt_from_its_assets(tmp_path: Path) -> None:
    first = CausalLM(context())
    first.step(EXAMPLES)
    trainer = later(first, tmp_path)
    assert_same(arrays(first), arrays(trainer))
    assert trainer.evaluate(EXAMPLES) == first.evaluate(EXAMPLES)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"config.json", "tokenizer.json"}


def test_load_names_what_is_missing_or_of_another_shape() -> None:
    trainer = CausalLM(context())
    good = arrays(trainer)
    name = "model.norm.weight"
    with pytest.raises(WorkerError, match=r"lacks the tensor 'model\.norm\.weight'"):
        trainer.load({k: v for k, v in good.items() if k != name}.__getitem__)
    with pytest.raises(WorkerError, match=r"is \[3\], the model's is \[16\]"):
        trainer.load((good | {name: np.zeros(3, np.float32)}).__getitem__)


def test_bfloat16_parameters_are_yielded_as_float32(tmp_path: Path) -> None:
    first = CausalLM(context(dtype="bfloat16"))
    values = arrays(first)
    assert {v.dtype for v in values.values()} == {np.dtype(np.float32)}
    write_assets(first, tmp_path)
    trainer = CausalLM(context(dtype="bfloat16", assets=tmp_path))
    stored = {name: v.astype(ml_dtypes.bfloat16) for name, v in values.items()}
    trainer.load(stored.__getitem__)
    assert_same(values, arrays(trainer))
    losses = [trainer.step(EXAMPLES) for _ in range(10)]
    assert losses[-1] < losses[0]


def test_bfloat16_restores_bit_identically(tmp_path: Path) -> None:
    straight = CausalLM(context(dtype="bfloat16"))
    straight.step(EXAMPLES[:4])
    straight.save(tmp_path)
    straight.step(EXAMPLES[4:8])
    resumed = CausalLM(context(dtype="bfloat16"))
    resumed.restore(tmp_path)
    resumed.step(EXAMPLES[4:8])
    assert_same(arrays(straight), arrays(resumed))


def test_other_dtypes_are_refused() -> None:
    with pytest.raises(SpecError, match="can't train in float16"):
        CausalLM(context(dtype="float16"))


def test_unknown_source_is_refused() -> None:
    with pytest.raises(SpecError, match="no model 'meta-llama/none'") as caught:
        CausalLM(context(source="meta-llama/none"))
    assert "downloaded first" in str(caught.value.hint)


def test_no_corpus_is_an_error_with_a_hint() -> None:
    empty = TrainerContext(
        source="tiny-llama",
        dtype="float32",
        model_options=CausalLMModelOptions(),
        work=CausalLMWorkOptions(),
        seed=1,
    )
    with pytest.raises(WorkerError, match="there are none"):
        CausalLM(empty)


def test_damaged_assets_are_named(tmp_path: Path) -> None:
    write_assets(CausalLM(context()), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(WorkerError, match=r"config\.json can't be read"):
        CausalLM(context(assets=tmp_path))
    del config["hidden_size"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(WorkerError, match="lacks 'hidden_size'"):
        CausalLM(context(assets=tmp_path))


def test_lora_federates_only_adapters(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    first = CausalLM(context(lora={"rank": 2, "alpha": 4.0}))
    expected = sorted(
        f"model.layers.{layer}.self_attn.{target}.lora_{part}.weight"
        for layer in range(2)
        for target in ("q_proj", "v_proj")
        for part in "AB"
    )
    values = arrays(first)
    assert list(values) == expected
    assert all(not v.any() for name, v in values.items() if "lora_B" in name)
    assert_same(values, arrays(CausalLM(context(lora={"rank": 2, "alpha": 4.0}))))

    trainer = later(first, tmp_path, lora={"rank": 2, "alpha": 4.0})
    assert trainer.evaluate(EXAMPLES) == first.evaluate(EXAMPLES)
    base = {n: p.clone() for n, p in trainer._model.module.named_parameters()}
    losses = [trainer.step(EXAMPLES) for _ in range(10)]
    assert losses[-1] < losses[0]
    for name, parameter in trainer._model.module.named_parameters():
        assert ("lora_" in name) or torch.equal(parameter, base[name]), name


def test_lora_refuses_another_base(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    lora = {"rank": 2}
    write_assets(CausalLM(context(lora=lora)), tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    write_assets(CausalLM(context(lora=lora, seed=2)), other)
    (tmp_path / "base.frozen").write_bytes((other / "base.frozen").read_bytes())
    with pytest.raises(WorkerError, match="not the one that the run began with"):
        CausalLM(context(lora=lora, assets=tmp_path))


@pytest.mark.parametrize("target", ["query", "embed_tokens", "self_attn"])
def test_lora_refuses_what_is_no_linear_layer(target: str) -> None:
    pytest.importorskip("peft")
    with pytest.raises(SpecError, match=f"no linear layer named '{target}'"):
        CausalLM(context(lora={"targets": [target]}))


def test_a_gradient_that_is_no_number_moves_nothing_and_is_told() -> None:
    trainer = CausalLM(context())
    before = arrays(trainer)
    weight = trainer._model.module.get_parameter("model.norm.weight")
    weight.register_hook(lambda gradient: gradient * float("inf"))
    assert np.isnan(trainer.step(EXAMPLES[:4]))  # though the loss is a number
    assert_same(arrays(trainer), before)
