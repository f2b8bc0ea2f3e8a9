"""Figures of a comparison against numbers worked out by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hansa.report.comparison import Estimate, ScenarioResult
from hansa.simulator.compare.score import Score
from hansa.simulator.compare.statistics import (
    RESAMPLES,
    censored,
    coverage,
    curve,
    estimate,
    middle,
    overall,
    ratio,
    resamples,
    result,
    with_ratios,
)
from hansa.simulator.compare.study import Configuration

INF = math.inf

SCORE = Score(
    seed=0, outcome="done", reason="", wall_clock_s=100.0, node_hours=2.0, versions=4,
    target_s=50.0, target_node_hours=1.0, final_loss=0.25, loss_seconds=60.0,
    rounds={"a": 3, "b": 1}, late={"a": 0, "b": 2}, staleness={0: 3, 2: 1},
    queue_wait_s={"a": 10.0}, times=(0.0, 50.0), losses=(1.0, 0.25),
)  # fmt: skip


def runs(*times: float | None) -> list[Score]:
    return [replace(SCORE, seed=k, target_s=time) for k, time in enumerate(times)]


def configuration(strategy: str, mode: str = "late") -> Configuration:
    return Configuration(
        scenario="calm", strategy=strategy, mode=mode, point=(), overrides=()
    )


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((3.0, 1.0, 2.0), 2.0),
        ((4.0, 1.0, 2.0, 3.0), 2.5),
        ((1.0, None, 2.0), 2.0),  # two of three
        ((1.0, None, None), INF),  # fewer than half
        ((1.0, 5.0, None, None), 5.0),  # just half: by 5 half of them are there
        ((5.0,), 5.0),
        ((None,), INF),
    ],
)
def test_medians_of_censored_times(
    values: tuple[float | None, ...], expected: float
) -> None:
    assert float(middle(censored(values))) == expected


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=12))
def test_without_censoring_it_is_the_median(values: list[float]) -> None:
    assert float(middle(np.array(values))) == pytest.approx(float(np.median(values)))


def test_resamples_are_the_same_for_all_strategies_of_a_scenario() -> None:
    chosen = resamples("calm", 5)
    assert chosen.shape == (RESAMPLES, 5)
    assert set(np.unique(chosen)) == {0, 1, 2, 3, 4}
    assert (chosen == resamples("calm", 5)).all()
    assert (chosen != resamples("busy", 5)).any()


def test_an_interval_is_made_of_percentiles_of_the_resampled_medians() -> None:
    # Resample k is k times the second run and else the first: of 100 resamples of
    # two runs (1 and 3), 10 are (1, 1), 10 are (3, 3) and 80 are (1, 3). Their
    # medians are 1, 3 and 2. Percentiles 2.5 and 97.5 lie among the ones and threes.
    chosen = np.array([[0, 0]] * 10 + [[1, 1]] * 10 + [[0, 1]] * 80)
    assert estimate(np.array([1.0, 3.0]), chosen) == Estimate(
        median=2.0, low=1.0, high=3.0
    )
    # With 2 of 100 at either end both percentiles are twos: 2.5 of 100 are cut off.
    chosen = np.array([[0, 0]] * 2 + [[1, 1]] * 2 + [[0, 1]] * 96)
    assert estimate(np.array([1.0, 3.0]), chosen) == Estimate(
        median=2.0, low=2.0, high=2.0
    )


def test_an_interval_of_censored_runs_has_no_upper_end() -> None:
    # Runs 1, 2 and never: a resample has a median unless two of its three are "never";
    # 7 of 27 are, so that the upper percentile is unbounded and the lower one is 1
    # (the median is 1 in 7 of 27).
    found = estimate(censored([1.0, 2.0, None]), resamples("calm", 3))
    assert found == Estimate(median=2.0, low=1.0, high=None)


@given(st.integers(2, 5), st.data())
def test_an_interval_of_few_runs_is_their_range(
    count: int, data: st.DataObject
) -> None:
    values = data.draw(st.lists(st.floats(1, 9), min_size=count, max_size=count))
    found = estimate(np.array(values), resamples("calm", count))
    assert (found.low, found.high) == (min(values), max(values))


def test_what_a_range_is_worth() -> None:
    # Each run is above the true median by one half: all are in 1 of 8, none in 1 of 8.
    assert coverage(3) == 0.75
    assert coverage(5) < 0.95 < coverage(6)


def test_one_run_has_no_interval_and_no_run_no_median() -> None:
    one = estimate(np.array([7.0]), resamples("calm", 1))
    assert one == Estimate(median=7.0, low=None, high=None)
    none = estimate(np.array([]), np.zeros((3, 0), dtype=int))
    assert none == Estimate(median=None, low=None, high=None)


@given(st.lists(st.floats(1, 1e4), min_size=2, max_size=10))
def test_an_interval_holds_runs_and_surrounds_no_less_than_nothing(
    values: list[float],
) -> None:
    found = estimate(np.array(values), resamples("x", len(values)))
    assert found.low is not None
    assert found.high is not None
    assert min(values) <= found.low <= found.high <= max(values)


def test_a_paired_ratio_is_exact_where_luck_is_common() -> None:
    # Each run takes half of what the other one takes with the same seed, however
    # different the seeds are: every resample says 0.5.
    other = np.array([100.0, 300.0, 900.0, 2000.0, 50.0])
    found = ratio(other / 2, other, resamples("calm", 5))
    assert found == Estimate(median=0.5, low=0.5, high=0.5)
    # Unpaired, the interval would be wide.
    loose = ratio(other[::-1] / 2, other, resamples("calm", 5))
    assert loose.low is not None
    assert loose.low < 0.3


def test_ratios_with_runs_that_never_arrive() -> None:
    chosen = resamples("calm", 3)
    never = censored([None, None, 1.0])
    known = np.array([1.0, 2.0, 4.0])
    assert ratio(never, known, chosen).median is None
    assert ratio(known, never, chosen).median is None
    partly = ratio(censored([1.0, 2.0, None]), known, chosen)
    assert partly.median == 1.0
    assert partly.high is None
    assert ratio(np.array([]), np.array([]), np.zeros((3, 0), dtype=int)).median is None


def test_what_a_strategy_came_to() -> None:
    scores = [
        SCORE,
        replace(SCORE, seed=1, target_s=70.0, rounds={"a": 5}, queue_wait_s={}),
        replace(SCORE, seed=2, target_s=None, staleness={2: 4}, queue_wait_s={"a": 20}),
    ]
    found = result(configuration("fedavg"), 3, scores, 200.0, ("a", "b"))
    assert (found.seeds, found.reached, found.points) == (3, 2, 3)
    assert found.time_to_target_s.median == 70.0
    assert found.participation == {"a": 11 / 3, "b": 2 / 3}
    assert found.late == {"a": 0, "b": 2}
    assert found.staleness == {0: 6, 2: 6}
    assert found.queue_wait_s == {"a": 15.0, "b": None}
    # The area up to 100 s is 60; from there to the horizon of 200 s it is 0.25 * 100.
    assert found.mean_loss.median == pytest.approx(85 / 200)


def test_a_curve_is_a_step_function_with_quartiles() -> None:
    scores = [
        replace(SCORE, losses=(1.0, low), times=(0.0, 50.0)) for low in (0.1, 0.2, 0.3)
    ]
    found = curve(scores)
    assert found is not None
    assert found.times[0] == 0.0
    assert found.times[-1] == 100.0
    before = [x for t, x in zip(found.times, found.median, strict=True) if t < 50]
    after = [x for t, x in zip(found.times, found.median, strict=True) if t >= 50]
    assert set(before) == {1.0}
    assert set(after) == {0.2}
    assert found.low[-1] == pytest.approx(0.15)  # halfway from 0.1 to 0.2
    assert found.high[-1] == pytest.approx(0.25)
    assert curve([replace(SCORE, times=(), losses=())]) is None


def test_a_curve_of_runs_that_diverge_can_be_drawn() -> None:
    found = curve([replace(SCORE, losses=(1.0, INF))] * 2)
    assert found is not None
    assert max(found.high) == 1.0
    assert curve([replace(SCORE, losses=(INF, INF))]) is None


def test_ratios_are_to_the_best_other_strategy_of_each_mode() -> None:
    field = [
        ("tide", "late", runs(10, 10, 10)),
        ("fedavg", "late", runs(30, 30, 30)),
        ("fedbuff", "late", runs(20, 20, 20)),
        ("fedbuff", "published", runs(40, 40, 40)),
        ("fedasync", "published", runs(None, None, 40)),
    ]
    results = [
        result(configuration(name, mode), 1, scores, 100.0, ("a", "b"))
        for name, mode, scores in field
    ]
    found = with_ratios("calm", results, [scores for _, _, scores in field])
    told = [[(r.mode, r.strategy, r.time.median) for r in one.ratios] for one in found]
    assert told == [
        [("late", "fedbuff", 0.5), ("published", "fedbuff", 0.25)],
        [("late", "tide", 3.0), ("published", "fedbuff", 0.75)],
        [("late", "tide", 2.0), ("published", None, None)],
        [("late", "tide", 4.0), ("published", None, None)],
        [("late", "tide", None), ("published", "fedbuff", None)],
    ]


def test_over_all_scenarios_a_missed_target_counts_as_infinite() -> None:
    def place(name: str, *tide: float | None) -> ScenarioResult:
        pair = [runs(*tide), runs(20, 20, 20)]
        results = [
            result(configuration(s), 1, scores, 100.0, ("a", "b"))
            for s, scores in zip(("tide", "fedavg"), pair, strict=True)
        ]
        ratios = with_ratios(name, results, pair)
        return ScenarioResult(name=name, horizon_s=100.0, results=ratios)

    first = [place("a", 10, 10, 10), place("b", 15, 15, 15), place("c", 8, 8, 8)]
    tide, fedavg = overall(first)
    assert (tide.strategy, tide.scenarios, tide.missed) == ("tide", 3, 0)
    assert (tide.time, tide.worst) == (0.5, 0.75)  # of 0.4, 0.5 and 0.75
    assert fedavg.worst == 2.5
    tide, fedavg = overall([*first[:2], place("d", None, None, 1)])
    assert (tide.scenarios, tide.missed, tide.time, tide.worst) == (3, 1, 0.75, None)
    assert fedavg.scenarios == 2  # in the third nobody else arrives
