"""Real Globus Compute endpoints, from an environment of their own.

An endpoint is a process that starts one *user endpoint* for every caller; this one does
the work. Both may be killed by their ids.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from sandbox.processes import family, kill, start, until
from sandbox.state import State

REPOSITORY = Path(__file__).parents[2]
PROGRAM = "globus-compute-endpoint"
BEAT = 5
"""Seconds between two heartbeats; endpoints allow no less.

After a kill -9 of a user endpoint another one refuses to start for three of them.
"""
EMAIL = "nobody@sandbox.example"
TEMPLATE = """\
idle_heartbeats_soft: 0
engine:
  type: ThreadPoolEngine
  max_workers: 4
  allowed_serializers:
    - globus_compute_sdk.serialize.JSONData
    - globus_compute_sdk.serialize.PureSourceTextInspect
"""
"""What a user endpoint is: a process on this machine that believes JSON only."""
_TEMPLATE = "user_config_template.yaml.j2"


def program() -> Path | None:
    """Return the endpoint's program; None: its environment is not there.

    It is looked for in the directory ``$GLOBUS_ENDPOINT_BIN``, then where
    ``make .venv/globus-endpoint.stamp`` puts it, then on PATH.
    """
    named = os.environ.get("GLOBUS_ENDPOINT_BIN", "")
    for folder in (Path(named), REPOSITORY / ".venv/globus-endpoint/bin"):
        if folder.is_absolute() and (folder / PROGRAM).exists():
            return folder / PROGRAM
    found = shutil.which(PROGRAM)
    return Path(found) if found else None


@dataclass
class Endpoint:
    """One endpoint of the sandbox.

    Attributes:
        name: Its name.
        root: Its folder, with its configuration and its logs.
        env: The environment it is started in.
        state: What the services know.
    """

    name: str
    root: Path
    env: Mapping[str, str]
    state: State
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def folder(self) -> Path:
        """Where its configuration lies."""
        return self.root / self.name

    @property
    def id(self) -> str:
        """Its id at the service, once it was started."""
        return str(
            json.loads((self.folder / "endpoint.json").read_text())["endpoint_id"]
        )

    def write(
        self,
        functions: Sequence[str] | None,
        variables: Mapping[str, str],
        template: str = TEMPLATE,
    ) -> None:
        """Write files that let in more than a facility would.

        Args:
            functions: Ids of the functions that it allows; None: all.
            variables: Variables for the user endpoint, as ``HANSA_SITE``.
            template: What a user endpoint is.
        """
        where = program()
        assert where is not None
        self.folder.mkdir(parents=True, exist_ok=True)
        allowed = {} if functions is None else {"allowed_functions": list(functions)}
        config = {"display_name": self.name, "heartbeat_period": 30, **allowed}
        strict = {"type": "object", "additionalProperties": False}
        user = {
            "PATH": f"{where.parent}:/usr/local/bin:/usr/bin:/bin",
            "HANSA_PROGRAM": str(Path(sys.executable).with_name("hansa")),
            **variables,
        }
        for name, text in (
            ("config.yaml", _lines(config)),
            ("user_environment.yaml", _lines(user)),
            ("user_config_schema.json", json.dumps(strict)),
            (_TEMPLATE, template),
        ):
            (self.folder / name).write_text(text)
        self.settle()

    def write_kit(self, site: Path, function: str) -> None:
        """Have `hansa site globus-endpoint` write its files.

        Args:
            site: The facility's own file.
            function: Id of the one function that it allows.
        """
        command = [sys.executable, "-m", "hansa.cli", "site", "globus-endpoint"]
        command += ["--site", str(site), "--function", function, "-o", str(self.folder)]
        command += ["--program", str(program())]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        self.settle()

    def settle(self) -> None:
        """Fit its files to this machine.

        Its heart beats as quickly as can be. Root's endpoints want an address, and
        start user endpoints with no variables but those in their file.
        """
        home = self.root / "home"
        home.mkdir(exist_ok=True)
        config = (self.folder / "config.yaml").read_text()
        assert "heartbeat_period: 30" in config
        config = config.replace("heartbeat_period: 30", f"heartbeat_period: {BEAT}")
        (self.folder / "config.yaml").write_text(f"{config}\nemail: {EMAIL}\n")
        template = (self.folder / _TEMPLATE).read_text()
        template = f"{template.rstrip()}\nheartbeat_period: {BEAT}\n"
        (self.folder / _TEMPLATE).write_text(template)
        own = {"HOME": home, "CWD": home, "GLOBUS_COMPUTE_USER_DIR": self.root}
        with (self.folder / "user_environment.yaml").open("a") as file:
            file.write(_lines({name: str(path) for name, path in own.items()}))

    # --- its life -----------------------------------------------------------------

    def start(self, *, wait: bool = True) -> None:
        """Start it; with `wait` return when the service has heard of it."""
        where = program()
        assert where is not None, "`make .venv/globus-endpoint.stamp` installs it"
        (self.folder / "daemon.pid").unlink(missing_ok=True)
        self._since = self._heard()
        command = [str(where), "-c", str(self.root), "start", self.name]
        self.process = start(command, self.root / "output.txt", self.env)
        if wait:
            self.wait()

    def wait(self) -> None:
        """Return when the service has heard of it since it was started."""
        log = self.root / "output.txt"
        there = f"endpoint {self.name} is there"
        until(lambda: self._heard() > self._since, 90, there, log, self.process)

    def _heard(self) -> float:
        note = self.folder / "endpoint.json"
        if not note.exists() or not note.stat().st_size:  # made, not yet written
            return 0.0
        return float((self.state.get("heartbeats", self.id) or {}).get("at", 0.0))

    def user_endpoints(self) -> list[psutil.Process]:
        """Return the user endpoints that it has started, with their descendants."""
        return [] if self.process is None else family(self.process.pid)[1:]

    def kill_user_endpoints(self) -> int:
        """Kill its user endpoints with -9; return how many processes that were."""
        found = self.user_endpoints()
        kill(found)
        return len(found)

    def kill(self) -> None:
        """Kill it and its user endpoints with -9."""
        if self.process is not None:
            kill(family(self.process.pid))
            self.process.wait()
            self.process = None

    def log(self) -> str:
        """Return what it and its user endpoints have written down."""
        texts = sorted(self.root.glob("*/endpoint.log"))
        return "\n".join(path.read_text() for path in texts)


def _lines(keys: Mapping[str, object]) -> str:
    """Return keys as YAML, each value written as JSON."""
    return "".join(f"{key}: {json.dumps(value)}\n" for key, value in keys.items())
