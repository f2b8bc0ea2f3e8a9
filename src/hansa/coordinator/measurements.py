"""From the journal of a scaling study to what was measured in it."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from hansa.coordinator.folder import RunFolder
from hansa.coordinator.memory import shape_of
from hansa.coordinator.scaling import nodes_and_repeat
from hansa.core.events import (
    AssignmentFailed,
    Event,
    FacilityLost,
    JobStarted,
    RunStarted,
    UpdateArrived,
)
from hansa.planner.flops import bf16_peak, flops_per_token
from hansa.planner.record import Measurement
from hansa.planner.shape import ModelShape
from hansa.spec.federation import FederationSpec

log = logging.getLogger(__name__)

_IMPOSSIBLE: Final = "the numbers that the facility tells can't be"

Failed = dict[tuple[int, int], str]
"""By nodes and repeat, why nothing was measured."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """What a study came to.

    Attributes:
        measurements: What was measured.
        failed: What was not.
    """

    measurements: tuple[Measurement, ...]
    failed: Failed


def results(spec: FederationSpec, folder: RunFolder) -> Found:
    """Return what a study's journal and the manifests of its updates tell.

    Args:
        spec: The federation whose workload was measured.
        folder: The study's run.
    """
    events = [record.event for record in folder.records()]
    shape = shape_of(spec, folder.path / "versions" / "0")
    found: list[Measurement] = []
    failed: Failed = {}
    for event in events:
        if isinstance(event, AssignmentFailed):
            failed[nodes_and_repeat(event.assignment)] = event.reason
        if isinstance(event, FacilityLost):
            failed[0, 0] = event.reason
        if not isinstance(event, UpdateArrived):
            continue
        if "measured_steps" not in event.metrics:
            failed[nodes_and_repeat(event.assignment)] = _unmeasured(spec, event)
            continue
        told = _Told(event, _words(folder, event.assignment), events)
        try:
            found.append(told.measurement(shape))
        except (KeyError, ValueError, ArithmeticError) as error:
            log.warning("%s: %r", event.assignment, error)
            failed[nodes_and_repeat(event.assignment)] = _IMPOSSIBLE
    return Found(measurements=tuple(found), failed=failed)


@dataclass(frozen=True, slots=True)
class _Told:
    """All that is told of one order that was measured."""

    update: UpdateArrived
    words: Mapping[str, str]
    events: Sequence[Event]

    def measurement(self, shape: ModelShape | None) -> Measurement:
        metrics, words = self.update.metrics, self.words
        nodes, repeat = nodes_and_repeat(self.update.assignment)
        steps, ranks = metrics["measured_steps"], round(metrics.get("ranks", 1.0))
        flops = self._flops(shape, ranks)
        peak = bf16_peak(words.get("device_name", ""))
        communication = metrics.get("measured_communication_s")
        return Measurement(
            nodes=nodes,
            repeat=repeat,
            ranks=ranks,
            batch=round(metrics["measured_samples"] / steps),
            steps=round(steps),
            sharding=words.get("sharding", ""),
            precision=words.get("precision", ""),
            device=words.get("device", ""),
            device_name=words.get("device_name", ""),
            step_s=metrics["measured_s"] / steps,
            data_s=metrics["measured_data_s"] / steps,
            communication_s=None if communication is None else communication / steps,
            tokens_per_s=self._tokens_per_s(),
            padding=self._padding(),
            memory_bytes=self._bytes("memory_peak_bytes"),
            host_memory_bytes=self._bytes("host_memory_peak_bytes"),
            startup_s=self.update.timings.get("startup_s"),
            first_step_s=metrics.get("first_step_s"),
            flops=flops,
            peak_share=flops / peak if flops is not None and peak else None,
            waited_s=self._waited(),
            at=self._began() + self.update.at,
        )

    def _tokens_per_s(self) -> float | None:
        tokens = self.update.metrics.get("measured_tokens", 0.0)
        return tokens / self.update.metrics["measured_s"] if tokens else None

    def _padding(self) -> float | None:
        metrics = self.update.metrics
        tokens = metrics.get("measured_tokens", 0.0)
        padding = metrics.get("measured_padding", 0.0)
        return padding / (tokens + padding) if tokens else None

    def _flops(self, shape: ModelShape | None, ranks: int) -> float | None:
        metrics, speed = self.update.metrics, self._tokens_per_s()
        if shape is None or speed is None:
            return None
        tokens = metrics["measured_tokens"]
        length = tokens / max(metrics["measured_samples"], 1.0)
        answers = metrics.get("measured_answers", tokens) / tokens
        return flops_per_token(shape, length, answers) * speed / ranks

    def _bytes(self, name: str) -> int | None:
        number = self.update.metrics.get(name)
        return None if number is None else round(number)

    def _waited(self) -> float | None:
        """Return what its last job waited in the queue."""
        waits = [
            event.queue_wait
            for event in self.events
            if isinstance(event, JobStarted)
            and event.assignment == self.update.assignment
        ]
        return waits[-1] if waits else None

    def _began(self) -> float:
        starts = [one.started for one in self.events if isinstance(one, RunStarted)]
        return starts[0] if starts else 0.0


def _words(folder: RunFolder, assignment: str) -> Mapping[str, str]:
    """Return how an order was trained, by the words of its update's manifest."""
    path = folder.path / "updates" / assignment / "manifest.json"
    if not path.is_file():
        return {}
    words = json.loads(path.read_text(encoding="utf-8")).get("training")
    return words if isinstance(words, dict) else {}


def _unmeasured(spec: FederationSpec, event: UpdateArrived) -> str:
    if event.partial:
        return "the job had to stop too early: ask for more with --time"
    return (
        "not all of its steps were timed: it was interrupted, or the trainer "
        f"{spec.model.trainer} can't measure"
    )
