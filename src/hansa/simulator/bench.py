"""How many rounds of facilities a core simulates in a second.

A whole federation in virtual time: queues, jobs, transfers, the strategy, the store,
and the training of a surrogate whose many steps cost no more than one. Building the
federation does not count, nor does a first simulation, which warms everything up.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import Final

from hansa.core.errors import SimulationError
from hansa.simulator.outcome import Outcome
from hansa.simulator.simulate import simulate
from hansa.spec.federation import FederationSpec
from hansa.spec.load import federation_from_text
from hansa.spec.yaml import dump

FACILITIES: Final = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class SimulateBench:
    """What `bench_simulate` measured.

    Attributes:
        strategy: Name of the strategy.
        facilities: How many trained.
        linger: Whether jobs kept their allocations from round to round.
        rounds: Updates that went into a version in one simulation.
        events: Events of one simulation.
        seconds: Of each simulation that counts.
        seconds_median: Their median.
        facility_rounds_per_second: Rounds in a second, by the median.
        events_per_second: Events likewise.
    """

    strategy: str
    facilities: int
    linger: bool
    rounds: int
    events: int
    seconds: tuple[float, ...]
    seconds_median: float
    facility_rounds_per_second: float
    events_per_second: float


def bench_simulate(
    strategy: str = "fedavg",
    *,
    rounds: int = 20_000,
    linger: bool = True,
    repeats: int = 5,
    tell: Callable[[str, int, int], None] = lambda what, done, of: None,
) -> SimulateBench:
    """Simulate a federation of four facilities on one core, and measure the time.

    Args:
        strategy: Name of the strategy, with its own defaults.
        rounds: Updates after which a simulation ends.
        linger: Whether jobs stay for the next round, or each round has a job.
        repeats: How many simulations count; one more goes before them.
        tell: Told of the progress: what is done, how much of it, of how much.

    Raises:
        SpecError: There is no such strategy.
        SimulationError: A simulation did not end as it should.
    """
    spec = _federation(strategy, rounds, linger)
    seconds = []
    for number in range(repeats + 1):
        tell("simulating", number, repeats + 1)
        began = perf_counter()
        outcome = simulate(spec)
        seconds.append(perf_counter() - began)
        _check(outcome)
    tell("simulating", repeats + 1, repeats + 1)
    middle, made = median(seconds[1:]), sum(outcome.rounds.values())
    return SimulateBench(
        strategy=strategy,
        facilities=FACILITIES,
        linger=linger,
        rounds=made,
        events=outcome.events,
        seconds=tuple(seconds[1:]),
        seconds_median=middle,
        facility_rounds_per_second=made / middle,
        events_per_second=outcome.events / middle,
    )


def _federation(strategy: str, rounds: int, linger: bool) -> FederationSpec:
    """Return four facilities that differ in speed and in their queues."""
    facilities = {
        f"facility-{number}": {
            "simulation": {
                "queue": {"median": 120 * number},
                "speed": {"seconds_per_step": number},
            }
        }
        for number in range(1, FACILITIES + 1)
    }
    plan = {
        "name": "bench",
        "model": {"trainer": "softmax", "source": "zeros"},
        "task": "digits",
        "strategy": strategy,
        "stop": {"updates": rounds, "rounds": rounds},
        "defaults": {
            "gateway": "simulated",
            "mover": "simulated",
            "job": {"time": "4:00:00"},
            "linger": "30m" if linger else 0,
            "work": {"steps": 40, "batch": 32, "lr": 0.05},
            "simulation": {
                "queue": {"type": "lognormal", "sigma": 1.0, "memory": 0.5},
                "speed": {"noise": 0.1},
            },
        },
        "facilities": facilities,
        "simulation": {"training": "surrogate"},
    }
    return federation_from_text(dump(plan), name="the benchmark's plan")


def _check(outcome: Outcome) -> None:
    if outcome.outcome != "done":
        raise SimulationError(
            f"The simulation that is measured ended as {outcome.outcome}: "
            f"{outcome.reason}",
            hint="This is a bug in Hansa; please report it.",
        )
