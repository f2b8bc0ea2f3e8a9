"""The plans of the documented machines, word by word.

``HANSA_REWRITE_GOLDEN=1 python -m pytest tests/unit/cli/test_plan.py`` writes the site
files of `examples/sites/doe` and the scripts of `tests/golden/plan` anew; look at what
`git diff` shows before you keep it.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ruamel.yaml import YAML
from safetensors.numpy import save_file
from typer.testing import CliRunner, Result

from hansa.cli.app import app
from hansa.coordinator.planning import Sizes, sizes_of
from hansa.core.errors import SpecError
from hansa.spec import load_federation, load_profile, load_site
from hansa.spec.site_text import SiteWish, site_text

REPO = Path(__file__).parents[3]
DOE = REPO / "examples" / "doe.yaml"
GOLDEN = REPO / "tests" / "golden" / "plan"
REWRITE = bool(os.environ.get("HANSA_REWRITE_GOLDEN"))

BASES = {
    "polaris": ("alcf/polaris", "/lus/eagle/projects/PROJ/hansa"),
    "perlmutter": ("nersc/perlmutter", "/pscratch/sd/U/USER/hansa"),
    "aurora": ("alcf/aurora", "/lus/flare/projects/PROJ/hansa"),
    "frontier": ("olcf/frontier", "/lustre/orion/PROJ/proj-shared/hansa"),
    "lumi": ("csc/lumi", "/scratch/PROJ/hansa"),
    "leonardo": ("cineca/leonardo", "/leonardo_work/PROJ/hansa"),
}
GROUPS = {
    "polaris": "property_prediction",
    "perlmutter": "name_conversion",
    "aurora": "chemical_reaction",
    "frontier": "molecule_description",
    "lumi": "name_conversion",
    "leonardo": "chemical_reaction",
}
DOE_NAMES = ["polaris", "perlmutter", "aurora", "frontier"]


def written_site(name: str) -> str:
    """Return what `hansa site init` writes, with the two lines that were filled in."""
    machine, base = BASES[name]
    wish = SiteWish(
        name=name,
        machine=machine,
        tasks={"chem-instruct": f"{base}/data/smolinstruct"},
    )
    text = site_text(load_profile(machine), wish)
    text, splits = re.subn(
        r"    # splits: \[GROUP\].*\n",
        f"    splits: [{GROUPS[name]}]     # only this group may be trained on\n",
        text,
    )
    assert splits == 1
    models = (
        "# What a federation calls llama-2-7b lies here (for LoRA only).\n"
        f"models: {{llama-2-7b: {base}/models/llama-2-7b}}\n\n"
    )
    text, limits = re.subn(
        r"(?m)^(# The most that a federation may ask for\.)", models + r"\1", text
    )
    assert limits == 1
    return text


def hansa(*arguments: str) -> Result:
    return CliRunner().invoke(app, [*arguments], catch_exceptions=False)


def planned(*arguments: str) -> dict[str, Any]:
    result = hansa("plan", *arguments, "--json")
    assert result.exit_code == 0, result.output
    data: dict[str, Any] = json.loads(result.stdout)["data"]
    return data


@pytest.fixture(scope="module")
def doe() -> dict[str, Any]:
    facilities: dict[str, Any] = planned(str(DOE))["facilities"]
    return facilities


def same_as_file(path: Path, text: str) -> None:
    if REWRITE:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert path.read_text(encoding="utf-8") == text


def settled(script: str) -> str:
    """Take the digest out: it changes with every word of the order."""
    return re.sub(r"--sha256 [0-9a-f]{64}", "--sha256 DIGEST", script)


@pytest.mark.parametrize("name", DOE_NAMES)
def test_the_site_files_are_what_site_init_writes(name: str) -> None:
    file = REPO / "examples" / "sites" / "doe" / f"{name}.yaml"
    same_as_file(file, written_site(name))
    assert load_site(file).name == name


@pytest.mark.parametrize("name", DOE_NAMES)
def test_the_scripts_of_the_four_machines(doe: dict[str, Any], name: str) -> None:
    same_as_file(GOLDEN / f"{name}.sh", settled(doe[name]["script"]))


@pytest.mark.parametrize("name", ["lumi", "leonardo"])
def test_the_scripts_of_two_machines_in_europe(tmp_path: Path, name: str) -> None:
    machine, _ = BASES[name]
    (tmp_path / "site.yaml").write_text(written_site(name), encoding="utf-8")
    profile = load_profile(machine)
    assert profile.account is not None
    (tmp_path / "fed.yaml").write_text(
        f"""
