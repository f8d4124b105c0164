from dataclasses import dataclass

from kdbench.recipes._base import Recipe


@dataclass(frozen=True, kw_only=True)
class Short(Recipe):
    """Forty epochs of SGD for small sets of small images: for first experiments and the quickstart.

    Source: defined by kdbench; no paper uses it.
    """

    epochs: int = 40
    batch_size: int = 32
    lr: float = 0.05
    milestones: tuple[float, ...] = (24, 34)
