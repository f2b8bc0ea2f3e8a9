"""Measures a run's model against others, by jobs at the facilities.

Every model to compare with is trained by a small run of its own, beside the run:
``<run>.local.<facility>`` and ``<run>.central``. Every model, the run's own too, is
measured by a run that trains nothing, ``<run>.<arm>.g<tokens>x<limit>`` in
``<run>/evaluation``: its version 0 is the model. So gateways, movers, retries and
journals are those of any run; data stay where they are, and only numbers come back.
What was interrupted goes on, and what is measured is not measured again.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any, ClassVar

from pydantic import BaseModel

from hansa.coordinator.core import Coordinator
from hansa.coordinator.evaluate_arms import (
    Share,
    all_groups,
    central_plan,
    local_plan,
    measuring_plan,
    shares,
)
from hansa.coordinator.folder import RunFolder
from hansa.coordinator.launch import Variant, carry_out, on_signals
from hansa.coordinator.plan import Stop
from hansa.coordinator.preflight import check_all
from hansa.coordinator.runtime import Interrupted
from hansa.coordinator.scaling import NoOptions
from hansa.coordinator.settings import LaneSettings
from hansa.coordinator.setup import make_plan, make_strategy
from hansa.core import plugins
from hansa.core.commands import Command, WorkOrder
from hansa.core.errors import FacilityError, HansaError, StorageFull, UsageError
from hansa.core.events import (
    AssignmentFailed,
    EvaluationReported,
    Event,
    FacilityLost,
    RunFinished,
)
from hansa.core.scores import scores_by_task
from hansa.report.evaluation import (
    BASE,
    CENTRAL,
    GLOBAL,
    KINDS,
    LOCAL,
    Arm,
    Budget,
    Evaluation,
)
from hansa.spec.federation import FederationSpec
from hansa.store.copies import begin_from
from hansa.store.versions import Store

FOLDER = "evaluation"
"""Where in a run's folder its evaluation lies."""

LIMIT = 16
"""Answers of each task, unless another number is asked for."""

_ALONE = {"sharding": "none", "cpu_offload": False}
"""Options of `work` for one rank, where the trainer has them."""

Tell = Callable[[str], None]
"""Told in words what goes on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What to measure.

    Attributes:
        against: Kinds of models to compare with.
        tokens: Most tokens of an answer.
        limit: Most answers of each task; 0: the loss alone.
    """

    against: tuple[str, ...] = (BASE, LOCAL, CENTRAL)
    tokens: int = 96
    limit: int = LIMIT


def answers_asked(spec: FederationSpec, limit: int | None) -> int:
    """Return how many answers of each task to ask for; 0: the loss alone.

    Args:
        spec: The run's plan.
        limit: What the experimenter wants; None: what is usual.

    Raises:
        UsageError: Answers are wanted of a trainer that generates none.
    """
    if plugins.find(plugins.TRAINERS, spec.model.trainer).generates:
        return LIMIT if limit is None else limit
    if limit:
        raise UsageError(
            f"The trainer {spec.model.trainer} generates no answers.",
            hint="Leave --limit out: the test loss alone is measured.",
        )
    return 0


@dataclass(frozen=True, kw_only=True, slots=True)
class _Model:
    """A model that is, or will be, in a run's store."""

    name: str
    kind: str
    folder: RunFolder
    version: int
    trained_at: tuple[str, ...] = ()
    plan: FederationSpec | None = None
    """How to train it; None: it is there."""


class _Nothing:
    """A strategy of a run that only measures what it begins with."""

    Options: ClassVar[type[BaseModel]] = NoOptions

    def handle(self, event: Event) -> list[Command]:
        """See `hansa.strategy.base.Strategy`."""
        del event
        return []

    def holds(self) -> Sequence[str]:
        """See `hansa.strategy.base.Strategy`."""
        return ()

    def describe(self) -> Mapping[str, Any]:
        """See `hansa.strategy.base.Strategy`."""
        return {}


async def evaluate(folder: RunFolder, settings: Settings, tell: Tell) -> Evaluation:
    """Train what is missing, measure what is not measured, and return all of it.

    Args:
        folder: A run that is over.
        settings: What to measure.
        tell: Told what goes on.

    Raises:
        UsageError: The run is not over, or has made nothing.
        Interrupted: Ctrl-C; the same call goes on where it was.
        StorageFull: The server's disk is full; likewise.
    """
    spec = folder.spec()
    if not _is_over(folder):
        raise UsageError(
            f"{folder.run} is not over yet.",
            hint=f"Continue it with `hansa run --resume {folder.run}`.",
        )
    came = shares(record.event for record in folder.records())
    did = {name: came[name] for name in spec.facilities if name in came}
    work = _Evaluating(folder, spec, did, settings, tell)
    models, left_out = await work.models()
    for name, why in left_out.items():
        tell(f"{name} is left out: {why}")
    results = await _all([work.arm(model) for model in models])
    arms = [one for one in results if isinstance(one, Arm)]
    for model, one in zip(models, results, strict=True):
        if isinstance(one, HansaError):
            left_out[model.name] = f"{one.message} {one.hint or ''}".strip()
    arms.sort(key=lambda arm: KINDS.index(arm.kind))
    return Evaluation(
        run=folder.run,
        model=f"{spec.model.trainer} {spec.model.source}",
        task=spec.task.name,
        task_options=spec.task.options,
        tokens=settings.tokens,
        limit=settings.limit,
        arms=tuple(arms),
        left_out=left_out,
    )


