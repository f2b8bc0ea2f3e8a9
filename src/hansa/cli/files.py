"""The example files that come with Hansa."""

from __future__ import annotations

import shutil
from pathlib import Path

import hansa
from hansa.core.errors import UsageError
from hansa.core.words import nearest


def examples() -> Path:
    """Return the folder of the examples: in the package, or beside a checkout's src."""
    package = Path(hansa.__file__).parent
    inside = package / "examples"
    return inside if inside.is_dir() else package.parents[1] / "examples"


def example_names() -> list[str]:
    """Return the names of the examples."""
    return sorted(path.stem for path in examples().glob("*.yaml"))


def copy_example(name: str, target: Path) -> Path:
    """Copy an example and its site files into `target`; existing files stay.

    Returns:
        The federation file's copy.

    Raises:
        UsageError: There is no such example, or a file is in the way.
    """
    source = examples() / f"{name}.yaml"
    if name not in example_names():
        guess = nearest(name, example_names())
        raise UsageError(
            f"There is no example {name!r}.",
            hint=f"Did you mean {guess!r}?"
            if guess
            else f"There are: {', '.join(example_names())}.",
        )
    copy = target / source.name
    if copy.exists():
        raise UsageError(
            f"{copy} exists and is left as it is.", hint="Name another folder."
        )
    target.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, copy)
    sites = examples() / "sites" / name
    if sites.is_dir():
        shutil.copytree(sites, target / "sites" / name, dirs_exist_ok=True)
    return copy
