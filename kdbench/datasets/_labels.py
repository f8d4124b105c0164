"""Labels as people write them, whole numbers or names, as positions of classes. Not a dataset."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from kdbench.datasets._files import composed
from kdbench.datasets._tables import TableRows, refuse
from kdbench.errors import DataError, nearest

WHOLE = re.compile(r"-?(0|[1-9]\d*)")
DECIMAL = re.compile(r"[-+]?(\d*\.\d+|\d+\.|inf)", re.I)


def labels_of(tables: Sequence[tuple[TableRows, list[Any]]], classes: int, names: list[str] | None) -> tuple[list[int], list[str]]:
    """The class of each row of all tables, and the names of the classes.

    Labels are whole numbers if most are (`007` is a name), unless `names` has them. Raises DataError, with lines, for a label that is
    missing or none of the classes, and if the classes are not as many as declared.
    """
    given = [_plain(value, names or ()) for _, values in tables for value in values]
    texts = [value for value in given if isinstance(value, str)]
    whole = sum(WHOLE.fullmatch(text) is not None for text in texts)
    padded = any(re.fullmatch(r"0\d+", text) for text in texts)
    numbers = 2 * whole > len(texts) and not padded and not {*texts} & {*(names or ())}
    if numbers:
        known = {str(label): label for label in range(classes)}
    else:
        known = {name: label for label, name in enumerate(map(composed, names) if names else sorted({*texts}))}
    start = 0
    for table, values in tables:
        problems = []
        for place, (value, text) in enumerate(zip(values, given[start:], strict=False)):
            if text is None or text not in known or (names is None and _is_number(value, text)):
                problems.append((table.at(place), _wrong(value, text, numbers, classes, known, texts)))
        refuse(table.path, problems)
        start += len(values)
    if len(known) != classes:
        shown_names = ", ".join([*known][:10]) + (", ..." if len(known) > 10 else "")
        raise DataError(f"{tables[0][0].path.absolute()} has {len(known)} classes ({shown_names}), and {classes} were declared")
    return [known[text] for text in given if text is not None], names or [*known]


def _plain(value: Any, names: Sequence[str]) -> str | None:
    """A label as text; None for what is none."""
    if value is None or value != value or (isinstance(value, str) and value.lower() in ("", "nan") and value not in names):
        return None
    return composed(str(value))


def _is_number(value: Any, text: str) -> bool:
    """Whether a label is a number that is not whole, or no text at all."""
    return not isinstance(value, str | int) or DECIMAL.fullmatch(text) is not None


def _wrong(value: Any, text: str | None, numbers: bool, classes: int, known: dict[str, int], texts: list[str]) -> str:
    if text is None:
        return "the label is missing"
    if _is_number(value, text):
        return f"the label {value!r} is neither a whole number nor a name (list such names in `classes`)"
    if not numbers:
        return f"the label {value!r} is none of the classes{nearest(text, known)}"
    if not WHOLE.fullmatch(text):
        return f"the label {value!r} is no whole number, as most labels are"
    whole = {int(one) for one in texts if WHOLE.fullmatch(one)}
    hint = ": subtract 1" if (min(whole), max(whole)) == (1, classes) else " (-1 often means that a label is not known)" * (text == "-1")
    return f"the label {text} is not between 0 and {classes - 1}, and the labels go from {min(whole)} to {max(whole)}{hint}"
