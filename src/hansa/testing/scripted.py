"""A facility made of a script: queue waits, speeds, failures, silence.

`ScriptedFacility` is a gateway with a mailbox on a real directory but a queue and
workers that exist only in the event loop's time (see `scripted_queue`). A job binds the
newest version when it starts and delivers an update that adds `drift` to every number
of the model (see `scripted_work.Pull`), so a whole run can be worked out by hand.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from pydantic import BaseModel

from hansa.core.errors import GatewayError, HansaError, PolicyError, SchedulerError
from hansa.core.ids import job_key
from hansa.core.remarks import Remark
from hansa.mailbox.paths import Mailbox
from hansa.scheduler.base import JobState
from hansa.testing import scripted_work
from hansa.testing.scripted_queue import Allocation, Task


class NoOptions(BaseModel):
    """A scripted facility takes none."""


@dataclass(frozen=True, kw_only=True)
class Script:
    """How a facility behaves.

    Attributes:
        queue_s: Seconds that every job waits.
        queues: Seconds that some jobs wait, by job id.
        train_s: Seconds that every order runs.
        trains: Seconds that some orders run, by assignment.
        step_s: Seconds of each step; then an order runs as long as its steps ask.
        drift: What one training adds to each number of the model.
        step_drift: What each of its steps adds.
        rate: Learning rate of plain SGD; 0: another optimizer.
        samples: Samples that one training sees.
        ends: What happens instead of success, by job id (``train-0001-a-1.1``):
            ``crash``, ``refuse`` (a non-transient worker error), ``nan``, ``flip``
            (the update's bytes change), ``base`` (wrong base version), ``shape``;
            half way through: ``preempt``, ``requeue`` (preempted, and back in the
            queue), ``node_fail``, ``delete``; ``stuck`` (runs into the walltime
            without a step).
        held: Seconds for which an administrator holds some jobs, by job id.
        silent: Spans ``(from, to)`` of time in which calls are not answered.
        submit_error: Raised by every submission.
        away: Spans of time in which the scheduler takes no submission.
        line_away: Spans of time in which no file can be moved; see `line_is_away`.
        place_error: Raised when a job is to be queued ahead.
        full_until: The site's own queue limit refuses submissions until this time.
        ill: Spans of time in which a probe tells of a problem.
        blind: Spans of time in which the scheduler knows no job.
        garbled: Replaces these parts of every report, by name.
        deaf_accepts: Submissions whose answer is lost although they are accepted.
        deaf_to_cancel: Whether no request to cancel a job is ever answered.
        pace: Shortest and longest wait between polls that the site asks for.
    """

    queue_s: float = 1.0
    queues: Mapping[str, float] = field(default_factory=dict)
    train_s: float = 10.0
    trains: Mapping[str, float] = field(default_factory=dict)
    step_s: float = 0.0
    drift: float = 1.0
    step_drift: float = 0.0
    rate: float = 0.1
    samples: int = 10
    ends: Mapping[str, str] = field(default_factory=dict)
    held: Mapping[str, float] = field(default_factory=dict)
    silent: tuple[tuple[float, float], ...] = ()
    submit_error: HansaError | None = None
    away: tuple[tuple[float, float], ...] = ()
    line_away: tuple[tuple[float, float], ...] = ()
    place_error: HansaError | None = None
    full_until: float = 0.0
    ill: tuple[tuple[float, float], ...] = ()
    blind: tuple[tuple[float, float], ...] = ()
    garbled: Mapping[str, Any] = field(default_factory=dict)
    deaf_accepts: int = 0
    deaf_to_cancel: bool = False
    pace: tuple[float, float] | None = None


class ScriptedFacility:
    """A gateway to a facility that exists only in a script; see the module's text.

    Args:
        name: Name of the facility.
        root: Real directory for its mailbox.
        script: How it behaves.
        now: Returns the time; the event loop's by default.
    """

    Options: ClassVar[type[BaseModel]] = NoOptions
    timeout = 60.0
    every = 0.0

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
        self.jobs: dict[str, Allocation] = {}
        self.hosts: dict[str, Allocation] = {}
        self.submissions = 0
        self.polls: list[float] = []
        self._run = ""
        self._left: dict[str, float] = {}
        self._deaf = script.deaf_accepts
        self._now = now or (lambda: asyncio.get_running_loop().time())

    def set_clock(self, now: Callable[[], float]) -> None:
        """Take the time from elsewhere, as after a restart of the coordinator."""
        self._now = now

    def line_is_away(self) -> bool:
        """Tell whether files can't be moved now."""
        return _within(self.script.line_away, self._now())

    # The gateway.

    async def call(
        self,
        request: Mapping[str, object],
        timeout: float,  # noqa: ASYNC109 - the protocol's
    ) -> dict[str, Any]:
        """Answer as a site agent would, or fall silent as the script says."""
        data = json.loads(json.dumps(request))
        now = self._now()
        deaf = self.script.deaf_to_cancel and data["op"] == "cancel"
        if deaf or _within(self.script.silent, now):
            await asyncio.sleep(timeout)
            raise GatewayError(f"{self.name} did not answer within {timeout:.0f} s.")
        for job in self.jobs.values():
            job.advance(now)
        self._run = data.get("run", self._run)
        return self._answer(data)

    async def check(self) -> list[Remark]:
        """Say nothing of the way there."""
        return []

    async def close(self) -> None:
        """Nothing to close."""

    def _answer(self, data: dict[str, Any]) -> dict[str, Any]:
        match data["op"]:
            case "probe":
                return self._health()
            case "submit":
                return self._submit(data)
            case "place":
                return self._place(data)
            case "poll":
                return self._poll(data["jobs"])
            case "cancel":
                return {"cancelled": [k for k in data["jobs"] if self._cancel(k)]}
            case "tell":
                words = {"begin": self._begin, "leave": self._leave}
                return {"told": [k for k in data["jobs"] if words[data["word"]](k)]}
            case "read":
                return {"text": "the scripted log"}
            case _:
                return {"removed": [], "collected": data.get("collected", [])}

    def _health(self) -> dict[str, Any]:
        ill = _within(self.script.ill, self._now())
        problems = (
            [{"what": "The mailbox can't be written.", "hint": ""}] if ill else []
        )
        mailbox = str(self.root)
        return {"facility": self.name, "mailbox": mailbox, "problems": problems}

    # Jobs in.

    def _submit(self, data: dict[str, Any]) -> dict[str, Any]:
        if self.script.submit_error is not None:
            raise self.script.submit_error
        if _within(self.script.away, self._now()):
            raise SchedulerError("Slurm does not answer.", transient=True)
        key = job_key(data["order"]["assignment"], data["number"])
        host = self.hosts.get(key)
        if host is None and self._now() < self.script.full_until:
            raise PolicyError("The queue limit is reached.", transient=True)
        found = host is not None
        if host is None:
            self._set_aside(data)
            host = self._take_on(key, data)
        if self._deaf > 0:
            self._deaf -= 1
            raise GatewayError("The answer to a submission was lost.")
        name = "" if host.key == key else host.key
        return {"job": host.id, "name": "", "found": found, "host": name}

    def _take_on(self, key: str, data: dict[str, Any]) -> Allocation:
        kind = data["order"]["kind"]
        task = self._task(key, data)
        hosts = [job for job in self.jobs.values() if job.takes(kind, data["job"])]
        host = min(hosts, key=lambda job: job.rank, default=None)
        if host is None:
            host = self._new_job(key, data["job"])
        host.tasks.append(task)
        host.advance(self._now())
        self.hosts[key] = host
        return host

    def _task(self, key: str, data: dict[str, Any]) -> Task:
        order = data["order"]
        every = self.script.step_s * int(order.get("steps") or 0)
        usual = every or self.script.train_s
        whole = self.script.trains.get(order["assignment"], usual)
        hold = data["job"].get("hold", 0.0) if order["kind"] == "train" else 0.0
        return Task(
            key=key,
            order=order,
            given=self._now(),
            hold_s=float(hold or 0.0),
            train_s=self._left.get(order["assignment"], whole),
            whole_s=whole,
            how=self.script.ends.get(key, "deliver"),
        )

    def _new_job(
        self, key: str, request: dict[str, Any], ahead_s: float | None = None
    ) -> Allocation:
        self.submissions += 1
        now = self._now()
        job = Allocation(
            key=key,
            id=str(len(self.jobs) + 1),
            request=request,
            submitted=now,
            wait_s=self.script.queues.get(key, self.script.queue_s),
            results=self,
            ahead_s=ahead_s,
            held_until=now + self.script.held.get(key, 0.0),
        )
        self.jobs[key] = job
        return job

    def _place(self, data: dict[str, Any]) -> dict[str, Any]:
        if self.script.place_error is not None:
            raise self.script.place_error
        key = job_key(data["assignment"], data["number"])
        found = key in self.jobs
        job = self.jobs.get(key) or self._new_job(key, data["job"], data["wait"])
        return {"job": job.id, "name": "", "found": found}

    def _set_aside(self, data: dict[str, Any]) -> None:
        """Make room for the update of another job, as a site agent does."""
        update = Mailbox(self.root, data["run"]).update(data["order"]["assignment"])
        if update.exists():
            update.rename(update.with_name(f".{update.name}.{data['number']}"))

    # Words to jobs.

    def _cancel(self, key: str) -> bool:
        host = self.hosts.get(key) or self.jobs.get(key)
        if host is None or host.state.final:
            return False
        task = next((task for task in host.tasks if task.key == key), None)
        if task is not None and host.key != key:
            if task.over is None:
                task.phase, task.over = "cancelled", self._now()
                host.cursor = max(host.cursor, self._now())
            return True
        if task is not None and task.phase == "done" and host.linger_s > 0:
            return False
        host.end(JobState.CANCELLED, self._now())
        return True

    def _leave(self, key: str) -> bool:
        job = self.jobs.get(key)
        if job is None or job.state.final:
            return False
        if job.leave_at is None:
            job.leave_at = self._now()
        wanted = any(task.over is None for task in job.tasks)
        if job.state is JobState.QUEUED and not wanted:
            job.end(JobState.CANCELLED, self._now())
        return True

    def _begin(self, key: str) -> bool:
        host = self.hosts.get(key)
        for task in host.tasks if host is not None else ():
            if task.key == key and task.begun is None:
                task.begun = self._now()
                return True
        return False

    # What jobs say.

    def _poll(self, keys: list[str]) -> dict[str, Any]:
        self.polls.append(self._now())
        reply: dict[str, Any] = {"jobs": {key: self._report(key) for key in keys}}
        if self.script.pace is not None:
            first, longest = self.script.pace
            reply["pace"] = {"first": first, "longest": longest}
        return reply

    def _report(self, key: str) -> dict[str, Any]:
        host, now = self.hosts.get(key) or self.jobs.get(key), self._now()
        if host is None:
            return {}
        task = next((task for task in host.tasks if task.key == key), None)
        blind = _within(self.script.blind, now)
        report = {
            "scheduler": None if blind else host.record(now).to_json(),
            "status": host.status(now) if task is None else self._status(host, task),
            "bound": None,
            "update": None,
        }
        if task is not None:
            name = task.order["assignment"]
            manifest = Mailbox(self.root, self._run).update(name) / "manifest.json"
            report["bound"] = None if task.base is None else {"base": task.base}
            if manifest.exists():
                report["update"] = json.loads(manifest.read_text())
        return {**report, **self.script.garbled}

    def _status(self, host: Allocation, task: Task) -> dict[str, Any]:
        lingers = task.phase == "done" and host.state is JobState.RUNNING
        own = host.key == task.key
        return {
            "phase": "lingering" if own and lingers else task.phase,
            "step": task.step(self._now()),
            "steps": task.order.get("steps"),
            "at": self._now(),
            "error": None if task.error is None else task.error.to_json(),
        }

    # Where the orders of an allocation come to (`scripted_queue.Results`).

    def bind(self, order: Mapping[str, Any]) -> int:
        """Return the version that an order binds now."""
        wanted = order["version"]
        newest = Mailbox(self.root, self._run or order["run"]).newest_version()
        return int(wanted) if wanted is not None else newest or 0

    def deliver(self, task: Task) -> None:
        """Write the result of an order."""
        mailbox, base = Mailbox(self.root, task.order["run"]), task.base or 0
        if task.order["kind"] == "evaluate":
            scripted_work.evaluate(mailbox, self.name, task.order, base)
            return
        scripted_work.train(
            mailbox,
            self.name,
            task.order,
            base,
            pull=scripted_work.Pull(
                drift=self.script.drift,
                step_drift=self.script.step_drift,
                rate=self.script.rate,
                samples=self.script.samples,
            ),
            timings={"train_s": task.whole_s, "hold_s": task.held_s},
            how=task.how,
        )

    def broken_off(self, task: Task) -> None:
        """Keep what is left of an order for the next job of it."""
        self._left[task.order["assignment"]] = task.train_s


def _within(spans: tuple[tuple[float, float], ...], now: float) -> bool:
    return any(start <= now < end for start, end in spans)
