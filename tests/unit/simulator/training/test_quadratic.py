"""The quadratic problem: steps against a plain loop, its optimum, its diversity."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from surrogates import federation, order

from hansa.core.errors import SpecError, WorkerError
from hansa.simulator.training import make_training
from hansa.simulator.training.base import Vector
from hansa.simulator.training.quadratic import Quadratic


def quadratic(
    *, seed: int = 0, facilities: dict[str, Any] | None = None, **problem: Any
) -> Quadratic:
    training = {"type": "surrogate", "dimensions": 6, **problem}
    made = make_training(federation(training, facilities), seed)
    assert isinstance(made, Quadratic)
    return made


def looped(
    problem: Quadratic,
    base: Vector,
    steps: int,
    rate: float,
    mu: float = 0.0,
    control: Vector | float = 0.0,
) -> tuple[Vector, Vector]:
    """Return the weights after some steps at a, and the squares before each."""
    part, weights = problem.facilities["a"], base.copy()
    squares = []
    for _ in range(steps):
        squares.append((weights - part.optimum) ** 2)
        gradient = part.curvature * (weights - part.optimum)
        gradient = gradient + mu * (weights - base) + control
        weights = weights - rate * gradient
    return weights, np.array(squares)


STILL = quadratic(noise=0)
BASE = np.array([1.0, -2.0, 0.0, 0.5, 3.0, -1.0])


@given(
    steps=st.integers(1, 60),
    scale=st.floats(0.01, 25),
    mu=st.sampled_from([0.0, 0.5]),
    push=st.sampled_from([None, 0.3]),
)
def test_all_steps_at_once_are_a_plain_loop(
    steps: int, scale: float, mu: float, push: float | None
) -> None:
    control = None if push is None else push * np.arange(6.0)
    work = order(steps, lr_scale=scale, proximal=mu, control=control)
    made = STILL.train("a", BASE, work)
    after, squares = looped(
        STILL, BASE, steps, 0.1 * scale, mu, 0.0 if control is None else control
    )
    size = np.abs(after).max() + 1  # it grows where the rate is above 2
    np.testing.assert_allclose(made.delta, after - BASE, rtol=1e-9, atol=1e-12 * size)
    assert made.samples == 4 * steps
    assert made.metrics["lr_sum"] == pytest.approx(0.1 * scale * steps)
    # In the unit of the common loss: that of version 0 above the optimum.
    unit = 0.5 * STILL.curvature @ (STILL.optimum**2)
    own = 0.5 * (squares @ STILL.facilities["a"].curvature).mean() / unit
    assert made.metrics["train_loss"] == pytest.approx(own, rel=1e-9)


def test_the_noise_of_all_steps_together_has_their_variance() -> None:
    problem, steps, count = quadratic(noise=3.0), 7, 4000
    mean = quadratic(noise=0).train("a", BASE, order(steps)).delta
    deltas = [problem.train("a", BASE, order(steps, n)).delta for n in range(count)]
    noise = np.array(deltas) - mean
    # One step's gradient has 3^2 over all 6 coordinates for an example, of which a
    # batch has 4; each later step multiplies what is there by (1 - lr h).
    variance = np.zeros(6)
    for _ in range(steps):
        variance = variance * (1 - 0.1 * problem.facilities["a"].curvature) ** 2
        variance = variance + 0.1**2 * 9 / (4 * 6)
    # The deviation of a measured variance is sqrt(2 / count), here 2.2 %.
    np.testing.assert_allclose(noise.var(axis=0), variance, rtol=0.1)
    np.testing.assert_allclose(
        noise.mean(axis=0), 0, atol=4 * variance.max() ** 0.5 / 63
    )


def test_the_optimum_has_no_slope_and_the_loss_goes_from_one_to_zero() -> None:
    parts = {
        "a": {"simulation": {"samples": 300}},
        "b": {"simulation": {"samples": 100}},
    }
    problem = quadratic(facilities=parts)
    a, b = problem.facilities["a"], problem.facilities["b"]
    slope = 0.75 * a.curvature * (problem.optimum - a.optimum)
    slope += 0.25 * b.curvature * (problem.optimum - b.optimum)
    np.testing.assert_allclose(slope, 0, atol=1e-14)
    assert problem.losses(problem.initial()) == {"all": pytest.approx(1.0)}
    assert problem.losses(problem.optimum) == {"all": 0.0}

    def objective(w: Vector) -> float:
        own = 0.75 * a.curvature @ (w - a.optimum) ** 2
        return 0.5 * float(own + 0.25 * b.curvature @ (w - b.optimum) ** 2)

    lowest = objective(problem.optimum)
    share = (objective(BASE) - lowest) / (objective(np.zeros(6)) - lowest)
    assert problem.losses(BASE)["all"] == pytest.approx(share)


def test_a_facility_that_does_not_say_has_as_many_samples_as_the_mean() -> None:
    told = {"a": {"simulation": {"samples": 10}}, "b": {"simulation": {"samples": 30}}}
    problem = quadratic(facilities={**told, "c": {}})
    curvatures = [problem.facilities[name].curvature for name in "abc"]
    # 10, 30 and 20 of 60.
    expected = np.array([1 / 6, 3 / 6, 2 / 6]) @ np.array(curvatures)
    np.testing.assert_allclose(problem.curvature, expected)


def test_classes_that_a_facility_names_are_those_that_it_has() -> None:
    def named(*classes: int) -> dict[str, Any]:
        return {"simulation": {"classes": classes}}

    problem = quadratic(facilities={"a": named(1), "b": named(2), "c": named(1, 2)})
    one, two, both = (problem.facilities[name] for name in "abc")
    curvature = (one.curvature + two.curvature) / 2
    np.testing.assert_allclose(both.curvature, curvature)
    pulls = one.curvature * one.optimum + two.curvature * two.optimum
    np.testing.assert_allclose(both.optimum, pulls / 2 / curvature)


def test_curvatures_reach_from_one_to_one_over_the_condition() -> None:
    problem = quadratic(alpha=1e-9, condition=50.0, dimensions=20)
    # With so small an alpha a facility has one class only.
    for part in problem.facilities.values():
        assert part.curvature.max() == pytest.approx(1.0)
        assert part.curvature.min() == pytest.approx(1 / 50)


def rounds(problem: Quadratic, steps: int, count: int) -> float:
    """Return the loss after some rounds of FedAvg."""
    weights = problem.initial()
    for _ in range(count):
        deltas = [
            problem.train(name, weights, order(steps)).delta
            for name in problem.facilities
        ]
        weights = weights + np.mean(deltas, axis=0)
    return problem.losses(weights)["all"]


@pytest.mark.parametrize("seed", range(3))
def test_many_local_steps_lead_astray_only_where_data_differ(seed: int) -> None:
    even = quadratic(seed=seed, noise=0, alpha="iid", dimensions=32)
    uneven = quadratic(seed=seed, noise=0, alpha=0.1, dimensions=32)
    assert rounds(even, steps=500, count=20) < 1e-6
    assert rounds(uneven, steps=500, count=20) > 0.01
    # With one step in a round FedAvg is gradient descent, wherever the data are.
    assert rounds(uneven, steps=1, count=2000) < 1e-3


def test_a_facility_alone_learns_little_of_what_the_others_have() -> None:
    alone = []
    for seed in range(10):
        problem = quadratic(seed=seed, noise=0, dimensions=32)
        alone += [problem.losses(p.optimum)["all"] for p in problem.facilities.values()]
    assert 0.3 < float(np.median(alone)) < 3


def test_steps_that_diverge_are_an_error_of_the_worker() -> None:
    with pytest.raises(WorkerError, match="training loss became inf") as caught:
        quadratic().train("a", BASE, order(10_000, lr_scale=50))
    assert not caught.value.transient
    with pytest.raises(WorkerError, match="training loss became"):
        quadratic().train("a", BASE * 1e30, order(1))


def test_equal_work_gives_equal_bytes_whatever_was_done_before() -> None:
    one, other = quadratic(), quadratic()
    base = BASE.copy()
    first = one.train("a", base, order(5))
    for number in range(2, 5):
        other.train("b", base, order(number, number))
        other.losses(base)
    again = other.train("a", base, order(5))
    assert first.delta.tobytes() == again.delta.tobytes()
    assert first.metrics == again.metrics
    assert base.tobytes() == BASE.tobytes()
    assert (first.delta != one.train("a", base, order(5, 2)).delta).all()


def test_one_more_facility_changes_nothing_for_the_others() -> None:
    one, more = quadratic(), quadratic(facilities={"z": {}, "a": {}})
    for name in ("curvature", "optimum"):
        mine, others = (getattr(p.facilities["a"], name) for p in (one, more))
        assert mine.tobytes() == others.tobytes()


def test_the_seed_draws_the_problem() -> None:
    assert (quadratic(seed=1).optimum != quadratic(seed=2).optimum).all()


def test_work_without_a_learning_rate_is_refused() -> None:
    spec = federation({"type": "surrogate"})
    work = spec.facilities["b"].work.model_copy()
    work.__pydantic_extra__ = {"batch": 4}
    parts = {**spec.facilities}
    parts["b"] = parts["b"].model_copy(update={"work": work})
    with pytest.raises(SpecError, match=r"facilities\.b\.work\.lr"):
        make_training(spec.model_copy(update={"facilities": parts}), 0)
