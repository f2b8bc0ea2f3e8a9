"""A real sshd on a free loopback port, with keys of its own, for tests."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
from ports import block

INSTALL = "apt-get install -y --no-install-recommends openssh-server rsync"

SSHD_CONFIG = """\
Port {port}
ListenAddress 127.0.0.1
HostKey {root}/host_key
AuthorizedKeysFile {root}/authorized_keys
StrictModes no
UsePAM no
PidFile none
PasswordAuthentication no
KbdInteractiveAuthentication no
PrintMotd no
MaxStartups 100
LogLevel ERROR
# The real home's login scripts may be slow, or wait for a lock.
SetEnv HOME={root}/home
"""
SSH_CONFIG = """\
Host *
  HostKeyAlias bench
  UserKnownHostsFile {root}/known_hosts
  GlobalKnownHostsFile /dev/null
  IdentityFile {root}/key
  IdentitiesOnly yes
  IdentityAgent none
"""


def need(*programs: str) -> None:
    """Skip without these programs; in CI their lack is a failure."""
    missing = [name for name in programs if _where(name) is None]
    if not missing:
        return
    words = f"{', '.join(missing)} not installed; `{INSTALL}` brings them"
    if os.environ.get("CI") == "true":
        pytest.fail(words)
    pytest.skip(words)


def _where(name: str) -> str | None:
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin"
    return shutil.which(name, path=path)


@dataclass
class Sshd:
    """One server; `options` are those of a gateway or mover that reach it."""

    root: Path
    port: int = 0
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @classmethod
    def make(cls, root: Path) -> Sshd:
        """Make keys and configuration in `root`; `start` starts it."""
        (root / "home").mkdir(parents=True)
        made = cls(root)
        for name in ("host_key", "key"):
            made.make_key(name)
        made.allow("key")
        host = (root / "host_key.pub").read_text()
        (root / "known_hosts").write_text(f"bench {host}")
        (root / "ssh_config").write_text(SSH_CONFIG.format(root=root))
        return made

    def make_key(self, name: str) -> Path:
        path = self.root / name
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)]
        subprocess.run(command, check=True)
        return path

    def allow(self, name: str, restriction: str = "") -> None:
        """Add a key of `make_key` to the authorized keys."""
        key = (self.root / f"{name}.pub").read_text()
        with (self.root / "authorized_keys").open("a") as file:
            file.write(f"{restriction} {key}".lstrip())

    @property
    def options(self) -> dict[str, Any]:
        return {
            "host": "127.0.0.1",
            "port": self.port,
            "config": self.root / "ssh_config",
        }

    def start(self) -> None:
        if os.geteuid() == 0:  # where sshd locks itself in before a login
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        self.port = self.port or block(1)
        config = self.root / "sshd_config"
        config.write_text(SSHD_CONFIG.format(port=self.port, root=self.root))
        with (self.root / "sshd.log").open("ab") as log:
            self.process = subprocess.Popen(
                [str(_where("sshd")), "-D", "-e", "-f", str(config)],
                stdin=subprocess.DEVNULL,
                stderr=log,
                start_new_session=True,
            )
        self._until_it_answers()

    def stop(self) -> None:
        """End the server and its connections, not what runs behind them."""
        if self.process is None:
            return
        main = psutil.Process(self.process.pid)
        theirs = [one for one in main.children(recursive=True) if _is_sshd(one)]
        self.process.kill()
        for one in theirs:
            _kill(one)
        self.process.wait(timeout=10)
        self.process = None

    def _until_it_answers(self) -> None:
        deadline = time.monotonic() + 100
        while time.monotonic() < deadline:
            with socket.socket() as line:
                line.settimeout(1)
                if line.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            assert self.process is not None
            if self.process.poll() is not None:
                break
            time.sleep(0.01)
        raise AssertionError((self.root / "sshd.log").read_text())


def _is_sshd(process: psutil.Process) -> bool:
    try:
        return process.name().startswith("sshd")
    except psutil.Error:
        return False


def _kill(process: psutil.Process) -> None:
    try:
        process.kill()
    except psutil.NoSuchProcess:
        return
