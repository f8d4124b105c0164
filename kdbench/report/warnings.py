"""The warnings that a reader is owed: each with a code for machines, from what the frames say and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from math import sqrt
from typing import TYPE_CHECKING, Any

from kdbench.report.document import Owed
from kdbench.report.frame import shortfall
from kdbench.report.manifest import labels
from kdbench.report.notes import IDLE
from kdbench.report.study import Study, block_name, lines

if TYPE_CHECKING:
    import pandas as pd

CODES = {
    "incomplete": "runs are missing, failed or diverged",
    "survivors": "one loss fails more often than another: means are over survivors",
    "few-repeats": "fewer than three repeats: nothing is tested",
    "unpaired": "repeats do not pair: Welch's test instead of the paired one",
    "unequal-repeats": "two sides of a comparison have different repeats",
    "rank-test": "a rank test cannot reach alpha with so few repeats or blocks",
    "best-of-many": "the best was chosen by looking: its mean overstates",
    "tuned-for-some": "weights were tuned for some losses only",
    "selected-on-test": "checkpoints were chosen on the test set",
    "no-spread": "repeats that do not differ: the same run twice, or a ceiling",
    "duplicated": "two runs have the same weights",
    "ceiling": "an accuracy at its ceiling",
    "unequal-spread": "one loss is much noisier than another",
    "pairing": "pairing gained nothing: paired runs do not go together",
    "mixed-devices": "a comparison mixes devices",
    "mixed-versions": "a comparison mixes versions of libraries",
    "mixed-code": "a comparison mixes versions of the code",
    "changed-code": "the code had changes beside its commit",
    "source-changed": "the source of a part changed since the runs",
    "mixed-data": "runs saw different data",
    "idle-term": "a term's gradient never mattered",
    "no-kd": "no row of plain KD",
    "shared-blocks": "blocks share students or teachers: they are not independent",
    "teacher": "a teacher is below its gate",
    "shared-node": "costs were measured beside other work, or on different devices",
}
"""Every code and what it means."""

LIBRARIES = ("torch", "timm", "torchvision", "pillow")
UNEQUAL = 3.0
"""Standard deviations that differ by more than this factor."""
NO_PAIRING = 0.1
"""A median correlation of paired runs below this."""
CEILING = 0.995


def warnings(study: Study, sources_now: Mapping[str, str | None] | None = None) -> tuple[Owed, ...]:
    """Every warning of a suite, in the order of `CODES`.

    Args:
        sources_now: the digest of each part's source as it is now, by `<kind> <name>` (as `parts.sources_of` names them); None where
            it cannot be told.
    """
    found = [owed for rule in RULES for owed in rule(study)]
    found += _changed_sources(study, sources_now or {})
    order = list(CODES)
    blocks = ["", *(block_name(block["dataset"], block["teacher"], block["student"]) for block in study.manifest["blocks"])]
    return tuple(sorted(dict.fromkeys(found), key=lambda owed: (order.index(owed.code), blocks.index(owed.where))))


def unaccepted(found: tuple[Owed, ...], accepted: tuple[str, ...]) -> list[Owed]:
    """The warnings that make `report --strict` fail: all whose code was not accepted beforehand."""
    return [owed for owed in found if owed.code not in accepted]


def _blocks(table: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    for key, mine in table.groupby(["dataset", "teacher", "student"], dropna=False, sort=False):
        yield block_name(*key), mine


def _incomplete(study: Study) -> Iterator[Owed]:
    names = labels(study.manifest)
    for where, block in _blocks(study.summaries):
        short = block[block["n"] < block["n_asked"]]
        if len(short):
            told = ", ".join(f"{names[line['objective']]} {line['n']} of {line['n_asked']}" for line in lines(short))
            yield Owed("incomplete", f"not every repeat is complete: {told}", where)


def _survivors(study: Study) -> Iterator[Owed]:
    names = labels(study.manifest)
    lost = study.students["state"].isin(("failed", "diverged", "damaged"))
    for where, block in _blocks(study.students.assign(lost=lost)):
        counts = block.groupby("objective", sort=False)["lost"].agg(["sum", "size"])
        rates = counts["sum"] / counts["size"]
        if rates.max() > rates.min():
            told = ", ".join(f"{names[str(name)]} {row['sum']} of {row['size']}" for name, row in counts.iterrows() if row["sum"])
            yield Owed("survivors", f"whether a run ends well depends on the loss ({told} failed): their means are over survivors", where)


def _few_repeats(study: Study) -> Iterator[Owed]:
    told: dict[str, list[str]] = {}
    for where, block in _blocks(study.summaries):
        least = int(block["n_asked"].min())
        if least < 3:
            told.setdefault(f"{least} repeat{'s' * (least != 1)}: fewer than three are not tested", []).append(where)
    yield from _told("few-repeats", told, study)


def _unpaired(study: Study) -> Iterator[Owed]:
    names = labels(study.manifest)
    for where, block in _blocks(study.comparisons):
        welch = block[block["test"] == "Welch t"]
        if len(welch):
            told = ", ".join(f"{names[line['objective']]} - {names[line['baseline']]}" for line in lines(welch))
            yield Owed(
                "unpaired", f"repeats do not pair, so Welch's test, whose level is approximate, stands for the paired one: {told}", where
            )
        paired = block[(block["test"] == "paired t") & (block["n"] < block[["n_objective", "n_baseline"]].max(axis=1))]
        if len(paired):
            told = ", ".join(f"{names[line['objective']]} - {names[line['baseline']]} ({line['n']})" for line in lines(paired))
            yield Owed("unequal-repeats", f"only the repeats that both sides have are compared: {told}", where)


def _rank_tests(study: Study) -> Iterator[Owed]:
    if study.across is None or not len(study.across):
        return
    said = dict.fromkeys(why for name in ("sign_flip_why", "wilcoxon_why") for why in study.across[name] if why)
    for why in said:
        yield Owed("rank-test", why)


def _best_of_many(study: Study) -> Iterator[Owed]:
    """The winner's curse: of k objectives that are all equal, the best mean overstates by its expected maximum."""
    metric, margin = study.manifest["metrics"][0], study.manifest.get("margin")
    scale, unit = (100, " points") if metric["percent"] else (1, "")
    for where, block in _blocks(study.summaries):
        chosen = block[block["n"] > 0]
        tested = _of_block(study.comparisons, block)
        spread = (tested["sd"] / sqrt(2)).median() if (tested["sd"] > 0).any() else chosen["sd"].median()
        if len(chosen) < 2 or not spread > 0:
            continue
        excess = expected_maximum(len(chosen)) * spread / sqrt(chosen["n"].median())
        if margin is None or excess > margin:
            yield Owed(
                "best-of-many",
                f"the best of {len(chosen)} objectives was found by looking at these runs: were all of them equal, its mean would "
                f"still be about {scale * excess:.2g}{unit} too good",
                where,
            )


