"""The worker's own trainer in this process gives the numbers of a real run."""

from __future__ import annotations

import math
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from inprocess import InProcess, digits
from surrogates import federation, order

from hansa.coordinator.core import Coordinator
from hansa.core.commands import Aggregate, Assign, Command, Evaluate
from hansa.core.errors import PolicyError, SpecError, WorkerError
from hansa.core.events import (
    EvaluationReported,
    Event,
    RunStarted,
    UpdateArrived,
    VersionPublished,
)
from hansa.simulator.memory import MemoryStore
from hansa.simulator.training import make_training
from hansa.simulator.training.base import LocalWork, Vector
from hansa.simulator.training.real import Real
from hansa.spec.load import federation_from_text
from hansa.spec.yaml import dump

TOWNS = {f"town-{number}": {"data": f"part-{number}"} for number in range(3)}
TASK = {"name": "digits", "options": {"parts": 3, "alpha": 0.5, "seed": 4}}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let tasks that have no site.yaml make their cache here."""
    monkeypatch.setenv("HOME", str(tmp_path))


def real(seed: int = 0, **more: Any) -> Real:
    plan = {"facilities": TOWNS, "task": TASK, "update": {"dtype": "float32"}, **more}
    made = make_training(federation({"type": "real"}, **plan), seed)
    assert isinstance(made, Real)
    return made


class Simulated:
    """Carries the core's commands out as `InProcess` does, with vectors in memory."""

    def __init__(self, training: Real, core: Coordinator, steps: int) -> None:
        self.training, self.core, self.steps = training, core, steps
        self.store = MemoryStore(training.initial())
        self._orders: deque[Assign] = deque()

    def run(self, rounds: int) -> Vector:
        names = self.core.plan.facilities
        self._tell(
            RunStarted(at=0, run="r", plan="", seed=0, facilities=names, started=0.0)
        )
        self._publish(0, ())
        while self._orders and self.core.newest < rounds:
            self._work(self._orders.popleft())
        made = self.store.version(rounds)
        assert made is not None
        return made

    def _publish(self, version: int, terms: tuple) -> None:
        self._tell(
            VersionPublished(
                at=0, version=version, sha256="", bytes=1, seconds=0, terms=terms
            )
        )

    def _tell(self, event: Event) -> None:
        for command in self.core.handle(event):
            self._carry_out(command)

    def _carry_out(self, command: Command) -> None:
        match command:
            case Assign():
                self._orders.append(command)
            case Aggregate():
                self.store.aggregate(command)
                self._publish(command.version, command.terms)
            case Evaluate(facility=facility, order=asked):
                self._tell(
                    EvaluationReported(
                        at=0,
                        facility=facility,
                        assignment=asked.assignment,
                        version=asked.version or 0,
                        loss=1.0,
                    )
                )
            case _:
                pass

    def _work(self, command: Assign) -> None:
        asked, base = command.order, self.store.newest
        steps = asked.steps or self.steps
        progress = self.core.progress(asked.assignment)
        assert progress is not None
        control = self.store.state(asked.control) if asked.control else None
        work = LocalWork(
            assignment=asked.assignment,
            round=asked.round,
            steps=steps,
            seen=progress.seen,
            lr_scale=asked.lr_scale,
            proximal=asked.proximal,
            control=control,
        )
        made = self.training.train(command.facility, self.store.version(base), work)
        self.store.put_update(asked.assignment, made.delta)
        self._tell(
            UpdateArrived(
                at=0,
                facility=command.facility,
                assignment=asked.assignment,
                base=base,
                steps=steps,
                samples=made.samples,
                partial=False,
                bytes=1,
                metrics=made.metrics,
                timings={"train_s": 1.0 * steps},
            )
        )


@pytest.mark.parametrize(
    ("strategy", "options", "momentum"),
    [
        ("fedavg", {}, 0.9),
        ("fedprox", {"mu": 0.5}, 0.0),
        ("scaffold", {}, 0.0),
        ("fedadam", {}, 0.0),
    ],
)
def test_a_federation_in_simulation_has_the_model_of_the_real_one(
    tmp_path: Path, strategy: str, options: dict[str, Any], momentum: float
) -> None:
    shares, test = digits(3, 0.5, 4)
    work = {"lr": 0.2, "momentum": momentum}
    there = InProcess(
        root=tmp_path,
        data=shares,
        strategy=strategy,
        options=options,
        work=work,
        steps=6,
        rounds=3,
        seed=11,
    )
    model = there.run()
    training = real(seed=11, work={**work, "batch": 32})
    kind = type(there)(tmp_path / "core", shares, strategy, options, steps=6, rounds=3)
    weights = Simulated(training, kind.core, steps=6).run(3)
    expected = np.concatenate([model["bias"], model["weights"].reshape(-1)])
    np.testing.assert_allclose(weights, expected, atol=2e-6)
    assert np.abs(expected).max() > 0.05
    (loss,) = training.losses(weights).values()
    assert loss == pytest.approx(there.loss(test), rel=1e-5)


