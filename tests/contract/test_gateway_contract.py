"""What every gateway must do. A new one is one more entry of GATEWAYS.

Over real endpoints of Globus Compute see ``unit/gateway/test_globus_real.py``.
"""

import asyncio
import json
import shlex
import sys
import time
import uuid
from pathlib import Path

import pytest
import sshd
from compute_here import ComputeHere
from pydantic import BaseModel, ValidationError
from runs import until

from hansa.core import plugins
from hansa.core.errors import GatewayError, PolicyError, UsageError
from hansa.gateway import globus_service
from hansa.site import rpc
from hansa.site.agent import Agent

SITE = """\
name: here
scheduler: local
mailbox: {root}/mail
tasks: {{digits: {{}}}}
limits: {{nodes: 1}}
"""


class Local:
    """The site agent in a thread of this process; its answers are patched."""

    def __init__(self, root, monkeypatch, lines) -> None:
        self.options = {"site": root / "site.yaml"}
        self.patch = monkeypatch

    def pretend(self, reply) -> None:
        self.patch.setattr(Agent, "handle", lambda agent, ask: reply)

    def hang(self, gate) -> None:
        """Answer only once the file `gate` is there."""
        handle = Agent.handle

        def late(agent, ask):
            until(gate.exists, 100)
            return handle(agent, ask)

        self.patch.setattr(Agent, "handle", late)


class Ssh:
    """The site agent as a command behind a real sshd; another command pretends."""

    def __init__(self, root, monkeypatch, lines) -> None:
        self.root = root
        self.command = f"{sys.executable} -m hansa.cli"
        site = str(root / "site.yaml")
        self.options = {**lines.ssh(), "command": self.command, "site": site}

    def pretend(self, reply) -> None:
        self._become(f"echo 'Welcome to the machine!'; echo '{json.dumps(reply)}'")

    def hang(self, gate) -> None:
        wait = f"while ! [ -e {gate} ]; do sleep 0.05; done"
        self._become(f'{wait}; exec {self.command} "$@"')

    def _become(self, script: str) -> None:
        path = self.root / "stub.sh"
        path.write_text(f"{script}\n")
        self.options["command"] = f"sh {path}"


class Globus:
    """The site agent behind the registered function; another program pretends."""

    def __init__(self, root, monkeypatch, lines) -> None:
        here = ComputeHere()
        monkeypatch.setattr(globus_service, "GlobusRest", lambda: here)
        self.program = root / "hansa.sh"
        self.program.write_text(f'exec {sys.executable} -m hansa.cli "$@"\n')
        monkeypatch.setenv("HANSA_PROGRAM", f"sh {self.program}")
        monkeypatch.setenv("HANSA_SITE", str(root / "site.yaml"))
        self.options = {"endpoint": str(uuid.uuid4()), "function": str(uuid.uuid4())}

    def pretend(self, reply) -> None:
        answer = shlex.quote(json.dumps(reply))
        self.program.write_text(f"echo 'A module was loaded.'; echo {answer}\n")

    def hang(self, gate) -> None:
        real = self.program.read_text()
        wait = f"while ! [ -e {gate} ]; do sleep 0.05; done"
        self.program.write_text(f"{wait}\n{real}")


GATEWAYS = {"globus_compute": Globus, "local": Local, "ssh": Ssh}
"""How a gateway reaches the facility whose site.yaml lies in a folder."""


class Lines:
    """What the ways to facilities need, started when it is first needed."""

    def __init__(self, folder) -> None:
        self._folder = folder
        self._sshd: sshd.Sshd | None = None

    def ssh(self):
        if self._sshd is None:
            sshd.need("sshd", "ssh")
            self._sshd = sshd.Sshd.make(self._folder("line") / "sshd")
            self._sshd.start()
        return self._sshd.options

    def stop(self) -> None:
        if self._sshd is not None:
            self._sshd.stop()


