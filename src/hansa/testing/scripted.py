"""A facility made of a script: queue waits, speeds, failures, silence.

`ScriptedFacility` is a gateway with a mailbox on a real directory but a queue and a
worker that exist only in the event loop's time. A job binds the newest version when
it starts and delivers an update that adds `drift` to every number of the model, so
the sum of a whole run can be worked out by hand.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from pydantic import BaseModel

from hansa.core.errors import GatewayError, HansaError, PolicyError, WorkerError
from hansa.mailbox.paths import Mailbox
from hansa.scheduler.base import JobState, JobStatus
from hansa.store.folder import reader
from hansa.store.manifest import read_version_manifest
from hansa.store.tensorfile import hash_file
from hansa.store.update import Measured, write_evaluation, write_update


class NoOptions(BaseModel):
    """A scripted facility takes none."""


@dataclass(frozen=True, kw_only=True)
class Script:
    """How a facility behaves.

    Attributes:
        queue_s: Seconds that every job waits.
        train_s: Seconds that every job runs.
        drift: What one training adds to each number of the model.
        samples: Samples that one training sees.
        ends: What happens instead of success, by job id (``train-0001-a-1.1``):
            ``crash``, ``refuse`` (a non-transient worker error), ``nan``, ``flip``
            (the update's bytes change), ``base`` (wrong base version), ``shape``.
        silent: Spans ``(from, to)`` of time in which calls are not answered.
        submit_error: Raised by every submission.
        full_until: The site's own queue limit refuses submissions until this time.
        ill: Spans of time in which a probe tells of a problem.
        blind: Spans of time in which the scheduler knows no job.
        garbled: Replaces these parts of every report, by name.
        deaf_accepts: Submissions whose answer is lost although they are accepted.
    """

    queue_s: float = 1.0
    train_s: float = 10.0
    drift: float = 1.0
    samples: int = 10
    ends: Mapping[str, str] = field(default_factory=dict)
    silent: tuple[tuple[float, float], ...] = ()
    submit_error: HansaError | None = None
    full_until: float = 0.0
    ill: tuple[tuple[float, float], ...] = ()
    blind: tuple[tuple[float, float], ...] = ()
    garbled: Mapping[str, Any] = field(default_factory=dict)
    deaf_accepts: int = 0


@dataclass
class _Job:
    name: str
    order: dict[str, Any]
    submitted: float
    started: float | None = None
    ended: float | None = None
    state: JobState = JobState.QUEUED
    base: int | None = None
    error: HansaError | None = None


class ScriptedFacility:
    """A gateway to a facility that exists only in a script; see the module's text.

    Args:
        name: Name of the facility.
        root: Real directory for its mailbox.
        script: How it behaves.
        now: Returns the time; the event loop's by default.
    """

    Options: ClassVar[type[BaseModel]] = NoOptions

    def __init__(
        self,
        name: str,
        root: Path,
        script: Script,
        now: Callable[[], float] | None = None,
    ) -> None:
        self.name = name
        self.root = root
        self.script = script
        self.jobs: dict[str, _Job] = {}
        self.submissions = 0
        self._deaf = script.deaf_accepts
        self._now = now or (lambda: asyncio.get_running_loop().time())

    def set_clock(self, now: Callable[[], float]) -> None:
        """Take the time from elsewhere, as after a restart of the coordinator."""
        self._now = now

    # The gateway.

    async def call(
        self,
        request: Mapping[str, object],
        timeout: float,  # noqa: ASYNC109 - the protocol's
    ) -> dict[str, Any]:
        """Answer as a site agent would, or fall silent as the script says."""
        data = json.loads(json.dumps(request))
        now = self._now()
        if any(start <= now < end for start, end in self.script.silent):
            await asyncio.sleep(timeout)
            raise GatewayError(f"{self.name} did not answer within {timeout:.0f} s.")
        self._advance()
        return self._answer(data)

    async def close(self) -> None:
        """Nothing to close."""

    def _answer(self, data: dict[str, Any]) -> dict[str, Any]:
        match data["op"]:
            case "probe":
                return self._health()
            case "submit":
                return self._submit(data)
            case "poll":
                return {"jobs": {key: self._report(data, key) for key in data["jobs"]}}
            case "cancel":
                return {"cancelled": [k for k in data["jobs"] if self._cancel(k)]}
            case "read":
                return {"text": "the scripted log"}
            case _:
                return {"removed": [], "collected": data.get("collected", [])}

    def _health(self) -> dict[str, Any]:
        ill = any(start <= self._now() < end for start, end in self.script.ill)
        problems = (
            [{"what": "The mailbox can't be written.", "hint": ""}] if ill else []
        )
        mailbox = str(self.root)
        return {"facility": self.name, "mailbox": mailbox, "problems": problems}

    def _submit(self, data: dict[str, Any]) -> dict[str, Any]:
        if self.script.submit_error is not None:
            raise self.script.submit_error
        if self._now() < self.script.full_until:
            raise PolicyError("The queue limit is reached.", transient=True)
        key = f"{data['order']['assignment']}.{data['number']}"
        found = key in self.jobs
        if not found:
            self.submissions += 1
            self._set_aside(data)
            self.jobs[key] = _Job(key, data["order"], self._now())
        if self._deaf > 0:
            self._deaf -= 1
            raise GatewayError("The answer to a submission was lost.")
        return {"job": str(list(self.jobs).index(key) + 1), "found": found}

    def _set_aside(self, data: dict[str, Any]) -> None:
        """Make room for the update of another job, as a site agent does."""
        update = Mailbox(self.root, data["run"]).update(data["order"]["assignment"])
        if update.exists():
            update.rename(update.with_name(f".{update.name}.{data['number']}"))

    def _cancel(self, key: str) -> bool:
        job = self.jobs.get(key)
        if job is None or job.state.final:
            return False
        job.state, job.ended = JobState.CANCELLED, self._now()
        return True

    def _report(self, data: dict[str, Any], key: str) -> dict[str, Any]:
        job = self.jobs.get(key)
        if job is None:
            return {}
        mailbox = Mailbox(self.root, data["run"])
        manifest = mailbox.update(job.order["assignment"]) / "manifest.json"
        status = JobStatus(
            id=str(list(self.jobs).index(key) + 1),
            name=job.name,
            state=job.state,
            submitted=job.submitted,
            started=job.started,
            ended=job.ended,
        )
        now = self._now()
        blind = any(start <= now < end for start, end in self.script.blind)
        report = {
            "scheduler": None if blind else status.to_json(),
            "status": {"phase": "training", "error": _json(job.error)},
            "bound": None if job.base is None else {"base": job.base},
            "update": json.loads(manifest.read_text()) if manifest.exists() else None,
        }
        return {**report, **self.script.garbled}

    # The queue and the worker.

    def _advance(self) -> None:
        """Start and end the jobs whose time has come."""
        now = self._now()
        for key, job in self.jobs.items():
            due = job.submitted + self.script.queue_s
            if job.state is JobState.QUEUED and now >= due:
                job.state, job.started = JobState.RUNNING, due
                self._bind(job)
            if job.state is JobState.RUNNING and now >= due + self.script.train_s:
                job.ended = due + self.script.train_s
                self._end(key, job)

    def _bind(self, job: _Job) -> None:
        wanted = job.order["version"]
        newest = Mailbox(self.root, job.order["run"]).newest_version()
        job.base = newest if wanted is None else int(wanted)

    def _end(self, key: str, job: _Job) -> None:
        how = self.script.ends.get(key, "deliver")
        job.state = JobState.FAILED if how in {"crash", "refuse"} else JobState.DONE
        if how == "refuse":
            job.error = WorkerError("The loss is NaN at step 3.")
        if not job.state.final or job.state is JobState.FAILED:
            return
        if job.order["kind"] == "evaluate":
            self._evaluate(job)
        else:
            self._train(job, how)

    def _evaluate(self, job: _Job) -> None:
        mailbox, base = Mailbox(self.root, job.order["run"]), job.base or 0
        with reader(mailbox.version(base)) as tensors:
            mean = float(np.mean([tensors.read(name).mean() for name in tensors.names]))
        metrics = {"eval_loss": 1.0 / (1.0 + abs(mean))}
        measured = Measured(
            assignment=job.order["assignment"],
            facility=self.name,
            base=base,
            base_sha256=read_version_manifest(mailbox.version(base)).sha256,
            metrics=metrics,
        )
        write_evaluation(mailbox.update(job.order["assignment"]), measured)

    def _train(self, job: _Job, how: str) -> None:
        mailbox, base = Mailbox(self.root, job.order["run"]), job.base or 0
        with reader(mailbox.version(base)) as tensors:
            shapes = {name: tensors.info(name).shape for name in tensors.names}
        if how == "shape":
            shapes = {name: (*shape, 2) for name, shape in shapes.items()}
        measured = Measured(
            assignment=job.order["assignment"],
            facility=self.name,
            base=base + 1 if how == "base" else base,
            base_sha256=read_version_manifest(mailbox.version(base)).sha256,
            steps=int(job.order["steps"]),
            samples=self.script.samples,
            metrics={"eval_loss": 1.0},
            timings={"train_s": self.script.train_s},
        )
        folder = mailbox.update(job.order["assignment"])
        drift = np.float32(self.script.drift)
        pairs = [(n, np.full(s, drift, np.float32)) for n, s in shapes.items()]
        write_update(folder, shapes, pairs, measured, dtype="float32")
        if how in {"flip", "nan"}:
            _spoil(folder, honest=how == "nan")


def _spoil(folder: Path, *, honest: bool) -> None:
    """Make the last number NaN; an `honest` manifest has the new file's hash."""
    (path,) = folder.glob("*.safetensors")
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-4] + np.float32("nan").tobytes())
    if honest:
        manifest = json.loads((folder / "manifest.json").read_text())
        record = hash_file(path)
        manifest["files"][path.name] = {"bytes": record.bytes, "sha256": record.sha256}
        (folder / "manifest.json").write_text(json.dumps(manifest))


def _json(error: HansaError | None) -> dict[str, object] | None:
    return None if error is None else error.to_json()
