"""Whole jobs on a mailbox: digits and softmax, in this process and in real ones."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest
from toy_team import broken
from worker_place import (
    FIRST,
    MODEL,
    TASK,
    Place,
    made,
    on_step,
    read_job,
    same_bits,
    trained,
)

from hansa.core.errors import (
    HansaError,
    IntegrityError,
    StorageFull,
    UpdateRejected,
    WorkerError,
)
from hansa.store.admission import verify_update
from hansa.store.manifest import (
    read_version_manifest,
)
from hansa.worker import checkpoint
from hansa.worker.__main__ import main
from hansa.worker.base import Example
from hansa.worker.loading import batches_of, build_task, build_trainer
from hansa.worker.options import DigitsOptions
from hansa.worker.saver import Saver
from hansa.worker.session import Session, as_hansa_error
from hansa.worker.signals import Stop
from hansa.worker.tasks.digits import Digits
from hansa.worker.trainers.softmax import Softmax
from hansa.worker.walltime import Walltime

SECONDS = 60.0


def fails(path: Path, kind: type[HansaError], words: str) -> HansaError:
    job = read_job(path)
    with pytest.raises(kind, match=words) as info:
        Session(job, Stop(), 0.0).run()
    return info.value


def test_a_job_delivers_local_minus_base(place: Place) -> None:
    path = place.job()
    assert main(["run", str(path)]) == 0
    update = place.update()
    local = trained(place, path, 6)
    base = place.tensors(place.mailbox.version(0))
    deltas = place.tensors(place.mailbox.update("train-0001-a-1"))
    for name, value in local.tensors():
        np.testing.assert_array_equal(deltas[name], value - base[name])
    assert (update.base, update.steps, update.samples) == (0, 6, 96)
    assert not update.partial
    assert (update.facility, update.dtype) == ("a", "float32")
    assert update.training == place.status()["training"] == {}  # it does not say


def test_what_the_manifest_measures(place: Place) -> None:
    path = place.job(order={"update": {"dtype": "bfloat16"}})
    assert main(["run", str(path)]) == 0
    update = place.update()
    test = Digits(None, place.root, DigitsOptions()).load("test", None)
    losses = trained(place, path, 6).evaluate(test)
    assert update.losses == losses
    assert update.metrics["eval_loss"] == fmean(losses.values())
    assert update.metrics["train_loss_last"] < update.metrics["train_loss"]
    assert update.metrics["samples_per_s"] == pytest.approx(
        96 / update.timings["train_s"]
    )
    assert set(update.timings) == {
        *("startup_s", "hold_s", "train_s", "eval_s", "write_s")
    }
    assert update.timings["hold_s"] == 0
    assert all(
        seconds > 0 for name, seconds in update.timings.items() if name != "hold_s"
    )
    status = place.status()
    assert (status["phase"], status["step"], status["steps"]) == ("done", 6, 6)
    assert (status["base"], status["error"]) == (0, None)
    assert place.bound()["base"] == 0


def test_update_passes_the_servers_checks(place: Place) -> None:
    assert main(["run", str(place.job(order={"evaluate": False}))]) == 0
    update = verify_update(
        place.mailbox.update("train-0001-a-1"),
        read_version_manifest(place.mailbox.version(0)),
        expected_base=0,
    )
    assert "eval_loss" not in update.metrics
    assert update.losses == {}
    other = read_version_manifest(made(2))
    with pytest.raises(UpdateRejected, match="trained from another version 0"):
        verify_update(place.mailbox.update("train-0001-a-1"), other, 0)


def test_newest_version_at_the_start_is_bound(place: Place) -> None:
    path = place.job()
    place.publish(4, seed=2)
    assert main(["run", str(path)]) == 0
    assert place.update().base == place.bound()["base"] == 4


def test_requeued_job_stays_with_its_version(place: Place) -> None:
    path = place.job()
    place.mailbox.job("train-0001-a-1", 1).bound.write_text(
        '{"schema": 1, "base": 0, "at": 1.0}'
    )
    place.publish(4, seed=2)
    assert main(["run", str(path)]) == 0
    assert place.update().base == 0
    assert place.bound()["at"] == 1.0


def test_running_it_again_changes_nothing(place: Place) -> None:
    path = place.job()
    assert main(["run", str(path)]) == 0
    before = (place.mailbox.update("train-0001-a-1") / "manifest.json").read_bytes()
    assert main(["run", str(place.job(number=2))]) == 0
    after = (place.mailbox.update("train-0001-a-1") / "manifest.json").read_bytes()
    assert after == before
    assert not place.mailbox.job("train-0001-a-1", 2).status.exists()


def test_faster_job_of_the_assignment_wins(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def act(call: int, loss: float) -> float:
        if call == 3:  # job 2 starts late, and ends before job 1 does
            monkeypatch.undo()
            assert main(["run", str(place.job(number=2))]) == 0
        return loss

    on_step(monkeypatch, act)
    assert main(["run", str(place.job())]) == 0
    assert place.status(1)["phase"] == place.status(2)["phase"] == "done"
    assert place.update().steps == 6


def test_second_round_sees_the_next_samples(place: Place) -> None:
    jobs = [
        read_job(place.job(assignment=f"train-000{r}-a-1", order={"round": r}))
        for r in (1, 2)
    ]
    streams = []
    for job in jobs:
        batches = batches_of(job, build_task(job))
        streams.append({e.input.tobytes() for step in range(6) for e in batches[step]})
    assert len(streams[0]) == len(streams[1]) == 96
    assert streams[0].isdisjoint(streams[1])


def test_evaluation_of_a_version(place: Place) -> None:
    place.publish(1, seed=2)
    name = "evaluate-0001-a-1"
    order = {"version": 0, "steps": None}
    assert main(["run", str(place.job(assignment=name, order=order))]) == 0
    update = place.update(name)
    job = read_job(place.notes(1, name).job)
    trainer = build_trainer(job, place.mailbox.version(0))
    trainer.load(place.tensors(place.mailbox.version(0)).__getitem__)
    losses = trainer.evaluate(build_task(job).load("test", None))
    assert (update.kind, update.base, update.losses) == ("evaluation", 0, losses)
    assert update.metrics == {"eval_loss": fmean(losses.values())}
    assert (update.files, update.tensors) == ({}, {})
    assert place.status(assignment=name)["phase"] == "done"


def test_version_that_is_not_there_is_transient(place: Place) -> None:
    name = "evaluate-0001-a-1"
    path = place.job(assignment=name, order={"version": 7, "steps": None})
    assert fails(path, WorkerError, "does not hold version 7").transient


def test_damaged_version_is_refused(place: Place) -> None:
    file = next(place.mailbox.version(0).glob("model-*.safetensors"))
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    fails(place.job(), IntegrityError, "sha256")
    assert place.status()["error"]["code"] == "STORE_INTEGRITY"


@pytest.mark.parametrize(
    ("order", "fields", "words"),
    [
        ({"work": {"batch": 0}}, {}, "work: batch: .*greater"),
        ({"work": {"batsh": 4}}, {}, "work: batsh: "),
        ({"steps": None}, {}, "has no `steps`"),
        ({"model": {**MODEL, "trainer": "softmac"}}, {}, "no trainer 'softmac'"),
        ({}, {"task": {**TASK, "splits": ["part-7"], "cache": "c"}}, "no group"),
    ],
)
def test_bad_orders_fail_before_the_first_step(
    place: Place,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    order: dict[str, Any],
    fields: dict[str, Any],
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    error = fails(place.job(order=order, **fields), HansaError, words)
    assert not error.transient
    status = place.status()
    assert (status["phase"], status["step"]) == ("failed", 0)
    assert status["error"] == error.to_json()


def test_module_that_is_not_allowed_is_refused(place: Place) -> None:
    model = {"trainer": "torch-module", "source": "os:system"}
    path = place.job(order={"model": model, "work": {}}, modules=["mine:net"])
    fails(path, HansaError, "does not allow the model 'os:system'")
    assert place.status()["error"]["code"] == "FACILITY_REFUSES"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_loss_that_is_not_finite_ends_the_job(
    place: Place, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    on_step(monkeypatch, lambda call, loss: value if call == 4 else loss)
    error = fails(place.job(), WorkerError, f"became {value} at step 4 of 6")
    assert not error.transient
    assert place.status()["step"] == 3
    assert not place.mailbox.updates.exists()


def test_the_state_before_a_broken_example_is_kept(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = place.job()
    job, load = read_job(path), Digits.load
    bad = batches_of(job, build_task(job)).indices(3)[5]

    monkeypatch.setattr(Digits, "load", lambda *told: broken(load(*told), bad))
    error = fails(path, WorkerError, f"step 4 of 6, by the examples number {bad}. Its")
    kept = place.mailbox.job(FIRST, 1).checkpoint / "00000003"
    assert error.message.endswith(f"The last good state is in {kept}.")
    monkeypatch.undo()
    assert main(["run", str(place.job(number=2))]) == 0
    same_bits(place, path)


def test_a_state_that_is_no_number_is_not_kept(
    place: Place, monkeypatch: pytest.MonkeyPatch, eager: None
) -> None:
    step, calls = Softmax.step, [0]

    def poisoned(self: Softmax, batch: Any) -> float:
        loss = step(self, batch)
        calls[0] += 1
        if calls[0] == 3:  # its gradient was too large: the loss will be, too
            dict(self.tensors())["bias"][:] = np.inf
        return loss

    monkeypatch.setattr(Softmax, "step", poisoned)
    with np.errstate(all="ignore"):
        error = fails(place.job(checkpoint_s=0.0), WorkerError, "became nan at step 4")
    folder = place.mailbox.job(FIRST, 1).checkpoint
    assert error.message.endswith(f"The last good state is in {folder / '00000002'}.")
    assert [path.name for path in folder.iterdir()] == ["00000002"]


@pytest.mark.parametrize(
    ("raised", "transient"),
    [
        (OSError(5, "Input/output error"), True),
        (MemoryError("no memory"), True),
        (ValueError("a bug"), False),
    ],
)
def test_crash_is_in_the_status(
    place: Place,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    raised: Exception,
    transient: bool,
) -> None:
    def act(call: int, loss: float) -> float:
        raise raised

    on_step(monkeypatch, act)
    assert main(["run", str(place.job())]) == 1
    error = place.status()["error"]
    assert (error["code"], error["transient"]) == ("WORKER", transient)
    assert type(raised).__name__ in error["message"]
    assert "Traceback" in caplog.text


def test_gpu_out_of_memory_is_transient() -> None:
    class OutOfMemoryError(RuntimeError):
        pass

    assert as_hansa_error(OutOfMemoryError("CUDA out of memory")).transient


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM])
def test_signal_returns_the_partial_work(
    place: Place, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def act(call: int, loss: float) -> float:
        if call == 4:
            os.kill(os.getpid(), number)
        return loss

    on_step(monkeypatch, act)
    path = place.job()
    assert main(["run", str(path)]) == 0
    update = place.update()
    assert (update.partial, update.steps, update.samples) == (True, 4, 64)
    assert "eval_loss" not in update.metrics
    monkeypatch.undo()
    base = place.tensors(place.mailbox.version(0))
    deltas = place.tensors(place.mailbox.update("train-0001-a-1"))
    for name, value in trained(place, path, 4).tensors():
        np.testing.assert_array_equal(deltas[name], value - base[name])
    assert not place.mailbox.job("train-0001-a-1", 1).checkpoint.exists()


def test_partial_work_is_safe_before_it_is_delivered(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = Stop()

    def act(call: int, loss: float) -> float:
        if call == 4:
            stop.request(signal.SIGTERM)
        return loss

    def full(*arguments: object, **options: object) -> None:
        raise StorageFull("No space is left.")

    on_step(monkeypatch, act)
    monkeypatch.setattr("hansa.worker.delivery.write_update", full)
    with pytest.raises(StorageFull):
        Session(read_job(place.job()), stop, 0.0).run()
    saved = list(checkpoint.saved(place.mailbox, "train-0001-a-1", 2))
    assert [progress.step for _, progress in saved] == [4]


def test_signal_before_the_first_step_is_a_transient_failure(place: Place) -> None:
    stop = Stop()
    stop.request(signal.SIGTERM)
    with pytest.raises(WorkerError, match="before its first step: signal SIG") as info:
        Session(read_job(place.job()), stop, 0.0).run()
    assert info.value.transient
    assert place.status()["phase"] == "failed"
    assert not place.mailbox.updates.exists()


def test_signal_during_the_evaluation_skips_it(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop, original = Stop(), Softmax.evaluate

    def evaluate(self: Softmax, examples: Iterator[Example]) -> Any:
        stop.request(signal.SIGUSR1)
        return original(self, examples)

    monkeypatch.setattr(Softmax, "evaluate", evaluate)
    Session(read_job(place.job()), stop, 0.0).run()
    update = place.update()
    assert (update.partial, update.steps) == (False, 6)
    assert update.losses == {}


def test_walltime_ends_the_training_in_time(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = Stop()

    def act(call: int, loss: float) -> float:
        if call == 2:
            stop.deadline = 0.0
        return loss

    on_step(monkeypatch, act)
    Session(read_job(place.job()), stop, 0.0).run()
    assert (place.update().partial, place.update().steps) == (True, 2)


def crash_at(place: Place, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Run job 1 with a checkpoint after every step, and let it die."""

    def act(call: int, loss: float) -> float:
        if call == step:
            raise MemoryError
        return loss

    on_step(monkeypatch, act)
    assert main(["run", str(place.job(checkpoint_s=0.0))]) == 1
    monkeypatch.undo()


