"""What a real endpoint answers and refuses; everything on loopback.

What a run outlives (a killed endpoint, a service that is away) is shown in
``integration/test_globus.py``.
"""

import asyncio
import sys

import globus
import pytest
from typer.testing import CliRunner

from hansa.cli.app import app
from hansa.core.errors import GatewayError
from hansa.gateway.globus_compute import GlobusComputeGateway
from hansa.gateway.globus_rest import GlobusRest
from hansa.login import clients
from hansa.site import rpc

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]
SPY = """\
env > {root}/seen
exec {python} -m hansa.cli "$@"
"""


class There:
    """One endpoint with the function on its list, and one function that is not."""

    def __init__(self, root) -> None:
        self.root = root
        self.sandbox = globus.sandbox(root / "globus").start()
        self.sandbox.faults.unlimited()
        with pytest.MonkeyPatch.context() as patch:
            self.enter(patch, self.sandbox.env)
            self.function, self.other = self.register(), self.register()
        site = root / "site.yaml"
        site.write_text(
            f"name: here\nscheduler: local\nmailbox: {root}/m\n"
            "tasks: {digits: {}}\n"
        )
        program = root / "hansa.sh"
        program.write_text(SPY.format(root=root, python=sys.executable))
        self.endpoint = self.sandbox.add_endpoint(
            "here",
            functions=[self.function],
            site=site,
            environment={
                "HANSA_PROGRAM": f"sh {program}",
                "GLOBUS_COMPUTE_CLIENT_SECRET": "not-for-a-task",
                "SOME_API_TOKEN": "nor-this",
            },
        )

    def enter(self, patch, env) -> None:
        for name, value in env.items():
            patch.setenv(name, value)

    def register(self) -> str:
        return CliRunner().invoke(app, ["function", "register"]).stdout.strip()

    def run(self, work, **options):
        async def whole():
            kind = GlobusComputeGateway
            ids = {"endpoint": self.endpoint.id, "function": self.function}
            gateway = kind(kind.Options.model_validate({**ids, **options}))
            try:
                return await work(gateway)
            finally:
                await gateway.close()

        return asyncio.run(whole())


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    there = There(tmp_path_factory.mktemp("real"))
    yield there
    there.sandbox.stop()


@pytest.fixture
def there(made, monkeypatch):
    made.enter(monkeypatch, made.sandbox.env)
    return made


async def probe(gateway):
    return (await gateway.call(rpc.probe(), 120.0))["facility"]


async def refused(gateway) -> GatewayError:
    with pytest.raises(GatewayError) as caught:
        await gateway.call(rpc.probe(), 60.0)
    return caught.value


def test_many_calls_are_answered_at_once_and_no_secret_reaches_the_site_agent(there):
    async def work(gateway):
        return await asyncio.gather(*(probe(gateway) for _ in range(3)))

    assert there.run(work) == ["here"] * 3
    seen = (there.root / "seen").read_text()
    assert "HANSA_SITE=" in seen
    for secret in ("not-for-a-task", "nor-this", "GLOBUS_"):
        assert secret not in seen


def test_a_function_outside_the_list_is_refused_by_the_service(there):
    error = there.run(refused, function=there.other)
    assert f"may not run the function {there.other}" in error.message
    assert f"add {there.other} to `allowed_functions`" in error.hint
    assert not error.transient


def test_and_by_the_endpoint_itself(there):
    there.sandbox.state.put("settings", "allow_list", {"skip": True})
    try:
        error = there.run(refused, function=there.other)
    finally:
        there.sandbox.state.put("settings", "allow_list", {})
    assert f"may not run the function {there.other}" in error.message
    assert not error.transient


def test_a_strange_identity_is_refused(there, monkeypatch):
    stranger = there.sandbox.add_client("eve@elsewhere.example")
    env = there.sandbox.env_for(stranger, there.root / "eve")
    there.enter(monkeypatch, env)
    error = there.run(refused)
    assert "does not know you" in error.message
    assert "untrusted identity" in error.message
    assert "hansa whoami" in error.hint
    assert not error.transient


def test_pickled_arguments_are_refused_by_the_endpoint(there, monkeypatch):
    real = clients.compute_client

    def pickling():
        client = real()
        client.fx_serializer.data_serializer = DILL
        return client

    from globus_compute_sdk.serialize import DillDataBase64

    DILL = DillDataBase64()  # noqa: N806 - a strategy, not a variable
    monkeypatch.setattr("hansa.gateway.globus_rest.compute_client", pickling)
    error = there.run(refused)
    assert "refuses the form of the request" in error.message
    assert "DillDataBase64 disabled" in error.message
    assert not error.transient


def test_the_check_says_that_all_is_well_or_what_is_not(there):
    async def look(gateway):
        return [(one.check, one.state) for one in await gateway.check()]

    assert there.run(look) == [("login", "ok"), ("endpoint", "ok"), ("endpoint", "ok")]
    assert ("endpoint", "problem") in there.run(look, function=there.other)


def test_the_text_is_compared_with_what_the_service_holds(there):
    words = ["function", "check", there.function]
    assert CliRunner().invoke(app, words).exit_code == 0
    rest = GlobusRest()
    another = rest.register("hansa_site_rpc", "def hansa_site_rpc(): ...", "x", None)
    rest.close()
    assert CliRunner().invoke(app, ["function", "check", another]).exit_code == 1
