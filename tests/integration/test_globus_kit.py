"""The written endpoint folders, loaded by the real globus-compute-endpoint.

That one of them answers over Globus is shown where federations run over them
(`test_globus`), of a block in `test_block`.
"""

from __future__ import annotations

import base64
import json
import os
import pickle
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from globus import need_globus
from typer.testing import CliRunner

from hansa.cli.app import app
from sandbox import endpoints

pytestmark = pytest.mark.integration

PROBE = Path(__file__).parents[1] / "helpers" / "endpoint_probe.py"
FUNCTION = "9d0cbd53-3fe2-4a45-9d9f-3c2d0c5b8f01"
JSON_DATA = "globus_compute_sdk.serialize.JSONData"
EMPTY = {"args": "11\n[]", "kwargs": "11\n{}"}
SECRETS = {
    "GLOBUS_COMPUTE_CLIENT_ID": "an id",
    "GLOBUS_COMPUTE_CLIENT_SECRET": "hush",
    "HANSA_GLOBUS_CLIENT_SECRET": "hush",
}
LOCAL = {"ana.o@lab.gov": "hansa", "bob@lab.gov": "bob"}
OTHERS = ["anaXo@lab.gov", "ana.o@lab.gov.evil.org", "eve@lab.gov", "bob@LAB.gov"]


def source(name: str, text: str) -> str:
    """Return a function as the service sends one that was registered as source."""
    return f"st\n{name}:{text}"


class _Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


SHOW = {
    **EMPTY,
    "code": source("f", "def f():\n    import os\n    return dict(os.environ)\n"),
    "writers": [JSON_DATA],
}


def bombs(path: Path) -> list[dict[str, Any]]:
    """Return tasks that make a file if anything of them is unpickled."""
    bomb = base64.encodebytes(pickle.dumps(_Bomb(path))).decode()
    good = source("ok", "def ok():\n    return 1\n")
    return [
        {**EMPTY, "code": good, "args": f"00\n{bomb}"},
        {**EMPTY, "code": good, "kwargs": f"00\n{bomb}"},
        *({**EMPTY, "code": f"{head}\n{bomb}"} for head in ("01", "02", "03", "04")),
        {**EMPTY, "code": f"10\n{bomb}"},
    ]


@dataclass
class Kit:
    """Written folders, and what the real program says of them.

    Attributes:
        root: Where they lie.
        programs: The programs of the environment that holds globus-compute-endpoint.
        told: What it says, by the name of the question.
    """

    root: Path
    programs: Path
    told: dict[str, Any] = field(default_factory=dict)

    def write(self, name: str, scheduler: str, *words: str) -> Path:
        """Have a folder written."""
        site = self.root / "site.yaml"
        site.write_text(
            f"name: north\nscheduler: {scheduler}\nmailbox: {self.root}/mail\n"
            "tasks: {digits: {}}\nlimits: {time: 36h}\n"
            "environment: {directives: '--comment=here'}\n"
        )
        program = self.programs / "globus-compute-endpoint"
        said = ["--function", FUNCTION, "--site", str(site), "--program", str(program)]
        said += ["-o", str(self.root / name), *words]
        result = CliRunner().invoke(app, ["site", "globus-endpoint", *said])
        assert result.exit_code == 0, (result.output, result.exception)
        return self.root / name

    def ask(self, questions: dict[str, dict[str, Any]]) -> None:
        """Ask all questions of one process of the endpoint's own environment."""
        done = subprocess.run(
            [self.programs / "python", PROBE],
            input=json.dumps(list(questions.values()), default=str),
            env={**os.environ, **SECRETS},
            cwd=self.root,
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        self.told = dict(zip(questions, json.loads(done.stdout), strict=True))


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kit]:
    """All folders; the batch commands are there, nobody calls them."""
    need_globus()
    root, found = tmp_path_factory.mktemp("kit"), endpoints.program()
    assert found is not None
    (root / "bin").mkdir()
    for name in ("sbatch", "qsub", "sacct"):
        (root / "bin" / name).write_text("#!/bin/sh\nexit 1\n")
        (root / "bin" / name).chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{root}/bin:{os.environ['PATH']}")
        made = Kit(root, found.parent)
        held = ("{type: block, nodes: 4}", "--block", "--account", "m1", "--profile")
        slurm = (*held, "nersc/perlmutter", "--engine")
        pairs = [f"{name}={local}" for name, local in LOCAL.items()]
        mapped = [word for pair in pairs for word in ("--identity", pair)]
        door = made.write("hansa-north", "slurm")
        made.ask({
            "door": {"folder": door, "tasks": [SHOW]},
            "setting": {"folder": door, "settings": {"worker_init": "touch /owned"}},
            "bombs": {"folder": door, "tasks": bombs(root / "owned")},
            "mapped": {
                "folder": made.write("mapped", "slurm", *mapped),
                "identities": [*LOCAL, *OTHERS],
            },
            **{
                engine: {"folder": made.write(engine, *slurm, engine)}
                for engine in ("GlobusComputeEngine", "GlobusMPIEngine")
            },
            "pbs": {"folder": made.write("pbs", *held, "alcf/polaris")},
        })  # fmt: skip
        yield made