def test_version_0_and_sizes_are_those_of_the_trainer() -> None:
    training = real()
    weights = training.initial()
    assert weights.shape == (650,)
    assert not weights.any()
    # 65 x 10 numbers in fp32, and what else is in the files.
    assert training.update_bytes == 2600
    assert 2600 < training.version_bytes < 6000
    # Of ten classes, zero weights know nothing.
    assert training.losses(weights) == {"digits": pytest.approx(math.log(10))}


def test_what_is_told_of_sizes_counts() -> None:
    spec = federation({"type": "real", "bytes": "1GB"}, TOWNS, task=TASK)
    training = make_training(spec, 0)
    assert (training.version_bytes, training.update_bytes) == (10**9, 10**9)


def test_orders_leave_nothing_behind() -> None:
    work = {"momentum": 0.9}
    training, other = real(work=work), real(work=work)
    base = np.linspace(-0.1, 0.1, 650)
    for number in range(2, 4):
        other.train("town-0", base, order(5, number, proximal=1.0))
        other.losses(base)
    made, again = (one.train("town-0", base, order(5)) for one in (training, other))
    assert made.delta is not None
    assert again.delta is not None
    assert made.delta.tobytes() == again.delta.tobytes()
    assert made.samples == 20
    # With momentum the steps do not add up to the gradients.
    assert "lr_sum" not in made.metrics
    assert (base == np.linspace(-0.1, 0.1, 650)).all()


def test_the_first_step_is_where_the_stream_of_data_goes_on() -> None:
    training = real()
    base = training.initial()
    whole = training.train("town-1", base, order(3)).delta
    half = training.train("town-1", base, order(2)).delta
    assert whole is not None
    assert half is not None
    rest = training.train("town-1", base + half, order(1, seen=8)).delta
    assert rest is not None
    np.testing.assert_allclose(half + rest, whole, atol=1e-7)


def local(tmp_path: Path, tasks: dict[str, Any]) -> Real:
    """Return a federation of one facility with a site.yaml."""
    site = {
        "name": "a",
        "scheduler": "local",
        "mailbox": str(tmp_path / "mailbox"),
        "tasks": tasks,
    }
    (tmp_path / "site.yaml").write_text(dump(site))
    plan = {
        "name": "small",
        "model": {"trainer": "softmax", "source": "zeros"},
        "task": TASK,
        "strategy": "fedavg",
        "stop": {"rounds": 1},
        "facilities": {
            "a": {
                "gateway": {"type": "local", "site": "site.yaml"},
                "mover": "posix",
                "work": {"steps": 10, "batch": 4, "lr": 0.1},
            }
        },
        "simulation": {"training": {"type": "real"}},
    }
    spec = federation_from_text(dump(plan), base=tmp_path)
    made = make_training(spec, 0)
    assert isinstance(made, Real)
    return made


def test_a_facility_of_this_machine_trains_on_what_its_site_file_says(
    tmp_path: Path,
) -> None:
    own = local(tmp_path, {"digits": {"splits": ["part-1"], "options": {"alpha": 5}}})
    named = {**TASK, "options": {**TASK["options"], "alpha": 5}}
    told = real(task=named, facilities={"a": {"data": "part-1"}})
    base = own.initial()
    made, expected = (one.train("a", base, order(5)).delta for one in (own, told))
    assert made is not None
    assert expected is not None
    assert made.tobytes() == expected.tobytes()


def test_a_site_file_that_does_not_allow_the_task_is_obeyed(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="does not allow the task 'digits'"):
        local(tmp_path, {"chem-instruct": {}})


def test_a_loss_that_is_no_number_is_an_error_of_the_worker() -> None:
    training = real()
    with pytest.raises(WorkerError, match="training loss became") as caught:
        training.train("town-0", training.initial(), order(9, lr_scale=1e38))
    assert not caught.value.transient


def test_what_the_trainer_breaks_at_is_an_error_of_the_worker() -> None:
    with pytest.raises(WorkerError, match="ValueError"):
        real().train("town-0", np.zeros(3), order(1))


def test_exact_sums_of_adapters_are_refused() -> None:
    with pytest.raises(SpecError, match="can't be simulated"):
        real(aggregation={"adapters": "folded"})
