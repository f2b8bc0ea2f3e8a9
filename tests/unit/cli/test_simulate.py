"""`hansa simulate` and `hansa compare` on a tiny federation, for real."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fake_contest import FEDERATION, federation
from typer.testing import CliRunner, Result

from hansa.cli.app import app
from hansa.core.errors import HansaError, RunConflict, UsageError
from hansa.journal import read

SMALL = FEDERATION.replace("wall_clock: 36000", "rounds: 4")


def hansa(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)


def data(result: Result) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(result.stdout)["data"]
    return found


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return federation(tmp_path, SMALL)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw nothing: pictures take far longer than these simulations."""
    monkeypatch.setattr("hansa.report.plots.pictures", lambda *_: [])
    monkeypatch.setattr("hansa.report.comparison_page.comparison_files", _no_files)


def _no_files(*_: object) -> dict[str, bytes]:
    return {"index.html": b""}


@pytest.mark.usefixtures("undrawn")
def test_a_simulation_leaves_a_run_that_the_other_verbs_read(file: Path) -> None:
    told = hansa("simulate", file, "--target", "0.9")
    assert told.exit_code == 0
    assert "fedavg, seed 7: done. 4 rounds are done." in told.stdout
    assert "below 0.9" in told.stdout
    assert "hamburg" in told.stdout
    assert "The queue of visby is a guess" in told.stderr
    assert "hamburg" not in told.stderr
    for verb in ("status", "replay", "report"):
        result = hansa(verb, "contest-sim-1", "--json")
        assert result.exit_code == 0, result.output
    assert data(hansa("report", "contest-sim-1", "--json"))["outcome"] == "done"
    assert "a simulated run keeps none" in hansa("replay", "contest-sim-1").stdout


def test_a_new_simulation_has_a_new_id_and_the_same_events(file: Path) -> None:
    paths = [Path(data(hansa("simulate", file, "--json"))["folder"]) for _ in range(2)]
    assert [path.name for path in paths] == ["contest-sim-1", "contest-sim-2"]
    first, second = [
        [record.event for record in read(path / "journal.jsonl")] for path in paths
    ]
    assert first[0].run == "contest-sim-1"
    assert first[1:] == second[1:]
    hansa("simulate", file, "--id", "mine")
    with pytest.raises(RunConflict):
        hansa("simulate", file, "--id", "mine")


def test_json_of_several_seeds(file: Path) -> None:
    told = data(hansa("simulate", file, "--seed", "3", "--seeds", "3", "--json"))
    assert [one["seed"] for one in told["runs"]] == [3, 4, 5]
    assert told["wall_clock_s"] == told["runs"][0]["wall_clock_s"]
    assert told["facilities"]["hamburg"]["updates_applied"] == 4
    assert told["facilities"]["hamburg"]["node_hours"] > 0
    assert sum(told["staleness"].values()) == 8
    assert [one["version"] for one in told["versions_measured"]] == [0, 1, 2, 3, 4]
    alone = data(hansa("simulate", file, "--seed", "4", "--json"))
    assert alone["wall_clock_s"] == told["runs"][1]["wall_clock_s"]
    assert "3 seeds" in hansa("simulate", file, "--seeds", "3").stdout


def test_a_scenario_changes_the_file_and_the_command_line_both(file: Path) -> None:
    plain = data(hansa("simulate", file, "--no-folder", "--json"))
    busy = data(hansa("simulate", file, "--scenario", "busy", "--no-folder", "--json"))
    assert busy["wall_clock_s"] > plain["wall_clock_s"]
    assert plain["folder"] is None
    assert not Path("runs").exists()
    key = "facilities.hamburg.simulation.queue.median=600"
    undone = data(
        hansa("simulate", file, key, "--scenario", "busy", "--no-folder", "--json")
    )
    assert undone["wall_clock_s"] == plain["wall_clock_s"]
    with pytest.raises(UsageError, match="no scenario"):
        hansa("simulate", file, "--scenario", "bus")


def test_without_a_file(file: Path) -> None:
    with pytest.raises(HansaError):
        hansa("simulate")


