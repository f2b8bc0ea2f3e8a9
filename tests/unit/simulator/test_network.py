from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hansa.simulator.heap import Call, Due, Heap
from hansa.simulator.network import Network
from hansa.spec.simulation import LinkSpec


class CountingHeap(Heap):
    """Counts what it is asked for."""

    asked = 0

    def at(self, time: float, call: Call) -> Due:
        self.asked += 1
        return super().at(time, call)


@dataclass(frozen=True)
class Send:
    at: float
    facility: str
    size: int


def line(bandwidth: int, latency: float = 0.0) -> LinkSpec:
    return LinkSpec(bandwidth=bandwidth, latency=latency)


def seconds_of(
    links: Mapping[str, LinkSpec],
    sends: list[Send],
    limit: float | None = None,
    heap: Heap | None = None,
) -> list[float]:
    """Return how long each transfer took."""
    heap = heap or Heap()
    network = Network(heap, links, limit)
    took: dict[int, float] = {}
    for number, send in enumerate(sends):
        heap.at(
            send.at,
            partial(
                network.send,
                send.facility,
                send.size,
                partial(took.__setitem__, number),
            ),
        )
    while heap.step():
        pass
    return [took[number] for number in range(len(sends))]


def test_alone_a_transfer_takes_latency_and_bytes_over_bandwidth() -> None:
    assert seconds_of({"a": line(100, 0.5)}, [Send(3.0, "a", 1000)]) == [10.5]
    assert seconds_of({"a": line(100, 0.5)}, [Send(3.0, "a", 0)]) == [0.5]


@pytest.mark.parametrize("limit", [None, 150])
def test_alone_it_costs_one_call_of_the_heap(limit: float | None) -> None:
    heap = CountingHeap()
    links = {"a": line(100, 1.0), "b": line(100, 1.0)}
    sends = [Send(0.0, "a", 1000), Send(20.0, "b", 1000), Send(40.0, "a", 1000)]
    assert seconds_of(links, sends, limit, heap) == [11.0, 11.0, 11.0]
    assert heap.asked == 3 + 3  # three for this test's own sends


def test_done_comes_after_send_has_returned() -> None:
    heap = Heap()
    done: list[float] = []
    Network(heap, {"a": line(100)}).send("a", 0, done.append)
    assert done == []
    heap.step()
    assert done == [0.0]


def test_two_on_a_line_share_it() -> None:
    # 100 B/s, latency 1. The first moves from 1 on. The second is sent at 3 and moves
    # from 4 on: the first has 700 of 1000 bytes left. At 50 B/s each, the second's 400
    # are there at 12 (9 s after it was sent), when the first has 300 left: at 15.
    links = {"a": line(100, 1.0)}
    sends = [Send(0.0, "a", 1000), Send(3.0, "a", 400)]
    assert seconds_of(links, sends) == pytest.approx([15.0, 9.0])


def test_lines_without_a_common_limit_do_not_meet() -> None:
    links = {"a": line(100), "b": line(50)}
    sends = [Send(0.0, "a", 1000), Send(0.0, "b", 1000)]
    assert seconds_of(links, sends) == [10.0, 20.0]
    heap = CountingHeap()
    assert seconds_of(links, sends, 150, heap) == [10.0, 20.0]
    assert heap.asked == 2 + 2  # a limit that can't count costs nothing


def test_three_under_the_server_s_limit_are_max_min_fair() -> None:
    # Lines of 100, 100 and 10 B/s, the server has 120. An equal share is 40: the third
    # line can't use it and has its 10; the others share 110, 55 each.
    # First: 500 B at 55 B/s are there at 100/11 = 9.0909. The second has moved 500
    # too, and may now have min(100, 110) = 100; the third has 10 still and is there
    # with its 100 B at 10. The second: 500 B left at 100/11, at 100 B/s: 5 s more.
    links = {"a": line(100), "b": line(100), "c": line(10)}
    sends = [Send(0.0, "a", 500), Send(0.0, "b", 1000), Send(0.0, "c", 100)]
    expected = [100 / 11, 100 / 11 + 5.0, 10.0]
    assert seconds_of(links, sends, 120) == pytest.approx(expected)


def test_the_fair_share_is_a_transfer_s_and_not_a_line_s() -> None:
    # Two on line a (100 B/s), one on line b (100 B/s), the server has 90: 30 each.
    # All have 300 B: all are there at 10.
    links = {"a": line(100), "b": line(100)}
    sends = [Send(0.0, "a", 300), Send(0.0, "a", 300), Send(0.0, "b", 300)]
    assert seconds_of(links, sends, 90) == pytest.approx([10.0, 10.0, 10.0])
    # With 60 B/s on line a its two have 30 at most; b has 150 - 60 = 90 of its 100.
    links = {"a": line(60), "b": line(100)}
    expected = [10.0, 10.0, 300 / 90]
    assert seconds_of(links, sends, 150) == pytest.approx(expected)