def test_next_job_resumes_and_ends_in_the_same_bits(
    place: Place, monkeypatch: pytest.MonkeyPatch, eager: None
) -> None:
    crash_at(place, monkeypatch, 5)
    place.publish(4, seed=2)
    calls: list[int] = []
    on_step(monkeypatch, lambda call, loss: calls.append(call) or loss)
    assert main(["run", str(place.job(number=2))]) == 0
    assert len(calls) == 2
    monkeypatch.undo()
    update = place.update()
    assert (update.base, update.steps, update.samples) == (0, 6, 96)
    assert place.bound(2)["base"] == 0
    same_bits(place, place.job(number=2))


def test_resumed_training_loss_is_over_all_steps(
    place: Place, monkeypatch: pytest.MonkeyPatch, eager: None, tmp_path: Path
) -> None:
    crash_at(place, monkeypatch, 5)
    assert main(["run", str(place.job(number=2))]) == 0
    other = Place(tmp_path / "other" / "mailbox")
    other.publish(0, seed=1)
    assert main(["run", str(other.job())]) == 0
    assert place.update().metrics["train_loss"] == other.update().metrics["train_loss"]
    assert place.update().losses == other.update().losses


def test_damaged_checkpoint_is_passed_over(
    place: Place, monkeypatch: pytest.MonkeyPatch, eager: None
) -> None:
    crash_at(place, monkeypatch, 5)
    directory = place.mailbox.job("train-0001-a-1", 1).checkpoint
    (directory / "00000004" / "state.safetensors").write_bytes(b"")
    calls: list[int] = []
    on_step(monkeypatch, lambda call, loss: calls.append(call) or loss)
    assert main(["run", str(place.job(number=2))]) == 0
    assert len(calls) == 3


