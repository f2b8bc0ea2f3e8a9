"""What a device tells of the work on it: memory, its name, and what it waited for.

The only part of measuring that needs torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Final

import torch

from hansa.worker.meter import Meter, Processor, Profile
from hansa.worker.team import Team

Interval = tuple[float, float]
"""Begin and end."""

_LARGEST: Final = frozenset(
    {"memory_peak_bytes", "memory_reserved_bytes", "host_memory_peak_bytes"}
)
"""What of the fullest rank counts."""

_SUMMED: Final = frozenset(
    {
        "tokens",
        "padding",
        "truncated",
        "measured_answers",
        "measured_samples",
        "measured_tokens",
        "measured_padding",
    }
)
"""What of all ranks counts together; of the rest their mean."""

_UNKNOWN: Final = math.inf


def attach(meter: Meter, device: torch.device) -> None:
    """Tell a meter what its rank trains on.

    Args:
        meter: The order's, on this rank.
        device: What a trainer has its model on.
    """
    meter.gauge = Device(device)


class Device:
    """A device of torch; see `hansa.worker.meter.Gauge`.

    Args:
        device: Which.

    Attributes:
        name: As "NVIDIA H100 80GB HBM3", or "cpu".
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._on_host = device.type == "cpu"
        self.name = "cpu"
        if not self._on_host:
            self.name = str(torch.get_device_module(device).get_device_name(device))

    def synchronise(self) -> None:
        """See `Gauge.synchronise`."""
        if not self._on_host:
            torch.get_device_module(self._device).synchronize(self._device)

    def profile(self) -> Profile:
        """See `Gauge.profile`."""
        return TorchProfile(self._device)

    def memory(self) -> dict[str, float]:
        """See `Gauge.memory`: what torch gave to tensors, and what it keeps for more.

        The latter, ``memory_reserved_bytes``, is what is missing when it runs out.
        """
        found = Processor().memory()
        if self._on_host:
            return found
        told = torch.get_device_module(self._device)
        return {
            **found,
            "memory_peak_bytes": float(told.max_memory_allocated(self._device)),
            "memory_reserved_bytes": float(told.max_memory_reserved(self._device)),
        }


class TorchProfile:
    """torch's profiler, read for the communication that no computing hides.

    The same quantity is called exposed communication by Meta's Holistic Trace Analysis:
    the union of the collectives' intervals without the union of those of all else. On a
    GPU the intervals are the device's own records of its kernels. On a processor a
    collective lasts until it is complete, so from its call until the last rank has
    joined and the network is done, and computing is what operators of torch take.

    Args:
        device: What the rank trains on.
    """

    def __init__(self, device: torch.device) -> None:
        from torch import profiler  # noqa: PLC0415 - takes a second, and is rare

        activity = profiler.ProfilerActivity
        wanted = {activity.CPU, getattr(activity, device.type.upper(), activity.CPU)}
        self._on_device = device.type != "cpu"
        self._profile = profiler.profile(activities=wanted & _supported(profiler))

    def start(self) -> None:
        """Begin to watch."""
        self._profile.start()

    def stop(self) -> float | None:
        """Return the seconds that nothing hid; None: the device kept no records."""
        self._profile.stop()
        told: Any = self._profile
        found = list(told.events() or ())
        if self._on_device:
            found = [one for one in found if not _is_of_host(one)]
            if not found:
                return None
        collectives = [_span(one) for one in found if _is_collective(one)]
        computing = [_span(one) for one in found if self._is_computing(one)]
        return exposed(collectives, computing) / 1e6

    def _is_computing(self, event: Any) -> bool:
        if event.is_user_annotation or event.is_async or _is_collective(event):
            return False
        return self._on_device or str(event.name).startswith("aten::")


def _supported(profiler: Any) -> set[Any]:
    return set(profiler.supported_activities())


def _is_of_host(event: Any) -> bool:
    return str(event.device_type.name) == "CPU"


def _is_collective(event: Any) -> bool:
    """Tell a collective by its name: ``nccl…``, RCCL's and oneCCL's kernels, gloo."""
    name = str(event.name).lower()
    return "ccl" in name or name.startswith("gloo:")


def _span(event: Any) -> Interval:
    return float(event.time_range.start), float(event.time_range.end)


def exposed(collectives: Iterable[Interval], computing: Iterable[Interval]) -> float:
    """Return the time in which there are collectives and no computing.

    Args:
        collectives: When each was under way; they may overlap.
        computing: When something was computed, likewise.
    """
    busy = _union(computing)
    found, at = 0.0, 0
    for begin, end in _union(collectives):
        found += end - begin
        while at < len(busy) and busy[at][0] < end:
            low, high = busy[at]
            found -= max(min(high, end) - max(low, begin), 0.0)
            if high > end:
                break  # it hides some of the next one, too
            at += 1
    return found


def _union(intervals: Iterable[Interval]) -> list[Interval]:
    """Return what intervals cover, in order and without overlaps."""
    found: list[Interval] = []
    for begin, end in sorted(intervals):
        if found and begin <= found[-1][1]:
            found[-1] = found[-1][0], max(end, found[-1][1])
        else:
            found.append((begin, end))
    return found


def over_ranks(mine: Mapping[str, float], team: Team) -> dict[str, float]:
    """Return numbers over all ranks: the largest memory, sums of counts, else means.

    A number that some rank does not know is left out. Called on all ranks, with the
    same names but for those that are left out.

    Args:
        mine: This rank's numbers, by name.
        team: The ranks.
    """
    if team.world == 1:
        return {**mine, "ranks": 1.0}
    names = sorted(_NAMES | mine.keys())
    told = [float(mine.get(name, _UNKNOWN)) for name in names]
    summed, largest = (torch.tensor(told, dtype=torch.float64) for _ in range(2))
    torch.distributed.all_reduce(summed, torch.distributed.ReduceOp.SUM)
    torch.distributed.all_reduce(largest, torch.distributed.ReduceOp.MAX)
    found = {"ranks": float(team.world)}
    for name, total, most in zip(names, summed.tolist(), largest.tolist(), strict=True):
        if name in _LARGEST:
            found[name] = most
        else:
            found[name] = total if name in _SUMMED else total / team.world
    return {name: number for name, number in found.items() if number != _UNKNOWN}


_NAMES: Final = frozenset(
    {
        *_LARGEST,
        *_SUMMED,
        "data_s",
        "first_step_s",
        "measured_steps",
        "measured_s",
        "measured_data_s",
        "measured_communication_s",
    }
)
"""All that a rank may know: every rank sends a number for each of them."""
