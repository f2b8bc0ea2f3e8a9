"""A mailbox and the facility's folder beside it, with jobs of digits and softmax."""

from __future__ import annotations

import atexit
import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from hansa.mailbox.handover import Handover, take
from hansa.mailbox.paths import Mailbox
from hansa.mailbox.state import JobNotes, State
from hansa.store.folder import reader
from hansa.store.manifest import UpdateManifest, read_update_manifest
from hansa.store.versions import Store
from hansa.worker.base import Correction, Example
from hansa.worker.initial import Request, write_initial
from hansa.worker.job import Job, Order
from hansa.worker.loading import batches_of, build_task, build_trainer
from hansa.worker.trainers.softmax import Softmax
from hansa.worker.waiting import Clock

MODEL = {"trainer": "softmax", "source": "normal", "dtype": "float32", "options": {}}
TASK = {"name": "digits", "options": {"parts": 2, "alpha": 1.0}}
FIRST = "train-0001-a-1"
NO_ORDER = {"none": True}


@cache
def made(seed: int) -> Path:
    """Return a version 0, made once by `init` and the store."""
    request = {"model": MODEL, "task": TASK, "seed": seed}
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder)
    write_initial(Request.model_validate(request), folder / "made")
    store = Store(folder / "run", "float32")
    store.import_initial(folder / "made")
    return store.version_dir(0)


@dataclass
class Place:
    """A mailbox with version 0, and the jobs that a test makes there."""

    root: Path

    @property
    def mailbox(self) -> Mailbox:
        return Mailbox(self.root, "run")

    def publish(self, version: int, seed: int) -> Path:
        return self._copied(self.mailbox.version(version), version, seed)

    def state(self, ref: str, seed: int) -> Path:
        """Put a stored state there; its numbers are those of a version 0."""
        target = self.mailbox.state(ref)
        return self._copied(target, int(target.name), seed)

    def _copied(self, target: Path, version: int, seed: int) -> Path:
        shutil.copytree(made(seed), target)
        manifest = target / "manifest.json"
        data = json.loads(manifest.read_text())
        manifest.write_text(json.dumps({**data, "version": version}))
        return target

    def job(
        self,
        number: int = 1,
        assignment: str = FIRST,
        order: dict[str, Any] | None = None,
        **fields: Any,
    ) -> Path:
        files, notes = (
            self.mailbox.job(assignment, number),
            self.notes(number, assignment),
        )
        files.path.mkdir(parents=True, exist_ok=True)
        content = {
            "schema": 1,
            "order": {
                "schema": 1,
                "run": "run",
                "assignment": assignment,
                "kind": assignment.partition("-")[0],
                "facility": "a",
                "round": 1,
                "steps": 6,
                "version": None,
                "seed": 3,
                "model": MODEL,
                "task": TASK,
                "work": {"batch": 16, "lr": 0.5, "momentum": 0.9},
                "update": {"dtype": "float32"},
                "evaluate": True,
                **(order or {}),
            },
            "key": f"{assignment}.{number}",
            "number": number,
            "facility": "a",
            "mailbox": str(self.mailbox.path),
            "job_dir": str(files.path),
            "state_dir": str(notes.path),
            "task": {
                **TASK,
                "source": None,
                "splits": ["part-0"],
                "test_splits": None,
                "cache": str(self.root / "cache"),
            },
            "heartbeat_s": 3600.0,
            "checkpoint_s": 3600.0,
            **fields,
        }
        if order == NO_ORDER:
            content["order"] = None
        notes.path.mkdir(parents=True, exist_ok=True)
        notes.job.write_text(json.dumps(content))
        return notes.job

    def ahead(self, **fields: Any) -> Path:
        """Make the job of an allocation without an order."""
        return self.job(assignment="ahead-0001-a-1", order=NO_ORDER, **fields)

    def notes(self, number: int = 1, assignment: str = FIRST) -> JobNotes:
        return State(self.root.parent / "state", "run").job(assignment, number)

    def hand(self, host: Path, number: int, order: Path) -> bool:
        """Hand an order to an allocation, as the site agent does."""
        digest = hashlib.sha256(order.read_bytes()).hexdigest()
        entry = Handover(order.parent.name, order, digest)
        return take(JobNotes(host.parent), number, entry)

    def phase(self, number: int = 1, assignment: str = FIRST) -> Any:
        return self.status(number, assignment)["phase"]

    def status(self, number: int = 1, assignment: str = FIRST) -> Any:
        return json.loads(self.mailbox.job(assignment, number).status.read_text())

    def bound(self, number: int = 1, assignment: str = FIRST) -> Any:
        return json.loads(self.mailbox.job(assignment, number).bound.read_text())

    def update(self, assignment: str = FIRST) -> UpdateManifest:
        return read_update_manifest(self.mailbox.update(assignment))

    def tensors(self, directory: Path) -> dict[str, Any]:
        with reader(directory) as folder:
            return {name: folder.read(name) for name in folder.names}


def read_job(path: Path) -> Job:
    return Job.model_validate_json(path.read_text())


def on_step(
    monkeypatch: pytest.MonkeyPatch, act: Callable[[int, float], float]
) -> None:
    """Let `act(number of the call, loss)` replace the loss of every step."""
    original, calls = Softmax.step, [0]

    def step(self: Softmax, batch: Sequence[Example]) -> float:
        calls[0] += 1
        return act(calls[0], original(self, batch))

    monkeypatch.setattr(Softmax, "step", step)


def trained(place: Place, path: Path, steps: int) -> Softmax:
    """Do the job's steps by hand, over the batches it must have seen."""
    job = read_job(path)
    trainer = build_trainer(job, place.mailbox.version(0))
    trainer.load(place.tensors(place.mailbox.version(0)).__getitem__)
    trainer.correct(asked(place, job.order))
    batches = batches_of(job, build_task(job))
    for step in range(steps):
        trainer.step(batches[step])
    assert isinstance(trainer, Softmax)
    return trainer


def asked(place: Place, order: Order) -> Correction:
    """Return what an order says of the steps."""
    state = place.tensors(place.mailbox.state(order.control)) if order.control else None
    return Correction(
        lr_scale=order.lr_scale,
        proximal=order.proximal,
        control=state.__getitem__ if state else None,
    )


def same_bits(place: Place, path: Path, assignment: str = FIRST) -> None:
    """Compare the update with the job's steps, done by hand without a break."""
    base = place.tensors(place.mailbox.version(0))
    deltas = place.tensors(place.mailbox.update(assignment))
    for name, value in trained(place, path, 6).tensors():
        assert (value - base[name]).tobytes() == deltas[name].tobytes(), name


class Story:
    """A clock that only sleeping moves; what is planned happens on the way.

    A test that sleeps on for a day of it has got stuck.
    """

    def __init__(self, begin: float = 1000.0) -> None:
        self.time = begin
        self._plan: list[tuple[float, Callable[[], object]]] = []

    def at(self, seconds: float, act: Callable[[], object]) -> None:
        """Plan something for so many seconds from now."""
        self._plan.append((self.time + seconds, act))
        self._plan.sort(key=lambda item: item[0])

    def sleep(self, seconds: float) -> None:
        self.time += seconds
        assert self.time < 1000.0 + 86400.0
        while self._plan and self._plan[0][0] <= self.time:
            self._plan.pop(0)[1]()

    @property
    def clock(self) -> Clock:
        return Clock(lambda: self.time, self.sleep)
