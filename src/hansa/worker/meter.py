"""Where the time of a training step goes: data, computing, communication.

A step lasts from the end of the one before it to its own end, on this rank; a
checkpoint between them does not count. Its parts add up to it:

* **data**: getting examples and making tokens and tensors of them, by the host's clock;
* **communication**: only what nothing hides, that is the time in which a collective
  is under way, be it the network or another rank that is awaited, and nothing is
  computed (`hansa.worker.exposure`);
* **compute**: all the rest.

Data and tokens are always counted, for two looks at the clock. The rest is measured if
an order asks (`Measure`): some first steps do not count, then some are timed, with no
more than a look at the clock and a wait for the device at both ends, and some last ones
are watched by torch's profiler, which slows them, so their own time does not count.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Protocol

from pydantic import Field

STATUS = Path("/proc/self/status")


@dataclass(frozen=True, kw_only=True, slots=True)
class Measure:
    """What an order wants to have measured: its first steps, the next, the last.

    Attributes:
        warm_up: Steps that do not count: memory is taken, kernels are chosen.
        steps: Steps that are timed.
        profiled: Steps in which communication is told from computing.
    """

    warm_up: Annotated[int, Field(ge=0)]
    steps: Annotated[int, Field(ge=1)]
    profiled: Annotated[int, Field(ge=0)] = 0

    @property
    def bounds(self) -> tuple[int, int, int]:
        """After how many steps each of the three is over."""
        timed = self.warm_up + self.steps
        return self.warm_up, timed, timed + self.profiled


class Profile(Protocol):
    """Watches what this process does, from its start to its stop."""

    def start(self) -> None:
        """Begin to watch."""
        ...

    def stop(self) -> float | None:
        """Return the seconds of communication that nothing hid; None: not known."""
        ...


class Gauge(Protocol):
    """What a rank trains on.

    Attributes:
        name: What its maker calls it.
    """

    name: str

    def synchronise(self) -> None:
        """Return when it has done all that it was given."""
        ...

    def profile(self) -> Profile | None:
        """Return something that can watch it; None: nothing can."""
        ...

    def memory(self) -> dict[str, float]:
        """Return the most memory that this process has used, in bytes.

        ``memory_peak_bytes`` is that of the device, ``host_memory_peak_bytes`` that of
        the process; on a processor they are the same.
        """
        ...


class Processor:
    """The processor, as far as it is known without torch."""

    name = "cpu"

    def synchronise(self) -> None:
        """See `Gauge.synchronise`; it computes at once."""

    def profile(self) -> Profile | None:
        """See `Gauge.profile`."""
        return None

    def memory(self) -> dict[str, float]:
        """See `Gauge.memory`."""
        peak = float(process_peak())
        return {"memory_peak_bytes": peak, "host_memory_peak_bytes": peak}


def process_peak() -> int:
    """Return this process's largest resident size in bytes, by ``VmHWM`` of the kernel.

    What ``getrusage`` says is a process's own only if it never was part of a larger
    one: a child begins with its parent's peak. It is a last resort.
    """
    try:
        lines = STATUS.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        lines = []
    for line in lines:
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@dataclass(slots=True)
class Counts:
    """What was done, and how long it took, over some steps of this rank.

    Attributes:
        steps: Whole steps.
        seconds: Their time together.
        data_s: The part of it for data.
        samples: Examples.
        tokens: Tokens of them, without those that only fill up.
        padding: Those that only fill up.
        answers: Tokens whose prediction is scored.
    """

    steps: int = 0
    seconds: float = 0.0
    data_s: float = 0.0
    samples: int = 0
    tokens: int = 0
    padding: int = 0
    answers: int = 0

    def since(self, before: Counts) -> Counts:
        """Return what has come to these counts since they were as `before`."""
        return Counts(
            steps=self.steps - before.steps,
            seconds=self.seconds - before.seconds,
            data_s=self.data_s - before.data_s,
            samples=self.samples - before.samples,
            tokens=self.tokens - before.tokens,
            padding=self.padding - before.padding,
            answers=self.answers - before.answers,
        )


@dataclass(slots=True)
class Meter:
    """Counts and measures the steps of one rank; see the module's text.

    Attributes:
        measure: What the order asks for; None: nothing but data and tokens.
        clock: Seconds.
        total: Counts of all steps.
        timed: Counts of those that are timed; None until the last of them is done.
        first_s: Seconds of the first step.
        communication_s: Of the profiled steps together; None: not known.
        gauge: What the rank trains on; a trainer with torch says it
            (`hansa.worker.measured.attach`).
    """

    measure: Measure | None = None
    clock: Callable[[], float] = time.perf_counter
    total: Counts = field(default_factory=Counts)
    timed: Counts | None = None
    first_s: float = 0.0
    communication_s: float | None = None
    gauge: Gauge = field(default_factory=Processor)
    _memory: dict[str, float] = field(default_factory=dict)
    _profile: Profile | None = None
    _warm: Counts = field(default_factory=Counts)
    _last_end: float | None = None
    _aside_s: float = 0.0

    @contextmanager
    def data(self) -> Iterator[None]:
        """Count what is done within as time for data."""
        began = self.clock()
        if self._last_end is None:
            self._last_end = began
        try:
            yield
        finally:
            self.total.data_s += self.clock() - began

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Count what is done within (a checkpoint) for no step."""
        began = self.clock()
        try:
            yield
        finally:
            self._aside_s += self.clock() - began

    def count(
        self, *, samples: int = 0, tokens: int = 0, padding: int = 0, answers: int = 0
    ) -> None:
        """Add to what was done; see `Counts`."""
        self.total.samples += samples
        self.total.tokens += tokens
        self.total.padding += padding
        self.total.answers += answers

    @contextmanager
    def step(self) -> Iterator[None]:
        """Hold one step; one that fails does not count."""
        began = self.clock() if self._last_end is None else self._last_end
        done, measure = self.total.steps, self.measure
        if measure is not None and done == measure.warm_up + measure.steps:
            self._begin_profile(measure)
        yield
        if measure is not None and done + 1 in measure.bounds:
            self.gauge.synchronise()
        now = self.clock()
        seconds = max(now - began - self._aside_s, 0.0)
        self._last_end, self._aside_s = now, 0.0
        self.total.steps, self.total.seconds = done + 1, self.total.seconds + seconds
        self.first_s = self.first_s or seconds
        if measure is not None:
            self._pass(measure)

    def _begin_profile(self, measure: Measure) -> None:
        if measure.profiled and (profile := self.gauge.profile()) is not None:
            self._profile = profile
            profile.start()

    def _pass(self, measure: Measure) -> None:
        """Do what is due after as many steps as there were by now."""
        warm, timed, profiled = measure.bounds
        done = self.total.steps
        if done == warm:
            self._warm = replace(self.total)
        if done == timed:
            self.timed = self.total.since(self._warm)
            self._memory = self.gauge.memory()  # without that of a profile
        if done == profiled and self._profile is not None:
            self.communication_s = self._profile.stop()
            self._profile = None

    def numbers(self) -> dict[str, float]:
        """Return this rank's numbers by name, for `hansa.worker.measured.over_ranks`.

        Those that begin with ``measured_`` are of the timed steps together.
        """
        total, timed, measure = self.total, self.timed, self.measure
        if self._profile is not None:  # the order was cut short
            self._profile.stop()
            self._profile = None
        found = {
            "tokens": float(total.tokens),
            "padding": float(total.padding),
            "data_s": total.data_s,
            **(self._memory or self.gauge.memory()),
        }
        if timed is None or measure is None:
            return found
        found |= {
            "first_step_s": self.first_s,
            "measured_steps": float(timed.steps),
            "measured_s": timed.seconds,
            "measured_data_s": timed.data_s,
            "measured_samples": float(timed.samples),
            "measured_tokens": float(timed.tokens),
            "measured_padding": float(timed.padding),
            "measured_answers": float(timed.answers),
        }
        if self.communication_s is not None:
            share = self.communication_s * timed.steps / measure.profiled
            found["measured_communication_s"] = min(
                share, max(timed.seconds - timed.data_s, 0.0)
            )
        return found
