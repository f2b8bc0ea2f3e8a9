"""Writes the folder of a Globus Compute endpoint, commented for those who review it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from string import Template
from types import MappingProxyType

from hansa.core.errors import UsageError
from hansa.site.endpoint.block import Block, block_words

MAPPING = "identity_mapping.json"
TEMPLATE = "user_config_template.yaml.j2"
_SYSTEM = ("/usr/local/bin", "/usr/bin", "/bin")


@dataclass(frozen=True, kw_only=True, slots=True)
class Endpoint:
    """What is written into the folder of an endpoint.

    Attributes:
        folder: Where it will lie, absolute; its name is the endpoint's name.
        facility: Name of the facility.
        function: Id of the one function that may run.
        program: The `globus-compute-endpoint` program, absolute.
        hansa: The `hansa` program that requests are handed to, absolute.
        site: The facility's site.yaml, absolute.
        commands: Folders of the batch system's commands.
        variables: Environment variables that those commands need.
        identities: Local user of each Globus identity; empty: only the owner's own.
        block: The nodes that the endpoint holds; None: it answers on the login node.
    """

    folder: Path
    facility: str
    function: str
    program: Path
    hansa: Path
    site: Path
    commands: tuple[Path, ...] = ()
    variables: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    identities: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    block: Block | None = None

    @property
    def path(self) -> str:
        """The PATH of its processes."""
        own = (self.program.parent, *self.commands)
        return ":".join(dict.fromkeys([*map(str, own), *_SYSTEM]))


def endpoint_files(endpoint: Endpoint) -> dict[str, str]:
    """Return the text of each file, by its name.

    Raises:
        UsageError: A path or a line can't stand in these files.
    """
    words = _words(endpoint)
    _check(endpoint, words)
    template = "login.yaml.j2" if endpoint.block is None else "block.yaml.j2"
    files = {
        "config.yaml": _filled("config.yaml", words),
        TEMPLATE: _filled(template, words),
        "user_config_schema.json": _filled("user_config_schema.json", words),
        "user_environment.yaml": _filled("user_environment.yaml", words),
        "SECURITY.md": _filled("SECURITY.md", words),
    }
    if endpoint.identities:
        files[MAPPING] = json.dumps(_mapping(endpoint.identities), indent=2) + "\n"
    return files


def write_files(folder: Path, files: Mapping[str, str]) -> None:
    """Write the files into a folder, which only its owner may enter if it is new.

    Raises:
        UsageError: One of them is there already (then nothing is written), or the
            folder can't be written.
    """
    there = [name for name in files if (folder / name).exists()]
    if there:
        raise UsageError(
            f"{folder} has {', '.join(there)} already; nothing was written.",
            hint="Name another folder with -o and compare the two with `diff -r`.",
        )
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name, text in files.items():
            with (folder / name).open("x", encoding="utf-8") as file:
                file.write(text)
    except OSError as error:
        raise UsageError(
            f"{folder} can't be written: {error.strerror or error}.",
            hint="Name a folder in a place that is yours to write with -o.",
        ) from error


def start_line(endpoint: Endpoint) -> str:
    """Return the command that starts it with nothing else in its environment."""
    program = shlex.quote(str(endpoint.program))
    kept = 'HOME="$HOME" USER="$USER"'
    return f"env -i {kept} {program} start {endpoint.folder.name} --detach"


def _words(endpoint: Endpoint) -> dict[str, str]:
    held = endpoint.block is not None
    title = f"Hansa at {endpoint.facility}" + (" (block of nodes)" if held else "")
    words = {
        "title": title,
        "title_text": _quoted(title),
        "facility": endpoint.facility,
        "name": endpoint.folder.name,
        "function": endpoint.function,
        "program": shlex.quote(str(endpoint.program)),
        "hansa": str(endpoint.hansa),
        "site": str(endpoint.site),
        "start": start_line(endpoint),
        "path_text": _quoted(endpoint.path),
        "hansa_text": _quoted(shlex.quote(str(endpoint.hansa))),
        "site_text": _quoted(endpoint.site),
        "batch": "".join(
            f"{name}: {_quoted(value)}\n" for name, value in endpoint.variables.items()
        ),
        "mapping": _quoted(endpoint.folder / MAPPING),
    }
    who = "who_mapped.txt" if endpoint.identities else "who_owner.txt"
    words["who"] = _filled(who, words)
    programs, exports = endpoint.program.parent, _exports(endpoint)
    block = block_words(endpoint.block, programs, exports)
    return {**words, **_review(endpoint), **block}


def _review(endpoint: Endpoint) -> dict[str, str]:
    """Return the words of the review sheet that depend on the kind of endpoint."""
    owner = "only the Globus account that logged it in, and identities linked to it."
    mapped = "only these Globus identities, each as a local user: " + ", ".join(
        f"{identity} as {local}" for identity, local in endpoint.identities.items()
    )
    block = endpoint.block
    return {
        "runner": "root" if endpoint.identities else "an ordinary user",
        "users": f"{mapped}." if endpoint.identities else owner,
        "listens": _LISTENS if block else "",
        "kind": _BLOCK.format(block=block) if block else _LOGIN,
        "jobs": "parsl." if block else "hansa.",
    }


_LISTENS = (
    " to the outside; compute nodes call back to it on ports\n54000 to 56000 of this "
    "node, encrypted and with keys of their own"
)
_LOGIN = (
    "That program submits, asks for and cancels jobs as any user would, and ends. The "
    "process uses hardly any\nprocessor time, and ends itself after an hour without a "
    "request."
)
_BLOCK = (
    "This is the second endpoint of a facility where login nodes submit nothing: its "
    "engine ({block.engine}) asks for one block of\n{block.nodes} nodes for "
    "{block.walltime}, runs Hansa's jobs in it one after the other, and gives it back "
    "when there is none."
)


def _exports(endpoint: Endpoint) -> dict[str, str]:
    """Return what a worker in a block needs of the environment."""
    return {
        **endpoint.variables,
        "HANSA_PROGRAM": shlex.quote(str(endpoint.hansa)),
        "HANSA_SITE": str(endpoint.site),
    }


def _mapping(identities: Mapping[str, str]) -> list[dict[str, object]]:
    return [
        {
            "comment": "Who may use Hansa here, and as which local user. Written out "
            "one by one, to the letter; who is not here is refused.",
            "DATA_TYPE": "expression_identity_mapping#1.0.0",
            "mappings": [
                {
                    "source": "{username}",
                    "match": identity,
                    "output": local,
                    "literal": True,
                }
                for identity, local in identities.items()
            ],
        }
    ]


def _check(endpoint: Endpoint, words: Mapping[str, str]) -> None:
    for name, text in (("folder", str(endpoint.folder)), *words.items()):
        one_line = text.replace("\n", "")
        if not one_line.isprintable() or "endraw" in text:
            raise UsageError(
                f"The endpoint's {name} can't be written down: {text!r}.",
                hint="Use paths and lines of printable text without the word endraw.",
            )
    if ":" in "".join(map(str, (endpoint.program, *endpoint.commands))):
        raise UsageError(
            f"A folder of {endpoint.path} has a colon in its name.",
            hint="Install into a folder without one.",
        )


def _filled(name: str, words: Mapping[str, str]) -> str:
    text = resources.files(__package__).joinpath("texts", name).read_text("utf-8")
    return Template(text).substitute(words)


def _quoted(value: object) -> str:
    """Return text as JSON, which YAML reads the same."""
    return json.dumps(str(value), ensure_ascii=False)
