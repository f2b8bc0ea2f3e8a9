"""How fast a facility trains on one node, on two, on four: jobs that are measured.

The federation's own model, data and `work` are trained for some steps on each number
of nodes, through the facility's own gateway, mover and queue. That is a run of its own
with a journal, so it may be interrupted and taken up again; what came of it goes into
the facility's record.
"""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from hansa.coordinator.core import Coordinator
from hansa.coordinator.folder import RunFolder
from hansa.coordinator.launch import Variant, carry_out
from hansa.coordinator.measurements import Found, results
from hansa.coordinator.plan import Plan, Stop
from hansa.coordinator.runtime import Watcher
from hansa.coordinator.scaling import Scaling
from hansa.coordinator.settings import LaneSettings
from hansa.core.commands import WorkOrder
from hansa.core.errors import UsageError
from hansa.core.events import RunFinished
from hansa.mailbox.files import write_text
from hansa.planner.record import Measurement, ThroughputRecord, read_record
from hansa.spec.federation import (
    EvaluationSpec,
    FederationSpec,
    StopSpec,
    StrategyChoice,
    WorkSpec,
    lock_text,
    plan_hash,
)
from hansa.spec.load import federation_from_text
from hansa.store.atomic import write_json

FOLDER: Final = "throughput"
"""Where in the folder of all runs the studies and their records lie."""

WARM_UP: Final = 3
"""Steps that don't count."""

PROFILED: Final = 3
"""Steps at the end in which communication is told from computing."""

