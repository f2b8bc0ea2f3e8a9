"""Connections between ranks of a team, in one process."""

from __future__ import annotations

import socket

from hansa.worker.team.watch import Line, Peer

PEERS = {rank: Peer(rank, f"n{rank}", f"/jobs/{rank}.log") for rank in range(3)}


def connected() -> tuple[Line, Line]:
    """Return both ends of a connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        near = socket.create_connection(server.getsockname())
        far, _ = server.accept()
    return Line(near), Line(far)
