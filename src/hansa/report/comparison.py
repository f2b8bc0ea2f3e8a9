"""What a comparison of strategies came to. `Comparison.to_json` is a public format."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hansa.report.timeline import Timeline


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """A median over seeds with a 95% interval.

    Attributes:
        median: The median; None where it does not exist, as when fewer than half of
            the runs reached the target.
        low: Lower end of the interval; None likewise.
        high: Upper end; None where it is not bounded, or with one run only.
    """

    median: float | None
    low: float | None
    high: float | None

    def interval(self) -> list[float | None]:
        """Return both ends, for JSON."""
        return [self.low, self.high]


@dataclass(frozen=True, kw_only=True, slots=True)
class Ratio:
    """A result over that of the best other strategy of the same scenario.

    Attributes:
        mode: Among which mode's results the other one is the best.
        strategy: The other strategy; None: none reaches the target.
        time: Ratio of the medians of time to target.
        node_hours: Ratio of the medians of node-hours to target.
    """

    mode: str
    strategy: str | None
    time: Estimate
    node_hours: Estimate


@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """Test loss over time (in seconds): median and quartiles over the seeds."""

    times: tuple[float, ...]
    median: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """One strategy in one mode in one scenario, over all seeds.

    Attributes:
        strategy: Its name.
        mode: ``late`` or ``published``.
        seeds: Runs that count.
        reached: Those of them that reached the target.
        time_to_target_s: Seconds until the loss was first below the target.
        node_hours_to_target: Node-hours used by then.
        final_loss: Loss of the last measured version.
        mean_loss: Loss averaged over time up to the scenario's horizon, the last one
            carried on: the area under the curve over its length.
        node_hours: Charged in all.
        wall_clock_s: Length of the runs.
        versions: Median number of versions.
        participation: Mean number of a facility's updates that went into a version.
        late: Mean number of those that went into none.
        staleness: How many applied updates were so many versions old, over all seeds.
        queue_wait_s: Median wait of a facility's batch jobs.
        grid: The grid point that counts.
        points: Of how many grid points it is the best.
        ratios: Against the best other strategy, one for each mode.
        curve: The loss over time; None where nothing was measured.
    """

    strategy: str
    mode: str
    seeds: int
    reached: int
    time_to_target_s: Estimate
    node_hours_to_target: Estimate
    final_loss: Estimate
    mean_loss: Estimate
    node_hours: Estimate
    wall_clock_s: Estimate
    versions: float
    participation: Mapping[str, float]
    late: Mapping[str, float]
    staleness: Mapping[int, int]
    queue_wait_s: Mapping[str, float | None]
    grid: Mapping[str, Any]
    points: int
    ratios: tuple[Ratio, ...] = ()
    curve: Curve | None = None

    def to_json(self) -> dict[str, object]:
        """Return plain JSON data, medians under their plain names."""
        return {
            "strategy": self.strategy,
            "mode": self.mode,
            "seeds": self.seeds,
            "reached": self.reached,
            "time_to_target_s": self.time_to_target_s.median,
            "time_to_target_ci_s": self.time_to_target_s.interval(),
            "node_hours_to_target": self.node_hours_to_target.median,
            "node_hours_to_target_ci": self.node_hours_to_target.interval(),
            "final_loss": self.final_loss.median,
            "final_loss_ci": self.final_loss.interval(),
            "mean_loss": self.mean_loss.median,
            "mean_loss_ci": self.mean_loss.interval(),
            "node_hours": self.node_hours.median,
            "node_hours_ci": self.node_hours.interval(),
            "wall_clock_s": self.wall_clock_s.median,
            "versions": self.versions,
            "participation": dict(self.participation),
            "late": dict(self.late),
            "staleness": {str(key): n for key, n in sorted(self.staleness.items())},
            "queue_wait_s": dict(self.queue_wait_s),
            "grid": dict(self.grid),
            "grid_points": self.points,
            "ratios": {one.mode: _ratio(one) for one in self.ratios},
        }


def _ratio(one: Ratio) -> dict[str, object]:
    return {
        "to": one.strategy,
        "time": one.time.median,
        "time_ci": one.time.interval(),
        "node_hours": one.node_hours.median,
        "node_hours_ci": one.node_hours.interval(),
    }


@dataclass(frozen=True, kw_only=True, slots=True)
class ScenarioResult:
    """One scenario: `horizon_s` is the length of its longest run."""

    name: str
    horizon_s: float
    results: tuple[Result, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Overall:
    """One strategy and mode against the best others of a mode, over the scenarios.

    Attributes:
        strategy: The strategy.
        mode: Its mode.
        against: The others' mode.
        scenarios: In how many scenarios one of those reached the target.
        missed: In how many of them this one did not; there its ratio is infinite.
        time: Median over those scenarios of the ratio of times to target.
        worst: The largest of these ratios.
        node_hours: Median of the ratio of node-hours.
    """

    strategy: str
    mode: str
    against: str
    scenarios: int
    missed: int
    time: float | None
    worst: float | None
    node_hours: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Mishap:
    """A run, or a grid point, that came to nothing.

    Attributes:
        scenario: Where.
        strategy: Which.
        mode: In which mode.
        grid: With which grid point.
        seed: With which seed.
        message: Why, in words.
        command: What repeats it.
    """

    scenario: str
    strategy: str
    mode: str
    grid: Mapping[str, Any]
    seed: int
    message: str
    command: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """A whole study.

    Attributes:
        name: Of the federation.
        target: Loss whose time is measured; None: final losses only.
        training: What stands for the training: ``surrogate``, ``real`` or ``none``.
        seeds: Runs of each strategy, mode and scenario.
        facilities: Their names, in the order of the file.
        scenarios: What each came to.
        overall: Over the scenarios.
        refused: Grid points that a strategy could not have.
        failed: Runs that broke off with an error.
        remarks: What to know of the data behind the runs, in sentences.
        timelines: Who did what, when, in the first run of each strategy and mode in the
            first scenario.
    """

    name: str
    target: float | None
    training: str = "surrogate"
    seeds: int
    facilities: tuple[str, ...]
    scenarios: tuple[ScenarioResult, ...]
    overall: tuple[Overall, ...] = ()
    refused: tuple[Mishap, ...] = ()
    failed: tuple[Mishap, ...] = ()
    remarks: tuple[str, ...] = ()
    timelines: Mapping[tuple[str, str], Timeline] = field(default_factory=dict)

    def to_json(self) -> dict[str, object]:
        """Return plain JSON data; a number that is not finite becomes null."""
        return {
            "name": self.name,
            "target": self.target,
            "training": self.training,
            "seeds": self.seeds,
            "facilities": list(self.facilities),
            "scenarios": [
                {
                    "name": one.name,
                    "horizon_s": one.horizon_s,
                    "results": [_plain(result.to_json()) for result in one.results],
                }
                for one in self.scenarios
            ],
            "overall": [_fields(one) for one in self.overall],
            "refused": [_fields(one) for one in self.refused],
            "failed": [_fields(one) for one in self.failed],
            "remarks": list(self.remarks),
        }

    def modes(self) -> tuple[str, ...]:
        """Return the modes that occur, in order."""
        return tuple(dict.fromkeys(one.mode for one in self._all()))

    def strategies(self) -> tuple[str, ...]:
        """Return the strategies that occur, in order."""
        return tuple(dict.fromkeys(one.strategy for one in self._all()))

    def _all(self) -> list[Result]:
        return [result for one in self.scenarios for result in one.results]


def _fields(one: Overall | Mishap) -> dict[str, object]:
    return {name: getattr(one, name) for name in one.__slots__}


def _plain(thing: object) -> object:
    if isinstance(thing, Mapping):
        return {key: _plain(value) for key, value in thing.items()}
    if isinstance(thing, list):
        return [_plain(value) for value in thing]
    return None if isinstance(thing, float) and not math.isfinite(thing) else thing
