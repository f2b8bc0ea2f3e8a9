"""The queue of files; no job is run here."""

import json
import os
import threading
import time

import pytest

from hansa.scheduler import block_queue
from hansa.scheduler.block_queue import KEEP_S, QueueError, Store, once

SCRIPT = """\
#!/bin/sh
#HANSA name={name}
#HANSA nodes=2
#HANSA time=90
#HANSA warning=18
#HANSA log={root}/log.txt
#HANSA directory={root}
true
"""


class Queue:
    def __init__(self, root):
        self.root, self.store = root, Store(root / "block")

    def submit(self, name="hansa.r.a.1"):
        script = self.root / "script.sh"
        script.write_text(SCRIPT.format(name=name, root=self.root))
        return self.store.submit(script)

    def take(self, job, **fields):
        turn = {"started": time.time(), "limit_s": 60.0, "host": "n1", **fields}
        assert once(self.store.entry(job).turn, turn)

    def end(self, job, **fields):
        end = {"state": "DONE", "ended": time.time(), "exit_code": 0, "reason": ""}
        return once(self.store.entry(job).end, {**end, **fields})

    def shift(self, job, seconds):
        """Make the job's signs of life older."""
        entry = self.store.entry(job)
        for path in (entry.turn, entry.beat):
            if path.exists():
                at = path.stat().st_mtime - seconds
                os.utime(path, (at, at))


@pytest.fixture
def queue(tmp_path):
    return Queue(tmp_path)


def test_a_job_waits_with_what_it_asked_for(queue):
    before = time.time()
    job = queue.submit()
    (record,) = queue.store.records()
    assert before <= record.pop("submitted") <= time.time()
    assert record == {
        "id": job,
        "name": "hansa.r.a.1",
        "state": "QUEUED",
        "nodes": 2,
        "limit_s": 90.0,
        "started": None,
        "ended": None,
        "exit_code": None,
        "reason": "",
    }


def test_an_empty_queue_has_no_folder(tmp_path):
    assert Store(tmp_path / "block").records() == []
    Store(tmp_path / "block").cancel(["1"])
    assert list(tmp_path.iterdir()) == []


def test_a_script_is_kept_as_it_was_submitted(queue):
    job = queue.submit()
    (queue.root / "script.sh").write_text("rm -rf everything")
    assert queue.store.entry(job).script.read_text().endswith("true\n")


def test_a_script_that_lacks_a_line_is_refused(queue):
    script = queue.root / "s.sh"
    script.write_text("#!/bin/sh\n#HANSA name=x\n")
    with pytest.raises(QueueError, match="nodes"):
        queue.store.submit(script)
    assert queue.store.records() == []


