"""Tuning, running and measuring, with simulations known by heart."""

from __future__ import annotations

import json
import math
import multiprocessing as mp
from dataclasses import replace
from pathlib import Path
from statistics import median

import fake_contest
import pytest
from fake_contest import FEDERATION, federation

from hansa.core.errors import SimulationError
from hansa.core.rng import uniform
from hansa.report.comparison import Comparison
from hansa.simulator.compare.contest import compare
from hansa.simulator.compare.execute import Broken, Task, Workers
from hansa.simulator.compare.score import Score
from hansa.simulator.compare.study import Study, Wishes, plan_study
from hansa.simulator.compare.tables import (
    results_csv,
    runs_csv,
    scenario_table,
    with_interval,
)
from hansa.simulator.compare.tuning import Race, merit, rounds, runs_of_tuning
from hansa.simulator.compare.words import headline, notes
from hansa.simulator.outcome import Outcome

HEAD = FEDERATION.partition("  compare:")[0]


def study(place: Path, compared: str = "", *overrides: str, **wishes: object) -> Study:
    text = HEAD + "  compare:\n    target: 0.5\n    seeds: 4\n" + compared
    return plan_study(federation(place, text), overrides, Wishes(**wishes))  # type: ignore[arg-type]


def contest(of: Study, jobs: int = 1) -> Comparison:
    return compare(of, jobs=jobs, simulate=fake_contest.simulate)[0]


LR = "    grid: {defaults.work.lr: [0.01, 0.03, 0.1, 0.3, 1.0]}\n"


@pytest.mark.parametrize(
    ("points", "seeds", "expected"),
    [
        (1, 10, []),
        (2, 10, [(2, 10)]),
        (3, 10, [(3, 2), (2, 10)]),
        (12, 10, [(12, 2), (3, 8), (2, 10)]),
        (27, 10, [(27, 2), (7, 8), (2, 10)]),
        (5, 1, [(5, 1), (2, 1)]),
    ],
)
def test_halving(points: int, seeds: int, expected: list[tuple[int, int]]) -> None:
    assert rounds(points, seeds) == expected


def test_the_best_point_of_the_grid_counts(tmp_path: Path) -> None:
    found = contest(study(tmp_path, LR, strategies=("fedavg",), scenarios=("calm",)))
    (place,) = found.scenarios
    (one,) = place.results
    assert one.grid == {"defaults.work.lr": 0.1}  # there the fake's `miss` is 1
    assert one.points == 5


def test_points_are_ordered_by_time_then_share_then_loss(tmp_path: Path) -> None:
    of = study(tmp_path, strategies=("fedavg",), scenarios=("calm",))
    with Workers(of, 1, fake_contest.simulate) as workers:
        (configuration,) = of.contestants[0].configurations
        (runs,) = workers.run([Task(configuration, of.seeds)], lambda _: None)
    scores = [run for run in runs if isinstance(run, Score)]

    def made(*times: float | None, loss: float = 0.1) -> list[Score]:
        return [replace(scores[0], target_s=t, final_loss=loss) for t in times]

    order = [
        made(10, 10, 10),
        made(20, 20, 20),
        made(20, 20, None),
        made(20, None, None, loss=0.3),  # the median is infinite from here on
        made(None, None, None, loss=0.1),
        made(None, None, None, loss=0.2),
    ]
    assert sorted(order, key=merit) == order


def test_a_race_leaves_points_that_can_run(tmp_path: Path) -> None:
    of = study(tmp_path, LR, strategies=("fedavg",), scenarios=("calm",))
    race = Race(of.contestants[0], [0, 1])
    race.runs = {0: [Broken(True, "no")], 1: [Broken(False, "no")]}
    race.keep(2)
    assert race.left == []