def test_one_that_waits_for_its_first_byte_takes_nothing_yet() -> None:
    # Line a has a latency of 5: its 100 B move from 5 on. Line b's 1000 B are sent at
    # 1 and move at once, with all of the server's 100 B/s until 5: 600 left. Then 50
    # each: the first is there at 7, the second has 500 left: at 12, 11 s after 1.
    links = {"a": line(100, 5.0), "b": line(100)}
    sends = [Send(0.0, "a", 100), Send(1.0, "b", 1000)]
    assert seconds_of(links, sends, 100) == pytest.approx([7.0, 11.0])


def test_what_is_sent_on_arrival_moves_at_once() -> None:
    heap = Heap()
    network = Network(heap, {"a": line(100)})
    arrived: list[tuple[float, float]] = []

    def again(seconds: float) -> None:
        arrived.append((heap.now, seconds))
        if len(arrived) < 3:
            network.send("a", 200, again)

    network.send("a", 200, again)
    while heap.step():
        pass
    assert arrived == [(2.0, 2.0), (4.0, 2.0), (6.0, 2.0)]


@given(
    st.integers(1, 12), st.integers(1, 10**6), st.integers(1, 10**4), st.floats(0, 9)
)
def test_equal_ones_sent_together_arrive_together(
    count: int, size: int, bandwidth: int, latency: float
) -> None:
    sends = [Send(0.0, "a", size)] * count
    expected = latency + count * size / bandwidth
    took = seconds_of({"a": line(bandwidth, latency)}, sends)
    assert took == pytest.approx([expected] * count)


LINKS = st.dictionaries(
    st.sampled_from("abc"),
    st.builds(
        line, st.integers(1, 1000), st.integers(0, 8).map(lambda eighth: eighth / 4)
    ),
    min_size=1,
)


@st.composite
def traffic(draw: st.DrawFn) -> tuple[dict[str, LinkSpec], list[Send], int | None]:
    links = draw(LINKS)
    send = st.builds(
        Send,
        st.integers(0, 40).map(lambda at: at / 2),
        st.sampled_from(sorted(links)),
        st.integers(0, 5000),
    )
    limit = draw(st.none() | st.integers(1, 2000))
    return links, draw(st.lists(send, min_size=1, max_size=12)), limit


@given(traffic())
def test_nothing_moves_faster_than_line_and_server_allow(
    traffic: tuple[dict[str, LinkSpec], list[Send], int | None],
) -> None:
    links, sends, limit = traffic
    took = seconds_of(links, sends, limit)
    spans = [
        (send.at + links[send.facility].latency, send.at + seconds, send)
        for send, seconds in zip(sends, took, strict=True)
    ]
    # Whatever begins and ends between two moments moved in between.
    limits = [(set(name), links[name].bandwidth) for name in links]
    limits += [] if limit is None else [(set(links), limit)]
    for names, bandwidth in limits:
        for first, _, _ in spans:
            for _, last, _ in spans:
                moved = sum(
                    send.size
                    for begin, end, send in spans
                    if send.facility in names and begin >= first and end <= last
                )
                if last >= first:
                    assert moved <= bandwidth * (last - first) * (1 + 1e-9) + 1e-6


@given(traffic())
def test_a_line_is_never_idle_while_something_waits(
    traffic: tuple[dict[str, LinkSpec], list[Send], int | None],
) -> None:
    # Sharing changes who is served when, not how much is: the last transfer of a line
    # ends when it would if they were served one after the other.
    links, sends, _ = traffic
    took = seconds_of(links, sends)
    for name, link in links.items():
        mine = [(s, t) for s, t in zip(sends, took, strict=True) if s.facility == name]
        free = 0.0
        for send in sorted((send for send, _ in mine), key=lambda send: send.at):
            free = max(free, send.at + link.latency) + send.size / link.bandwidth
        last = max((send.at + seconds for send, seconds in mine), default=0.0)
        assert last == pytest.approx(free)


@given(traffic())
def test_a_limit_that_is_never_reached_changes_nothing(
    traffic: tuple[dict[str, LinkSpec], list[Send], int | None],
) -> None:
    # An idle line makes the limit count (it is below the sum of all lines) without
    # ever being reached by the others.
    links, sends, _ = traffic
    limit = sum(link.bandwidth for link in links.values())
    with_idle = {**links, "idle": line(1)}
    assert seconds_of(with_idle, sends, limit) == pytest.approx(
        seconds_of(links, sends)
    )
