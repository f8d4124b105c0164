"""What a suite promised to train and to compare, as `run` left it in the suite's folder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NotRequired

from typing_extensions import TypedDict  # pydantic refuses that of typing before Python 3.12

from kdbench.errors import DamagedError
from kdbench.record import MANIFEST_SCHEMA

if TYPE_CHECKING:
    import pandas as pd


class Metric(TypedDict):
    """`percent`: stored as a fraction, printed in per cent; the columns of a metric are `<name>_last` and so on. `per_image`: the
    column of a cell's predictions.npz whose mean over the images it is."""

    name: str
    label: str
    percent: bool
    higher_is_better: bool
    per_image: NotRequired[str | None]


class Objective(TypedDict):
    """`weight_from`: who chose the weights: published, released, suite, assumed or tuned."""

    name: str
    label: str
    weight_from: NotRequired[str | None]


class Block(TypedDict):
    dataset: str
    teacher: str | None
    student: str


class CellLine(TypedDict):
    """`depends` holds the ids of other cells, by role."""

    id: str
    role: str
    dataset: str
    student: str
    teacher: str | None
    objective: str | None
    repeat: int | None
    teacher_seed: int | None
    depends: dict[str, str]


class Gate(TypedDict):
    """What is asked of a teacher's metric: at least `min`, and the declared value within so much."""

    metric: str
    min: float | None
    declared: NotRequired[tuple[float, float] | None]


class ProfileLine(TypedDict):
    dataset: str
    teacher: str | None
    student: str
    objective: str
    id: str


class Manifest(TypedDict):
    """`metrics[0]` is the primary one; `margin` is its least difference that matters, as stored;
    `derived`: it was made from a frame's rows, and nobody fixed its family beforehand;
    `gates` holds what is asked of a teacher, by cell id."""

    schema: int
    suite: str
    description: NotRequired[str | None]
    metrics: list[Metric]
    baselines: list[str]
    assumed: NotRequired[list[str]]
    repeats: int
    teacher_seeds: int
    alpha: float
    margin: NotRequired[float | None]
    derived: NotRequired[bool]
    objectives: list[Objective]
    blocks: list[Block]
    cells: list[CellLine]
    gates: NotRequired[dict[str, Gate]]
    profiles: NotRequired[list[ProfileLine]]


def checked(raw: Mapping[str, Any]) -> Manifest:
    """The manifest with its fields known to be there.

    Raises:
        DamagedError: a field is missing or of the wrong type, or the manifest was written by another version of kdbench.
    """
    from pydantic import TypeAdapter, ValidationError

    try:
        manifest = TypeAdapter(Manifest).validate_python(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "it"
        raise DamagedError(f"the manifest has {error.error_count()} mistakes, the first at {where}: {first['msg']}") from error
    if manifest["schema"] != MANIFEST_SCHEMA:
        raise DamagedError(f"the manifest has the schema {manifest['schema']}; this kdbench reads schema {MANIFEST_SCHEMA}")
    if not manifest["metrics"]:
        raise DamagedError("the manifest names no metric")
    return manifest


def block_frame(manifest: Manifest) -> pd.DataFrame:
    """One row a block: dataset, teacher, student, in the order of the suite."""
    import pandas as pd

    return pd.DataFrame(manifest["blocks"], columns=["dataset", "teacher", "student"])


def labels(manifest: Manifest) -> dict[str, str]:
    """The printed label of each objective, in the order of the suite."""
    return {objective["name"]: objective["label"] for objective in manifest["objectives"]}
