"""Compares generated answers about molecules with the expected ones.

What is measured follows SMolInstruct (Yu et al., arXiv 2402.09391). The tags of the
expected answer say what it is:

=============  ====================================================================
SMILES         `exact`: the same molecule (canonical SMILES, with stereochemistry);
               `valid`: RDKit can read it; `formula`: the same elements in the same
               numbers; `morgan`, `maccs`, `rdk`: Tanimoto similarity of fingerprints.
               An answer that can't be read counts 0 in all of them.
MOLFORMULA     `exact`: the same text; `formula`: the same elements in the same
               numbers, in whatever order; `valid`: it is a formula.
NUMBER         `rmse`: over the answers that are numbers; `valid`: their share. No
               `rmse` where none is.
BOOLEAN        `accuracy`: the same of yes and no; `valid`: it is one of them.
others         `exact`: the same text; `rouge_l`: F1 of the longest common subsequence
               of words (Lin, 2004).
=============  ====================================================================
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

from rdkit import Chem, DataStructs
from rdkit.Chem import rdFingerprintGenerator, rdMolDescriptors
from rdkit.rdBase import BlockLogs

from hansa.worker.base import Example

LONGEST = 1000
"""A text of more characters is no SMILES: reading it could take very long."""
LARGEST = 1e9
"""A number of larger magnitude is no answer: its square would drown all others."""

_TAGGED = re.compile(r"<([A-Z]+)>\s*(.*?)\s*</\1>", re.DOTALL)
_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")
_YES_NO = re.compile(r"\b(yes|no|true|false)\b", re.IGNORECASE)
_ELEMENT = re.compile(r"([A-Z][a-z]?)(\d*)")
_SYMBOLS = {Chem.GetPeriodicTable().GetElementSymbol(z) for z in range(1, 119)}
_FORMULA = re.compile(r"(?:[A-Z][a-z]?\d*)+(?:[+-]\d*)?")
_RADIUS, _BITS = 2, 2048

Measures = Mapping[str, float]
"""Scores of one answer."""


def score(
    examples: Sequence[Example], answers: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Return the scores of answers, by task and name; see the module's text.

    Args:
        examples: Their outputs are what is expected.
        answers: What was generated, one text for each.
    """
    found: dict[str, list[Measures]] = {}
    with BlockLogs():  # RDKit reports every odd SMILES on stderr
        for example, answer in zip(examples, answers, strict=True):
            measures = compare(str(example.output), answer)
            found.setdefault(example.task, []).append(measures)
    return {task: _means(all_) for task, all_ in found.items()}


def compare(expected: str, answer: str) -> Measures:
    """Return what one answer scores; `square` of a number becomes part of `rmse`."""
    tagged = _TAGGED.search(expected)
    if tagged is None:
        return _compare_text(expected.strip(), answer.strip())
    tag, right = tagged[1], tagged[2]
    compare_as = _KINDS.get(tag, _compare_text)
    return compare_as(right, answer_of(answer, tag))


def answer_of(text: str, tag: str) -> str:
    """Return what stands between the tags, else the whole text.

    A model that was never taught the tags is not counted wrong for leaving them out.
    """
    found = re.search(rf"<{tag}>(.*?)(?:</{tag}>|$)", text, re.DOTALL)
    return (found[1] if found else text).strip()


def _compare_smiles(expected: str, answer: str) -> Measures:
    found, right = molecule(answer), molecule(expected)
    if found is None or right is None:
        return {"exact": 0.0, "valid": 0.0, "formula": 0.0} | dict.fromkeys(_PRINTS, 0)
    same = Chem.MolToSmiles(found) == Chem.MolToSmiles(right)
    formulas = {rdMolDescriptors.CalcMolFormula(one) for one in (found, right)}
    # Small molecules have fingerprints without a bit, whose similarity RDKit calls 0.
    prints = {
        name: 1.0 if same else DataStructs.TanimotoSimilarity(make(found), make(right))
        for name, make in _PRINTS.items()
    }
    first = {"exact": float(same), "valid": 1.0, "formula": float(len(formulas) == 1)}
    return first | prints


