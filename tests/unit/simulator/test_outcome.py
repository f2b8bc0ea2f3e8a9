"""What an observer of a simulated run counts, and what not."""

from __future__ import annotations

from textwrap import dedent

import pytest

from hansa.simulator.outcome import Outcome
from hansa.simulator.simulate import simulate
from hansa.spec.load import federation_from_text

FEDERATION = dedent(
    """
    name: counted
    model: {trainer: softmax, source: zeros, dtype: float32}
    task: digits
    strategy: fedavg
    stop: {rounds: 3}
    facilities:
      a:
        gateway: simulated
        mover: simulated
        job: {time: 1h}
        linger: LINGER
        work: {steps: 10, batch: 4, lr: 0.1}
        simulation:
          queue: {type: replay, waits: [0, 100]}
          failures: {outages: OUTAGES}
    simulation: {training: TRAINING}
    """
)


def outcome(linger: int, training: str, outages: str = "[]") -> Outcome:
    text = FEDERATION.replace("LINGER", str(linger)).replace("TRAINING", training)
    return simulate(federation_from_text(text.replace("OUTAGES", outages)))


def test_the_wait_of_each_batch_job_counts_though_it_is_none() -> None:
    waits = outcome(0, "none").queue_wait_s["a"]
    assert waits == pytest.approx((0, 100, 0))


def test_orders_that_a_running_job_takes_on_have_no_wait_that_counts() -> None:
    assert outcome(600, "none").queue_wait_s == {"a": (0,)}


def test_a_job_that_is_lost_before_its_order_begins_has_waited_too() -> None:
    """Version 0 is there after 1.3 s, and start-up takes 30 s; all is lost at 10."""
    found = outcome(600, "none", "[{at: 10, lasts: 5}]")
    assert found.queue_wait_s == {"a": (0, 100)}


def test_where_nothing_is_trained_no_loss_is_measured() -> None:
    found = outcome(600, "none")
    assert (found.losses, found.final_loss, found.target_s) == ((), None, None)
    assert found == outcome(600, "none")


def test_each_version_is_measured_once() -> None:
    found = outcome(600, "surrogate")
    assert [one.version for one in found.losses] == [0, 1, 2, 3]
    assert found.final_loss == found.losses[-1].loss