def test_tuning_and_reporting_never_share_a_seed(tmp_path: Path) -> None:
    of = study(tmp_path, LR, scenarios=("calm",), strategies=("fedavg",))
    seen: list[int] = []

    def noted(spec: object, *, seed: int, **rest: object) -> Outcome:
        seen.append(seed)
        return fake_contest.simulate(spec, seed=seed, target=0.5)  # type: ignore[arg-type]

    compare(of, jobs=1, simulate=noted)  # type: ignore[arg-type]
    # 5 points with 2 seeds, the best 2 with 2 more; then 4 reported runs and the
    # timeline of the first of them.
    assert len(seen) == runs_of_tuning(of) + 4 + 1 == 5 * 2 + 2 * 2 + 4 + 1
    assert set(seen[:14]) <= set(of.tuning_seeds)
    assert seen[14:] == [7, 8, 9, 10, 7]


def test_figures_follow_from_the_runs(tmp_path: Path) -> None:
    of = study(tmp_path, strategies=("fedavg", "fedbuff"), modes=("published", "late"))
    found = contest(of)
    calm, busy = found.scenarios
    by_name = {(one.strategy, one.mode): one for one in calm.results}
    # The loss exp(-t / tau) is 0.5 at tau ln 2; a version comes every 600 s; tau is
    # 3600 s times half (late), the strategy's speed and the seed's luck.
    half_s = 1800 * math.log(2)

    def met(speed: float) -> float:
        lucks = [0.9 + 0.2 * uniform("luck", seed) for seed in (7, 8, 9, 10)]
        return median(600.0 * math.ceil(half_s * speed * one / 600) for one in lucks)

    assert by_name["fedavg", "late"].time_to_target_s.median == met(1.0)
    assert by_name["fedbuff", "late"].time_to_target_s.median == met(0.6)
    ratios = {one.mode: one for one in by_name["fedbuff", "late"].ratios}
    assert ratios["late"].strategy == "fedavg"
    assert ratios["late"].time.median == met(0.6) / met(1.0)
    again = {(one.strategy, one.mode): one for one in busy.results}
    slower = again["fedavg", "published"].time_to_target_s.median or 0
    assert slower > (by_name["fedavg", "published"].time_to_target_s.median or 0)


def test_nothing_depends_on_processes(tmp_path: Path) -> None:
    of = study(tmp_path, LR, strategies=("fedavg", "fedbuff"))
    told: list[tuple[str, int, int]] = []
    alone = contest(of)
    found, runs = compare(
        of, jobs=2, simulate=fake_contest.simulate, tell=lambda *x: told.append(x)
    )
    assert json.dumps(found.to_json()) == json.dumps(alone.to_json())
    assert told[-1] == ("running", 4 * (14 + 4), 4 * (14 + 4))
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)
    assert len(runs) == 4 * 4
    assert not mp.active_children()


def test_a_point_that_can_t_be_is_told_and_left_out(tmp_path: Path) -> None:
    grid = "    grid: {defaults.job.nodes: [1, 13], strategy.k: [2]}\n"
    of = study(tmp_path, grid, strategies=("fedavg", "fedbuff"), scenarios=("calm",))
    found = contest(of)
    (place,) = found.scenarios
    assert [one.strategy for one in place.results] == ["fedbuff"]
    assert place.results[0].grid == {"defaults.job.nodes": 1, "strategy.k": 2}
    told = [(one.strategy, one.grid["defaults.job.nodes"]) for one in found.refused]
    assert told == [("fedavg", 1), ("fedavg", 13), ("fedbuff", 13)]
    assert "strategy.k" in found.refused[0].message
    assert "No queue takes 13 nodes. Ask for fewer." in found.refused[2].message
    assert "3 configurations could not be run" in notes(found)[0]
    assert not found.failed


def test_a_run_that_fails_is_told_with_its_seed(tmp_path: Path) -> None:
    of = study(
        tmp_path, "", "defaults.job.nodes=14", strategies=("fedavg",),
        scenarios=("calm",),
    )  # fmt: skip
    found = contest(of)
    assert [one.seed for one in found.failed] == [7, 9]
    assert found.failed[0].message == "Trouble: odd seeds fail"
    assert found.failed[0].command.endswith("defaults.job.nodes=14 --seed 7")
    assert found.scenarios[0].results[0].seeds == 2
    assert "2 runs failed" in notes(found)[0]


