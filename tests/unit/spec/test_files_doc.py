"""The page, and the examples of the repository, with the real plug-ins."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

from hansa.core import plugins
from hansa.spec import (
    federation_from_text,
    load_federation,
    load_site,
    lock_text,
    yaml,
)

REPO = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def fake_plugins() -> None:
    """Take the place of the fixture that replaces the plug-ins."""


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    file = REPO / "tools" / "make_files_doc.py"
    spec = importlib.util.spec_from_file_location("make_files_doc", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "PAGE", tmp_path / "files.md")
    return module


def test_the_page_of_the_repository_is_fresh(tool: ModuleType) -> None:
    page = (REPO / "docs" / "files.md").read_text(encoding="utf-8")
    assert page == tool.page(), "run: python tools/make_files_doc.py"


def test_a_stale_page_is_told(
    tool: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tool.main(["--check"]) == 1
    assert "docs/files.md is stale" in capsys.readouterr().err
    assert tool.main([]) == 0
    assert tool.main(["--check"]) == 0
    tool.PAGE.write_text("old")
    assert tool.main(["--check"]) == 1
    assert tool.main(["--chekc"]) == 2


def test_the_examples_in_the_page_hold(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCRATCH", str(tmp_path))
    federation, site = re.findall(r"```yaml\n(.*?)```", tool.page(), re.DOTALL)
    assert federation_from_text(federation).name == "smol-chem"
    (tmp_path / "site.yaml").write_text(site)
    assert load_site(tmp_path / "site.yaml").name == "polaris"


@pytest.mark.parametrize("name", ["digits", "chemistry"])
def test_the_examples_load_and_fit_their_sites(name: str) -> None:
    spec = load_federation(REPO / "examples" / f"{name}.yaml")
    assert federation_from_text(lock_text(spec)) == spec
    for facility, part in spec.facilities.items():
        site = load_site(part.gateway.options["site"])
        assert site.name == facility
        assert REPO / "runs" in site.mailbox.parents
        allowed = site.tasks[spec.task.name].splits
        assert allowed is None or set(part.data or ()) <= set(allowed)


@pytest.mark.parametrize("name", ["paper_queues", "scenarios"])
def test_the_simulated_examples_load_in_every_scenario(name: str) -> None:
    path = REPO / "examples" / f"{name}.yaml"
    spec = load_federation(path)
    assert federation_from_text(lock_text(spec)) == spec
    assert spec.simulation is not None
    for changes in spec.simulation.scenarios.values():
        assert load_federation(path, changes).simulation is not None


def test_the_example_in_the_simulator_s_page_holds() -> None:
    page = (REPO / "docs" / "simulator.md").read_text(encoding="utf-8")
    (part,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    head = "name: x\nmodel: {trainer: softmax, source: zeros}\ntask: digits\n"
    text = f"{head}strategy: fedavg\nstop: {{rounds: 2}}\n{part}"
    assert federation_from_text(text).facilities["north"].simulation is not None


def test_the_scenarios_are_twenty_and_unlike() -> None:
    spec = load_federation(REPO / "examples" / "scenarios.yaml")
    assert spec.simulation is not None
    scenarios = spec.simulation.scenarios
    assert len(scenarios) == 20
    iid = load_federation(REPO / "examples" / "scenarios.yaml", scenarios["iid"])
    assert iid.simulation is not None
    assert getattr(iid.simulation.training, "alpha", None) == "iid"
    four = load_federation(
        REPO / "examples" / "scenarios.yaml", scenarios["four_machines"]
    )
    presets = [
        one.simulation and one.simulation.preset for one in four.facilities.values()
    ]
    assert presets == ["polaris", "aurora", "frontier", "perlmutter"]


def test_every_built_in_plug_in_is_in_the_page(tool: ModuleType) -> None:
    page = tool.page()
    for group in plugins.GROUPS:
        for name in plugins.names(group):
            assert f"### {plugins.singular(group)} `{name}`" in page


def test_the_lock_says_what_it_is() -> None:
    text = lock_text(load_federation(REPO / "examples" / "digits.yaml"))
    assert text.startswith("# Written by Hansa ")
    data = yaml.parse(text, "lock", "federation").data
    assert "defaults" not in data
