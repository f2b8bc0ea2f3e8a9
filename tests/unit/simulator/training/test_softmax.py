"""The softmax problem: gradients, steps against a plain loop, its optimum."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from surrogates import federation, order

from hansa.core.errors import WorkerError
from hansa.simulator.training import make_training
from hansa.simulator.training.base import Vector
from hansa.simulator.training.softmax import L2, SoftmaxRegression, objective


def softmax(
    *,
    seed: int = 0,
    batch: int = 4,
    facilities: dict[str, Any] | None = None,
    **problem: Any,
) -> SoftmaxRegression:
    training = {
        "type": "surrogate",
        "problem": "softmax",
        "dimensions": 5,
        "classes": 3,
        **problem,
    }
    spec = federation(training, facilities, work={"batch": batch})
    made = make_training(spec, seed)
    assert isinstance(made, SoftmaxRegression)
    return made


BASE = np.linspace(-1, 1, 15)


def test_a_step_over_all_data_goes_along_the_slope() -> None:
    """The slope is measured by differences, so no formula is used twice."""
    count = len(softmax().problem.parts["a"].inputs)
    training = softmax(batch=count)
    part = training.problem.parts["a"]
    slope = np.empty(15)
    for number, unit in enumerate(np.eye(15) * 1e-5):
        high, low = (
            objective(part, (BASE + sign * unit).reshape(3, 5)) for sign in (1, -1)
        )
        slope[number] = (high - low) / 2e-5
    made = training.train("a", BASE, order(1))
    np.testing.assert_allclose(made.delta, -0.1 * slope, rtol=1e-6, atol=1e-10)
    assert made.samples == count
    entropy = objective(part, BASE.reshape(3, 5)) - L2 / 2 * BASE @ BASE
    assert made.metrics["train_loss"] == pytest.approx(entropy)


def looped(
    training: SoftmaxRegression,
    first: int,
    steps: int,
    rate: float,
    mu: float,
    control: Vector,
) -> Vector:
    """Return where a plain loop, example by example, ends."""
    part, start = training.problem.parts["a"], BASE.reshape(3, 5)
    weights = start.copy()
    for step in range(first, first + steps):
        gradient = L2 * weights + mu * (weights - start) + control.reshape(3, 5)
        for place in range(4 * step, 4 * step + 4):
            number = place % len(part.inputs)
            x, y = part.inputs[number], part.labels[:, number]
            p = np.exp(weights @ x) / np.exp(weights @ x).sum()
            gradient = gradient + np.outer(p - y, x) / 4
        weights = weights - rate * gradient
    return weights.reshape(-1)


def test_the_steps_are_those_of_a_plain_loop_with_all_corrections() -> None:
    training, control = softmax(), 0.1 * np.arange(15.0)
    # The facility has some 500 examples: these steps go over their end.
    work = order(40, seen=440, lr_scale=3.0, proximal=0.7, control=control)
    made = training.train("a", BASE, work)
    after = looped(training, 110, 40, 0.3, 0.7, control)
    np.testing.assert_allclose(BASE + made.delta, after, rtol=1e-9)
    assert made.metrics["lr_sum"] == pytest.approx(0.3 * 40)


def test_orders_go_on_where_the_one_before_has_ended() -> None:
    training = softmax()
    whole = training.train("a", BASE, order(5)).delta
    half = BASE + training.train("a", BASE, order(3)).delta
    rest = training.train("a", half, order(2, 2, seen=12)).delta
    np.testing.assert_allclose(half + rest, BASE + whole, rtol=1e-12)
    assert (training.train("a", half, order(2, 2)).delta != rest).any()


@pytest.mark.parametrize("alpha", [0.1, "iid"])
def test_the_optimum_is_the_lowest_point(alpha: float | str) -> None:
    training = softmax(alpha=alpha, dimensions=8, classes=4)
    problem, draw = training.problem, np.random.default_rng(1)
    for length in (1e-3, 1e-1):
        for _ in range(20):
            way = draw.standard_normal((4, 8))
            off = problem.optimum + length * way / np.linalg.norm(way)
            # Strictly convex with L2: at least L2 / 2 of the squared way above it.
            above = objective(problem.together, off) - problem.lowest
            assert above >= L2 / 2 * length**2 * (1 - 1e-4)
    assert training.losses(training.initial()) == {"all": pytest.approx(1.0)}
    assert training.losses(problem.optimum.reshape(-1))["all"] == pytest.approx(0)


def test_facilities_have_examples_as_they_have_samples_and_classes_as_alpha_says() -> (
    None
):
    told = {
        "a": {"simulation": {"samples": 900}},
        "b": {"simulation": {"samples": 100}},
    }
    even = softmax(facilities=told, alpha="iid").problem.parts
    # 500 in the mean: 1000 in all, 9 to 1.
    assert [len(part.inputs) for part in even.values()] == [900, 100]
    assert even["a"].labels.mean(axis=1) == pytest.approx(np.full(3, 1 / 3), abs=0.06)
    uneven = softmax(alpha=0.01).problem.parts
    assert all(part.labels.mean(axis=1).max() > 0.9 for part in uneven.values())


def test_classes_that_a_facility_names_are_those_that_it_has() -> None:
    told = {"a": {"simulation": {"classes": [2, 0]}}, "b": {}}
    problem = softmax(facilities=told).problem
    assert (problem.parts["a"].labels.any(axis=1) == [True, False, True]).all()
    drawn = softmax(facilities={"a": {}, "b": {}}).problem
    assert problem.parts["b"].inputs.tobytes() == drawn.parts["b"].inputs.tobytes()


def test_steps_that_diverge_are_an_error_of_the_worker() -> None:
    with pytest.raises(WorkerError, match="training loss became"):
        softmax().train("a", BASE, order(300, lr_scale=1e5))


def test_equal_work_gives_equal_bytes_whatever_was_done_before() -> None:
    one, other = softmax(), softmax()
    other.train("b", BASE, order(3))
    other.train("a", BASE, order(7, 2))
    made, again = (each.train("a", BASE, order(5)) for each in (one, other))
    assert made.delta.tobytes() == again.delta.tobytes()
    assert made.metrics == again.metrics
    assert BASE.tobytes() == np.linspace(-1, 1, 15).tobytes()


def test_one_more_facility_changes_nothing_for_the_data_of_the_others() -> None:
    one, more = softmax(), softmax(facilities={"z": {}, "a": {}})
    for name in ("inputs", "labels"):
        mine, others = (getattr(t.problem.parts["a"], name) for t in (one, more))
        assert mine.tobytes() == others.tobytes()
