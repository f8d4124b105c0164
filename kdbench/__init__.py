"""kdbench compares knowledge-distillation losses honestly.

    loss = kdbench.make_loss("rkd", distance=25, angle=50)
    value = loss(kdbench.Taps(pooled=student), kdbench.Taps(pooled=teacher))
    frame = kdbench.load("results/suites/quickstart")

Nothing heavy is imported until it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kdbench.version import VERSION

__version__ = VERSION
__all__ = ["Batch", "Loss", "Pair", "Taps", "load", "make_loss"]

if TYPE_CHECKING:
    from pathlib import Path

    import pandas

    from kdbench.losses._base import Batch, Loss, Pair, Taps


def __getattr__(name: str) -> Any:
    if name in ("Batch", "Loss", "Pair", "Taps"):
        from kdbench.losses import _base

        return getattr(_base, name)
    raise AttributeError(f"module 'kdbench' has no attribute '{name}'; it has: {', '.join(__all__)}")


def make_loss(name: str, **options: Any) -> Loss:
    """A loss by name, with its options: `make_loss("rkd", distance=25, angle=50)`; `make_loss("rkd:official_cls")` for a preset.

    Losses with learnable parts must be bound to a pair first (`Loss.bind`).

    Raises:
        PartError: there is no such loss, preset or option.
    """
    from kdbench import parts
    from kdbench.errors import PartError, nearest

    key, _, preset = name.partition(":") if ".py:" not in name else (name, "", "")
    part = parts.load("loss", key if key in parts.names("loss") else name)
    presets = part.make.presets
    if preset and part.name == key:
        if preset not in presets:
            raise PartError(f"the loss '{key}' has no preset '{preset}'{nearest(preset, presets)}")
        options = {**presets[preset].options, **options}
    return part.build(part.options(options))


def load(path: str | Path) -> pandas.DataFrame:
    """The per-run rows of a suite, as pandas has them: `path` is a suite's folder (`results/suites/<name>`), or a frame file."""
    from kdbench.store.frame_files import load_frame

    return load_frame(path)