def expected_maximum(k: int) -> float:
    """The expected maximum of `k` independent standard normal numbers (.56 for 2, 1.87 for 20)."""
    import numpy as np
    from scipy import special

    x = np.linspace(-9, 9, 4001)
    density = k * special.ndtr(x) ** (k - 1) * np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi)
    return float(np.sum(x * density) * (x[1] - x[0]))


def _of_block(table: pd.DataFrame, block: pd.DataFrame) -> pd.DataFrame:
    first = block.iloc[0]
    same = (table["dataset"] == first["dataset"]) & (table["student"] == first["student"])
    alone = not isinstance(first["teacher"], str)
    return table[same & (table["teacher"].isna() if alone else table["teacher"] == first["teacher"])]


def _tuned(study: Study) -> Iterator[Owed]:
    # The task's loss alone, which no teacher takes part in, has no weight that could be tuned.
    alone = set(study.runs.loc[(study.runs["role"] == "student") & study.runs["teacher"].isna(), "objective"])
    sources = {one["label"]: one.get("weight_from") for one in study.manifest["objectives"] if one["name"] not in alone}
    tuned = [label for label, source in sources.items() if source == "tuned"]
    if tuned and len(tuned) < len(sources):
        others = ", ".join(label for label in sources if label not in tuned)
        yield Owed("tuned-for-some", f"weights were tuned for {', '.join(tuned)} and not for {others}")


