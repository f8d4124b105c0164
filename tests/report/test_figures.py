"""The figures: what they show, that it can be read, and that they do not change by themselves."""

from __future__ import annotations

import itertools
import math
import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.colors import to_hex, to_rgb
from scipy import stats

from kdbench.manifest import Manifest
from kdbench.report.comparison import comparisons, student_runs
from kdbench.report.figures import differences, draw
from kdbench.report.figures.differences import MARKS, OPEN, named
from kdbench.report.figures.draw import KINDS, FigureData, applied, figures
from kdbench.report.figures.figure_data import MARKERS, palette
from kdbench.report.figures.panels import CUT, ENDS, FLOOR, SMALL, text_width, wrapped
from kdbench.report.figures.values import pareto
from kdbench.stats.repeats import summarise

STRANGE = "a_b 100% & #1 é $x_1$ <i>"
TWELVE = (
    "ce",
    "kd",
    "sp",
    "cc (taylor)",
    "rkd",
    "cka (centred)",
    "rcka (centred, ours)",
    STRANGE,
    "crd",
    "simkd",
    "simkd_with_a_projector_of_three_layers",
)
TWELVE = (*TWELVE, "fitnet/hint-layers_with_1x1_convolution")
TEACHERS = ("resnet32x4_%", "WRN-40-2 & co", "vgg13#bn", "resnet50_pretrained_é")
STUDENTS = ("resnet8x4", "MobileNetV2_half_width")


def value_of(place, student, repeat, draw):
    return 0.70 + 0.05 * student + 0.004 * place + 0.002 * repeat + draw.normal(0, 0.003)


def study_of(
    names=("ce", "kd", "cc"), teachers=("big",), students=("small",), repeats=5, lost=None, lower=False, margin=0.002, epochs=6, costs=True
):
    """A suite's frames. `lost`: the state of a run by (objective's place, teacher, repeat), instead of finished."""
    draw = np.random.default_rng(0)
    rows, history = [], []
    keys = [name if place < 2 else f"o{place}" for place, name in enumerate(names)]
    for (at, student), repeat, (place, name) in itertools.product(enumerate(students), range(repeats), enumerate(names)):
        for teacher in [None] if place == 0 else teachers:
            state = (lost or {}).get((place, teacher, repeat), "finished")
            run = {"dataset": "digits", "teacher": teacher, "student": student, "objective": keys[place], "repeat": repeat}
            run |= {"teacher_seed": None if teacher is None else 0, "id": f"{len(rows):012x}"}
            value = value_of(place, at, repeat, draw)
            value = 1 - value if lower else value
            measured = value if state == "finished" else None
            rows.append(
                {**run, "role": "student", "label": name, "state": state, "why": "", "top1_last": measured, "n_train": 9, "n_test": 9}
            )
            ends = 0 if state == "failed" else epochs // 2 if state == "diverged" else epochs
            history += [line for epoch in range(ends) for line in epoch_lines(run, place, epoch, value, draw)]
    table = pd.DataFrame(rows).assign(data_fingerprint="f00d")
    manifest = {
        "schema": 1,
        "suite": "quickstart",
        "metrics": [{"name": "top1", "label": "NLL" if lower else "top-1", "percent": not lower, "higher_is_better": not lower}],
        "baselines": ["ce", "kd"],
        "repeats": repeats,
        "teacher_seeds": 1,
        "alpha": 0.05,
        "margin": margin,
        "objectives": [{"name": key, "label": name} for key, name in zip(keys, names, strict=True)],
        "blocks": [{"dataset": "digits", "teacher": teacher, "student": student} for student in students for teacher in teachers],
        "cells": [],
    }
    manifest = Manifest.from_json(manifest)
    runs = student_runs(table, manifest)
    compared = comparisons(runs, manifest)
    costs = costs_of(manifest, keys) if costs else None
    # The mean over the pairs, as `stats.overall` has it: these columns without those of a pair.
    overall = compared.drop(columns=["dataset", "teacher", "student"]).drop_duplicates(["baseline", "objective"]) if len(compared) else None
    return FigureData(
        manifest, runs, summarise(runs), compared, costs, pd.DataFrame(history), overall, trials_of(manifest, keys), cka_of(runs)
    )


def drawn(study):
    """The names of the figures whose data are there."""
    return [name for name, content in KINDS.items() if content(study)]


def epoch_lines(run, place, epoch, value, draw):
    shared = {name: run[name] for name in ("teacher", "student", "objective", "repeat", "teacher_seed", "id")} | {"role": "student"}
    yield {**shared, "epoch": epoch, "term": "task", "gradient_ratio": None, "test_top1": value * (1 - math.exp(-epoch - 1))}
    terms = () if place == 0 else ("two.angle", "two.distance") if place == 2 else ("one",)
    for term in terms:
        yield {**shared, "epoch": epoch, "term": term, "gradient_ratio": math.exp(draw.normal(place / 2 - 4, 0.2)), "test_top1": None}