class Bench:
    def __init__(self, name: str, root: Path, monkeypatch, lines) -> None:
        (root / "site.yaml").write_text(SITE.format(root=root))
        self.root = root
        self.kind = plugins.find(plugins.GATEWAYS, name)
        self.side = GATEWAYS[name](root, monkeypatch, lines)

    @property
    def options(self):
        return self.side.options

    def run(self, work):
        """Run `work(gateway)` in a loop, with a gateway that is closed after it."""

        async def whole():
            gateway = self.kind(self.kind.Options.model_validate(self.options))
            try:
                return await work(gateway)
            finally:
                await gateway.close()

        return asyncio.run(whole())

    def call(self, request, timeout=30.0):
        return self.run(lambda gateway: gateway.call(request, timeout))


@pytest.fixture(scope="module")
def lines(tmp_path_factory):
    """Share one sshd among all tests here."""
    made = Lines(tmp_path_factory.mktemp)
    yield made
    made.stop()


@pytest.fixture(params=sorted(GATEWAYS))
def bench(request, tmp_path, monkeypatch, lines):
    return Bench(request.param, tmp_path, monkeypatch, lines)


def submission(**job):
    order = {
        "schema": 1,
        "run": "r",
        "assignment": "train-0001-here-1",
        "kind": "train",
        "facility": "here",
        "round": 1,
        "steps": 3,
        "seed": 0,
        "model": {"trainer": "softmax", "source": "zeros", "dtype": "float32"},
        "task": {"name": "digits"},
    }
    return rpc.submit("r", order, 1, {"nodes": 1, "time": 60, **job}, dry_run=True)


def test_options_are_a_strict_model(bench):
    assert issubclass(bench.kind.Options, BaseModel)
    with pytest.raises(ValidationError):
        bench.kind.Options.model_validate({**bench.options, "no_such_option": 1})


def test_a_request_is_answered(bench):
    data = bench.call(rpc.probe())
    assert data["facility"] == "here"
    assert data["problems"] == []
    assert "exec " in bench.call(submission())["script"]


def test_one_gateway_serves_many_calls_at_once(bench):
    async def work(gateway):
        calls = [gateway.call(rpc.probe(), 30.0) for _ in range(3)]
        return await asyncio.gather(*calls)

    assert [data["facility"] for data in bench.run(work)] == ["here"] * 3


def test_the_agents_errors_come_under_their_own_class(bench):
    with pytest.raises(PolicyError, match=r"limits\.nodes") as caught:
        bench.call(submission(nodes=2))
    assert caught.value.hint
    with pytest.raises(UsageError):
        bench.call({"schema": 1, "op": "dance"})


def test_replies_are_plain_json(bench):
    bench.side.pretend(rpc.reply({"a": (1, 2)}))
    assert bench.call(rpc.probe()) == {"a": [1, 2]}


def test_nonsense_is_a_gateway_error(bench):
    bench.side.pretend({"motd": "welcome"})
    with pytest.raises(GatewayError, match="no reply"):
        bench.call(rpc.probe())


def test_a_late_answer_is_a_gateway_error_and_the_loop_stays_free(bench):
    gate = bench.root / "go-on"
    bench.side.hang(gate)

    async def work(gateway):
        began = time.monotonic()
        call = asyncio.create_task(gateway.call(rpc.probe(), 1.0))
        turns = 0
        while not call.done():
            turns += 1
            await asyncio.sleep(0.01)
        with pytest.raises(GatewayError, match="within") as caught:
            await call
        gate.touch()
        return caught.value.transient, turns, time.monotonic() - began

    transient, turns, took = bench.run(work)
    assert transient
    assert turns > 3
    assert took < 120


def test_a_call_after_a_late_one_is_answered(bench):
    gate = bench.root / "go-on"
    bench.side.hang(gate)

    async def work(gateway):
        with pytest.raises(GatewayError):
            await gateway.call(rpc.probe(), 0.1)
        gate.touch()
        return await gateway.call(rpc.probe(), 30.0)

    assert bench.run(work)["facility"] == "here"
