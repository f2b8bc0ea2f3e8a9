#!/usr/bin/env python3
"""What `tide` is worth, and what each of its parts is: random scenarios, drawn anew.

    tools/tide_study.py --draws 200 201      the 12 kinds of scenarios, two of each
    tools/tide_study.py --draws 200 --kinds low tails --parts

Every strategy has the same small grid of steps and learning rates (and a second key of
its own), chosen on two seeds and reported on others, as the median. A: as
published (no lingering, no job ahead, the model bound at submission), B: with late
binding, lingering and standing submission; tide always runs as B. A run is given up
when it takes 1.6 times as long as the best baseline so far. The draws 0 and 1 were used
while tide was made, 100 to choose between its last two forms; no other was.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import exp, fsum, inf, log
from statistics import fmean, median
from typing import Any

import numpy as np

from hansa.core import plugins
from hansa.core.commands import Aggregate, Term
from hansa.core.errors import HansaError
from hansa.simulator.simulate import simulate
from hansa.spec.federation import (
    FederationSpec,
    StopSpec,
    StrategyChoice,
    WorkSpec,
)
from hansa.spec.load import federation_from_text
from hansa.strategy.tide import Tide

KINDS = ["low", "high", "drift", "tails", "oneslow", "fastlittle"]
KINDS += ["outages", "iid", "memory", "preempt", "bigmodel", "mixed"]
TARGET = 0.01
STEPS, RATES = (10, 30, 100), (0.05, 0.2, 0.8)
TUNED_ON = (101, 102)
BASELINES = ("fedavg", "fedcompass", "fedbuff", "fedasync", "fedqueue")
Point = tuple[dict[str, Any], int, float]


# Scenarios.


class Draw:
    """Draws the facilities of one scenario."""

    def __init__(self, kind: str, number: int) -> None:
        self.kind = kind
        self.random = np.random.default_rng([77, number, KINDS.index(kind)])

    def between(self, low: float, high: float) -> float:
        """Return a number whose logarithm is uniform."""
        return float(exp(self.random.uniform(log(low), log(high))))

    def uniform(self, low: float, high: float) -> float:
        """Return a number from a range."""
        return float(self.random.uniform(low, high))

    def facility(self, first: bool, base: float, step: float) -> dict[str, Any]:
        """Return how a facility is simulated."""
        kind, random = self.kind, self.random
        queue: dict[str, Any] = {
            "type": "lognormal",
            "median": base * self.between(0.4, 2.5),
            "sigma": self.uniform(0.4, 1.3),
        }
        speed = {
            "seconds_per_step": step * self.between(0.5, 2.0),
            "noise": self.uniform(0, 0.2),
            "startup": self.uniform(20, 120),
        }
        failures: dict[str, Any] = {}
        samples = int(1000 * self.between(0.7, 1.5)) if random.random() < 0.5 else None
        if kind == "drift":
            queue["drift_per_day"] = self.between(0.3, 4)
            queue["day_swing"] = self.uniform(0, 0.7)
        if kind == "tails":
            queue["tail"] = self.uniform(0.15, 0.4)
            queue["tail_index"] = self.uniform(1.0, 1.6)
        if kind == "oneslow" and first:
            queue["median"] = base * self.between(8, 25)
        if kind == "fastlittle":
            samples = 1000
            if first:
                speed["seconds_per_step"] = step / self.between(5, 15)
                queue["median"] = base / self.between(3, 10)
                samples = int(1000 / self.between(4, 20))
        if kind == "outages":
            failures["outages"] = []
            if random.random() < 0.6:
                at, lasts = self.uniform(600, 6 * 3600), self.between(1800, 6 * 3600)
                every = self.uniform(8, 24) * 3600
                failures["outages"] = [{"at": at, "lasts": lasts, "every": every}]
            failures["node_failures_per_hour"] = self.uniform(0, 0.3)
        if kind == "preempt":
            failures["preemptions_per_hour"] = self.between(0.2, 3)
            failures["grace"] = float(random.choice([0, 60]))
        if kind == "memory":
            queue["memory"] = self.uniform(0.6, 0.97)
        link = {"bandwidth": int(self.between(5e7, 1e9))}
        return {
            "queue": queue,
            "speed": speed,
            "failures": failures,
            "samples": samples,
            "link": link,
        }


def scenario(kind: str, number: int) -> FederationSpec:
    """Return a drawn federation."""
    draw = Draw(kind, number)
    random = draw.random
    count = int(random.choice([3, 4, 4, 4, 5, 6]))
    waits = {"low": (60, 400), "high": (3600, 6 * 3600)}
    drawn = {name: draw.between(*bounds) for name, bounds in waits.items()}
    base = drawn.get(kind) or 0.0
    other = draw.between(300, 5400)
    base, step = base or other, draw.between(0.5, 12)
    parts = [draw.facility(k == 0, base, step) for k in range(count)]
    alpha: Any = "iid"
    if kind != "iid":
        alpha = 0.1 if random.random() < 0.7 else draw.between(0.1, 1)
    size = int(draw.between(2.5e8, 2.6e10 if kind == "bigmodel" else 2e9))
    walltime = float(random.choice([1800, 3600, 3600, 7200, 4 * 3600]))
    linger = float(min(walltime, random.choice([600, 1800, 1800, 3600])))
    training = {
        "type": "surrogate",
        "dimensions": int(random.choice([16, 32, 64])),
        "alpha": alpha,
        "condition": draw.between(5, 60),
        "noise": draw.between(0.3, 2),
        "bytes": size,
    }
    common = {
        "gateway": {"type": "local", "site": "x.yaml"},
        "mover": "posix",
        "job": {"time": walltime},
        "linger": linger,
        "queue_ahead": linger,
        "work": {"steps": 20, "lr": 0.2, "batch": 32, "momentum": 0.0},
    }
    document = {
        "name": f"{kind}-{number}",
        "model": {"trainer": "softmax", "source": "zeros"},
        "task": {"name": "digits"},
        "strategy": {"name": "fedavg"},
        "stop": {"wall_clock": 1e7},
        "simulation": {"training": training},
        "facilities": {
            f"f{k}": {**common, "simulation": part} for k, part in enumerate(parts)
        },
    }
    return federation_from_text(json.dumps(document), name=f"{kind}-{number}")


# Tide without one of its parts.


class Added(Tide):
    """Differences are added to the newest version."""

    def aggregate(self, updates: Any) -> Aggregate:
        """Add them up."""
        made = super().aggregate(updates)
        own = [term for term in made.terms if term.ref.startswith("update/")]
        base = Term(ref=f"version/{self.newest}", coefficient=1.0)
        return replace(made, terms=(base, *own))


class Unpaired(Tide):
    """The newest gradients are compared, however old one of them is."""

    def _pairs(self, update: Any, known: Any) -> Any:
        own = update.facility
        return {
            (min(own, name), max(own, name)): {own: known[own], name: ref}
            for name, ref in known.items()
            if name != own
        }


class FixedShare(Tide):
    """q_k is p_k, whoever is there."""

    def _whole(self, weights: Any, base: int) -> float:
        return fsum(weights.values())


class EqualWeights(Tide):
    """All facilities count alike, whatever data they have."""

    def _weights(self) -> dict[str, float]:
        return dict.fromkeys(self.places, 1.0)


PARTS: dict[str, tuple[type[Tide], dict[str, Any]]] = {
    "tide": (Tide, {}),
    "no control": (Tide, {"control": False}),
    "no pairs": (Unpaired, {}),
    "added, not mixed": (Added, {}),
    "fixed shares": (FixedShare, {}),
    "equal weights": (EqualWeights, {}),
}


# Runs.


@dataclass(frozen=True)
class Result:
    """Medians over the seeds."""

    hours: float
    node_hours: float


def variant(
    spec: FederationSpec, strategy: str, point: Point, mode: str, cap: float
) -> FederationSpec:
    options, steps, rate = point
    simulation = spec.simulation
    facilities = {}
    for name, one in spec.facilities.items():
        work = WorkSpec(**{**one.work.options, "steps": steps, "lr": rate})
        changes: dict[str, Any] = {"work": work}
        if mode == "A":
            changes |= {"linger": 0.0, "queue_ahead": 0.0}
        facilities[name] = one.model_copy(update=changes)
    if mode == "A" and simulation is not None:
        simulation = simulation.model_copy(update={"binding": "submission"})
    stop = {"wall_clock": cap, "rounds": 1000, "target": {"below": TARGET}}
    return spec.model_copy(
        update={
            "facilities": facilities,
            "simulation": simulation,
            "stop": StopSpec.model_validate(stop),
            "strategy": StrategyChoice(name=strategy, **options),
        }
    )


def once(spec: FederationSpec, seed: int) -> tuple[float, float]:
    """Return hours and node-hours to the target."""
    try:
        made = simulate(spec, seed=seed, target=TARGET)
    except HansaError:
        return inf, inf
    if made.target_s is None or made.target_node_hours is None:
        return inf, inf
    return made.target_s / 3600, made.target_node_hours


def grid(strategy: str, facilities: int) -> Iterator[Point]:
    own: list[dict[str, Any]] = [{}]
    steps: tuple[int, ...] = STEPS
    if strategy == "fedbuff":
        own = [{"k": 2}, {"k": facilities}]
    if strategy == "fedqueue":
        own = [{"t_sync": t, "min_steps": 10} for t in (600.0, 1800.0, 5400.0)]
        steps = (40,)
    for options in own:
        for count in steps:
            for rate in RATES:
                more = dict(options)
                if strategy == "fedcompass":
                    more = {"min_steps": max(1, count // 5), "max_steps": count}
                yield more, count, rate


def best(
    spec: FederationSpec,
    strategy: str,
    options: dict[str, Any],
    mode: str,
    cap: float,
    seeds: int,
) -> tuple[Result, float]:
    """Return a strategy's result at its best point, and the time of that in tuning."""
    found, fastest = None, inf
    for own, steps, rate in grid(strategy, len(spec.facilities)):
        point = ({**own, **options}, steps, rate)
        hours = []
        for seed in TUNED_ON:
            hours.append(once(variant(spec, strategy, point, mode, cap), seed)[0])
            if hours[-1] == inf:
                break
        if fmean(hours) < fastest:
            found, fastest = point, fmean(hours)
    if found is None:
        return Result(inf, inf), inf
    made = variant(spec, strategy, found, mode, 1e6)
    runs = [once(made, seed) for seed in range(1, seeds + 1)]
    return Result(median(h for h, _ in runs), median(n for _, n in runs)), fastest