@dataclass(frozen=True, slots=True)
class _Evaluating:
    """One evaluation."""

    folder: RunFolder
    spec: FederationSpec
    shares: Mapping[str, Share]
    settings: Settings
    tell: Tell

    async def models(self) -> tuple[list[_Model], dict[str, str]]:
        """Return the models to measure, and why others are left out."""
        newest = Store(self.folder.path, self.spec.model.dtype).newest() or 0
        if not newest or not self.shares:
            raise UsageError(
                f"{self.folder.run} has made no version, so there is nothing to "
                "evaluate.",
                hint="`hansa report` tells what went wrong.",
            )
        found = [
            _Model(
                name=GLOBAL,
                kind=GLOBAL,
                folder=self.folder,
                version=newest,
                trained_at=tuple(self.shares),
            )
        ]
        left_out: dict[str, str] = {}
        against = self.settings.against
        if BASE in against:
            base = _Model(name=BASE, kind=BASE, folder=self.folder, version=0)
            found.append(base)
        if LOCAL in against:
            found += [self._local(name) for name in self.shares]
            for name in self.spec.facilities.keys() - self.shares.keys():
                left_out[f"{LOCAL} {name}"] = "It delivered nothing in the run."
        if CENTRAL in against:
            try:
                found.append(await self._central(newest))
            except HansaError as error:
                left_out[CENTRAL] = f"{error.message} {error.hint or ''}".strip()
        return found, left_out

    def _local(self, name: str) -> _Model:
        return self._rival(
            f"{LOCAL} {name}",
            self._beside(f"{LOCAL}.{name}"),
            local_plan(self.spec, name, self.shares[name]),
        )

    async def _central(self, rounds: int) -> _Model:
        """Return the central model at the first facility that may read all data."""
        folder = self._beside(CENTRAL)
        begun = folder.journal.is_file()
        plan = folder.spec() if begun else await self._allowed(folder.run, rounds)
        return self._rival(CENTRAL, folder, plan)

    def _rival(self, name: str, folder: RunFolder, plan: FederationSpec) -> _Model:
        return _Model(
            name=name,
            kind=name.partition(" ")[0],
            folder=folder,
            version=plan.stop.rounds or 0,
            trained_at=tuple(plan.facilities),
            plan=plan,
        )

    async def _allowed(self, run: str, rounds: int) -> FederationSpec:
        """Return the central plan that a facility would accept.

        Raises:
            FacilityError: None would.
        """
        groups, refusals = all_groups(self.spec), []
        for name in self.spec.facilities:
            plan = central_plan(self.spec, name, self.shares, rounds)
            (check,) = await check_all(plan, run)
            if not check.problems:
                return plan
            refusals.append(f"{name}: {check.problems[0][0]}")
        raise FacilityError(
            f"No facility may train on all of {', '.join(groups)}. "
            + " ".join(refusals)
        )

    def _beside(self, what: str) -> RunFolder:
        return RunFolder.of(f"{self.folder.run}.{what}", self.folder.path.parent)

    async def arm(self, model: _Model) -> Arm:
        """Train a model if it is not there, measure it, and return what came out."""
        if model.plan is not None:
            await self._train(model, model.plan)
        reported = await self._measure(model)
        source = Store(model.folder.path, self.spec.model.dtype)
        self.tell(f"{model.name}: measured by {reported.facility}")
        return Arm(
            name=model.name,
            kind=model.kind,
            run=model.folder.run,
            version=model.version,
            sha256=source.manifest(model.version).sha256,
            trained_at=model.trained_at,
            measured_at=reported.facility,
            budget=None if model.kind == BASE else self._budget(model),
            losses=reported.losses,
            scores=scores_by_task(reported.metrics),
        )

    def _budget(self, model: _Model) -> Budget:
        events = (record.event for record in model.folder.records())
        total = reduce(add, shares(events).values())
        return Budget(
            rounds=model.version,
            steps=total.steps,
            samples=total.samples,
            seed=self.spec.seed,
        )

    async def _train(self, model: _Model, plan: FederationSpec) -> None:
        """Train a model by a run of its own, from the run's own version 0.

        Raises:
            FacilityError: It did not come to its last version.
        """
        folder = model.folder
        folder.claim(plan)
        begin_from(folder.path, self.folder.path, 0)
        if not _is_over(folder):
            self.tell(f"{model.name}: {folder.run} trains at {model.trained_at[0]}")
        variant = Variant(core=_unmeasured)
        core = await carry_out(plan, folder, signals=False, variant=variant)
        if core.newest < model.version:
            raise FacilityError(
                f"{folder.run} ended at version {core.newest} of {model.version}: "
                f"{core.reason}",
                hint=f"Remove {folder.path} to train it anew.",
            )

    async def _measure(self, model: _Model) -> EvaluationReported:
        """Return what a facility has measured; ask for it if nobody did.

        Raises:
            FacilityError: None of those that may evaluate could.
        """
        folder, plan = self._place(model), measuring_plan(self.spec)
        found, why = _outcome(folder)
        if found is None and why:
            _remove(folder.path)  # it failed; nothing in it is of use
        if found is None:
            folder.claim(plan)
        # Refuses a folder in which another model was measured.
        begin_from(folder.path, model.folder.path, model.version)
        if found is None:
            self.tell(f"{model.name}: version {model.version} is measured")
            variant = Variant(core=_measuring, lane=self._lane)
            await carry_out(plan, folder, signals=False, variant=variant)
            found, why = _outcome(folder)
        if found is None:
            raise FacilityError(f"No facility could measure it. {why}")
        if not found.losses:
            raise FacilityError(
                f"{found.facility} has told no test loss by task.",
                hint=f"Remove {folder.path} to measure it anew.",
            )
        return found

    def _place(self, model: _Model) -> RunFolder:
        asked = f"g{self.settings.tokens}x{self.settings.limit}"
        asked = asked if self.settings.limit else "loss"
        run = f"{self.folder.run}.{model.name.replace(' ', '.')}.{asked}"
        return RunFolder.of(run, self.folder.path / FOLDER)

    def _lane(self, settings: LaneSettings) -> LaneSettings:
        """Have orders ask for answers, which one rank generates."""
        if not self.settings.limit:
            return settings
        asked = {"tokens": self.settings.tokens, "limit": self.settings.limit}

        def order(work: WorkOrder) -> dict[str, Any]:
            told = settings.order(work)
            alone = {k: v for k, v in _ALONE.items() if k in told["work"]}
            return {**told, "work": {**told["work"], **alone}, "generate": asked}

        def size(work: WorkOrder) -> Mapping[str, Any]:
            return {**settings.size(work), "nodes": 1, "ranks_per_node": 1}

        return replace(settings, order=order, size=size)