def test_it_lets_in_one_function_and_no_setting(kit: Kit) -> None:
    told, refused = kit.told["door"], kit.told["setting"]
    assert told["kind"] == "CoreEndpointConfig"
    assert told["allowed_functions"] == [FUNCTION]
    assert told["public"] is False
    assert told["engine"] == "ThreadPoolEngine"
    assert told["idle"] == [120, 240]
    assert refused["refused"] == "ValidationError"
    assert "engine" not in refused


def test_no_secret_is_in_a_tasks_environment(kit: Kit) -> None:
    (result,) = kit.told["door"]["results"]
    assert result["data"].startswith("11\n"), result
    seen = json.loads(result["data"][3:])
    assert "hush" not in seen.values()
    assert seen["HANSA_SITE"] == str(kit.root / "site.yaml")
    assert seen["PATH"].split(":")[:2] == [str(kit.programs), f"{kit.root}/bin"]


def test_what_is_pickled_is_refused_before_it_is_opened(
    kit: Kit, tmp_path: Path
) -> None:
    results = kit.told["bombs"]["results"]
    assert len(results) == len(bombs(tmp_path))
    for result in results:
        assert result["failed"]
        assert "disabled by current configuration" in result["data"]
    assert not (kit.root / "owned").exists()
    live = tmp_path / "owned"
    pickle.loads(pickle.dumps(_Bomb(live)))  # noqa: S301 - the bomb itself is live
    assert live.exists()


def test_only_who_is_written_down_becomes_a_local_user(kit: Kit) -> None:
    assert kit.told["mapped"]["mapped"] == {**LOCAL, **dict.fromkeys(OTHERS)}


@pytest.mark.parametrize("engine", ["GlobusComputeEngine", "GlobusMPIEngine"])
def test_a_block_on_slurm(kit: Kit, engine: str) -> None:
    told = kit.told[engine]
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
        f"export PATH={kit.programs}:$PATH",
        f"export HANSA_SITE={kit.root}/site.yaml",
    ):
        assert line in lines
    assert lines[-1] == "worker"  # one, on the first node, with no launcher before it


def test_a_block_on_pbs(kit: Kit) -> None:
    made = kit.told["pbs"]["provider"]
    assert (made["type"], made["blocks"]) == ("PBSProProvider", [0, 0, 1])
    lines = made["script"].splitlines()
    for line in (
        "#PBS -l select=4:ncpus=32:system=polaris",
        "#PBS -l walltime=36:00:00",
        "#PBS -l place=scatter",
        "#PBS -k doe",
        f"export HANSA_SITE={kit.root}/site.yaml",
    ):
        assert line in lines


def test_the_sheets_commands_work(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    """What SECURITY.md tells a reviewer to type gives what it says."""
    door = kit.root / "hansa-north"
    monkeypatch.setenv("GLOBUS_COMPUTE_USER_DIR", str(door.parent))
    program = kit.programs / "globus-compute-endpoint"
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
