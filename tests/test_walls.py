"""Who may import whom, as one table; and a proof that the table can be broken."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import kdbench

HOUSE = Path(kdbench.__file__).parent

WITHOUT_TORCH = sorted(
    [
        *(
            "kdbench",
            "kdbench.cell",
            "kdbench.record",
            "kdbench.store",
            "kdbench.errors",
            "kdbench.parts",
            "kdbench.cli",
            "kdbench.catalogue",
            "kdbench.through_submitit",
        ),
        *(
            "kdbench.run.local",
            "kdbench.run.watch",
            "kdbench.run.failure",
            "kdbench.run.progress",
            "kdbench.run.status",
            "kdbench.run.draws",
        ),
        *(
            ".".join(path.relative_to(HOUSE.parent).with_suffix("").parts)
            for room in ("plan", "report", "stats", "slurm")
            for path in (HOUSE / room).rglob("*.py")
        ),
    ]
)
HEAVY = ("torch", "timm", "torchvision")

DOORS = {
    "timm": {"through_timm.py"},
    "torchvision": {"_archive.py"},
    "submitit": {"through_submitit.py"},
}
"""Each library, and the only files that may import it."""

MAY_IMPORT = {
    "losses": {"errors", "losses"},
    "stats": {"errors", "stats"},
    "report": {"errors", "report", "stats", "store", "record", "cell", "parts"},
    "figures": {"errors", "report", "stats"},
    "page": {"errors", "report", "store", "record", "cell"},
    "models": {"errors", "losses", "models", "through_timm"},
    "datasets": {"errors", "datasets", "through_timm"},
    "recipes": {"errors", "recipes"},
    "tasks": {"errors", "tasks", "losses", "datasets"},
    "plan": {"errors", "plan", "cell", "record", "store", "parts", "losses", "recipes", "through_timm", "stats"},
}
"""Each room, and the rooms and modules of the house that it may know."""

NO_DISK = ("losses", "stats", "models", "recipes", "tasks")
"""Rooms that touch no file."""


def heavy_after(module: str) -> str:
    """The heavy libraries that importing a module brings along."""
    code = f"import sys; import {module}; print(*[one for one in {HEAVY!r} if one in sys.modules])"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return told.stdout.strip()


def imported(source: str) -> set[str]:
    """Top-level names of everything a source imports, wherever it does; `kdbench.x` for the house's own."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        modules = [one.name for one in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            modules = [f"kdbench.{one.name}" for one in node.names] if node.module == "kdbench" else [node.module]
        for module in modules:
            parts = module.split(".")
            found.add(".".join(parts[:2]) if parts[0] == "kdbench" else parts[0])
    return found


def breaches(house: Path) -> list[str]:
    """Every import that a wall forbids, and every file access in a room that has none."""
    found = []
    for path in sorted(house.rglob("*.py")):
        room, source = path.parent.name, path.read_text()
        names = imported(source)
        for library, doors in DOORS.items():
            if library in names and path.name not in doors:
                found.append(f"{path.name} imports {library}, whose door is {', '.join(doors) or 'not built yet'}")
        for name in names:
            own = name.removeprefix("kdbench.")
            if name.startswith("kdbench.") and own not in MAY_IMPORT.get(room, {own}) and path.stem != "__init__":
                found.append(f"{room}/{path.name} imports {name}")
        if room in NO_DISK and ({"os", "pathlib", "shutil", "io"} & names or "open(" in source):
            found.append(f"{room}/{path.name} touches the disk")
    return found


def test_planning_reporting_and_the_nouns_load_no_torch() -> None:
    code = "import sys, importlib\n" + "\n".join(f"importlib.import_module('{module}')" for module in WITHOUT_TORCH)
    code += f"\nprint(*[one for one in {HEAVY!r} if one in sys.modules])"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert told.stdout.strip() == ""


def test_the_torch_wall_can_be_broken() -> None:
    assert heavy_after("kdbench.run.loop") != ""


def test_every_import_keeps_to_the_walls() -> None:
    assert breaches(HOUSE) == []


@pytest.mark.parametrize(
    ("room", "source", "told"),
    [
        ("losses", "from kdbench.run.loop import train", "imports kdbench.run"),
        ("losses", "import pathlib", "touches the disk"),
        ("losses", "def late():\n    open('x')", "touches the disk"),
        ("stats", "from kdbench.store import Store", "imports kdbench.store"),
        ("models", "import timm", "imports timm"),
        ("report", "def late():\n    import torch, kdbench.losses.kd", "imports kdbench.losses"),
    ],
)
def test_each_wall_can_be_broken(tmp_path: Path, room: str, source: str, told: str) -> None:
    (tmp_path / room).mkdir()
    (tmp_path / room / "breach.py").write_text(source)

    assert any(told in breach for breach in breaches(tmp_path))
