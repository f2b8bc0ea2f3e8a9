"""Starting a run, taking it up again, and carrying it to its end."""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from hansa.coordinator.core import Coordinator
from hansa.coordinator.folder import RunFolder
from hansa.coordinator.lane import Lane
from hansa.coordinator.replay import replay
from hansa.coordinator.runtime import Runtime, Watcher
from hansa.coordinator.settings import LaneSettings
from hansa.coordinator.setup import initial_request, make_coordinator, make_lanes
from hansa.core.errors import HansaError, StoreError, WorkerError, from_json
from hansa.core.events import Event, RunResumed, RunStarted, VersionPublished
from hansa.journal import Journal, Lease
from hansa.spec.federation import FederationSpec, plan_hash
from hansa.store.atomic import write_json
from hansa.store.versions import Store

log = logging.getLogger(__name__)

TICK_S = 0.5
"""Seconds between looks for an operator's request and writings of the live view."""


@dataclass(frozen=True, slots=True)
class Running:
    """A run that goes on in this process, for displays.

    Attributes:
        core: The core; to be read only.
        lanes: The lanes by facility, with their views.
        clock: Returns the seconds since the run began.
    """

    core: Coordinator
    lanes: Mapping[str, Lane]
    clock: Callable[[], float]


@dataclass(frozen=True, slots=True)
class Variant:
    """What a run does otherwise than its plan says; a bench is such a run.

    Attributes:
        core: Makes the core.
        lane: Changes the settings of a lane.
    """

    core: Callable[[FederationSpec], Coordinator] = make_coordinator
    lane: Callable[[LaneSettings], LaneSettings] = lambda settings: settings


PLANNED = Variant()
"""A run as planned."""


async def carry_out(
    spec: FederationSpec,
    folder: RunFolder,
    *,
    watchers: tuple[Watcher, ...] = (),
    on_running: Callable[[Running], None] = lambda running: None,
    cancel_on_interrupt: bool = False,
    signals: bool = True,
    variant: Variant = PLANNED,
) -> Coordinator:
    """Carry a run to its end, from wherever its journal stands.

    Args:
        spec: The plan; `folder` must have been claimed for it.
        folder: The run's directory.
        watchers: Told of every event.
        on_running: Told once when lanes exist.
        cancel_on_interrupt: Whether Ctrl-C also cancels the jobs in flight.
        signals: Whether Ctrl-C stops this run; else that is for the caller to see to,
            as where several run side by side.
        variant: What it does otherwise than the plan says; the same each time.

    Returns:
        The core in its final state.

    Raises:
        JournalLocked: Another process runs it.
        JournalError: The journal is damaged, or of another course.
        Interrupted: Ctrl-C or `hansa stop`; resumable.
        HansaError: What only a person can mend; resumable.
    """
    with Lease.acquire(folder.lease, time.time()) as lease:
        folder.asked()  # a request to a process that is no more is void
        core = variant.core(spec)
        replay(folder.records(), core)
        if core.outcome:
            return core
        adapters = spec.aggregation.adapters
        store = Store(folder.path, spec.model.dtype, adapters=adapters)
        opening = await _opening(spec, folder, core, store)
        with Journal.open(folder.journal, lease) as journal:
            began = time.time() if core.began is None else core.began
            clock = _clock(max(core.at, time.time() - began))
            keep = spec.keep.versions
            runtime = Runtime(
                core, journal, store, clock=clock, keep=keep, watchers=watchers
            )
            lanes = make_lanes(spec, folder.run, core, store, runtime, variant.lane)
            on_running(Running(core, lanes, clock))
            side = asyncio.create_task(_look_after(folder, lease, lanes, core, runtime))
            if signals:
                on_signals(lambda: runtime.interrupt(cancel_jobs=cancel_on_interrupt))
            try:
                await runtime.run(lanes, opening)
            finally:
                side.cancel()
                with suppress(asyncio.CancelledError):
                    await side
                _write_live(folder, lanes, core)
    return core


