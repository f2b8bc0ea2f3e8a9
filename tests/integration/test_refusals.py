"""A facility refuses by its own site.yaml; the run goes on with the others."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from runs import Bench
from towns import Town, federate

from hansa.site import rpc

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

NAMES = ("amsterdam", "bergen")

REFUSALS = {
    "bergen": (
        Town(site={"tasks": {"chem-instruct": {}}}),
        ["does not allow the task 'digits'", "`tasks`", "'chem-instruct'"],
    ),
    "danzig": (
        Town(site={"limits": {"nodes": 2}}, job={"nodes": 4}),
        ["a job of 4 nodes", "`limits.nodes`", "2 at most"],
    ),
    "lubeck": (
        Town(site={"limits": {"time": "0:10:00"}}, job={"time": "1:00:00"}),
        ["a walltime of", "`limits.time`", "10:00"],
    ),
    "riga": (
        Town(site={"tasks": {"digits": {"splits": ["part-0"]}}}),
        ["the data 'part-4'", "`tasks.digits.splits`", "'part-0'"],
    ),
    "visby": (
        Town(site={"limits": {"linger": "0"}}, plan={"linger": "10m"}),
        ["linger", "`limits.linger`"],
    ),
}


def test_refusals_are_told_and_the_run_goes_on_with_the_others(bench: Bench) -> None:
    towns = {name: town for name, (town, _) in REFUSALS.items()}
    federate(bench, {"amsterdam": Town(), **towns}, rounds=1)
    bench.hansa("run", "federation.yaml", "--id", "r", code=3)
    assert "Nothing was spent" in bench.stderr
    assert "with the others: --keep-going" in bench.stderr
    lines = bench.stderr.splitlines()
    for name, (_, words) in REFUSALS.items():
        (line,) = [line for line in lines if line.startswith(f"{name}: ")]
        check_told(line, words)
    assert not (bench.root / "runs/r").exists()

    bench.hansa("run", "federation.yaml", "--id", "r", "--keep-going", code=6)
    failures = {event["facility"]: event for event in bench.events("AssignmentFailed")}
    assert sorted(failures) == sorted(REFUSALS)
    for name, (_, words) in REFUSALS.items():
        assert failures[name]["code"] == "FACILITY_REFUSES"
        check_told(failures[name]["reason"], words)
    (update,) = bench.events("UpdateArrived")
    assert update["facility"] == "amsterdam"
    assert bench.data("replay", "r")["same"]
    report = bench.data("report", "r")
    assert sorted(one["facility"] for one in report["failures"]) == sorted(REFUSALS)


def check_told(text: str, words: list[str]) -> None:
    told = " ".join(text.split())
    assert [word for word in words if word not in told] == []


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("/etc/passwd", ["does not allow the path '/etc/passwd'", "`models`"]),
        ("os:system", ["does not allow the code 'os:system'", "`modules`"]),
    ],
)
def test_a_path_or_code_that_no_site_lists_is_refused(
    bench: Bench, source: str, words: list[str]
) -> None:
    federate(bench, {name: Town() for name in NAMES}, rounds=1)
    change = f"model.source={source}"
    bench.hansa("run", "federation.yaml", change, "--id", "r", code=3)
    check_told(bench.stderr, words)


def ask(bench: Bench, name: str, request: dict[str, Any]) -> dict[str, Any]:
    """Say something to a facility's site agent as a server would."""
    done = subprocess.run(
        [sys.executable, "-m", "hansa.cli", "site", "rpc", "--site", f"{name}.yaml"],
        input=json.dumps(request), capture_output=True, text=True, cwd=bench.root,
        timeout=60, check=True,
    )  # fmt: skip
    reply: dict[str, Any] = json.loads(done.stdout)
    return reply


@pytest.mark.parametrize("path", ["../../../secret", "/etc/passwd", "jobs/way/out"])
def test_a_path_outside_the_mailbox_is_not_read(bench: Bench, path: str) -> None:
    federate(bench, {"amsterdam": Town()}, rounds=1)
    (bench.root / "secret").write_text("treasure")
    jobs = bench.root / "mailboxes/amsterdam/r/jobs"
    jobs.mkdir(parents=True)
    (jobs / "way").symlink_to(bench.root)
    (bench.root / "out").write_text("treasure")
    reply = ask(bench, "amsterdam", rpc.read("r", path))
    assert not reply["ok"]
    assert "treasure" not in json.dumps(reply)


def test_a_run_that_leads_out_of_the_mailbox_goes_on_with_the_others(
    bench: Bench,
) -> None:
    federate(bench, {name: Town() for name in NAMES}, rounds=1)
    outside = bench.root / "outside"
    outside.mkdir()
    (bench.root / "mailboxes/bergen").mkdir(parents=True)
    (bench.root / "mailboxes/bergen/r").symlink_to(outside)
    bench.hansa("run", "federation.yaml", "--id", "r", "--keep-going", code=6)
    (failure,) = bench.events("AssignmentFailed")
    assert failure["facility"] == "bergen"
    assert str(bench.root / "mailboxes/bergen/r") in failure["reason"]
    assert [e["facility"] for e in bench.events("UpdateArrived")] == ["amsterdam"]
    assert not (outside / "jobs").exists()
