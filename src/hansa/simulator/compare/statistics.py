"""Medians over seeds, how sure they are, and who is better than whom.

Intervals are bootstrap percentile intervals at 95% (Efron and Tibshirani, "An
Introduction to the Bootstrap", 1993, section 13.3). All strategies of a scenario run
with the same seeds and are resampled together, so that ratios are paired: what a lucky
queue gives to all of them cancels.

A run that does not reach its target within its bounds is censored: all that is known is
that it would have taken longer. It counts as infinite, which a median can stand.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from statistics import fmean, median

import numpy as np
from numpy.typing import NDArray

from hansa.core.rng import derive_seed
from hansa.report.comparison import (
    Curve,
    Estimate,
    Overall,
    Ratio,
    Result,
    ScenarioResult,
)
from hansa.simulator.compare.score import Score
from hansa.simulator.compare.study import Configuration

Values = NDArray[np.float64]
RESAMPLES = 1000
LEVEL = 0.95
ENOUGH = 6
"""With fewer runs the interval spans them all, and even that is less than 95%."""

GRID = 240
"""Points of a median curve."""

NONE = Estimate(median=None, low=None, high=None)


def coverage(count: int) -> float:
    """Return how often all of `count` runs lie on both sides of the true median.

    That is what the span of a few runs is worth as an interval (order statistics; David
    and Nagaraja, "Order Statistics", 2003, section 7.1).
    """
    return 1 - 2 * 0.5**count


def censored(values: Iterable[float | None]) -> Values:
    """Return values with infinity where there is none."""
    return np.array([math.inf if one is None else one for one in values], dtype=float)


def middle(values: Values) -> Values:
    """Return medians along the last axis; infinite where fewer than half are finite.

    With just half of them finite it is the largest of these: by then half of the runs
    had reached the target.
    """
    ordered = np.sort(values, axis=-1)
    count = ordered.shape[-1]
    low, high = ordered[..., (count - 1) // 2], ordered[..., count // 2]
    found: Values = np.where(np.isfinite(high), (low + high) / 2, low)
    return found


def resamples(scenario: str, count: int) -> NDArray[np.int64]:
    """Return which runs each resample consists of, of shape (`RESAMPLES`, count)."""
    draw = np.random.default_rng(derive_seed("bootstrap", scenario, count))
    return draw.integers(0, count, (RESAMPLES, count))


def estimate(values: Values, chosen: NDArray[np.int64]) -> Estimate:
    """Return the median and its interval.

    Args:
        values: One for each run, of shape (runs,); infinite where censored.
        chosen: Of `resamples`.
    """
    if not len(values):
        return NONE
    low, high = _interval(middle(values[chosen])) if len(values) > 1 else (None, None)
    return Estimate(median=_finite(float(middle(values))), low=low, high=high)


def _interval(medians: Values) -> tuple[float | None, float | None]:
    """Return percentiles without interpolation, which infinity could not stand."""
    ordered = np.sort(medians)
    cut = (1 - LEVEL) / 2 * len(ordered)
    low, high = ordered[math.floor(cut)], ordered[math.ceil(len(ordered) - cut) - 1]
    return _finite(float(low)), _finite(float(high))


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None


def ratio(own: Values, other: Values, chosen: NDArray[np.int64]) -> Estimate:
    """Return the ratio of two medians over the same seeds, with its interval.

    Args:
        own: Values of the runs, by seed.
        other: Values of the other one's runs with the same seeds, in the same order.
        chosen: Of `resamples`.
    """
    if not len(own):
        return NONE
    first, second = float(middle(own)), float(middle(other))
    if not (math.isfinite(first) and math.isfinite(second) and second > 0):
        return NONE
    if len(own) < 2:
        return Estimate(median=first / second, low=None, high=None)
    above, below = middle(own[chosen]), middle(other[chosen])
    # Where neither is known the resample says nothing; where one is, much.
    said = (np.isfinite(above) | np.isfinite(below)) & (below > 0)
    known = np.isfinite(above[said]) & np.isfinite(below[said])
    lone = np.where(np.isfinite(above[said]), 0.0, math.inf)
    shares = np.divide(above[said], below[said], out=lone, where=known)
    low, high = _interval(shares)
    return Estimate(median=first / second, low=low, high=high)


def result(
    configuration: Configuration,
    points: int,
    scores: Sequence[Score],
    horizon: float,
    facilities: Sequence[str],
) -> Result:
    """Return what one strategy came to, without ratios.

    Args:
        configuration: What ran.
        points: Of how many grid points it is the best.
        scores: Its runs, by seed; at least one.
        horizon: Length of the scenario's longest run, in seconds.
        facilities: Their names.
    """
    chosen = resamples(configuration.scenario, len(scores))

    def over(values: Iterable[float | None]) -> Estimate:
        return estimate(censored(values), chosen)

    return Result(
        strategy=configuration.strategy,
        mode=configuration.mode,
        seeds=len(scores),
        reached=sum(one.target_s is not None for one in scores),
        time_to_target_s=over(one.target_s for one in scores),
        node_hours_to_target=over(one.target_node_hours for one in scores),
        final_loss=over(one.final_loss for one in scores),
        mean_loss=over(one.mean_loss(horizon) for one in scores),
        node_hours=over(one.node_hours for one in scores),
        wall_clock_s=over(one.wall_clock_s for one in scores),
        versions=float(median(one.versions for one in scores)),
        participation=_means(facilities, [one.rounds for one in scores]),
        late=_means(facilities, [one.late for one in scores]),
        staleness=_sum(one.staleness for one in scores),
        queue_wait_s=_waits(facilities, [one.queue_wait_s for one in scores]),
        grid=dict(configuration.point),
        points=points,
        curve=curve(scores),
    )


def _means(
    facilities: Iterable[str], counts: Sequence[Mapping[str, int]]
) -> dict[str, float]:
    return {name: fmean(one.get(name, 0) for one in counts) for name in facilities}


def _sum(histograms: Iterable[Mapping[int, int]]) -> dict[int, int]:
    total: Counter[int] = Counter()
    for one in histograms:
        total.update(one)
    return dict(sorted(total.items()))


def _waits(
    facilities: Iterable[str], waits: Sequence[Mapping[str, float]]
) -> dict[str, float | None]:
    found = {name: [one[name] for one in waits if name in one] for name in facilities}
    return {name: median(each) if each else None for name, each in found.items()}


def curve(scores: Sequence[Score]) -> Curve | None:
    """Return median and quartiles of the loss over time, up to the longest run.

    A loss holds until the next one is measured, and the last one from then on.
    """
    if not all(one.times for one in scores):
        return None
    times = np.linspace(0.0, max(one.wall_clock_s for one in scores), GRID)
    rows = np.array([_sampled(one, times) for one in scores])
    known = rows[np.isfinite(rows)]
    if not known.size:
        return None
    rows = np.nan_to_num(rows, posinf=float(np.max(known)))
    low, mid, high = np.percentile(rows, (25, 50, 75), axis=0)
    return Curve(
        times=tuple(times.tolist()),
        median=tuple(mid.tolist()),
        low=tuple(low.tolist()),
        high=tuple(high.tolist()),
    )


def _sampled(one: Score, times: Values) -> Values:
    places = np.searchsorted(np.array(one.times), times, side="right") - 1
    found: Values = np.array(one.losses)[np.maximum(places, 0)]
    return found


def with_ratios(
    name: str, results: Sequence[Result], scores: Sequence[Sequence[Score]]
) -> tuple[Result, ...]:
    """Return a scenario's results with their ratios to the best others.

    Args:
        name: Of the scenario.
        results: One for each strategy and mode.
        scores: Their runs, in the same order.
    """
    found = []
    for own, runs in zip(results, scores, strict=True):
        ratios = tuple(
            _against(name, own, runs, mode, list(zip(results, scores, strict=True)))
            for mode in dict.fromkeys(one.mode for one in results)
            if any(one.mode == mode and one.strategy != own.strategy for one in results)
        )
        found.append(replace(own, ratios=ratios))
    return tuple(found)


def _against(
    name: str,
    own: Result,
    runs: Sequence[Score],
    mode: str,
    field: Sequence[tuple[Result, Sequence[Score]]],
) -> Ratio:
    others = [
        (one.time_to_target_s.median, one, theirs)
        for one, theirs in field
        if one.mode == mode and one.strategy != own.strategy
    ]
    # A time of 0 is no result: the model that all begin with is good enough.
    able = [(time, one, theirs) for time, one, theirs in others if time]
    if not able:
        return Ratio(mode=mode, strategy=None, time=NONE, node_hours=NONE)
    _, best, theirs = min(able, key=lambda other: other[0])
    first, second = _paired(runs, theirs)
    chosen = resamples(name, len(first))

    def over(of: str) -> Estimate:
        mine = censored(getattr(one, of) for one in first)
        return ratio(mine, censored(getattr(one, of) for one in second), chosen)

    return Ratio(
        mode=mode,
        strategy=best.strategy,
        time=over("target_s"),
        node_hours=over("target_node_hours"),
    )


def _paired(
    own: Sequence[Score], other: Sequence[Score]
) -> tuple[list[Score], list[Score]]:
    """Return the runs of seeds that both have, in the same order."""
    theirs = {one.seed: one for one in other}
    both = [one for one in own if one.seed in theirs]
    return both, [theirs[one.seed] for one in both]


def overall(scenarios: Sequence[ScenarioResult]) -> tuple[Overall, ...]:
    """Return each strategy and mode against the best others, over all scenarios."""
    rows: dict[tuple[str, str, str], list[Ratio]] = {}
    for place in scenarios:
        for one in place.results:
            for against in one.ratios:
                key = one.strategy, one.mode, against.mode
                rows.setdefault(key, []).append(against)
    return tuple(_overall(key, ratios) for key, ratios in rows.items())


def _overall(key: tuple[str, str, str], ratios: Sequence[Ratio]) -> Overall:
    met = [one for one in ratios if one.strategy is not None]
    times = censored(one.time.median for one in met)
    hours = censored(one.node_hours.median for one in met)
    return Overall(
        strategy=key[0],
        mode=key[1],
        against=key[2],
        scenarios=len(met),
        missed=sum(one.time.median is None for one in met),
        time=_finite(float(middle(times))) if met else None,
        worst=_finite(float(np.max(times))) if met else None,
        node_hours=_finite(float(middle(hours))) if met else None,
    )
