"""Molecules: canonical SMILES, the split they belong to, words about them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

from rdkit import Chem
from rdkit.Chem import Fragments, rdMolDescriptors

from hansa.worker.tasks.chem.catalog import stable

TEST_PERCENT = 5
_LONGEST = 160
_NUMBERS = ("one", "two", "three", "four", "five", "six")
_GROUPS = {
    "fr_COO": "carboxylic acid",
    "fr_ester": "ester",
    "fr_amide": "amide",
    "fr_aldehyde": "aldehyde",
    "fr_ketone": "ketone",
    "fr_Al_OH": "aliphatic hydroxyl",
    "fr_Ar_OH": "phenolic hydroxyl",
    "fr_NH2": "primary amine",
    "fr_NH1": "secondary amine",
    "fr_nitro": "nitro",
    "fr_nitrile": "nitrile",
    "fr_sulfonamd": "sulfonamide",
    "fr_sulfide": "sulfide",
    "fr_SH": "thiol",
    "fr_halogen": "halogen",
    "fr_epoxide": "epoxide",
    "fr_urea": "urea",
    "fr_azo": "azo",
    "fr_phos_ester": "phosphate ester",
    "fr_lactone": "lactone",
    "fr_benzene": "benzene ring",
    "fr_pyridine": "pyridine ring",
    "fr_furan": "furan ring",
    "fr_thiophene": "thiophene ring",
    "fr_imidazole": "imidazole ring",
}


def split_of(molecule: str) -> str:
    """Return "train" or "test" for a canonical SMILES, the same for every task."""
    return "test" if stable(f"split:{molecule}") % 100 < TEST_PERCENT else "train"


def parse(smiles: str) -> Any | None:
    """Return RDKit's molecule, or None where the text is no valid SMILES."""
    return Chem.MolFromSmiles(smiles)


def canonical(smiles: str) -> str | None:
    """Return the canonical SMILES, or None where the text is no valid one."""
    molecule = parse(smiles)
    return None if molecule is None else write(molecule)


def write(molecule: Any) -> str:
    """Return the canonical SMILES of a molecule."""
    return str(Chem.MolToSmiles(molecule))


def presentable(smiles: str) -> bool:
    """Say whether a canonical SMILES is one molecule of a length worth asking for."""
    return "." not in smiles and len(smiles) <= _LONGEST


def ordinary(molecule: Any) -> bool:
    """Say whether a molecule is organic, with 3 to 30 heavy atoms."""
    return 3 <= molecule.GetNumHeavyAtoms() <= 30 and any(
        atom.GetAtomicNum() == 6 for atom in molecule.GetAtoms()
    )


def formula(molecule: Any) -> str:
    """Return the molecular formula in Hill order."""
    return str(rdMolDescriptors.CalcMolFormula(molecule))


def describe(molecule: Any) -> str:
    """Return sentences on functional groups, rings and formula of a molecule."""
    groups = ", ".join(_functional_groups(molecule))
    rings = rdMolDescriptors.CalcNumRings(molecule)
    aromatic = rdMolDescriptors.CalcNumAromaticRings(molecule)
    sentences = [f"It contains {groups}."] if groups else []
    end = f", {_number(aromatic, 'none')} of them aromatic." if rings else "."
    sentences.append(f"It has {_number(rings)} ring{'s' * (rings != 1)}{end}")
    sentences.append(f"Its molecular formula is {formula(molecule)}.")
    return " ".join(sentences)


def family(molecule: Any) -> str:
    """Return the coarse family of a molecule, as ``halogenated``."""
    if any(atom.GetAtomicNum() in {9, 17, 35, 53} for atom in molecule.GetAtoms()):
        return "halogenated"
    for name, pattern in _families():
        if molecule.HasSubstructMatch(pattern):
            return name
    return "aliphatic"


def article(words: str) -> str:
    """Return `words` with "a" or "an" before them."""
    return f"{'an' if words[0].lower() in 'aeiou' else 'a'} {words}"


def _functional_groups(molecule: Any, most: int = 5) -> Iterator[str]:
    for function, name in _GROUPS.items():
        count = getattr(Fragments, function)(molecule)
        if count and most:
            most -= 1
            what = name if name.endswith("ring") else f"{name} group"
            yield f"{_number(count)} {what}{'s' * (count > 1)}"


def _number(count: int, none: str = "no") -> str:
    words = (none, *_NUMBERS)
    return words[count] if count < len(words) else str(count)


@cache
def _families() -> tuple[tuple[str, Any], ...]:
    patterns = (
        ("heteroaromatic", "[n,o,s;r]"),
        ("benzenoid", "c1ccccc1"),
        ("alicyclic", "[R]"),
    )
    return tuple((name, Chem.MolFromSmarts(smarts)) for name, smarts in patterns)
