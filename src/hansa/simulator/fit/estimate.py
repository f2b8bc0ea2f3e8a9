"""From measurements to the keys of a simulated facility.

Times are means, since they add up; what happens between a facility and the server
(`notice`) is a median, since one silent hour says nothing of the usual. What a facility
never showed is the median of what the others did, or else the key's default.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, median, stdev
from typing import Any

from hansa.simulator.fit.measure import Observed, Transfer
from hansa.spec.simulation import (
    FacilitySimulation,
    FailureSpec,
    SpeedSpec,
)

MANY = 30
"""So many waits, none under `SHORT_S`, become a lognormal law; fewer are replayed."""

SHORT_S = 1.0
"""Shorter waits are no queue, and their logarithms would outweigh all others."""

NODES_EXPONENT = 0.9
"""Assumed where `hansa bench throughput` has measured nothing: speed grows with nodes
to this power. A run shows one number of nodes."""

_ALIKE = 1.5
"""Transfers whose sizes differ by less don't tell latency from bandwidth."""

_DIGITS = 6
_LARGEST_RATE = 60.0  # what `FailureSpec` allows


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """What one facility is like; None (or no wait) where that was not measured.

    Attributes:
        waits: Seconds in the queue, in the order of submission.
        waited: How long a job waited at least, where none ever started.
        step: Seconds of a step, and the spread from order to order.
        startup: Seconds from a job's start to its first step.
        handover: The same for an order that an idle allocation takes on.
        save: Seconds of writing an update.
        evaluate: Seconds of measuring a version.
        evaluate_local: Seconds of measuring the local model.
        line: Latency in seconds, and bytes in a second.
        notice: Seconds from an order to its result that nothing else explains.
    """

    waits: tuple[float, ...] = ()
    waited: float = 0.0
    step: tuple[float, float] | None = None
    startup: float | None = None
    handover: float | None = None
    save: float | None = None
    evaluate: float | None = None
    evaluate_local: float | None = None
    line: tuple[float, float] | None = None
    notice: float | None = None


WORDS = {
    "waits": "queue wait",
    "step": "speed",
    "startup": "start-up",
    "handover": "handover in an allocation",
    "save": "time to write an update",
    "evaluate": "evaluation time",
    "evaluate_local": "time to evaluate its own model",
    "line": "line",
    "notice": "notice",
}


def estimate(observed: Observed) -> Estimate:
    """Return what the measurements of a facility say of it."""
    notice = _notice(observed)
    startup = _startup(observed, notice)
    handover = _mean(one.startup for one in observed.delays if one.hosted)
    local = _mean(observed.local_evaluations)
    if local is None and observed.speeds:
        local = 0.0
    waits = tuple(wait.seconds for wait in observed.waits)
    return Estimate(
        waits=waits if observed.started else (),
        waited=0.0 if observed.started else max(waits, default=0.0),
        step=_step(observed.speeds),
        startup=startup,
        handover=handover,
        save=_mean(observed.saves),
        evaluate=_evaluate(observed, startup, handover, notice),
        evaluate_local=local,
        line=line(observed.transfers),
        notice=notice,
    )


def _mean(numbers: Iterable[float]) -> float | None:
    known = list(numbers)
    return fmean(known) if known else None


def _step(speeds: Sequence[tuple[int, float]]) -> tuple[float, float] | None:
    """Return the mean seconds of a step, and the spread of the orders' logarithms."""
    if not speeds:
        return None
    mean = sum(train_s for _, train_s in speeds) / sum(steps for steps, _ in speeds)
    each = [math.log(train_s / steps) for steps, train_s in speeds]
    return mean, min(1.0, stdev(each)) if len(each) > 2 else 0.0


def _notice(observed: Observed) -> float | None:
    """Return what is between order and result but neither queue, line nor job.

    Orders whose job is known from end to end tell it best, then those that an
    allocation took on; else the start-up that the worker itself saw has to do.
    """
    delays = observed.delays
    best = [one for one in delays if one.whole] or [one for one in delays if one.hosted]
    rests = [one.rest - one.startup for one in best or delays]
    return max(0.0, median(rests)) if rests else None


def _startup(observed: Observed, notice: float | None) -> float | None:
    """Return the start-up of batch jobs: what the worker can't see of it included."""
    own = [one for one in observed.delays if not one.hosted]
    if not own or notice is None:
        return None
    if all(one.whole for one in own):
        return fmean(one.startup for one in own)
    return max(0.0, fmean(one.rest for one in own) - notice)


def _evaluate(
    observed: Observed,
    startup: float | None,
    handover: float | None,
    notice: float | None,
) -> float | None:
    """Return how long measuring a version takes, by the best source that there is.

    Those are the schedulers' records of jobs that did nothing else, the workers' own
    measuring of local models (on the same data), the server's clock.
    """
    if observed.evaluation_runs:
        return max(0.0, fmean(observed.evaluation_runs) - (startup or 0.0))
    if observed.local_evaluations:
        return fmean(observed.local_evaluations)
    if observed.evaluation_rests:
        known = (handover or 0.0) + (notice or 0.0)
        return max(0.0, median(observed.evaluation_rests) - known)
    return None


def line(transfers: Sequence[Transfer]) -> tuple[float, float] | None:
    """Return latency and bandwidth, fitted to what was moved.

    A straight line through bytes and seconds (least squares) if the sizes differ and
    more took longer; else all of the time counts as bandwidth.

    Args:
        transfers: Bytes and seconds of each.
    """
    if not transfers:
        return None
    sizes = [size for size, _ in transfers]
    times = [seconds for _, seconds in transfers]
    size, seconds = fmean(sizes), fmean(times)
    overall = (0.0, max(1.0, size / seconds))
    if max(sizes) < _ALIKE * min(sizes):
        return overall
    spread = sum((x - size) ** 2 for x in sizes)
    slope = sum((x - size) * (t - seconds) for x, t in transfers) / spread
    latency = seconds - slope * size
    if slope <= 0 or latency < 0:
        return overall
    return latency, max(1.0, 1.0 / slope)


