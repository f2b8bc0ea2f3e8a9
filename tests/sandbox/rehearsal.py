"""Four facilities behind Globus on this machine, to rehearse on.

Each has an endpoint as `hansa site globus-endpoint` writes it, a collection, and a
batch system: a Slurm cluster of its own if Slurm is installed, else a local queue.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import Any

from ports import block
from slurm import Cluster, slurm_missing

from sandbox import endpoints, rabbit
from sandbox.control import Sandbox

NAMES = ("amsterdam", "bergen", "danzig", "riga")
MARK = ".hansa-sandbox"
PROGRAM, PERSON = "program.sh", "person.sh"
CLIENT = "5a4db0c5-0000-4000-8000-00000000c11e"
WORDS = """\
{names} are there, each behind a Globus Compute endpoint and a
collection; their jobs go to {scheduler}. In another terminal:

    cd {folder}
    . ./{program}
    hansa check federation.yaml
    hansa run federation.yaml --id first
    hansa report first

You are a client app there. To be a person who logs in, say instead:

    . ./{person}
    hansa login federation.yaml --client-id {client}

The page of the login shows a code at once. tests/sandbox/README.md tells how
to break things. Ctrl-C ends all of it; the files stay until the next time.
"""


def main(folder: Path) -> None:
    """Set everything up in a folder and keep it going until Ctrl-C."""
    for what, there, brings in (
        ("RabbitMQ", rabbit.program(), rabbit.INSTALL),
        ("Globus Compute endpoints", endpoints.program(), "make sandbox"),
    ):
        if there is None:
            sys.exit(f"{what}: not installed here. `{brings}` brings it.")
    _empty(folder)
    with ExitStack() as stack:
        globus = stack.enter_context(Sandbox(folder / "globus", block(4)))
        scheduler = _build(folder.resolve(), globus, stack)
        told = WORDS.format(
            names=", ".join(NAMES), scheduler=scheduler, folder=folder,
            program=PROGRAM, person=PERSON, client=CLIENT,
        )  # fmt: skip
        print(told, flush=True)  # noqa: T201
        _until_told()
    print("All of it has ended.")  # noqa: T201


def _empty(folder: Path) -> None:
    """Make the folder, in place of an earlier one; touch nothing of anybody else's."""
    if folder.exists():
        if not (folder / MARK).exists():
            sys.exit(f"{folder} is there and is no folder of the sandbox's.")
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    (folder / MARK).touch()


def _build(folder: Path, globus: Sandbox, stack: ExitStack) -> str:
    """Write all files, start the endpoints; return what the jobs go to."""
    function = _register(globus)
    slurm = not slurm_missing()
    here = globus.add_collection(folder, "server")
    facilities: dict[str, Any] = {}
    for number, name in enumerate(NAMES):
        mailbox = folder / "mailboxes" / name
        conf = None
        if slurm:
            (folder / "slurm").mkdir(exist_ok=True)
            cluster = Cluster(folder / "slurm", name, block(14), 1, 2)
            conf = stack.enter_context(cluster).conf
        site = folder / f"{name}.yaml"
        _write(site, _site(name, mailbox, conf))
        endpoint = globus.add_facility(name, site, function, wait=False)
        collection = globus.add_collection(mailbox, name)
        facilities[name] = {
            "gateway": {"type": "globus_compute", "function": function},
            "mover": {"type": "globus", "collection": collection, "path": "/"},
            "data": f"part-{number}",
        }
        stack.callback(endpoint.kill)
    for name in NAMES:
        globus.endpoints[name].wait()
        facilities[name]["gateway"]["endpoint"] = globus.endpoints[name].id
    ours = {"collection": here, "root": str(folder), "path": "/"}
    _write(folder / "federation.yaml", _federation(ours, facilities))
    _script(folder / PROGRAM, globus.env)
    _script(folder / PERSON, globus.person_env)
    return "Slurm clusters of their own" if slurm else "queues of Hansa's own"


def _register(globus: Sandbox) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "hansa.cli", "function", "register"],
        env={**os.environ, **globus.env}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def _site(name: str, mailbox: Path, conf: Path | None) -> dict[str, Any]:
    local = {"type": "local", "slots": 1}
    return {
        "name": name,
        "scheduler": {"type": "slurm", "conf": str(conf)} if conf else local,
        "mailbox": str(mailbox),
        "tasks": {"digits": {}},
        "environment": {"python": sys.executable},
    }


def _federation(
    here: Mapping[str, Any], facilities: Mapping[str, Any]
) -> dict[str, Any]:
    return {
        "name": "rehearsal",
        "model": {"trainer": "softmax", "source": "zeros", "dtype": "float32"},
        "task": "digits",
        "strategy": "fedavg",
        "stop": {"rounds": 3},
        "defaults": {
            "mover": {"type": "globus", "here": here},
            "job": {"nodes": 1, "time": "0:05:00"},
            "work": {"steps": 20, "batch": 32, "lr": 0.5},
        },
        "facilities": dict(facilities),
    }


def _write(path: Path, data: Mapping[str, Any]) -> None:
    """Write a file of YAML as JSON, which is YAML."""
    path.write_text(json.dumps(data, indent=2) + "\n")


def _script(path: Path, variables: Mapping[str, str]) -> None:
    """Write a file for the shell; it may hold a secret."""
    own = ("HANSA_GLOBUS_CLIENT_ID", "HANSA_GLOBUS_CLIENT_SECRET")
    lines = [f"unset {' '.join(own)}", f"PATH={Path(sys.executable).parent}:$PATH"]
    lines += [f"export {name}={shlex.quote(text)}" for name, text in variables.items()]
    path.touch(mode=0o600)
    path.write_text("\n".join(lines) + "\n")


def _until_told() -> None:
    """Return when somebody presses Ctrl-C, or ends the process politely."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    try:
        signal.pause()
    except KeyboardInterrupt:
        return
