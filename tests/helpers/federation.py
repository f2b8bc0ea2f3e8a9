"""Whole federations on the virtual clock: the real coordinator, lanes, store, mover."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from hansa.coordinator.ahead import AheadSettings
from hansa.coordinator.contact import Contact
from hansa.coordinator.core import Coordinator
from hansa.coordinator.delivery import Delivery
from hansa.coordinator.lane import Lane
from hansa.coordinator.plan import Plan, Stop
from hansa.coordinator.replay import replay
from hansa.coordinator.runtime import Interrupted, Runtime
from hansa.coordinator.settings import LaneSettings
from hansa.coordinator.trouble import When
from hansa.core import plugins
from hansa.core.commands import WorkOrder
from hansa.core.errors import TransferError
from hansa.core.events import Event, RunResumed, RunStarted, VersionPublished
from hansa.core.files import FileRecords
from hansa.journal import Journal, Lease, read
from hansa.mover.base import Moved, Place
from hansa.mover.posix import PosixMover
from hansa.report import summarise
from hansa.report.model import RunSummary
from hansa.site import rpc
from hansa.store.versions import Store
from hansa.strategy.base import StrategyContext
from hansa.testing import virtual_time
from hansa.testing.scripted import Script, ScriptedFacility

RUN = "scenario"
STEPS = 5
"""Steps of an order that names none."""
WALLTIME = 3600.0
SHAPES = {"bias": (3,), "weight": (4, 3)}


@dataclass
class Scenario:
    """A federation that can be run, crashed and resumed in virtual time."""

    root: Path
    scripts: dict[str, Script]
    stop: Stop = field(default_factory=lambda: Stop(rounds=3))
    strategy: str = "fedavg"
    options: dict[str, Any] = field(default_factory=dict)
    patience: float = 600.0
    retries: int = 3
    job: dict[str, Any] = field(default_factory=dict)
    queue_ahead: float = 0.0
    when: When = field(default_factory=When)
    evaluate_every: int = 1
    evaluators: tuple[str, ...] = ()
    trainers: tuple[str, ...] = ()
    keep: int = 3
    clock: Callable[[Any], Any] = virtual_time.run

    def __post_init__(self) -> None:
        self.store = Store(self.root / "server", "float32")
        self.facilities = {
            name: ScriptedFacility(name, self.root / name, script)
            for name, script in self.scripts.items()
        }
        draft = self.root / "draft"
        draft.mkdir(parents=True)
        zeros = {name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()}
        save_file(zeros, draft / "model.safetensors")
        self.version_0 = self.store.import_initial(draft)

    @property
    def journal(self) -> Path:
        return self.root / "server" / "journal.jsonl"

    def fresh_core(self) -> Coordinator:
        names = tuple(self.scripts)
        plan = Plan(
            facilities=names,
            stop=self.stop,
            evaluators=self.evaluators or names,
            evaluate_every=self.evaluate_every,
        )
        kind = plugins.find(plugins.STRATEGIES, self.strategy)
        trainers = self.trainers or names
        context = StrategyContext(
            facilities=trainers,
            steps=dict.fromkeys(trainers, STEPS),
            walltimes=dict.fromkeys(trainers, WALLTIME),
        )
        return Coordinator(plan, kind(kind.Options(**self.options), context))

    def run(
        self,
        until: Callable[[Event], bool] | None = None,
        cancel_at: Callable[[Event], bool] | None = None,
    ) -> Coordinator:
        """Run to the end.

        Or until an event after which the process "dies"; or until one at which an
        operator stops the run and cancels its jobs.
        """
        return self.clock(self._run(until, cancel_at))

    async def _run(
        self,
        until: Callable[[Event], bool] | None,
        cancel_at: Callable[[Event], bool] | None,
    ) -> Coordinator:
        core = self.fresh_core()
        records = list(read(self.journal)) if self.journal.exists() else []
        replay(records, core)
        loop = asyncio.get_running_loop()
        begin = core.at - loop.time()
        self._advance_facilities(begin)
        with (
            Lease.acquire(self.root / "server" / "lease", 0.0) as lease,
            Journal.open(self.journal, lease) as journal,
        ):
            operator = _Operator(cancel_at)
            runtime = Runtime(
                core,
                journal,
                self.store,
                clock=lambda: begin + loop.time(),
                keep=self.keep,
                watchers=(_Reaper(self.journal, until), operator),
            )
            operator.runtime = runtime
            lanes = {name: self._lane(name, core, runtime) for name in self.scripts}
            try:
                await runtime.run(lanes, self._opening(records))
            except Interrupted:
                pass
            except Killed as death:
                # What the orderly shutdown wrote after it, a kill would not have.
                os.truncate(self.journal, death.journal_bytes)
        return core

    def _advance_facilities(self, begin: float) -> None:
        loop = asyncio.get_running_loop()
        for facility in self.facilities.values():
            facility.set_clock(lambda: begin + loop.time())

    def _opening(self, records: Sequence[object]) -> list[Event]:
        if records:
            return [RunResumed(at=0.0)]
        made = self.version_0
        return [
            RunStarted(
                at=0.0,
                run=RUN,
                plan="",
                seed=0,
                facilities=tuple(self.scripts),
                started=0.0,
            ),
            VersionPublished(
                at=0.0,
                version=0,
                sha256=made.sha256,
                bytes=made.bytes,
                seconds=0.0,
                terms=(),
            ),
        ]

    def _lane(self, name: str, core: Coordinator, runtime: Runtime) -> Lane:
        facility = self.facilities[name]
        contact = Contact(name, facility, patience=self.patience)

        async def connect() -> PosixMover:
            health = await contact.call(rpc.probe())
            return _Line(facility, Path(health["mailbox"]))

        delivery = Delivery(
            RUN,
            name,
            connect,
            self.store,
            newest=lambda: core.newest,
            keep=core.needed_versions,
            settled=lambda: core.settled(name),
            staged=lambda: core.staged(name),
        )
        settings = LaneSettings(
            run=RUN,
            facility=name,
            order=lambda order: _order(order, name),
            job={"nodes": 1, "time": WALLTIME, **self.job},
            ahead=AheadSettings(
                wait=self.queue_ahead,
                last=lambda: core.last_ahead(name),
                due=lambda: core.calls_ahead(name) and core.more_to_come,
                newest=lambda: core.newest,
            ),
            when=self.when,
            retries=self.retries,
            patience=self.patience,
        )
        return Lane(settings, contact, delivery, emit=runtime.emit, fail=runtime.fail)

    def model(self, version: int) -> dict[str, np.ndarray]:
        (file,) = self.store.version_dir(version).glob("*.safetensors")
        return load_file(file)

    @property
    def events(self) -> list[Event]:
        return [record.event for record in read(self.journal)]

    def of(self, kind: type) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    def summary(self) -> RunSummary:
        return summarise(self.events)

    def node_hours(self) -> float:
        """What the facilities' own queues charge for all jobs that have run."""
        seconds = 0.0
        for facility in self.facilities.values():
            for job in facility.jobs.values():
                assert job.state.final, f"{job.key} is still there"
                if job.started is not None and job.ended is not None:
                    nodes = int(job.request["nodes"])
                    seconds += nodes * (job.ended - job.started)
        return seconds / 3600.0

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.journal.read_text().splitlines()]


