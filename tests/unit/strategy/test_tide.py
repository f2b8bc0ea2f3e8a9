"""Tide, against numbers worked out by hand; see also its golden sequence."""

from __future__ import annotations

import pytest
from told import Told

from hansa.core.commands import Aggregate
from hansa.core.events import UpdateArrived
from hansa.strategy.base import StrategyContext
from hansa.strategy.tide import Tide, TideOptions

RATE = 0.125
"""Of every step."""


class Quadratics(Told):
    """Facilities that do many steps on ``curvature / 2 (x - optimum)^2`` each.

    Attributes:
        curvature: Of all of them.
        optima: By facility.
    """

    def __init__(self, optima: dict[str, float], curvature: float = 1.0) -> None:
        context = StrategyContext(facilities=tuple(optima))
        super().__init__(Tide(TideOptions(), context))
        self.curvature, self.optima = curvature, optima
        self.publish()

    def work(self, facility: str, steps: int, base: int | None = None) -> None:
        """Let a facility train from a version, and its update be published."""
        self.bring(facility, steps, base)
        self.publish()

    def bring(self, facility: str, steps: int, base: int | None = None) -> None:
        base = self.newest if base is None else base
        order = self.orders[facility]
        x = start = self.store.version(base)
        control = self.store.state(order.control) if order.control else 0.0
        for _ in range(steps):
            x -= RATE * (self.curvature * (x - self.optima[facility]) + control)
        arrive(self, facility, x - start, base, lr_sum=RATE * steps)


def arrive(
    told: Told, facility: str, delta: float, base: int, **metrics: float
) -> Aggregate | None:
    name = told.orders[facility].assignment
    told.store.update(name, delta)
    told.tell(
        UpdateArrived(
            at=told.at,
            facility=facility,
            assignment=name,
            base=base,
            steps=1,
            samples=1,
            partial=False,
            bytes=1,
            metrics=metrics,
        )
    )
    making: Aggregate | None = told.making
    return making


def opened(*facilities: str, **options: bool) -> Told:
    strategy = Tide(TideOptions(**options), StrategyContext(facilities=facilities))
    told = Told(strategy)
    told.publish()
    return told


def shares(making: Aggregate | None) -> dict[str, float]:
    assert making is not None
    return {
        term.ref.split("-")[2]: term.coefficient
        for term in making.terms
        if term.ref.startswith("update/")
    }


def test_one_facility_that_is_left_alone_finds_the_optimum_of_all() -> None:
    """Optima 0 and 6, weights equal, curvatures alike: together 3.

    b is seen once, at 0 as a is. The difference of their gradients is 6 there, as it
    is anywhere, so each of a's steps goes along ``x - 0 - 6/2``. Had a's newest
    gradient been put beside b's old one, -6, they would balance where ``x = 6``.
    """
    run = Quadratics({"a": 0.0, "b": 6.0})
    run.start("b", queue_wait=0.0)
    run.work("a", steps=1)
    run.work("b", steps=1, base=0)
    run.work("a", steps=4)  # this order was given before b was known
    for _ in range(12):
        run.work("a", steps=20)
    assert run.model == pytest.approx(3.0, abs=1e-3)


def test_weights_are_shares_of_the_data_not_of_the_updates() -> None:
    told = opened("a", "b", "c")
    for name in "abc":
        told.start(name, queue_wait=0.0)
    assert shares(arrive(told, "a", 1.0, 0, examples=300.0)) == {"a": 1 / 3}
    told.publish()
    # c has not told anything yet: it counts as the mean, 200.
    assert shares(arrive(told, "b", 1.0, 0, examples=100.0)) == {"b": 100 / 600}
    told.publish()
    assert shares(arrive(told, "c", 1.0, 0, examples=400.0)) == {"c": 400 / 800}


def test_who_waits_in_a_queue_has_no_share() -> None:
    told = opened("a", "b", "c")
    told.start("a", queue_wait=0.0)
    told.start("b", queue_wait=0.0)
    assert shares(arrive(told, "a", 1.0, 0)) == {"a": 1 / 2}


def test_a_stale_update_does_not_undo_what_others_did_since() -> None:
    """a made version 1 from the base of b's update, and is not at work now."""
    told = opened("a", "b")
    told.start("b", queue_wait=0.0)
    arrive(told, "a", 4.0, 0)
    told.publish()  # 0 + 4/2
    assert shares(arrive(told, "b", -2.0, 0)) == {"b": 1 / 2}
    told.publish()
    assert told.model == pytest.approx(2 / 2 + (0 - 2) / 2)


def test_what_comes_while_a_version_is_made_is_in_the_next_together() -> None:
    told = opened("a", "b", "c")
    for name in "abc":
        told.start(name, queue_wait=0.0)
    arrive(told, "a", 1.0, 0)
    arrive(told, "b", 1.0, 0)
    arrive(told, "c", 1.0, 0)
    assert shares(told.making) == {"a": 1 / 3}
    told.publish()
    assert shares(told.making) == {"b": 1 / 3, "c": 1 / 3}
    assert told.strategy.describe()["arrived"] == []


def test_another_optimizer_is_mixed_in_and_left_uncorrected() -> None:
    run = Quadratics({"a": 0.0, "b": 6.0, "c": 3.0})
    arrive(run, "a", 2.0, 0)
    assert run.making is not None
    assert run.making.states == ()
    run.publish()
    run.work("b", steps=4)
    run.work("c", steps=4)
    arrive(run, "a", 2.0, run.newest)
    run.publish()
    assert run.orders["a"].control == ""
    assert run.orders["c"].control == "state/correction-c/3"


def test_without_control_nothing_is_stored() -> None:
    told = opened("a", "b", control=False)
    for base in range(3):
        for name in "ab":
            making = arrive(told, name, 1.0, 2 * base, lr_sum=0.5)
            assert making is not None
            assert making.states == ()
            told.publish()
    assert told.orders["a"].control == ""
    assert not told.strategy.holds()


def test_a_federation_of_one_is_plain_training() -> None:
    run = Quadratics({"a": 5.0})
    for _ in range(10):
        run.work("a", steps=8)
    # 80 steps of ``x <- x - (x - 5) / 8``
    assert run.model == pytest.approx(5 - 5 * (7 / 8) ** 80)
    assert run.orders["a"].control == ""
