"""The written endpoint folders, loaded and run by the real globus-compute-endpoint."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import pickle
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from globus import Sandbox, need_globus, sandbox
from slurm import Cluster, require_slurm
from typer.testing import CliRunner

from hansa.cli.app import app
from hansa.core.errors import HansaError
from hansa.gateway.globus_compute import GlobusComputeGateway, GlobusComputeOptions
from sandbox import endpoints

pytestmark = pytest.mark.integration

REPO = Path(__file__).parents[2]
PROBE = REPO / "tests" / "helpers" / "endpoint_probe.py"
FUNCTION = "9d0cbd53-3fe2-4a45-9d9f-3c2d0c5b8f01"
JSON_DATA = "globus_compute_sdk.serialize.JSONData"
EMPTY = {"args": "11\n[]", "kwargs": "11\n{}"}


@pytest.fixture(scope="module")
def endpoint_bin() -> Path:
    """The programs of the environment that holds globus-compute-endpoint."""
    need_globus()
    program = endpoints.program()
    assert program is not None
    return program.parent


@pytest.fixture
def door(tmp_path: Path, endpoint_bin: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A site; the batch commands are there, nobody calls them."""
    for name in ("sbatch", "qsub", "sacct"):
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text("#!/bin/sh\nexit 1\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    return tmp_path / "hansa-north"


def write(door: Path, programs: Path, scheduler: str, *words: str) -> Path:
    site = door.parent / "site.yaml"
    site.write_text(
        f"name: north\nscheduler: {scheduler}\nmailbox: {door.parent}/mail\n"
        "tasks: {digits: {}}\nlimits: {time: 36h}\n"
        "environment: {directives: '--comment=here'}\n"
    )
    said = ["--function", FUNCTION, "--site", str(site), "-o", str(door)]
    said += ["--program", str(programs / "globus-compute-endpoint"), *words]
    result = CliRunner().invoke(app, ["site", "globus-endpoint", *said])
    assert result.exit_code == 0, (result.output, result.exception)
    return door


def probe(door: Path, programs: Path, **asked: object) -> dict[str, Any]:
    secrets = {
        "GLOBUS_COMPUTE_CLIENT_ID": "an id",
        "GLOBUS_COMPUTE_CLIENT_SECRET": "hush",
        "HANSA_GLOBUS_CLIENT_SECRET": "hush",
    }
    done = subprocess.run(
        [programs / "python", PROBE, door],
        input=json.dumps(asked),
        env={**os.environ, **secrets},
        cwd=door.parent,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def source(name: str, text: str) -> str:
    """Return a function as the service sends one that was registered as source."""
    return f"st\n{name}:{text}"


def test_it_lets_in_one_function_and_no_setting(door: Path, endpoint_bin: Path) -> None:
    write(door, endpoint_bin, "slurm")
    told = probe(door, endpoint_bin)
    assert told["kind"] == "CoreEndpointConfig"
    assert told["allowed_functions"] == [FUNCTION]
    assert told["public"] is False
    assert told["engine"] == "ThreadPoolEngine"
    assert told["idle"] == [120, 240]
    refused = probe(door, endpoint_bin, settings={"worker_init": "touch /owned"})
    assert refused["refused"] == "ValidationError"
    assert "engine" not in refused


def test_a_request_reaches_the_site_agent_and_comes_back_as_json(
    door: Path, endpoint_bin: Path
) -> None:
    from hansa.gateway import globus_function

    write(door, endpoint_bin, "local")
    text = Path(globus_function.__file__).read_text(encoding="utf-8")
    request = {"schema": 1, "op": "probe"}
    task = {
        "code": source("hansa_site_rpc", text),
        "args": "11\n" + json.dumps([request, 60.0]),
        "kwargs": "11\n{}",
        "writers": [JSON_DATA],
    }
    (result,) = probe(door, endpoint_bin, tasks=[task])["results"]
    assert not result["failed"], result
    head, body = result["data"][:3], json.loads(result["data"][3:])
    assert head == "11\n"
    assert body["returncode"] == 0, body
    reply = json.loads(body["stdout"])
    assert reply["ok"] is True
    assert reply["data"]["facility"] == "north"


def test_no_secret_is_in_a_tasks_environment(door: Path, endpoint_bin: Path) -> None:
    write(door, endpoint_bin, "slurm")
    text = "def show():\n    import os\n    return dict(os.environ)\n"
    task = {**EMPTY, "code": source("show", text), "writers": [JSON_DATA]}
    (result,) = probe(door, endpoint_bin, tasks=[task])["results"]
    seen = json.loads(result["data"][3:])
    assert "hush" not in seen.values()
    assert seen["HANSA_SITE"] == str(door.parent / "site.yaml")
    assert seen["PATH"].split(":")[:2] == [str(endpoint_bin), f"{door.parent}/bin"]


class _Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_what_is_pickled_is_refused_before_it_is_opened(
    door: Path, endpoint_bin: Path
) -> None:
    write(door, endpoint_bin, "slurm")
    owned = door.parent / "owned"
    bomb = base64.encodebytes(pickle.dumps(_Bomb(owned))).decode()
    good = source("ok", "def ok():\n    return 1\n")
    tasks = [
        {**EMPTY, "code": good, "args": f"00\n{bomb}"},
        {**EMPTY, "code": good, "kwargs": f"00\n{bomb}"},
        *({**EMPTY, "code": f"{head}\n{bomb}"} for head in ("01", "02", "03", "04")),
        {**EMPTY, "code": f"10\n{bomb}"},
    ]
    results = probe(door, endpoint_bin, tasks=tasks)["results"]
    assert len(results) == len(tasks)
    for result in results:
        assert result["failed"]
        assert "disabled by current configuration" in result["data"]
    assert not owned.exists()
    pickle.loads(pickle.dumps(_Bomb(owned)))  # noqa: S301 — the bomb itself is live
    assert owned.exists()


def test_only_who_is_written_down_becomes_a_local_user(
    door: Path, endpoint_bin: Path
) -> None:
    words = ["--identity", "ana.o@lab.gov=hansa", "--identity", "bob@lab.gov=bob"]
    write(door, endpoint_bin, "slurm", *words)
    others = ["anaXo@lab.gov", "ana.o@lab.gov.evil.org", "eve@lab.gov", "bob@LAB.gov"]
    asked = ["ana.o@lab.gov", "bob@lab.gov", *others]
    told = probe(door, endpoint_bin, identities=asked)
    assert told["mapped"] == {
        "ana.o@lab.gov": "hansa",
        "bob@lab.gov": "bob",
        **dict.fromkeys(others),
    }


@pytest.mark.parametrize("engine", ["GlobusComputeEngine", "GlobusMPIEngine"])
def test_a_block_on_slurm(door: Path, endpoint_bin: Path, engine: str) -> None:
    words = ["--block", "--engine", engine, "--profile", "nersc/perlmutter"]
    write(door, endpoint_bin, "{type: block, nodes: 4}", *words, "--account", "m1")
    told = probe(door, endpoint_bin)
    assert told["engine"] == engine
    made = told["provider"]
    assert (made["type"], made["blocks"]) == ("SlurmProvider", [0, 0, 1])
    lines = made["script"].splitlines()
    for line in (
        "#SBATCH --nodes=4",
        "#SBATCH --time=36:00:00",
        "#SBATCH --comment=here",
        "#SBATCH --account=m1",
        "#SBATCH --qos=regular",
        f"export PATH={endpoint_bin}:$PATH",
        f"export HANSA_SITE={door.parent}/site.yaml",
    ):
        assert line in lines
    assert lines[-1] == "worker"  # one, on the first node, with no launcher before it


def test_a_block_on_pbs(door: Path, endpoint_bin: Path) -> None:
    words = ["--block", "--profile", "alcf/polaris", "--account", "PROJ"]
    write(door, endpoint_bin, "{type: block, nodes: 4}", *words)
    made = probe(door, endpoint_bin)["provider"]
    assert (made["type"], made["blocks"]) == ("PBSProProvider", [0, 0, 1])
    lines = made["script"].splitlines()
    for line in (
        "#PBS -l select=4:ncpus=32:system=polaris",
        "#PBS -l walltime=36:00:00",
        "#PBS -l place=scatter",
        "#PBS -k doe",
        f"export HANSA_SITE={door.parent}/site.yaml",
    ):
        assert line in lines


def test_the_sheets_commands_work(
    door: Path, endpoint_bin: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What SECURITY.md tells a reviewer to type gives what it says."""
    monkeypatch.setenv("GLOBUS_COMPUTE_USER_DIR", str(door.parent))
    write(door, endpoint_bin, "slurm")
    program = endpoint_bin / "globus-compute-endpoint"
    asked = f"{program} render-user-config -e {door.name}"
    setting = f'echo \'{{"worker_init": "id"}}\' | {asked} -o -'
    sheet = (door / "SECURITY.md").read_text()
    assert asked in sheet
    assert setting in sheet
    shown, refused = (
        subprocess.run(
            ["sh", "-c", line], capture_output=True, text=True, timeout=60, check=False
        )
        for line in (asked, setting)
    )
    assert (shown.returncode, shown.stdout.strip()[:7]) == (0, "engine:")
    assert refused.returncode != 0
    assert "ValidationError" in refused.stderr + refused.stdout


@pytest.fixture
def globus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sandbox]:
    with sandbox(tmp_path / "globus") as made:
        for name, value in made.env.items():
            monkeypatch.setenv(name, value)
        yield made


def answer(
    globus: Sandbox, programs: Path, scheduler: str, *words: str
) -> dict[str, Any]:
    """The whole way: registration, the written folder, the endpoint, one request."""
    said = CliRunner().invoke(app, ["function", "register"])
    assert said.exit_code == 0, (said.output, said.exception)
    function = said.stdout.strip()
    site = globus.new_endpoint("north")
    write(site.folder, programs, scheduler, "--function", function, *words)
    # Root's endpoints want an address, and give their children no variables.
    with (site.folder / "config.yaml").open("a") as file:
        file.write("email: nobody@sandbox.example\n")
    with (site.folder / "user_environment.yaml").open("a") as file:
        file.write(f"GLOBUS_COMPUTE_USER_DIR: {site.root}\nHOME: {globus.root}\n")
    template = site.folder / "user_config_template.yaml.j2"
    text = template.read_text()
    text = re.sub("# address: .*", "address: 127.0.0.1", text)
    template.write_text(text)
    site.start()
    options = GlobusComputeOptions(endpoint=UUID(site.id), function=UUID(function))
    try:
        return asyncio.run(asked(GlobusComputeGateway(options)))
    except HansaError as error:
        raise AssertionError(site.log()) from error


async def asked(gateway: GlobusComputeGateway) -> dict[str, Any]:
    try:
        return await gateway.call({"schema": 1, "op": "probe"}, 80)
    finally:
        await gateway.close()


def test_the_written_endpoint_answers_when_it_is_started(
    globus: Sandbox, endpoint_bin: Path
) -> None:
    assert answer(globus, endpoint_bin, "local")["facility"] == "north"


@pytest.mark.timeout(240)
def test_the_written_block_answers_from_a_node(
    globus: Sandbox,
    endpoint_bin: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    require_slurm()
    (tmp_path / "slurm").mkdir()
    with Cluster(tmp_path / "slurm", "beta", nodes=2) as cluster:
        monkeypatch.setenv("SLURM_CONF", str(cluster.conf))
        words = ["--block", "--time", "5m", "--queue", "debug"]
        scheduler = "{type: block, nodes: 2}"
        reply = answer(globus, endpoint_bin, scheduler, *words)
        assert reply["scheduler"] == "block"
        jobs = cluster.run("squeue", "--noheader", "--format=%P %D %l %T").split()
        assert jobs == ["debug", "2", "5:00", "RUNNING"]