name: euro
model: {{trainer: causal-lm, source: llama-2-7b, dtype: bfloat16}}
task: chem-instruct
strategy: fedavg
stop: {{rounds: 1}}
facilities:
  {name}:
    profile: {machine}
    site: site.yaml
    gateway: {{type: local, site: site.yaml}}
    mover: posix
    job: {{nodes: 2, account: {profile.account.text}}}
    work: {{steps: 10}}
""",
        encoding="utf-8",
    )
    plan = planned(str(tmp_path / "fed.yaml"))["facilities"][name]
    assert plan["queue"] == profile.job["queue"]
    same_as_file(GOLDEN / f"{name}.sh", settled(plan["script"]))


def test_without_globus_the_scripts_are_the_same(tmp_path: Path) -> None:
    """The lines at the end of the file, put in place of those above them."""
    text = DOE.read_text(encoding="utf-8")
    lines = text[text.index("# Without Globus: over ssh") :].splitlines()
    other = yaml().load("\n".join(line.removeprefix("#") for line in lines[3:]))
    whole = yaml().load(text)
    del whole["defaults"]["gateway"]
    whole["defaults"]["mover"] = other["defaults"]["mover"]
    for name, facility in whole["facilities"].items():
        facility.update(other["facilities"].pop(name))
        facility["site"] = str(DOE.parent / facility["site"])
    assert other["facilities"] == {}
    with (tmp_path / "doe.yaml").open("w") as file:
        yaml().dump(whole, file)
    facilities = planned(str(tmp_path / "doe.yaml"))["facilities"]
    for name in DOE_NAMES:
        script = settled(facilities[name]["script"])
        assert script == (GOLDEN / f"{name}.sh").read_text(encoding="utf-8")


def yaml() -> YAML:
    return YAML(typ="safe", pure=True)


def test_a_plan_says_what_scripts_may_rely_on(doe: dict[str, Any]) -> None:
    shapes = {
        name: (one["scheduler"], one["nodes"], one["ranks_per_node"], one["ranks"])
        for name, one in doe.items()
    }
    assert shapes == {
        "polaris": ("pbs", 2, 4, 8),
        "perlmutter": ("slurm", 2, 4, 8),
        "aurora": ("pbs", 2, 12, 24),
        "frontier": ("slurm", 2, 8, 16),
    }
    for one in doe.values():
        assert (one["account"], one["time_s"]) == ("PROJ", 3600.0)
        numbers = 6_738_415_616  # versions and updates are both in bfloat16
        assert one["version_bytes"] == one["update_bytes"] == 2 * numbers
        assert one["transfer_bytes"] == 4 * numbers
        assert one["memory_bytes"] == one["memory"]["total_bytes"]
        assert one["memory_bytes"] < 0.92 * one["memory"]["device_bytes"]
        assert one["pace"] is None
        assert one["problems"] == []
    spread = {name: one["sharding"] for name, one in doe.items()}
    assert spread["polaris"] == spread["perlmutter"] == "fsdp"


@pytest.mark.parametrize("name", [*DOE_NAMES, "lumi", "leonardo"])
def test_a_shell_accepts_every_script(name: str) -> None:
    file = GOLDEN / f"{name}.sh"
    subprocess.run(["bash", "-n", str(file)], check=True)


@pytest.mark.parametrize("name", [*DOE_NAMES, "lumi", "leonardo"])
def test_the_launch_line_starts_one_python_for_each_rank(
    tmp_path: Path, name: str
) -> None:
    """Run the last line with a launcher that starts two ranks of one node."""
    last = (GOLDEN / f"{name}.sh").read_text(encoding="utf-8").splitlines()[-1]
    fake = tmp_path / "launcher"
    fake.write_text(
        """#!/bin/bash
