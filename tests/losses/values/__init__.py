"""What a test must know of each loss of the shelf beyond its file: `<loss>.py` has `GOLDEN`, the stored values that are its own, and
`FURTHER`, options that no preset has. It may have `FIRST` (keys of golden/losses.npz), `SLOW` (for a preset or the text of options, the
value in loops: `(loss, student, teacher) -> float`), `HELD` (names of methods through whose value no gradient flows) and `JUMPS` (finite
differences hold for one entry at a time alone). Adding a loss adds its file there and nothing else."""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType


def modules() -> dict[str, ModuleType]:
    """By the name of the loss."""
    names = [one.name for one in pkgutil.iter_modules(__path__) if not one.name.startswith("_")]
    return {name: importlib.import_module(f"{__name__}.{name}") for name in names}
