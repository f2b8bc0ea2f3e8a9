"""What is kept of a run."""

from __future__ import annotations

import math

import pytest

from hansa.simulator.compare.score import POINTS, score
from hansa.simulator.outcome import Measured, Outcome


def outcome(*losses: tuple[float, float], end: float = 100.0) -> Outcome:
    return Outcome(
        strategy="fedavg", seed=3, outcome="done", reason="", wall_clock_s=end,
        node_hours=1.0, versions=len(losses), target_s=None, target_node_hours=None,
        losses=tuple(
            Measured(at_s=at, version=k, loss=loss, node_hours=0.0)
            for k, (at, loss) in enumerate(losses)
        ),
        rounds={"a": 1}, late={}, staleness={0: 1},
        queue_wait_s={"a": (30.0, 10.0, 20.0), "b": ()},
    )  # fmt: skip


def test_the_area_is_that_of_a_step_function() -> None:
    # 1.0 until 40 s (also before it was measured, at 5 s), 0.5 until 90, 0.1 until 100.
    kept = score(outcome((5.0, 1.0), (40.0, 0.5), (90.0, 0.1)))
    assert kept.loss_seconds == pytest.approx(40 + 25 + 1)
    assert kept.mean_loss(100.0) == pytest.approx(0.66)
    assert kept.mean_loss(300.0) == pytest.approx((66 + 200 * 0.1) / 300)
    assert kept.queue_wait_s == {"a": 20.0}


def test_a_run_without_losses() -> None:
    kept = score(outcome())
    assert (kept.final_loss, kept.mean_loss(100.0), kept.times) == (None, None, ())


def test_a_run_that_diverged_ends_infinite() -> None:
    kept = score(outcome((0.0, 1.0), (50.0, math.nan)))
    assert kept.final_loss == math.inf
    assert kept.mean_loss(100.0) == math.inf


def test_long_curves_are_thinned_and_keep_their_ends() -> None:
    kept = score(outcome(*((float(k), 1.0 / (k + 1)) for k in range(5000)), end=5000))
    assert len(kept.times) == POINTS
    assert (kept.times[0], kept.times[-1]) == (0.0, 4999.0)
    assert kept.final_loss == kept.losses[-1] == 1 / 5000