def costs_of(manifest, keys):
    rows = []
    for block, (place, key) in itertools.product(manifest.blocks, enumerate(keys)):
        if key == "ce" and block.teacher != manifest.blocks[0].teacher:
            continue
        step = 100 + 3.0 * place
        line = {
            **vars(block),
            "teacher": None if key == "ce" else block.teacher,
            "objective": key,
            "label": key,
            "id": "p",
            "state": "measured",
        }
        rows.append({**line, "step_ms": step, "step_ms_q1": step - 2, "step_ms_q3": step + 3, "device": "cpu"})
    return pd.DataFrame(rows)


def trials_of(manifest, keys):
    """Six weights of every loss but the first, best at a weight that differs between losses."""
    rows = []
    for block, (place, key) in itertools.product(manifest.blocks, enumerate(keys)):
        for trial in range(6) if place else ():
            factor, score = 0.1 * 10 ** (0.4 * trial), 0.7 - 0.02 * (trial - place % 6) ** 2
            names = {"student": block.student, "teacher": block.teacher, "objective": key, "label": key, "repeat": 0, "id": "t"}
            rows.append({**names, "trial": trial + 1, "score": score, "factor": factor, "chosen": trial == place % 6})
    return pd.DataFrame(rows, columns=["student", "teacher", "objective", "label", "trial", "repeat", "id", "score", "factor", "chosen"])


def cka_of(runs):
    """The similarity of three layers of each finished student's run with four of its teacher."""
    layers = ("stage 1", "stage 2", "pooled", "logits")
    rows = []
    for run in runs[runs["state"] == "finished"].to_dict(orient="records"):
        for (down, teacher_layer), (across, student_layer) in itertools.product(enumerate(layers), enumerate(layers[1:])):
            values = {"teacher_layer": teacher_layer, "student_layer": student_layer, "cka": 0.9 - 0.2 * abs(down - across - 1)}
            rows.append({**{name: run[name] for name in ("dataset", "teacher", "student", "objective", "repeat", "id")}, **values})
    return pd.DataFrame(rows)


WIDE_LOST = {(3, TEACHERS[0], 1): "diverged", **{(7, TEACHERS[3], repeat): "failed" for repeat in range(5)}, (5, TEACHERS[3], 2): "failed"}


@pytest.fixture(scope="module")
def wide():
    return study_of(TWELVE, TEACHERS, STUDENTS, lost=WIDE_LOST)


def pages_of(name, study):
    """The caption and the figures of a kind, before they are rendered."""
    with applied("test"):
        _, caption, pages = KINDS[name](study)
        return caption, list(pages)


def only(name, study):
    caption, (figure,) = pages_of(name, study)
    return figure, caption


def labelled(axes, label):
    return [artist for artist in (*axes.lines, *axes.patches, *axes.collections) if artist.get_label() == label]


def points(axes, label):
    """Where the points of a scatter plot are, and their colours."""
    (found,) = labelled(axes, label)
    return np.asarray(found.get_offsets()), [to_hex(colour) for colour in found.get_facecolors()]


def legend_of(figure):
    return [text.get_text().replace("\n", " ") for legend in figure.legends for text in legend.get_texts()]


def texts_of(figure):
    every = [*figure.texts, *(text for legend in figure.legends for text in legend.get_texts())]
    for axes in figure.axes:
        ticks = [*axes.xaxis._update_ticks(), *axes.yaxis._update_ticks()]  # those that are drawn
        every += [axes._left_title, *axes.texts, *(label for tick in ticks for label in (tick.label1, tick.label2))]
    return [text for text in every if text.get_text().strip() and text.get_visible()]


def words(figure):
    return [text.get_text().replace("\n", " ") for text in texts_of(figure)]


def data(line):
    return np.asarray(line.get_xdata(), dtype=float), np.asarray(line.get_ydata(), dtype=float)


def bars(axes, along="x"):
    """The ends of every interval along an axis, by its place on the other one."""
    found = {}
    for lines in axes.collections:
        for ends in lines.get_segments() if isinstance(lines, LineCollection) else ():
            if not len(ends):
                continue
            (x0, y0), (x1, y1) = ends
            place, low, high = (y0, x0, x1) if along == "x" else (x0, y0, y1)
            if np.isfinite(high - low) and high > low and (y0 == y1 if along == "x" else x0 == x1):
                found.setdefault(float(place), []).append((float(low), float(high)))
    return found


def line_of(axes, study, objective):
    """The lines over epochs that have an objective's colour."""
    color = to_hex(study.looks["palette"][objective])
    return [line for line in axes.lines if to_hex(line.get_color()) == color and len(line.get_xdata()) > 1]