def test_nothing_left_is_an_error_with_the_command(tmp_path: Path) -> None:
    of = study(tmp_path, "", "defaults.job.nodes=13", scenarios=("calm",))
    with pytest.raises(SimulationError, match="13 nodes") as told:
        contest(of)
    assert "hansa simulate" in (told.value.hint or "")


def test_a_target_out_of_reach_is_told(tmp_path: Path) -> None:
    of = study(tmp_path, strategies=("fedavg",), target=1e-30, scenarios=("calm",))
    found = contest(of)
    (one,) = found.scenarios[0].results
    assert (one.reached, one.time_to_target_s.median) == (0, None)
    data = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert data["scenarios"][0]["results"][0]["time_to_target_s"] is None
    assert "In calm nobody reaches the target; the lowest" in notes(found)[0]
    assert headline(found) == "1 strategy in 1 scenario, 4 seeds each."


def test_a_target_that_the_first_model_meets_is_told(tmp_path: Path) -> None:
    # The fake's loss is 1 at first: with the target 2 all times are 0, and their
    # ratios mean nothing.
    found = contest(study(tmp_path, strategies=("fedavg", "fedbuff"), target=2.0))
    assert notes(found)[0] == (
        "In calm the model that all begin with meets the target: nothing can be "
        "compared."
    )
    assert headline(found) == "2 strategies in 2 scenarios, 4 seeds each."
    assert {one.scenarios for one in found.overall} == {0}


def test_what_figures_can_t_tell_is_said(tmp_path: Path) -> None:
    # Four runs are all above or all below the median in 2 of 16 cases.
    few = notes(contest(study(tmp_path, scenarios=("calm",))))
    assert any("4 seeds span all runs" in note and "88%" in note for note in few)
    assert "surrogate" in few[-1]
    enough = contest(study(tmp_path, scenarios=("calm",), seeds=6))
    assert [note for note in notes(enough) if "seeds" in note] == []
    bare = replace(enough, training="none", remarks=("Line 3 can't be read.",))
    assert notes(bare)[0] == "Line 3 can't be read."
    assert "Nothing is trained" in notes(bare)[-1]


def test_words_tables_and_csv(tmp_path: Path) -> None:
    of = study(tmp_path, strategies=("fedavg", "fedbuff"))
    found, runs = compare(of, jobs=1, simulate=fake_contest.simulate)
    assert headline(found) == (
        "2 strategies in 2 scenarios, 4 seeds each. Fastest to the test loss 0.5: "
        "fedbuff in 2."
    )
    table = scenario_table(found, found.scenarios[0])
    assert len(table.rows) == 2
    assert all(len(row) == len(table.columns) for row in table.rows)
    assert table.rows[1][:3] == ("fedbuff", "late", "4 of 4")
    fedavg = found.scenarios[0].results[0].time_to_target_s
    assert table.rows[0][3] == with_interval(fedavg, lambda s: f"{s // 60:.0f}m00")
    bare = scenario_table(replace(found, target=None), found.scenarios[0])
    assert bare.columns == (
        "strategy", "mode", "virtual time", "final loss", "node-hours", "chosen",
    )  # fmt: skip
    assert all(len(row) == 6 for row in bare.rows)
    assert bare.rows[0][2] == "10h00 (10h00–10h00)"  # noqa: RUF001
    lines = results_csv(found).splitlines()
    assert lines[0].startswith("scenario,strategy,mode,seeds,reached,time_to_target_s")
    assert lines[1].startswith(f"calm,fedavg,late,4,4,{fedavg.median},")
    rows = runs_csv(runs).splitlines()
    assert len(rows) == 1 + 16
    assert rows[1].startswith("calm,fedavg,late,7,done,36000.0,30.0,60,")
