"""What can go wrong, as a tree. Every message says what was asked, where, what exists, and what to do.

KdbenchError
├── SuiteError          a suite or cluster file is wrong: all of its errors together, each with file and line
├── PartError           a part (loss, dataset, model, recipe, task) cannot be found, read or built
│   └── OptionsError    options of a part are wrong: all of them together, each with its keys
├── RefusedError        a part says that it cannot serve this pair, and why
├── LossError           a loss reads what it does not declare, or returns something other than a scalar
├── StoreError          the results folder: not writable, full, or a damaged file
│   ├── DamagedError    a file that is there but cannot be trusted (truncated, altered)
│   └── ClaimError      another worker has this cell
│       └── LostClaimError  another worker took this cell over: nothing more may be written
├── DataError           a dataset is missing, truncated, mislabelled, or not the one that was asked
├── UsageError          an argument of a command that cannot be
├── ClusterError        SLURM is not there, or does not answer
│   ├── RequestError    it refuses what a job asks for
│   └── QueueFullError       it takes no more jobs, or none in so large an array
│       └── OwnLimitError    because of a limit for this user, or one that it does not name: it may be on what a job asks for
├── TeacherError           a teacher is not good enough, or not the one that its record describes
└── StoppedError        asked to stop: everything needed to go on is on disk
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

MOST_NAMES = 60
MOST_CHARACTERS = 200
SHORTENED = 3
"""The fewest letters that count as the beginning of a longer name."""


class KdbenchError(Exception):
    """The root: whatever the command line prints without a traceback."""


class SuiteError(KdbenchError):
    """All errors of a suite or cluster file: `errors` holds them one by one, as text with file and line."""

    def __init__(self, errors: Iterable[str]):
        self.errors = list(errors)
        super().__init__("\n".join(self.errors))


class PartError(KdbenchError): ...


class OptionsError(PartError):
    """`errors` are pairs of the keys that lead to a value (`("subset", "per_class")`) and of what is wrong with it."""

    def __init__(self, part: str, errors: Iterable[tuple[tuple[str | int, ...], str]]):
        self.errors = list(errors)
        super().__init__(f"{part}: " + "; ".join(f"{'.'.join(map(str, keys))}: {text}" if keys else text for keys, text in self.errors))


class RefusedError(KdbenchError): ...


class LossError(KdbenchError): ...


class StoreError(KdbenchError): ...


class DamagedError(StoreError): ...


class ClaimError(StoreError): ...


class LostClaimError(ClaimError): ...


class DataError(KdbenchError): ...


class UsageError(KdbenchError): ...


class ClusterError(KdbenchError): ...


class RequestError(ClusterError): ...


class QueueFullError(ClusterError): ...


class OwnLimitError(QueueFullError): ...


class TeacherError(KdbenchError): ...


class StoppedError(KdbenchError): ...


class RankError(KdbenchError):
    """An error of another rank. `kind` is the class of the failure, `text` the traceback there."""

    def __init__(self, message: str, kind: str, text: str):
        super().__init__(message)
        self.kind, self.text = kind, text


class RankLostError(KdbenchError):
    """Another rank does not answer any more."""


def nearest(asked: str, names: Iterable[str]) -> str:
    """`; did you mean 'x'?` with the nearest of `names`, or the list of them when none is near."""
    known = sorted(set(names))
    if close := closest(asked, known):
        return f"; did you mean '{close}'?"
    more = f" and {len(known) - MOST_NAMES} more" if len(known) > MOST_NAMES else ""
    return f"; available: {', '.join(known[:MOST_NAMES])}{more}" if known else ""


def closest(asked: str, names: Iterable[str]) -> str | None:
    """The one of `names` that is nearest to `asked`, whatever is written in capitals; None if none is near."""
    known = {name.lower(): name for name in sorted(set(names), reverse=True)}
    near = difflib.get_close_matches(asked.lower(), known, n=len(known) or 1, cutoff=0.6)
    alike = difflib.SequenceMatcher(b=asked.lower())

    def distance(name: str) -> tuple[float, bool]:
        alike.set_seq1(name)
        return -alike.ratio(), sorted(name) != sorted(asked.lower())  # letters that changed places before another letter

    near.sort(key=distance)
    begun = [name for name in known if len(asked) >= SHORTENED and name.startswith(asked.lower())]
    return next((known[name] for name in [*(begun if len(begun) == 1 else ()), *near]), None)


def shown(text: str) -> str:
    """A text as a message shows it: cut where it is long, with characters that are not printable escaped."""
    text = text if len(text) <= MOST_CHARACTERS else f"{text[: MOST_CHARACTERS - 3]}..."
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)
