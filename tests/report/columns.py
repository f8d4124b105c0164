"""The columns of a main table, for tests of what prints it."""

from kdbench.report.table import Column

VERSUS_KD = (
    Column("loss", numeric=False),
    Column("top-1, %", essential=False),
    Column("Δ to kd, points [95 % CI]"),
    Column("p (Holm)", essential=False),
    Column("verdict", numeric=False),
)
