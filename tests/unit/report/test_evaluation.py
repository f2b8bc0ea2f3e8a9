"""Tables, page and picture of an evaluation."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from hansa.cli.evaluate import kinds_of
from hansa.core.errors import UsageError
from hansa.core.scores import score_name, scores_by_task
from hansa.report.evaluation import (
    Arm,
    Budget,
    Evaluation,
    budgets_table,
    loss_table,
    markdown,
    scores_table,
    verdict,
)

NONE = "–"  # noqa: RUF001
SCORES = {
    "s2f": {"answers": 4.0, "exact": 0.25, "valid": 1.0, "formula": 0.5},
    "esol": {"answers": 3.0, "rmse": 1.2345, "valid": 2 / 3},
}


def arm(name: str, esol: float, s2f: float, **more: Any) -> Arm:
    kind, _, where = name.partition(" ")
    words: dict[str, Any] = {
        "run": "r",
        "version": 2,
        "sha256": "0" * 64,
        "trained_at": (where or "anvil",),
        "measured_at": "anvil",
        "budget": Budget(rounds=2, steps=1000, samples=8000, seed=7),
        **more,
    }
    return Arm(name=name, kind=kind, losses={"esol": esol, "s2f": s2f}, **words)


FOUND = Evaluation(
    run="r",
    model="causal-lm smollm2",
    task="chem-instruct",
    task_options={"test_limit": 4},
    tokens=64,
    limit=4,
    arms=(
        arm("base", 3.0, 2.0, trained_at=(), budget=None),
        arm("local anvil", 1.0, 1.5),
        arm("local borah", 0.5, 0.25),
        arm("central", 0.25, 0.5),
        arm("global", 0.5, 0.5, scores=SCORES),
    ),
)


def test_losses_by_task_with_their_mean() -> None:
    table = loss_table(FOUND)
    assert table.columns[1:] == (
        "base", "local anvil", "local borah", "central", "global",
    )  # fmt: skip
    assert table.rows == (
        ("esol", "3.0000", "1.0000", "0.5000", "0.2500", "0.5000"),
        ("s2f", "2.0000", "1.5000", "0.2500", "0.5000", "0.5000"),
        ("mean", "2.5000", "1.2500", "0.3750", "0.3750", "0.5000"),
    )


def test_the_verdict_names_what_is_better() -> None:
    assert verdict(FOUND) == (
        "The global model's mean test loss is 0.5000, the base model's 2.5000, the "
        "best local model's 0.3750 (local borah; the global one is better than 1 of "
        "2), the central model's 0.3750."
    )
    assert "not measured" in verdict(replace(FOUND, arms=FOUND.arms[:2]))


def test_what_was_measured_elsewhere_is_compared_with_care() -> None:
    """The mean is over the tasks of all, and the verdict says who measured."""
    away = replace(FOUND.arms[0], measured_at="borah", losses={"s2f": 2.0, "bbbp": 9.0})
    found = replace(FOUND, arms=(away, *FOUND.arms[1:]))
    assert loss_table(found).rows == (
        ("s2f", "2.0000", "1.5000", "0.2500", "0.5000", "0.5000"),
        ("mean", "2.0000", "1.5000", "0.2500", "0.5000", "0.5000"),
    )
    assert found.to_json()["arms"][0]["mean_loss"] == 2.0
    assert "base at borah" in verdict(found)
    assert "their test examples may differ." in verdict(found)


def test_scores_stand_below_each_other() -> None:
    table = scores_table(FOUND)
    assert table is not None
    ends = [(row[:3], row[-1]) for row in table.rows]
    assert ends == [
        (("esol", "3", "rmse"), "1.23"),
        (("", "", "valid"), "0.67"),
        (("s2f", "4", "exact"), "0.25"),
        (("", "", "formula"), "0.50"),
        (("", "", "valid"), "1.00"),
    ]
    assert {row[3] for row in table.rows} == {NONE}
    assert scores_table(replace(FOUND, arms=FOUND.arms[:3])) is None


def test_budgets_and_the_page() -> None:
    rows = budgets_table(FOUND).rows
    assert rows[0] == ("base", NONE, NONE, NONE, NONE, NONE, "r")
    assert rows[2] == ("local borah", "borah", "2", "1,000", "8,000", "7", "r")
    page = markdown(replace(FOUND, left_out={"central": "Nobody may."}))
    assert "| mean | 2.5000 | 1.2500 | 0.3750 | 0.3750 | 0.5000 |" in page
    assert "| :-- | --: |" in page
    assert "Not measured: central: Nobody may." in page
    assert verdict(FOUND) in page
    odd = arm("base", 1.0, 1.0)
    odd = replace(odd, losses={r"<b>a|\*c_d": 1.0})
    page = markdown(replace(FOUND, arms=(odd,), left_out={"central": "<i>\n# b"}))
    assert r"| \<b>a\|\\\*c_d | 1.0000 |" in page
    assert r"Not measured: central: \<i> # b" in page
    data = json.loads(json.dumps(FOUND.to_json()))
    assert (data["schema"], data["arms"][0]["mean_loss"]) == (1, 2.5)
    assert data["arms"][1]["budget"]["seed"] == 7


def test_scores_are_metrics_with_a_slash() -> None:
    metrics = {"eval_loss": 1.0, score_name("exact", "a"): 0.5, "rmse/b/c": 2.0}
    assert scores_by_task(metrics) == {"a": {"exact": 0.5}, "b/c": {"rmse": 2.0}}


def test_kinds_are_named_with_commas() -> None:
    assert kinds_of("base, central") == ("base", "central")
    assert kinds_of("") == ()
    with pytest.raises(UsageError, match="no 'global'"):
        kinds_of("base,global")


def test_the_picture_is_the_same_each_time() -> None:
    pytest.importorskip("matplotlib")
    from hansa.report.figures.evaluation import evaluation_picture

    one, two = evaluation_picture(FOUND), evaluation_picture(FOUND)
    assert one.png == two.png
    assert b"<svg" in one.svg
    assert "0.3750" in one.caption
