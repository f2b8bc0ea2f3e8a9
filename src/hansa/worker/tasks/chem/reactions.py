"""Chemical reactions: enzymatic ones as recorded, synthetic ones from templates."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

from rdkit.Chem import rdChemReactions, rdSubstructLibrary

from hansa.worker.tasks.chem.catalog import Fact, stable
from hansa.worker.tasks.chem.molecules import canonical, write
from hansa.worker.tasks.chem.packages import Packages
from hansa.worker.tasks.chem.pool import Wanted, pool

TASKS = ("forward_synthesis", "retrosynthesis")
_LONGEST_PRODUCT = 120
_LONGEST_REACTANTS = 140
_COFACTOR = 120  # a substance of more reactions than this is a cofactor
_BLOCKS = 1500
_CHOICES = 60
_BLOCK_ATOMS = 14
_PER_TEMPLATE = 60
_TRIES = 240


class Block(NamedTuple):
    """A small molecule that templates are tried on."""

    smiles: str
    molecule: Any


def enzyme_facts(packages: Packages, wanted: Wanted) -> Iterator[Fact]:
    """Yield enzymatic reactions (EnzymeMap, from evodex), cofactors left out."""
    rows = packages.rows("evodex", "data/selected_reactions.csv")
    reactions = sorted(
        {row["unmapped"] for row in rows if float(row["quality"] or 0) > 0.9},
        key=lambda text: stable(f"enzyme:{text}"),
    )
    count = Counter(
        substance
        for text in reactions
        for substance in set(text.replace(">>", ".").split("."))
    )
    cofactors = {substance for substance, n in count.items() if n > _COFACTOR}
    for text in reactions:
        sides = [
            [part for part in side.split(".") if part not in cofactors]
            for side in text.split(">>")
        ]
        if len(sides) == 2 and all(sides) and len(sides[1]) <= 2:
            yield from _reaction(sides[0], max(sides[1], key=len), wanted)


def template_facts(packages: Packages, wanted: Wanted) -> Iterator[Fact]:
    """Yield what named reaction templates (datamol) make of ordinary molecules."""
    blocks = list(islice(_blocks(packages), _BLOCKS))
    templates = list(_templates(packages, blocks))
    made: Counter[str] = Counter()
    for attempt in range(_TRIES):
        for name, reaction, choices in templates:
            if made[name] >= _PER_TEMPLATE:
                continue
            chosen = [
                some[stable(f"{name}:{attempt}:{place}") % len(some)]
                for place, some in enumerate(choices)
            ]
            product = _only_product(reaction, [block.molecule for block in chosen])
            if product:
                made[name] += 1
                yield from _reaction(
                    [block.smiles for block in chosen], product, wanted
                )


def _reaction(reactants: Sequence[str], product: str, wanted: Wanted) -> Iterator[Fact]:
    if sum(map(len, reactants)) > _LONGEST_REACTANTS:
        return
    molecule = canonical(product)
    if not molecule or "." in molecule or not 4 <= len(molecule) <= _LONGEST_PRODUCT:
        return
    if wanted(molecule):
        parts = {canonical(reactant) for reactant in reactants}
        if None not in parts and molecule not in parts:
            given = ".".join(sorted(part for part in parts if part))
            yield Fact(TASKS[0], given, molecule, molecule)
            yield Fact(TASKS[1], molecule, given, molecule)


def _blocks(packages: Packages) -> Iterator[Block]:
    for entry in pool(packages, lambda _: True):
        if entry.molecule.GetNumHeavyAtoms() <= _BLOCK_ATOMS:
            yield Block(entry.smiles, entry.molecule)


def _library(blocks: Sequence[Block]) -> Any:
    """Return an index of the blocks that is searched by fingerprint first."""
    library = rdSubstructLibrary.SubstructLibrary(
        rdSubstructLibrary.MolHolder(), rdSubstructLibrary.PatternHolder()
    )
    for block in blocks:
        library.AddMol(block.molecule)
    return library


def _templates(
    packages: Packages, blocks: Sequence[Block]
) -> Iterator[tuple[str, Any, list[list[Block]]]]:
    """Yield name, reaction and fitting blocks (a list per reactant) of templates."""
    path = packages.path("datamol", "data/reactions.json")
    known = json.loads(path.read_text(encoding="utf-8"))
    library = _library(blocks)
    for name in sorted(known):
        reaction = _parse_template(known[name]["syn_smarts"])
        if reaction is None or reaction.GetNumReactantTemplates() > 2:
            continue
        found = [
            library.GetMatches(pattern, numThreads=1, maxResults=_CHOICES)
            for pattern in reaction.GetReactants()
        ]
        if all(map(len, found)):
            yield name, reaction, [[blocks[i] for i in sorted(some)] for some in found]


def _parse_template(smarts: str) -> Any | None:
    try:
        reaction = rdChemReactions.ReactionFromSmarts(smarts)
    except ValueError:  # RDKit's word for a template that it can't read
        return None
    for pattern in reaction.GetReactants():
        pattern.UpdatePropertyCache(False)
    return reaction


def _only_product(reaction: Any, reactants: Sequence[Any]) -> str | None:
    """Return the product where there is exactly one; ambiguous outcomes teach wrong."""
    results = reaction.RunReactants(tuple(reactants))
    products = {canonical(write(result[0])) for result in results}
    return products.pop() if len(products) == 1 else None
