"""What others published: named tables of printed numbers, each with the variant of the loss, the selection rule and the images."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

from kdbench.errors import KdbenchError, nearest
from kdbench.report.frame import IDENTITY

if TYPE_CHECKING:
    import pandas as pd

    from kdbench.report.lint import Finding

TEACHER = ("Teacher (CE)", "Teacher", "teacher_alone")
ALONE = ("Student (CE)", "Student", "student_alone")
UNKNOWN, OTHER, NONE = "unknown", "other", "none"
"""Variants that are no name of ours: the source does not say; documented, and no preset of ours; a loss that we do not have."""
SELECTIONS = ("last epoch", "best test epoch", "best val", UNKNOWN)
NUMBERS = ("top1", "std", "n_runs", "n_train", "n_test", "delta", "AP", "AP50", "AP75", "APS", "APM", "APL")
COLUMNS = ("source", "dataset", "teacher", "student", "method", "role", "loss", "variant", "selection")


def tables() -> list[tuple[str, str]]:
    """Every published table by name, with a line that says what it is."""
    listed = _read("_tables")
    return list(zip(listed["table"], listed["description"], strict=True))


def table(name: str) -> pd.DataFrame:
    """A published table: one row a printed cell, numbers as they were printed (accuracies in per cent).

    Returns:
        source, dataset, teacher (null: trained without one), student, method (the source's own name), role (teacher, alone:
        cross-entropy; or distilled), loss (ours that it is a variant of, else null), variant (the name of our preset, `ce`,
        `other`, `none` or `unknown`), selection (last epoch, best test epoch, best val, unknown), top1, std, n_runs, n_train,
        n_test, delta (as printed), delta_to (the method that it is printed against); for detection AP to APL in place of top1.

    Raises:
        KdbenchError: there is no table of that name.
    """
    names = [known for known, _ in tables()]
    if name not in names:
        raise KdbenchError(f"there is no published table '{name}'{nearest(name, names)}")
    return _table(name).copy()


@cache
def _table(name: str) -> pd.DataFrame:
    found = _stored(name).rename(columns={"top1_percent": "top1"})
    found["role"] = [_role(method) for method in found["method"]]
    for absent in ({"delta", "delta_to", "std", "n_runs"} if "top1" in found else set()) - set(found):
        found[absent] = None
    whole = ("n_runs", "n_train", "n_test")
    numbers = [column for column in NUMBERS if column in found]
    for column in numbers:
        found[column] = found[column].astype("float64")
        if column in whole:
            found[column] = found[column].astype("Int64")
    return found[[*COLUMNS, *numbers, *[column for column in ("delta_to",) if column in found]]]


def earlier(name: str) -> list[pd.DataFrame]:
    """The tables that were published in years before this one's, the oldest first: what it may quote."""
    listed = _read("_tables").astype({"year": int}).sort_values("year", kind="stable")
    year = int(listed.set_index("table")["year"].loc[name])
    return [found for other in listed[listed["year"] < year]["table"] if "top1" in (found := table(other))]


def lint_published(name: str | None = None) -> list[Finding]:
    """What is wrong, or looks wrong, in one published table, or in all of them.

    Raises:
        KdbenchError: there is no table of that name.
    """
    from kdbench.report.lint import lint

    found: list[Finding] = []
    for one in [name] if name is not None else [known for known, _ in tables()]:
        cells = table(one)
        found += lint(cells, earlier(one)) if "top1" in cells else lint(cells, value="AP")
    return found


def variants() -> pd.DataFrame:
    """The presets of the losses, one row a term, a loss's default first: variant, task (the weight of the task's loss), loss, weight
    (null: never published), options (JSON, every default written out)."""
    return _read("_variants").astype({"task": float, "weight": float})


def variant_of(objective: str, terms: pd.DataFrame | None = None) -> tuple[str, str]:
    """(variant, loss) of an objective of a suite: the name of the preset that it is in every weight and option, `ce`, `other` or
    `unknown`; and the loss of its first term.

    Args:
        terms: as `history.terms` makes it. None: a preset's name is taken at its word, and a loss's name for its default preset.
    """
    known = lines(variants())
    if terms is None or objective not in set(terms["objective"]):
        firsts: dict[str, str] = {}
        for line in known:
            firsts.setdefault(line["variant"].partition(":")[0], line["variant"])
        name = "ce" if objective == "ce" else firsts.get(objective, objective)
        named = name == "ce" or any(line["variant"] == name for line in known)
        return (name if named else UNKNOWN), (name.partition(":")[0] if named else "")
    mine = lines(terms[terms["objective"] == objective])
    if mine[0]["loss"] is None:
        return ("ce" if mine[0]["task"] == 1 else OTHER), "ce"
    if any(line["options"] is None for line in mine):
        return UNKNOWN, ""
    by_variant: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for line in known:
        by_variant[line["variant"]].append(line)
    same = [name for name, theirs in by_variant.items() if _same_terms(mine, theirs)]
    return (same[0] if same else OTHER), str(mine[0]["loss"])


def _same_terms(mine: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]]) -> bool:
    if len(mine) != len(theirs) or any(line["pairing"] not in (None, "matched") for line in mine):
        return False
    left = list(theirs)
    for line in mine:
        same = next((other for other in left if _same_term(line, other)), None)
        if same is None:
            return False
        left.remove(same)
    return True


