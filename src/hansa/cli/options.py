"""Arguments and options that several verbs share."""

from __future__ import annotations

from pathlib import Path

import typer

RUNS = Path("runs")
"""Folder of all runs, unless said otherwise."""

RUN = typer.Argument(help="Id or directory of the run.")
FOLDER = typer.Option(RUNS, "--runs", help="Folder of all runs.")
JSON = typer.Option(False, "--json", help="Print JSON.")
SITE = typer.Option(
    Path("site.yaml"),
    "--site",
    envvar="HANSA_SITE",
    help="The facility's site.yaml.",
)
CHANGES = typer.Argument(
    None, help="key=value, +key=value, ~key", metavar="[KEY=VALUE]..."
)
