"""Builds the examples of one group and split, once, and keeps them as JSON lines.

One file a group, split and limit, so a facility builds only what it loads. Several
processes may ask at once: one builds, the others wait; a file appears complete or
not at all.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rdkit.rdBase import BlockLogs

from hansa.worker.base import Example
from hansa.worker.tasks.chem import (
    catalog,
    descriptions,
    names,
    properties,
    reactions,
)
from hansa.worker.tasks.chem.catalog import Fact, phrase, stable
from hansa.worker.tasks.chem.molecules import split_of
from hansa.worker.tasks.chem.packages import Packages
from hansa.worker.tasks.chem.pool import Wanted

FORMAT = 1  # raise it when the examples change, so that old caches are left alone
_READABLE = 0o644  # the cache may be shared; mkstemp gives it to its owner only
_log = logging.getLogger(__name__)
_Facts = Callable[[Packages, Wanted], Iterator[Fact]]


@dataclass(frozen=True, slots=True)
class _Source:
    """Streams of facts for the same tasks; they take turns."""

    tasks: tuple[str, ...]
    streams: tuple[_Facts, ...]


_SOURCES: Mapping[str, tuple[_Source, ...]] = {
    catalog.NAMES: (_Source(names.TASKS, (names.name_facts,)),),
    catalog.PROPERTIES: (
        _Source(("property_prediction-bbbp",), (properties.barrier_facts,)),
        _Source(("property_prediction-bp",), (properties.boiling_facts,)),
        _Source(("property_prediction-carc",), (properties.carcinogen_facts,)),
        _Source(("property_prediction-esol",), (properties.solubility_facts,)),
        _Source(("property_prediction-hfe",), (properties.hydration_facts,)),
        _Source(("property_prediction-lipo",), (properties.lipophilicity_facts,)),
    ),
    catalog.REACTIONS: (
        _Source(reactions.TASKS, (reactions.enzyme_facts, reactions.template_facts)),
    ),
    catalog.DESCRIPTIONS: (
        _Source(
            descriptions.TASKS,
            (
                descriptions.class_facts,
                descriptions.drug_facts,
                descriptions.named_facts,
            ),
        ),
    ),
}


def collect(
    packages: Packages, group: str, split: str, limit: int | None
) -> list[Fact]:
    """Return the facts of a group that belong to a split, task by task.

    Args:
        packages: Where the data files are.
        group: One of `catalog.GROUPS`.
        split: "train" or "test".
        limit: Most facts per task; the streams are not read further. None: all.
    """
    found: list[Fact] = []
    with BlockLogs():  # RDKit reports every odd SMILES on stderr
        for source in _SOURCES[group]:
            streams = [
                stream(packages, lambda smiles: split_of(smiles) == split)
                for stream in source.streams
            ]
            found += _take(_in_turns(streams), source.tasks, limit)
    return sorted(found, key=lambda fact: fact.task)


def cached_examples(
    packages: Packages, cache: Path, group: str, split: str, limit: int | None
) -> list[Example]:
    """Return the examples of a group and split, built on the first call."""
    folder = cache / f"chem-instruct-{cache_key(packages)}"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{split}-{group}-{'all' if limit is None else limit}.jsonl"
    if not path.exists():
        with _locked(path.with_suffix(".lock")):
            if not path.exists():
                _log.info("building %s", path)
                _write(path, collect(packages, group, split, limit))
    with path.open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    return [Example(row["task"], row["input"], row["output"]) for row in rows]


def cache_key(packages: Packages) -> str:
    """Return 16 hex digits for the packages' versions and the format."""
    words = json.dumps([FORMAT, sorted(packages.versions.items())])
    return f"{stable(words):016x}"


def _take(facts: Iterable[Fact], tasks: Sequence[str], limit: int | None) -> list[Fact]:
    """Return facts, each question once, until every task has `limit` of them."""
    taken: list[Fact] = []
    seen: set[tuple[str, str]] = set()
    count: Counter[str] = Counter()
    for fact in facts:
        question = (fact.task, fact.given)
        if question in seen or (limit is not None and count[fact.task] >= limit):
            continue
        seen.add(question)
        count[fact.task] += 1
        taken.append(fact)
        if limit is not None and all(count[task] >= limit for task in tasks):
            break
    return taken


def _in_turns(streams: Sequence[Iterator[Fact]]) -> Iterator[Fact]:
    """Yield a fact of each stream in turn until all are at their end."""
    waiting = list(streams)
    while waiting:
        for stream in tuple(waiting):
            fact = next(stream, None)
            if fact is None:
                waiting.remove(stream)
            else:
                yield fact


def _write(path: Path, facts: Iterable[Fact]) -> None:
    # A random name: where there are no locks, two nodes may build at once.
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            for fact in facts:
                example = phrase(fact.task, fact.given, fact.answer)
                row = {
                    "task": example.task,
                    "input": example.input,
                    "output": example.output,
                    "molecule": fact.molecule,
                }
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
            os.fchmod(file.fileno(), _READABLE)
        Path(name).replace(path)
    finally:
        Path(name).unlink(missing_ok=True)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock; a process that dies lets go of it.

    Where the file system has no locks, several processes build the same bytes and
    the last rename wins, which is slower but not wrong.
    """
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            _log.warning("%s can't be locked: %s", path, error)
        yield