def test_many_submissions_at_once_get_numbers_of_their_own(queue):
    queue.submit()
    script, ids = queue.root / "script.sh", []
    threads = [
        threading.Thread(target=lambda: ids.append(queue.store.submit(script)))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(ids, key=int) == [str(number) for number in range(2, 10)]
    assert len(queue.store.records()) == 9


def test_only_one_of_many_makes_a_file(tmp_path):
    won, barrier = [], threading.Barrier(8)

    def make(number):
        barrier.wait()
        if once(tmp_path / "turn.json", {"by": number}):
            won.append(number)

    threads = [threading.Thread(target=make, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert json.loads((tmp_path / "turn.json").read_text())["by"] == won[0]
    assert len(won) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["turn.json"]


def test_a_job_that_was_taken_runs_with_its_own_limit(queue):
    job = queue.submit()
    queue.take(job, started=100.0, limit_s=40.0)
    record = queue.store.record(job)
    assert (record["state"], record["started"], record["limit_s"]) == (
        "RUNNING",
        100.0,
        40.0,
    )


def test_a_job_cancelled_while_it_waits_never_runs(queue):
    job = queue.submit()
    queue.store.cancel([job, "77"])
    record = queue.store.record(job)
    assert (record["state"], record["started"]) == ("CANCELLED", None)
    assert record["ended"] >= record["submitted"]
    assert not once(queue.store.entry(job).turn, {"started": 1.0})
    queue.store.cancel([job])
    assert queue.store.record(job) == record
    assert not queue.store.entry(job).cancel.exists()


def test_a_job_that_runs_is_marked_for_its_runner(queue):
    job = queue.submit()
    queue.take(job)
    queue.store.cancel([job])
    assert queue.store.entry(job).cancel.exists()
    assert queue.store.record(job)["state"] == "RUNNING"


def test_a_job_that_is_over_is_not_cancelled(queue):
    job = queue.submit()
    queue.take(job)
    queue.end(job)
    queue.store.cancel([job])
    assert queue.store.record(job)["state"] == "DONE"
    assert not queue.store.entry(job).cancel.exists()


def test_a_block_without_a_sign_of_life_is_lost(queue):
    job = queue.submit()
    queue.take(job)
    queue.store.entry(job).beat.touch()
    queue.shift(job, 100)
    assert queue.store.record(job, 120)["state"] == "RUNNING"
    queue.shift(job, 30)
    record = queue.store.record(job, 120)
    assert record["state"] == "NODE_FAIL"
    assert "n1" in record["reason"]
    assert record["ended"] >= record["started"]
    assert not queue.end(job)  # a runner that was only held up comes too late
    assert queue.store.record(job, 1e9) == record


def test_a_runner_that_died_before_its_first_beat_is_lost_too(queue):
    job = queue.submit()
    queue.take(job)
    queue.shift(job, 121)
    assert queue.store.record(job, 120)["state"] == "NODE_FAIL"


def test_a_lost_job_that_was_to_be_cancelled_is_cancelled(queue):
    job = queue.submit()
    queue.take(job)
    queue.store.cancel([job])
    queue.shift(job, 121)
    assert queue.store.record(job, 120)["state"] == "CANCELLED"


def test_a_damaged_job_does_not_hide_the_others(queue):
    bad, good = queue.submit(), queue.submit("hansa.r.b.1")
    (queue.store.entry(bad).path / "job.json").write_text("{")
    states = {record["id"]: record["state"] for record in queue.store.records()}
    assert states == {bad: "UNKNOWN", good: "QUEUED"}


def test_jobs_that_ended_long_ago_are_forgotten_but_not_their_numbers(queue):
    old, cancelled, waits, last = (queue.submit() for _ in range(4))
    for job in (old, last):
        queue.take(job, started=1.0)
        queue.end(job, ended=time.time() - KEEP_S - 5)
    once(queue.store.entry(cancelled).turn, {"cancelled": 1.0})
    assert queue.submit() == "5"
    assert [record["id"] for record in queue.store.records()] == [waits, last, "5"]


def test_without_hard_links_it_says_so(queue, monkeypatch):
    def no_links(source, target):
        raise PermissionError(1, "Operation not permitted")

    job = queue.submit()
    monkeypatch.setattr(block_queue.os, "link", no_links)
    with pytest.raises(QueueError, match=r"hard links.*`state` of site.yaml"):
        queue.store.cancel([job])


def test_the_command_line(queue, capsys):
    job = queue.submit()
    here = ["--dir", str(queue.store.directory)]
    assert block_queue.main(["submit", *here, str(queue.root / "script.sh")]) == 0
    assert capsys.readouterr().out == "2\n"
    assert block_queue.main(["cancel", *here, "--", job]) == 0
    assert block_queue.main(["list", *here]) == 0
    jobs = json.loads(capsys.readouterr().out)["jobs"]
    assert [one["state"] for one in jobs] == ["CANCELLED", "QUEUED"]
    assert block_queue.main(["submit", *here, str(queue.root / "none.sh")]) == 1
    assert capsys.readouterr().err.startswith("block queue: ")