def _clock(offset: float) -> Callable[[], float]:
    start = time.monotonic()
    return lambda: offset + time.monotonic() - start


async def _opening(
    spec: FederationSpec, folder: RunFolder, core: Coordinator, store: Store
) -> list[Event]:
    """Return the events that begin this process's part of the run."""
    opening: list[Event] = [RunResumed(at=0.0)]
    if core.newest < 0:
        opening.append(await first_version(spec, folder, store))
    if core.began is None:
        opening[0] = RunStarted(
            at=0.0,
            run=folder.run,
            plan=plan_hash(spec),
            seed=spec.seed,
            facilities=tuple(spec.facilities),
            started=time.time(),
        )
    return opening


async def first_version(
    spec: FederationSpec, folder: RunFolder, store: Store
) -> VersionPublished:
    """Make version 0 if it is not there yet; the same seed makes the same bytes.

    The trainer does it, in a process of its own, so that this one stays free of
    torch.

    Raises:
        WorkerError: The trainer failed; nothing was spent at any facility.
        StoreError: What it made can't be a version.
    """
    started = time.monotonic()
    if store.newest() is None:
        draft = folder.path / ".initial"
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        write_json(draft / "request.json", initial_request(spec))
        await _run_initial(draft)
        await asyncio.to_thread(store.import_initial, draft / "model")
        shutil.rmtree(draft, ignore_errors=True)
    manifest = store.manifest(0)
    return VersionPublished(
        at=0.0,
        version=0,
        sha256=manifest.sha256,
        bytes=manifest.bytes,
        seconds=time.monotonic() - started,
        terms=(),
    )


async def _run_initial(draft: Any) -> None:
    command = [sys.executable, "-m", "hansa.worker", "init"]
    process = await asyncio.create_subprocess_exec(
        *command,
        str(draft / "request.json"),
        str(draft / "model"),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    if process.returncode:
        raise _initial_failure(out.decode(), err.decode())


def _initial_failure(out: str, err: str) -> HansaError:
    for line in reversed(out.strip().splitlines()):
        with suppress(ValueError, TypeError, KeyError):
            return from_json(json.loads(line)["error"])
    tail = " | ".join(err.strip().splitlines()[-3:])
    return WorkerError(
        f"The first version could not be made: {tail or 'no message'}",
        hint="Is the trainer installed here? `hansa plugins` lists what is missing.",
    )


async def _look_after(
    folder: RunFolder,
    lease: Lease,
    lanes: Mapping[str, Lane],
    core: Coordinator,
    runtime: Runtime,
) -> None:
    """Keep the lease alive, take requests, show what goes on."""
    shown: object = None
    try:
        while True:
            lease.ensure()
            request = folder.asked()
            if request is not None:
                runtime.interrupt(cancel_jobs=request == "cancel")
            state = _live(lanes, core)
            if state != shown:
                write_json(folder.live, state)
                shown = state
            await asyncio.sleep(TICK_S)
    except (HansaError, OSError) as error:
        runtime.fail(error)


def _live(lanes: Mapping[str, Lane], core: Coordinator) -> dict[str, Any]:
    return {
        "version": core.newest,
        "outcome": core.outcome,
        "facilities": {name: lane.view.to_json() for name, lane in lanes.items()},
    }


def _write_live(
    folder: RunFolder, lanes: Mapping[str, Lane], core: Coordinator
) -> None:
    try:
        write_json(folder.live, _live(lanes, core))
    except (StoreError, OSError) as error:
        log.warning("The live view could not be written: %s", error)


def on_signals(stop: Callable[[], object]) -> None:
    """Have Ctrl-C, or a request to end, call `stop` in this event loop."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        with suppress(NotImplementedError, RuntimeError, ValueError):
            loop.add_signal_handler(number, stop)