def test_a_comparison_writes_a_page_and_the_numbers(file: Path) -> None:
    told = hansa("compare", file, "--jobs", "1", "--seeds", "2", "--target", "0.9")
    assert told.exit_code == 0, told.output
    assert "Scenario calm" in told.stdout
    assert "[100%] 8 of 8 runs, running" in told.stderr
    folder = Path("studies/contest")
    names = {path.name for path in folder.iterdir()}
    assert {"index.html", "results.json", "results.csv", "runs.csv"} <= names
    assert {"loss.pdf", "loss.png", "timelines.png", "pareto.pdf"} <= names
    saved = json.loads((folder / "results.json").read_text())
    assert [one["name"] for one in saved["scenarios"]] == ["calm", "busy"]
    rows = saved["scenarios"][0]["results"]
    assert [one["strategy"] for one in rows] == ["fedavg", "fedbuff"]
    assert rows[0]["seeds"] == 2
    assert rows[0]["time_to_target_s"] > 0


def test_a_loss_of_a_surrogate_is_called_so(file: Path) -> None:
    told = hansa("simulate", file, "--no-folder")
    assert "at last (of a surrogate problem)" in told.stdout
    found = data(hansa("simulate", file, "--no-folder", "--json"))
    assert (found["training"], found["remarks"]) == ("surrogate", [])


def test_few_seeds_have_a_range_and_no_interval(file: Path) -> None:
    few = hansa("simulate", file, "--no-folder", "--seeds", "5").stdout
    assert "median (range)" in few
    many = hansa("simulate", file, "--no-folder", "--seeds", "6").stdout
    assert "median (95% interval)" in many


def test_targets_that_make_no_sense(file: Path) -> None:
    with pytest.raises(UsageError, match="no number"):
        hansa("simulate", file, "--target", "inf")
    with pytest.raises(UsageError, match="before the target"):
        hansa("simulate", file, "stop.target={below: 0.5}", "--target", "0.4")
    assert not Path("runs").exists()


def test_a_comparison_looks_for_its_folder_before_it_begins(file: Path) -> None:
    Path("taken").write_text("a file")
    with pytest.raises(UsageError, match="taken can't be written") as told:
        hansa("compare", file, "--jobs", "1", "--out", "taken")
    assert "--out" in (told.value.hint or "")


def test_a_comparison_without_training_has_times_and_costs(
    file: Path, request: pytest.FixtureRequest
) -> None:
    told = hansa("compare", file, "simulation.training=none", "--jobs", "1",
                 "--seeds", "1", "--out", "bare")  # fmt: skip
    assert told.exit_code == 0, told.output
    request.getfixturevalue("undrawn")  # once is enough
    assert "virtual time" in hansa(
        "compare", file, "simulation.training=none", "~simulation.compare.target",
        "--jobs", "1", "--seeds", "1", "--out", "bare",
    ).stdout  # fmt: skip
    assert "Nothing is trained" in told.stdout


@pytest.mark.usefixtures("undrawn")
def test_a_run_of_a_comparison_is_repeated_by_simulate(file: Path) -> None:
    hansa("compare", file, "--jobs", "1", "--seeds", "2", "--scenarios", "busy",
          "--modes", "published", "--strategies", "fedbuff", "--json")  # fmt: skip
    last = Path("studies/contest/runs.csv").read_text().splitlines()[2].split(",")
    told = data(
        hansa(
            "simulate", file, "strategy={name: fedbuff}", "defaults.linger=0",
            "defaults.queue_ahead=0", "facilities.visby.linger=0",
            "simulation.binding=submission", "--scenario", "busy", "--seed", last[3],
            "--no-folder", "--json",
        )
    )  # fmt: skip
    assert told["wall_clock_s"] == float(last[5])
    assert told["final_loss"] == float(last[10])


def test_what_a_study_found_is_shown_though_its_files_cannot_be_written(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hansa.cli.compare._write", full)
    arguments = ["compare", str(file), "--jobs", "1", "--seeds", "1", "--json"]
    found = CliRunner().invoke(app, arguments)
    assert found.exit_code == 1
    assert json.loads(found.stdout)["data"]["scenarios"]
    assert "No space left on device" in found.stderr
