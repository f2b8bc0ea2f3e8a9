"""The task chem-instruct on data that a facility has: SMolInstruct, JSON lines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hansa.core.errors import SpecError
from hansa.worker.base import Example
from hansa.worker.llm_options import ChemOptions
from hansa.worker.tasks.chem import ChemInstruct


def write(path: Path, *records: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def raw(source: Path, split: str, task: str, *pairs: tuple[str, Any]) -> None:
    records = [
        {"input": given, "output": answer, "task": task, "split": split}
        for given, answer in pairs
    ]
    write(source / "raw" / split / f"{task}.jsonl", *records)


def published(source: Path) -> None:
    """A data set laid out as SMolInstruct's data.zip is, with two tasks."""
    task = "property_prediction-sider"
    raw(
        source,
        "test",
        task,
        ("CCO", {"Eye": "Yes", "Skin": "No"}),
        ("C", {"Eye": "No"}),
    )
    plan = {
        "task": task,
        "split": "test",
        "template_name": "standard",
        "samples": [
            {"idx": 1, "template_id": 0, "target": "Eye"},
            {"idx": 0, "template_id": 1, "target": "Skin"},
        ],
    }
    write(source / f"sample/instruction_tuning/test/{task}.json", plan)
    templates = [
        {"input": "Eyes of <INPUT>?", "output": "<OUTPUT>."},
        {"input": "Skin of <INPUT>?", "output": "It is <OUTPUT>"},
    ]
    write(source / f"template/standard/{task}.json", templates)
    tags = {"input": ["<SMILES>", "</SMILES>"], "output": ["<BOOLEAN>", "</BOOLEAN>"]}
    write(source / f"core_tag/{task}.json", tags)
    raw(source, "test", "molecule_captioning", ("CCO", "An alcohol."))
    captions = {
        "template_name": "standard",
        "samples": [{"idx": 0, "template_id": 0}],
    }
    name = "molecule_captioning.json"
    write(source / "sample/instruction_tuning/test" / name, captions)
    write(
        source / "template/standard" / name,
        [{"input": "<INPUT>?", "output": "<OUTPUT>"}],
    )
    write(
        source / "core_tag" / name,
        {"input": ["<SMILES>", "</SMILES>"], "output": [None, None]},
    )


def task(source: Path, cache: Path, **limits: int) -> ChemInstruct:
    return ChemInstruct(source, cache, ChemOptions(**limits))


def test_published_layout_with_templates_and_tags(tmp_path: Path) -> None:
    source = tmp_path / "smol"
    published(source)
    chem = task(source, tmp_path)
    assert chem.groups() == ["molecule_description", "property_prediction"]
    name = "property_prediction-sider"
    assert chem.load("test", ["property_prediction"]) == [
        Example(name, "Eyes of <SMILES> C </SMILES>?", "<BOOLEAN> No </BOOLEAN>."),
        Example(
            name, "Skin of <SMILES> CCO </SMILES>?", "It is <BOOLEAN> No </BOOLEAN>"
        ),
    ]
    assert chem.load("test", ["molecule_description"]) == [
        Example("molecule_captioning", "<SMILES> CCO </SMILES>?", "An alcohol.")
    ]


def test_damaged_sample_file_is_named(tmp_path: Path) -> None:
    source = tmp_path / "smol"
    published(source)
    path = source / "sample/instruction_tuning/test/property_prediction-sider.json"
    plan = json.loads(path.read_text())
    plan["samples"][0]["idx"] = 7
    path.write_text(json.dumps(plan))
    with pytest.raises(SpecError, match=r"sider\.json does not fit"):
        task(source, tmp_path).load("test", None)


def test_bare_values_get_questions_and_tags(tmp_path: Path) -> None:
    raw(tmp_path / "smol", "train", "name_conversion-s2f", ("CCO", "C2H6O"))
    raw(tmp_path / "smol", "train", "property_prediction-sider", ("CO", {"Eye": "No"}))
    chem = task(tmp_path / "smol", tmp_path)
    conversion, side_effect = chem.load("train", None)
    assert "<SMILES> CCO </SMILES>" in conversion.input
    assert conversion.output == "<MOLFORMULA> C2H6O </MOLFORMULA>"
    assert side_effect.input == "Can <SMILES> CO </SMILES> cause side effects: Eye?"
    assert side_effect.output == "<BOOLEAN> No </BOOLEAN>"


def test_questions_that_are_phrased_already_stay(tmp_path: Path) -> None:
    pair = ("Formula of <SMILES> C </SMILES>?", "<MOLFORMULA> CH4 </MOLFORMULA>")
    raw(tmp_path / "smol", "train", "name_conversion-s2f", pair)
    assert task(tmp_path / "smol", tmp_path).load("train", None) == [
        Example("name_conversion-s2f", *pair)
    ]


def test_broken_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "smol/raw/train/retrosynthesis.jsonl"
    write(path, {"input": "C", "output": "C"}, {"input": "C"})
    with pytest.raises(SpecError, match=r"retrosynthesis\.jsonl:2"):
        task(tmp_path / "smol", tmp_path).load("train", None)


def test_any_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    write(
        path,
        {"input": "a", "output": "b", "task": "greeting"},
        {"input": "c", "output": "d", "task": "greeting", "split": "test"},
        {"input": "e", "output": "f", "task": "retrosynthesis"},
    )
    chem = task(path, tmp_path)
    assert chem.groups() == ["chemical_reaction", "greeting"]
    assert chem.load("train", ["greeting"]) == [Example("greeting", "a", "b")]
    assert chem.load("test", ["greeting"]) == [Example("greeting", "c", "d")]
    with pytest.raises(SpecError, match="no test example in group 'chemical_reaction'"):
        chem.load("test", None)


def test_limits_hold_per_task_and_only_add(tmp_path: Path) -> None:
    pairs = [(f"in{i}", f"out{i}") for i in range(30)]
    raw(tmp_path / "smol", "train", "forward_synthesis", *pairs)
    raw(tmp_path / "smol", "train", "retrosynthesis", *pairs[:4])
    few = task(tmp_path / "smol", tmp_path, train_limit=5).load("train", None)
    more = task(tmp_path / "smol", tmp_path, train_limit=11).load("train", None)
    assert [len(few), len(more)] == [5 + 4, 11 + 4]
    assert set(few) < set(more)


def test_missing_source_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="nowhere, does not exist"):
        task(tmp_path / "nowhere", tmp_path)
