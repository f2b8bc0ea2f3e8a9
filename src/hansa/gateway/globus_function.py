"""Hands one request of Hansa to the site agent of this facility; nothing else.

This file, as it is, is the one function that Hansa registers with Globus Compute and
that a facility puts on the allow-list of its endpoint. It needs Python's own library
only. It runs `hansa site rpc`, the facility's own program, which reads the facility's
own site.yaml and decides there what may be done:

* The program is $HANSA_PROGRAM (default: hansa), its site.yaml is $HANSA_SITE. The
  facility sets both, in the template of its endpoint; a request can name neither.
* The request is JSON and goes to the program's standard input: no word of it ever
  stands on a command line or reaches a shell.
* The program gets no variable whose name says that it holds a secret, of Globus or of
  anybody else. (If it needs one, $HANSA_PROGRAM can be a script that sets it.)
* It may run for a bounded time and print a bounded text; else it is ended, with all
  of its process group.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import tempfile
import time
from typing import IO, Any

LONGEST_S = 8 * 86400.0
GRACE_S = 5.0
STDOUT_LIMIT = 1024 * 1024
STDERR_LIMIT = 16 * 1024
SECRET_STARTS = ("GLOBUS_", "HANSA_GLOBUS_", "FUNCX_")
SECRET_WORDS = (
    "SECRET",
    "TOKEN",
    "PASSW",
    "PASSPHRASE",
    "CREDENTIAL",
    "_KEY",
    "APIKEY",
)


def hansa_site_rpc(
    request: dict[str, Any], timeout: float, expires: float | None = None
) -> dict[str, Any]:
    """Return what the site agent answers to one request.

    Args:
        request: One request of `hansa.site.rpc`, a JSON object.
        timeout: Seconds that the agent may take.
        expires: Seconds since 1970 after which nobody wants the answer any more: a
            request that waited for days, because the endpoint was down, is dropped.
            None: never.

    Returns:
        A JSON object: `returncode`, `stdout` and `stderr` of the agent (the ends of
        them), and `trouble`: empty, or why the agent was not asked or was ended:
        ``expired``, ``unset``, ``missing``, ``slow``, ``loud``.
    """
    late = time.time() - expires if expires is not None else 0.0
    if late > 0:
        return _answer("expired", stderr=f"{late:.0f}")
    if not os.environ.get("HANSA_SITE"):
        return _answer("unset")
    words = shlex.split(os.environ.get("HANSA_PROGRAM", "")) or ["hansa"]
    # Files, not pipes: what the agent leaves running would keep a pipe open.
    with (
        tempfile.TemporaryFile() as asked,
        tempfile.TemporaryFile() as out,
        tempfile.TemporaryFile() as err,
    ):
        asked.write(json.dumps(request).encode())
        asked.seek(0)
        try:
            agent = subprocess.Popen(
                [*words, "site", "rpc"],
                stdin=asked,
                stdout=out,
                stderr=err,
                env=plain_environment(dict(os.environ)),
                start_new_session=True,
            )
        except OSError as error:
            return _answer("missing", stderr=f"{words[0]}: {error.strerror or error}")
        # In this order, so that what is no number is not without end.
        trouble = _wait(agent, (out, err), min(LONGEST_S, float(timeout)))
        stdout, stderr = _end_of(out, STDOUT_LIMIT), _end_of(err, STDERR_LIMIT)
        return _answer(trouble, agent.returncode, stdout, stderr)


def plain_environment(variables: dict[str, str]) -> dict[str, str]:
    """Return the variables whose names do not say that they hold a secret."""
    return {
        name: value
        for name, value in variables.items()
        if not name.upper().startswith(SECRET_STARTS)
        and not any(word in name.upper() for word in SECRET_WORDS)
    }


def _wait(
    agent: subprocess.Popen[bytes], files: tuple[IO[bytes], ...], timeout: float
) -> str:
    """Wait for the agent; end it if it takes too long or prints too much."""
    deadline = time.monotonic() + timeout
    trouble = ""
    while agent.poll() is None and not trouble:
        with contextlib.suppress(subprocess.TimeoutExpired):
            agent.wait(max(0.0, min(1.0, deadline - time.monotonic())))
        if any(os.fstat(file.fileno()).st_size > STDOUT_LIMIT for file in files):
            trouble = "loud"
        elif agent.poll() is None and time.monotonic() >= deadline:
            trouble = "slow"
    _end(agent)
    return trouble


def _end(agent: subprocess.Popen[bytes]) -> None:
    """End an agent that still runs, and all of its group."""
    if agent.poll() is not None:
        return
    os.killpg(agent.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        agent.wait(GRACE_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(agent.pid, signal.SIGKILL)
    agent.wait()


def _end_of(file: IO[bytes], limit: int) -> str:
    file.seek(max(0, file.seek(0, os.SEEK_END) - limit))
    return file.read().decode(errors="replace")


def _answer(
    trouble: str, returncode: int | None = None, stdout: str = "", stderr: str = ""
) -> dict[str, Any]:
    return {
        "trouble": trouble,
        "returncode": returncode,
        "stdout": stdout,
        "stderr": stderr,
    }
