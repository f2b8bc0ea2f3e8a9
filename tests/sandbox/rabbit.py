"""A RabbitMQ of the sandbox's own, on loopback, with all its files in one folder."""

from __future__ import annotations

import shutil
import subprocess
import uuid
from pathlib import Path

from sandbox.processes import family, kill, listens, plain_environment, start, until

PROGRAM = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
"""The broker itself; what lies on PATH wants to become another user."""
INSTALL = "apt-get install -y --no-install-recommends rabbitmq-server"
SETTINGS = """\
listeners.tcp.1 = 127.0.0.1:{port}
heartbeat = 30
vm_memory_high_watermark.absolute = 256MB
disk_free_limit.absolute = 50MB
"""


def program() -> Path | None:
    """Return the broker's program, or None if it is not installed."""
    if PROGRAM.exists():
        return PROGRAM
    found = shutil.which("rabbitmq-server")
    return Path(found) if found else None


class Rabbit:
    """One broker; queues and messages outlive its process.

    Args:
        root: Its folder; made.
        port: The first of three free ports in a row.
    """

    def __init__(self, root: Path, port: int) -> None:
        self.root, self.port = root, port
        self.url = f"amqp://guest:guest@127.0.0.1:{port}/%2F"
        self._node = f"sandbox{uuid.uuid4().hex[:8]}@localhost"
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self, *, wait: bool = True) -> None:
        """Start the broker; it takes some seconds."""
        where = program()
        assert where is not None, f"RabbitMQ is not installed: {INSTALL}"
        for name in ("home", "mnesia", "log"):
            (self.root / name).mkdir(parents=True, exist_ok=True)
        (self.root / "rabbitmq.conf").write_text(SETTINGS.format(port=self.port))
        (self.root / "plugins").write_text("[].\n")
        env = self._environment()
        log = self.root / "log" / "output.txt"
        epmd = ["epmd", "-address", "127.0.0.1", "-port", env["ERL_EPMD_PORT"]]
        self._processes = [start(epmd, log, env)]
        names = int(env["ERL_EPMD_PORT"])
        until(lambda: listens(names), 20, "Erlang's name server answers", log)
        self._processes.append(start([str(where)], log, env))
        if wait:
            self.wait()

    def wait(self) -> None:
        """Return when the broker takes connections."""
        log = self.root / "log" / "output.txt"
        until(
            lambda: listens(self.port),
            90,
            "the broker answers",
            log,
            self._processes[-1],
        )

    def kill(self) -> None:
        """Kill the broker with -9."""
        for process in reversed(self._processes):
            kill(family(process.pid))
            process.wait()
        self._processes = []

    @property
    def pids(self) -> list[int]:
        """Ids of its processes."""
        return [one.pid for process in self._processes for one in family(process.pid)]

    def _environment(self) -> dict[str, str]:
        root = self.root
        return {
            **plain_environment(),
            "HOME": str(root / "home"),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": str(self.port + 1),
            "RABBITMQ_NODENAME": self._node,
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(self.port + 2),
            "RABBITMQ_MNESIA_BASE": str(root / "mnesia"),
            "RABBITMQ_LOG_BASE": str(root / "log"),
            "RABBITMQ_CONFIG_FILE": str(root / "rabbitmq"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(root / "plugins"),
            "RABBITMQ_PID_FILE": str(root / "pid"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": (
                "-kernel inet_dist_use_interface {127,0,0,1} +S 1:1 +A 8"
            ),
        }
