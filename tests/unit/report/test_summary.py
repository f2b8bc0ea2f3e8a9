"""Figures against values computed by hand; see `conftest` for the runs."""

import json
import math

import pytest

from hansa.core import events as ev
from hansa.core.codec import event_from_json, to_json
from hansa.core.errors import JournalError
from hansa.report import ReportContext, summarise

REQUIRED = {
    "run", "strategy", "outcome", "wall_clock_s", "node_hours", "bytes_sent",
    "bytes_received", "model_sha256", "versions", "facilities",
}  # fmt: skip


def test_the_public_keys_are_there(harbour_events):
    data = summarise(harbour_events, ReportContext(strategy="fedavg")).to_json()
    assert data.keys() >= REQUIRED
    assert data["strategy"] == "fedavg"
    assert data["versions"][0].keys() >= {
        "version", "at_s", "eval_loss", "eval_loss_by_task", "facility_eval_loss",
    }  # fmt: skip
    assert data["facilities"]["aurora"].keys() >= {
        "assignments", "updates_applied", "updates_late", "queue_wait_s", "train_s",
        "transfer_s", "idle_s", "node_hours",
    }  # fmt: skip
    json.dumps(data, allow_nan=False)


def test_harbour_as_a_whole(harbour_events):
    summary = summarise(harbour_events)
    assert (summary.outcome, summary.wall_clock_s) == ("partial", 6200.0)
    assert summary.model_sha256 == "6" * 64
    # 6 + 6 + 6 + 2 stagings of 4 MB; 6 + 6 + 5 + 2 updates of 2 MB
    assert (summary.bytes_sent, summary.bytes_received) == (80_000_000, 38_000_000)
    # training 19 jobs of 0.5 and 2 of 0.1, evaluation 6 of 0.05
    assert summary.node_hours == pytest.approx(9.5 + 0.2 + 0.3)
    counts = summary.updates_applied, summary.updates_late, summary.updates_pending
    assert counts == (18, 1, 0)
    assert summary.updates_partial == 1
    assert [one.silent_s for one in summary.resumes] == [30.0, 10.0]


def test_a_facility_without_trouble(harbour_events):
    one = summarise(harbour_events).facilities["frontier"]
    assert (one.assignments, one.updates_applied, one.updates_partial) == (6, 6, 1)
    assert one.steps == 5 * 30 + 15
    assert one.queue_wait_s == 6 * 250
    assert one.train_s == 6 * 40
    assert one.transfer_s == 6 * (5 + 2)
    # a round: staging 5 s, from queue to end 250 + 420 s, update 2 s
    assert one.idle_s == pytest.approx(6200 - 6 * (5 + 250 + 420 + 2))
    assert (one.lost, one.lost_s) == (False, 0.0)


def test_evaluation_jobs_cost_but_are_no_training_orders(harbour_events):
    one = summarise(harbour_events).facilities["polaris"]
    assert (one.assignments, one.evaluations, one.jobs) == (6, 7, 12)
    assert one.node_hours == pytest.approx(6 * 0.5 + 6 * 0.05)
    # the evaluation overlaps the next queue, but for the last one (50 s)
    assert one.idle_s == pytest.approx(6200 - 6 * (5 + 100 + 400 + 2) - 50)


def test_a_lost_facility_and_its_late_update(harbour_events):
    summary = summarise(harbour_events)
    one = summary.facilities["aurora"]
    assert (one.assignments, one.updates_applied, one.updates_late) == (2, 1, 1)
    assert (one.lost, one.lost_s) == (True, 6200 - 2500)
    assert summary.outages[0].until_s is None
    assert "aurora" not in summary.rounds[1].members
    assert summary.versions[2].facility_eval_loss["aurora"] == 1.9
    late = next(update for update in summary.updates if update.state == "late")
    assert (late.assignment, late.version, late.staleness) == (
        "train-0002-aurora-1", None, None,
    )  # fmt: skip


def test_a_failed_assignment_keeps_its_code_and_its_jobs(harbour_events):
    summary = summarise(harbour_events)
    (failure,) = summary.failures
    assert (failure.assignment, failure.code) == ("train-0004-perlmutter-1", "WORKER")
    jobs = [job for job in summary.jobs if job.assignment == failure.assignment]
    assert [job.state for job in jobs] == ["node_fail", "node_fail"]
    assert summary.facilities["perlmutter"].failures == 1
    assert summary.rounds[3].members == ("frontier", "polaris")


def test_versions_and_their_local_models(harbour_events):
    summary = summarise(harbour_events)
    assert [one.version for one in summary.versions] == list(range(7))
    first, last = summary.versions[0], summary.versions[6]
    assert (first.at_s, first.eval_loss, first.facility_eval_loss) == (0.0, 2.0, {})
    assert last.eval_loss == pytest.approx(1 + math.exp(-3))
    assert last.eval_loss_by_task["retrosynthesis"] == pytest.approx(
        1.3 * (1 + math.exp(-3))
    )
    assert last.facility_eval_loss == pytest.approx(
        {
            "polaris": 1.15 + math.exp(-3),
            "frontier": 1.3 + math.exp(-3),
            "perlmutter": 1.45 + math.exp(-3),
        }
    )
    assert summary.best_local is not None
    assert summary.best_local.assignment == "train-0006-polaris-1"


