"""What `hansa site globus-endpoint` writes, read as YAML and JSON."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML
from typer.testing import CliRunner, Result

from hansa.cli.app import app
from hansa.core.errors import HansaError, UsageError

FUNCTION = "9d0cbd53-3fe2-4a45-9d9f-3c2d0c5b8f01"
SITE = """\
name: north
scheduler: {scheduler}
mailbox: {root}/mail
tasks: {{digits: {{}}}}
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A login node: batch commands, the endpoint's program, a home."""
    for name in ("bin/sbatch", "pbs/qsub", "own env/globus-compute-endpoint"):
        program = tmp_path / name
        program.parent.mkdir(exist_ok=True)
        program.write_text("#!/bin/sh\n")
        program.chmod(0o755)
    folders = [tmp_path / "bin", tmp_path / "pbs", tmp_path / "own env"]
    monkeypatch.setenv("PATH", ":".join(map(str, folders)))
    monkeypatch.setenv("GLOBUS_COMPUTE_USER_DIR", str(tmp_path / "home"))
    for name in ("SLURM_CONF", "PBS_CONF_FILE", "PBS_SERVER", "PBS_DEFAULT"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def site_of(place: Path, scheduler: str, more: str = "") -> Path:
    path = place / "site.yaml"
    path.write_text(SITE.format(scheduler=scheduler, root=place) + more)
    return path


def hansa(*words: object) -> Result:
    result = CliRunner().invoke(app, list(map(str, words)))
    if isinstance(result.exception, HansaError):
        raise result.exception
    return result


def written(place: Path, site: Path, *words: object) -> dict[str, str]:
    out = place / "written" / "door"
    said = ["--function", FUNCTION, "--site", site, "-o", out]
    result = hansa("site", "globus-endpoint", *said, *words)
    assert result.exit_code == 0, result.output
    assert result.stdout.split() == [str(out / name) for name in order(out)]
    return {path.name: path.read_text() for path in out.iterdir()}


def order(out: Path) -> list[str]:
    names = [
        "config.yaml",
        "user_config_template.yaml.j2",
        "user_config_schema.json",
        "user_environment.yaml",
        "SECURITY.md",
        "identity_mapping.json",
    ]
    assert {path.name for path in out.iterdir()} <= set(names)
    return [name for name in names if (out / name).exists()]


def read(text: str) -> dict[str, Any]:
    return dict(YAML(typ="safe", pure=True).load(text))


def template(files: dict[str, str]) -> dict[str, Any]:
    """Return the template as it is rendered: its raw body, word by word."""
    text = files["user_config_template.yaml.j2"]
    match = re.fullmatch(
        r"\{#-.*?-#\}\n\{%- raw -%\}\n(.*)\{% endraw %\}\n", text, re.DOTALL
    )
    assert match, text
    return read(match[1])


def test_one_function_may_run_and_no_setting_of_a_user_is_taken(place: Path) -> None:
    files = written(place, site_of(place, "slurm"))
    config = read(files["config.yaml"])
    assert config == {
        "display_name": "Hansa at north",
        "allowed_functions": [FUNCTION],
        "public": False,
        "heartbeat_period": 30,
    }
    schema = json.loads(files["user_config_schema.json"])
    assert schema["type"] == "object"
    assert schema["additionalProperties"] is False
    assert schema["properties"] == {}


def test_the_login_endpoint_is_threads_that_read_json_and_source(place: Path) -> None:
    made = template(written(place, site_of(place, "pbs")))
    assert made == {
        "engine": {
            "type": "ThreadPoolEngine",
            "max_workers": 4,
            "allowed_serializers": [
                "globus_compute_sdk.serialize.JSONData",
                "globus_compute_sdk.serialize.PureSourceTextInspect",
            ],
        },
        "idle_heartbeats_soft": 120,
        "idle_heartbeats_hard": 240,
    }


def test_a_request_finds_the_program_the_site_and_no_secret(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_CONF", "/etc/where/slurm.conf")
    site = site_of(place, "slurm")
    files = written(place, site)
    found = read(files["user_environment.yaml"])
    path = f"{place}/own env:{place}/bin:/usr/local/bin:/usr/bin:/bin"
    assert found["PATH"] == path
    assert found["SLURM_CONF"] == "/etc/where/slurm.conf"
    assert found["HANSA_SITE"] == str(site)
    assert os.access(found["HANSA_PROGRAM"], os.X_OK)
    secrets = {name for name in found if "SECRET" in name}
    assert secrets == {
        "GLOBUS_COMPUTE_CLIENT_SECRET",
        "GLOBUS_CLI_CLIENT_SECRET",
        "HANSA_GLOBUS_CLIENT_SECRET",
    }
    assert {found[name] for name in secrets} == {""}


def test_the_sheet_names_what_is_to_be_checked(place: Path) -> None:
    site = site_of(place, "slurm")
    sheet = written(place, site)["SECURITY.md"]
    program = place / "own env" / "globus-compute-endpoint"
    assert f"hansa function show {FUNCTION}" in sheet
    assert f"hansa function check {FUNCTION}" in sheet
    assert f"'{program}' render-user-config -e door" in sheet
    assert f'env -i HOME="$HOME" USER="$USER" \'{program}\' start door' in sheet
    assert str(site) in sheet
    assert "opens no port." in sheet


def test_the_next_steps_are_told(place: Path) -> None:
    site = site_of(place, "slurm")
    words = ["--function", FUNCTION, "--site", site]
    inside = hansa("site", "globus-endpoint", *words)
    assert (place / "home" / "hansa-north" / "config.yaml").exists()
    assert "cp -r" not in inside.stderr
    assert "start hansa-north --detach" in inside.stderr
    outside = hansa("site", "globus-endpoint", *words, "-o", place / "aside" / "x")
    assert f"cp -r {place}/aside/x {place}/home/" in outside.stderr


def test_nothing_is_overwritten(place: Path) -> None:
    out = place / "written" / "door"
    out.mkdir(parents=True)
    (out / "user_environment.yaml").write_text("mine")
    with pytest.raises(UsageError, match=r"user_environment\.yaml already"):
        written(place, site_of(place, "slurm"))
    assert [path.name for path in out.iterdir()] == ["user_environment.yaml"]
    assert (out / "user_environment.yaml").read_text() == "mine"


def test_a_new_folder_is_the_owners_alone(place: Path) -> None:
    written(place, site_of(place, "slurm"))
    assert (place / "written" / "door").stat().st_mode & 0o777 == 0o700


# --- identities -----------------------------------------------------------------------


def test_identities_are_mapped_to_the_letter(place: Path) -> None:
    site = site_of(place, "slurm")
    given = ["--identity", "ana@lab.gov=hansa", "--identity", "b.o+x@lab.gov"]
    files = written(place, site, *given)
    (mapping,) = json.loads(files["identity_mapping.json"])
    assert mapping["DATA_TYPE"] == "expression_identity_mapping#1.0.0"
    assert [
        (one["source"], one["match"], one["output"], one["literal"])
        for one in mapping["mappings"]
    ] == [
        ("{username}", "ana@lab.gov", "hansa", True),
        ("{username}", "b.o+x@lab.gov", site.owner(), True),
    ]
    config = read(files["config.yaml"])
    assert config["identity_mapping_config_path"] == str(
        place / "written" / "door" / "identity_mapping.json"
    )
    assert "email" not in config  # root's endpoint does not start before it is there
    assert "ana@lab.gov as hansa" in files["SECURITY.md"]


@pytest.mark.parametrize("identity", ["ana", "@lab.gov", "ana@", "a b@lab.gov"])
def test_what_is_no_identity_is_refused(place: Path, identity: str) -> None:
    with pytest.raises(UsageError, match="no Globus identity"):
        written(place, site_of(place, "slurm"), "--identity", identity)


# --- refusals -------------------------------------------------------------------------


def test_a_function_is_named_by_its_id(place: Path) -> None:
    words = ["--function", "hansa_site_rpc", "--site", site_of(place, "slurm")]
    with pytest.raises(UsageError, match="not the id of a function"):
        hansa("site", "globus-endpoint", *words)


def test_the_endpoints_program_must_be_there(place: Path) -> None:
    site = site_of(place, "slurm")
    with pytest.raises(UsageError, match="is no program") as caught:
        written(place, site, "--program", place / "nowhere")
    assert "pip install 'globus-compute-endpoint>=4.19'" in (caught.value.hint or "")
    (place / "own env" / "globus-compute-endpoint").unlink()
    with pytest.raises(UsageError, match="globus-compute-endpoint is not here"):
        written(place, site)


def test_the_batch_system_must_be_there(place: Path) -> None:
    (place / "bin" / "sbatch").unlink()
    with pytest.raises(UsageError, match="sbatch is not on the PATH"):
        written(place, site_of(place, "slurm"))
    options = f"{{type: slurm, bin: {place}}}"
    made = written(place, site_of(place, options))["user_environment.yaml"]
    path = f"{place}/own env:/usr/local/bin:/usr/bin:/bin"
    assert read(made)["PATH"] == path


def test_a_path_can_not_end_the_template(place: Path) -> None:
    folder = place / "x {% endraw %} y"
    folder.mkdir()
    site = folder / "site.yaml"
    site.write_text(SITE.format(scheduler="slurm", root=place))
    with pytest.raises(UsageError, match="endraw"):
        written(place, site)


# --- block ----------------------------------------------------------------------------

BLOCK = "{type: block, nodes: 4}"
MORE = """\
limits: {time: 36h, linger: 10m}
environment: {directives: [-C gpu, --gpus-per-node=4]}
"""


def test_a_block_of_slurm(place: Path) -> None:
    site = site_of(place, BLOCK, MORE)
    words = ["--block", "--profile", "nersc/perlmutter", "--account", "m1234"]
    files = written(place, site, *words, "--queue", "preempt")
    made = template(files)
    engine = made["engine"]
    assert engine["type"] == "GlobusComputeEngine"
    assert (engine["max_workers_per_node"], engine["encrypted"]) == (1, True)
    assert engine["max_retries_on_system_failure"] == 0
    assert engine["job_status_kwargs"]["max_idletime"] == 600.0
    init = engine["provider"].pop("worker_init").splitlines()
    assert init[0] == f"export PATH='{place}/own env':$PATH"
    assert init[1].startswith("export HANSA_PROGRAM=/")
    assert init[2:] == [
        f"export HANSA_SITE={site}",
        "export HANSA_BLOCK=4",
        f"export HANSA_BLOCK_ENDS=$(( $(date +%s) + {36 * 3600} ))",
    ]
    assert engine["provider"] == {
        "type": "SlurmProvider",
        "nodes_per_block": 4,
        "walltime": "36:00:00",
        "init_blocks": 0,
        "min_blocks": 0,
        "max_blocks": 1,
        "cmd_timeout": 120,
        "launcher": {"type": "SimpleLauncher"},
        "qos": "preempt",
        "account": "m1234",
        "scheduler_options": "#SBATCH -C gpu\n#SBATCH --gpus-per-node=4\n",
    }
    weeks_and_walltime = 14 * 86400 + 36 * 3600
    assert made["idle_heartbeats_hard"] == weeks_and_walltime / 30
    assert "54000 to 56000" in files["SECURITY.md"]


def test_a_block_of_pbs(place: Path) -> None:
    site = site_of(place, BLOCK, "environment: {directives: -l filesystems=home}\n")
    words = ["--block", "--profile", "alcf/polaris", "--account", "PROJ"]
    engine = template(written(place, site, *words, "--time", "2h"))["engine"]
    provider = engine["provider"]
    assert (provider["type"], provider["walltime"]) == ("PBSProProvider", "02:00:00")
    assert (provider["queue"], provider["account"]) == ("preemptable", "PROJ")
    assert (provider["cpus_per_node"], provider["select_options"]) == (
        32,
        "system=polaris",
    )
    assert provider["scheduler_options"].splitlines() == [
        "#PBS -l place=scatter",
        "#PBS -k doe",
        "#PBS -l filesystems=home",
    ]
    assert engine["job_status_kwargs"]["max_idletime"] == 300.0


def test_the_engine_for_mpi(place: Path) -> None:
    site = site_of(place, BLOCK, MORE)
    words = ["--block", "--engine", "GlobusMPIEngine"]
    engine = template(written(place, site, *words))["engine"]
    assert engine["type"] == "GlobusMPIEngine"
    assert (engine["max_workers_per_block"], engine["mpi_launcher"]) == (1, "srun")
    assert "partition" not in engine["provider"]


@pytest.mark.parametrize(
    ("scheduler", "words", "what"),
    [
        ("slurm", [], "not to a block of nodes"),
        (BLOCK, [], "How long may the block last"),
        (BLOCK, ["--time", "soon"], "no walltime"),
        (BLOCK, ["--time", "0"], "more than 0"),
        (BLOCK, ["--time", "1h", "--engine", "Loom"], "no engine 'Loom'"),
        (BLOCK, ["--time", "1h", "--profile", "local"], "no block of nodes"),
    ],
)
def test_a_block_that_can_not_be(
    place: Path, scheduler: str, words: list[str], what: str
) -> None:
    with pytest.raises(UsageError, match=what):
        written(place, site_of(place, scheduler), "--block", *words)
