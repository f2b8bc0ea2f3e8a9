"""How the ranks of a launch find each other, without asking any of them to be first.

::

    <job_dir>/ranks/<attempt>/team.json    where rank 0 listens, and a random word

Only the owner's processes can read the word, and only who knows it is let in, so no
other program on the node can get in between by accident. Nothing outside this machine
is listened to unless a rank is there.
"""

from __future__ import annotations

import fcntl
import logging
import os
import resource
import secrets
import selectors
import socket
import struct
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Self

from hansa.core.errors import IntegrityError, StorageFull, WorkerError
from hansa.mailbox.files import json_text, read_json, write_text
from hansa.mailbox.paths import JobDir
from hansa.worker.job import SCHEMA
from hansa.worker.launch import Rank
from hansa.worker.ranks import (
    ARRIVE_S,
    LOOK_S,
    Launch,
    Present,
    gather,
    machine,
    rank_log,
)
from hansa.worker.signals import Stop
from hansa.worker.team import Team
from hansa.worker.team.crew import Crew
from hansa.worker.team.watch import Line, Peer, Watch
from hansa.worker.waiting import there

log = logging.getLogger(__name__)

FILE: Final = "team.json"
CONNECT_S: Final = 60.0
"""A rank that has checked in is connected so soon."""

TRY_S: Final = 5.0
WELCOME_S: Final = 30.0
"""The answer to a knock: rank 0 may be reading what a thousand ranks wrote."""

LONGEST_LOOK_S: Final = 2.0
LOOPBACK: Final = "127.0.0.1"
_INTERFACE: Final = "GLOO_SOCKET_IFNAME"


class Door:
    """Where rank 0 lets the others in; a context.

    Args:
        launch: Of which it is rank 0.

    Attributes:
        lines: The ranks that are in.
    """

    def __init__(self, launch: Launch) -> None:
        self._launch = launch
        self._word = secrets.token_hex(16)
        self._selector = selectors.DefaultSelector()
        self._outside: socket.socket | None = None
        self._inside = self._open(LOOPBACK)
        self.lines: dict[int, Line] = {}

    def __enter__(self) -> Self:
        self._tell()
        return self

    def __exit__(
        self, kind: object, error: BaseException | None, trace: object
    ) -> None:
        if error is not None:  # those that still come need not wait for ever
            with suppress(OSError, StorageFull):
                self._tell(str(error))
        for key in list(self._selector.get_map().values()):
            if key.data not in self.lines.values():
                key.data.close()
        self._selector.close()

    def admit(self, present: Mapping[int, Present]) -> None:
        """Let in who knocks; open to other machines when a rank is on one.

        Args:
            present: The ranks that have checked in so far.

        Raises:
            WorkerError: One that was in has gone.
        """
        if self._outside is None and _is_wide(present.values()):
            self._outside = self._open("")
            self._tell()
        while ready := self._selector.select(0):
            for key, _ in ready:
                if isinstance(key.data, Line):
                    self._hear(key.data, present)
                else:
                    sock, _ = key.data.accept()
                    self._selector.register(sock, selectors.EVENT_READ, Line(sock))

    def _open(self, host: str) -> socket.socket:
        server = socket.create_server((host, 0), backlog=self._launch.ranks)
        self._selector.register(server, selectors.EVENT_READ, server)
        return server

    def _tell(self, failed: str | None = None) -> None:
        outside = self._outside
        told = {
            "schema": SCHEMA,
            "word": self._word,
            "machine": machine(),
            "inside": self._inside.getsockname()[1],
            "outside": outside.getsockname()[1] if outside else None,
            "addresses": addresses(),
            "failed": failed,
        }
        write_text(self._launch.directory / FILE, json_text(told), mode=0o600)

    def _hear(self, line: Line, present: Mapping[int, Present]) -> None:
        try:
            for word in line.receive():
                rank = word.get("rank")
                if word.get("word") != self._word or not isinstance(rank, int):
                    raise ConnectionError("it does not know the word")
                self.lines[rank] = line
                line.send({"welcome": self._launch.attempt})
        except OSError as error:
            self._selector.unregister(line.sock)
            line.close()
            for rank, known in self.lines.items():
                if known is line:
                    peer = _peer(self._launch, present[rank])
                    raise peer.lost("has ended without a word.") from error
            log.warning("Somebody else knocked at this job's port: %s.", error)


def meet(launch: Launch, rank: Rank, stop: Stop) -> Crew:
    """Return when all ranks of a launch are there and connected.

    Args:
        launch: What was ordered; this rank has checked in.
        rank: Which one this is.
        stop: Says when to stop early.

    Raises:
        WorkerError: Some do not come (transient), or they do not fit together.
    """
    _many_files()
    if rank.rank > 0:
        return _follow(launch, rank, stop)
    with Door(launch) as door:
        present = gather(launch, stop, seen=door.admit)
        return _lead(launch, present, door)


def _lead(launch: Launch, present: Sequence[Present], door: Door) -> Crew:
    known = {one.rank: one for one in present}
    end = time.monotonic() + CONNECT_S
    while len(door.lines) < launch.ranks - 1:
        door.admit(known)
        if time.monotonic() > end:
            missing = min(known.keys() - door.lines.keys() - {0})
            peer = _peer(launch, known[missing])
            raise peer.lost("has checked in and is not heard of.")
        time.sleep(0.01)
    named = {one.rank: _peer(launch, one) for one in present}
    local = _locals(present)
    address = _own_address(door.lines.values())
    _choose_interface(address)
    watch = Watch(0, named)
    for rank, line in sorted(door.lines.items()):
        told = [[one.host, one.log] for one in named.values()]
        line.send({"team": local[rank], "peers": told, "address": address})
        watch.add(rank, line)
    watch.start()
    alone = address == LOOPBACK
    return Crew(_team(0, local[0]), watch, named, LOOPBACK if alone else "")


