"""Softmax regression against numbers worked out by hand and by differences."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from hansa.core.errors import SpecError, WorkerError
from hansa.worker.arrays import write_arrays
from hansa.worker.base import Example, TrainerContext
from hansa.worker.options import SoftmaxModelOptions, SoftmaxWorkOptions
from hansa.worker.trainers.softmax import Softmax, loss_and_gradient


def trainer(
    source: str = "zeros",
    *,
    features: int = 2,
    classes: int = 2,
    lr: float = 0.5,
    momentum: float = 0.0,
    seed: int = 0,
) -> Softmax:
    return Softmax(
        TrainerContext(
            source=source,
            dtype="float32",
            model_options=SoftmaxModelOptions(features=features, classes=classes),
            work=SoftmaxWorkOptions(batch=2, lr=lr, momentum=momentum),
            seed=seed,
        )
    )


def examples(inputs: list[list[float]], labels: list[int]) -> list[Example]:
    return [
        Example("t", np.array(x, np.float32), y)
        for x, y in zip(inputs, labels, strict=True)
    ]


def test_one_step_by_hand() -> None:
    # With zero weights p = 1/2 for both classes. One sample x = (1, 2), class 0:
    # error = (-1/2, 1/2), dW = x error, db = error; lr = 1/2.
    model = trainer()
    loss = model.step(examples([[1, 2]], [0]))
    assert loss == pytest.approx(math.log(2), abs=1e-6)
    tensors = dict(model.tensors())
    np.testing.assert_array_equal(tensors["weights"], [[0.25, -0.25], [0.5, -0.5]])
    np.testing.assert_array_equal(tensors["bias"], [0.25, -0.25])


def test_momentum_by_hand() -> None:
    model = trainer(lr=0.1, momentum=0.5)
    batch = examples([[1, 0]], [0])
    model.step(batch)
    first = dict(model.tensors())["weights"].copy()
    np.testing.assert_allclose(first[0], [0.05, -0.05], rtol=1e-6)
    model.step(batch)
    # scores (w + b) are 0.1 and -0.1, so p1 = sigmoid(-0.2); v = 0.5 * -0.5 - p1
    p1 = 1 / (1 + math.exp(0.2))
    expected = 0.05 + 0.1 * (0.25 + p1)
    assert dict(model.tensors())["weights"][0, 0] == pytest.approx(expected, rel=1e-5)


def test_gradient_equals_finite_differences() -> None:
    generator = np.random.default_rng(5)
    weights, bias = generator.normal(size=(4, 3)), generator.normal(size=3)
    inputs, labels = generator.normal(size=(7, 4)), generator.integers(0, 3, size=7)
    _, by_weights, by_bias = loss_and_gradient(weights, bias, inputs, labels)
    for array, gradient in ((weights, by_weights), (bias, by_bias)):
        for index in np.ndindex(array.shape):
            kept, losses = array[index], []
            for shift in (1e-6, -1e-6):
                array[index] = kept + shift
                losses.append(loss_and_gradient(weights, bias, inputs, labels)[0])
            array[index] = kept
            slope = (losses[0] - losses[1]) / 2e-6
            assert gradient[index] == pytest.approx(slope, abs=1e-8)


def test_full_batch_step_is_the_formula() -> None:
    generator = np.random.default_rng(1)
    inputs = generator.normal(size=(20, 5)).astype(np.float32)
    labels = generator.integers(0, 4, size=20)
    model = trainer("normal", features=5, classes=4, lr=0.3, seed=9)
    before = {name: tensor.astype(np.float64) for name, tensor in model.tensors()}
    model.step(examples(inputs.tolist(), labels.tolist()))
    _, by_weights, by_bias = loss_and_gradient(
        before["weights"], before["bias"], inputs.astype(np.float64), labels
    )
    after = dict(model.tensors())
    np.testing.assert_allclose(
        after["weights"], before["weights"] - 0.3 * by_weights, atol=1e-6
    )
    np.testing.assert_allclose(after["bias"], before["bias"] - 0.3 * by_bias, atol=1e-6)


def test_large_scores_do_not_overflow() -> None:
    loss, gradient, _ = loss_and_gradient(
        np.array([[1e4, -1e4]]), np.zeros(2), np.array([[1.0]]), np.array([1])
    )
    assert loss == pytest.approx(2e4)
    assert np.isfinite(gradient).all()


def test_evaluation_is_the_mean_by_task() -> None:
    model = trainer()
    model.step(examples([[1, 2]], [0]))  # scores of (1, 0): 0.5 and -0.5
    data = [
        Example("a", np.array([1, 0]), 0),
        Example("b", np.array([1, 0]), 1),
        Example("b", np.array([1, 0]), 0),
    ]
    right, wrong = math.log1p(math.exp(-1)), math.log1p(math.exp(1))
    losses = model.evaluate(iter(data))
    assert losses == {
        "a": pytest.approx(right, abs=1e-6),
        "b": pytest.approx((right + wrong) / 2, abs=1e-6),
    }


def test_normal_source_depends_on_the_seed_only() -> None:
    one, same, other = (trainer("normal", seed=seed) for seed in (1, 1, 2))
    weights = [dict(model.tensors())["weights"] for model in (one, same, other)]
    np.testing.assert_array_equal(weights[0], weights[1])
    assert not np.array_equal(weights[0], weights[2])


def test_load_takes_bfloat16_and_refuses_other_shapes() -> None:
    values = {
        "bias": np.array([1, -1], ml_dtypes.bfloat16),
        "weights": np.full((2, 2), 0.5, ml_dtypes.bfloat16),
    }
    model = trainer()
    model.load(values.__getitem__)
    tensors = dict(model.tensors())
    assert tensors["weights"].dtype == np.float32
    np.testing.assert_array_equal(tensors["bias"], [1, -1])
    values["weights"] = np.zeros((3, 2), ml_dtypes.bfloat16)
    with pytest.raises(WorkerError, match="'weights' of the version has shape"):
        model.load(values.__getitem__)


def test_resume_is_bit_identical(tmp_path: Path) -> None:
    generator = np.random.default_rng(2)
    batches = [
        examples(generator.normal(size=(4, 2)).tolist(), [0, 1, 1, 0]) for _ in range(6)
    ]
    whole = trainer(lr=0.3, momentum=0.9)
    for batch in batches:
        whole.step(batch)
    first = trainer(lr=0.3, momentum=0.9)
    for batch in batches[:3]:
        first.step(batch)
    first.save(tmp_path)
    second = trainer(lr=0.3, momentum=0.9)
    second.restore(tmp_path)
    for batch in batches[3:]:
        second.step(batch)
    for (name, expected), (_, value) in zip(
        whole.tensors(), second.tensors(), strict=True
    ):
        assert expected.tobytes() == value.tobytes(), name


@pytest.mark.parametrize(
    "arrays",
    [
        None,
        {"bias": np.zeros(2, np.float32)},
        {
            name: np.zeros((5, 5), np.float32)
            for name in ("bias", "weights", "velocity.bias", "velocity.weights")
        },
    ],
)
def test_state_that_does_not_fit_is_a_workers_error(
    tmp_path: Path, arrays: dict[str, Any] | None
) -> None:
    if arrays is not None:
        write_arrays(tmp_path / "state.safetensors", arrays.items)
    with pytest.raises(WorkerError, match="can't be restored"):
        trainer().restore(tmp_path)
    (tmp_path / "state.safetensors").write_bytes(b"damaged")
    with pytest.raises(WorkerError, match="can't be restored"):
        trainer().restore(tmp_path)


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        (examples([[1, 2, 3]], [0]), r"shape \[3\].* takes 2 features"),
        (examples([[1, 2]], [2]), "class 2.*knows 0 to 1"),
        (examples([[1, 2], [1, 2]], [1, -1]), "class -1.*knows 0 to 1"),
    ],
)
def test_data_that_does_not_fit_is_refused(batch: list[Example], words: str) -> None:
    with pytest.raises(SpecError, match=words):
        trainer().step(batch)


def test_unknown_source_is_refused() -> None:
    with pytest.raises(SpecError, match="no model source 'ones'"):
        trainer("ones")
