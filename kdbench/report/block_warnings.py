"""Warnings that are found block by block."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import sqrt
from statistics import median
from typing import TYPE_CHECKING

from kdbench.report.document import Owed
from kdbench.report.manifest import Metric, labels
from kdbench.report.notes import IDLE
from kdbench.report.study import Line, Study, block_name, lines

if TYPE_CHECKING:
    import pandas as pd

LIBRARIES = ("torch", "timm", "torchvision", "pillow")
NEEDED = ("dataset", "teacher", "student", "objective", "state", "least_gradient")
TOLD = ("device", *LIBRARIES, "code_version")
LOST = ("failed", "diverged", "damaged")
UNEQUAL = 3.0
"""Standard deviations that differ by more than this factor."""
NO_PAIRING = 0.1
"""A median correlation of paired runs below this."""
CEILING = 0.995
LEAST_REPEATS = 3
ENOUGH = 5
"""Repeats from which a correlation is worth saying."""
DRAWS = 20_000


@dataclass(frozen=True)
class Found:
    """A study by block: `summaries`, `comparisons` and `students` hold the rows of each block, by its name."""

    study: Study
    names: Mapping[str, str]
    summaries: Mapping[str, list[Line]]
    comparisons: Mapping[str, list[Line]]
    students: Mapping[str, list[Line]]

    @property
    def metric(self) -> Metric:
        return self.study.manifest["metrics"][0]

    def pair(self, line: Line) -> str:
        return f"{self.names[line['objective']]} - {self.names[line['baseline']]}"


def block_warnings(study: Study) -> list[Owed]:
    """Every warning that a block gives rise to; what holds in all blocks alike is said once."""
    students = study.students[[*NEEDED, *(name for name in TOLD if name in study.students)]]
    found = Found(study, labels(study.manifest), _by_block(study.summaries), _by_block(study.comparisons), _by_block(students))
    return [owed for rule in RULES for owed in rule(found)]


def _by_block(table: pd.DataFrame) -> dict[str, list[Line]]:
    # Plain rows: a hundred blocks take a frame library a hundred times as long.
    found: dict[str, list[Line]] = defaultdict(list)
    for line in lines(table):
        found[block_name(line["dataset"], line["teacher"], line["student"])].append(line)
    return found


def _told(code: str, told: Mapping[str, list[str]], found: Found) -> Iterator[Owed]:
    """One warning for what holds in every block, one for each block otherwise."""
    for message, places in told.items():
        if len(places) == len(found.study.manifest["blocks"]):
            yield Owed(code, message)
        else:
            yield from (Owed(code, message, where) for where in places)


def _incomplete(found: Found) -> Iterator[Owed]:
    for where, block in found.summaries.items():
        short = [f"{found.names[line['objective']]} {line['n']} of {line['n_asked']}" for line in block if line["n"] < line["n_asked"]]
        if short:
            yield Owed("incomplete", f"not every repeat is complete: {', '.join(short)}", where)


def _survivors(found: Found) -> Iterator[Owed]:
    for where, block in found.students.items():
        counts: dict[str, list[int]] = {}
        for line in block:
            mine = counts.setdefault(line["objective"], [0, 0])
            mine[0] += line["state"] in LOST
            mine[1] += 1
        rates = [lost / asked for lost, asked in counts.values()]
        if max(rates) > min(rates):
            told = ", ".join(f"{found.names[name]} {lost} of {asked}" for name, (lost, asked) in counts.items() if lost)
            yield Owed("survivors", f"whether a run ends well depends on the loss ({told} failed): their means are over survivors", where)


def _few_repeats(found: Found) -> Iterator[Owed]:
    told: dict[str, list[str]] = defaultdict(list)
    for where, block in found.summaries.items():
        least = min(line["n_asked"] for line in block)
        if least < LEAST_REPEATS:
            told[f"{least} repeat{'s' * (least != 1)}: fewer than three are not tested"].append(where)
    yield from _told("few-repeats", told, found)


def _unpaired(found: Found) -> Iterator[Owed]:
    for where, block in found.comparisons.items():
        welch = [found.pair(line) for line in block if line["test"] == "Welch t"]
        if welch:
            words = "repeats do not pair, so Welch's test, whose level is approximate, stands for the paired one"
            yield Owed("unpaired", f"{words}: {', '.join(welch)}", where)
        short = [line for line in block if line["test"] == "paired t" and line["n"] < max(line["n_objective"], line["n_baseline"])]
        if short:
            told = ", ".join(f"{found.pair(line)} ({line['n']})" for line in short)
            yield Owed("unequal-repeats", f"only the repeats that both sides have are compared: {told}", where)


def _best_of_many(found: Found) -> Iterator[Owed]:
    """The winner's curse: of k objectives that are all equal, the best mean overstates by its expected maximum."""
    margin = found.study.manifest.get("margin")
    scale, unit = (100, " points") if found.metric["percent"] else (1, "")
    for where, block in found.summaries.items():
        chosen = [line for line in block if line["n"]]
        # What is shared by all objectives of a repeat does not choose between them: the spread of differences is what counts.
        spreads = [line["sd"] / sqrt(2) for line in found.comparisons.get(where, ()) if line["sd"] > 0]
        spreads = spreads or [line["sd"] for line in chosen if line["sd"] > 0]
        if len(chosen) < 2 or not spreads:
            continue
        excess = expected_maximum(len(chosen)) * median(spreads) / sqrt(median(line["n"] for line in chosen))
        if margin is None or excess > margin:
            yield Owed(
                "best-of-many",
                f"the best of {len(chosen)} objectives was found by looking at these runs: were all of them equal, its mean would "
                f"still be about {scale * excess:.2g}{unit} too good",
                where,
            )