def _remove(path: Path) -> None:
    """Remove a folder, all of it or nothing: half a run could not be taken up."""
    aside = path.with_name(f".{path.name}.removed")
    shutil.rmtree(aside, ignore_errors=True)
    path.rename(aside)
    shutil.rmtree(aside)


def _is_over(folder: RunFolder) -> bool:
    return any(isinstance(one.event, RunFinished) for one in folder.records())


def _unmeasured(spec: FederationSpec) -> Coordinator:
    plan = replace(make_plan(spec), evaluators=())
    return Coordinator(plan, make_strategy(spec))


def _measuring(spec: FederationSpec) -> Coordinator:
    return Coordinator(replace(make_plan(spec), stop=Stop(rounds=0)), _Nothing())


def _outcome(folder: RunFolder) -> tuple[EvaluationReported | None, str]:
    """Return what a measuring run has found, or why it ended without."""
    reasons: list[str] = []
    over = False
    for record in folder.records():
        match record.event:
            case EvaluationReported() as found:
                return found, ""
            case AssignmentFailed() | FacilityLost() as trouble:
                reasons.append(f"{trouble.facility}: {trouble.reason}")
            case RunFinished():
                over = True
            case _:
                pass
    return None, (" ".join(reasons) or "Nobody may evaluate.") if over else ""


async def _all(works: Iterable[Awaitable[Arm]]) -> list[Arm | HansaError]:
    """Do everything at once; one failure does not keep the others from ending.

    Raises:
        Interrupted: Somebody asked to stop; the others stop, too.
        StorageFull: The server's disk is full; likewise.
    """
    tasks = [asyncio.ensure_future(_guarded(work)) for work in works]
    everything = asyncio.gather(*tasks)
    on_signals(everything.cancel)
    try:
        return await everything
    except asyncio.CancelledError:
        raise Interrupted("The evaluation was asked to stop.") from None
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _guarded(work: Awaitable[Arm]) -> Arm | HansaError:
    try:
        return await work
    except (Interrupted, StorageFull):
        raise
    except HansaError as error:
        return error
