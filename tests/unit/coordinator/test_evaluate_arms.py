"""The plans of models that a run is compared with: same budget, same seed."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from hansa.coordinator.core import Coordinator
from hansa.coordinator.evaluate import (
    LIMIT,
    Settings,
    _Evaluating,
    _measuring,
    _Model,
    _remove,
    _unmeasured,
    answers_asked,
)
from hansa.coordinator.evaluate_arms import (
    Share,
    all_groups,
    central_plan,
    local_plan,
    measuring_plan,
    shares,
)
from hansa.coordinator.folder import RunFolder
from hansa.core.commands import Assign, Command, Evaluate, Finish
from hansa.core.errors import FacilityError, StoreError, UsageError
from hansa.core.events import (
    EvaluationReported,
    Event,
    RunStarted,
    UpdateArrived,
    VersionPublished,
)
from hansa.journal import Journal, Lease
from hansa.spec.federation import FederationSpec, lock_text
from hansa.spec.load import federation_from_text, load_federation
from hansa.spec.site import load_site
from hansa.store import Store


def facility(group: str | None, batch: int, steps: int = 5) -> dict[str, Any]:
    return {
        "gateway": {"type": "local", "site": "/site.yaml"},
        "mover": "posix",
        "linger": 60,
        "job": {"time": 600},
        "data": group,
        "work": {"steps": steps, "batch": batch, "lr": 0.5},
    }


def plan(**more: Any) -> FederationSpec:
    data = {
        "name": "two",
        "seed": 11,
        "model": {"trainer": "softmax", "source": "zeros"},
        "task": {"name": "digits"},
        "strategy": {"name": "fedbuff"},
        "stop": {"node_hours": 3},
        "start_together": 60,
        "update": {"dtype": "int8"},
        "facilities": {"anvil": facility("a", 8), "borah": facility("b", 16)},
        **more,
    }
    text = lock_text(FederationSpec.model_validate(data))
    return federation_from_text(text)


def update(name: str, steps: int, samples: int) -> UpdateArrived:
    return UpdateArrived(
        at=0.0, facility=name, assignment="", base=0, steps=steps, samples=samples,
        partial=False, bytes=1,
    )  # fmt: skip


ANVIL = Share(updates=3, steps=14, samples=112)
BORAH = Share(updates=2, steps=10, samples=160)


def test_shares_are_what_came() -> None:
    events = [
        *(update("anvil", steps, 8 * steps) for steps in (5, 5, 4)),
        *(update("borah", 5, 80) for _ in range(2)),
    ]
    assert shares(events) == {"anvil": ANVIL, "borah": BORAH}
    assert Share(updates=5, steps=24, samples=272) == ANVIL + BORAH


def test_a_local_model_has_its_facilitys_own_budget() -> None:
    made = local_plan(plan(), "anvil", ANVIL)
    assert [*made.facilities] == ["anvil"]
    alone = made.facilities["anvil"]
    assert (made.stop.rounds, alone.work.steps) == (3, 5)
    assert (made.seed, alone.data, alone.work.options["batch"]) == (11, ("a",), 8)
    assert (made.strategy.name, made.start_together) == ("fedavg", None)
    # Its updates are not rounded: a rival must not be worse than it could be.
    assert made.update.dtype == "float32"
    assert alone.job.time == 600
    assert federation_from_text(lock_text(made)) == made


def test_a_central_model_sees_as_many_samples_as_all_did_together() -> None:
    did = {"anvil": ANVIL, "borah": BORAH}
    made = central_plan(plan(), "borah", did, rounds=4)
    alone = made.facilities["borah"]
    assert alone.data == ("a", "b")
    # 272 samples in batches of 16 are 17 steps, in 4 rounds 4 each.
    assert (made.stop.rounds, alone.work.steps) == (4, 4)
    long = central_plan(plan(), "anvil", did, rounds=2)
    assert long.facilities["anvil"].work.steps == 17
    assert long.facilities["anvil"].job.time == pytest.approx(600 * 17 / 5)
    blind = plan(facilities={"anvil": facility("a", 8), "borah": facility(None, 8)})
    with pytest.raises(UsageError, match="borah trains on all data"):
        all_groups(blind)


def test_budgets_are_equal_where_steps_can_not_be_divided_by_rounds() -> None:
    """Else 100 rounds of 0.6 or 1.5 steps would be 100 of 1, or of 2."""
    did = {"anvil": Share(updates=60, steps=90, samples=720)}
    made = local_plan(plan(), "anvil", did["anvil"])
    assert (made.stop.rounds, made.facilities["anvil"].work.steps) == (45, 2)
    made = central_plan(plan(), "borah", did, rounds=75)
    # 720 samples in batches of 16 are 45 steps.
    assert (made.stop.rounds, made.facilities["borah"].work.steps) == (45, 1)


def test_a_schedule_lasts_as_long_as_the_central_training() -> None:
    facilities = {"anvil": facility("a", 8), "borah": facility("b", 8)}
    for one in facilities.values():
        one["work"]["schedule"] = {"steps": 20, "warmup": 2}
    spec = plan(
        model={"trainer": "causal-lm", "source": "tiny-llama"},
        task={"name": "chem-instruct"},
        facilities=facilities,
    )
    did = {"anvil": Share(updates=4, steps=20, samples=160)}
    did["borah"] = Share(updates=4, steps=40, samples=320)
    # 60 steps: for the one three times as many as it did, for the other 1.5.
    for name, steps, warmup in (("anvil", 60, 6), ("borah", 30, 3)):
        made = central_plan(spec, name, did, rounds=4).facilities[name]
        found = made.work.options["schedule"]
        assert (found["steps"], found["warmup"]) == (steps, warmup)
    alone = local_plan(spec, "anvil", did["anvil"]).facilities["anvil"]
    assert alone.work.options["schedule"]["steps"] == 20


class Course:
    """A core that is told of events and remembers its commands."""

    def __init__(self, core: Coordinator) -> None:
        self.core = core
        self.commands: list[Command] = []
        self.see(
            RunStarted(
                at=0.0, run="r", plan="", seed=11, facilities=("anvil",), started=1.0
            )
        )
        self.publish(0)

    def see(self, event: Event) -> None:
        self.commands += self.core.handle(event)

    def publish(self, version: int) -> None:
        self.see(
            VersionPublished(
                at=1.0, version=version, sha256="", bytes=1, seconds=1.0, terms=()
            )
        )

    def kinds(self) -> list[type[Command]]:
        return [type(command) for command in self.commands]


def test_a_measuring_run_trains_nothing() -> None:
    made = measuring_plan(plan(evaluation={"on": ["borah"]}))
    assert [*made.facilities] == ["borah"]
    assert made.facilities["borah"].linger == 0
    assert federation_from_text(lock_text(made)) == made
    course = Course(_measuring(made))
    assert course.kinds() == [Evaluate]
    (asked,) = course.commands
    assert isinstance(asked, Evaluate)
    course.see(
        EvaluationReported(
            at=2.0, facility="borah", assignment=asked.order.assignment, version=0,
            loss=1.0,
        )
    )  # fmt: skip
    assert course.kinds() == [Evaluate, Finish]
    assert course.commands[-1] == Finish(outcome="done", reason="0 rounds are done.")


def test_a_model_to_compare_with_is_trained_without_being_measured() -> None:
    course = Course(_unmeasured(local_plan(plan(), "anvil", ANVIL)))
    assert course.kinds() == [Assign]


def test_the_example_may_be_compared_with_a_central_model() -> None:
    examples = Path(__file__).parents[3] / "examples"
    spec = load_federation(examples / "chemistry-smollm2.yaml")
    did = Share(updates=16, steps=96, samples=768)
    allowed = {}
    for name in spec.facilities:
        site = load_site(examples / f"sites/chemistry-smollm2/{name}.yaml")
        made = central_plan(spec, name, {name: did}, rounds=4)
        assert made.facilities[name].work.steps == 24
        assert made.facilities[name].job.time <= (site.limits.time or 0)
        allowed[name] = site.tasks["chem-instruct"].splits
    own = {name: one.data for name, one in spec.facilities.items()}
    assert allowed == {**own, "perlmutter": None}


def test_answers_are_asked_only_of_trainers_that_generate_some() -> None:
    """Else every model would be trained before the first job says so."""
    digits = plan()
    language = digits.model_copy(
        update={"model": digits.model.model_copy(update={"trainer": "causal-lm"})}
    )
    assert (answers_asked(language, None), answers_asked(language, 0)) == (LIMIT, 0)
    assert answers_asked(language, 5) == 5
    assert (answers_asked(digits, None), answers_asked(digits, 0)) == (0, 0)
    with pytest.raises(UsageError, match="softmax generates no answers"):
        answers_asked(digits, 5)


def run_with_version_0(root: Path, value: float) -> RunFolder:
    folder = RunFolder(root / "r")
    shutil.rmtree(folder.path, ignore_errors=True)
    draft = root / "draft"
    draft.mkdir(exist_ok=True)
    save_file({"w": np.full(3, value, np.float32)}, draft / "m.safetensors")
    Store(folder.path, "float32").import_initial(draft)
    return folder


def measure(folder: RunFolder, place: RunFolder, **losses: float) -> EvaluationReported:
    """Take up a measuring run whose facility has answered."""
    model = _Model(name="base", kind="base", folder=folder, version=0)
    told = EvaluationReported(
        at=1.0, facility="anvil", assignment="evaluate-0001-anvil-1", version=0,
        loss=1.0, losses=losses,
    )  # fmt: skip
    place.claim(measuring_plan(plan()))
    with (
        Lease.acquire(place.lease, 0.0) as lease,
        Journal.open(place.journal, lease) as file,
    ):
        file.append(told, "")
    settings = Settings(limit=0)
    work = _Evaluating(folder, plan(), {}, settings, lambda words: None)
    return asyncio.run(work._measure(model))


def test_only_what_was_measured_of_this_very_model_counts(tmp_path: Path) -> None:
    folder = run_with_version_0(tmp_path, 1.0)
    measured = tmp_path / "r/evaluation/r.base.loss"
    measured.parent.mkdir()
    place = RunFolder(measured)
    assert measure(folder, place, a=0.5).losses == {"a": 0.5}
    # The run was made anew, and is another.
    shutil.move(measured, tmp_path / "kept")
    folder = run_with_version_0(tmp_path, 2.0)
    measured.parent.mkdir()
    shutil.move(tmp_path / "kept", measured)
    with pytest.raises(StoreError, match="is another model than version 0"):
        measure(folder, place, a=0.5)
    _remove(measured)
    assert not list(measured.parent.iterdir())
    with pytest.raises(FacilityError, match="anvil has told no test loss by task"):
        measure(folder, place)