def completed(
    estimates: Mapping[str, Estimate],
) -> tuple[dict[str, Estimate], dict[str, tuple[str, ...]]]:
    """Fill what was not measured at a facility with the median of the others.

    Returns:
        The estimates, and the names of the parts that are borrowed, by facility. What
        nobody measured stays None.
    """
    borrowed: dict[str, tuple[str, ...]] = {}
    filled = {}
    for name, one in estimates.items():
        missing = [part for part in WORDS if not _is_known(getattr(one, part))]
        lent = {
            part: _MIDDLE[part](values)
            for part in missing
            if (values := _others(estimates, part))
        }
        if "waits" in lent:
            lent["waits"] = (max(one.waited, *lent["waits"]),)
        borrowed[name] = tuple(lent)
        filled[name] = replace(one, **lent)
    return filled, borrowed


def _is_known(value: object) -> bool:
    return value is not None and value != ()


def _others(estimates: Mapping[str, Estimate], part: str) -> list[Any]:
    values = [getattr(one, part) for one in estimates.values()]
    return [value for value in values if _is_known(value)]


def _pair(values: Sequence[tuple[float, float]]) -> tuple[float, float]:
    return median(a for a, _ in values), median(b for _, b in values)


def _wait(values: Sequence[tuple[float, ...]]) -> tuple[float, ...]:
    return (median(median(waits) for waits in values),)


_MIDDLE: Mapping[str, Callable[[Any], Any]] = {
    **dict.fromkeys(WORDS, median),
    "waits": _wait,
    "step": _pair,
    "line": _pair,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """What the run's jobs asked for: that is what the waits and speeds hold for.

    Attributes:
        nodes: Nodes of each.
        time: Walltime in seconds.
        patience: Of the run, in seconds.
        nodes_exponent: How speed grows with nodes; assumed unless it was measured.
    """

    nodes: int
    time: float
    patience: float
    nodes_exponent: float = NODES_EXPONENT


def section(
    found: Estimate, observed: Observed, asked: Asked, *, exact: bool
) -> FacilitySimulation:
    """Return a facility's `simulation`.

    Args:
        found: The completed estimate.
        observed: What was measured; for what goes wrong.
        asked: What the measured jobs asked for.
        exact: Draw nothing: the waits one after the other, and the mean speed.
    """
    data: dict[str, Any] = {
        "speed": _speed(found, asked, exact=exact),
        "failures": _failures(observed, asked),
    }
    if found.waits:
        data["queue"] = _queue(found.waits, asked, exact=exact)
    if found.line is not None:
        latency, bandwidth = found.line
        data["link"] = {"latency": _round(latency), "bandwidth": round(bandwidth)}
    if found.notice is not None:
        data["notice"] = _round(found.notice)
    return FacilitySimulation.model_validate(data)


def is_lognormal(waits: Sequence[float]) -> bool:
    """Tell whether waits are so many, and so long, that a law stands for them."""
    return len(waits) >= MANY and min(waits) >= SHORT_S


def _queue(waits: Sequence[float], asked: Asked, *, exact: bool) -> dict[str, Any]:
    if exact or not is_lognormal(waits):
        return {"type": "replay", "waits": [_round(wait) for wait in waits]}
    logs = [math.log(wait) for wait in waits]
    return {
        "type": "lognormal",
        "median": _round(math.exp(fmean(logs))),
        "sigma": _round(min(4.0, stdev(logs))),
        "reference_nodes": asked.nodes,
        "reference_time": asked.time,
    }


def _speed(found: Estimate, asked: Asked, *, exact: bool) -> SpeedSpec:
    defaults = SpeedSpec.model_validate({})
    startup = defaults.startup if found.startup is None else found.startup
    handover = found.handover
    if handover is None:  # an allocation that runs already is no slower than a new job
        handover = min(defaults.handover, startup)
    step, noise = found.step or (defaults.seconds_per_step, 0.0)
    data = {
        "seconds_per_step": step,
        "noise": 0.0 if exact else noise,
        "startup": startup,
        "handover": handover,
        "save": found.save,
        "evaluate": found.evaluate,
        "evaluate_local": found.evaluate_local,
    }
    return SpeedSpec.model_validate(
        {
            "reference_nodes": asked.nodes,
            "nodes_exponent": _round(asked.nodes_exponent),
            **{key: _round(value) for key, value in data.items() if value is not None},
        }
    )


def _failures(observed: Observed, asked: Asked) -> FailureSpec:
    """Return rates of what took jobs' nodes away, and when nobody answered.

    A facility counts as lost when it was silent for the run's patience, so an outage
    began that much earlier.
    """
    outages = []
    for lost, until in observed.outages:
        begin = max(0.0, lost - asked.patience)
        if until > begin:
            outages.append({"at": _round(begin), "lasts": _round(until - begin)})
    return FailureSpec.model_validate(
        {
            "preemptions_per_hour": _rate(observed.preemptions, observed.run_s / 3600),
            "node_failures_per_hour": _rate(
                observed.node_failures, observed.node_hours
            ),
            "outages": outages,
        }
    )


def _rate(times: int, hours: float) -> float:
    return _round(min(_LARGEST_RATE, times / hours)) if times and hours > 0 else 0.0


def _round(number: float) -> float:
    """Leave digits out that nobody measured."""
    return float(f"{number:.{_DIGITS}g}")
