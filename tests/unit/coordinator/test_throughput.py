"""What a scaling study orders, what it may reuse, and what it makes of the answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from hansa.coordinator.measurements import results
from hansa.coordinator.scaling import Scaling
from hansa.coordinator.settings import LaneSettings
from hansa.coordinator.setup import job_request, order_form
from hansa.coordinator.throughput import Ask, Study, batches, lane_of, read_all
from hansa.core import events as ev
from hansa.core.commands import Assign, Finish, WorkOrder
from hansa.core.errors import UsageError
from hansa.journal import Journal, Lease
from hansa.planner.flops import flops_per_token
from hansa.planner.record import Measurement
from hansa.planner.shape import tiny_llama
from hansa.site.order import Order
from hansa.spec.federation import FederationSpec, plan_hash
from hansa.spec.load import federation_from_text

FEDERATION = """\
name: smol
model:
  trainer: causal-lm
  source: tiny-llama
  options: {{hidden: 8, layers: 2, heads: 2, intermediate: 16, vocabulary: 300}}
task: chem-instruct
strategy: {{name: fedcompass}}
stop: {{rounds: 2}}
start_together: 5m
facilities:
  polaris:
    gateway: {{type: local, site: polaris.yaml}}
    mover: posix
    linger: 10m
    job: {{nodes: 2, time: 1h, ranks_per_node: 4}}
    data: property_prediction
    work: {{steps: 50, batch: {batch}, lr: {lr}}}
  aurora:
    gateway: {{type: local, site: aurora.yaml}}
    mover: posix
    work: {{steps: 50, batch: 12}}
