"""FedCompass: groups, steps and what comes late; numbers worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError
from told import Told, aggregated, assigned, live, versions

from hansa.core.commands import ClearTimer, SetTimer
from hansa.strategy.base import StrategyContext
from hansa.strategy.fedcompass import FedCompass, FedCompassOptions


def make(*facilities: str, **options: Any) -> FedCompass:
    context = StrategyContext(facilities=facilities or ("a", "b"))
    return FedCompass(FedCompassOptions.model_validate(options), context)


def opened(*facilities: str, **options: Any) -> Told:
    told = Told(make(*facilities, **options))
    told.publish()
    return told


def introduce(told: Told, facility: str, speed: float) -> None:
    """Let a facility deliver its first update, at so many seconds a step."""
    order = told.orders[facility]
    assert order.steps is not None
    told.deliver(facility, delta=1.0, train_s=speed * order.steps)
    told.publish()


def steps(told: Told, facility: str) -> int | None:
    return told.orders[facility].steps


def test_the_first_order_is_short_and_makes_a_version_by_itself() -> None:
    told = opened()
    assert steps(told, "a") == steps(told, "b") == 20
    # alpha / N = 0.45.
    assert aggregated(told.deliver("a", delta=1.0, train_s=20.0)) == {
        "version/0": 1.0,
        "update/train-0001-a-1": 0.45,
    }


def test_speeds_measured_before_the_run_form_groups_from_the_first_order_on() -> None:
    context = StrategyContext(
        facilities=("a", "b", "c"), seconds_per_step={"a": 1.0, "b": 2.0}
    )
    told = Told(FedCompass(FedCompassOptions(), context))
    told.publish()
    # `a` founds a group that is there after 100 steps; `b` does 50 meanwhile.
    assert (steps(told, "a"), steps(told, "b"), steps(told, "c")) == (100, 50, 20)


def test_the_queue_is_no_part_of_the_speed() -> None:
    told = opened("a")
    told.start("a", queue_wait=7200.0)
    told.wait(7220.0)
    introduce(told, "a", speed=1.0)
    # 1 s a step, though 7220 s passed: 7200 of queue and 100 of work.
    groups = told.strategy.describe()["groups"]
    assert groups["1"]["expected"] == 7220.0 + 7200.0 + 100.0
    assert groups["1"]["latest"] == 7220.0 + 1.5 * 7300.0


def test_as_published_the_queue_is_not_planned_for() -> None:
    told = opened("a", queue_aware=False)
    told.start("a", queue_wait=7200.0)
    introduce(told, "a", speed=1.0)
    assert told.strategy.describe()["groups"]["1"]["expected"] == 100.0


def test_a_facility_joins_with_what_its_queue_leaves() -> None:
    told = opened("a", "b", queue_aware=True)
    introduce(told, "a", speed=1.0)  # group 1: expected at 100
    told.start("b", queue_wait=30.0)
    told.deliver("b", delta=1.0, train_s=20.0, startup_s=5.0, transfer_s=3.0)
    told.publish()
    # 100 - 30 - 5 - 3 = 62 s at 1 s a step.
    assert steps(told, "b") == 62


def test_a_queue_longer_than_the_others_rounds_gives_the_fewest_steps() -> None:
    told = opened("a", "b", queue_aware=True)
    introduce(told, "a", speed=1.0)  # T_max 150, and back at 250 at the latest
    told.start("b", queue_wait=1000.0)
    introduce(told, "b", speed=1.0)
    assert steps(told, "b") == 20
    assert told.strategy.describe()["groups"]["2"]["expected"] == 1020.0


def test_a_planned_quantile_of_the_queue() -> None:
    told = opened("a", queue_quantile=0.9)
    for wait in (10.0, 90.0, 10.0):
        told.start("a", queue_wait=wait)
        told.deliver("a", delta=1.0, train_s=float(steps(told, "a") or 0))
        told.publish()
    # 10, 90, 10 weigh .81, .9, 1: 1.81 of 2.71 at 10 is less than 0.9 of it.
    group = told.strategy.describe()["groups"]["3"]
    assert group["expected"] == 190.0


def test_equals_arrive_together() -> None:
    told = opened("a", "b")
    introduce(told, "a", speed=1.0)
    told.wait(10.0)
    introduce(told, "b", speed=1.0)
    assert steps(told, "b") == 90
    told.wait(90.0)
    assert told.deliver("b", delta=1.0, train_s=90.0) == []
    assert set(told.strategy.holds()) == {"update/train-0002-b-1"}
    commands = told.deliver("a", delta=1.0, train_s=100.0)
    assert commands[0] == ClearTimer(timer="group-0001")
    assert set(aggregated(commands)) == {
        "version/2",
        "update/train-0002-a-1",
        "update/train-0002-b-1",
    }
    assert assigned(told.publish()) == ["a", "b"]


def test_a_group_is_closed_at_its_latest_time() -> None:
    told = opened("a", "b")
    introduce(told, "a", speed=1.0)
    introduce(told, "b", speed=1.0)
    told.wait(100.0)
    told.deliver("a", delta=1.0, train_s=100.0)
    assert list(aggregated(told.fire("group-0001"))) == [
        "version/2",
        "update/train-0002-a-1",
    ]
    assert told.at == 150.0
    told.publish()  # group 2, of a, expected at 250
    told.wait(60.0)
    # b is late: it goes on at once, and joins a: 250 - 210 = 40 steps.
    commands = told.deliver("b", delta=1.0, base=0, train_s=100.0)
    assert assigned(commands) == ["b"]
    assert steps(told, "b") == 40
    assert told.strategy.describe()["overdue"] == ["train-0002-b-1"]
    assert set(told.strategy.holds()) == {"update/train-0002-b-1"}
    told.wait(40.0)
    told.deliver("b", delta=1.0, train_s=40.0)
    assert set(aggregated(told.deliver("a", delta=1.0, train_s=100.0))) == {
        "version/3",
        "update/train-0003-a-1",
        "update/train-0002-b-1",
        "update/train-0003-b-1",
    }


def test_who_comes_after_the_latest_time_is_late_even_before_the_timer() -> None:
    told = opened("a", "b")
    introduce(told, "a", speed=1.0)
    introduce(told, "b", speed=1.0)
    told.wait(150.0)
    assert assigned(told.deliver("b", delta=1.0, train_s=100.0)) == []  # just in time
    told.wait(1.0)
    commands = told.deliver("a", delta=1.0, train_s=100.0)
    # The group is complete, so it is closed with both; a goes on without waiting.
    assert len(aggregated(commands)) == 3
    assert assigned(commands) == ["a"]


def test_an_old_update_in_a_version_does_not_free_who_waits_for_a_newer_one() -> None:
    told = opened("a", "b", "c")
    introduce(told, "a", speed=1.0)  # group 1, to 150
    told.wait(145.0)
    introduce(told, "b", speed=1.0)  # group 2, for 245
    told.fire("group-0001")
    told.deliver("a", delta=1.0, train_s=100.0)  # late; joins 2 with 95 steps
    assert told.strategy.describe()["overdue"] == ["train-0002-a-1"]
    told.wait(55.0)
    introduce(told, "c", speed=1.0)  # joins 2 with 40
    told.fail("c")
    told.fire("again-c")  # too late for 2; founds 3
    told.deliver("a", delta=1.0, train_s=95.0)  # waits for b
    told.lose("c")  # closes 3, with what came late
    assert told.making is not None
    assert assigned(told.publish()) == []
    assert told.strategy.describe()["arrived"] == ["train-0003-a-1"]


def test_a_lost_member_is_not_waited_for() -> None:
    told = opened("a", "b")
    introduce(told, "a", speed=1.0)
    introduce(told, "b", speed=1.0)
    told.wait(90.0)
    told.deliver("a", delta=1.0, train_s=100.0)
    assert list(aggregated(told.lose("b"))) == ["version/2", "update/train-0002-a-1"]


def test_a_failed_member_is_not_waited_for_and_comes_again() -> None:
    told = opened("a", "b")
    introduce(told, "a", speed=1.0)
    introduce(told, "b", speed=1.0)
    told.wait(10.0)
    commands = told.fail("b")
    assert commands == [SetTimer(timer="again-b", after=60.0)]
    # 100 - 70 = 30 steps: it joins the same group again.
    assert assigned(told.fire("again-b")) == ["b"]
    assert steps(told, "b") == 30
    assert told.orders["b"].first == 20
    assert told.strategy.describe()["groups"]["1"]["coming"] == ["a", "b"]


def test_what_came_late_does_not_wait_for_those_who_are_gone() -> None:
    told = opened("a")
    introduce(told, "a", speed=1.0)
    told.fire("group-0001")
    assert told.making is None
    told.wait(5.0)
    told.deliver("a", delta=1.0, train_s=155.0)
    assert told.making is None
    assert list(aggregated(told.lose("a"))) == ["version/1", "update/train-0002-a-1"]


def test_too_stale_members_leave_their_group() -> None:
    told = opened("a", "b", "c", max_staleness=1, queue_aware=False)
    introduce(told, "a", speed=1.0)
    introduce(told, "b", speed=1.0)
    told.wait(90.0)
    told.deliver("a", delta=1.0, train_s=100.0)
    commands = told.deliver("b", delta=1.0, base=0, train_s=100.0)
    assert list(aggregated(commands)) == ["version/2", "update/train-0002-a-1"]
    assert assigned(commands) == ["b"]


def test_nothing_is_kept_of_updates_that_were_dropped_as_too_stale() -> None:
    told = opened(max_staleness=0)
    told.deliver("a", delta=1.0, train_s=20.0)
    told.deliver("b", delta=1.0, train_s=20.0)  # waits for a's version
    assert set(vars(told.strategy)["_given"]) == {"train-0001-b-1"}
    told.publish()
    assert told.strategy.describe()["stale"] == {"b": 1}
    assert vars(told.strategy)["_given"] == {}


def test_the_data_go_on_where_the_last_update_ended() -> None:
    told = opened("a")
    introduce(told, "a", speed=1.0)
    assert told.orders["a"].first == 20
    told.fail("a")
    told.fire("again-a")
    assert told.orders["a"].first == 20
    told.deliver("a", delta=1.0, steps=33, train_s=33.0)  # a part of 100
    told.publish()
    assert told.orders["a"].first == 53


@pytest.mark.parametrize("queues", [(0.0, 0.0, 0.0), (30.0, 5.0, 100.0)])
def test_machines_of_unlike_speed_and_queue_arrive_together(
    queues: tuple[float, float, float],
) -> None:
    # In the time of 200 steps at a, even c does more than 20 after its queue.
    told = opened("a", "b", "c", max_steps=200)
    speeds = (1.0, 2.5, 4.0)
    live(told, dict(zip("abc", zip(queues, speeds, strict=True), strict=True)), 6000.0)
    later = [facilities for at, facilities in versions(told) if at > 1000.0]
    assert len(later) > 20
    assert all(facilities == ["a", "b", "c"] for facilities in later)


def test_who_has_no_time_for_the_fewest_steps_comes_less_often() -> None:
    told = opened("a", "c")
    live(told, {"a": (0.0, 1.0), "c": (100.0, 4.0)}, 4000.0)
    later = [facilities for at, facilities in versions(told) if at > 1000.0]
    # 20 steps of c take 180 s, 100 of a 100: c founds groups that a joins.
    assert ["a"] in later
    assert ["a", "c"] in later
    assert ["c"] not in later


def test_a_budget_takes_in_what_has_come_in_all_groups() -> None:
    told = opened("a", "b")
    introduce(told, "a", speed=1.0)
    introduce(told, "b", speed=1.0)
    told.deliver("a", delta=1.0, train_s=100.0)
    commands = told.spend()
    assert commands[0] == ClearTimer(timer="group-0001")
    assert list(aggregated(commands)) == ["version/2", "update/train-0002-a-1"]
    assert told.publish() == []
    assert set(told.strategy.holds()) == set()


def test_appfl_mixes_models_and_counts_from_the_order() -> None:
    told = opened("a", "b", compat="appfl", a=1)
    told.deliver("a", model=2.0, train_s=20.0)
    told.publish()
    assert told.model == pytest.approx(0.45 * 2.0)
    # b binds version 1, but its order is of version 0: tau 1, a_k = 0.45 / 2.
    found = aggregated(told.deliver("b", model=3.0, train_s=20.0))
    assert found == {"version/1": 1.0, "update/train-0001-b-1": pytest.approx(0.225)}
    told.publish()
    assert told.model == pytest.approx(0.775 * 0.9 + 0.225 * 3.0)


@pytest.mark.parametrize(
    "options",
    [
        {"min_steps": 0},
        {"min_steps": 101},
        {"min_steps": 30, "max_steps": 20},
        {"latest_factor": 0.9},
        {"alpha": 0},
        {"alpha": 1.5},
        {"queue_quantile": 1},
        {"a": -1},
        {"staleness": "harmonic"},
        {"weights": "samples"},
    ],
)
def test_bad_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        FedCompassOptions.model_validate(options)


def test_a_restart_by_replay_gives_the_same() -> None:
    told = opened("a", "b", "c")
    introduce(told, "a", speed=1.0)
    introduce(told, "b", speed=2.0)
    told.lose("c")
    told.wait(100.0)
    told.deliver("a", delta=1.0, train_s=120.0)
    told.fire("group-0001")
    told.publish()
    told.regain("c")
    told.deliver("b", delta=1.0, train_s=110.0)
    told.replay(make("a", "b", "c"))