def _selected_on_test(study: Study) -> Iterator[Owed]:
    if "selection" not in study.runs:
        return  # ours are all of the last epoch
    rules = sorted({str(rule) for rule in study.runs["selection"].dropna()})
    bad = [rule for rule in rules if "test" in rule]
    if bad:
        yield Owed("selected-on-test", f"checkpoints were chosen on the test set ({', '.join(bad)}): every such number is too good")
    if len(rules) > 1:
        yield Owed("selected-on-test", f"one table mixes rules of selection: {', '.join(rules)}")


def _no_spread(study: Study) -> Iterator[Owed]:
    names, metric = labels(study.manifest), study.manifest["metrics"][0]
    for where, block in _blocks(study.summaries):
        still = [names[line["objective"]] for line in lines(block) if line["n"] > 1 and line["sd"] == 0]
        if still:
            yield Owed("no-spread", f"all repeats gave the same {metric['label']}: {', '.join(still)}", where)
        high = [names[line["objective"]] for line in lines(block) if line["n"] and metric["percent"] and line["mean"] >= CEILING]
        if high:
            told = f"at the ceiling of {metric['label']}, where differences have no room: {', '.join(high)}"
            yield Owed("ceiling", told, where)


def _duplicated(study: Study) -> Iterator[Owed]:
    if "weights_digest" not in study.runs:
        return
    known = study.runs[study.runs["weights_digest"].notna()].drop_duplicates("id")
    twice = known[known["weights_digest"].duplicated(keep=False)]
    for _, same in twice.groupby("weights_digest", sort=False):
        yield Owed("duplicated", f"these runs have the same weights, bit for bit: {', '.join(same['id'])}")


def _unequal_spread(study: Study) -> Iterator[Owed]:
    names = labels(study.manifest)
    for where, block in _blocks(study.summaries):
        known = block[(block["n"] >= 3) & (block["sd"] > 0)]
        if len(known) < 2:
            continue
        by_spread = lines(known.sort_values("sd"))
        high, low = by_spread[-1], by_spread[0]
        if high["sd"] > UNEQUAL * low["sd"]:
            told = f"the sd of {names[high['objective']]} is {high['sd'] / low['sd']:.1f} times that of {names[low['objective']]}"
            yield Owed("unequal-spread", told, where)


def _pairing(study: Study) -> Iterator[Owed]:
    for where, block in _blocks(study.comparisons):
        known = block["correlation"].dropna()
        if len(known) and known.median() < NO_PAIRING:
            told = f"paired runs do not go together (median correlation {known.median():.2f}): pairing gained nothing here"
            yield Owed("pairing", told, where)


def _mixed(study: Study) -> Iterator[Owed]:
    kinds = [("device", "mixed-devices", "devices")]
    kinds += [(name, "mixed-versions", f"versions of {name}") for name in LIBRARIES]
    kinds += [("code_version", "mixed-code", "versions of the code")]
    for column, code, words in kinds:
        if column not in study.students:
            continue
        told: dict[str, list[str]] = {}
        for where, block in _blocks(study.students):
            values = sorted(set(block[column].dropna().astype(str)))
            if len(values) > 1:
                told.setdefault(f"runs mix {words}: {', '.join(values)}", []).append(where)
        yield from _told(code, told, study)
    dirty = sorted({str(one) for one in study.runs["code_version"].dropna() if str(one).endswith("-dirty")})
    if dirty:
        yield Owed("changed-code", f"runs were made by code that had changes beside its commit: {', '.join(dirty)}")