_ASK: Final = "throughput.json"
_SPENT: Final = ("versions", "updates")
"""Folders of a study that nobody needs once its results are in the record."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ask:
    """What is to be measured.

    Attributes:
        nodes: Node counts.
        batches: Examples of a step, over all ranks, for each of them.
        repeats: Measurements of each.
        steps: Steps that are timed.
        warm_up: Steps before them.
        profiled: Steps after them.
        scaling: "weak" or "strong".
        time: Walltime of a job in seconds; None: the plan's.
    """

    nodes: tuple[int, ...]
    batches: tuple[int, ...]
    repeats: int = 1
    steps: int = 20
    warm_up: int = WARM_UP
    profiled: int = PROFILED
    scaling: str = "weak"
    time: float | None = None

    @property
    def all_steps(self) -> int:
        """Steps of an order."""
        return self.warm_up + self.steps + self.profiled

    def batch(self, nodes: int) -> int:
        """Return the examples of a step on so many nodes."""
        return self.batches[self.nodes.index(nodes)]

    def only(self, nodes: Sequence[int]) -> Ask:
        """Return the same for some of the node counts."""
        return replace(
            self, nodes=tuple(nodes), batches=tuple(self.batch(one) for one in nodes)
        )

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Ask:
        """Return what `asdict` and JSON have made of an ask."""
        lists = {key: tuple(data[key]) for key in ("nodes", "batches")}
        return cls(**{**data, **lists})


def batches(
    spec: FederationSpec,
    name: str,
    nodes: Sequence[int],
    *,
    strong: bool = False,
    per_node: int | None = None,
) -> tuple[int, ...]:
    """Return the examples of a step for each node count.

    Args:
        spec: The federation.
        name: The facility.
        nodes: The node counts.
        strong: Whether they stay as in the file; else each node has as many.
        per_node: Examples of each node; None: those that it has in the file.

    Raises:
        UsageError: The file's batch can't be divided by its nodes.
    """
    facility = spec.facilities[name]
    batch, there = int(facility.work.options["batch"]), facility.job.nodes
    if strong:
        return tuple(batch for _ in nodes)
    if per_node is None:
        per_node, rest = divmod(batch, there)
        if rest:
            raise UsageError(
                f"{name}: {batch} examples of a step (work.batch) can't be divided "
                f"by {there} nodes (job.nodes).",
                hint="Say with --batch how many each node is to have.",
            )
    return tuple(per_node * count for count in nodes)


@dataclass(frozen=True, kw_only=True, slots=True)
class Study:
    """One facility of a federation, to be measured.

    Attributes:
        spec: The federation.
        facility: Its name.
        runs: The folder of all runs.
    """

    spec: FederationSpec
    facility: str
    runs: Path

    @property
    def folder(self) -> Path:
        """Where the facility's studies lie."""
        return self.runs / FOLDER / self.facility

    @property
    def record_path(self) -> Path:
        """The file of what was measured."""
        return self.folder / f"{self.spec.name}.json"

    def record(self, scaling: str | None = None) -> ThroughputRecord:
        """Return what was measured of this very workload; without any, an empty one.

        Args:
            scaling: "weak" or "strong"; None: either.

        Raises:
            SpecError: The file can't be read.
        """
        fresh = ThroughputRecord(
            facility=self.facility,
            federation=self.spec.name,
            scaling=scaling or "weak",
            workload=self.workload(),
        )
        try:
            text = self.record_path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return fresh
        found = read_record(text, str(self.record_path))
        same = scaling in (None, found.scaling) and found.workload == fresh.workload
        return found if same else fresh

    def workload(self) -> dict[str, Any]:
        """Return what is trained, as the record has it."""
        one = self.spec.facilities[self.facility]
        work = {key: v for key, v in one.work.options.items() if key != "batch"}
        return {
            "model": self.spec.model.model_dump(mode="json"),
            "task": self.spec.task.model_dump(mode="json"),
            "data": None if one.data is None else list(one.data),
            "work": json.loads(json.dumps(work)),
            "ranks_per_node": one.job.ranks_per_node,
        }

    def missing(self, ask: Ask) -> Ask | None:
        """Return what of an ask is in no record yet; None: all of it is."""
        known = self.record(ask.scaling).measurements
        done = {(m.nodes, m.batch, m.repeat) for m in known}
        rest = [
            count
            for count, batch in zip(ask.nodes, ask.batches, strict=True)
            if any((count, batch, k) not in done for k in range(1, ask.repeats + 1))
        ]
        return ask.only(rest) if rest else None

    def keep(self, more: Sequence[Measurement], scaling: str) -> ThroughputRecord:
        """Add measurements to the record; one of another workload is put aside.

        What is in it stays as it is: of a study whose files were being removed when
        this process was killed, less can be told now.
        """
        known = self.record(scaling)
        there = {(m.nodes, m.repeat, m.batch, m.at) for m in known.measurements}
        record = known.with_(
            [m for m in more if (m.nodes, m.repeat, m.batch, m.at) not in there]
        )
        if self.record_path.exists() and not known.measurements:
            self.record_path.replace(_free(self.record_path))
        self.folder.mkdir(parents=True, exist_ok=True)
        write_text(self.record_path, record.text())
        return record

    def plan(self, ask: Ask) -> FederationSpec:
        """Return the federation of this facility alone, at its largest job."""
        one = self.spec.facilities[self.facility]
        most = max(ask.nodes)
        job = {"nodes": most, "time": one.job.time if ask.time is None else ask.time}
        options = {**one.work.options, "batch": ask.batch(most)}
        work = WorkSpec.model_validate({**options, "steps": ask.all_steps})
        facility = one.model_copy(
            update={
                "job": one.job.model_copy(update=job),
                "work": work,
                "linger": 0.0,
                "queue_ahead": 0.0,
                "simulation": None,
            }
        )
        evaluation = {"on": [self.facility], "local": False}
        plan = self.spec.model_copy(
            update={
                "facilities": {self.facility: facility},
                "strategy": StrategyChoice.model_validate({"name": "fedavg"}),
                "stop": StopSpec(updates=len(ask.nodes) * ask.repeats),
                "evaluation": EvaluationSpec.model_validate(evaluation),
                "start_together": None,
                "simulation": None,
            }
        )
        # As it reads back from a run's folder: with all defaults.
        return federation_from_text(lock_text(plan), name="the plan of the study")

    def unfinished(self) -> tuple[RunFolder, Ask] | None:
        """Return the newest study that was interrupted, if it is of this workload.

        Also one that came to its end but not into the record: its files are there.
        """
        for folder in reversed(self._folders()):
            try:
                text = (folder.path / _ASK).read_text(encoding="utf-8")
            except FileNotFoundError:
                continue
            ask = Ask.from_json(json.loads(text))
            if not folder.lock.is_file() or _is_settled(folder):
                continue
            if plan_hash(folder.spec()) == plan_hash(self.plan(ask)):
                return folder, ask
        return None

    def new(self, ask: Ask) -> RunFolder:
        """Make the folder of a new study."""
        number = len(self._folders()) + 1
        while (path := self.folder / f"{self.spec.name}-throughput-{number}").exists():
            number += 1
        path.mkdir(parents=True)
        write_json(path / _ASK, asdict(ask))
        return RunFolder(path.resolve())

    def _folders(self) -> list[RunFolder]:
        found = self.folder.glob(f"{self.spec.name}-throughput-*")
        numbered = [path for path in found if path.name.rpartition("-")[2].isdigit()]
        numbered.sort(key=lambda path: int(path.name.rpartition("-")[2]))
        return [RunFolder(path.resolve()) for path in numbered]