def molecule(smiles: str) -> Any:
    """Return RDKit's molecule of a SMILES; None if it is no molecule."""
    if not smiles or len(smiles) > LONGEST or re.search(r"\s", smiles):
        return None
    return Chem.MolFromSmiles(smiles)


def _compare_formula(expected: str, answer: str) -> Measures:
    found = elements(answer)
    return {
        "exact": float(answer == expected),
        "valid": float(found is not None),
        "formula": float(found is not None and found == elements(expected)),
    }


def elements(formula: str) -> Mapping[str, int] | None:
    """Return how many of each element a formula has; None if it is no formula.

    The charge at its end is an element ``+`` or ``-`` of that number.
    """
    if len(formula) > LONGEST or not _FORMULA.fullmatch(formula):
        return None
    count: Counter[str] = Counter()
    for element, number in _ELEMENT.findall(formula):
        count[element] += int(number or 1)
    if not count.keys() <= _SYMBOLS:
        return None
    if charge := re.search(r"([+-])(\d*)$", formula):
        count[charge[1]] += int(charge[2] or 1)
    return {element: number for element, number in count.items() if number}


def _compare_number(expected: str, answer: str) -> Measures:
    found, right = _number(answer), _number(expected)
    if found is None or right is None:
        return {"valid": 0.0}
    return {"valid": 1.0, "square": (found - right) ** 2}


def _number(text: str) -> float | None:
    found = _NUMBER.search(text[:LONGEST])
    value = float(found[0]) if found else math.nan
    return value if abs(value) <= LARGEST else None


def _compare_boolean(expected: str, answer: str) -> Measures:
    found, right = _yes(answer), _yes(expected)
    return {
        "valid": float(found is not None),
        "accuracy": float(found is not None and found == right),
    }


def _yes(text: str) -> bool | None:
    found = _YES_NO.search(text[:LONGEST])
    return found[0].lower() in {"yes", "true"} if found else None


def _compare_text(expected: str, answer: str) -> Measures:
    return {
        "exact": float(answer == expected),
        "rouge_l": rouge_l(expected.split(), answer.split()),
    }


def rouge_l(expected: Sequence[str], answer: Sequence[str]) -> float:
    """Return F1 of the longest common subsequence of two sequences of words."""
    if not expected or not answer:
        return float(not expected and not answer)
    row = [0] * (len(answer) + 1)
    for word in expected:
        before = row
        row = [0]
        for place, other in enumerate(answer):
            longer = before[place] + 1 if word == other else 0
            row.append(max(longer, before[place + 1], row[place]))
    return 2 * row[-1] / (len(expected) + len(answer))


def _means(all_: Sequence[Measures]) -> dict[str, float]:
    """Return the mean of each measure; of squares, the root of the mean."""
    names = dict.fromkeys(name for measures in all_ for name in measures)
    found = {}
    for name in names:
        mean = fmean(measures[name] for measures in all_ if name in measures)
        found["rmse" if name == "square" else name] = (
            math.sqrt(mean) if name == "square" else mean
        )
    return found


_MORGAN = rdFingerprintGenerator.GetMorganGenerator(radius=_RADIUS, fpSize=_BITS)
_PRINTS: Mapping[str, Callable[[Any], Any]] = {
    "morgan": _MORGAN.GetFingerprint,
    "maccs": rdMolDescriptors.GetMACCSKeysFingerprint,
    "rdk": Chem.RDKFingerprint,
}
_KINDS: Mapping[str, Callable[[str, str], Measures]] = {
    "SMILES": _compare_smiles,
    "MOLFORMULA": _compare_formula,
    "NUMBER": _compare_number,
    "BOOLEAN": _compare_boolean,
}
