"""Name conversion: IUPAC name, SMILES and molecular formula of the same molecule."""

from __future__ import annotations

import re
from collections.abc import Iterator

from hansa.worker.tasks.chem.catalog import Fact
from hansa.worker.tasks.chem.molecules import formula
from hansa.worker.tasks.chem.packages import Packages
from hansa.worker.tasks.chem.pool import Wanted, pool

TASKS = (
    "name_conversion-i2f",
    "name_conversion-i2s",
    "name_conversion-s2f",
    "name_conversion-s2i",
)
_LONGEST = 90
# Part of the table was named by a program whose style no chemist uses.
_ODD = re.compile(
    r"oxidanyl|azanyl|sulfanylid|chloranyl|bromanyl|fluoranyl|iodanyl|\bx\d"
)


def name_facts(packages: Packages, wanted: Wanted) -> Iterator[Fact]:
    """Yield four facts a molecule, one a task."""
    for entry in pool(packages, wanted):
        name, smiles = entry.iupac, entry.smiles
        if not name or len(name) > _LONGEST or _ODD.search(name):
            continue
        composition = formula(entry.molecule)
        pairs = (
            (name, composition),
            (name, smiles),
            (smiles, composition),
            (smiles, name),
        )
        for task, (given, answer) in zip(TASKS, pairs, strict=True):
            yield Fact(task, given, answer, smiles)
