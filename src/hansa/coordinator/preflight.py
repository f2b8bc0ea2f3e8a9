"""What can be known before anything is spent."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hansa
from hansa.coordinator import trial
from hansa.coordinator.findings import FacilityCheck, took_in
from hansa.coordinator.memory import memory_finding, shape_of
from hansa.coordinator.planning import Sizes, sizes_of
from hansa.coordinator.setup import (
    first_order,
    job_request,
    make_gateway,
    make_mover,
    order_form,
)
from hansa.core.errors import HansaError
from hansa.core.remarks import OK, PROBLEM, UNKNOWN, WARNING, Remark
from hansa.core.units import format_size, short_duration
from hansa.gateway.base import Gateway
from hansa.mover.base import Place
from hansa.planner.shape import ModelShape
from hansa.site import rpc
from hansa.spec.federation import FacilitySpec, FederationSpec
from hansa.spec.profiles import NodeFacts, load_profile

CLOCK_S = 60.0
"""A larger difference between two clocks is worth a warning; it is never used."""

_SLACK = 0.9
"""Devices show a little less memory than they are sold with."""

Watch = Callable[[str, str], None]
"""Takes a facility's name and words about what goes on there."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Trials:
    """That a job of a second is to be submitted.

    Attributes:
        patience: Seconds to wait for its end.
        queues: Queue of the trial at a facility, where it is not that of the run.
    """

    patience: float
    queues: Mapping[str, str] = field(default_factory=dict)


def _quiet(facility: str, words: str) -> None:
    del facility, words


async def check_all(
    spec: FederationSpec,
    run: str,
    *,
    trials: Trials | None = None,
    watch: Watch = _quiet,
) -> list[FacilityCheck]:
    """Ask every facility, all at once, whether it could do its part.

    Nothing is written or submitted anywhere, unless trials are asked for: the site
    agent is asked for its health and for the job script that it would submit. One that
    hangs keeps nobody waiting longer than the time a question may take.

    Args:
        spec: The federation.
        run: Id that the run would have.
        trials: Submit a trial job at every facility.
        watch: Told how it goes.
    """
    shape = await asyncio.to_thread(shape_of, spec)
    sizes = await asyncio.to_thread(sizes_of, spec, shape)
    names = list(spec.facilities)
    looks = (_Look(spec, run, name, shape, sizes, trials, watch) for name in names)
    return await asyncio.gather(*(look.carry_out() for look in looks))


@dataclass(frozen=True, slots=True)
class _Look:
    """One facility of a federation, looked at."""

    spec: FederationSpec
    run: str
    name: str
    shape: ModelShape | None
    sizes: Sizes
    trials: Trials | None
    watch: Watch

    async def carry_out(self) -> FacilityCheck:
        check = FacilityCheck(self.name)
        facility = self.spec.facilities[self.name]
        try:
            gateway = make_gateway(facility)
        except HansaError as error:
            _refused(check, "reachable", error)
            return check
        try:
            await self._ask(gateway, check, facility)
        finally:
            await gateway.close()
            self.watch(self.name, "done")
        return check

    async def _ask(
        self, gateway: Gateway, check: FacilityCheck, facility: FacilitySpec
    ) -> None:
        self.watch(self.name, "asking")
        await _add_remarks(check, "endpoint", gateway.check)
        if not await ask_health(gateway, check):
            return
        _block(check, facility)
        await self._look_along(gateway, check, facility)
        await self._would_accept(gateway, check, facility)
        _space(check, self.spec, self.sizes)
        facts = load_profile(facility.profile).node if facility.profile else None
        _said_gpus(check, facts, facility.profile)
        memory_finding(check, self.spec, facility, self.shape)
        if self.trials is None:
            return
        job = _trial_job(facility, self.trials.queues.get(self.name))
        if _too_large(check, facility, str(job["queue"] or "")):
            return
        needs = (f"trainer {self.spec.model.trainer}", f"task {self.spec.task.name}")
        await try_out(
            gateway,
            check,
            job,
            trials=self.trials,
            needs=needs,
            node=facts,
            tell=lambda words: self.watch(self.name, words),
        )

    async def _look_along(
        self, gateway: Gateway, check: FacilityCheck, facility: FacilitySpec
    ) -> None:
        """Look at the way that files take."""

        async def ask(request: Mapping[str, object]) -> dict[str, Any]:
            return await gateway.call(request, gateway.timeout)

        mailbox = Path(str(check.probe.get("mailbox", "")))
        place = Place(mailbox=mailbox, facility=self.name, ask=ask)

        async def look() -> list[Remark]:
            mover = make_mover(facility, place)
            try:
                return await mover.check()
            finally:
                await mover.close()

        await _add_remarks(check, "line", look)

    async def _would_accept(
        self, gateway: Gateway, check: FacilityCheck, facility: FacilitySpec
    ) -> None:
        name = self.name
        whole = order_form(self.spec, self.run, name)(first_order(self.spec, name))
        job = job_request(facility)
        try:
            answer = await gateway.call(
                rpc.submit(self.run, whole, 1, job, dry_run=True), gateway.timeout
            )
        except HansaError as error:
            _refused(check, "job accepted", error)
            return
        check.script = str(answer.get("script", ""))
        queue, account = facility.job.queue, facility.job.account
        where = ", ".join(filter(None, (queue, account)))
        said = str(answer.get("accepted") or "allowed by site.yaml")
        check.add("job accepted", OK, f"{where}: {said}" if where else said)


