"""LoRA adapters: exact versions, ranks that differ, and corrections of the steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("tokenizers")
pytest.importorskip("peft")

import torch
from safetensors.numpy import save_file

from hansa.core.commands import Term
from hansa.core.errors import SpecError, StoreError, WorkerError
from hansa.store import Measured, Store, reader, write_update
from hansa.store.update import deltas
from hansa.worker.base import Correction, Example, TrainerContext
from hansa.worker.llm_options import CausalLMModelOptions, CausalLMWorkOptions
from hansa.worker.trainers.causal_lm import CausalLM, write_assets
from hansa.worker.trainers.collate import Rows
from hansa.worker.trainers.lora import WithResiduals, frozen, only_first, own_weights
from hansa.worker.trainers.stream import InMemory, fill

WORDS = ("ash", "birch", "cedar", "elm", "fir", "hazel", "larch", "maple")
PARTS = {
    "east": [Example("t", f"Write {w} in capitals.", w.upper()) for w in WORDS],
    "west": [Example("t", f"Write {w} backwards.", w[::-1]) for w in WORDS],
}
EVERYTHING = [*PARTS["east"], *PARTS["west"]]
LORA = {"rank": 3, "alpha": 6.0}  # so the scale is 2
SCALE = 2.0


def context(assets: Path | None = None, **changes: Any) -> TrainerContext:
    lora = changes.pop("lora", LORA)
    dtype = changes.pop("dtype", "float32")
    sizes = {"hidden": 16, "layers": 2, "heads": 2, "vocabulary": 270, "lora": lora}
    work = {"batch": 8, "lr": 3e-2, "sequence_length": 64} | changes
    return TrainerContext(
        source="tiny-llama",
        dtype=dtype,
        model_options=CausalLMModelOptions.model_validate(sizes),
        work=CausalLMWorkOptions.model_validate(work),
        seed=1,
        assets=assets,
        corpus=lambda: EVERYTHING,
    )


def new_store(place: Path, adapters: Any, dtype: str = "float32") -> Store:
    """Return a store whose version 0 is a fresh model."""
    draft = place / f"draft-{adapters}"
    draft.mkdir()
    first = CausalLM(context(dtype=dtype))
    save_file(dict(first.tensors()), draft / "model.safetensors")
    write_assets(first, draft)
    store = Store(place / adapters, dtype, adapters=adapters)
    store.import_initial(draft)
    return store


def loaded(store: Store, version: int, **changes: Any) -> CausalLM:
    """Return a trainer of a version, as a job builds it."""
    folder = store.version_dir(version)
    trainer = CausalLM(context(folder, dtype=store.dtype, **changes))
    with reader(folder) as tensors:
        trainer.load(tensors.read)
    return trainer


def deliver(store: Store, version: int, assignment: str, trainer: CausalLM) -> None:
    shapes = store.manifest(version).floating_shapes()
    with reader(store.version_dir(version)) as base:
        write_update(
            store.update_dir(assignment),
            shapes,
            deltas(base, trainer.tensors()),
            Measured(assignment=assignment, facility="x", base=version),
            dtype="float32",
        )


def merged(trainer: CausalLM) -> dict[str, np.ndarray]:
    """Return ``W0 + s (B A + R)`` of every layer with an adapter, in fp64."""
    parameters = dict(trainer._model.module.named_parameters())
    found = {}
    for name, parameter in parameters.items():
        layer, end, _ = name.partition(".base_layer.weight")
        if not end:
            continue
        a = parameters[f"{layer}.lora_A.default.weight"].detach().double()
        b = parameters[f"{layer}.lora_B.default.weight"].detach().double()
        found[layer] = (parameter.detach().double() + SCALE * b @ a).numpy()
    return found


def scores(trainer: CausalLM, weights: Mapping[str, np.ndarray] | None = None) -> Any:
    """Return logits; with `weights` in the place of layers and their adapters."""
    module = trainer._model.module
    ids = torch.arange(40).reshape(2, 20) + 100
    with torch.no_grad():
        for layer, weight in (weights or {}).items():
            linear: Any = module.get_submodule(layer)
            linear.base_layer.weight.copy_(torch.from_numpy(weight))
            linear.lora_B["default"].weight.zero_()
        nothing = torch.zeros(40, dtype=torch.long)
        everywhere = torch.ones(2, 20, dtype=torch.bool)
        rows = Rows(ids, everywhere, nothing, nothing, nothing, tokens=40)
        return trainer._model.scores(rows).float().numpy()


def add_residuals(module: torch.nn.Module, values: Mapping[str, np.ndarray]) -> None:
    """Set the frozen weights anew, with residuals in them."""
    before = {name: p.detach().clone() for name, p in frozen(module).items()}
    aliases = own_weights(module, values)
    asked: list[str] = []

    def read(name: str) -> np.ndarray:
        asked.append(name)
        return values[name]

    base = WithResiduals(module, InMemory(before), values, read, aliases)
    assert not asked  # a dense one is as large as its layer: they come one by one
    fill(frozen(module), base)
    assert sorted(asked) == sorted(values)


def a_round(store: Store, base: int, weights: Sequence[float]) -> Any:
    """Train both facilities and aggregate; return the logits of the mean model."""
    mean: dict[str, np.ndarray] = {}
    terms = [Term(ref=f"version/{base}", coefficient=1.0)]
    for (facility, examples), weight in zip(PARTS.items(), weights, strict=True):
        trainer = loaded(store, base)
        for _ in range(4):
            trainer.step(examples)
        assignment = f"train-{base + 1:04d}-{facility}-1"
        deliver(store, base, assignment, trainer)
        terms.append(Term(ref=f"update/{assignment}", coefficient=weight))
        for layer, value in merged(trainer).items():
            mean[layer] = mean.get(layer, 0.0) + weight * value
    store.aggregate(base + 1, terms)
    return scores(loaded(store, 0), mean)


@pytest.mark.parametrize("adapters", ["folded", "stacked"])
def test_the_global_model_is_the_mean_of_the_merged_models(
    tmp_path: Path, adapters: str
) -> None:
    store = new_store(tmp_path, adapters)
    for base in (0, 1):
        expected = a_round(store, base, (0.25, 0.75))
        found = scores(loaded(store, base + 1))
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)
        assert len(store.manifest(base + 1).fixed) == (4 if adapters == "folded" else 8)


def test_plain_averaging_is_another_model(tmp_path: Path) -> None:
    store = new_store(tmp_path, "average")
    expected = a_round(store, 0, (0.25, 0.75))
    assert np.abs(scores(loaded(store, 1)) - expected).max() > 1e-3
    assert store.manifest(1).fixed == ()


@pytest.mark.parametrize("adapters", ["folded", "stacked"])
def test_bfloat16_models_have_residuals_too(tmp_path: Path, adapters: str) -> None:
    store = new_store(tmp_path, adapters, "bfloat16")
    for base in (0, 1):
        a_round(store, base, (0.5, 0.5))
    version = store.version_dir(2)
    with reader(version) as published, reader(store.master_dir(2)) as master:
        for name in store.manifest(2).fixed:
            assert published.info(name).dtype.name == "bfloat16"
            exact = master.read(name)
            assert exact.dtype == np.float32
            assert exact.any()
            np.testing.assert_array_equal(
                published.read(name), exact.astype(published.read(name).dtype)
            )
    weights = merged(loaded(store, 2))
    plain = merged(loaded(store, 0))
    assert weights.keys() == plain.keys()
    assert any((weights[layer] != plain[layer]).any() for layer in weights)


def test_residuals_go_into_the_frozen_weights_once(tmp_path: Path) -> None:
    store = new_store(tmp_path, "folded")
    a_round(store, 0, (0.5, 0.5))
    one, other = loaded(store, 1), loaded(store, 1)
    with reader(store.version_dir(1)) as version:
        one.load(version.read)  # a second time
        for layer, value in merged(one).items():
            np.testing.assert_array_equal(value, merged(other)[layer])
        # By hand: the weight of the model's first day, and twice the residual.
        layer = "model.layers.1.self_attn.v_proj"
        first = loaded(store, 0)._model.module.get_submodule(layer).base_layer.weight
        expected = first.detach().numpy() + 2 * version.read(f"{layer}.lora_residual")
    found = other._model.module.get_submodule(layer).base_layer.weight
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=1e-6, atol=1e-8)
    assert not found.requires_grad


def test_a_weight_that_is_shared_stays_as_it_is_elsewhere() -> None:
    from peft import LoraConfig, inject_adapter_in_model

    module = torch.nn.ModuleDict(
        {"embed": torch.nn.Embedding(4, 3), "head": torch.nn.Linear(3, 4, bias=False)}
    )
    module["head"].weight = module["embed"].weight
    inject_adapter_in_model(
        LoraConfig(r=2, lora_alpha=4, target_modules=["head"]), module
    )
    before = module["embed"].weight.detach().clone()
    add_residuals(module, {"head.lora_residual": np.ones((4, 3), np.float32)})
    assert torch.equal(module["embed"].weight, before)
    head: Any = module["head"]
    assert torch.equal(head.base_layer.weight, before + 2)


def test_layers_that_keep_inputs_first_get_the_residual_transposed() -> None:
    pytest.importorskip("transformers")
    from peft import LoraConfig, inject_adapter_in_model
    from transformers.pytorch_utils import Conv1D

    residual = np.arange(15, dtype=np.float32).reshape(5, 3)
    factors = {
        "0.lora_residual_B": residual[:, :2].copy(),
        "0.lora_residual_A": np.array([[1, 0, 2], [0, 1, -1]], np.float32),
    }
    product = factors["0.lora_residual_B"] @ factors["0.lora_residual_A"]
    for values, whole in (
        ({"0.lora_residual": residual}, residual),
        (factors, product),
    ):
        module = torch.nn.Sequential(Conv1D(5, 3))  # weight [in 3, out 5]
        config = LoraConfig(r=2, target_modules=["0"], fan_in_fan_out=True)
        inject_adapter_in_model(config, module)
        linear: Any = module.get_submodule("0")
        before = linear.base_layer.weight.detach().clone()
        add_residuals(module, values)
        expected = before + linear.scaling["default"] * torch.from_numpy(whole.T)
        torch.testing.assert_close(linear.base_layer.weight.detach(), expected)


def test_residuals_of_another_model_are_refused() -> None:
    module = CausalLM(context())._model.module
    with pytest.raises(WorkerError, match="belongs to no adapter"):
        add_residuals(module, {"odd.lora_residual": np.zeros((2, 3), np.float32)})
    name = "model.layers.0.self_attn.q_proj.lora_residual"
    with pytest.raises(WorkerError, match=r"is \[2, 3\], its weight is \[16, 16\]"):
        add_residuals(module, {name: np.zeros((2, 3), np.float32)})


def test_exact_aggregation_needs_adapters(tmp_path: Path) -> None:
    draft = tmp_path / "draft"
    draft.mkdir()
    first = CausalLM(context(lora=None))
    save_file(dict(first.tensors()), draft / "model.safetensors")
    store = Store(tmp_path / "run", "float32", adapters="folded")
    with pytest.raises(StoreError, match="has no LoRA adapter"):
        store.import_initial(draft)
    assert store.versions() == []


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_a_smaller_rank_leaves_the_rest_bit_identical(
    tmp_path: Path, decay: float
) -> None:
    store = new_store(tmp_path, "average")
    a_round(store, 0, (0.5, 0.5))  # so that no factor is zero
    whole = loaded(store, 1)
    part = loaded(store, 1, lora_rank=2, weight_decay=decay)
    assert np.array_equal(scores(part), scores(whole))
    before = {name: value.copy() for name, value in part.tensors()}
    losses = [part.step(PARTS["east"]) for _ in range(5)]
    assert losses[-1] < losses[0]
    for name, value in part.tensors():
        change = value - before[name]
        change = change if "lora_A" in name else change.T  # (components, width)
        assert change.shape == (3, 16)
        assert change[:2].all(axis=None)
        assert not change[2:].any()


def test_a_smaller_rank_is_resumed_bit_identically(tmp_path: Path) -> None:
    store = new_store(tmp_path, "average")
    a_round(store, 0, (0.5, 0.5))
    changes: dict[str, Any] = {"lora_rank": 1, "weight_decay": 0.1}
    straight, resumed = (loaded(store, 1, **changes) for _ in range(2))
    straight.step(PARTS["east"])
    saved = tmp_path / "saved"
    saved.mkdir()
    straight.save(saved)
    resumed.restore(saved)
    for trainer in (straight, resumed):
        trainer.step(PARTS["west"])
    for (name, one), (_, other) in zip(
        straight.tensors(), resumed.tensors(), strict=True
    ):
        np.testing.assert_array_equal(one, other, err_msg=name)


def test_ranks_that_differ_are_aggregated_exactly(tmp_path: Path) -> None:
    store = new_store(tmp_path, "folded")
    a_round(store, 0, (0.5, 0.5))
    mean: dict[str, Any] = {}
    terms = [Term(ref="version/1", coefficient=1.0)]
    for rank, (facility, examples) in enumerate(PARTS.items(), start=1):
        trainer = loaded(store, 1, lora_rank=rank)
        for _ in range(4):
            trainer.step(examples)
        deliver(store, 1, f"train-0002-{facility}-1", trainer)
        ref = f"update/train-0002-{facility}-1"
        terms.append(Term(ref=ref, coefficient=0.5))
        for layer, value in merged(trainer).items():
            mean[layer] = mean.get(layer, 0.0) + value / 2
    store.aggregate(2, terms)
    expected = scores(loaded(store, 0), mean)
    np.testing.assert_allclose(scores(loaded(store, 2)), expected, rtol=0, atol=2e-5)


def test_gradients_of_the_untrained_part_count_for_no_norm() -> None:
    a = torch.nn.Parameter(torch.ones(3, 4))
    b = torch.nn.Parameter(torch.ones(5, 3))
    a.grad, b.grad = torch.ones(3, 4), torch.ones(5, 3)
    factors = {"x.lora_A.weight": a, "x.lora_B.weight": b}
    with only_first(factors, 1):
        # Four numbers of A's first row, five of B's first column.
        norm = torch.nn.utils.clip_grad_norm_([a, b], 100.0)
        with torch.no_grad():
            a.zero_()
            b.zero_()
    assert float(norm) == pytest.approx(3.0)
    assert a.tolist() == [[0.0] * 4, [1.0] * 4, [1.0] * 4]
    assert b.tolist() == [[0.0, 1.0, 1.0]] * 5


@pytest.mark.parametrize(
    ("lora", "words"),
    [
        (LORA, r"more than model\.options\.lora\.rank \(3\)"),
        (None, "set model.options"),
    ],
)
def test_a_rank_that_does_not_fit_is_refused(lora: Any, words: str) -> None:
    with pytest.raises(SpecError, match=f"lora_rank.*{words}"):
        CausalLM(context(lora=lora, lora_rank=4))


def moved(trainer: CausalLM, before: Mapping[str, np.ndarray]) -> float:
    return max(float(np.abs(v - before[name]).max()) for name, v in trainer.tensors())


def test_the_learning_rate_is_scaled_by_hand() -> None:
    # Adam's first step moves each weight with a gradient by the learning rate.
    trainer = CausalLM(context(lr=0.1, warmup_steps=4))
    trainer.correct(Correction(lr_scale=0.5))
    before = dict(trainer.tensors())
    trainer.step(EVERYTHING[:4])
    assert moved(trainer, before) == pytest.approx(0.1 * 0.5 / 4, rel=1e-2)


def test_the_proximal_term_pulls_the_adapters_back_by_hand() -> None:
    # Step 1 begins at the base: only the loss counts, and Adam moves each weight of B
    # by lr (A has no gradient as long as B is zero). At step 2 B's gradient g is
    # mu * lr and more than all else: m = 0.1 g / 0.19 and v = 0.001 g^2 / 0.001999, so
    # it goes back by 0.526 / 0.707 = 0.744 lr.
    found = {}
    for mu in (0.0, 1e6):
        trainer = CausalLM(context(lr=1e-2, clip=None))
        parameters = dict(trainer._model.module.named_parameters())
        before = {name: p.detach().clone() for name, p in parameters.items()}
        trainer.correct(Correction(proximal=mu))
        for _ in range(2):
            trainer.step(EVERYTHING[:4])
        ways = {
            name: float((value.detach() - before[name]).abs().max())
            for name, value in parameters.items()
        }
        found[mu] = max(way for name, way in ways.items() if "lora_B" in name)
        assert not any(way for name, way in ways.items() if "lora_" not in name)
    assert found[0.0] > 1.5e-2
    assert found[1e6] == pytest.approx(0.256e-2, rel=0.02)


def test_no_correction_changes_no_bit() -> None:
    one, other = CausalLM(context()), CausalLM(context())
    other.correct(Correction(lr_scale=1.0, proximal=0.0))
    for trainer in (one, other):
        trainer.step(EVERYTHING[:4])
    for (name, a), (_, b) in zip(one.tensors(), other.tensors(), strict=True):
        np.testing.assert_array_equal(a, b, err_msg=name)


def test_a_control_variate_is_refused() -> None:
    trainer = CausalLM(context())
    with pytest.raises(SpecError, match="needs plain SGD"):
        trainer.correct(Correction(control=dict(trainer.tensors()).__getitem__))
    assert trainer.plain_rate is None


def test_plain_sgd_takes_a_control_variate() -> None:
    """A step moves by lr * (g + c): a constant c moves by lr * c further."""
    work: dict[str, Any] = {"optimizer": "sgd", "clip": None, "lr": 0.1}
    plain, other = CausalLM(context(**work)), CausalLM(context(**work))
    assert plain.plain_rate == 0.1
    control = {name: np.full(t.shape, 0.5, np.float32) for name, t in other.tensors()}
    other.correct(Correction(control=control.__getitem__))
    plain.step(EVERYTHING[:4])
    other.step(EVERYTHING[:4])
    for (name, a), (_, b) in zip(plain.tensors(), other.tensors(), strict=True):
        np.testing.assert_allclose(a - b, 0.05, atol=1e-6, err_msg=name)