@lru_cache(maxsize=64)
def expected_maximum(k: int) -> float:
    """The expected maximum of `k` independent standard normal numbers (.56 for 2, 1.87 for 20)."""
    import numpy as np
    from scipy import special

    x = np.linspace(-9, 9, 4001)
    density = k * special.ndtr(x) ** (k - 1) * np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi)
    return float(np.sum(x * density) * (x[1] - x[0]))


def _no_spread(found: Found) -> Iterator[Owed]:
    for where, block in found.summaries.items():
        still = [found.names[line["objective"]] for line in block if line["n"] > 1 and line["sd"] == 0]
        if still:
            yield Owed("no-spread", f"all repeats gave the same {found.metric['label']}: {', '.join(still)}", where)
        high = (
            [found.names[line["objective"]] for line in block if line["n"] and line["mean"] >= CEILING] if found.metric["percent"] else []
        )
        if high:
            told = f"at the ceiling of {found.metric['label']}, where differences have no room: {', '.join(high)}"
            yield Owed("ceiling", told, where)


def _unequal_spread(found: Found) -> Iterator[Owed]:
    for where, block in found.summaries.items():
        known = sorted((line for line in block if line["n"] >= LEAST_REPEATS and line["sd"] > 0), key=lambda line: line["sd"])
        if len(known) < 2:
            continue
        high, low = known[-1], known[0]
        usual = largest_ratio(len(known), int(median(line["n"] for line in known)))
        if high["sd"] > max(UNEQUAL, usual) * low["sd"]:
            one, other = (found.names[line["objective"]] for line in (high, low))
            told = f"the sd of {one} is {high['sd'] / low['sd']:.1f} times that of {other}"
            yield Owed("unequal-spread", f"{told} (of equally noisy losses one in 20 such blocks would have {usual:.1f} or more)", where)


@lru_cache(maxsize=256)
def largest_ratio(k: int, n: int) -> float:
    """What the largest of `k` sample standard deviations over the least exceeds in one of 20 cases, when all are of one population and
    over `n` repeats each: Hartley's F max (Biometrika 37:308, 1950), its root, simulated with a fixed seed."""
    import numpy as np

    spread = np.sqrt(np.random.default_rng(0).chisquare(n - 1, (DRAWS, k)))
    return float(np.quantile(spread.max(axis=1) / spread.min(axis=1), 0.95))


def _pairing(found: Found) -> Iterator[Owed]:
    for where, block in found.comparisons.items():
        known = [line["correlation"] for line in block if line["correlation"] == line["correlation"]]
        repeats = [line["n"] for line in block if line["correlation"] == line["correlation"]]
        # Over three or four pairs a correlation says next to nothing.
        if known and median(repeats) >= ENOUGH and median(known) < NO_PAIRING:
            told = f"paired runs do not go together (median correlation {median(known):.2f}): pairing gained nothing here"
            yield Owed("pairing", told, where)


def _mixed(found: Found) -> Iterator[Owed]:
    kinds = [("device", "mixed-devices", "devices")]
    kinds += [(name, "mixed-versions", f"versions of {name}") for name in LIBRARIES]
    kinds += [("code_version", "mixed-code", "versions of the code")]
    for column, code, words in kinds:
        told: dict[str, list[str]] = defaultdict(list)
        for where, block in found.students.items():
            values = sorted({line[column] for line in block if isinstance(line.get(column), str)})
            if len(values) > 1:
                told[f"runs mix {words}: {', '.join(values)}"].append(where)
        yield from _told(code, told, found)


def _idle(found: Found) -> Iterator[Owed]:
    for where, block in found.students.items():
        least: dict[str, float] = {}
        for line in block:
            if line["least_gradient"] is not None and line["least_gradient"] < IDLE:
                least[line["objective"]] = min(least.get(line["objective"], IDLE), line["least_gradient"])
        for name, ratio in least.items():
            told = f"a term of {found.names[name]} did nothing: its gradient never exceeded {100 * ratio:.2g} % of the task's"
            yield Owed("idle-term", f"{told}; its weight is too small", where)


RULES: tuple[Callable[[Found], Iterator[Owed]], ...] = (
    _incomplete,
    _survivors,
    _few_repeats,
    _unpaired,
    _best_of_many,
    _no_spread,
    _unequal_spread,
    _pairing,
    _mixed,
    _idle,
)