def luminance(colour):
    parts = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in to_rgb(colour)]
    return float(np.dot([0.2126, 0.7152, 0.0722], parts))


def test_a_suite_of_two_pairs_has_each_figure_once_with_a_panel_a_pair():
    study = study_of(teachers=("big", "other"))
    assert list(KINDS) == drawn(study) == ["differences", "heat", "seeds", "cost", "curves", "gradients", "tuning", "cka"]
    panels = {name: len(only(name, study)[0].axes) for name in KINDS}
    # Differences: for all pairs and each pair, by baseline. Heat: a map for each baseline. Tuning: a panel a tuned loss.
    # CKA: a panel a pair and loss.
    assert panels == {"differences": 6, "heat": 2, "seeds": 2, "cost": 2, "curves": 2, "gradients": 2, "tuning": 2, "cka": 6}
    assert "tuning" not in drawn(replace(study, trials=None))


def test_differences_begin_with_all_pairs_where_there_are_several():
    study = study_of(teachers=("big", "other"))
    study = replace(study, overall=study.overall.assign(difference=0.03, n=5, verdict="better"))
    forest, heat = only("differences", study)[0].axes, only("heat", study)[0].axes
    assert [axes.get_title(loc="left").replace("\n", " ").split(",")[0] for axes in forest] == ["all pairs"] * 2 + ["big → small"] * 2 + [
        "other → small"
    ] * 2
    assert points(forest[0], "differences")[0][:, 0] == pytest.approx([3, 3])
    assert [text.get_text().replace("\n", " ") for text in heat[0].get_xticklabels()] == ["all pairs", "big → small", "other → small"]
    assert "+3.00\n▲" in [text.get_text() for text in heat[0].texts]
    for without in (None, study.overall.head(0)):
        assert len(only("differences", replace(study, overall=without))[0].axes) == 4
    assert len(only("differences", study_of())[0].axes) == 2


def test_every_complete_repeat_is_a_point_and_every_objective_has_its_mean():
    study = study_of(lost={(2, "big", 3): "diverged"})
    (axes,) = only("seeds", study)[0].axes
    places, shown = points(axes, "repeats")
    for row, objective in enumerate(("ce", "kd", "o2")):
        mine = abs(places[:, 1] - row) < 0.4
        expected = study.students.query("objective == @objective")["value"].dropna() * 100
        assert sorted(places[mine, 0]) == pytest.approx(sorted(expected))
        assert {color for color, is_mine in zip(shown, mine, strict=True) if is_mine} == {to_hex(study.looks["palette"][objective])}
    means, _ = points(axes, "mean")
    assert means[:, 0] == pytest.approx((study.summaries["mean"] * 100).to_numpy())


def test_a_lost_seed_is_counted_beside_its_row_and_named_in_the_caption():
    figure, caption = only("seeds", study_of(lost={(2, "big", 3): "diverged", (2, "big", 4): "failed"}))
    assert "3/5†" in words(figure)
    assert not any("5/5" in text for text in words(figure))
    assert "†" in caption


def test_the_interval_of_a_mean_is_student_s():
    study = study_of()
    values = study.students.query("objective == 'kd'")["value"] * 100
    expected = stats.t.interval(0.95, 4, loc=values.mean(), scale=values.sem())
    (axes,) = only("seeds", study)[0].axes
    assert bars(axes)[1.0] == [pytest.approx(expected)]
    (across,) = only("cost", study)[0].axes
    assert bars(across, "y")[103.0] == [pytest.approx(expected)]


def test_one_seed_is_a_point_without_interval():
    figure, caption = only("seeds", study_of(repeats=1))
    (axes,) = figure.axes
    assert len(points(axes, "repeats")[0]) == 3
    assert bars(axes) == {}
    assert "A mean over one repeat has no interval." in caption


def test_a_repeat_stands_at_one_height_in_every_row_and_one_without_number_is_drawn_as_well():
    study = study_of(lost={(2, "big", 0): "failed"})
    unnamed = study.students.assign(repeat=pd.Series(pd.NA, index=study.students.index, dtype="Int64"))
    for students in (study.students, unnamed):
        changed = replace(study, students=students, summaries=summarise(students))
        places, _ = points(only("seeds", changed)[0].axes[0], "repeats")
        heights = [sorted(round(y - row, 6) for y in places[:, 1] if abs(y - row) < 0.4) for row in range(3)]
        assert [len(set(row)) for row in heights] == [5, 5, 4] and set(heights[2]) <= set(heights[0]) == set(heights[1])


