"""The table of claims: in every format, on the terminal, from a file; and what it says where nothing can be decided."""

from __future__ import annotations

import io
import shutil
from dataclasses import replace

import pandas as pd

from kdbench.report.claim_table import claim_table
from kdbench.report.write import ReportOptions, from_store, report, report_file
from kdbench.store.from_file import read


def comparison(relation, objective, baseline):
    return {"relation": relation, "objective": objective, "baseline": baseline}


CLAIMS = [
    {"claim": "CKA is better than KD & CE", "source": "Table 1.", "margin": 0.002, "comparisons": [("better", "cka", "kd"), ("better", "cka", "ce")]},
    {"claim": "CE is as good as CKA", "source": "", "margin": 0.002, "comparisons": [("equal", "ce", "cka")]},
    {"claim": "CC is better than KD", "source": "nobody", "margin": 0.002, "comparisons": [("better", "cc", "kd")]},
    {"claim": "CKA is faster", "source": "abstract", "margin": 0.002, "comparisons": [("time", "cka", "cc"), ("not worse", "cka", "kd")]},
]  # fmt: skip


def claiming(made, claims=CLAIMS, **options):
    suite = made(**options)
    suite.manifest["claims"] = [{**one, "comparisons": [comparison(*each) for each in one["comparisons"]]} for one in claims]
    return suite


def printed(suite, **options):
    out = io.StringIO()
    assert not report(suite.store, ["quickstart"], out, options=ReportOptions(**options)).problems
    return out.getvalue()


def test_the_claims_stand_directly_below_the_main_tables_also_in_the_short_report(made):
    suite = claiming(made).finish_all(noise=0.01).write()
    for full in (False, True):
        text = printed(suite, full=full)
        assert text.index("top-1 compared with kd") < text.index("\nClaims\n") < text.index("Supported: CKA is better than KD & CE")
        later = ["\nComparisons of top-1"] if full else ["All tables, with notes"]
        assert all(text.index("\nClaims\n") < text.index(one) for one in later)
    assert "Source: Table 1.\n" in text and "Contradicted: CE is as good as CKA" in text
    assert "cka better than kd" in text and "ce equal to cka" in text and "cka not worse than kd" in text


def test_every_format_and_the_csv_have_the_claims(made):
    suite = claiming(made).finish_all(noise=0.01).write()
    printed(suite, page=True)
    folder = suite.store.suite_folder("quickstart") / "report"
    texts = {name: (folder / name).read_text() for name in ("report.md", "report.tex", "report.html", "tables/claims.tex")}
    assert "### Supported: CKA is better than KD &" in texts["report.md"]
    assert (
        r"Supported: CKA is better than KD \& CE" in texts["report.tex"] and r"\label{tab:quickstart-claims}" in texts["tables/claims.tex"]
    )
    assert "Supported: CKA is better than KD &amp; CE" in texts["report.html"]
    table = pd.read_csv(folder / "claims.csv")
    assert list(table["sentence"].unique()) == [one["claim"] for one in CLAIMS]
    assert {"p_supports", "p_contradicts", "low", "high", "verdict", "claim_verdict", "source", "margin"} <= {*table.columns}


def test_undecided_says_why(made):
    suite = claiming(made).finish_all(noise=0.01).write()
    table = claim_table(from_store(suite.store, suite.checked(), ReportOptions()))
    undecided = {group.title: group.notes for group in table.groups if group.title.startswith("Undecided")}
    assert undecided["Undecided: CC is better than KD"] == ("cc (taylor) better than kd: no verdict, since the tests show neither",)
    (note,) = undecided["Undecided: CKA is faster"]
    assert (
        note
        == "‡ cka faster than cc (taylor): not tested: in 1 of 1 pairs the time of both was not measured on one device (`kdbench profile`)"
    )


