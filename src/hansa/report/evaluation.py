"""Several models on the same held-out examples: what was measured, and its tables."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain
from math import isfinite
from statistics import fmean
from typing import Any

from hansa.core.scores import ANSWERS
from hansa.report.tables import NONE, Table, loss

GLOBAL, BASE, LOCAL, CENTRAL = "global", "base", "local", "central"
"""The kinds of models: of the run; its version 0; trained at one facility alone;
trained at one facility on the data of all."""

KINDS = (BASE, LOCAL, CENTRAL, GLOBAL)
"""In the order in which they are shown."""

_ERRORS = frozenset({"rmse"})
"""Scores of which less is better."""

_ORDER = ("exact", "accuracy", "rmse", "formula", "valid")
"""Scores in the order in which they are shown; others follow by name."""

_MEAN = "mean"


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """What a model was trained with, as the journal has it.

    Attributes:
        rounds: Versions that were made.
        steps: Optimizer steps, of all facilities together.
        samples: Training examples that they saw, repeated ones again.
        seed: Seed of everything that was drawn.
    """

    rounds: int
    steps: int
    samples: int
    seed: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Arm:
    """One model, measured.

    Attributes:
        name: ``global``, ``base``, ``central`` or ``local FACILITY``.
        kind: One of `KINDS`.
        run: Id of the run that made it.
        version: Its number there.
        sha256: Hash of the model.
        trained_at: Facilities that trained it.
        measured_at: Facility whose job has measured it.
        budget: What it was trained with; None for the base.
        losses: Test loss by task.
        scores: What its answers score, by task and name.
    """

    name: str
    kind: str
    run: str
    version: int
    sha256: str
    trained_at: tuple[str, ...]
    measured_at: str
    budget: Budget | None
    losses: Mapping[str, float]
    scores: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """All models of one evaluation.

    Attributes:
        run: Id of the run that is evaluated.
        model: Trainer and source of the model.
        task: Name of the task.
        task_options: Its options; test limits are among them.
        tokens: Most tokens of an answer.
        limit: Most answers of each task; 0: the loss alone was measured.
        arms: The models, in the order of `KINDS`.
        left_out: Why a model is missing, by its name.
    """

    run: str
    model: str
    task: str
    task_options: Mapping[str, Any]
    tokens: int
    limit: int
    arms: tuple[Arm, ...]
    left_out: Mapping[str, str] = field(default_factory=dict)

    def of(self, kind: str) -> list[Arm]:
        """Return the models of a kind."""
        return [arm for arm in self.arms if arm.kind == kind]

    @property
    def tasks(self) -> list[str]:
        """The tasks that every model has a loss of, sorted."""
        sets = [set(arm.losses) for arm in self.arms]
        return sorted(set.intersection(*sets)) if sets else []

    def mean_loss(self, arm: Arm) -> float:
        """Return a model's mean test loss over the tasks that all models have."""
        return fmean(arm.losses[task] for task in self.tasks or arm.losses)

    @property
    def places(self) -> list[str]:
        """The facilities that have measured, sorted."""
        return sorted({arm.measured_at for arm in self.arms})

    def to_json(self) -> dict[str, Any]:
        """Return all of it, with the means, as plain data."""
        arms = [asdict(arm) | {"mean_loss": self.mean_loss(arm)} for arm in self.arms]
        return {"schema": 1, **asdict(self), "arms": arms, "verdict": verdict(self)}


def verdict(found: Evaluation) -> str:
    """Say how the global model's mean test loss compares with the others'."""
    own = next(iter(found.of(GLOBAL)), None)
    if own is None:
        return "The global model was not measured."
    mean = found.mean_loss
    parts = [f"The global model's mean test loss is {loss(mean(own))}"]
    parts += [f"the base model's {loss(mean(arm))}" for arm in found.of(BASE)]
    local = found.of(LOCAL)
    if local:
        best = min(local, key=mean)
        better = sum(mean(own) < mean(arm) for arm in local)
        parts.append(
            f"the best local model's {loss(mean(best))} ({best.name}; the global "
            f"one is better than {better} of {len(local)})"
        )
    parts += [f"the central model's {loss(mean(arm))}" for arm in found.of(CENTRAL)]
    return ", ".join(parts) + "." + _apart(found)