def test_the_forest_shows_both_intervals_of_each_comparison():
    study = study_of()
    line = study.comparisons.query("baseline == 'ce' and objective == 'kd'").iloc[0] * 1
    axes = only("differences", study)[0].axes[0]
    alone, together = (line["low"] * 100, line["high"] * 100), (line["low_all"] * 100, line["high_all"] * 100)
    assert together[1] - together[0] > alone[1] - alone[0]
    found = sorted(bars(axes)[0.0], key=lambda ends: ends[1] - ends[0])
    assert found == [pytest.approx(alone), pytest.approx(together)]
    places, shown = points(axes, "differences")
    assert places[0] == pytest.approx([line["difference"] * 100, 0])
    assert shown == [to_hex(study.looks["palette"]["kd"]), to_hex(study.looks["palette"]["o2"])]


def test_nothing_that_collapses_has_an_interval():
    study = study_of()
    compared, students = study.comparisons.assign(verdict="unstable"), study.students.copy()
    assert replace(study, comparisons=compared).compared()[["low", "high", "low_all", "high_all"]].isna().all(axis=None)
    students.loc[students.index[students["objective"] == "kd"][0], "value"] = 0.1
    means = replace(study, students=students).means
    assert list(means["low"].isna()) == list(means["objective"] == "kd")


def test_each_verdict_has_its_mark_beside_the_row_and_its_shape_in_the_legend():
    study = study_of()
    for verdict, mark in MARKS.items():
        figure, _ = only("differences", replace(study, comparisons=study.comparisons.assign(verdict=verdict)))
        assert [text.get_text() for text in figure.axes[0].texts] == [mark] * 2
        assert legend_of(figure)[0] == named(verdict) == (verdict.replace(" but", ",") + f" ({mark})" if mark else verdict)
        # Where nothing is decided the intervals are faint; the marker is hollow.
        opacities = {colour[3] for lines in figure.axes[0].collections if isinstance(lines, LineCollection) for colour in lines.get_color()}
        assert (max(opacities) < 0.5) == (verdict in ("undecided", "unstable")) == (verdict in OPEN)
        assert bool(labelled(figure.axes[0], "hollow")) == (verdict not in ("better", "worse"))


def test_the_legends_explain_bands_bars_and_dashed_lines():
    study = study_of()
    expected = {
        "seeds": {"one repeat", "mean", "95 % interval of the mean"},
        "differences": {"95 % interval", "simultaneous interval", "no difference", "margin ±0.2 points"},
        "cost": {"ce", "kd", "cc", "95 % interval of mean", "quartiles of the step", "Pareto front"},
        "heat": {"undecided: no colour"},
        "curves": {"ce", "kd", "cc", "lowest to highest run"},
        "gradients": {"kd", "cc: angle", "cc: distance", "lowest to highest run", "1 %: little effect"},
    }
    for name, entries in expected.items():
        assert entries <= set(legend_of(only(name, study)[0])), name


def test_letters_that_the_font_lacks_and_control_characters_break_no_figure():
    study = study_of(names=("ce", "kd", "漢字 한국어 🙂 נשר\x07\u2028"), teachers=("教師",), students=("ученик αβγ é",), repeats=2)
    found = list(figures(study))
    assert [one.name for one in found] == drawn(study)
    assert "漢字" in found[0].svg and "\x07" not in found[0].svg
    for one in found:
        ElementTree.fromstring(one.svg)


def test_long_names_are_shortened_and_stay_different():
    study = study_of(names=("ce", "kd", "x" * 300, "x" * 200 + "y" * 100, "x" * 299 + "x"))
    names = list(study.names.values())
    assert len(set(names)) == 5 and max(map(len, names)) <= 53
    figure, _ = only("seeds", study)
    assert figure.get_figwidth() == 3.3


def test_the_margin_is_a_band_where_the_suite_has_one():
    figure, _ = only("differences", study_of(margin=0.005))
    assert [(patch.get_x(), patch.get_width()) for patch in labelled(figure.axes[0], "margin")] == [(-0.5, 1.0)]
    figure, caption = only("differences", study_of(margin=None))
    assert labelled(figure.axes[0], "margin") == [] and "margin" not in caption + " ".join(legend_of(figure))


def test_an_interval_that_would_squeeze_the_others_is_cut_and_the_legend_explains_it():
    study = study_of(names=("ce", "kd", "a", "b", "c", "d"))
    long = study.comparisons["objective"] == "o5"
    far = replace(study, comparisons=study.comparisons.assign(high_all=study.comparisons["high_all"].mask(long, 9.0)))
    figure, _ = only("differences", far)
    assert figure.axes[0].get_xlim()[1] < 20 and len(labelled(figure.axes[0], CUT)) == 1
    assert [CUT in legend_of(only("differences", data)[0]) for data in (far, study)] == [True, False]


def test_a_comparison_without_pairs_is_a_dash_and_no_point():
    study = study_of(lost={(2, "big", repeat): "failed" for repeat in range(5)})
    axes = only("differences", study)[0].axes[0]
    assert [text.get_text() for text in axes.texts][1] == "–"
    assert len(points(axes, "differences")[0]) == 1


