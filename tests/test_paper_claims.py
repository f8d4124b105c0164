"""The key `claims` of a suite: what is read from it, what is refused with its line, and that nothing else depends on it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from kdbench.errors import SuiteError
from kdbench.manifest import ClaimComparison, Manifest, PaperClaim
from kdbench.plan.matrix import Plan
from kdbench.plan.suite import read

OBJECTIVES = "{ce: , kd: {controls: [untrained]}, sp: , dist: }"
CLAIMS = """
- claim: SP is better than the others.
  source: Table 1
  better: sp
  than: [ce, kd]
- claim: all are equal
  equal: [kd, sp, dist]
  margin: 0.5
- claim: DIST costs less and is not worse
  not_worse: dist
  cheaper: [dist]
  than: sp
  cost: memory
"""


def comparisons(plan: Plan) -> list[tuple[str, str, str]]:
    return [(one.relation, one.objective, one.baseline) for claim in plan.suite.claims for one in claim.comparisons]


def test_a_claim_becomes_comparisons_with_its_margin_as_the_metric_is_stored(plan_of: Callable[..., Plan]):
    plan = plan_of(objectives=OBJECTIVES, claims=CLAIMS, margin="1")
    assert comparisons(plan) == [
        *(("better", "sp", other) for other in ("ce", "kd")),
        *(("equal", *pair) for pair in (("kd", "sp"), ("kd", "dist"), ("sp", "dist"))),
        *((relation, "dist", "sp") for relation in ("not worse", "memory")),
    ]
    assert [claim.margin for claim in plan.suite.claims] == [0.01, 0.005, 0.01]
    assert plan.suite.claims[0].claim == "SP is better than the others." and plan.suite.claims[1].source == ""
    # In a metric that is no percentage the margin is as it is given.
    assert plan_of(objectives=OBJECTIVES, claims=CLAIMS, metric="nll").suite.claims[1].margin == 0.5
    assert plan_of(objectives=OBJECTIVES, claims=CLAIMS, metric="nll").suite.claims[0].margin is None
    # A control can be what a loss must be better than.
    claim = "[{claim: KD needs a trained teacher, better: kd, than: kd-untrained}]"
    assert comparisons(plan_of(objectives=OBJECTIVES, claims=claim)) == [("better", "kd", "kd-untrained")]


def test_claims_are_in_the_manifest_and_change_no_id_and_no_family(plan_of: Callable[..., Plan]):
    plan, without = plan_of(objectives=OBJECTIVES, claims=CLAIMS), plan_of(objectives=OBJECTIVES)
    assert list(plan.cells) == list(without.cells) and plan.comparisons == without.comparisons
    manifest = plan.manifest()
    assert manifest.claims == plan.suite.claims and without.manifest().claims == ()
    assert Manifest.from_json(json.loads(json.dumps(manifest.to_json()))) == manifest
    older = {key: value for key, value in without.manifest().to_json().items() if key != "claims"}
    assert Manifest.from_json(older) == without.manifest()
    spoiled = manifest.to_json()
    spoiled["claims"][2]["comparisons"][0]["baseline"] = "spp"
    with pytest.raises(ValueError, match=r"claims\.2\.comparisons: 'spp' is no objective of the suite"):
        Manifest.from_json(json.loads(json.dumps(spoiled)))


def test_another_metric_keeps_the_margins_of_its_kind_alone(plan_of: Callable[..., Plan]):
    manifest = plan_of(objectives=OBJECTIVES, claims=CLAIMS).manifest()
    assert [claim.margin for claim in manifest.compared_by("top5").claims] == [0.002, 0.005, 0.002]
    assert [claim.margin for claim in manifest.compared_by("nll").claims] == [None] * 3


WRONG = {
    "[{claim: x, beter: kd, than: ce}]": "claims.0.beter: unknown key; did you mean 'better'?",
    "[{better: kd, than: ce}]": "claims.0: the key 'claim' is missing",
    "[{claim: x, better: kdd, than: ce}]": "claims.0.better: 'kdd' is not among the suite's objectives; did you mean 'kd'?",
    "[{claim: x, better: kd, than: [ce, spp]}]": "claims.0.than.1: 'spp' is not among the suite's objectives; did you mean 'sp'?",
    "[{claim: x, equal: [kd, dits]}]": "claims.0.equal.1: 'dits' is not among the suite's objectives; did you mean 'dist'?",
    "[{claim: x, better: kd}]": "claims.0: `better` needs `than`: which losses are compared?",
    "[{claim: x, than: kd}]": "claims.0: `than` needs `better`, `not_worse` or `cheaper`: which losses are compared?",
    "[{claim: x}]": "claims.0: the claim compares nothing: give `better`, `not_worse` or `cheaper` with `than`, or `equal`",
    "[{claim: x, better: kd, than: [ce, ce]}]": "claims.0.than.1: 'ce' is given twice",
    "[{claim: x, better: kd, than: [ce, kd]}]": "claims.0.than: 'kd' is compared with itself",
    "[{claim: x, equal: [kd]}]": "claims.0.equal: ",
    "[{claim: x, equal: kd}]": "claims.0.equal: 'kd': expected a list",
    "[{claim: x, better: kd, than: ce, margin: -1}]": "claims.0.margin: -1: expected a number above 0",
    "[{claim: x, better: kd, than: ce, cost: time}]": "claims.0.cost: `cost` says what is cheaper, and this claim has no `cheaper`",
    "[{claim: x, cheaper: kd, than: ce, cost: tme}]": "claims.0.cost: 'tme': expected 'time' or 'memory'; did you mean 'time'?",
    "[{claim: x, cheaper: kd, than: ce, margin: 1}]": "claims.0.margin: a margin is for accuracies: costs are not tested",
    "[{claim: x, better: kd, than: ce}, {claim: x, better: sp, than: ce}]": "claims.1.claim: the same sentence is another claim, too",
    "3": "claims: 3: expected a list",
    "[3]": "claims.0: 3: expected a mapping",
}


@pytest.mark.parametrize("given", WRONG)
def test_what_is_wrong_with_a_claim_is_said_with_its_line(refusal: Callable[..., str], given: str):
    told = refusal(objectives=OBJECTIVES, claims=given)
    assert WRONG[given] in told and len(told.splitlines()) == 1 and ".yaml:" in told


def test_errors_of_claims_name_their_own_lines(write_suite: Callable[..., Path]):
    path = write_suite(objectives=OBJECTIVES, claims=CLAIMS.replace("[ce, kd]", "[ce, kdd]").replace("than: sp", "than: ps"))
    with pytest.raises(SuiteError) as caught:
        read(path)
    lines = path.read_text().splitlines()
    wanted = [next(place for place, line in enumerate(lines, 1) if word in line) for word in ("kdd", "than: ps")]
    assert [int(error.removeprefix(f"{path}:").partition(":")[0]) for error in caught.value.errors] == wanted


def test_too_many_claims_or_losses_are_refused(refusal: Callable[..., str]):
    many = ", ".join(f"{{claim: c{place}, better: kd, than: ce}}" for place in range(101))
    assert "claims: expected at most 100 claims, not 101" in refusal(objectives=OBJECTIVES, claims=f"[{many}]")
    names = [f"a{place}" for place in range(11)]
    objectives = ", ".join(f"{name}: {{loss: kd, temperature: {place + 1}}}" for place, name in enumerate(names))
    told = refusal(objectives=f"{{{objectives}}}", claims=f"[{{claim: x, equal: [{', '.join(names)}]}}]")
    assert "claims.0.equal: expected at most 10 losses, not 11" in told


def test_a_claim_without_comparisons_is_no_claim_of_a_manifest():
    with pytest.raises(ValueError, match="claims"):
        Manifest.from_json({"schema": 1, "claims": [{"claim": "x", "source": "", "comparisons": []}]})
    assert PaperClaim("x", "", (ClaimComparison("better", "a", "b"),)).margin is None
