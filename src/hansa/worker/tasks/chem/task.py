"""The task `chem-instruct`: instructions about molecules, in four groups.

Without a source the examples are built from installed packages (docs/chemistry.md
says from which); with one they are read: SMolInstruct as published, or any JSON lines
of inputs and outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from hansa.core.errors import SpecError
from hansa.core.words import nearest
from hansa.worker.base import Example
from hansa.worker.llm_options import ChemOptions
from hansa.worker.tasks.chem.catalog import GROUPS, group_of, stable
from hansa.worker.tasks.chem.packages import Packages, find_packages
from hansa.worker.tasks.chem.smolinstruct import is_smolinstruct, read_task, tasks_of
from hansa.worker.tasks.records import read_records

SPLITS = ("train", "test")


class ChemInstruct:
    """Chemistry instructions in groups; see `hansa.worker.base.Task`.

    Args:
        source: Folder or file with the data; None builds it from packages.
        cache: Writable folder, kept between jobs, for what is built.
        options: Limits per task.

    Raises:
        SpecError: The source does not exist.
    """

    def __init__(self, source: Path | None, cache: Path, options: ChemOptions) -> None:
        self._source = None if source is None else Path(source)
        self._cache = Path(cache)
        self._limits = {"train": options.train_limit, "test": options.test_limit}
        if self._source is not None and not self._source.exists():
            raise SpecError(
                f"The data of chem-instruct, {self._source}, does not exist.",
                hint="Correct `tasks: chem-instruct: data:` in site.yaml; without it "
                "the data is built from installed packages.",
            )

    def groups(self) -> Sequence[str]:
        """Return the groups: four when built, else those of the source's tasks."""
        if self._source is None:
            return GROUPS
        if is_smolinstruct(self._source):
            tasks = tasks_of(self._source)
        else:
            tasks = [example.task for example in read_records(self._source, "train")]
        return sorted({group_of(task) for task in tasks})

    def load(self, split: str, groups: Sequence[str] | None) -> Sequence[Example]:
        """Return the examples of a split, group by group and task by task.

        Args:
            split: "train" or "test".
            groups: Only these groups, in this order; None means all.

        Raises:
            SpecError: No such split or group, a group without examples, a damaged
                source, or packages that the data is built from are missing.
        """
        if split not in SPLITS:
            raise SpecError(
                f"chem-instruct has no split {split!r}.",
                hint=f"It has {' and '.join(SPLITS)}.",
            )
        wanted = self._known(groups)
        by_group = self._built(split, wanted) if self._source is None else None
        if by_group is None:
            by_group = self._read(split, wanted)
        for group in wanted:
            if not by_group[group]:
                raise SpecError(
                    f"chem-instruct has no {split} example in group {group!r}."
                )
        return [example for group in wanted for example in by_group[group]]

    @cached_property
    def _packages(self) -> Packages:
        return find_packages()

    def _known(self, groups: Sequence[str] | None) -> list[str]:
        known = self.groups()
        for group in groups or ():
            if group not in known:
                guess = nearest(group, known)
                raise SpecError(
                    f"chem-instruct has no group {group!r}.",
                    hint=(f"Did you mean {guess!r}? " if guess else "")
                    + f"Known: {', '.join(known)}.",
                )
        return list(known if groups is None else dict.fromkeys(groups))

    def _built(self, split: str, groups: Sequence[str]) -> dict[str, list[Example]]:
        packages = self._packages
        # RDKit is looked for by find_packages; before that it can't be imported.
        from hansa.worker.tasks.chem.build import cached_examples  # noqa: PLC0415

        limit = self._limits[split]
        return {
            group: cached_examples(packages, self._cache, group, split, limit)
            for group in groups
        }

    def _read(self, split: str, groups: Sequence[str]) -> dict[str, list[Example]]:
        found: dict[str, list[Example]] = {group: [] for group in groups}
        for task, examples in self._tasks(split, set(groups)).items():
            found[group_of(task)] += _sample(examples, self._limits[split])
        return found

    def _tasks(self, split: str, groups: set[str]) -> dict[str, list[Example]]:
        """Return the source's examples by task, tasks sorted, only of these groups."""
        source = self._source
        if source is None:
            return {}
        if is_smolinstruct(source):
            names = [task for task in tasks_of(source) if group_of(task) in groups]
            return {task: read_task(source, split, task) for task in names}
        by_task: dict[str, list[Example]] = {}
        for example in read_records(source, split):
            if group_of(example.task) in groups:
                by_task.setdefault(example.task, []).append(example)
        return dict(sorted(by_task.items()))


def _sample(examples: list[Example], limit: int | None) -> list[Example]:
    """Return at most `limit` examples, chosen by a hash, in their old order."""
    if limit is None or len(examples) <= limit:
        return examples
    order = sorted(
        range(len(examples)),
        key=lambda index: (stable(f"sample:{examples[index].input}"), index),
    )
    return [examples[index] for index in sorted(order[:limit])]