def _apart(found: Evaluation) -> str:
    """Say that models were measured at several facilities, if they were."""
    if len(found.places) < 2:
        return ""
    where = (f"{arm.name} at {arm.measured_at}" for arm in found.arms)
    return (
        f" They were not all measured at one facility ({', '.join(where)}), so their "
        "test examples may differ."
    )


def loss_table(found: Evaluation) -> Table:
    """Return the test loss by task and model; the mean over tasks comes last."""
    rows = [
        (task, *(loss(arm.losses[task]) for arm in found.arms)) for task in found.tasks
    ]
    mean = (_MEAN, *(loss(found.mean_loss(arm)) for arm in found.arms))
    return Table(
        title="Test loss",
        columns=("task", *(arm.name for arm in found.arms)),
        rows=(*rows, mean),
        left=frozenset({"task"}),
    )


def scores_table(found: Evaluation) -> Table | None:
    """Return what the answers score, by task, score and model; None without any."""
    rows: list[tuple[str, ...]] = []
    for task in sorted({task for arm in found.arms for task in arm.scores}):
        by_arm = [arm.scores.get(task, {}) for arm in found.arms]
        names = sorted({*chain(*by_arm)} - {ANSWERS}, key=_place)
        asked = max((int(one.get(ANSWERS, 0)) for one in by_arm), default=0)
        for place, name in enumerate(names):
            shown = [_number(name, one.get(name)) for one in by_arm]
            first = (task, str(asked)) if place == 0 else ("", "")
            rows.append((*first, name, *shown))
    if not rows:
        return None
    return Table(
        title="Generated answers",
        columns=("task", "answers", "score", *(arm.name for arm in found.arms)),
        rows=tuple(rows),
        left=frozenset({"task", "score"}),
    )


def budgets_table(found: Evaluation) -> Table:
    """Return what each model was trained with."""
    rows = [_budget(arm) for arm in found.arms]
    return Table(
        title="Budgets",
        columns=("model", "trained at", "rounds", "steps", "samples", "seed", "run"),
        rows=tuple(rows),
        left=frozenset({"model", "trained at", "run"}),
    )


def tables(found: Evaluation) -> list[Table]:
    """Return all tables, the most important first."""
    scores = scores_table(found)
    return [loss_table(found), *([scores] if scores else []), budgets_table(found)]


def markdown(found: Evaluation) -> str:
    """Return the evaluation as a page in Markdown."""
    asked = (
        f"Greedy answers of at most {found.tokens} tokens, {found.limit} of each task."
        if found.limit
        else "Test loss alone."
    )
    head = [
        f"# Evaluation of {found.run}",
        f"{found.model}; task {found.task}, {dict(found.task_options)}. {asked}",
        verdict(found),
    ]
    left_out = [
        _plain(f"Not measured: {who}: {why}") for who, why in found.left_out.items()
    ]
    body = [f"## {table.title}\n\n{markdown_table(table)}" for table in tables(found)]
    return "\n\n".join([*head, *left_out, *body]) + "\n"


def markdown_table(table: Table) -> str:
    """Return a table in Markdown."""
    sides = [":--" if table.is_left(i) else "--:" for i in range(len(table.columns))]
    lines: list[Sequence[str]] = [table.columns, sides, *table.rows]
    return "\n".join(f"| {' | '.join(_plain(cell) for cell in row)} |" for row in lines)


def _plain(words: str) -> str:
    """Return words, which may be a facility's, without a meaning in Markdown."""
    return re.sub(r"([\\`*\[\]|<&])", r"\\\1", " ".join(words.split()))


def _budget(arm: Arm) -> tuple[str, ...]:
    budget = arm.budget
    used = (
        (NONE,) * 4
        if budget is None
        else (
            str(budget.rounds),
            f"{budget.steps:,}",
            f"{budget.samples:,}",
            str(budget.seed),
        )
    )
    return (arm.name, ", ".join(arm.trained_at) or NONE, *used, arm.run)


def _place(score: str) -> tuple[int, str]:
    return (_ORDER.index(score) if score in _ORDER else len(_ORDER), score)


def _number(name: str, value: float | None) -> str:
    if value is None or not isfinite(value):
        return NONE
    return f"{value:.3g}" if name in _ERRORS else f"{value:.2f}"
