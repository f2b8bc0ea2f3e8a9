"""Which grid point counts for a strategy: the best in its scenario, found frugally.

Successive halving: all points run with a few seeds, the better part of them with more,
until one is left (Jamieson and Talwalkar, "Non-stochastic best arm identification and
hyperparameter optimization", AISTATS 2016, algorithm 1; here a round keeps a quarter,
and the last two points have all seeds). The seeds are none of those that are reported:
with the same ones the best point would also be the luckiest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from hansa.simulator.compare.execute import Done, Run, Task, Workers
from hansa.simulator.compare.score import Score
from hansa.simulator.compare.statistics import censored, middle
from hansa.simulator.compare.study import Contestant, Study

FIRST_SEEDS = 2
KEEP = 4
"""Of so many points one goes on to the next round, with so many times the seeds."""


@dataclass(slots=True)
class Race:
    """One contestant's points that are still in it.

    Attributes:
        contestant: Whose points they are.
        left: Places of those that are left, best first once they have run.
        runs: What each point has come to, in the order of the tuning seeds.
    """

    contestant: Contestant
    left: list[int]
    runs: dict[int, list[Run]] = field(default_factory=dict)

    def keep(self, most: int) -> None:
        """Leave the best points, and of those only such as can run at all."""
        scores = {k: scores_of(self.runs.get(k, ())) for k in self.left}
        able = [k for k in self.left if scores[k]]
        able.sort(key=lambda k: (*merit(scores[k]), k))
        self.left = able[:most]


def rounds(points: int, seeds: int) -> list[tuple[int, int]]:
    """Return how many points have run with how many seeds after each round.

    Args:
        points: Points of the grid; one needs no choice.
        seeds: Most seeds of a point; the last two points have them all.
    """
    found, each = [], min(FIRST_SEEDS, seeds)
    while points > 1:
        found.append((points, seeds if points == 2 else each))
        points = 1 if points == 2 else max(2, math.ceil(points / KEEP))
        each = min(each * KEEP, seeds)
    return found


def merit(scores: Sequence[Score]) -> tuple[float, float, float]:
    """Return what points are ordered by, the best first.

    Median time to target; where that is equal or none, the share that reached it;
    then the median final loss.
    """
    times = censored([one.target_s for one in scores])
    reached = sum(one.target_s is not None for one in scores) / len(scores)
    losses = censored([one.final_loss for one in scores])
    return float(middle(times)), -reached, float(middle(losses))


def scores_of(runs: Sequence[Run]) -> list[Score]:
    """Return the runs that have a result."""
    return [run for run in runs if isinstance(run, Score)]


def tune(study: Study, workers: Workers, done: Done) -> list[Race]:
    """Find the grid point of each of the study's contestants.

    Args:
        study: The study.
        workers: Who carries runs out.
        done: Told of progress.

    Returns:
        A race for each contestant; the first of its points that are left counts. None
        is left where the strategy can run with none of them.
    """
    races = [
        Race(one, list(range(len(one.configurations)))) for one in study.contestants
    ]
    seeds = study.tuning_seeds
    plans = [rounds(len(race.left), len(seeds)) for race in races]
    for level in range(max(map(len, plans), default=0)):
        at = [
            race for race, plan in zip(races, plans, strict=True) if level < len(plan)
        ]
        until = [plan[level][1] for plan in plans if level < len(plan)]
        after = [plan[level + 1 :] for plan in plans if level < len(plan)]
        _run_round(at, [seeds[:n] for n in until], workers, done)
        for race, rest in zip(at, after, strict=True):
            race.keep(rest[0][0] if rest else 1)
    return races


def _run_round(
    races: Sequence[Race],
    seeds: Sequence[tuple[int, ...]],
    workers: Workers,
    done: Done,
) -> None:
    """Run all points that are left with those of the seeds that they lack."""
    turns = [
        (race, k, up_to)
        for race, up_to in zip(races, seeds, strict=True)
        for k in race.left
    ]
    tasks = [
        Task(race.contestant.configurations[k], up_to[len(race.runs.get(k, ())) :])
        for race, k, up_to in turns
    ]
    for (race, k, _), runs in zip(turns, workers.run(tasks, done), strict=True):
        race.runs.setdefault(k, []).extend(runs)


def runs_of_tuning(study: Study) -> int:
    """Return how many runs `tune` needs at most."""
    total = 0
    for one in study.contestants:
        before = 0
        for points, seeds in rounds(len(one.configurations), len(study.tuning_seeds)):
            total += points * (seeds - before)
            before = seeds
    return total
