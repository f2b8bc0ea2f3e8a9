"""What a meter counts, by a clock that the test moves."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from hansa.worker.meter import Measure, Meter, process_peak


@dataclass
class Script:
    """A clock, a device and a profile that do as they are told."""

    now: float = 100.0
    behind: float = 0.0
    said: list[str] = field(default_factory=list)
    communication: float | None = 0.9
    peak: float = 12.0
    name: str = "scripted"

    def profile(self) -> Script:
        return self

    def memory(self) -> dict[str, float]:
        return {"memory_peak_bytes": self.peak}

    def clock(self) -> float:
        return self.now

    def synchronise(self) -> None:
        self.said.append("synchronise")
        self.now += self.behind

    def start(self) -> None:
        self.said.append("start")
        self.peak += 100.0

    def stop(self) -> float | None:
        self.said.append("stop")
        return self.communication


def metered(script: Script, measure: Measure | None) -> Meter:
    meter = Meter(measure, script.clock)
    meter.gauge = script
    return meter


def steps(meter: Meter, script: Script, number: int, *, fetch: float = 0.25) -> None:
    """Do steps of two seconds and what getting and encoding the data takes."""
    for _ in range(number):
        with meter.data():
            script.now += fetch
        with meter.step():
            with meter.data():
                script.now += 0.5
            meter.count(samples=4, tokens=100, padding=20, answers=30)
            script.now += 2.0
        script.said.append("step")


def test_only_the_timed_steps_count_and_their_parts_add_up() -> None:
    script = Script()
    meter = metered(script, Measure(warm_up=2, steps=3, profiled=2))
    steps(meter, script, 1, fetch=60.0)  # a cold cache
    steps(meter, script, 1)
    script.behind = 0.5  # what the device has still to do at the end
    steps(meter, script, 5)
    found = meter.numbers()
    assert found["first_step_s"] == pytest.approx(62.5)
    assert found["measured_steps"] == 3
    assert found["measured_s"] == pytest.approx(3 * 2.75 + 0.5)
    assert found["measured_data_s"] == pytest.approx(3 * 0.75)
    assert found["measured_samples"] == 12
    assert (found["measured_tokens"], found["measured_padding"]) == (300, 60)
    # 0.9 s in two profiled steps are 1.35 s in three.
    assert found["measured_communication_s"] == pytest.approx(1.35)
    assert found["measured_answers"] == 90
    assert found["memory_peak_bytes"] == 12
    # The whole order: seven steps.
    assert (found["tokens"], found["padding"]) == (700, 140)
    assert found["data_s"] == pytest.approx(60.5 + 6 * 0.75)
    assert script.said == [
        *("step", "synchronise", "step"),
        *("step", "step", "synchronise", "step"),
        *("start", "step", "synchronise", "stop", "step"),
    ]


def test_a_checkpoint_belongs_to_no_step() -> None:
    script = Script()
    meter = metered(script, Measure(warm_up=0, steps=2))
    steps(meter, script, 1)
    with meter.aside():
        script.now += 30.0
    steps(meter, script, 1)
    assert meter.numbers()["measured_s"] == pytest.approx(2 * 2.75)
    assert "measured_communication_s" not in meter.numbers()


def test_no_more_communication_than_the_step_has_room_for() -> None:
    """Profiled steps are slower; what they waited may be more than a step lasts."""
    script = Script(communication=50.0)
    meter = metered(script, Measure(warm_up=0, steps=1, profiled=1))
    steps(meter, script, 2)
    assert meter.numbers()["measured_communication_s"] == pytest.approx(2.0)


def test_without_an_order_to_measure_the_device_is_never_waited_for() -> None:
    script = Script()
    meter = metered(script, None)
    steps(meter, script, 2)
    assert meter.numbers() == {
        "tokens": 200,
        "padding": 40,
        "data_s": 1.5,
        "memory_peak_bytes": 12,
    }
    assert script.said == ["step", "step"]


def test_an_order_cut_short_has_no_result_and_leaves_no_profile_running() -> None:
    script = Script()
    meter = metered(script, Measure(warm_up=1, steps=2, profiled=2))
    steps(meter, script, 2)
    assert "measured_steps" not in meter.numbers()
    steps(meter, script, 2)
    assert "measured_communication_s" not in meter.numbers()
    assert script.said[-1] == "stop"


def test_a_step_that_fails_does_not_count() -> None:
    script = Script()
    meter = metered(script, Measure(warm_up=0, steps=1))
    with pytest.raises(ZeroDivisionError), meter.step():
        raise ZeroDivisionError
    assert meter.total.steps == 0


def test_the_peak_of_a_process_stays_when_the_memory_is_given_back() -> None:
    before = process_peak()
    ballast = b"x" * before
    during = process_peak()
    assert during >= before + len(ballast) // 2
    assert process_peak() >= during