def _told(code: str, told: Mapping[str, list[str]], study: Study) -> Iterator[Owed]:
    """One warning for what holds in every block, one for each block otherwise."""
    for message, places in told.items():
        if len(places) == len(study.manifest["blocks"]):
            yield Owed(code, message)
        else:
            yield from (Owed(code, message, where) for where in places)


def _mixed_data(study: Study) -> Iterator[Owed]:
    for dataset, mine in study.students[study.students["mixed_data"]].groupby("dataset", sort=False):
        prints = ", ".join(sorted(set(mine["data_fingerprint"].dropna())))
        yield Owed("mixed-data", f"runs on {dataset} saw different data ({prints}): they are neither averaged nor compared")


def _idle(study: Study) -> Iterator[Owed]:
    names = labels(study.manifest)
    for where, block in _blocks(study.students):
        least = block.groupby("objective", sort=False)["least_gradient"].min()
        for name, ratio in least[least < IDLE].items():
            told = f"a term of {names[str(name)]} did nothing: its gradient never exceeded {100 * ratio:.2g} % of the task's"
            yield Owed("idle-term", f"{told}; its weight is too small", where)


def _no_kd(study: Study) -> Iterator[Owed]:
    if not any(one["name"] == "kd" or one["name"].startswith("kd:") for one in study.manifest["objectives"]):
        yield Owed("no-kd", "there is no row of plain KD, which beats most losses on the field's own benchmark")


def _shared_blocks(study: Study) -> Iterator[Owed]:
    if study.clusters is not None and study.clusters.n < len(study.manifest["blocks"]):
        yield Owed("shared-blocks", study.clusters.sentence)


def _teachers(study: Study) -> Iterator[Owed]:
    for line in study.runs[study.runs["role"] != "student"].to_dict(orient="records"):
        if line["state"] != "finished":
            yield Owed("teacher", f"teacher {line['student']} (run {line['id']}): {line['state']}")
        elif told := shortfall(study.manifest, line["id"], {str(name): value for name, value in line.items()}):
            yield Owed("teacher", f"teacher {line['student']} (run {line['id']}): {told}")


def _costs(study: Study) -> Iterator[Owed]:
    measured = study.costs[study.costs["state"] == "measured"]
    devices = sorted(set(measured["device"].dropna()))
    if len(devices) > 1:
        yield Owed("shared-node", f"costs were measured on different devices: {', '.join(devices)}")
    busy = measured[measured["others_at_work"] > BUSY] if "others_at_work" in measured else measured.iloc[:0]
    if len(busy):
        told = f"{len(busy)} of {len(measured)} costs were measured while others kept more than {100 * BUSY:.0f} % of the processors busy"
        yield Owed("shared-node", told)


BUSY = 0.2
"""The share of the processors that others may keep busy while costs are measured."""


def _changed_sources(study: Study, now: Mapping[str, str | None]) -> Iterator[Owed]:
    if "sources" not in study.runs:
        return
    known = {entry for text in study.runs["sources"].dropna() for entry in str(text).split("; ") if entry}
    was: dict[str, set[str]] = {}
    for entry in known:
        name, _, digest = entry.rpartition(" ")
        was.setdefault(name, set()).add(digest)
    for name in sorted(was):
        if len(was[name]) > 1:
            yield Owed("source-changed", f"the source of the {name} changed between these runs, and its version did not")
        elif name in now and {now[name]} != was[name]:
            yield Owed("source-changed", f"the source of the {name} changed since these runs")


RULES: tuple[Callable[[Study], Iterator[Owed]], ...] = (
    _incomplete,
    _survivors,
    _few_repeats,
    _unpaired,
    _rank_tests,
    _best_of_many,
    _tuned,
    _selected_on_test,
    _no_spread,
    _duplicated,
    _unequal_spread,
    _pairing,
    _mixed,
    _mixed_data,
    _idle,
    _no_kd,
    _shared_blocks,
    _teachers,
    _costs,
)


def as_json(found: tuple[Owed, ...]) -> list[dict[str, Any]]:
    """For `warnings.json`."""
    return [{"code": owed.code, "where": owed.where, "message": owed.message} for owed in found]
