"""Globus on loopback for tests; see ``tests/sandbox``.

::

    @pytest.fixture(scope="module")
    def globus(tmp_path_factory):
        with sandbox(tmp_path_factory.mktemp("globus")) as made:
            yield made
"""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
import urllib.request
import uuid
from collections.abc import Mapping
from pathlib import Path

import pytest
from ports import block

from sandbox import endpoints, rabbit
from sandbox.control import Sandbox

__all__ = ["Sandbox", "log_in", "need_globus", "sandbox"]

CLIENT = str(uuid.uuid5(uuid.NAMESPACE_DNS, "hansa.example"))
"""The client of somebody who signs in as a person."""


def need_globus(*, compute: bool = True) -> None:
    """Skip the test if something is not installed; with ``CI=true`` fail it."""
    missing = []
    if compute and rabbit.program() is None:
        missing.append(f"RabbitMQ ({rabbit.INSTALL})")
    if compute and endpoints.program() is None:
        missing.append("Globus Compute endpoints (make .venv/globus-endpoint.stamp)")
    if not missing:
        return
    reason = f"not installed: {', '.join(missing)}"
    if os.environ.get("CI", "").lower() == "true":
        pytest.fail(reason)
    pytest.skip(reason)


def sandbox(root: Path, *, compute: bool = True) -> Sandbox:
    """Return a sandbox that is not started yet, on ports of its own."""
    need_globus(compute=compute)
    return Sandbox(root, block(4), compute=compute)


def log_in(env: Mapping[str, str], folder: Path, *words: str) -> str:
    """Do what a person does: `hansa login` in a terminal, and the page that it names.

    Args:
        env: `Sandbox.person_env`.
        folder: Where to do it.
        words: More words of the command, as ``--collection ID``.

    Returns:
        What the command printed.
    """
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "hansa.cli", "login", *words]
    with subprocess.Popen(
        [*command, "--client-id", CLIENT], cwd=folder, env={**os.environ, **env},
        stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    ) as process:  # fmt: skip
        os.close(theirs)
        assert process.stderr is not None
        said = ""
        while "paste the code" not in said:
            line = process.stderr.readline()
            assert line, said
            said += line
        address = re.search(r"http\S+", said)
        assert address is not None, said
        with urllib.request.urlopen(address[0], timeout=30) as page:  # noqa: S310
            code = page.read().decode().strip()
        os.write(ours, f"{code}\n".encode())
        out, err = process.communicate(timeout=60)
        os.close(ours)
        assert process.returncode == 0, f"{out}\n{said}{err}"
    return out
