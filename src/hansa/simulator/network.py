"""Transfers over the lines between the server and the facilities."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from math import inf

from hansa.simulator.heap import Due, Heap
from hansa.spec.simulation import LinkSpec

Done = Callable[[float], None]


class _Line:
    """One facility's line, and how many transfers move on it."""

    __slots__ = ("bandwidth", "latency", "moving")

    def __init__(self, spec: LinkSpec) -> None:
        self.latency = spec.latency
        self.bandwidth = float(spec.bandwidth)
        self.moving = 0


class _Transfer:
    """Bytes on their way; `left` is what was to come at `since`, when `rate` began."""

    __slots__ = ("done", "end", "left", "line", "rate", "sent", "since")

    def __init__(self, line: _Line, left: float, sent: float, done: Done) -> None:
        self.line = line
        self.left = left
        self.sent = sent
        self.done = done
        self.since = sent
        self.rate = 0.0
        self.end = inf


class _Pool:
    """Lines that share a limit: the server's bandwidth, or none for a line alone."""

    __slots__ = ("_due", "_expected", "_heap", "_limit", "_lines", "_moving")

    def __init__(self, heap: Heap, lines: list[_Line], limit: float) -> None:
        self._heap = heap
        self._lines = lines
        self._limit = limit
        self._moving: list[_Transfer] = []
        self._expected = 0  # transfers whose first byte is still to come
        self._due: Due | None = None

    def send(self, transfer: _Transfer) -> None:
        """Begin a transfer; alone here, it costs one call of the heap."""
        if not self._moving and not self._expected:
            line = transfer.line
            line.moving = 1
            transfer.since = transfer.sent + line.latency
            transfer.rate = min(line.bandwidth, self._limit)
            transfer.end = transfer.since + transfer.left / transfer.rate
            self._moving.append(transfer)
            self._due = self._heap.at(transfer.end, self._finish)
            return
        first = self._moving[0] if self._moving else None
        if first is not None and first.since > self._heap.now:
            # It was taken for the only one; now it must wait for its first byte.
            self._moving.clear()
            first.line.moving = 0
            self._expect(first)
        self._expect(transfer)

    def _expect(self, transfer: _Transfer) -> None:
        self._expected += 1
        begin = partial(self._begin, transfer)
        self._heap.at(transfer.sent + transfer.line.latency, begin)

    def _begin(self, transfer: _Transfer) -> None:
        self._expected -= 1
        transfer.since, transfer.rate = self._heap.now, 0.0
        transfer.line.moving += 1
        self._moving.append(transfer)
        self._share()

    def _finish(self) -> None:
        now = self._heap.now
        over = [transfer for transfer in self._moving if transfer.end <= now]
        for transfer in over:
            transfer.line.moving -= 1
            self._moving.remove(transfer)
        self._due = None
        if self._moving:
            self._share()
        for transfer in over:
            transfer.done(now - transfer.sent)

    def _share(self) -> None:
        """Give every moving transfer its fair rate, and wait for the first to end."""
        now = self._heap.now
        rates = self._rates()
        for transfer in self._moving:
            rate = rates[transfer.line]
            if rate != transfer.rate:
                moved = transfer.rate * (now - transfer.since)
                transfer.left = max(0.0, transfer.left - moved)
                transfer.since, transfer.rate = now, rate
                transfer.end = now + transfer.left / rate
        if self._due is not None:
            self._due.cancel()
        first = min(transfer.end for transfer in self._moving)
        self._due = self._heap.at(first, self._finish)

    def _rates(self) -> dict[_Line, float]:
        """Return the max-min fair rate of a transfer on each line.

        Progressive filling: all rates grow together; those on a line that is full stay,
        the others grow on until the server is full (Bertsekas and Gallager, Data
        Networks, 2nd edition, 1992, section 6.5.2). A line with the smaller share a
        transfer is full first.
        """
        free, without = self._limit, len(self._moving)
        busy = [line for line in self._lines if line.moving]
        rates = {}
        for line in sorted(busy, key=lambda line: line.bandwidth / line.moving):
            rates[line] = rate = min(line.bandwidth / line.moving, free / without)
            free -= rate * line.moving
            without -= line.moving
        return rates


class Network:
    """All lines between the server and the facilities.

    A transfer waits its line's latency and then moves its bytes. What moves on a line
    at the same time has equal shares of its bandwidth; with a limit of the server, the
    rates of all transfers are max-min fair under the lines and that limit. A transfer
    that meets no other costs one call of the heap; else the rates of those that share
    are set anew whenever one of them begins or ends.

    Args:
        heap: The clock.
        links: The line of each facility.
        server_bandwidth: Bytes in a second that all lines share; None: no limit.
    """

    __slots__ = ("_heap", "_lines", "_pools")

    def __init__(
        self,
        heap: Heap,
        links: Mapping[str, LinkSpec],
        server_bandwidth: float | None = None,
    ) -> None:
        self._heap = heap
        self._lines = {facility: _Line(link) for facility, link in links.items()}
        lines = list(self._lines.values())
        limit = inf if server_bandwidth is None else float(server_bandwidth)
        if sum(line.bandwidth for line in lines) <= limit:
            pools = [_Pool(heap, [line], inf) for line in lines]
        else:
            pools = [_Pool(heap, lines, limit)] * len(lines)
        self._pools = dict(zip(self._lines, pools, strict=True))

    def send(self, facility: str, size: int, done: Done) -> None:
        """Move bytes to or from a facility.

        Args:
            facility: Whose line it takes.
            size: Bytes.
            done: Called when the last byte has arrived, never before this returns, with
                the seconds that it took from now.
        """
        line = self._lines[facility]
        self._pools[facility].send(_Transfer(line, size, self._heap.now, done))
