"""Which runs a comparison has, against lists written by hand."""

from __future__ import annotations

import math
import shlex
from pathlib import Path

import pytest
from fake_contest import FEDERATION, federation

from hansa.core.errors import PluginError, SpecError, UsageError
from hansa.simulator.compare.study import (
    Configuration,
    Study,
    Wishes,
    load,
    plan_study,
    scenario_changes,
)
from hansa.spec import load_federation

GRID = """
    grid: {defaults.work.lr: [0.05, 0.1], defaults.work.steps: [10, 20]}
    own_grid: {fedbuff: {strategy.k: [1], defaults.work.lr: [0.2]}}
"""


def study(place: Path, *overrides: str, extra: str = "", **wishes: object) -> Study:
    path = federation(place, FEDERATION.replace("seeds: 4}", "seeds: 4}") + extra)
    return plan_study(path, overrides, Wishes(**wishes))  # type: ignore[arg-type]


def with_grid(place: Path) -> Path:
    head, _, _ = FEDERATION.partition("  compare:")
    text = f"{head}  compare:\n    strategies: [fedavg, fedbuff]\n    target: 0.5{GRID}"
    return federation(place, text)


def test_the_file_says_what_is_compared(tmp_path: Path) -> None:
    found = study(tmp_path)
    assert [(one.scenario, one.strategy, one.mode) for one in found.contestants] == [
        ("calm", "fedavg", "late"),
        ("calm", "fedbuff", "late"),
        ("busy", "fedavg", "late"),
        ("busy", "fedbuff", "late"),
    ]
    assert found.target == 0.5
    assert found.seeds == (7, 8, 9, 10)


def test_the_command_line_comes_before_the_file(tmp_path: Path) -> None:
    found = study(
        tmp_path, strategies=("fedasync",), scenarios=("busy", "base"),
        modes=("published", "late"), seeds=2, target=0.25,
    )  # fmt: skip
    assert [(one.scenario, one.strategy, one.mode) for one in found.contestants] == [
        ("busy", "fedasync", "published"),
        ("busy", "fedasync", "late"),
        ("base", "fedasync", "published"),
        ("base", "fedasync", "late"),
    ]
    assert (found.seeds, found.target) == ((7, 8), 0.25)


def test_tuning_has_seeds_of_its_own(tmp_path: Path) -> None:
    found = study(tmp_path)
    assert len(set(found.tuning_seeds)) == 4
    assert not set(found.tuning_seeds) & set(found.seeds)
    assert study(tmp_path).tuning_seeds == found.tuning_seeds


def test_the_target_is_that_of_stop_if_nobody_says_another(tmp_path: Path) -> None:
    path = federation(tmp_path, FEDERATION.replace("target: 0.5, ", ""))
    assert plan_study(path, (), Wishes()).target is None
    path = federation(tmp_path, FEDERATION.replace("target: 0.5, ", ""))
    stop = "stop.target={below: 0.125}"
    assert plan_study(path, (stop,), Wishes()).target == 0.125


def test_the_grid_is_crossed_and_own_keys_replace_common_ones(tmp_path: Path) -> None:
    found = plan_study(with_grid(tmp_path), (), Wishes(scenarios=("calm",)))
    fedavg, fedbuff = found.contestants
    lr, steps = "defaults.work.lr", "defaults.work.steps"
    assert [one.point for one in fedavg.configurations] == [
        ((lr, 0.05), (steps, 10)),
        ((lr, 0.05), (steps, 20)),
        ((lr, 0.1), (steps, 10)),
        ((lr, 0.1), (steps, 20)),
    ]
    assert [one.point for one in fedbuff.configurations] == [
        ((lr, 0.2), (steps, 10), ("strategy.k", 1)),
        ((lr, 0.2), (steps, 20), ("strategy.k", 1)),
    ]
    assert fedbuff.configurations[1].overrides == (
        "strategy={name: fedbuff}",
        "defaults.work.lr=0.2",
        "defaults.work.steps=20",
        "strategy.k=1",
    )


def only(found: Study) -> Configuration:
    (contestant,) = found.contestants
    (configuration,) = contestant.configurations
    return configuration


def test_the_files_own_strategy_keeps_its_options(tmp_path: Path) -> None:
    kept = study(tmp_path, strategies=("fedavg",), scenarios=("calm",))
    spec = load(kept.document, kept.path, only(kept).overrides)
    assert spec.strategy.options["quorum"] == 2
    other = study(tmp_path, strategies=("fedbuff",), scenarios=("calm",))
    spec = load(other.document, other.path, only(other).overrides)
    assert (spec.strategy.name, spec.strategy.options.get("quorum")) == (
        "fedbuff",
        None,
    )


