"""How ranks find each other, who is kept out, and which GPU each one takes."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hansa.core.errors import SpecError, WorkerError
from hansa.worker.launch import Rank
from hansa.worker.ranks import Launch, Present, arrived, check_in
from hansa.worker.signals import Stop
from hansa.worker.team import Team, meeting
from hansa.worker.team.group import device_index
from hansa.worker.team.meeting import Door, meet


@pytest.fixture
def launch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Launch:
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        monkeypatch.setenv(name, "")  # so that it is gone afterwards, too
        monkeypatch.delenv(name)
    return Launch(tmp_path, "17-1", nodes=1, ranks=3, sha256="ab")


def told(launch: Launch) -> Any:
    return json.loads((launch.directory / meeting.FILE).read_text())


def test_ranks_meet_on_loopback_and_strangers_stay_outside(
    launch: Launch, caplog: pytest.LogCaptureFixture
) -> None:
    ranks = [Rank("srun", number, 3, local) for number, local in enumerate((0, 2, 1))]
    for rank in ranks:
        check_in(launch, rank)
    knocked = threading.Event()

    def stranger() -> None:
        while not (launch.directory / meeting.FILE).exists():
            knocked.wait(0.01)
        where = ("127.0.0.1", told(launch)["inside"])
        for data in (b"GET / HTTP/1.1\r\n\r\n", b'{"word": "guess", "rank": 2}\n'):
            with socket.create_connection(where) as sock:
                sock.sendall(data)
                assert sock.recv(100) == b""  # thrown out
        knocked.set()

    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(meet, launch, ranks[0], Stop())
        pool.submit(stranger).result(20)
        others = [pool.submit(meet, launch, rank, Stop()) for rank in ranks[1:]]
        crews = [one.result(20) for one in (first, *others)]
    assert [crew.team for crew in crews] == [
        Team(rank=rank, world=3, local=local, ranks_per_node=3)
        for rank, local in enumerate((0, 2, 1))
    ]
    assert caplog.text.count("Somebody else knocked") == 2
    assert os.environ["GLOO_SOCKET_IFNAME"] == "lo"
    assert (launch.directory / meeting.FILE).stat().st_mode & 0o077 == 0
    number = crews[0].tell("step", {"index": 4})
    for crew in crews[1:]:
        order = crew.next_order(20)
        assert order is not None
        assert (order["do"], order["index"]) == ("step", 4)
        crew.answer(order, {"from": crew.team.rank})
    assert [one["from"] for one in crews[0].answers(number, 20)] == [1, 2]
    with ThreadPoolExecutor(2) as pool:
        ended = [pool.submit(crew.next_order, 20) for crew in crews[1:]]
        crews[0].end()
        assert [one.result(20) for one in ended] == [None, None]
    assert not any(crew.broken for crew in crews)


def test_a_rank_that_dies_while_others_are_awaited(launch: Launch) -> None:
    for number in (0, 1):
        check_in(launch, Rank("srun", number, 3))
    with Door(launch) as door:
        with ThreadPoolExecutor(1) as pool:
            where = ("127.0.0.1", told(launch)["inside"], told(launch)["word"], 1)
            knock = pool.submit(meeting._knock, *where)
            while 1 not in door.lines:
                door.admit(arrived(launch))
            line = knock.result(20)
        assert line is not None
        line.close()
        with pytest.raises(WorkerError, match=r"Rank 1 on .* has ended without a word"):
            admit_for_ever(door, launch)


def test_who_comes_when_rank_0_has_failed_leaves_at_once(launch: Launch) -> None:
    for number in (0, 1):
        check_in(launch, Rank("srun", number, 3))
    stop = Stop()
    stop.request(signal.SIGTERM)
    with pytest.raises(WorkerError, match=r"Rank 0 was not reached.* \(signal SIGTERM"):
        meet(launch, Rank("srun", 1, 3), stop)
    with pytest.raises(SpecError), Door(launch):
        raise SpecError("The nodes are wrong.")
    with pytest.raises(WorkerError, match=r"Rank 0 has ended .*The nodes are wrong"):
        meet(launch, Rank("srun", 1, 3), Stop())


def admit_for_ever(door: Door, launch: Launch) -> None:
    while True:
        door.admit(arrived(launch))


def test_other_machines_are_let_in_only_if_there_are_some(
    launch: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    create, opened = socket.create_server, []

    def only_here(address: tuple[str, int], **options: Any) -> socket.socket:
        opened.append(address[0])
        return create(("127.0.0.1", 0), **options)

    monkeypatch.setattr(socket, "create_server", only_here)
    for number in (0, 1):
        check_in(launch, Rank("srun", number, 3))
    present = arrived(launch)
    with Door(launch) as door:
        door.admit(present)
        assert (opened, told(launch)["outside"]) == (["127.0.0.1"], None)
        present[1] = replace(present[1], machine="elsewhere")
        door.admit(present)
        assert opened == ["127.0.0.1", ""]
        doors = told(launch)
        assert doors["outside"]
        assert list(meeting._doors(doors)) == [("127.0.0.1", doors["inside"])]
        doors.update(machine="elsewhere", addresses=["10.0.0.3", "192.168.1.2"])
        assert list(meeting._doors(doors)) == [
            *(("10.0.0.3", doors["outside"]), ("192.168.1.2", doors["outside"]))
        ]


def present(rank: int, host: str, local: int | None) -> Present:
    return Present(rank, 4, local, "srun", host, host, 1, "ab")


@pytest.mark.parametrize(
    ("hosts", "given", "expected"),
    [
        ("aabb", (0, 1, 0, 1), [(0, 2), (1, 2), (0, 2), (1, 2)]),
        ("aabb", (1, 0, 1, 0), [(1, 2), (0, 2), (1, 2), (0, 2)]),
        ("abab", (None,) * 4, [(0, 2), (0, 2), (1, 2), (1, 2)]),
        ("aaab", (0, 0, 0, 0), [(0, 3), (1, 3), (2, 3), (0, 1)]),
    ],
)
def test_local_ranks_are_the_launchers_or_counted(
    hosts: str, given: tuple[int | None, ...], expected: list[tuple[int, int]]
) -> None:
    ranks = [
        present(rank, host, local)
        for rank, (host, local) in enumerate(zip(hosts, given, strict=True))
    ]
    found = meeting._locals(ranks)
    assert [found[rank] for rank in range(4)] == [(4, *pair) for pair in expected]


@pytest.mark.parametrize(
    ("local", "visible", "index"), [(0, 4, 0), (3, 4, 3), (3, 1, 0), (0, 1, 0)]
)
def test_the_gpu_is_the_local_ranks_or_the_only_one(
    local: int, visible: int, index: int
) -> None:
    team = Team(rank=7, world=8, local=local, ranks_per_node=4)
    assert device_index(team, visible) == index


def test_more_ranks_than_gpus_are_refused() -> None:
    team = Team(rank=7, world=8, local=3, ranks_per_node=4)
    with pytest.raises(WorkerError, match=r"Rank 7 is number 3 of 4 .* sees 2 GPUs"):
        device_index(team, 2)
