from dataclasses import dataclass

from kdbench.recipes._base import Recipe


@dataclass(frozen=True, kw_only=True)
class Short(Recipe):
    """Forty epochs of SGD on small sets of small images: for trying things, and for the quickstart.

    Source: ours; no paper uses it.
    """

    epochs: int = 40
    batch_size: int = 32
    lr: float = 0.05
    milestones: tuple[float, ...] = (24, 34)
