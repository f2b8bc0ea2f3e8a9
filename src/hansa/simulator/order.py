"""An order at a simulated facility, and how far it has come."""

from __future__ import annotations

from dataclasses import dataclass
from math import floor

from hansa.core.commands import WorkOrder
from hansa.core.ids import job_key
from hansa.simulator.training.base import Vector

ROUNDING = 1e-6
"""A step that lacks less than this share of its time is done."""


@dataclass(slots=True, eq=False)
class Order:
    """One assignment.

    Attributes:
        what: What was asked.
        steps: Optimizer steps in all; 0 for an evaluation.
        trains: Whether it asks for training.
        number: Which job of the assignment is at hand.
        spared: Earlier jobs that don't count as tries.
        base: The version that was bound; None before.
        weights: That version's numbers.
        done: Steps that a checkpoint holds.
        best: Steps that earlier jobs had come to.
        train_s: Seconds in these steps.
        planned: Steps that will be done when the job at hand is through with it.
        pace: Seconds of one of them.
        taken: When the job at hand took it on.
        began: When it began to train, or to evaluate.
        startup_s: What the job at hand needed before its first step.
        hold_s: How long it waited for the word to begin.
        eval_s: How long its own model was measured.
        serial: Number of the facility's training, from 1; for its speed.
        over: Delivered, failed or given up.
        asked: Given up because the server asked for it.
    """

    what: WorkOrder
    steps: int
    trains: bool
    number: int = 1
    spared: int = 0
    base: int | None = None
    weights: Vector | None = None
    done: int = 0
    best: int = 0
    train_s: float = 0.0
    planned: int = 0
    pace: float = 1.0
    taken: float = 0.0
    began: float | None = None
    startup_s: float = 0.0
    hold_s: float = 0.0
    eval_s: float = 0.0
    serial: int = 0
    over: bool = False
    asked: bool = False

    @property
    def key(self) -> str:
        """Id of the job at hand, as ``train-0003-polaris-1.2``."""
        return job_key(self.what.assignment, self.number)

    def steps_after(self, seconds: float) -> int:
        """Return the steps that are done so long after it began."""
        steps = self.done + floor(seconds / self.pace + ROUNDING)
        return max(self.done, min(steps, self.planned))
