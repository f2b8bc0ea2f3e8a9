"""How long a training step takes on a simulated machine."""

from __future__ import annotations

from math import exp

import numpy as np

from hansa.core.rng import derive_seed
from hansa.simulator.level import Level
from hansa.spec.simulation import SpeedSpec

_BLOCK = 256
_PEAK_HOUR = 14.0  # as the queues have it unless they are told otherwise


class Machine:
    """The speed of one facility's jobs.

    ``step = seconds_per_step (reference_nodes / nodes)^nodes_exponent level(t)
    exp(noise z - noise^2 / 2)``, where z is standard normal, drawn once for each order.
    The last factor has mean 1, so `seconds_per_step` stays the mean.

    Args:
        spec: How fast the machine is.
        facility: Its facility's name.
        seed: Seed of the run.
        start_hour: Hour of the day at which the run begins.
    """

    __slots__ = ("_by_nodes", "_draws", "_factors", "_level", "_spec")

    def __init__(
        self, spec: SpeedSpec, facility: str, seed: int, start_hour: float
    ) -> None:
        self._spec = spec
        self._level = Level(
            swing=spec.day_swing,
            peak_hour=_PEAK_HOUR,
            drift_per_day=spec.drift_per_day,
            start_hour=start_hour,
        )
        self._by_nodes: dict[int, float] = {}
        self._draws = np.random.default_rng(derive_seed("speed", seed, facility))
        self._factors: list[float] = []

    def step_seconds(self, at: float, nodes: int, order: int) -> float:
        """Return the seconds of a step.

        Args:
            at: When the order begins, in seconds since the run began.
            nodes: Nodes that work on it.
            order: Running number of the order at this facility, from 0; equal numbers
                have equal noise, whatever the strategy.
        """
        alone = self._by_nodes.get(nodes)
        if alone is None:
            alone = self._by_nodes[nodes] = self._noiseless(nodes)
        seconds = alone * self._level(at)
        if self._spec.noise:
            while order >= len(self._factors):
                self._draw()
            seconds *= self._factors[order]
        return seconds

    def _noiseless(self, nodes: int) -> float:
        spec = self._spec
        share: float = (spec.reference_nodes / nodes) ** spec.nodes_exponent
        return spec.seconds_per_step * share

    def _draw(self) -> None:
        noise = self._spec.noise
        for z in self._draws.standard_normal(_BLOCK).tolist():
            self._factors.append(exp(noise * z - noise * noise / 2.0))