def test_the_pareto_front_holds_what_nothing_beats():
    for times, values, higher, front in (
        ([1, 2, 3, 4], [10, 9, 12, 12], True, [0, 2]),
        ([1, 2, 3, 4], [10, 9, 12, 8], False, [0, 1, 3]),
        ([2, 1, 1], [5, 5, 6], True, [2]),
        ([3], [1], True, [0]),
    ):
        assert pareto(pd.DataFrame({"step_ms": times, "mean": values}), higher).index.tolist() == front


def test_the_cost_figure_draws_the_front_of_the_means_and_a_point_an_objective():
    study = study_of()
    (axes,) = only("cost", study)[0].axes
    places, shown = points(axes, "points")
    assert places[:, 0].tolist() == [100, 103, 106]
    assert places[:, 1] == pytest.approx((study.summaries["mean"] * 100).to_numpy())
    assert shown == [to_hex(color) for color in study.looks["palette"].values()]
    (front,) = labelled(axes, "front")
    assert front.get_drawstyle() == "steps-post" and data(front)[0].tolist() == [100, 103, 106]


def test_times_of_different_devices_have_no_front():
    study = study_of()
    figure, caption = only("cost", replace(study, costs=study.costs.assign(device=["cpu", "gpu", "cpu"])))
    assert labelled(figure.axes[0], "front") == [] and "Pareto front" not in legend_of(figure)
    assert "cannot be compared" in caption


def test_what_was_not_measured_is_no_point():
    study = study_of()
    measured = replace(study, costs=study.costs.assign(state=["measured", "missing", "measured"]))
    assert len(points(only("cost", measured)[0].axes[0], "points")[0]) == 2
    assert "cost" not in drawn(replace(study, costs=study.costs.assign(state="missing")))


def test_times_far_apart_stand_on_a_logarithmic_axis_with_plain_numbers():
    study = study_of()
    times = study.costs.assign(step_ms=[1.0, 10.0, 100.0], step_ms_q1=np.nan, step_ms_q3=np.nan)
    (axes,) = only("cost", replace(study, costs=times))[0].axes
    assert axes.get_xscale() == "log"
    assert {"1", "10", "100"} <= {text.get_text() for text in axes.get_xticklabels()}


def test_a_heat_box_holds_the_difference_and_its_mark():
    study = study_of()
    line = study.comparisons.query("baseline == 'ce' and objective == 'kd'").iloc[0]
    marked = study.comparisons.assign(verdict="better but below the margin")
    axes = only("heat", replace(study, comparisons=marked))[0].axes[0]
    assert f"{100 * line['difference']:+.2f}\n△" in [text.get_text() for text in axes.texts]


def test_a_box_without_comparison_is_hatched_and_says_nothing():
    study = study_of(lost={(2, "big", repeat): "failed" for repeat in range(5)})
    figure, _ = only("heat", study)
    assert figure.axes[0].patch.get_hatch() and len(figure.axes[0].texts) == 1
    assert "no comparison" in legend_of(figure)
    assert "no comparison" not in legend_of(only("heat", study_of())[0])


def faces(axes):
    """The colours of a map's boxes that are filled."""
    found = []
    for mesh in axes.collections:
        values = np.ma.asarray(mesh.get_array()).ravel()
        found += [mesh.cmap(mesh.norm(value)) for value in values.compressed()]
    return found


def test_blue_is_better_whichever_way_the_metric_goes():
    for lower in (False, True):
        study = study_of(lower=lower)
        better = study.comparisons.assign(difference=-0.01 if lower else 0.01, verdict="better")
        red, _, blue, _ = faces(only("heat", replace(study, comparisons=better))[0].axes[0])[0]
        assert blue > red


def test_a_box_where_nothing_is_decided_is_white_so_that_no_dark_box_lacks_a_mark():
    study = study_of(names=("ce", "kd", "a", "b"))
    for verdict in MARKS:
        for difference in (-0.05, 0.03):
            changed = study.comparisons.assign(difference=difference, verdict=verdict)
            axes = only("heat", replace(study, comparisons=changed))[0].axes[0]
            assert all((to_hex(face) == "#ffffff") == (verdict in OPEN) for face in faces(axes))
            assert all(MARKS[verdict] in text.get_text() for text in axes.texts)


def test_text_in_a_box_is_legible_on_every_colour():
    study = study_of()
    (text, *_) = {to_hex(text.get_color()) for text in only("heat", study)[0].axes[0].texts}
    for end in (differences.WORSE, differences.BETTER):
        assert (luminance(end) + 0.05) / (luminance(text) + 0.05) >= 5


