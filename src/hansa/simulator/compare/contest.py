"""A whole comparison: tune, run, measure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from hansa.core.errors import SimulationError
from hansa.report.comparison import Comparison, Mishap, Result, ScenarioResult
from hansa.report.timeline import Timeline
from hansa.simulator.compare.execute import (
    Broken,
    Run,
    Simulate,
    Task,
    Workers,
)
from hansa.simulator.compare.score import Score
from hansa.simulator.compare.statistics import overall, result, with_ratios
from hansa.simulator.compare.study import Configuration, Study, training_of
from hansa.simulator.compare.tuning import Race, runs_of_tuning, scores_of, tune
from hansa.simulator.simulate import simulate

Tell = Callable[[str, int, int], None]
"""Told what is being done, how many runs are done, and of how many."""

Trial = tuple[Configuration, int, Run]
"""A run with what it is one of, and its seed."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A contestant with the point that counts and what that came to.

    Attributes:
        configuration: The point.
        points: Of how many it is the best.
        runs: Its reported runs, by seed.
    """

    configuration: Configuration
    points: int
    runs: tuple[Run, ...]

    @property
    def scores(self) -> list[Score]:
        """The runs that have a result."""
        return scores_of(self.runs)


class Progress:
    """Counts the runs of a study and tells of them."""

    def __init__(self, total: int, tell: Tell) -> None:
        self.what, self._total, self._tell, self._done = "", total, tell, 0

    def __call__(self, runs: int) -> None:
        """See that some more runs are done."""
        self._done = min(self._done + runs, self._total)
        self._tell(self.what, self._done, self._total)


def compare(
    study: Study,
    *,
    jobs: int,
    tell: Tell = lambda *_: None,
    simulate: Simulate = simulate,
) -> tuple[Comparison, list[tuple[Configuration, Score]]]:
    """Carry a study out.

    Args:
        study: Which runs.
        jobs: Processes; the result does not depend on their number.
        tell: Told of progress.
        simulate: What carries one run out.

    Returns:
        What it came to, and every reported run.

    Raises:
        SimulationError: No run has a result, or a process died.
    """
    planned = len(study.contestants) * len(study.seeds)
    progress = Progress(planned + runs_of_tuning(study), tell)
    with Workers(study, jobs, simulate) as workers:
        progress.what = "tuning"
        races = tune(study, workers, progress)
        progress.what = "running"
        entries = _entries(study, races, workers, progress)
        timelines = _timelines(study, entries, workers)
    trials = [*_tuned(study, races), *_reported(study, entries)]
    able = [one for one in entries if one.scores]
    if not able:
        raise _nothing(study, trials)
    scenarios = _scenarios(study, able)
    runs = [(one.configuration, score) for one in able for score in one.scores]
    found = Comparison(
        name=study.spec.name,
        target=study.target,
        training=training_of(study.spec),
        seeds=len(study.seeds),
        facilities=tuple(study.spec.facilities),
        scenarios=scenarios,
        overall=overall(scenarios),
        refused=_refused(study, trials),
        failed=_failed(study, trials),
        remarks=tuple(dict.fromkeys(r for _, score in runs for r in score.remarks)),
        timelines=timelines,
    )
    return found, runs


def _entries(
    study: Study, races: Sequence[Race], workers: Workers, done: Progress
) -> list[Entry]:
    ready = [race for race in races if race.left]
    best = [race.contestant.configurations[race.left[0]] for race in ready]
    runs = workers.run([Task(one, study.seeds) for one in best], done)
    return [
        Entry(one, len(race.contestant.configurations), each)
        for one, race, each in zip(best, ready, runs, strict=True)
    ]


def _scenarios(study: Study, entries: Iterable[Entry]) -> tuple[ScenarioResult, ...]:
    found = []
    facilities = tuple(study.spec.facilities)
    for name, group in groupby(entries, lambda one: one.configuration.scenario):
        these = list(group)
        scores = [one.scores for one in these]
        horizon = max(run.wall_clock_s for runs in scores for run in runs)
        results: list[Result] = [
            result(one.configuration, one.points, one.scores, horizon, facilities)
            for one in these
        ]
        ratios = with_ratios(name, results, scores)
        found.append(ScenarioResult(name=name, horizon_s=horizon, results=ratios))
    return tuple(found)


def _timelines(
    study: Study, entries: Sequence[Entry], workers: Workers
) -> dict[tuple[str, str], Timeline]:
    """Return one run of each strategy and mode, in the first scenario."""
    able = [one for one in entries if one.scores]
    first = [
        Task(one.configuration, (one.scores[0].seed,))
        for one in able
        if one.configuration.scenario == able[0].configuration.scenario
    ]
    return {
        (task.configuration.strategy, task.configuration.mode): row
        for task, row in zip(first, workers.timelines(first), strict=True)
        if row is not None
    }


def _tuned(study: Study, races: Iterable[Race]) -> Iterable[Trial]:
    for race in races:
        for place, runs in race.runs.items():
            one = race.contestant.configurations[place]
            yield from (
                (one, seed, run)
                for seed, run in zip(study.tuning_seeds, runs, strict=False)
            )


def _reported(study: Study, entries: Iterable[Entry]) -> Iterable[Trial]:
    for entry in entries:
        for seed, run in zip(study.seeds, entry.runs, strict=True):
            yield entry.configuration, seed, run


def _refused(study: Study, trials: Iterable[Trial]) -> tuple[Mishap, ...]:
    """Return the points that can't be, with the first seed that was tried."""
    found: dict[tuple[str, ...], Mishap] = {}
    for one, seed, run in trials:
        if isinstance(run, Broken) and run.refused and one.overrides not in found:
            found[one.overrides] = _mishap(study, one, seed, run)
    return tuple(found.values())


def _failed(study: Study, trials: Iterable[Trial]) -> tuple[Mishap, ...]:
    return tuple(
        _mishap(study, one, seed, run)
        for one, seed, run in trials
        if isinstance(run, Broken) and not run.refused
    )


def _mishap(study: Study, one: Configuration, seed: int, run: Broken) -> Mishap:
    return Mishap(
        scenario=one.scenario,
        strategy=one.strategy,
        mode=one.mode,
        grid=dict(one.point),
        seed=seed,
        message=run.message,
        command=study.command(one, seed),
    )


def _nothing(study: Study, trials: Iterable[Trial]) -> SimulationError:
    one, seed, run = next(iter(trials))
    why = run.message if isinstance(run, Broken) else "nothing was measured"
    return SimulationError(
        f"No run has a result; the first one: {why}",
        hint=f"Repeat it with: {study.command(one, seed)}",
    )