def _follow(launch: Launch, rank: Rank, stop: Stop) -> Crew:
    line, told = _connected(launch, rank, stop)
    named = {
        number: Peer(number, str(host), str(path))
        for number, (host, path) in enumerate(told["peers"])
    }
    own = line.sock.getsockname()[0]
    _choose_interface(told["address"] if own == LOOPBACK else own)
    watch = Watch(rank.rank, named)
    watch.add(0, line)
    watch.start()
    return Crew(
        _team(rank.rank, told["team"]), watch, named, line.sock.getpeername()[0]
    )


def _peer(launch: Launch, one: Present) -> Peer:
    path = rank_log(launch.job_dir, one.rank)
    log_file = path if one.rank else JobDir(launch.job_dir).log
    return Peer(one.rank, one.host, str(log_file))


def addresses() -> list[str]:
    """Return this machine's addresses for others, the best one first.

    A site that sets ``GLOO_SOCKET_IFNAME`` has chosen; else it is what the node's name
    stands for.
    """
    found = dict(_interfaces())
    chosen = os.environ.get(_INTERFACE, "").partition(",")[0]
    named = ""
    with suppress(OSError):
        named = socket.gethostbyname(os.uname().nodename)
    outer = [one for one in found.values() if not one.startswith("127.")]
    return sorted(outer, key=lambda one: (one != found.get(chosen), one != named))


def _connected(launch: Launch, rank: Rank, stop: Stop) -> tuple[Line, dict[str, Any]]:
    end = time.monotonic() + ARRIVE_S + CONNECT_S
    path, pause = launch.directory / FILE, LOOK_S
    while time.monotonic() < end and stop.reason is None:
        told = _read(path)
        if told.get("failed"):
            raise _no_meeting(str(told["failed"]))
        for host, port in _doors(told):
            line = _knock(host, port, str(told["word"]), rank.rank)
            if line is not None:
                return line, _greeting(line, end)
        time.sleep(pause)
        pause = min(pause * 1.5, LONGEST_LOOK_S)  # thousands may look
    why = f" ({stop.reason})" if stop.reason else ""
    raise WorkerError(
        f"Rank 0 was not reached, which tells in {path} where it is{why}.",
        hint="Its log is log.txt of the job.",
        transient=True,
    )


def _read(path: Path) -> dict[str, Any]:
    if not there(path):
        return {}
    try:
        return read_json(path) or {}
    except IntegrityError:
        return {}  # a file system that shows it before its content


def _doors(told: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    if not told:
        return
    if told["machine"] == machine():
        yield LOOPBACK, int(told["inside"])
    elif told["outside"] is not None:
        for address in told["addresses"]:
            yield str(address), int(told["outside"])


def _knock(host: str, port: int, word: str, rank: int) -> Line | None:
    """Return a line to rank 0; None if it is not there, but another program may be."""
    try:
        line = Line(socket.create_connection((host, port), TRY_S))
    except OSError as error:
        log.info("Rank 0 is not reached at %s: %s.", host, error)
        return None
    line.send({"word": word, "rank": rank})
    try:
        line.wait_for("welcome", WELCOME_S)
    except OSError as error:
        log.info("Somebody else is at %s, port %d: %s.", host, port, error)
        line.close()
        return None
    return line


def _greeting(line: Line, end: float) -> dict[str, Any]:
    """Wait until rank 0 has all ranks, and return what it says then."""
    try:
        return line.wait_for("team", max(end - time.monotonic(), TRY_S))
    except OSError as error:
        raise _no_meeting(str(error)) from error


def _no_meeting(why: str) -> WorkerError:
    return WorkerError(
        f"Rank 0 has ended before all ranks were there ({why}).",
        hint="Its log is log.txt of the job.",
        transient=True,
    )


def _is_wide(present: Iterable[Present]) -> bool:
    return any(one.machine != machine() for one in present)


def _locals(present: Sequence[Present]) -> dict[int, tuple[int, int, int]]:
    """Return world, local rank and ranks of the node, by rank.

    The launcher's own numbers, which its bindings go by, if they fit; else the ranks of
    a node are counted.
    """
    nodes: dict[str, list[Present]] = {}
    for one in present:
        nodes.setdefault(one.host, []).append(one)
    found = {}
    for ranks in nodes.values():
        told = {one.local for one in ranks}
        fits = told == set(range(len(ranks)))
        for count, one in enumerate(ranks):
            local = one.local if fits and one.local is not None else count
            found[one.rank] = (len(present), local, len(ranks))
    return found


def _team(rank: int, told: Sequence[int]) -> Team:
    world, local, each = told
    return Team(rank=rank, world=world, local=local, ranks_per_node=each)


def _own_address(lines: Iterable[Line]) -> str:
    """Return the address that others see; loopback if all are on this machine."""
    own = [line.sock.getsockname()[0] for line in lines]
    return next((one for one in own if one != LOOPBACK), LOOPBACK)


def _choose_interface(address: str) -> None:
    """Let collectives take the network on which the ranks have found each other."""
    for name, own in _interfaces():
        if own == address:
            os.environ.setdefault(_INTERFACE, name)
            if address == LOOPBACK:
                os.environ.setdefault("NCCL_SOCKET_IFNAME", name)


def _interfaces() -> Iterator[tuple[str, str]]:
    """Yield name and first IPv4 address of the interfaces that have one."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode()[:15])
            with suppress(OSError):  # it has none
                answer = fcntl.ioctl(probe.fileno(), 0x8915, request)  # SIOCGIFADDR
                yield name, socket.inet_ntoa(answer[20:24])


def _many_files() -> None:
    """Allow as many open files as the system lets this user: a connection is one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