def test_rounds(harbour_events):
    fifth = summarise(harbour_events).rounds[4]
    assert (fifth.version, fifth.at_s, fifth.seconds) == (5, 5000.0, 1000.0)
    assert fifth.samples == 960 + 480 + 960
    assert (fifth.bytes, fifth.aggregate_s) == (6_000_000, 0.5)
    assert fifth.staleness_mean == 0


def test_late_binding_counts_versions_from_submission_to_start(new_story):
    story = new_story(facilities=("a", "b"))
    story.version(0, 0)
    story.job("train-0001-a-1", "a", 1, 2, 3, newest=0, base=0)
    story.job("train-0001-b-1", "b", 1, 30, 40, newest=0, base=2)
    story.update(4, "train-0001-a-1", "a", base=0)
    story.version(5, 1, "train-0001-a-1")
    story.job("train-0002-a-1", "a", 6, 7, 8, newest=1, base=1)
    story.update(9, "train-0002-a-1", "a", base=1)
    story.version(10, 2, "train-0002-a-1")
    story.update(41, "train-0001-b-1", "b", base=2)
    story.version(42, 3, "train-0001-b-1")
    binding = summarise(story.sorted()).late_binding
    assert (binding.started, binding.rebound, binding.versions_gained) == (3, 1, 2)
    assert binding.staleness_mean == 0
    assert binding.staleness_mean_at_submission == pytest.approx((0 + 0 + 2) / 3)


def test_a_run_that_only_began(new_story):
    summary = summarise(new_story().sorted())
    assert (summary.outcome, summary.wall_clock_s) == ("unfinished", 0.0)
    assert (summary.versions, summary.rounds, summary.model_sha256) == ((), (), None)
    assert summary.best_local is None
    assert summary.facilities["polaris"].assignments == 0
    assert summary.late_binding.staleness_mean is None


@pytest.mark.parametrize("events", [[], [ev.RunResumed(at=1.0)]])
def test_events_without_a_start_are_refused(events):
    with pytest.raises(JournalError, match="does not begin"):
        summarise(events)


def test_an_update_is_pending_until_a_version_came_without_it(new_story):
    story = new_story()
    story.version(0, 0)
    story.update(10, "train-0001-polaris-1", "polaris")
    assert summarise(story.sorted()).updates_pending == 1
    story.version(20, 1, "train-0001-frontier-1")
    assert summarise(story.sorted()).updates_late == 1


def test_an_update_without_successor_is_late_when_the_run_ends(new_story):
    story = new_story()
    story.update(10, "train-0001-polaris-1", "polaris")
    story.finished(20)
    assert summarise(story.sorted()).updates_late == 1


def test_without_evaluation_there_is_no_loss(new_story):
    story = new_story()
    story.version(0, 0)
    story.update(10, "train-0001-polaris-1", "polaris")
    story.version(20, 1, "train-0001-polaris-1")
    summary = summarise(story.sorted())
    assert [one.eval_loss for one in summary.versions] == [None, None]
    assert summary.evaluated() == ()


def test_running_and_queued_jobs_of_an_unfinished_run(new_story):
    story = new_story()
    story.job("train-0001-polaris-1", "polaris", 10, 30, None)
    story.job("train-0001-frontier-1", "frontier", 10, None, None)
    story.add(ev.TimerFired(at=100, timer="t"))
    summary = summarise(story.sorted())
    assert [job.state for job in summary.jobs] == ["running", "queued"]
    assert summary.node_hours == 0
    assert summary.facilities["polaris"].queue_wait_s == 20
    assert summary.facilities["polaris"].idle_s == 10
    assert summary.facilities["frontier"].queue_wait_s == 0


def test_several_evaluators_are_averaged_and_a_repeated_one_replaced(new_story):
    story = new_story()
    story.version(0, 0)
    story.evaluated(1, 0, 9.0, "polaris")
    story.evaluated(2, 0, 1.0, "polaris")
    story.evaluated(3, 0, 3.0, "frontier")
    assert summarise(story.sorted()).versions[0].eval_loss == 2.0


def test_events_journaled_twice_count_once(harbour_events):
    idempotent = (
        ev.JobQueued, ev.JobStarted, ev.JobEnded, ev.UpdateArrived,
        ev.VersionPublished, ev.EvaluationReported, ev.FacilityLost,
    )  # fmt: skip
    doubled = [
        event
        for each in harbour_events
        for event in [each] * (2 if isinstance(each, idempotent) else 1)
    ]
    assert summarise(doubled) == summarise(harbour_events)


def test_a_loss_that_is_no_number_becomes_null(new_story):
    story = new_story()
    story.version(0, 0)
    story.evaluated(1, 0, math.inf, "polaris")
    story.update(10, "train-0001-polaris-1", "polaris", loss=math.nan)
    summary = summarise(story.sorted())
    assert summary.best_local is None
    assert summary.to_json()["versions"][0]["eval_loss"] is None
    json.dumps(summary.to_json(), allow_nan=False)


def test_every_prefix_of_a_journal_can_be_summarised(harbour_events):
    for cut in range(1, len(harbour_events) + 1):
        summary = summarise(harbour_events[:cut])
        states = summary.updates_applied, summary.updates_late, summary.updates_pending
        assert sum(states) == len(summary.updates)
        for one in summary.facilities.values():
            assert -1e-6 <= one.idle_s <= summary.wall_clock_s


def test_the_journal_form_changes_nothing(harbour_events):
    again = [
        event_from_json(json.loads(json.dumps(to_json(e)))) for e in harbour_events
    ]
    assert summarise(again) == summarise(harbour_events)
