"""The pool of ordinary molecules: `chemicals`' identifier table, from PubChem."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from hansa.worker.tasks.chem.catalog import stable
from hansa.worker.tasks.chem.molecules import ordinary, parse, write
from hansa.worker.tasks.chem.packages import Packages

Wanted = Callable[[str], bool]
"""Says of a canonical SMILES whether the split that is being built wants it."""

_WORD = re.compile(r"[a-z]{4}")
_CODE = re.compile(r"\d{4}|unii|ac1|^[a-z]{14}-|^[\d-]+$")


@dataclass(frozen=True, slots=True)
class Entry:
    """One molecule: canonical SMILES, RDKit's object, names as in the table."""

    smiles: str
    molecule: Any
    iupac: str
    synonyms: str

    def common_name(self) -> str | None:
        """Return the first synonym that reads like a name, if there is one."""
        for name in self.synonyms.split("\t"):
            wordy = _WORD.search(name) and not _CODE.search(name)
            if wordy and len(name) < 40 and name != self.iupac:
                return name
        return None


def pool(packages: Packages, wanted: Wanted) -> Iterator[Entry]:
    """Yield the wanted molecules, each once, in an order given by a hash.

    The hash makes every beginning of the sequence a fair sample, so a limited build
    stops early instead of working through the whole table.
    """
    seen: set[str] = set()
    lines = packages.identifiers
    for line in sorted(lines, key=lambda line: stable(f"pool:{line[4]}")):
        if "." in line[4]:
            continue
        molecule = parse(line[4])
        if molecule is None or not ordinary(molecule):
            continue
        smiles = write(molecule)
        if smiles not in seen and wanted(smiles):
            seen.add(smiles)
            yield Entry(smiles, molecule, line[7].strip(), "\t".join(line[8:]))
