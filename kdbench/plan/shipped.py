"""The suites and cluster files that ship with kdbench: in a checkout, an editable installation and a wheel."""

from __future__ import annotations

from importlib import resources
from importlib.resources.abc import Traversable

FOLDERS = {"suite": "suites", "cluster file": "clusters"}
"""What ships, and its folder in the package: a link to the folder of the repository, a copy in the wheel."""


def shipped(kind: str) -> dict[str, Traversable]:
    """The shipped files of a kind by name."""
    files = resources.files("kdbench").joinpath(FOLDERS[kind]).iterdir()
    return {file.name.removesuffix(".yaml"): file for file in sorted(files, key=lambda file: file.name) if file.name.endswith(".yaml")}