class Killed(BaseException):
    """Stands for a kill -9 of the coordinator, right after an event was handled."""

    def __init__(self, journal_bytes: int) -> None:
        self.journal_bytes = journal_bytes


@dataclass
class _Reaper:
    journal: Path
    until: Callable[[Event], bool] | None

    def on_event(self, event: Event) -> None:
        if self.until is not None and self.until(event):
            raise Killed(self.journal.stat().st_size)


@dataclass
class _Operator:
    cancel_at: Callable[[Event], bool] | None
    runtime: Runtime | None = None

    def on_event(self, event: Event) -> None:
        if self.cancel_at is not None and self.cancel_at(event) and self.runtime:
            self.cancel_at = None
            self.runtime.interrupt(cancel_jobs=True)


class _Line(PosixMover):
    """A data line that is away when the facility's script says so."""

    def __init__(self, facility: ScriptedFacility, mailbox: Path) -> None:
        super().__init__(PosixMover.Options(), Place(mailbox=mailbox))
        self._facility = facility

    async def put(self, source: Path, target: str, files: FileRecords) -> Moved:
        self._check()
        return await super().put(source, target, files)

    async def get(self, source: str, target: Path, files: FileRecords) -> Moved:
        self._check()
        return await super().get(source, target, files)

    def _check(self) -> None:
        if self._facility.line_is_away():
            raise TransferError("ssh can't reach the data mover.")


def _order(order: WorkOrder, facility: str) -> dict[str, Any]:
    return {
        "schema": 1,
        "run": RUN,
        "assignment": order.assignment,
        "kind": order.kind,
        "facility": facility,
        "round": order.round,
        "steps": order.steps or STEPS,
        "version": order.version,
        "first": order.first,
        "lr_scale": order.lr_scale,
        "proximal": order.proximal,
        "control": order.control,
    }