def test_a_box_far_from_all_others_does_not_bleach_them():
    study = study_of(names=("ce", "kd", "a", "b", "c"))
    changed = study.comparisons["difference"].mask(study.comparisons["objective"] == "o4", -0.6)
    figure, _ = only("heat", replace(study, comparisons=study.comparisons.assign(difference=changed)))
    assert figure.axes[0].collections[0].norm.vmax < 10


def test_a_curve_is_the_mean_of_its_runs_in_a_band_from_least_to_most():
    study = study_of()
    (axes,) = only("curves", study)[0].axes
    rows = study.histories.query("objective == 'kd' and term == 'task'").groupby("epoch")["test_top1"]
    (line,) = line_of(axes, study, "kd")
    assert data(line)[0].tolist() == [0, 1, 2, 3, 4, 5]
    assert data(line)[1] == pytest.approx((100 * rows.mean()).to_numpy())
    bands = [
        one.get_paths()[0].vertices[:, 1]
        for one in axes.collections
        if to_hex(one.get_facecolor()[0]) == to_hex(study.looks["palette"]["kd"])
    ]
    assert (bands[0].min(), bands[0].max()) == pytest.approx((100 * rows.min().min(), 100 * rows.max().max()))


def test_cross_entropy_alone_stands_in_every_block():
    study = study_of(teachers=("big", "other"))
    assert [len(line_of(axes, study, "ce")) for axes in only("curves", study)[0].axes] == [1, 1]


def test_a_curve_ends_where_a_run_diverged_and_the_legend_explains_it():
    study = study_of(lost={(2, "big", 1): "diverged"})
    (axes,) = only("curves", study)[0].axes
    (line,) = line_of(axes, study, "o2")
    assert data(line)[0].tolist() == [0, 1, 2]
    assert len(labelled(axes, ENDS)) == 1
    assert ENDS in legend_of(only("curves", study)[0])


def test_runs_that_saw_other_data_are_in_no_curve():
    study = study_of()
    study = replace(study, students=study.students.assign(mixed_data=study.students["objective"] == "kd"))
    (axes,) = only("curves", study)[0].axes
    assert line_of(axes, study, "kd") == [] and len(line_of(axes, study, "ce")) == 1


def test_gradients_are_shares_of_the_task_s_on_a_logarithmic_axis():
    study = study_of()
    (axes,) = only("gradients", study)[0].axes
    assert axes.get_yscale() == "log"
    assert [data(line)[1].tolist() for line in labelled(axes, "idle")] == [[1, 1]]
    assert axes.get_ylim()[0] < 1
    rows = study.histories.query("objective == 'kd' and term == 'one'").groupby("epoch")["gradient_ratio"]
    (line,) = line_of(axes, study, "kd")
    assert data(line)[1] == pytest.approx((100 * rows.mean()).to_numpy())
    # Terms of one objective share its colour and differ in their dashes.
    assert len({str(line.get_linestyle()) for line in line_of(axes, study, "o2")}) == 2


def test_of_many_terms_the_strongest_of_each_loss_is_drawn(monkeypatch):
    monkeypatch.setattr("kdbench.report.figures.epochs.MOST_LINES", 2)
    study = study_of()
    (axes,) = only("gradients", study)[0].axes
    (line,) = line_of(axes, study, "o2")
    rows = study.histories.query("objective == 'o2'").groupby(["id", "epoch"])["gradient_ratio"].max().groupby("epoch")
    assert data(line)[1] == pytest.approx((100 * rows.mean()).to_numpy())
    assert not any(":" in text for text in legend_of(only("gradients", study)[0]) if text.startswith("cc"))


def test_a_gradient_of_zero_is_drawn_at_the_lower_end_and_the_legend_explains_it():
    study = study_of()
    ratio = study.histories["gradient_ratio"].mask(study.histories["term"] == "two.angle", 0.0)
    study = replace(study, histories=study.histories.assign(gradient_ratio=ratio))
    (axes,) = only("gradients", study)[0].axes
    assert set(data(line_of(axes, study, "o2")[0])[1]) == {axes.get_ylim()[0]}
    assert FLOOR in legend_of(only("gradients", study)[0])


def test_a_figure_without_data_is_not_drawn():
    assert drawn(replace(study_of(costs=False), histories=None, trials=None, cka=None)) == ["differences", "heat", "seeds"]
    nothing = study_of(lost={(place, teacher, repeat): "failed" for place in range(3) for teacher in (None, "big") for repeat in range(5)})
    nothing = replace(nothing, trials=None, cka=None)
    assert drawn(nothing) == list(figures(nothing)) == []
    assert "curves" not in drawn(study_of(epochs=1))
    assert drawn(replace(study_of(), comparisons=study_of().comparisons.head(0), overall=None)) == [
        "seeds",
        "cost",
        "curves",
        "gradients",
        "tuning",
        "cka",
    ]
    without = study_of().histories.drop(columns=["gradient_ratio", "test_top1"])
    for histories in (without, without.head(0), without.head(0)[[]]):
        assert drawn(replace(study_of(), histories=histories, trials=None, cka=None)) == ["differences", "heat", "seeds", "cost"]