while [ $# -gt 0 ]; do case "$1" in bash|/*) break;; *) shift;; esac; done
for local in 0 1; do
  PALS_LOCAL_RANKID=$local PMI_LOCAL_RANK=$local SLURM_LOCALID=$local "$@"
done
""",
        encoding="utf-8",
    )
    program = tmp_path / "python"
    program.write_text(
        '#!/bin/bash\necho "[${ZE_AFFINITY_MASK}${CUDA_VISIBLE_DEVICES}'
        '${ROCR_VISIBLE_DEVICES}] $*"\n',
        encoding="utf-8",
    )
    for made in (fake, program):
        made.chmod(0o755)
    line = re.sub(r"\S+/bin/python", str(program), last)
    line = re.sub(r"^exec (mpiexec|srun)", f"exec {fake}", line)
    done = subprocess.run(
        ["bash", "-c", line],
        env={"PATH": os.environ["PATH"], "HANSA_ATTEMPT": "1-2"},
        capture_output=True,
        text=True,
        check=True,
    )
    ranks = done.stdout.splitlines()
    reverse = ["3", "2"]
    seen = {"polaris": reverse, "perlmutter": reverse, "frontier": ["", ""]}.get(
        name, ["0", "1"]
    )
    assert [re.findall(r"^\[(.*?)\]", rank) for rank in ranks] == [[s] for s in seen]
    for rank in ranks:
        words = shlex.split(rank)
        assert words[1:5] == ["-P", "-m", "hansa.worker", "run"]
        assert words[-4:] == ["--sha256", "DIGEST", "--attempt", "1-2"]


def test_the_text_names_job_and_transfers() -> None:
    out = hansa("plan", str(DOE)).stdout
    assert out.count("#!/bin/bash -l") == 4
    assert "job: 2 x 12 ranks, 1:00:00, queue capacity, account PROJ, pbs" in out
    assert "by globus to doe/versions/<n> in the mailbox, once a version" in out
    assert "rendered here from" in out


def test_a_job_that_the_queue_can_not_take_is_pointed_out() -> None:
    plan = planned(str(DOE), "facilities.aurora.job.queue=prod")
    notes = " ".join(plan["facilities"]["aurora"]["notes"])
    assert "prod of alcf/aurora takes 256 nodes at least, not 2." in notes
    plan = planned(str(DOE), "facilities.frontier.job.queue=bach")
    notes = " ".join(plan["facilities"]["frontier"]["notes"])
    assert "knows no queue 'bach'; it knows batch, extended." in notes


def test_small_jobs_may_have_shorter_limits() -> None:
    change = "facilities.frontier.job.time=6:00:00"
    for nodes, told in ((2, True), (91, True), (92, False)):
        more = f"facilities.frontier.job.nodes={nodes}"
        notes = " ".join(
            planned(str(DOE), change, more)["facilities"]["frontier"]["notes"]
        )
        words = f"allows 2:00:00 at most to {nodes} nodes, not 6:00:00."
        assert (words in notes) is told
        assert ("allows" in notes) is told


def test_a_copy_of_another_facilitys_file_is_told(tmp_path: Path) -> None:
    text = DOE.read_text(encoding="utf-8")
    wrong = text.replace("site: sites/doe/aurora.yaml", "site: sites/doe/polaris.yaml")
    wrong = wrong.replace("site: sites/doe/polaris.yaml ", "site: nowhere.yaml ")
    wrong = wrong.replace("site: sites", f"site: {DOE.parent}/sites")
    (tmp_path / "fed.yaml").write_text(wrong, encoding="utf-8")
    result = hansa("plan", str(tmp_path / "fed.yaml"), "--json")
    assert result.exit_code == 3
    plans = json.loads(result.stdout)["data"]["facilities"]
    (problem,) = plans["aurora"]["problems"]
    assert "is the site file of 'polaris', not of 'aurora'" in problem["what"]
    assert "`facilities.aurora.site`" in problem["hint"]
    assert plans["polaris"]["ranks"] is plans["polaris"]["ranks_per_node"] is None
    lines = hansa("plan", str(tmp_path / "fed.yaml")).stdout.splitlines()
    at = lines.index("=== aurora")
    assert lines[at + 1].startswith("problem: ")
    assert lines[at + 2].startswith("  help: `facilities.aurora.site`")
    assert lines[at + 3].startswith("job: nodes: 2, 1:00:00")


@pytest.mark.parametrize("json_", [[], ["--json"]])
def test_a_dry_run_with_a_problem_fails_as_a_plan_does(
    tmp_path: Path, json_: list[str]
) -> None:
    words = ["run", str(DOE), "--dry-run", "--runs", str(tmp_path), *json_]
    assert hansa(*words).exit_code == 0
    assert hansa(*words, "facilities.polaris.job.nodes=11").exit_code == 3


def test_what_the_site_refuses_is_a_problem_of_that_facility_only() -> None:
    result = hansa("plan", str(DOE), "facilities.polaris.job.nodes=11", "--json")
    assert result.exit_code == 3
    plans = json.loads(result.stdout)["data"]["facilities"]
    assert "limits.nodes" in plans["polaris"]["problems"][0]["what"]
    assert plans["polaris"]["script"] == ""
    assert plans["aurora"]["script"]


def test_a_model_that_lies_here_tells_what_moves(tmp_path: Path) -> None:
    save_file({"w": np.zeros((10, 100), np.float16)}, tmp_path / "a.safetensors")
    (tmp_path / "site.yaml").write_text(
        f"""
name: here
scheduler: local
mailbox: mailbox
tasks: {{chem-instruct: {{}}}}
models: {{{tmp_path}: {tmp_path}}}
""",
        encoding="utf-8",
    )
    (tmp_path / "fed.yaml").write_text(
        f"""
name: fed
model: {{trainer: causal-lm, source: {tmp_path}, dtype: bfloat16}}
task: chem-instruct
strategy: fedavg
stop: {{rounds: 1}}
facilities:
  here:
    gateway: {{type: local, site: site.yaml}}
    mover: posix
    work: {{steps: 1}}
""",
        encoding="utf-8",
    )
    plan = planned(str(tmp_path / "fed.yaml"), "update.dtype=float32")
    one = plan["facilities"]["here"]
    assert (one["version_bytes"], one["update_bytes"]) == (2000, 4000)
    assert one["transfer_bytes"] == 6000
    assert one["source"] == "asked of the facility over local"
    assert one["ranks"] == 1
    assert "-m hansa.worker run" in one["script"]


def test_the_sizes_are_those_of_the_dtypes(tmp_path: Path) -> None:
    spec = load_federation(DOE)
    assert sizes_of(spec) == Sizes()  # nothing of it lies here
    save_file({"w": np.zeros((10, 100), np.float16)}, tmp_path / "a.safetensors")
    here = spec.model.model_copy(
        update={"source": str(tmp_path), "dtype": "float32"},
    )
    sizes = sizes_of(spec.model_copy(update={"model": here}))
    assert sizes == Sizes(version=4000, update=2000)
    assert sizes.round_trip == 6000
    assert replace(sizes, update=None).round_trip is None


def test_profiles_are_explained_line_by_line() -> None:
    out = hansa("profiles", "show", "alcf/aurora").stdout
    assert "directive: -l filesystems=home:flare" in out
    assert "https://docs.alcf.anl.gov/running-jobs/" in out
    assert "queue capacity (default): 1 to 16 nodes, to 168 h" in out
    assert "to 24 h (to 1024 nodes 12 h; to 1999 nodes 18 h)" in out
    data = json.loads(hansa("profiles", "show", "csc/lumi", "--json").stdout)["data"]
    assert data["node"]["devices"] == 8
    listed = json.loads(hansa("profiles", "--json").stdout)["data"]
    assert listed["olcf/frontier"].startswith("Frontier")


def test_the_plan_says_which_strategy_with_all_its_keys() -> None:
    change = "strategy={name: fedbuff, k: 3}"
    first = hansa("plan", str(DOE), change).stdout.splitlines()[0]
    assert first.startswith("strategy: fedbuff (")
    assert "k: 3" in first
    assert "lr: 1.0" in first
    strategy = json.loads(hansa("plan", str(DOE), change, "--json").stdout)["data"][
        "strategy"
    ]
    assert (strategy["name"], strategy["k"], strategy["lr"]) == ("fedbuff", 3, 1.0)


def test_a_dry_run_refuses_what_a_strategy_cannot_do() -> None:
    with pytest.raises(SpecError, match="larger than the federation"):
        hansa("run", str(DOE), "strategy={name: fedbuff, k: 9}", "--dry-run")
