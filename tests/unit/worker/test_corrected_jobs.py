"""Jobs whose orders ask more of the steps than the loss, and where data begins."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from worker_place import FIRST, Place, Story, on_step, read_job, same_bits, trained

from hansa.core.errors import HansaError, IntegrityError, SpecError, WorkerError
from hansa.worker.__main__ import main
from hansa.worker.allocation import Allocation
from hansa.worker.data import Batches
from hansa.worker.job import read_job as read_any
from hansa.worker.loading import batches_of, build_task
from hansa.worker.session import Session
from hansa.worker.signals import Stop

STATE = "state/correction-a/1"
WORK = {"batch": 16, "lr": 0.5}
PLAIN = {"work": WORK, "evaluate": False}
PROXIMAL = {**PLAIN, "control": "", "proximal": 0.5, "work": {**WORK, "momentum": 0.9}}
SCAFFOLD = {**PLAIN, "control": STATE, "lr_scale": 0.5}
BOTH = {**SCAFFOLD, "proximal": 0.5}

ORDERS = pytest.mark.parametrize(
    "order", [PROXIMAL, SCAFFOLD, BOTH], ids=["fedprox", "scaffold", "both"]
)


@pytest.fixture(autouse=True)
def state(place: Place) -> Path:
    return place.state(STATE, seed=5)


def fails(path: Path, kind: type[HansaError], words: str) -> HansaError:
    with pytest.raises(kind, match=words) as info:
        Session(read_job(path), Stop(), 0.0).run()
    return info.value


def deltas(place: Place, assignment: str = FIRST) -> dict[str, Any]:
    return place.tensors(place.mailbox.update(assignment))


@ORDERS
def test_update_is_that_of_the_corrected_steps(
    place: Place, order: dict[str, Any]
) -> None:
    path = place.job(order=order)
    assert main(["run", str(path)]) == 0
    same_bits(place, path)
    corrected = deltas(place)
    other = "train-0001-a-2"
    plain = {**order, "proximal": 0.0, "control": "", "lr_scale": 1.0}
    assert main(["run", str(place.job(assignment=other, order=plain))]) == 0
    assert not np.array_equal(corrected["weights"], deltas(place, other)["weights"])


def test_order_that_asks_for_nothing_changes_no_bit(place: Place) -> None:
    nothing = {**PLAIN, "proximal": 0.0, "lr_scale": 1.0, "control": "", "first": 0}
    other = "train-0001-a-2"
    assert main(["run", str(place.job(order=nothing))]) == 0
    assert main(["run", str(place.job(assignment=other, order=PLAIN))]) == 0
    assert deltas(place)["weights"].tobytes() == (
        deltas(place, other)["weights"].tobytes()
    )


@ORDERS
def test_interrupted_is_uninterrupted(
    place: Place,
    monkeypatch: pytest.MonkeyPatch,
    eager: None,
    order: dict[str, Any],
) -> None:
    def act(call: int, loss: float) -> float:
        if call == 5:
            raise MemoryError
        return loss

    on_step(monkeypatch, act)
    assert main(["run", str(place.job(order=order, checkpoint_s=0.0))]) == 1
    monkeypatch.undo()
    path = place.job(number=2, order=order)
    assert main(["run", str(path)]) == 0
    assert place.update().steps == 6
    same_bits(place, path)
    rates = 6 * 0.5 * 0.5 if order["control"] else None  # fedprox is with momentum
    assert place.update().metrics.get("lr_sum") == rates


def test_update_over_the_sum_of_rates_is_the_mean_gradient(place: Place) -> None:
    """With the control variate in it: what SCAFFOLD's server needs (option II)."""
    path = place.job(order={**SCAFFOLD, "steps": 1})
    assert main(["run", str(path)]) == 0
    plain = place.job(assignment="train-0001-a-2", order={**PLAIN, "steps": 1})
    assert main(["run", str(plain)]) == 0
    scaled, whole = place.update(), place.update("train-0001-a-2")
    assert (scaled.metrics["lr_sum"], whole.metrics["lr_sum"]) == (0.25, 0.5)
    control = place.tensors(place.mailbox.state(STATE))["weights"]
    mean = deltas(place)["weights"] / -0.25
    gradient = deltas(place, "train-0001-a-2")["weights"] / -0.5
    np.testing.assert_allclose(mean, gradient + control, atol=1e-6)