def test_checkpoint_of_a_version_that_is_gone_is_passed_over(
    place: Place, monkeypatch: pytest.MonkeyPatch, eager: None
) -> None:
    crash_at(place, monkeypatch, 5)
    place.publish(4, seed=2)
    place.mailbox.version(0).rename(place.root.parent / "gone")
    assert main(["run", str(place.job(number=2))]) == 0
    assert (place.update().base, place.update().steps) == (4, 6)


def test_checkpoint_that_can_not_be_restored_means_a_new_start(
    place: Place, monkeypatch: pytest.MonkeyPatch, eager: None
) -> None:
    crash_at(place, monkeypatch, 5)

    def restore(self: Softmax, directory: Path) -> None:
        self._tensors["bias"][:] = 7
        raise WorkerError("Another library wrote this.")

    monkeypatch.setattr(Softmax, "restore", restore)
    path = place.job(number=2)
    assert main(["run", str(path)]) == 0
    deltas = place.tensors(place.mailbox.update("train-0001-a-1"))
    base = place.tensors(place.mailbox.version(0))
    for name, value in trained(place, path, 6).tensors():
        np.testing.assert_array_equal(deltas[name], value - base[name])


def test_unreadable_job_says_so_where_the_job_was_started(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = place.job()
    path.write_text('{"schema": 1}')
    monkeypatch.chdir(place.mailbox.job(FIRST, 1).path)
    assert main(["run", str(path)]) == 1
    assert place.status()["error"]["code"] == "SPEC_INVALID"


@pytest.mark.parametrize("name", ["log.txt", "rank-0001.log", "checkpoint", "ranks"])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_job_with_links_in_its_directory_does_nothing(
    place: Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, rank: int
) -> None:
    path, outside = place.job(ranks_per_node=2, launched=True), tmp_path / "outside"
    home = place.mailbox.job(FIRST, 1).path
    outside.mkdir()
    (home / name).symlink_to(outside / "x" if "log" in name else outside)
    monkeypatch.chdir(home)
    monkeypatch.setattr("hansa.worker.ranks.ARRIVE_S", 1.0)
    for variable, number in (("RANK", rank), ("WORLD_SIZE", 2), ("LOCAL_RANK", rank)):
        monkeypatch.setenv(variable, str(number))
    assert main(["run", str(path)]) == 1
    assert place.status()["error"]["code"] == "FACILITY_REFUSES"
    assert list(outside.iterdir()) == []


def test_unreadable_job_writes_no_status_elsewhere(
    place: Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = place.job()
    path.write_text("{")
    monkeypatch.chdir(tmp_path)
    assert main(["run", str(path)]) == 1
    assert not list(tmp_path.rglob("status.json"))


def test_job_that_was_rewritten_while_it_waited_is_refused(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = place.job()
    promised = hashlib.sha256(path.read_bytes()).hexdigest()
    place.job(modules=["os:system"])
    monkeypatch.chdir(place.mailbox.job(FIRST, 1).path)
    assert main(["run", str(path), "--sha256", promised]) == 1
    status = place.status()
    assert (status["phase"], status["error"]["code"]) == ("failed", "WORKER")
    assert not status["error"]["transient"]
    assert not place.mailbox.updates.exists()
    place.job()
    assert main(["run", str(path), "--sha256", promised]) == 0
    assert place.update().steps == 6


def test_the_reserve_grows_with_the_checkpoints(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Saver, "save", lambda self, *_: setattr(self, "longest_s", 100))
    walltime = Walltime.asked(50.0, 3600.0)
    stop = Stop(walltime.deadline())
    path = place.job(checkpoint_s=0.0)
    found: list[float | None] = []
    on_step(monkeypatch, lambda call, loss: found.append(stop.deadline) or loss)
    monkeypatch.setattr("hansa.worker.saver.SHARE", 1e9)
    monkeypatch.setattr("hansa.worker.signals.time.monotonic", lambda: 51.0)
    Session(read_job(path), stop, 50.0, walltime).run()
    assert found[:2] == [50 + 3600 - 60, 50 + 3600 - 300]


def test_checkpoint_of_another_version_of_that_number_is_passed_over(
    place: Place, monkeypatch: pytest.MonkeyPatch, eager: None
) -> None:
    crash_at(place, monkeypatch, 5)
    shutil.rmtree(place.mailbox.version(0))  # the run id is used again
    version = read_version_manifest(place.publish(0, seed=2))
    calls: list[int] = []
    on_step(monkeypatch, lambda call, loss: calls.append(call) or loss)
    assert main(["run", str(place.job(number=2))]) == 0
    assert len(calls) == 6
    assert place.update().base_sha256 == version.sha256


# Real processes ---------------------------------------------------------------


@contextmanager
def started(path: Path, code: str = "") -> Iterator[subprocess.Popen[str]]:
    """Start the worker as a process of its own; `code` runs in it first."""
    runner = f"import sys\n{code}\nfrom hansa.worker.__main__ import main\n"
    with subprocess.Popen(
        [sys.executable, "-c", f"{runner}sys.exit(main(['run', {str(path)!r}]))"],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as process:
        try:
            yield process
        finally:
            process.kill()


BLOCK_AT = """
from hansa.worker.trainers.softmax import Softmax
step, calls = Softmax.step, []
def blocking(self, batch):
    calls.append(1)
    if len(calls) == {call}:
        print("there", file=sys.stderr, flush=True)
        sys.stdin.readline()
    return step(self, batch)
Softmax.step = blocking
from hansa.worker import saver
saver.SHARE = 1e9
save = saver.Saver.save
saver.Saver.save = lambda self, *told: (save(self, *told), self.wait())
"""


def wait_for(process: subprocess.Popen[str], words: str) -> None:
    assert process.stderr is not None
    for line in process.stderr:
        if words in line:
            return
    raise AssertionError(f"the process ended without {words!r}")


@pytest.mark.integration
def test_whole_job_in_a_process_without_torch(place: Place) -> None:
    path = place.job()
    report = "import atexit; atexit.register(lambda: print('torch' in sys.modules, "
    with started(path, report + "file=sys.stderr))") as process:
        _, words = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, words
    assert words.strip().endswith("False")
    assert place.update().steps == 6


@pytest.mark.integration
def test_killed_job_is_resumed_by_the_next(place: Place) -> None:
    code = BLOCK_AT.format(call=4)
    path = place.job(checkpoint_s=0.0, heartbeat_s=0.0)
    with started(path, code) as process:
        wait_for(process, "there")
        process.kill()
        process.wait(timeout=SECONDS)
    assert process.returncode == -signal.SIGKILL
    assert place.status()["step"] == 3
    with started(place.job(number=2)) as process:
        _, words = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, words
    assert "step 3" in words
    same_bits(place, place.job(number=2))


@pytest.mark.integration
@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_warned_process_returns_partial_work(place: Place, number: int) -> None:
    code = BLOCK_AT.format(call=3)
    with started(place.job(), code) as process:
        wait_for(process, "there")
        process.send_signal(number)  # within step 3, which the line below lets end
        _, words = process.communicate("\n", timeout=SECONDS)
    assert process.returncode == 0, words
    assert (place.update().partial, place.update().steps) == (True, 3)


@pytest.mark.integration
def test_allocation_in_a_process_is_handed_an_order_and_ended_by_a_signal(
    place: Place,
) -> None:
    host = place.ahead(ahead_s=SECONDS, linger_s=SECONDS, heartbeat_s=0.0)
    tell = "from hansa.worker.status import Status\nenter = Status.enter\n"
    tell += "def told(self, phase, **words):\n    enter(self, phase, **words)\n"
    tell += (
        "    print('phase:', phase, file=sys.stderr, flush=True)\nStatus.enter = told"
    )
    with started(host, tell) as process:
        wait_for(process, "phase: lingering")
        assert place.hand(host, 1, place.job())
        wait_for(process, "phase: lingering")  # for the next one
        process.send_signal(signal.SIGTERM)
        _, words = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, words
    assert place.update().steps == 6
    assert "Delivered 6" in place.mailbox.job(FIRST, 1).log.read_text()
    assert not place.hand(host, 2, place.job(number=2))