def test_a_metric_that_is_no_percentage_and_better_when_lower_says_so():
    study = study_of(lower=True)
    for name in ("seeds", "differences", "cost", "heat", "curves"):
        figure, caption = only(name, study)
        shown = [*words(figure), *(text.get_text() for text in (figure._supxlabel, figure._supylabel) if text)]
        assert any("NLL (lower is better)" in text for text in shown), name
        assert caption.count(". ") < 3
        assert not any(re.search("%(?! interval)|points", text) for text in shown), name


def test_a_loss_has_one_colour_in_all_figures():
    study = study_of(names=("ce", "kd", "a", "b"))
    expected = {to_hex(color) for color in study.looks["palette"].values()}
    for name, label in (("seeds", "repeats"), ("cost", "points")):
        places, shown = points(only(name, study)[0].axes[0], label)
        assert set(shown) == expected and len(expected) == 4
    assert [to_hex(study.looks["palette"][name]) for name in ("kd", "o2", "o3")] == points(
        only("differences", study)[0].axes[0], "differences"
    )[1]
    for name in ("curves", "gradients"):
        figure, _ = only(name, study)
        (legend,) = figure.legends
        for handle, text in zip(legend.legend_handles, legend.get_texts(), strict=True):
            key = {label: one for one, label in study.names.items()}.get(text.get_text().partition(":")[0])
            assert key is None or to_hex(handle.get_color()) == to_hex(study.looks["palette"][key])


@pytest.mark.slow
def test_forty_losses_have_forty_colours_that_are_visible_on_white():
    for count in (1, 8, 20, 40):
        shown = [to_rgb(color) for color in palette([str(place) for place in range(count)], ["0", "1"]).values()]
        assert len({to_hex(color) for color in shown}) == count == len(shown)
        assert max(map(luminance, shown)) < 0.45
        # Baselines are grey.
        assert [max(color) - min(color) < 0.01 for color in shown] == [place < 2 for place in range(count)]
    apart = [math.dist(one, other) for one, other in itertools.combinations(map(to_rgb, shown[:16]), 2)]
    assert min(apart) > 0.1
    study = study_of(names=("ce", "kd", *(f"loss {place}" for place in range(18))), repeats=2, epochs=2)
    looks = {(to_hex(study.looks["palette"][name]), study.looks["markers"][name]) for name in study.names}
    assert len(looks) == 20 and {marker for _, marker in looks} == set(MARKERS)
    assert {one.name for one in figures(study)} >= set(KINDS)


@pytest.mark.parametrize("name", KINDS)
def test_the_widest_case_is_legible(wide, name):
    for figure in pages_of(name, wide)[1]:
        with applied("test"):
            assert figure.get_figwidth() == 6.9 and figure.get_figheight() <= 9.5
            canvas = FigureCanvasAgg(figure)
            canvas.draw()
            texts = texts_of(figure)
            assert len(texts) > 30
            assert min(text.get_fontsize() for text in texts) >= SMALL == 7.0
            boxes = [(text.get_text(), text.get_window_extent(canvas.get_renderer())) for text in texts]
            page = figure.bbox
            outside = [text for text, box in boxes if box.x0 < -0.5 or box.y0 < -0.5 or box.x1 > page.x1 + 0.5 or box.y1 > page.y1 + 0.5]
            assert outside == []
            pairs = itertools.combinations(boxes, 2)
            both = [
                (one, other)
                for (one, box), (other, its) in pairs
                if min(box.x1, its.x1) - max(box.x0, its.x0) > 1 and min(box.y1, its.y1) - max(box.y0, its.y0) > 1
            ]
            assert both == []
            # Constrained layout gives up silently where the names leave no room for a panel.
            assert min(axes.get_window_extent().width for axes in figure.axes) > 5


def test_a_small_suite_fits_one_column():
    study = study_of()
    assert [only(name, study)[0].get_figwidth() for name in KINDS] == [3.3] * len(KINDS)


@pytest.mark.slow
def test_many_blocks_continue_in_further_figures_and_of_very_many_the_first_page_is_drawn(monkeypatch):
    study = study_of(names=("ce", "kd"), teachers=tuple("abcdefg"), students=("one", "two"), repeats=2, epochs=2)
    pages = [[axes.get_title(loc="left") for axes in figure.axes] for figure in pages_of("seeds", study)[1]]
    assert len(pages) > 1 and max(map(len, pages)) <= 12
    assert sorted(itertools.chain(*pages)) == sorted(f"{teacher} → {student}" for student in ("one", "two") for teacher in "abcdefg")
    names = [one.name for one in figures(study)]
    assert names[:2] == ["differences", "differences-2"] and len(names) == len(set(names))
    monkeypatch.setattr(draw, "MOST_PAIRS", 13)
    assert [one.name for one in figures(study)] == names
    first = list(figures(study, every_page=False))
    assert [one.name for one in first] == [name for name in names if "-" not in name]
    assert all("Only the first page is drawn, since there are more than 13 pairs; --figures draws all." in one.caption for one in first)