def test_partial_work_counts_its_own_steps(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = Stop()

    def act(call: int, loss: float) -> float:
        if call == 4:
            stop.deadline = 0.0
        return loss

    on_step(monkeypatch, act)
    Session(read_job(place.job(order=SCAFFOLD)), stop, 0.0).run()
    assert place.update().partial
    assert place.update().metrics["lr_sum"] == 4 * 0.5 * 0.5


def test_momentum_reports_no_sum_of_rates(place: Place) -> None:
    assert main(["run", str(place.job(order=PROXIMAL))]) == 0
    assert "lr_sum" not in place.update().metrics


def test_state_that_is_not_there_is_transient(place: Place) -> None:
    path = place.job(order={**PLAIN, "control": "state/correction-a/2"})
    assert fails(path, WorkerError, "does not hold state/correction-a/2").transient
    assert not place.mailbox.updates.exists()


@pytest.mark.parametrize("damage", ["flipped", "missing", "extra", "manifest"])
def test_damaged_state_is_refused(place: Place, state: Path, damage: str) -> None:
    file = next(state.glob("*.safetensors"))
    if damage == "flipped":
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(data)
    elif damage == "missing":
        file.unlink()
    elif damage == "extra":
        shutil.copy(file, state / "more.safetensors")
    else:
        (state / "manifest.json").write_text("{}")
    fails(place.job(order=SCAFFOLD), IntegrityError, str(state))
    assert place.status()["error"]["code"] == "STORE_INTEGRITY"


def test_nothing_is_trained_with_another_optimizer(place: Place) -> None:
    order = {**SCAFFOLD, "work": {**WORK, "momentum": 0.9}}
    error = fails(place.job(order=order), SpecError, "scaffold needs plain SGD")
    assert not error.transient
    assert place.status()["step"] == 0


@pytest.mark.parametrize("ref", ["version/1", "state/../1", "state/a/../1", "x"])
def test_reference_of_no_state_is_refused(place: Place, ref: str) -> None:
    path = place.job(order={**PLAIN, "control": ref})
    fails(path, SpecError, "is no reference of a stored state")


def test_checkpoint_that_can_not_be_restored_keeps_the_corrections(
    place: Place, monkeypatch: pytest.MonkeyPatch, eager: None
) -> None:
    on_step(monkeypatch, lambda call, loss: loss if call < 4 else float("nan"))
    assert main(["run", str(place.job(order=BOTH, checkpoint_s=0.0))]) == 1
    monkeypatch.undo()

    def restore(self: object, directory: Path) -> None:
        raise WorkerError("no")

    monkeypatch.setattr("hansa.worker.trainers.softmax.Softmax.restore", restore)
    path = place.job(number=2, order=BOTH)
    assert main(["run", str(path)]) == 0
    assert place.update().metrics["lr_sum"] == 6 * 0.5 * 0.5
    same_bits(place, path)


def test_order_in_an_allocation_takes_its_own_state(place: Place) -> None:
    story = Story()
    host = place.job(order=SCAFFOLD, linger_s=5.0)
    place.state("state/correction-a/2", seed=6)
    second = "train-0002-a-1"
    order = {**SCAFFOLD, "control": "state/correction-a/2"}
    path = place.job(assignment=second, order=order)
    assert place.hand(host, 1, path)
    work = Allocation(
        read_any(host), Stop(now=story.clock.now), story.time, None, story.clock
    )
    work.run()
    same_bits(place, host)
    same_bits(place, path, second)
    assert not np.array_equal(
        trained(place, host, 6)._tensors["weights"],
        trained(place, path, 6)._tensors["weights"],
    )


@pytest.mark.parametrize(
    ("order", "seen"),
    [
        ({"round": 3, "steps": 4}, 8 * 16),
        ({"round": 3, "first": 0}, 0),
        ({"first": 50}, 50 * 16),
        ({"round": 3, "first": 50, "seen": 7}, 7),  # as newer servers say it
    ],
)
def test_where_in_its_data_an_order_begins(
    place: Place, order: dict[str, Any], seen: int
) -> None:
    job = read_job(place.job(order={**PLAIN, **order}))
    task = build_task(job)
    batches = batches_of(job, task)
    examples = task.load("train", job.task.splits)
    expected = Batches(examples, 16, seed=3, facility="a", seen=seen)
    for step in range(3):
        found = [example.input.tobytes() for example in batches[step]]
        assert found == [example.input.tobytes() for example in expected[step]]


def test_checkpoint_of_before_the_rates_were_noted_goes_on(
    place: Place, monkeypatch: pytest.MonkeyPatch, eager: None
) -> None:
    on_step(monkeypatch, lambda call, loss: loss if call < 4 else float("nan"))
    assert main(["run", str(place.job(order=PLAIN, checkpoint_s=0.0))]) == 1
    monkeypatch.undo()
    for path in place.mailbox.job(FIRST, 1).checkpoint.glob("*/checkpoint.json"):
        record = json.loads(path.read_text())
        del record["progress"]["lr_sum"]
        path.write_text(json.dumps(record))
    path = place.job(number=2, order=PLAIN)
    assert main(["run", str(path)]) == 0
    assert "lr_sum" not in place.update().metrics  # it would be that of three steps
    same_bits(place, path)
