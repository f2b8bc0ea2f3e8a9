"""A comparison as tables of text, for the terminal and the page, and as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from hansa.core.units import short_duration
from hansa.report.comparison import (
    Comparison,
    Estimate,
    Mishap,
    Ratio,
    Result,
    ScenarioResult,
)
from hansa.report.tables import NONE, Table, hours, loss
from hansa.simulator.compare.score import Score
from hansa.simulator.compare.study import Configuration

OPEN = "…"
"""The end of an interval that has none."""


def with_interval(found: Estimate, text: Callable[[float], str]) -> str:
    """Return a median with its interval in brackets."""
    if found.median is None:
        return NONE
    if found.low is None:
        return text(found.median)
    high = OPEN if found.high is None else text(found.high)
    return f"{text(found.median)} ({text(found.low)}{NONE}{high})"


def scenario_table(found: Comparison, place: ScenarioResult) -> Table:
    """Return one row a strategy and mode.

    With a target there is a column for each mode: the ratio of times to the target to
    that of the best other strategy in that mode. Without one there is the length of the
    runs.
    """
    modes = found.modes() if found.target is not None else ()
    columns = ["strategy", "mode"]
    if found.target is None:
        columns += ["virtual time"]
    else:
        columns += ["reached", "time to target", "node-hours to target"]
    columns += ["final loss", "node-hours", *(f"vs {mode}" for mode in modes)]
    return Table(
        title=f"Scenario {place.name}",
        columns=(*columns, "chosen"),
        rows=tuple(_row(found, one, modes) for one in place.results),
        left=frozenset({"strategy", "mode", "chosen"}),
    )


def _row(found: Comparison, one: Result, modes: Sequence[str]) -> tuple[str, ...]:
    ratios = {ratio.mode: ratio for ratio in one.ratios}
    if found.target is None:
        times: tuple[str, ...] = (with_interval(one.wall_clock_s, short_duration),)
    else:
        times = (
            f"{one.reached} of {one.seeds}",
            with_interval(one.time_to_target_s, short_duration),
            with_interval(one.node_hours_to_target, hours),
        )
    used = one.node_hours.median
    return (
        one.strategy,
        one.mode,
        *times,
        with_interval(one.final_loss, loss),
        NONE if used is None else hours(used),
        *(_against(ratios.get(mode)) for mode in modes),
        point_text(one.grid) or NONE,
    )


def _against(one: Ratio | None) -> str:
    if one is None or one.strategy is None:
        return NONE
    times = NONE if one.time.median is None else share(one.time.median)
    return f"{times} {one.strategy}"


def ratios_table(found: Comparison) -> Table:
    """Return every result over that of the best other strategy, with intervals."""
    rows = tuple(
        (
            place.name,
            one.strategy,
            one.mode,
            f"{against.strategy}, {against.mode}",
            with_interval(against.time, share),
            with_interval(against.node_hours, share),
        )
        for place in found.scenarios
        for one in place.results
        for against in one.ratios
        if against.strategy is not None
    )
    words = ("scenario", "strategy", "mode", "over the best other")
    return Table(
        title="Ratios to the best other strategy",
        columns=(*words, "time to target", "node-hours to target"),
        rows=rows,
        left=frozenset(words),
    )


def share(number: float) -> str:
    """Return a ratio for people."""
    return f"{number:.2f}"


def point_text(point: Mapping[str, Any]) -> str:
    """Return a grid point in words, by the last part of each key."""
    return ", ".join(
        f"{key.rpartition('.')[2]} {value}" for key, value in point.items()
    )


def overall_table(found: Comparison) -> Table:
    """Return one row a strategy, mode and mode of the others."""
    rows = tuple(
        (
            one.strategy,
            one.mode,
            f"best other, {one.against}",
            f"{one.scenarios - one.missed} of {one.scenarios}",
            NONE if one.time is None else share(one.time),
            NONE if one.worst is None else share(one.worst),
            NONE if one.node_hours is None else share(one.node_hours),
        )
        for one in found.overall
    )
    return Table(
        title="Over all scenarios",
        columns=(
            "strategy", "mode", "against", "scenarios reached", "time ratio, median",
            "time ratio, worst", "node-hours ratio, median",
        ),
        rows=rows,
        left=frozenset({"strategy", "mode", "against"}),
    )  # fmt: skip


def participation_table(place: ScenarioResult, facilities: Sequence[str]) -> Table:
    """Return the mean number of applied updates of each facility, late ones behind."""
    return Table(
        title=f"Updates applied (late) by facility, means, {place.name}",
        columns=("strategy", "mode", *facilities),
        rows=tuple(
            (
                one.strategy,
                one.mode,
                *(
                    f"{one.participation[name]:.1f} ({one.late[name]:.1f})"
                    for name in facilities
                ),
            )
            for one in place.results
        ),
        left=frozenset({"strategy", "mode"}),
    )


def mishaps_table(title: str, mishaps: Iterable[Mishap]) -> Table:
    """Return what came to nothing, alike ones together, and how to repeat the first."""
    groups: dict[tuple[str, str], list[Mishap]] = {}
    for one in mishaps:
        groups.setdefault((one.strategy, one.message), []).append(one)
    rows = tuple(
        (
            strategy,
            str(len(alike)),
            alike[0].scenario,
            alike[0].mode,
            str(alike[0].seed),
            message,
            alike[0].command,
        )
        for (strategy, message), alike in groups.items()
    )
    columns = ("strategy", "times", "first in", "mode", "seed", "why", "again")
    words = frozenset({"strategy", "first in", "mode", "why", "again"})
    return Table(title=title, columns=columns, rows=rows, left=words)


def results_csv(found: Comparison) -> str:
    """Return one line a scenario, strategy and mode; times in seconds."""
    head = (
        "scenario", "strategy", "mode", "seeds", "reached", "time_to_target_s",
        "time_low_s", "time_high_s", "node_hours_to_target", "node_hours_low",
        "node_hours_high", "final_loss", "final_loss_low", "final_loss_high",
        "mean_loss", "node_hours", "grid",
    )  # fmt: skip
    rows = []
    for place in found.scenarios:
        for one in place.results:
            measured = (one.time_to_target_s, one.node_hours_to_target, one.final_loss)
            numbers = [x for m in measured for x in (m.median, m.low, m.high)]
            rest = one.mean_loss.median, one.node_hours.median, point_text(one.grid)
            words = place.name, one.strategy, one.mode, one.seeds, one.reached
            rows.append((*words, *numbers, *rest))
    return _csv(head, rows)


def runs_csv(runs: Iterable[tuple[Configuration, Score]]) -> str:
    """Return one line a reported run."""
    head = (
        "scenario", "strategy", "mode", "seed", "outcome", "wall_clock_s", "node_hours",
        "versions", "time_to_target_s", "node_hours_to_target", "final_loss",
    )  # fmt: skip
    rows = [
        (
            one.scenario, one.strategy, one.mode, run.seed, run.outcome,
            run.wall_clock_s, run.node_hours, run.versions, run.target_s,
            run.target_node_hours, run.final_loss,
        )
        for one, run in runs
    ]  # fmt: skip
    return _csv(head, rows)


def _csv(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(rows)
    return text.getvalue()