"""


def federation(batch: int = 12, lr: float = 1e-3) -> FederationSpec:
    return federation_from_text(FEDERATION.format(batch=batch, lr=lr), name="f.yaml")


def study(runs: Path, spec: FederationSpec | None = None) -> Study:
    return Study(spec=spec or federation(), facility="polaris", runs=runs)


ASK = Ask(nodes=(1, 2), batches=(6, 12), steps=20)


# What is ordered.


def version_0() -> ev.VersionPublished:
    return ev.VersionPublished(
        at=0.0, version=0, sha256="", bytes=0, seconds=0.0, terms=()
    )


def update(assignment: str, **metrics: float) -> ev.UpdateArrived:
    return ev.UpdateArrived(
        at=60.0,
        facility="polaris",
        assignment=assignment,
        base=0,
        steps=26,
        samples=156,
        partial=False,
        bytes=1,
        metrics=metrics,
        losses={},
        timings={"startup_s": 12.0},
    )


def failed(assignment: str) -> ev.AssignmentFailed:
    return ev.AssignmentFailed(
        at=60.0,
        facility="polaris",
        assignment=assignment,
        code="FACILITY",
        reason="no such queue",
        transient=False,
    )


def test_all_sizes_are_ordered_at_once_and_the_study_ends_with_the_last() -> None:
    scaling = Scaling("polaris", (1, 4), repeats=2, steps=26)
    orders = [c.order for c in scaling.handle(version_0()) if isinstance(c, Assign)]
    names = [order.assignment for order in orders]
    assert names == [
        *("train-0001-polaris-1", "train-0004-polaris-1"),
        *("train-0001-polaris-2", "train-0004-polaris-2"),
    ]
    assert {order.steps for order in orders} == {26}
    for name in names[:-1]:
        assert scaling.handle(update(name)) == []
    held = [f"update/{name}" for name in sorted(names[:-1])]
    assert scaling.holds() == held
    (end,) = scaling.handle(update(names[-1]))
    assert isinstance(end, Finish)
    assert end.outcome == "done"


def test_what_fails_does_not_end_the_others() -> None:
    scaling = Scaling("polaris", (1, 2), repeats=1, steps=26)
    scaling.handle(version_0())
    assert scaling.handle(failed("train-0002-polaris-1")) == []
    (end,) = scaling.handle(update("train-0001-polaris-1"))
    assert isinstance(end, Finish)
    assert end.outcome == "partial"


def test_a_facility_that_is_lost_ends_the_study() -> None:
    scaling = Scaling("polaris", (1, 2), repeats=1, steps=26)
    scaling.handle(version_0())
    lost = ev.FacilityLost(at=1.0, facility="polaris", code="GATEWAY", reason="silent")
    (end,) = scaling.handle(lost)
    assert isinstance(end, Finish)
    assert end.outcome == "failed"


def test_each_node_has_as_many_examples_or_the_step_does() -> None:
    spec = federation()
    assert batches(spec, "polaris", (1, 2, 4)) == (6, 12, 24)
    assert batches(spec, "polaris", (1, 4), per_node=5) == (5, 20)
    assert batches(spec, "polaris", (1, 4), strong=True) == (12, 12)
    with pytest.raises(UsageError, match="can't be divided by 2 nodes"):
        batches(federation(batch=13), "polaris", (1, 2))


def test_the_plan_is_of_one_facility_at_its_largest_job() -> None:
    plan = study(Path("runs")).plan(replace(ASK, time=600.0))
    assert list(plan.facilities) == ["polaris"]
    polaris = plan.facilities["polaris"]
    assert (polaris.job.nodes, polaris.job.time, polaris.linger) == (2, 600.0, 0.0)
    assert (polaris.work.steps, polaris.work.options["batch"]) == (26, 12)
    assert polaris.work.options["lr"] == 1e-3
    assert plan.start_together is None
    assert plan.evaluation.local is False


def test_each_order_asks_for_its_nodes_its_batch_and_to_be_measured() -> None:
    plan = study(Path("runs")).plan(ASK)
    settings = lane_of(ASK)(
        LaneSettings(
            run="r",
            facility="polaris",
            order=order_form(plan, "r", "polaris"),
            job=job_request(plan.facilities["polaris"]),
        )
    )
    work = WorkOrder(assignment="train-0001-polaris-1", kind="train", round=1, steps=26)
    assert {**settings.job, **settings.size(work)}["nodes"] == 1
    order = Order.model_validate(settings.order(work))
    assert order.problem() is None
    assert order.work["batch"] == 6
    assert order.measure is not None
    assert order.measure.model_dump() == {"warm_up": 3, "steps": 20, "profiled": 3}
    assert order.evaluate is False


# What came of it.

MEASURED = {
    "ranks": 8.0,
    "measured_steps": 20.0,
    "measured_s": 10.0,
    "measured_data_s": 1.0,
    "measured_communication_s": 2.5,
    "measured_samples": 240.0,
    "measured_tokens": 12_000.0,
    "measured_padding": 3_000.0,
    "measured_answers": 2_400.0,
    "memory_peak_bytes": 5e8,
    "host_memory_peak_bytes": 7e8,
    "first_step_s": 4.0,
}


def journal(folder: Path, events: Sequence[ev.Event]) -> None:
    lease = Lease.acquire(folder / "lease", 0.0)
    with lease, Journal.open(folder / "journal.jsonl", lease) as file:
        for event in events:
            file.append(event, "")


def started(facility: str = "polaris") -> ev.RunStarted:
    return ev.RunStarted(
        at=0.0, run="r", plan="", seed=0, facilities=(facility,), started=1000.0
    )


def job_started(assignment: str, waited: float) -> ev.JobStarted:
    return ev.JobStarted(
        at=5.0,
        facility="polaris",
        assignment=assignment,
        number=1,
        job="7",
        base=0,
        queue_wait=waited,
    )


def test_numbers_of_a_measurement(tmp_path: Path) -> None:
    made = study(tmp_path)
    folder = made.new(ASK)
    name = "train-0002-polaris-1"
    journal(
        folder.path,
        [
            started(),
            job_started(name, 33.0),
            update(name, **MEASURED),
            update("train-0001-polaris-1", samples_per_s=3.0),
            failed("train-0001-polaris-2"),
        ],
    )
    words = '"sharding": "fsdp", "device": "cuda", "device_name": "NVIDIA A100"'
    place = folder.path / "updates" / name
    place.mkdir(parents=True)
    (place / "manifest.json").write_text(f'{{"training": {{{words}}}}}')

    found = results(made.spec, folder)
    (one,) = found.measurements
    assert (one.nodes, one.repeat, one.ranks, one.batch) == (2, 1, 8, 12)
    assert (one.step_s, one.data_s, one.communication_s) == (0.5, 0.05, 0.125)
    assert one.compute_s == pytest.approx(0.325)
    assert one.samples_per_s == 24.0
    assert one.tokens_per_s == 1200.0
    assert one.padding == 0.2
    assert (one.memory_bytes, one.host_memory_bytes) == (500_000_000, 700_000_000)
    assert (one.startup_s, one.first_step_s, one.waited_s) == (12.0, 4.0, 33.0)
    assert (one.sharding, one.at) == ("fsdp", 1060.0)
    shape = tiny_llama(
        hidden=8, layers=2, heads=2, intermediate=16, vocabulary=300, positions=512
    )
    needed = flops_per_token(shape, 50.0, 0.2) * 1200.0 / 8
    assert one.flops == pytest.approx(needed)
    assert one.peak_share == pytest.approx(needed / 312e12)
    assert "not all of its steps were timed" in found.failed[1, 1]
    assert found.failed[1, 2] == "no such queue"


@pytest.mark.parametrize(
    "wrong", [{"measured_s": 0.0}, {"measured_steps": 0.0}, {"ranks": -2.0}, {}]
)
def test_numbers_that_cannot_be_are_a_failure_of_that_job(
    tmp_path: Path, wrong: dict[str, float]
) -> None:
    folder = (made := study(tmp_path)).new(ASK)
    told = {**MEASURED, **wrong} if wrong else {"measured_steps": 20.0}
    events: list[ev.Event] = [
        started(),
        update("train-0001-polaris-1", **told),
        update("train-0002-polaris-1", **MEASURED),
    ]
    journal(folder.path, events)
    found = results(made.spec, folder)
    assert [one.nodes for one in found.measurements] == [2]
    assert "can't be" in found.failed[1, 1]


def test_what_was_measured_is_kept_and_not_measured_again(tmp_path: Path) -> None:
    made = study(tmp_path)
    assert made.missing(ASK) == ASK
    made.keep([_measurement(2)], "weak")
    missing = made.missing(ASK)
    assert missing is not None
    assert (missing.nodes, missing.batches) == ((1,), (6,))
    made.keep([_measurement(1)], "weak")
    assert made.missing(ASK) is None
    assert made.missing(replace(ASK, repeats=2)) is not None
    assert made.missing(replace(ASK, scaling="strong")) is not None
    # Larger steps were not measured; what is, takes the place of the smaller ones.
    larger = replace(ASK, batches=(6, 24))
    assert made.missing(larger) == larger.only([2])
    made.keep([_measurement(2, repeat=2)], "weak")
    made.keep([_measurement(2, batch=24)], "weak")
    assert [(m.nodes, m.batch) for m in made.record().measurements] == [(1, 6), (2, 24)]
    assert made.missing(larger) is None
    # The same measurement, read again when its words were being removed.
    told = _measurement(1).model_copy(update={"sharding": "ddp"})
    made.keep([told.model_copy(update={"at": 9.0})], "weak")
    made.keep([told.model_copy(update={"at": 9.0, "sharding": ""})], "weak")
    (record,) = read_all(tmp_path, "smol")
    assert (record.nodes, record.of(1).sharding) == ((1, 2), "ddp")
    assert read_all(tmp_path, "another") == []


def test_a_record_of_another_workload_is_put_aside(tmp_path: Path) -> None:
    study(tmp_path).keep([_measurement(2)], "weak")
    # The batch is what is varied, so it is not part of the workload.
    assert study(tmp_path, federation(batch=24)).record().nodes == (2,)
    other = study(tmp_path, federation(lr=5e-4))
    assert other.record().measurements == ()
    other.keep([_measurement(1)], "weak")
    assert other.record().nodes == (1,)
    names = sorted(path.name for path in other.folder.iterdir())
    assert names == ["smol.1.json", "smol.json"]
    assert [record.nodes for record in read_all(tmp_path)] == [(1,)]


def test_an_interrupted_study_is_found_again(tmp_path: Path) -> None:
    made = study(tmp_path)
    assert made.unfinished() is None
    folder = made.new(ASK)
    assert folder.run == "smol-throughput-1"
    assert made.unfinished() is None  # it was never begun
    folder.claim(made.plan(ASK))
    journal(folder.path, [started()])
    found = made.unfinished()
    assert found is not None
    assert (found[0].path, found[1]) == (folder.path, ASK)
    # The same file with another learning rate is another workload.
    assert study(tmp_path, federation(lr=5e-4)).unfinished() is None
    journal(folder.path, [ev.RunFinished(at=9.0, outcome="done", reason="")])
    assert made.unfinished() is None
    # Over, but stopped before its results were in the record.
    (folder.path / "updates").mkdir()
    found = made.unfinished()
    assert found is not None
    assert found[0].path == folder.path
    assert made.new(ASK).run == "smol-throughput-2"


def test_a_measured_pace_is_part_of_the_plan_only_where_it_is_said() -> None:
    text = FEDERATION.format(batch=12, lr=1e-3)
    said = text.replace("    linger: 10m", "    seconds_per_step: 2.5")
    spec = federation_from_text(said, name="f.yaml")
    plain = federation_from_text(text.replace("    linger: 10m\n", ""), name="f.yaml")
    assert spec.facilities["polaris"].seconds_per_step == 2.5
    assert plan_hash(spec) != plan_hash(plain)
    assert plan_hash(plain) == plan_hash(plain.model_copy(deep=True))


def _measurement(nodes: int, batch: int | None = None, repeat: int = 1) -> Measurement:
    return Measurement(
        nodes=nodes,
        repeat=repeat,
        ranks=nodes,
        batch=batch or 6 * nodes,
        steps=20,
        step_s=0.5,
    )
