"""A stand-in for simulations, quick and known by heart, for tests of comparisons.

The loss of a run is ``exp(-t / tau)`` at its versions, every `STEP_S` seconds. `tau`
depends on the strategy, on whether it is bound late, and on the seed; see `tau_of`.
"""

from __future__ import annotations

import math
import os
import signal
from dataclasses import replace
from pathlib import Path

from hansa.core.errors import SpecError
from hansa.core.rng import uniform
from hansa.simulator.outcome import Measured, Outcome
from hansa.spec.federation import FederationSpec

STEP_S = 600.0
SPEEDS = {"fedavg": 1.0, "fedbuff": 0.6, "fedasync": 0.8, "fedcompass": 0.7}


class Trouble(Exception):
    """Something that no run may raise."""


def tau_of(spec: FederationSpec, seed: int) -> float:
    """Return the time constant in seconds: 1 h, by strategy, queue, mode, lr, luck."""
    simulation = spec.simulation
    late = simulation is not None and simulation.binding == "start"
    first = next(iter(spec.facilities.values()))
    queue = first.simulation.queue if first.simulation else None
    wait = getattr(queue, "median", 600.0) / 600.0
    lr = float(first.work.options["lr"])
    miss = 1.0 + 4.0 * abs(math.log(lr / 0.1))
    luck = 0.9 + 0.2 * uniform("luck", seed)
    speed = SPEEDS.get(spec.strategy.name, 1.0)
    return 3600.0 * speed * wait * (0.5 if late else 1.0) * miss * luck


def simulate(
    spec: FederationSpec,
    *,
    seed: int | None = None,
    target: float | None = None,
    folder: Path | None = None,
) -> Outcome:
    """Return what the run came to; the first facility is refused 13 nodes."""
    first = next(iter(spec.facilities.values()))
    if first.job.nodes == 13:
        raise SpecError("No queue takes 13 nodes.", hint="Ask for fewer.")
    if first.job.nodes == 14 and seed is not None and seed % 2:
        raise Trouble("odd seeds fail")
    seed = spec.seed if seed is None else seed
    end = spec.stop.wall_clock or 36000.0
    tau = tau_of(spec, seed)
    losses = tuple(
        Measured(at_s=k * STEP_S, version=k, loss=math.exp(-k * STEP_S / tau),
                 node_hours=k * 0.5)
        for k in range(int(end // STEP_S) + 1)
    )  # fmt: skip
    met = next((m for m in losses if target is not None and m.loss < target), None)
    names = list(spec.facilities)
    return Outcome(
        strategy=spec.strategy.name,
        seed=seed,
        outcome="done",
        reason="time is up",
        wall_clock_s=end,
        node_hours=losses[-1].node_hours,
        versions=len(losses) - 1,
        losses=losses,
        target_s=met and met.at_s,
        target_node_hours=met and met.node_hours,
        rounds={name: 10 * (k + 1) for k, name in enumerate(names)},
        late=dict.fromkeys(names, 1),
        staleness={0: 6, 1: 3, 4: 1},
        queue_wait_s=dict.fromkeys(names, (60.0, 120.0)),
        events=len(losses),
    )


FEDERATION = """
name: contest
seed: 7
model: {trainer: softmax, source: zeros}
task: digits
strategy: {name: fedavg, quorum: 2}
stop: {wall_clock: 36000}
defaults:
  gateway: {type: local, site: site.yaml}
  mover: posix
  work: {steps: 10, batch: 8, lr: 0.1}
facilities:
  hamburg: {simulation: {queue: {type: lognormal, median: 600}}}
  visby: {linger: 300}
simulation:
  scenarios:
    calm: []
    busy: [facilities.hamburg.simulation.queue.median=1200]
  compare: {strategies: [fedavg, fedbuff], target: 0.5, seeds: 4}
"""


def federation(place: Path, text: str = FEDERATION) -> Path:
    """Write a federation file and return its path."""
    path = place / "contest.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def simulate_and_look(
    spec: FederationSpec,
    *,
    seed: int | None = None,
    target: float | None = None,
    folder: Path | None = None,
) -> Outcome:
    """Do the same; the reason says what this process was born with."""
    deaf = signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    words = f"{os.environ.get('OMP_NUM_THREADS')} thread"
    found = simulate(spec, seed=seed, target=target)
    return replace(found, reason=f"{words}, deaf to Ctrl-C" if deaf else words)


def die(
    spec: FederationSpec,
    *,
    seed: int | None = None,
    target: float | None = None,
    folder: Path | None = None,
) -> Outcome:
    """End the process as if memory had run out."""
    os._exit(9)


def divide(whole: int, by: int) -> int:
    """Work for a process that is easily made to fail."""
    return whole // by