async def _add_remarks(
    check: FacilityCheck, what: str, look: Callable[[], Awaitable[list[Remark]]]
) -> None:
    """Add what a back end says of the way to a facility."""
    try:
        remarks = await look()
    except HansaError as error:
        _refused(check, what, error)
        return
    for one in remarks:
        check.add_once(one.check, one.state, one.detail, one.hint)


async def ask_health(gateway: Gateway, check: FacilityCheck) -> bool:
    """Ask a site agent how it is; tell whether it answered."""
    before, began = time.time(), time.monotonic()
    try:
        probe = await gateway.call(rpc.probe(), gateway.timeout)
    except HansaError as error:
        _refused(check, "reachable", error)
        return False
    took = time.monotonic() - began
    check.add("reachable", OK, f"in {short_duration(took)}")
    took_in(check, probe)
    _version(check, str(probe.get("hansa", "")))
    _clock(check, probe.get("clock"), before + took / 2)
    return True


async def try_out(
    gateway: Gateway,
    check: FacilityCheck,
    job: Mapping[str, Any],
    *,
    trials: Trials,
    needs: Iterable[str],
    node: NodeFacts | None,
    tell: trial.Tell,
) -> None:
    """Submit a trial job and add what it found.

    Args:
        gateway: The control plane to the facility.
        check: Where to add it.
        job: What the job asks for.
        trials: How long to wait for it.
        needs: Plug-ins that must be importable there, as ``trainer softmax``.
        node: What a node should have; None: not known.
        tell: Told how it goes.
    """
    if check.problems:
        check.add("trial job", UNKNOWN, "not tried")
        return
    try:
        seen = await trial.carry_out(
            gateway,
            str(check.probe.get("facility") or check.facility),
            job,
            patience=trials.patience,
            timeout=gateway.timeout,
            tell=tell,
        )
    except HansaError as error:
        _refused(check, "trial job", error)
        return
    found = check.trial = dict(seen.found)
    check.add("trial job", OK, f"{seen.sentence()}; {trial.size(job)}")
    for problem in found.get("problems", ()):
        what = str(problem["what"])
        topic = "gpus" if "GPU" in what else "mailbox"
        check.add(topic, PROBLEM, what, str(problem.get("hint") or ""))
    _imports(check, found, needs)
    _found_gpus(check, found, node)


def _block(check: FacilityCheck, facility: FacilitySpec) -> None:
    """Tell of jobs that would wait for ever, as nobody brings them into a block."""
    waits = check.probe.get("scheduler") == "block"
    if waits and not facility.gateway.options.get("block"):
        check.add(
            "scheduler",
            PROBLEM,
            "Its jobs run in a block of nodes, and no endpoint is named that has one.",
            "Add `block: {endpoint: UUID, nodes: N}` to its `gateway`, which must be "
            "of type globus_compute; see docs/globus.md.",
        )


def _refused(check: FacilityCheck, what: str, error: HansaError) -> None:
    check.add(what, PROBLEM, error.message, error.hint or "")


def _version(check: FacilityCheck, there: str) -> None:
    if there == hansa.__version__:
        check.add("hansa", OK, there)
        return
    hint = "Install the same version on both sides."
    detail = f"{there or 'unknown'} there, {hansa.__version__} here"
    check.add("hansa", WARNING, detail, hint)


def _clock(check: FacilityCheck, there: object, middle: float) -> None:
    """Compare the facility's clock with ours in the middle of the call."""
    if not isinstance(there, int | float):
        check.add("clock", UNKNOWN, "not told")
        return
    ahead = there - middle
    detail = f"{ahead:+.1f} s"
    if abs(ahead) <= CLOCK_S:
        check.add("clock", OK, detail)
        return
    hint = "Nothing is computed from it, but logs will not match. Is NTP running?"
    check.add("clock", WARNING, detail, hint)


def tell_space(check: FacilityCheck) -> None:
    """Add how much space there is, where nobody knows how much is needed."""
    free = check.probe.get("free_bytes")
    if isinstance(free, int):
        check.add("free space", OK, f"{format_size(free)} free")
    else:
        check.add("free space", UNKNOWN, "not told")


