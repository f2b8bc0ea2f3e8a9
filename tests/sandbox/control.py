"""The whole sandbox, for tests and for `make sandbox`."""

from __future__ import annotations

import atexit
import re
import secrets
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from sandbox.auth import EXPERIMENTER, add_user
from sandbox.endpoints import TEMPLATE, Endpoint
from sandbox.faults import Faults
from sandbox.processes import family, kill, listens, plain_environment, start, until
from sandbox.rabbit import Rabbit
from sandbox.state import Document, State

FOLDER = Path(__file__).parents[1]


class Sandbox:
    """Globus on this machine: Auth, Transfer and Compute, with real endpoints.

    ::

        with Sandbox(tmp_path / "globus", first_port) as globus:
            globus.env                                   # for processes that use it
            mail = globus.add_collection(tmp_path / "mail")
            site = globus.add_endpoint("alpha", functions=[...], site=site_yaml)
            globus.faults.corrupt(mail)
            site.kill_user_endpoints()

    Args:
        root: Its folder; made.
        port: The first of four free ports in a row.
        compute: Also have a broker, which endpoints need; it takes some seconds.
    """

    def __init__(self, root: Path, port: int, *, compute: bool = True) -> None:
        root.mkdir(parents=True, exist_ok=True)
        self.root, self.port, self.compute = root.resolve(), port, compute
        self.url = f"http://127.0.0.1:{port}"
        self.state = State(self.root / "state.db")
        self.faults = Faults(self.state)
        self.broker = Rabbit(self.root / "rabbit", port + 1)
        self.endpoints: dict[str, Endpoint] = {}
        self._service: subprocess.Popen[bytes] | None = None
        known = {one["username"]: one for one in self.state.all("users").values()}
        self.client = known.get(EXPERIMENTER) or self.add_client(EXPERIMENTER)

    # --- its life -----------------------------------------------------------------

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> Self:
        """Start the services and the broker."""
        atexit.register(self.stop)
        try:
            if self.compute:
                self.broker.start(wait=False)
            self.start_service()
            if self.compute:
                self.broker.wait()
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """End all of its processes; its files stay."""
        atexit.unregister(self.stop)
        for endpoint in self.endpoints.values():
            endpoint.kill()
        self.kill_service()
        self.broker.kill()
        self.state.close()

    def start_service(self) -> None:
        """Start the web services."""
        command = [sys.executable, "-m", "sandbox.service", "--dir", str(self.root)]
        command += ["--port", str(self.port)]
        if self.compute:
            command += ["--amqp", self.broker.url]
        log = self.root / "service.txt"
        env = {**plain_environment(), "PYTHONPATH": str(FOLDER)}
        self._service = start(command, log, env)
        until(lambda: listens(self.port), 60, "the services answer", log, self._service)

    def kill_service(self) -> None:
        """Kill the web services with -9; what they know stays."""
        if self._service is not None:
            kill(family(self._service.pid))
            self._service.wait()
            self._service = None

    # --- who ----------------------------------------------------------------------

    def add_client(self, name: str) -> Document:
        """Make a program's identity; its id is ``sub``, its secret ``secret``."""
        return add_user(self.state, name, secret=secrets.token_hex(16))

    def env_for(self, client: Document, folder: Path) -> dict[str, str]:
        """Return the variables with which a program is this client.

        Args:
            client: Of `add_client`.
            folder: Where its tokens lie.
        """
        return {
            **self.services,
            "HANSA_GLOBUS_CLIENT_ID": client["sub"],
            "HANSA_GLOBUS_CLIENT_SECRET": client["secret"],
            "HANSA_GLOBUS_DIR": str(folder),
        }

    @property
    def services(self) -> dict[str, str]:
        """The variables that lead Globus's own libraries here.

        One of them takes its address from nowhere, ``http://localhost:5000``: it is
        led here as through a proxy.
        """
        names = ("AUTH", "TRANSFER", "COMPUTE", "GROUPS", "APP")
        return {
            "GLOBUS_SDK_ENVIRONMENT": "local",
            **{f"GLOBUS_SDK_SERVICE_URL_{name}": f"{self.url}/" for name in names},
            "http_proxy": self.url,
            "no_proxy": "127.0.0.1",
        }

    @property
    def env(self) -> dict[str, str]:
        """The variables for the experimenter's processes, who is a program."""
        return self.env_for(self.client, self.root / "login")

    @property
    def person_env(self) -> dict[str, str]:
        """The variables for the same experimenter as a person, who must log in.

        Any UUID will do for ``hansa login --client-id``.
        """
        return {**self.services, "HANSA_GLOBUS_DIR": str(self.root / "person")}

    # --- collections --------------------------------------------------------------

    def add_collection(
        self, path: Path, name: str = "", *, data_access: bool = False
    ) -> str:
        """Make a folder a collection; return its id.

        Args:
            path: The folder; made.
            name: For people.
            data_access: Whether it wants a consent of its own.
        """
        path.mkdir(parents=True, exist_ok=True)
        key = str(uuid.uuid4())
        self.state.put("collections", key, {
            "root": str(path.resolve()), "name": name or path.name,
            "data_access": data_access, "offline": False, "deny": [], "corrupt": 0,
            "corrupted": 0, "bytes_per_s": 0, "full": False, "session": {},
        })  # fmt: skip
        return key

    # --- endpoints ----------------------------------------------------------------

    def add_endpoint(
        self,
        name: str,
        *,
        functions: Sequence[str] | None = None,
        site: Path | None = None,
        environment: Mapping[str, str] | None = None,
        template: str = TEMPLATE,
        wait: bool = True,
    ) -> Endpoint:
        """Configure and start an endpoint that belongs to the experimenter.

        Args:
            name: Its name.
            functions: Ids of the functions that it allows; None: all.
            site: The facility's own file, for ``HANSA_SITE``.
            environment: More variables of its user endpoints.
            template: What a user endpoint is.
            wait: Return when the service has heard of it.
        """
        endpoint = self.new_endpoint(name)
        variables = {} if site is None else {"HANSA_SITE": str(site)}
        variables.update(environment or {})
        endpoint.write(functions, variables, template)
        endpoint.start(wait=wait)
        return endpoint

    def add_facility(
        self, name: str, site: Path, function: str, *, wait: bool = True
    ) -> Endpoint:
        """Start an endpoint as `hansa site globus-endpoint` writes it for a facility.

        Args:
            name: Its name.
            site: The facility's own file.
            function: Id of the one function that it allows.
            wait: Return when the service has heard of it.
        """
        endpoint = self.new_endpoint(name)
        endpoint.write_kit(site, function)
        endpoint.start(wait=wait)
        return endpoint

    def new_endpoint(self, name: str) -> Endpoint:
        """Return an endpoint that has no files yet and was not started."""
        root = self.root / "endpoints" / name
        root.mkdir(parents=True, exist_ok=True)
        env = {
            **plain_environment(),
            **self.services,
            "GLOBUS_COMPUTE_CLIENT_ID": self.client["sub"],
            "GLOBUS_COMPUTE_CLIENT_SECRET": self.client["secret"],
        }
        endpoint = Endpoint(name, root, env, self.state)
        self.endpoints[name] = endpoint
        return endpoint

    # --- what happened ------------------------------------------------------------

    def requests(self, pattern: str = "") -> list[Document]:
        """Return the requests so far, as ``POST /v0.10/transfer`` (an expression)."""
        return [
            one
            for one in self.state.entries("requests")
            if re.match(pattern, f"{one['method']} {one['path']}")
        ]

    def transfers(self, kind: str = "TRANSFER") -> list[Document]:
        """Return the transfer tasks so far (or those of another kind: ``DELETE``)."""
        found = self.state.all("transfers").values()
        return [task for task in found if task["type"] == kind]

    def submissions(self) -> list[Document]:
        """Return what was handed in to Transfer: ``Accepted``, or a ``Duplicate``."""
        return self.state.entries("submissions")

    def sent(self) -> list[tuple[str, str]]:
        """Return collection and path to which files were sent, in order."""
        return [
            (str(task["destination_endpoint_id"]), one["destination_path"])
            for task in self.transfers()
            for one in task["_successes"]
        ]

    def tasks(self) -> list[Document]:
        """Return the compute tasks so far."""
        return list(self.state.all("tasks").values())

    def active(self) -> list[Document]:
        """Return the transfer tasks that are not over."""
        return [task for task in self.transfers() if task["status"] == "ACTIVE"]

    def away(self, seconds: float) -> None:
        """Kill the services and start them again after a while."""
        self.kill_service()
        time.sleep(seconds)
        self.start_service()
