"""Processes are killed, files are damaged, disks fill up; nothing is lost."""

from __future__ import annotations

import json
import os
import random
import signal
import time
import zlib
from pathlib import Path
from typing import Any

import pytest
from runs import PATIENCE_S, Bench, fill_disk, until

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

MOMENTS = 20


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The digits run that nobody disturbs: its model and how many events it has."""
    bench = Bench(tmp_path_factory.mktemp("undisturbed"))
    bench.write()
    summary = bench.data("run", "federation.yaml", "--id", "r")
    return {"sha256": summary["model_sha256"], "events": len(bench.journal())}


@pytest.mark.parametrize("moment", range(MOMENTS))
def test_kill_9_of_the_coordinator_at_a_random_moment(
    bench: Bench, undisturbed: dict[str, Any], moment: int
) -> None:
    # Spread over the run by events, with a jitter to hit what lies between them.
    draw = random.Random(moment)  # noqa: S311
    last = undisturbed["events"] - 2
    lines = 1 + moment * last // MOMENTS + draw.randrange(max(1, last // MOMENTS))
    jitter = draw.uniform(0.0, 0.15)
    bench.write()
    first = bench.start("run", "federation.yaml", "--id", "r")
    until(lambda: len(bench.journal()) >= lines or first.poll() is not None)
    time.sleep(jitter)
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()

    summary = bench.data("run", "--resume", "r")
    assert summary["outcome"] == "done"
    assert summary["model_sha256"] == undisturbed["sha256"]
    used = [
        term["ref"]
        for event in bench.events("VersionPublished")
        for term in event["terms"]
        if term["ref"].startswith("update/")
    ]
    assert len(used) == len(set(used)) == 6
    arrived = {
        f"update/{event['assignment']}" for event in bench.events("UpdateArrived")
    }
    assert arrived == set(used)
    queued = [(e["assignment"], e["number"]) for e in bench.events("JobQueued")]
    assert len(queued) == len(set(queued))
    assert bench.data("replay", "r")["same"]


def test_kill_9_before_the_journal_begins(bench: Bench) -> None:
    bench.write(rounds=1)
    first = bench.start("run", "federation.yaml", "--id", "r")
    until((bench.root / "runs/r/federation.lock.yaml").exists)
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    assert bench.data("run", "--resume", "r")["outcome"] == "done"


def statuses(bench: Bench, name: str, job: str) -> dict[str, Any]:
    path = bench.root / f"mailboxes/{name}/r/jobs/{job}/status.json"
    return json.loads(path.read_text()) if path.exists() else {}


def test_kill_9_of_a_worker_goes_on_from_its_checkpoint(bench: Bench) -> None:
    bench.write(names=("amsterdam",), rounds=1, steps=40_000)
    job = "train-0001-amsterdam-1"
    run = bench.start("run", "federation.yaml", "--id", "r", "--json")
    folder = bench.root / f"mailboxes/amsterdam/r/jobs/{job}.1/checkpoint"
    until(lambda: [entry for entry in folder.glob("*") if entry.name[0] != "."])
    os.kill(statuses(bench, "amsterdam", f"{job}.1")["pid"], signal.SIGKILL)
    out, err = run.communicate(timeout=PATIENCE_S)
    assert run.returncode == 0, err
    states = [
        e["state"] for e in bench.events("JobEnded") if "train" in e["assignment"]
    ]
    assert states == ["FAILED", "DONE"]
    (update,) = bench.events("UpdateArrived")
    assert (update["steps"], update["partial"]) == (40_000, False)
    log = bench.root / f"mailboxes/amsterdam/r/jobs/{job}.2/log.txt"
    assert "Going on from" in log.read_text()
    # The same bytes as a run that nobody disturbed.
    calm = bench.data("run", "federation.yaml", "--id", "calm")
    assert json.loads(out)["data"]["model_sha256"] == calm["model_sha256"]


def test_a_worker_that_hangs_is_ended_by_its_walltime(bench: Bench) -> None:
    bench.write(names=("amsterdam", "bergen"), rounds=1, steps=40_000, time="0:00:25")
    run = bench.start("run", "federation.yaml", "retries=1", "--id", "r")
    job = "train-0001-amsterdam-1.1"
    pid = until(lambda: statuses(bench, "amsterdam", job).get("pid"))
    os.kill(pid, signal.SIGSTOP)
    _, err = run.communicate(timeout=PATIENCE_S)
    assert run.returncode == 6, err
    (failure,) = bench.events("AssignmentFailed")
    assert "ended by its walltime" in failure["reason"]
    assert len(bench.events("UpdateArrived")) == 1


def test_the_walltime_returns_partial_work(bench: Bench) -> None:
    bench.write(names=("amsterdam",), rounds=1, steps=50_000_000, time="0:00:20")
    bench.hansa("run", "federation.yaml", "--id", "r")
    (update,) = bench.events("UpdateArrived")
    assert update["partial"]
    assert 0 < update["steps"] < 50_000_000


def test_a_facility_killed_for_good_ends_with_the_others_and_code_6(
    bench: Bench,
) -> None:
    bench.write(rounds=2, steps=20_000, patience="10s")
    run = bench.start("run", "federation.yaml", "--id", "r")
    until(lambda: len(bench.events("JobStarted")) >= 2)
    pid = statuses(bench, "bergen", "train-0001-bergen-1.1")["pid"]
    (bench.root / "mailboxes/bergen").rename(bench.root / "mailboxes/gone")
    (bench.root / "mailboxes/bergen").write_text("nothing can be written here")
    os.kill(pid, signal.SIGKILL)
    _, err = run.communicate(timeout=PATIENCE_S)
    assert run.returncode == 6, err
    finish = bench.events("RunFinished")[-1]
    assert finish["outcome"] == "partial"
    members = [
        [term["ref"].split("-")[2] for term in event["terms"][1:]]
        for event in bench.events("VersionPublished")[1:]
    ]
    assert members[-1] == ["amsterdam"]
    assert len(members) == 2


def test_a_full_disk_stops_the_run_and_it_resumes(bench: Bench) -> None:
    bench.write(rounds=2)
    first = bench.start("run", "federation.yaml", "--id", "r")
    until(lambda: bench.events("VersionPublished"))
    fill_disk(first.pid, 8_000)
    _, err = first.communicate(timeout=PATIENCE_S)
    assert first.returncode == 1, err
    assert "STORE_FULL" in err
    assert "Free" in err
    summary = bench.data("run", "--resume", "r")
    assert summary["outcome"] == "done"


def test_a_damaged_journal_names_the_line(bench: Bench) -> None:
    bench.write(names=("amsterdam",), rounds=1)
    bench.hansa("run", "federation.yaml", "--id", "r")
    path = bench.root / "runs/r/journal.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], lines[2].replace(b"1", b"2"), *lines[3:]]))
    bench.hansa("run", "--resume", "r", code=1)
    assert "line 3 is damaged" in bench.stderr
    assert "JOURNAL_CORRUPT" in bench.stderr


def test_a_bit_flipped_version_is_refused_and_brought_anew(bench: Bench) -> None:
    # A queue wait leaves time to damage the version before the job binds it.
    bench.write(names=("amsterdam",), rounds=1)
    site = bench.root / "amsterdam.yaml"
    wait = "slots: 2, wait: {mean: 4s, sigma: 0}"
    site.write_text(site.read_text().replace("slots: 2", wait))
    run = bench.start("run", "federation.yaml", "--id", "r", "--json")
    name = "amsterdam/r/versions/0/model-00001-of-00001.safetensors"
    target = bench.root / "mailboxes" / name
    until(lambda: bench.events("JobQueued") and target.exists())
    _flip(target)
    out, err = run.communicate(timeout=PATIENCE_S)
    assert run.returncode == 0, err
    states = [
        e["state"] for e in bench.events("JobEnded") if "train" in e["assignment"]
    ]
    assert states == ["FAILED", "DONE"]
    calm = bench.data("run", "federation.yaml", "--id", "calm")
    assert json.loads(out)["data"]["model_sha256"] == calm["model_sha256"]


def _flip(path: Path) -> None:
    """Flip a bit in place, as a failing disk would."""
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)[0]
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last ^ 1]))


def test_a_journal_of_a_newer_schema_is_refused(bench: Bench) -> None:
    bench.write(names=("amsterdam",), rounds=1)
    bench.hansa("run", "federation.yaml", "--id", "r")
    path = bench.root / "runs/r/journal.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    rest = lines[1].rstrip().partition(",")[2].replace('"schema":1', '"schema":9')
    crc = zlib.crc32(("{" + rest).encode())
    lines[1] = f'{{"crc":"{crc:08x}",{rest}\n'
    path.write_text("".join(lines))
    for verb in (("run", "--resume", "r"), ("replay", "r"), ("status", "r")):
        bench.hansa(*verb, code=1)
        assert "line 2" in bench.stderr
        assert "JOURNAL_TOO_NEW" in bench.stderr


def test_a_truncated_update_is_made_again(bench: Bench) -> None:
    bench.write(names=("amsterdam",), rounds=1, steps=40_000)
    run = bench.start("run", "federation.yaml", "--id", "r")
    until(lambda: bench.events("JobStarted"))
    run.send_signal(signal.SIGINT)
    run.communicate(timeout=PATIENCE_S)
    update = bench.root / "mailboxes/amsterdam/r/updates/train-0001-amsterdam-1"
    until((update / "manifest.json").exists, seconds=250)
    (file,) = update.glob("*.safetensors")
    file.chmod(0o644)
    os.truncate(file, file.stat().st_size - 10)
    assert bench.data("run", "--resume", "r")["outcome"] == "done"
    trained = [e for e in bench.events("JobQueued") if "train" in e["assignment"]]
    assert [event["number"] for event in trained] == [1, 2]
