"""The warnings that a reader is owed: each with a code for machines, from what the frames say and nothing else."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from kdbench.report.block_warnings import block_warnings
from kdbench.report.document import Owed
from kdbench.report.frame import shortfall
from kdbench.report.study import Study, block_name

if TYPE_CHECKING:
    pass

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
    "derived-family": "the family was made from the rows of a file",
    "shared-blocks": "blocks share students or teachers: they are not independent",
    "teacher": "a teacher is below its gate",
    "shared-node": "costs were measured beside other work, or on different devices",
}
"""Every code and what it means."""


UNREACHABLE = "the least p that any data can give"
"""How `stats.attainable` says that a test cannot reach alpha."""


def warnings(study: Study, sources_now: Mapping[str, str | None] | None = None) -> tuple[Owed, ...]:
    """Every warning of a suite, in the order of `CODES`.

    Args:
        sources_now: the digest of each part's source as it is now, by `<kind> <name>` (as `parts.sources_of` names them); None where
            it cannot be told.
    """
    found = [owed for rule in RULES for owed in rule(study)] + block_warnings(study)
    found += _changed_sources(study, sources_now or {})
    order = list(CODES)
    blocks = ["", *(block_name(block["dataset"], block["teacher"], block["student"]) for block in study.manifest["blocks"])]
    return tuple(sorted(dict.fromkeys(found), key=lambda owed: (order.index(owed.code), blocks.index(owed.where))))


def unaccepted(found: tuple[Owed, ...], accepted: tuple[str, ...]) -> list[Owed]:
    """The warnings that make `report --strict` fail: all whose code was not accepted beforehand."""
    return [owed for owed in found if owed.code not in accepted]


def _rank_tests(study: Study) -> Iterator[Owed]:
    if study.across is None or not len(study.across):
        return
    # Other reasons to refuse (crossed nets, nothing to compare) stand in the notes of the table.
    said = dict.fromkeys(why for name in ("sign_flip_why", "wilcoxon_why") for why in study.across[name] if UNREACHABLE in why)
    for why in said:
        yield Owed("rank-test", why)


def _changed_code(study: Study) -> Iterator[Owed]:
    dirty = sorted({str(one) for one in study.runs["code_version"].dropna() if str(one).endswith("-dirty")})
    if dirty:
        yield Owed("changed-code", f"runs were made by code that had changes beside its commit: {', '.join(dirty)}")


def _derived(study: Study) -> Iterator[Owed]:
    if study.manifest.get("derived") and len(study.comparisons):
        told = "the family of comparisons was made from the rows of this file: taking rows out changes every p"
        yield Owed("derived-family", f"{told} (with manifest.json beside it, it would not)")


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
    bad = [rule for rule in rules if re.search(r"\btest\b", rule)]
    if bad:
        yield Owed("selected-on-test", f"checkpoints were chosen on the test set ({', '.join(bad)}): every such number is too good")
    if len(rules) > 1:
        yield Owed("selected-on-test", f"one table mixes rules of selection: {', '.join(rules)}")


def _duplicated(study: Study) -> Iterator[Owed]:
    if "weights_digest" not in study.runs:
        return
    known = study.runs[study.runs["weights_digest"].notna()].drop_duplicates("id")
    twice = known[known["weights_digest"].duplicated(keep=False)]
    for _, same in twice.groupby("weights_digest", sort=False):
        yield Owed("duplicated", f"these runs have the same weights, bit for bit: {', '.join(same['id'])}")


def _mixed_data(study: Study) -> Iterator[Owed]:
    for dataset, mine in study.students[study.students["mixed_data"]].groupby("dataset", sort=False):
        prints = ", ".join(sorted(set(mine["data_fingerprint"].dropna())))
        yield Owed("mixed-data", f"runs on {dataset} saw different data ({prints}): they are neither averaged nor compared")


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
        told = f"just before {len(busy)} of {len(measured)} costs were measured, others kept over {100 * BUSY:.0f} % of the processors busy"
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
        elif name in now and now[name] is None:
            yield Owed("source-changed", f"the {name} is no longer here: these runs cannot be made again with this version of kdbench")
        elif name in now and {now[name]} != was[name]:
            yield Owed("source-changed", f"the source of the {name} changed since these runs")


RULES: tuple[Callable[[Study], Iterator[Owed]], ...] = (
    _rank_tests,
    _tuned,
    _selected_on_test,
    _duplicated,
    _mixed_data,
    _no_kd,
    _changed_code,
    _derived,
    _shared_blocks,
    _teachers,
    _costs,
)


def as_json(found: tuple[Owed, ...]) -> list[dict[str, Any]]:
    """For `warnings.json`."""
    return [{"code": owed.code, "where": owed.where, "message": owed.message} for owed in found]
