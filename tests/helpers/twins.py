"""One scripted federation on both runtimes: on asyncio with lanes, and on the heap."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from federation import STEPS, WALLTIME, Scenario

from hansa.coordinator.core import Coordinator
from hansa.coordinator.plan import Stop
from hansa.coordinator.replay import replay
from hansa.core.events import Event, JobEnded, UpdateArrived, VersionPublished
from hansa.journal.line import Record
from hansa.scheduler.base import JobState
from hansa.simulator import scenario as parts
from hansa.simulator.allocation import Allocation
from hansa.simulator.heap import Due
from hansa.simulator.weather import Weather
from hansa.spec.load import federation_from_text
from hansa.spec.yaml import dump
from hansa.testing import virtual_time
from hansa.testing.scripted import Script

BREAKS = {"preempt": JobState.PREEMPTED, "node_fail": JobState.NODE_FAIL}


@dataclass
class Twins:
    """A federation that both runtimes can carry out.

    Attributes:
        root: An empty folder.
        scripts: What each facility is like; only waits, times and some `ends`.
        strategy: Its name.
        options: Its options.
        rounds: Versions to make.
        linger: Seconds that jobs linger.
        queue_ahead: Seconds that jobs queued ahead wait.
    """

    root: Path
    scripts: dict[str, Script]
    strategy: str = "fedavg"
    options: dict[str, Any] = field(default_factory=dict)
    rounds: int = 5
    linger: float = 0.0
    queue_ahead: float = 0.0

    def on_asyncio(self, clock: Callable[[Any], Any] = virtual_time.run) -> list[Event]:
        """Return the journal of the real coordinator, lanes and store.

        Args:
            clock: Runs a coroutine on a loop with a time of its own.
        """
        scenario = Scenario(
            self.root,
            self.scripts,
            stop=Stop(rounds=self.rounds),
            strategy=self.strategy,
            options=self.options,
            job={"linger": self.linger},
            queue_ahead=self.queue_ahead,
            evaluate_every=10**6,
            clock=clock,
        )
        scenario.run()
        return scenario.events

    def on_the_heap(self, monkeypatch: Any) -> list[Event]:
        """Return the journal of the simulator."""
        monkeypatch.setattr(parts, "Weather", self._weather())
        records: list[Record] = []

        def record(event: Event, core: Coordinator) -> None:
            records.append(Record(len(records) + 1, core.digest, event))

        spec = federation_from_text(dump(self._plan()))
        core = parts.prepare(spec, 0, record=record).run()
        fresh = parts.prepare(spec, 0).core
        replay(records, fresh)
        assert fresh.snapshot() == core.snapshot()
        return [record.event for record in records]

    def _weather(self) -> type[Weather]:
        ends = {
            key: how for one in self.scripts.values() for key, how in one.ends.items()
        }

        class Scripted(Weather):
            """Breaks the jobs off that the scripts name, half way through."""

            def failures(self, job: Allocation) -> tuple[Due, ...]:
                if job.key not in ends or not job.orders:
                    return ()
                heap = job.owner.heap
                seconds = job.orders[0].steps * job.owner.machine.step_seconds(
                    heap.now, 1, 1
                )
                state = BREAKS[ends[job.key]]
                half = heap.now + seconds / 2
                return (heap.at(half, lambda: job.break_off(state, warned=False)),)

        return Scripted

    def _plan(self) -> dict[str, Any]:
        return {
            "name": "twins",
            "model": {"trainer": "softmax", "source": "zeros", "dtype": "float32"},
            "task": "digits",
            "strategy": {"name": self.strategy, **self.options},
            "stop": {"rounds": self.rounds},
            "evaluation": {"every": 10**6},
            "facilities": {
                name: self._facility(script) for name, script in self.scripts.items()
            },
            "simulation": {
                "training": {"type": "none", "bytes": 0},
                "evaluation": "facility",
                "aggregate": 0,
            },
        }

    def _facility(self, script: Script) -> dict[str, Any]:
        pace = script.train_s / STEPS
        return {
            "gateway": {"type": "local", "site": "site.yaml"},
            "mover": "posix",
            "job": {"time": WALLTIME},
            "linger": self.linger,
            "queue_ahead": self.queue_ahead,
            "work": {"steps": STEPS, "batch": 2},
            "simulation": {
                "queue": {"type": "replay", "waits": [script.queue_s]},
                "speed": {
                    "seconds_per_step": pace,
                    "startup": 0,
                    "handover": 0,
                    "save": 0,
                    "checkpoint": pace / 1000,
                    "evaluate": script.train_s,
                },
                "link": {"latency": 0, "bandwidth": 10**12},
                "notice": 0,
            },
        }


def decisions(events: list[Event]) -> list[Any]:
    """Return what a run came to, but not when: versions, terms, bases, broken jobs."""
    bases = {e.assignment: e.base for e in events if isinstance(e, UpdateArrived)}
    found: list[Any] = []
    for event in events:
        if isinstance(event, VersionPublished):
            used = [bases.get(t.ref.removeprefix("update/")) for t in event.terms]
            found.append(
                [(t.ref, round(t.coefficient, 12)) for t in event.terms] + used
            )
    return found


def times(events: list[Event], of: Callable[[Event], bool]) -> list[float]:
    """Return when certain events happened."""
    return [event.at for event in events if of(event)]


def charged(events: list[Event]) -> float:
    """Return the node-hours of all jobs that have ended."""
    return sum(event.node_hours for event in events if isinstance(event, JobEnded))