def _same_term(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    try:
        weight, task = float(one["weight"]), float(one["task"])
    except (TypeError, ValueError):  # a schedule of weights, or none that was read
        return False
    weighs = other["weight"] is None or weight == other["weight"]  # without a published weight, the suite's is that variant's too
    same_options = json.loads(one["options"]) == json.loads(other["options"])
    return bool(one["loss"] == other["loss"] and weighs and task == other["task"] and same_options)


def counterparts(name: str) -> Mapping[str, str]:
    """Our names of the models of a table where they are not the same but for case, `_` and `-`; empty: another net than any of ours."""
    named = _read("_names")
    mine = named[named["table"] == name]
    return {published: ours if isinstance(ours, str) else "" for published, ours in zip(mine["published"], mine["ours"], strict=True)}


def plain(model: str) -> str:
    """A model's name without case, `_` and `-`."""
    return model.lower().replace("_", "").replace("-", "")


def as_runs(name: str) -> pd.DataFrame:
    """A published table in the form of `frame.frame`: one row a printed accuracy, as if each were one run.

    Returns:
        The columns of `frame.frame` (`top1_last` holds the number by whichever rule it was selected, `selection` says which;
        `top1_best_test` holds it as well where that was the rule), and source, method, variant, selection, published_n,
        published_sd (a fraction). A student alone has the objective `ce` and no teacher; another's objective is its method in
        lower case. With n = 1 nothing can be tested.

    Raises:
        KdbenchError: there is no such table, it holds no accuracies, or it gives two values for one cell.
    """
    import pandas as pd

    cells = table(name)
    if "top1" not in cells:
        raise KdbenchError(f"the published table '{name}' holds no accuracies: it cannot stand for runs of a classifier")
    seen: dict[tuple[Any, ...], float] = {}
    rows = []
    for cell in lines(cells):
        row = _run(name, cell)
        key = tuple(row[column] for column in ("role", "dataset", "teacher", "student", "objective"))
        if key in seen and seen[key] != row["top1_last"]:
            raise KdbenchError(f"the published table '{name}' gives {seen[key]:.4f} and {row['top1_last']:.4f} for {key}")
        # Accuracies of students and teachers alone are printed anew in every block.
        if key not in seen:
            rows.append(row)
        seen[key] = row["top1_last"]
    runs = pd.DataFrame(rows)
    return runs.astype({**dict.fromkeys(("repeat", "teacher_seed", "n_train", "n_test", "published_n"), "Int64")}).astype(
        dict.fromkeys(("top1_last", "top1_best_val", "top1_best_test", "published_sd", "train_s", "least_gradient"), "float64")
    )


def _run(name: str, cell: dict[str, Any]) -> dict[str, Any]:
    role, value = cell["role"], cell["top1"] / 100
    teacher = cell["teacher"] if role == "distilled" else None
    objective = {"teacher": None, "alone": "ce"}.get(role, cell["method"].lower())
    key = [name, cell["dataset"], teacher, cell["student"], role, objective]
    if role == "teacher":
        key[3] = cell["student"] = cell["teacher"]
    named = cell["variant"] not in (UNKNOWN, OTHER, NONE, "ce")
    identity = {
        "suite": f"published {name}",
        "role": "teacher" if role == "teacher" else "student",
        "dataset": cell["dataset"],
        "teacher": teacher,
        "student": cell["student"],
        "objective": objective,
        "label": "ce" if role == "alone" else f"{cell['method']} ({cell['variant']})" if named else cell["method"],
        "repeat": 0,
        "teacher_seed": None if role == "alone" else 0,
        "id": hashlib.sha256(json.dumps(key).encode()).hexdigest()[:12],
        "state": "finished",
    }
    assert tuple(identity) == IDENTITY
    kept = {key: cell[key] for key in ("source", "method", "variant", "selection")}
    return {
        **identity,
        "top1_last": value,
        "top1_best_val": value if cell["selection"] == "best val" else None,
        "top1_best_test": value if cell["selection"] == "best test epoch" else None,
        "n_train": cell["n_train"],
        "n_test": cell["n_test"],
        **dict.fromkeys(("device", "torch", "code_version", "train_s", "data_fingerprint", "least_gradient")),
        "why": "",
        **kept,
        "published_n": cell["n_runs"],
        "published_sd": None if cell["std"] is None else cell["std"] / 100,
    }


def lines(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a frame, with None for every null."""
    values = frame.astype(object).where(frame.notna(), None)
    return [{str(key): value for key, value in line.items()} for line in values.to_dict(orient="records")]


def _role(method: str) -> str:
    return "teacher" if method in TEACHER else "alone" if method in ALONE else "distilled"


def _read(name: str) -> pd.DataFrame:
    return _stored(name).copy()


@cache
def _stored(name: str) -> pd.DataFrame:
    import pandas as pd

    with (resources.files("kdbench") / "published" / f"{name}.csv").open(encoding="utf-8") as file:
        found = pd.read_csv(file, dtype=str, keep_default_na=False)
    return found.astype(object).where(found != "", None)