def _space(check: FacilityCheck, spec: FederationSpec, sizes: Sizes) -> None:
    free = check.probe.get("free_bytes")
    if not isinstance(free, int):
        tell_space(check)
        return
    has = f"{format_size(free)} free"
    if sizes.version is None or sizes.update is None:
        note = "the model's size is known once its first version is made"
        check.add("free space", UNKNOWN, f"{has}; {note}")
        return
    keep = spec.keep.versions
    needed = sizes.version * keep + sizes.update
    if free >= needed:
        check.add("free space", OK, f"{has}, {format_size(needed)} needed")
        return
    check.add(
        "free space",
        PROBLEM,
        f"The mailbox has {format_size(free)} free; {keep} versions of "
        f"{format_size(sizes.version)} and an update need {format_size(needed)}.",
        "Free space or raise the quota there, name another `mailbox` in site.yaml, or "
        "lower keep.versions.",
    )


def _said_gpus(
    check: FacilityCheck, facts: NodeFacts | None, profile: str | None
) -> None:
    """Compare what site.yaml says of a node with what the profile does."""
    said = check.probe.get("node")
    if not isinstance(said, Mapping):
        check.add("gpus", UNKNOWN, "not told")
        return
    gpus, memory = int(said.get("gpus") or 0), said.get("gpu_memory")
    shown = _gpus(gpus, memory if isinstance(memory, int) else None)
    if facts is None or (gpus, memory or None) == (facts.visible, facts.gpu_memory):
        check.add("gpus", OK, f"{shown} by site.yaml")
        return
    check.add(
        "gpus",
        WARNING,
        f"site.yaml says {shown}; the profile {profile} says "
        f"{_gpus(facts.visible, facts.gpu_memory)}",
        "Correct `node` in site.yaml, or `profile` in federation.yaml.",
    )


def _gpus(number: int, memory: int | None) -> str:
    if not number:
        return "none"
    return f"{number} x {format_size(memory)}" if memory else str(number)


def _found_gpus(
    check: FacilityCheck, found: Mapping[str, Any], facts: NodeFacts | None
) -> None:
    memories = [int(one.get("memory_bytes") or 0) for one in found.get("gpus", ())]
    shown = _gpus(len(memories), min(memories, default=None))
    if facts is None:
        check.add("gpus", OK, f"{shown} found")
        return
    wanted = _SLACK * (facts.gpu_memory or 0)
    if len(memories) >= facts.visible and all(one >= wanted for one in memories):
        check.add("gpus", OK, f"{shown} found")
        return
    check.add(
        "gpus",
        PROBLEM,
        f"A compute node shows {shown} GPUs; the profile says "
        f"{_gpus(facts.visible, facts.gpu_memory)}.",
        "Do `environment.directives` in site.yaml ask for GPUs of that kind?",
    )


def _imports(
    check: FacilityCheck, found: Mapping[str, Any], needs: Iterable[str]
) -> None:
    failed = dict(found.get("imports_failed") or {})
    missing = [name for name in needs if name in failed]
    for name in missing:
        check.add(
            "environment",
            PROBLEM,
            f"The {name} can't be used in a job: {failed[name]}",
            "Install what it needs where `environment.python` of site.yaml is.",
        )
    if not missing:
        torch = found.get("torch")
        words = f"Python {found.get('python')}, hansa {found.get('hansa')}"
        check.add("environment", OK, f"{words}, torch {torch}" if torch else words)


def _trial_job(facility: FacilitySpec, queue: str | None) -> dict[str, Any]:
    """Return what a trial asks for: one node for a few minutes.

    Args:
        facility: The facility.
        queue: A queue of its own for the trial; reservations are left out there.
    """
    job = job_request(facility)
    if queue is not None:
        job = {**job, "queue": queue, "reservation": None}
    time_s = min(trial.TIME_S, float(job["time"]))
    return {**job, "nodes": 1, "time": time_s, "linger": 0.0, "hold": 0.0}


def _too_large(check: FacilityCheck, facility: FacilitySpec, queue: str) -> bool:
    """Refuse a trial in a queue that takes large jobs only."""
    if facility.profile is None:
        return False
    profile = load_profile(facility.profile)
    known = profile.queue(queue)
    least = (known.least_nodes if known else None) or 1
    if least == 1:
        return False
    small = [one.name for one in profile.queues if (one.least_nodes or 1) == 1]
    check.add(
        "trial job",
        PROBLEM,
        f"The queue {queue} of {facility.profile} takes jobs of {least} nodes at "
        "least, too many for a trial; nothing was submitted.",
        f"Name a queue for the trial with --queue {check.facility}=QUEUE; jobs of one "
        f"node are taken by {', '.join(small) or 'none that the profile knows'}.",
    )
    return True
