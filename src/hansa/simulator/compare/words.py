"""What a comparison came to, in a few sentences."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from hansa.report.comparison import Comparison, Result, ScenarioResult
from hansa.report.tables import loss
from hansa.simulator.compare.statistics import ENOUGH, coverage


def headline(found: Comparison) -> str:
    """Return how large the study was and who was the best how often."""
    many = len(found.scenarios)
    what = (
        f"{_count(len(found.strategies()), 'strategy', 'strategies')} in "
        f"{_count(many, 'scenario', 'scenarios')}, "
        f"{_count(found.seeds, 'seed', 'seeds')} each."
    )
    wins = Counter(
        label(found, best)
        for place in found.scenarios
        if (best := _best(found, place)) is not None
    )
    if not wins:
        return what
    how = "Lowest final loss"
    if found.target is not None:
        how = f"Fastest to the test loss {found.target:g}"
    if many == 1:
        return f"{what} {how}: {next(iter(wins))}."
    words = [f"{name} in {times}" for name, times in wins.most_common()]
    return f"{what} {how}: {', '.join(words)}."


def notes(found: Comparison) -> tuple[str, ...]:
    """Return what a reader must know: targets missed, runs that came to nothing."""
    words = []
    for place in found.scenarios:
        if _is_met_at_once(found, place):
            words.append(
                f"In {place.name} the model that all begin with meets the target: "
                "nothing can be compared."
            )
        elif found.target is not None and _best(found, place) is None:
            closest = _lowest(place.results)
            best = (
                f"; the lowest final loss is {loss(closest.final_loss.median)} "
                f"({label(found, closest)})"
                if closest
                else ""
            )
            words.append(f"In {place.name} nobody reaches the target{best}.")
    if found.refused:
        words.append(
            f"{_count(len(found.refused), 'configuration', 'configurations')} could "
            "not be run; see the table."
        )
    if found.failed:
        words.append(
            f"{_count(len(found.failed), 'run', 'runs')} failed and do not count; see "
            "the table."
        )
    return (*words, *found.remarks, *_limits(found))


def _limits(found: Comparison) -> Iterator[str]:
    """Yield what the figures can't tell."""
    if 1 < found.seeds < ENOUGH:
        yield (
            f"Intervals of {found.seeds} seeds span all runs, and hold the true median "
            f"with {coverage(found.seeds):.0%}, not 95%: take ten seeds or more."
        )
    if found.training == "surrogate":
        yield "Losses are those of a surrogate problem, not of your model."
    elif found.training == "none":
        yield "Nothing is trained, so there are no losses: times and costs only."


def _is_met_at_once(found: Comparison, place: ScenarioResult) -> bool:
    times = [one.time_to_target_s.median for one in place.results]
    return found.target is not None and 0.0 in times


def label(found: Comparison, one: Result) -> str:
    """Return a strategy's name, with its mode where there are several."""
    return f"{one.strategy}, {one.mode}" if len(found.modes()) > 1 else one.strategy


def _best(found: Comparison, place: ScenarioResult) -> Result | None:
    if found.target is None:
        return _lowest(place.results)
    able = [
        (time, k)
        for k, one in enumerate(place.results)
        if (time := one.time_to_target_s.median)  # 0: met by the first model
    ]
    return place.results[min(able)[1]] if able else None


def _lowest(results: Sequence[Result]) -> Result | None:
    able = [
        (final, k)
        for k, one in enumerate(results)
        if (final := one.final_loss.median) is not None
    ]
    return results[min(able)[1]] if able else None


def _count(number: int, one: str, more: str) -> str:
    return f"{number} {one if number == 1 else more}"
