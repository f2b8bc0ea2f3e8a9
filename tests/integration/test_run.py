"""A real federation over real processes, from the command line."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import pytest
from runs import PATIENCE_S, Bench, local_queues, until

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]


def test_a_run_its_report_its_replay_and_a_second_run(bench: Bench) -> None:
    bench.write()
    summary = bench.data("run", "federation.yaml", "--id", "r")
    losses = [version["eval_loss"] for version in summary["versions"]]
    assert summary["outcome"] == "done"
    assert len(losses) == 4
    assert losses[-1] < losses[0]
    assert losses[-1] < min(
        summary["versions"][-1]["facility_eval_loss"][name]
        for name in ("amsterdam", "bergen")
    )
    assert {f["updates_applied"] for f in summary["facilities"].values()} == {3}
    assert summary["node_hours"] > 0
    assert summary["bytes_sent"] > 0

    page = bench.root / "runs/r/report/index.html"
    assert page.read_text().startswith("<!doctype html>")
    assert bench.data("report", "r")["model_sha256"] == summary["model_sha256"]

    before = (bench.root / "runs/r/journal.jsonl").read_bytes()
    replayed = bench.data("replay", "r")
    assert replayed["same"]
    assert replayed["state"]["model_sha256"] == summary["model_sha256"]
    assert "outcome: done" in bench.hansa("status", "r")
    assert "version 3 from 2 updates" in bench.hansa("watch", "r")

    # The same id with the same plan attaches (and has nothing to do) ...
    bench.hansa("run", "federation.yaml", "--id", "r")
    bench.hansa("run", "--resume", "r")
    assert (bench.root / "runs/r/journal.jsonl").read_bytes() == before
    # ... with another plan it is refused.
    bench.hansa("run", "federation.yaml", "stop.rounds=9", "--id", "r", code=2)
    assert "RUN_ID_CONFLICT" in bench.stderr


def test_the_same_seed_makes_the_same_model(bench: Bench) -> None:
    bench.write(rounds=2)
    one = bench.data("run", "federation.yaml", "--id", "one")
    two = bench.data("run", "federation.yaml", "--id", "two")
    other = bench.data("run", "federation.yaml", "seed=8", "--id", "three")
    assert one["model_sha256"] == two["model_sha256"] != other["model_sha256"]


def test_a_dry_run_spends_nothing(bench: Bench) -> None:
    bench.write()
    before = sorted(bench.root.rglob("*"))
    out = bench.hansa("run", "federation.yaml", "--dry-run")
    assert "-m hansa.worker run" in out
    assert "amsterdam" in out
    assert "Nothing was written, moved or submitted." in out
    assert sorted(bench.root.rglob("*")) == before


def test_a_second_run_on_a_live_run_names_its_holder(bench: Bench) -> None:
    bench.write(steps=10_000_000, rounds=1)
    first = bench.start("run", "federation.yaml", "--id", "r")
    until(lambda: bench.events("JobStarted"))
    bench.hansa("run", "--resume", "r", code=75)
    assert "JOURNAL_LOCKED" in bench.stderr
    assert str(first.pid) in bench.stderr
    assert f"runs in process {first.pid}" in bench.hansa("status", "r")
    bench.hansa("stop", "r", "--cancel")
    first.communicate(timeout=PATIENCE_S)
    assert first.returncode == 130


def test_ctrl_c_keeps_the_jobs_and_resume_adopts_them(bench: Bench) -> None:
    bench.write(steps=40_000, rounds=1)
    first = bench.start("run", "federation.yaml", "--id", "r")
    until(lambda: len(bench.events("JobStarted")) >= 2)
    first.send_signal(signal.SIGINT)
    _, words = first.communicate(timeout=PATIENCE_S)
    assert first.returncode == 130
    assert "hansa run --resume r" in words
    assert bench.events("OperatorAsked")[-1]["request"] == "stop"
    summary = bench.data("run", "--resume", "r")
    assert summary["outcome"] == "done"
    trained = [e for e in bench.events("JobQueued") if "train" in e["assignment"]]
    assert len(trained) == 2


def test_ctrl_c_with_cancel_ends_the_jobs(bench: Bench) -> None:
    bench.write(steps=4_000_000, rounds=1)
    first = bench.start("run", "federation.yaml", "--id", "r", "--cancel")
    until(lambda: len(bench.events("JobStarted")) >= 2)
    first.send_signal(signal.SIGINT)
    first.communicate(timeout=PATIENCE_S)
    assert first.returncode == 130
    states = {
        job["state"]
        for path in local_queues(bench.root)
        for job in json.loads(path.read_text())["jobs"]
        if "train" in job["name"]
    }
    assert states <= {"CANCELLED", "DONE", "FAILED"}


def test_a_mailbox_that_is_no_directory_is_found_before_the_run(bench: Bench) -> None:
    bench.write()
    (bench.root / "mailboxes").mkdir()
    (bench.root / "mailboxes/amsterdam").write_text("in the way")
    bench.hansa("check", "federation.yaml", code=3)
    bench.hansa("run", "federation.yaml", "--id", "r", code=3)
    assert "amsterdam" in bench.stderr
    assert not (bench.root / "runs/r").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("stop.round=3", "did you mean 'rounds'"),
        ("strategie=fedavg", "did you mean 'strategy'"),
        ("strategy.name=fedavgg", "Did you mean 'fedavg'"),
        ("task.name=digit", "Did you mean 'digits'"),
        ("model.trainer=softmx", "Did you mean 'softmax'"),
        ("defaults.profile=alcf/polarys", "alcf/polaris"),
        ("stop.rounds=many", "stop.rounds"),
        ("strategy.quorum=9", "can never be reached"),
    ],
)
def test_bad_files_are_refused_with_the_nearest_word(
    bench: Bench, change: str, words: str
) -> None:
    bench.write()
    bench.hansa("run", "federation.yaml", change, "--id", "r", code=2)
    assert words in bench.stderr
    assert not (bench.root / "runs").exists()


def test_a_missing_file_is_a_sentence(bench: Bench) -> None:
    bench.hansa("run", "nowhere.yaml", code=2)
    assert "nowhere.yaml" in bench.stderr
    assert "Traceback" not in bench.stderr


def test_the_demo_keeps_the_older_one(bench: Bench) -> None:
    bench.hansa("demo", "--name", "digits")
    bench.hansa("demo", "--name", "digits")
    assert (bench.root / "runs/demo.1/report/index.html").is_file()
    assert (bench.root / "runs/demo/report/index.html").is_file()


def test_init_then_check_then_run(bench: Bench) -> None:
    bench.hansa("init", "mine")
    bench.hansa("check", "mine/digits.yaml")
    out = bench.hansa("run", "mine/digits.yaml", "stop.rounds=1")
    assert "digits-1: done" in out
    shutil.rmtree(bench.root / "mine")
    bench.hansa("init", "mine", "--example", "digit", code=2)
    assert "Did you mean 'digits'" in bench.stderr
    assert not Path(bench.root / "mine").exists()


def test_a_demo_does_not_move_a_demo_that_runs(bench: Bench) -> None:
    first = bench.start("demo", "--name", "digits")
    until(lambda: bench.events("RunStarted", "demo"))
    bench.hansa("demo", "--name", "digits", code=75)
    assert str(first.pid) in bench.stderr
    first.communicate(timeout=PATIENCE_S)
    assert first.returncode == 0


def test_a_place_for_runs_that_is_none_is_a_sentence(bench: Bench) -> None:
    bench.write()
    (bench.root / "file").write_text("in the way")
    bench.hansa("run", "federation.yaml", "--runs", "file", code=2)
    assert "Choose another place with --runs" in bench.stderr
    assert "Traceback" not in bench.stderr


def test_an_old_mailbox_is_not_taken_for_this_run(bench: Bench) -> None:
    bench.write(names=("amsterdam",), rounds=1)
    bench.hansa("run", "federation.yaml", "--id", "r")
    orders = bench.root / "mailboxes/amsterdam/r/orders"
    first, second = (orders / f"train-0001-amsterdam-{n}.json" for n in (1, 2))
    shutil.copy(first, second)  # as if the old run, too, had asked twice
    shutil.rmtree(bench.root / "runs/r")
    bench.hansa("run", "federation.yaml", "--id", "r", code=1)
    (failure, *_rest) = bench.events("AssignmentFailed")
    assert "orders never change" in failure["reason"]


def test_a_request_to_a_coordinator_that_is_gone_is_void(bench: Bench) -> None:
    bench.write(names=("amsterdam",), rounds=1)
    first = bench.start("run", "federation.yaml", "--id", "r")
    until(lambda: bench.events("JobQueued"))
    first.kill()
    first.communicate()
    (bench.root / "runs/r/request.json").write_text('{"request": "cancel"}')
    assert bench.data("run", "--resume", "r")["outcome"] == "done"


def test_a_plan_that_could_not_begin_may_be_corrected(bench: Bench) -> None:
    bench.write(names=("amsterdam",), rounds=1)
    bench.hansa("run", "federation.yaml", "model.source=zeroz", "--id", "r", code=2)
    assert "zeroz" in bench.stderr
    assert bench.data("run", "federation.yaml", "--id", "r")["outcome"] == "done"
