"""What can go wrong, as a tree. Every message says what was asked, where, what exists, and what to do.

KdbenchError
├── SuiteError          a suite is wrong: all of its mistakes together, each with file and line
├── PartError           a part (loss, dataset, model, recipe, task) cannot be found, read or built
├── RefusedError        a part says that it cannot serve this pair, and why
├── StoreError          the results folder: not writable, full, or a damaged file
│   ├── DamagedError    a file that is there but cannot be trusted (truncated, altered)
│   └── ClaimError      another worker has this cell
├── DataError           a dataset is missing, truncated, mislabelled, or not the one that was asked
├── ClusterError        SLURM is not there, or does not answer
│   ├── RequestError    it refuses what a job asks for
│   └── FullError       it takes no more jobs of this user, or none in so large an array
├── GateError           a teacher is not good enough, or not the one that its record describes
└── StoppedError        asked to stop: everything needed to go on is on disk
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class KdbenchError(Exception):
    """The root: whatever the command line prints without a traceback."""


class SuiteError(KdbenchError):
    """All mistakes of a suite: `mistakes` holds them one by one, as text with file and line."""

    def __init__(self, mistakes: Iterable[str]):
        self.mistakes = list(mistakes)
        super().__init__("\n".join(self.mistakes))


class PartError(KdbenchError): ...


class RefusedError(KdbenchError): ...


class StoreError(KdbenchError): ...


class DamagedError(StoreError): ...


class ClaimError(StoreError): ...


class DataError(KdbenchError): ...


class ClusterError(KdbenchError): ...


class RequestError(ClusterError): ...


class FullError(ClusterError): ...


class GateError(KdbenchError): ...


class StoppedError(KdbenchError): ...


def nearest(asked: str, names: Iterable[str]) -> str:
    """`; did you mean 'x'?` with the nearest of `names`, or the list of them when none is near."""
    names = sorted(names)
    close = difflib.get_close_matches(asked, names, n=1, cutoff=0.6)
    if close:
        return f"; did you mean '{close[0]}'?"
    return f"; there is: {', '.join(names)}" if names else ""