def _free(path: Path) -> Path:
    number = 1
    while (free := path.with_name(f"{path.stem}.{number}.json")).exists():
        number += 1
    return free


def _is_settled(folder: RunFolder) -> bool:
    """Tell whether a study is over and what it found is in the record."""
    over = any(isinstance(one.event, RunFinished) for one in folder.records())
    return over and not any((folder.path / part).exists() for part in _SPENT)


def measure(
    study: Study,
    ask: Ask,
    folder: RunFolder,
    *,
    watchers: tuple[Watcher, ...] = (),
    cancel_on_interrupt: bool = False,
) -> Found:
    """Carry a study to its end, from wherever its journal stands; keep what it found.

    The journal stays; the model and the updates, which nobody needs, are removed.

    Args:
        study: The facility.
        ask: What to measure; that of the folder.
        folder: Of `Study.new` or `Study.unfinished`.
        watchers: Told of every event.
        cancel_on_interrupt: Whether Ctrl-C also cancels the jobs.

    Raises:
        Interrupted: Ctrl-C; the next call with the folder goes on.
        HansaError: What only a person can mend; likewise.
    """
    plan = study.plan(ask)
    folder.claim(plan)
    work = carry_out(
        plan,
        folder,
        watchers=watchers,
        cancel_on_interrupt=cancel_on_interrupt,
        variant=Variant(core=lambda _: _core(study, ask), lane=lane_of(ask)),
    )
    asyncio.run(work)
    found = results(study.spec, folder)
    if found.measurements:
        study.keep(found.measurements, ask.scaling)
    for part in _SPENT:
        shutil.rmtree(folder.path / part, ignore_errors=True)
    return found


def _core(study: Study, ask: Ask) -> Coordinator:
    """Return a core that aggregates and evaluates nothing."""
    name = study.facility
    plan = Plan(facilities=(name,), stop=Stop(), evaluators=())
    return Coordinator(plan, Scaling(name, ask.nodes, ask.repeats, ask.all_steps))


def lane_of(ask: Ask) -> Callable[[LaneSettings], LaneSettings]:
    """Return what makes each order ask for its own nodes, batch and measuring."""

    def adapted(settings: LaneSettings) -> LaneSettings:
        def order(work: WorkOrder) -> dict[str, Any]:
            told = settings.order(work)
            return {
                **told,
                "work": {**told["work"], "batch": ask.batch(work.round)},
                "measure": {
                    "warm_up": ask.warm_up,
                    "steps": ask.steps,
                    "profiled": ask.profiled,
                },
            }

        return replace(settings, order=order, size=lambda work: {"nodes": work.round})

    return adapted


def read_all(runs: Path, federation: str | None = None) -> list[ThroughputRecord]:
    """Return all records that have a measurement, by facility and federation.

    Args:
        runs: The folder of all runs.
        federation: Only those of one; None: all.

    Raises:
        SpecError: A file can't be read.
    """
    found = []
    for path in sorted((runs / FOLDER).glob("*/*.json")):
        record = read_record(path.read_text(encoding="utf-8"), str(path))
        is_newest = path.stem == record.federation  # older ones have a number
        if record.measurements and is_newest:
            found.append(record)
    return [one for one in found if federation in (None, one.federation)]