def baseline(spec: FederationSpec, mode: str, seeds: int) -> Result:
    """Return the quickest of the baselines."""
    cap, found = 3e5, Result(inf, inf)
    for strategy in BASELINES:
        result, hours = best(spec, strategy, {}, mode, cap, seeds)
        cap = min(cap, 1.6 * 3600 * hours + 600)
        found = min(found, result, key=lambda one: one.hours)
    return found


def ratio(one: float, other: float) -> float:
    """Return one over other; 1 if neither is ever there, 0 if only one is."""
    return 1.0 if one == other else one / other if other < inf else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description="What tide is worth.")
    parser.add_argument("--draws", type=int, nargs="+", default=[200])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--parts", action="store_true", help="also remove each part")
    parser.add_argument("--seeds", type=int, default=3, help="seeds that are reported")
    chosen = parser.parse_args()
    names = list(PARTS) if chosen.parts else ["tide"]
    find, kind_of = plugins.find, {"tide": Tide}
    plugins.find = lambda group, name: (
        kind_of["tide"] if name == "tide" else find(group, name)
    )
    rows: dict[str, list[tuple[float, float, float, float]]] = {n: [] for n in names}
    for number in chosen.draws:
        for kind in chosen.kinds:
            spec = scenario(kind, number)
            a = baseline(spec, "A", chosen.seeds)
            b = baseline(spec, "B", chosen.seeds)
            cap = 3600 * min(1.0 + 2.5 * min(a.hours, b.hours), 140.0)
            print(f"{spec.name}: A {a.hours:.2f} h {a.node_hours:.1f} nh", end=", ")
            print(f"B {b.hours:.2f} h {b.node_hours:.1f} nh", end="", flush=True)
            for name in names:
                kind_of["tide"], options = PARTS[name]
                made, _ = best(spec, "tide", options, "B", cap, chosen.seeds)
                pairs = [(made.hours, a.hours), (made.hours, b.hours)]
                pairs += [(made.node_hours, a.node_hours)]
                pairs += [(made.node_hours, b.node_hours)]
                rows[name].append(tuple(ratio(*pair) for pair in pairs))  # type: ignore[arg-type]
                print(f"; {name} {made.hours:.2f} h", end="")
                print(f" {made.node_hours:.1f} nh", end="", flush=True)
            print()
    for name, found in rows.items():
        columns = list(zip(*found, strict=True))
        words = [f"{median(c):.2f} ({max(c):.2f})" for c in columns]
        print(f"{name}, median (worst) of time over A, B, node-hours over A, B:")
        print("  " + ", ".join(words))


if __name__ == "__main__":
    main()
