"""The tasks, their groups, tags and questions.

Shaped as SMolInstruct is: a question with one tagged value in it, a tagged answer.
Three of SMolInstruct's properties have no open stand-in that ships in a package
(ClinTox, HIV, SIDER); they are listed so that the real data set can be read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b

from hansa.worker.base import Example

NAMES = "name_conversion"
PROPERTIES = "property_prediction"
REACTIONS = "chemical_reaction"
DESCRIPTIONS = "molecule_description"


@dataclass(frozen=True, slots=True)
class Kind:
    """A task: group, tags around the given and the asked value, ways to ask.

    A question holds ``{x}`` for the given value and may hold ``{target}``.
    """

    group: str
    given: str | None
    asked: str | None
    questions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Fact:
    """One thing known: `answer` to `given`; `molecule` (canonical) rules the split."""

    task: str
    given: str
    answer: str
    molecule: str


KINDS: Mapping[str, Kind] = {
    "name_conversion-i2f": Kind(
        NAMES,
        "IUPAC",
        "MOLFORMULA",
        (
            "What is the molecular formula of the compound named {x}?",
            "Give the molecular formula of {x}.",
            "Convert the IUPAC name {x} to a molecular formula.",
        ),
    ),
    "name_conversion-i2s": Kind(
        NAMES,
        "IUPAC",
        "SMILES",
        (
            "What is the SMILES of {x}?",
            "Convert the IUPAC name {x} to SMILES.",
            "Write the SMILES representation of the compound {x}.",
        ),
    ),
    "name_conversion-s2f": Kind(
        NAMES,
        "SMILES",
        "MOLFORMULA",
        (
            "What is the molecular formula of {x}?",
            "Write the molecular formula of the molecule {x}.",
            "Which molecular formula belongs to the SMILES {x}?",
        ),
    ),
    "name_conversion-s2i": Kind(
        NAMES,
        "SMILES",
        "IUPAC",
        (
            "What is the IUPAC name of {x}?",
            "Name the molecule {x} by IUPAC's rules.",
            "Translate the SMILES {x} into an IUPAC name.",
        ),
    ),
    "property_prediction-esol": Kind(
        PROPERTIES,
        "SMILES",
        "NUMBER",
        (
            "How soluble in water is {x}? Give the logarithm of mol/L.",
            "Predict the log solubility (mol/L) of {x} in water.",
        ),
    ),
    "property_prediction-lipo": Kind(
        PROPERTIES,
        "SMILES",
        "NUMBER",
        (
            "What is the octanol/water logD of {x} at pH 7.4?",
            "Predict logD (pH 7.4) of {x}.",
        ),
    ),
    "property_prediction-bbbp": Kind(
        PROPERTIES,
        "SMILES",
        "BOOLEAN",
        (
            "Does {x} cross the blood-brain barrier?",
            "Is blood-brain barrier permeability a property of {x}?",
        ),
    ),
    "property_prediction-carc": Kind(
        PROPERTIES,
        "SMILES",
        "BOOLEAN",
        ("Does IARC class {x} as surely, probably or possibly carcinogenic?",),
    ),
    "property_prediction-bp": Kind(
        PROPERTIES,
        "SMILES",
        "NUMBER",
        (
            "What is the normal boiling point of {x} in degrees Celsius?",
            "Predict the boiling point (deg C) of {x}.",
        ),
    ),
    "property_prediction-hfe": Kind(
        PROPERTIES,
        "SMILES",
        "NUMBER",
        ("What is the hydration free energy of {x} in kcal/mol?",),
    ),
    "forward_synthesis": Kind(
        REACTIONS,
        "SMILES",
        "SMILES",
        (
            "Which product do the reactants {x} give?",
            "{x} are reactants. Suggest the main product.",
        ),
    ),
    "retrosynthesis": Kind(
        REACTIONS,
        "SMILES",
        "SMILES",
        (
            "Which reactants could be used to make {x}?",
            "Suggest reactants from which {x} can be produced.",
        ),
    ),
    "molecule_captioning": Kind(
        DESCRIPTIONS,
        "SMILES",
        None,
        ("Describe the molecule {x}.", "What can you tell me about {x}?"),
    ),
    "molecule_generation": Kind(
        DESCRIPTIONS,
        None,
        "SMILES",
        (
            "Give a molecule that fits this description: {x}",
            "Write the SMILES of the molecule described here: {x}",
        ),
    ),
}
"""The fourteen tasks that can be built from packages."""

ONLY_PUBLISHED: Mapping[str, Kind] = {
    "property_prediction-clintox": Kind(
        PROPERTIES, "SMILES", "BOOLEAN", ("Is {x} toxic?",)
    ),
    "property_prediction-hiv": Kind(
        PROPERTIES, "SMILES", "BOOLEAN", ("Does {x} inhibit HIV replication?",)
    ),
    "property_prediction-sider": Kind(
        PROPERTIES, "SMILES", "BOOLEAN", ("Can {x} cause side effects: {target}?",)
    ),
}
"""Tasks of SMolInstruct that only the published data set has."""

ALL_KINDS: Mapping[str, Kind] = {**KINDS, **ONLY_PUBLISHED}
GROUPS = (NAMES, PROPERTIES, REACTIONS, DESCRIPTIONS)


def group_of(task: str) -> str:
    """Return the group of a task; an unknown task is its own group."""
    kind = ALL_KINDS.get(task)
    return kind.group if kind else task.partition("-")[0]


def tagged(tag: str | None, value: str) -> str:
    """Return `value` between its tags, as ``<SMILES> CCO </SMILES>``."""
    return f"<{tag}> {value} </{tag}>" if tag else value


def phrase(task: str, given: str, answer: str, target: str = "") -> Example:
    """Turn a fact into a question and its answer; the wording depends on the fact."""
    kind = ALL_KINDS[task]
    question = kind.questions[stable(f"{task} {given}") % len(kind.questions)]
    asked = question.format(x=tagged(kind.given, given), target=target)
    return Example(task, asked, tagged(kind.asked, answer))


def stable(text: str) -> int:
    """Return a 64-bit hash that is the same in every process and on every machine."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big")