def test_runs_that_are_missing_failed_or_collapse_are_named_by_the_labels_of_their_losses(made):
    claims = [
        {**CLAIMS[2], "claim": name, "comparisons": [each]}
        for name, each in {"a": ("better", "cka", "cc"), "b": ("better", "kd", "ce")}.items()
    ]
    suite = claiming(made, claims).finish_all(noise=0.002)
    one = suite.cells(objective="cc")[-1]["id"]
    suite.finish(one, 0.1)
    suite.write()
    found = claim_table(from_store(suite.store, suite.checked(), ReportOptions())).groups[0]
    assert found.notes == ("cka better than cc (taylor): no verdict, since some runs of cc (taylor) collapse",)
    assert found.rows[0][1].interval is None and found.rows[0][2].value is None
    shutil.rmtree(suite.store.file(one, "record.json").parent)
    found = claim_table(from_store(suite.store, suite.checked(), ReportOptions())).groups[0]
    assert found.notes == ("cka better than cc (taylor): no verdict, since not all runs of cc (taylor) are finished",)
    suite.finish(one, None, outcome="diverged")
    found = claim_table(from_store(suite.store, suite.checked(), ReportOptions())).groups[0]
    # The failure of the other side takes nothing from a claim of its own.
    assert found.title == "Supported: a" and found.notes == ()


def test_costs_decide_where_they_are_measured(made):
    suite = claiming(made, CLAIMS[3:]).finish_all(noise=0.002)
    suite.profile("cka", step_ms=10.0)
    suite.profile("cc", step_ms=20.0)
    suite.write()
    (group,) = claim_table(from_store(suite.store, suite.checked(), ReportOptions())).groups
    assert group.title == "Supported: CKA is faster" and group.rows[0][1].text() == "-10.00 ms"
    assert [entry.text() for entry in group.rows[0][2:4]] == ["–", "–"]


def test_a_frame_file_gives_the_same_claims(made, tmp_path):
    suite = claiming(made).finish_all(noise=0.01)
    suite.profile("cka", step_ms=10.0)
    suite.profile("cc", step_ms=20.0)
    suite.write()
    first, second = printed(suite, full=True, images=False), io.StringIO()
    folder = suite.store.suite_folder("quickstart") / "report"
    report_file(read(folder / "frame.csv"), tmp_path / "again", second, options=ReportOptions(full=True, images=False))
    assert "Supported: CKA is faster" in first
    one, other = (text[text.index("\nClaims\n") : text.index("\nComparisons of")] for text in (first, second.getvalue()))
    assert one == other
    assert (tmp_path / "again" / "claims.csv").read_text() == (folder / "claims.csv").read_text()


def test_claims_change_no_other_number(made):
    suite = claiming(made).finish_all(noise=0.01).write()
    whole = from_store(suite.store, suite.checked(), ReportOptions())
    suite.manifest["claims"] = []
    without = from_store(suite.store, suite.checked(), ReportOptions())
    assert without.claims is None and claim_table(without) is None
    pd.testing.assert_frame_equal(whole.overall, without.overall)
    pd.testing.assert_frame_equal(whole.comparisons, without.comparisons)


def test_a_gain_below_the_margin_is_marked_as_such(made):
    claims = [{**CLAIMS[2], "margin": 0.05, "comparisons": [("better", "cka", "kd")]}]
    suite = claiming(made, claims).finish_all(noise=0.002).write()
    (group,) = claim_table(from_store(suite.store, suite.checked(), ReportOptions())).groups
    assert group.title == "Contradicted: CC is better than KD" and group.rows[0][-1].text() == "contradicted (below the margin)"


def test_the_caption_reads_the_difference_as_it_is_printed(made):
    """Of errors, a negative difference is the better one."""
    suite = claiming(made).finish_all(noise=0.01).write()
    study = from_store(suite.store, suite.checked(), ReportOptions())
    (up,) = [text for text in claim_table(study).caption if "better: supported" in text]
    errors = replace(study.manifest.primary, higher_is_better=False)
    study = replace(study, manifest=replace(study.manifest, metrics=(errors, *study.manifest.metrics[1:])))
    (down,) = [text for text in claim_table(study).caption if "better: supported" in text]

    assert "Δ is shown to be above 0, contradicted if it is shown to be below the margin" in up and "above minus the margin, or below" in up
    assert "Δ is shown to be below 0, contradicted if it is shown to be above minus the margin" in down
    assert "below the margin, or above" in down