@pytest.fixture(scope="module")
def strange():
    return study_of(names=("ce", "kd", STRANGE), teachers=("r_$1$ &",), epochs=2)


@pytest.fixture(scope="module")
def written(strange):
    return list(figures(strange))


def test_the_same_data_give_the_same_bytes_tomorrow_in_any_order(strange, written, monkeypatch):
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 86_400)
    frames = ("students", "summaries", "comparisons", "costs", "histories", "overall", "cka")
    mixed = {name: getattr(strange, name).sample(frac=1, random_state=1) for name in frames}
    again = list(figures(replace(strange, **mixed)))
    assert [one.name for one in again if one not in written] == []
    for one in written:
        assert one.pdf.startswith(b"%PDF") and one.png.startswith(b"\x89PNG") and one.svg.startswith("<svg")
        assert b"CreationDate" not in one.pdf and b"Type3" not in one.pdf


def test_names_stay_text_and_are_no_markup(written):
    assert [one.name for one in written] == list(KINDS)
    for one in written:
        root = ElementTree.fromstring(one.svg)
        texts = ["".join(node.itertext()) for node in root.iter("{http://www.w3.org/2000/svg}text")]
        assert any("$1$" in text for text in texts) or one.name == "tuning"  # its panels are losses
        # Also where a name is broken over lines.
        assert {"$x_1$", "100%"} <= {word.rstrip(":") for text in texts for word in text.split()}
        assert "<i>" not in one.svg


def test_drawing_needs_no_display_keeps_no_figure_and_leaves_no_setting_behind():
    code = """
import sys
import kdbench.report, kdbench.report.write
assert not {"matplotlib", "seaborn"} & set(sys.modules)
import matplotlib
matplotlib.rcParams["font.size"] = 31
# To read the backend is to choose one.
settings = lambda: {name: matplotlib.rcParams[name] for name in matplotlib.rcParams if name != "backend"}
before = settings()
import kdbench.report.figures.draw as draw
from kdbench.report.figures.panels import legend_line, panel_figures
with draw.applied("x"):
    assert matplotlib.rcParams["font.size"] == 7
    (figure,) = panel_figures([("x", lambda axes: None)], 1.0, 1, ("x", "y"), [legend_line("a")])
    draw.rendered(figure, "x")
assert settings() == before
import matplotlib.pyplot
print(matplotlib.pyplot.get_fignums())
"""
    environment = {**{name: value for name, value in os.environ.items() if name != "DISPLAY"}, "MPLBACKEND": "TkAgg"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


def test_settings_of_the_caller_hold_between_two_figures():
    import matplotlib

    found = figures(study_of(repeats=2))
    with matplotlib.rc_context({"font.size": 31}):
        assert next(found).name == "differences"
        assert matplotlib.rcParams["font.size"] == 31
    found.close()


def test_long_words_are_broken_and_nothing_is_lost():
    text = "a_very_long_name_without_spaces and (more) → here"
    for most in (0.3, 0.6, 1.0, 5.0):
        lines = wrapped(text, most)
        assert re.sub(r"\s", "", lines) == text.replace(" ", "")
        assert text_width(lines) <= most
    assert wrapped("simkd_with_three_layers", 1.0) == "simkd_with_three_\nlayers"
    assert wrapped("", 1.0) == ""


def test_a_map_of_layers_has_the_mean_over_runs_in_the_order_of_the_network_and_one_scale():
    study = study_of(names=("ce", "kd"), repeats=2)
    first = study.cka["repeat"] == 0
    more = study.cka.assign(cka=study.cka["cka"].where(first, study.cka["cka"] - 0.1)).replace({"stage 2": "stage 10"})
    for cka in (more, more.sample(frac=1, random_state=0)):
        panels = only("cka", replace(study, cka=cka))[0].axes
        assert [axes.get_title(loc="left") for axes in panels] == ["big → small: ce", "big → small: kd"]
        for axes in panels:
            assert [text.get_text() for text in axes.get_yticklabels()] == ["stage 1", "stage 10", "pooled", "logits"]
            assert [text.get_text() for text in axes.get_xticklabels()] == ["stage 10", "pooled", "logits"]
            assert [text.get_text() for text in axes.texts[:4]] == ["0.65", "0.45", "0.25", "0.85"]
            (mesh,) = axes.collections
            assert mesh.get_clim() == (0, 1)
    assert KINDS["cka"](replace(study, cka=None)) is None