def test_published_takes_waiting_away_where_facilities_set_it_themselves(
    tmp_path: Path,
) -> None:
    path = federation(
        tmp_path,
        FEDERATION.replace("calm: []", "calm: [facilities.hamburg.queue_ahead=600]"),
    )
    wishes = Wishes(strategies=("fedavg",), scenarios=("calm",), modes=("published",))
    found = plan_study(path, ("defaults.linger=60",), wishes)
    assert only(found).overrides == (
        "defaults.linger=60",
        "facilities.hamburg.queue_ahead=600",
        "defaults.linger=0",
        "defaults.queue_ahead=0",
        "facilities.hamburg.queue_ahead=0",
        "facilities.visby.linger=0",
        "simulation.binding=submission",
    )
    spec = load(found.document, path, only(found).overrides)
    assert spec.simulation is not None
    assert spec.simulation.binding == "submission"
    for one in spec.facilities.values():
        assert (one.linger, one.queue_ahead) == (0, 0)


def test_the_command_of_a_run_makes_the_same_federation(tmp_path: Path) -> None:
    found = study(
        tmp_path, strategies=("fedbuff",), scenarios=("busy",), modes=("published",)
    )
    words = shlex.split(found.command(only(found), 9))
    assert words[:3] == ["hansa", "simulate", str(found.path)]
    assert words[-2:] == ["--seed", "9"]
    spec = load(found.document, found.path, only(found).overrides)
    assert load_federation(words[2], words[3:-2]) == spec


def test_values_of_a_grid_may_be_any_data(tmp_path: Path) -> None:
    extra = "    grid: {strategy: [{name: fedavg, quorum: 1}]}\n"
    head, _, _ = FEDERATION.partition("  compare:")
    path = federation(tmp_path, f"{head}  compare:\n    strategies: fedavg\n{extra}")
    found = plan_study(path, (), Wishes(scenarios=("base",)))
    spec = load(found.document, path, only(found).overrides)
    assert spec.strategy.options["quorum"] == 1


def test_names_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no scenario 'buzy'") as told:
        study(tmp_path, scenarios=("buzy",))
    assert "Did you mean 'busy'?" in (told.value.hint or "")
    with pytest.raises(UsageError, match="no mode 'early'"):
        study(tmp_path, modes=("early",))
    with pytest.raises(PluginError, match="fedbuf"):
        study(tmp_path, strategies=("fedbuf",))
    with pytest.raises(UsageError, match="no scenario 'x'"):
        scenario_changes(None, "x")
    assert scenario_changes(None, "base") == ()


@pytest.mark.parametrize("target", [math.nan, math.inf, -math.inf])
def test_a_target_is_a_number(tmp_path: Path, target: float) -> None:
    with pytest.raises(UsageError, match="no number"):
        study(tmp_path, target=target)


def test_no_run_lives_to_see_a_target_below_its_end(tmp_path: Path) -> None:
    stop = "stop.target={below: 0.2}"
    with pytest.raises(UsageError, match=r"end at a loss of 0\.2") as told:
        study(tmp_path, stop, target=0.1)
    assert told.value.hint == "Add stop.target.below=0.1."
    assert study(tmp_path, stop, target=0.2).target == 0.2
    assert study(tmp_path, stop, "stop.target.below=0.1", target=0.1).target == 0.1


def test_no_strategy_runs_under_the_name_of_another(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="makes fedbuff of fedavg") as told:
        study(tmp_path, "strategy={name: fedbuff}")
    assert "--strategies" in (told.value.hint or "")
    alone = study(tmp_path, "strategy={name: fedbuff}", strategies=("fedbuff",))
    assert {one.strategy for one in alone.contestants} == {"fedbuff"}
    path = federation(tmp_path, FEDERATION.replace("calm: []", "calm: [strategy=mifa]"))
    with pytest.raises(UsageError, match=r"mifa of fedavg.*'calm'"):
        plan_study(path, (), Wishes())


def test_a_scenario_that_can_t_be_is_told_at_once(tmp_path: Path) -> None:
    path = federation(tmp_path, FEDERATION.replace("calm: []", "calm: [~facilities.x]"))
    with pytest.raises(SpecError, match=r"scenario 'calm'.*no 'x'"):
        plan_study(path, (), Wishes())
