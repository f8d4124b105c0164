"""The figures: what they show, that it can be read, and that they do not change by themselves."""

from __future__ import annotations

import itertools
import math
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
from scipy import stats

from kdbench.report.comparison import comparisons, student_runs
from kdbench.report.figures import cost, curves, differences, gradients, heat, seeds
from kdbench.report.figures.draw import KINDS, Drawn, absent, figures
from kdbench.report.figures.placement import placed
from kdbench.report.figures.sheet import printed, round_ticks
from kdbench.report.figures.style import MARKS, SMALL, applied
from kdbench.report.figures.words import plain, width, wrapped
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
    runs = student_runs(table, manifest)
    return Drawn(
        manifest, runs, summarise(runs), comparisons(runs, manifest), costs_of(manifest, keys) if costs else None, pd.DataFrame(history)
    )


def epoch_lines(run, place, epoch, value, draw):
    shared = {name: run[name] for name in ("teacher", "student", "objective", "repeat", "teacher_seed", "id")} | {"role": "student"}
    yield {**shared, "epoch": epoch, "term": "task", "gradient_ratio": None, "test_top1": value * (1 - math.exp(-epoch - 1))}
    terms = () if place == 0 else ("two.angle", "two.distance") if place == 2 else ("one",)
    for term in terms:
        yield {**shared, "epoch": epoch, "term": term, "gradient_ratio": math.exp(draw.normal(place / 2 - 4, 0.2)), "test_top1": None}


def costs_of(manifest, keys):
    rows = []
    for block, (place, key) in itertools.product(manifest["blocks"], enumerate(keys)):
        if key == "ce" and block["teacher"] != manifest["blocks"][0]["teacher"]:
            continue
        step = 100 + 3.0 * place
        line = {
            **block,
            "teacher": None if key == "ce" else block["teacher"],
            "objective": key,
            "label": key,
            "id": "p",
            "state": "measured",
        }
        rows.append({**line, "step_ms": step, "step_ms_q1": step - 2, "step_ms_q3": step + 3, "device": "cpu"})
    return pd.DataFrame(rows)


WIDE_LOST = {(3, TEACHERS[0], 1): "diverged", **{(7, TEACHERS[3], repeat): "failed" for repeat in range(5)}, (5, TEACHERS[3], 2): "failed"}


@pytest.fixture(scope="module")
def wide():
    return study_of(TWELVE, TEACHERS, STUDENTS, lost=WIDE_LOST)


def leaves_of(kind, study):
    with applied("test"):
        return list(kind.leaves(study))


def only(kind, study):
    (leaf,) = leaves_of(kind, study)
    return leaf


def named(axes, prefix):
    return [artist for artist in (*axes.lines, *axes.patches, *axes.texts) if str(artist.get_label()).startswith(prefix)]


def texts_of(figure):
    every = [*figure.texts]
    for axes in figure.axes:
        every += [*axes.texts, *axes.get_xticklabels(), *axes.get_yticklabels()]
    return [text for text in every if text.get_text().strip() and text.get_visible()]


def said(figure):
    return [text.get_text().replace("\n", " ") for text in texts_of(figure)]


def data(line):
    return np.asarray(line.get_xdata(), dtype=float), np.asarray(line.get_ydata(), dtype=float)


def level_bars(axes):
    """The ends of every level interval, by the row that it stands in."""
    found = {}
    for line in axes.lines:
        x, y = data(line)
        if len(x) == 2 and y[0] == y[1] and line.get_transform() == axes.transData:
            found.setdefault(float(y[0]), []).append((float(x[0]), float(x[1])))
    return found


def test_a_suite_of_two_blocks_has_each_figure_once_with_a_panel_a_block():
    study = study_of(teachers=("big", "other"))
    assert absent(study) == {}
    assert list(KINDS) == ["seeds", "differences", "cost", "heat", "curves", "gradients"]
    panels = {name: len(only(kind, study).figure.axes) for name, kind in KINDS.items()}
    # Differences: by block and baseline. Heat: a map and a bar of colours for each baseline.
    assert panels == {"seeds": 2, "differences": 4, "cost": 2, "heat": 4, "curves": 2, "gradients": 2}


def test_every_complete_repeat_is_a_circle_and_every_objective_has_its_mean():
    study = study_of(lost={(2, "big", 3): "diverged"})
    (axes,) = only(seeds, study).figure.axes
    circles = {line.get_label(): data(line)[0] for line in named(axes, "seeds of")}
    assert [len(values) for values in circles.values()] == [5, 5, 4]
    expected = study.students.query("objective == 'kd'").sort_values("repeat")["value"] * 100
    assert circles["seeds of 1"] == pytest.approx(expected.to_numpy())
    diamonds = [data(line)[0][0] for line in axes.lines if line.get_marker() == "D"]
    assert diamonds == pytest.approx((study.summaries.set_index("objective")["mean"][["ce", "kd", "o2"]] * 100).tolist())


def test_a_lost_seed_is_counted_beside_its_row_and_named_in_the_caption():
    leaf = only(seeds, study_of(lost={(2, "big", 3): "diverged", (2, "big", 4): "failed"}))
    assert "3/5†" in said(leaf.figure)
    assert not any("5/5" in text for text in said(leaf.figure))
    assert "of 15 runs 1 diverged, 1 failed" in leaf.caption
    assert "†" not in only(seeds, study_of()).caption


def test_the_interval_of_a_mean_is_student_s():
    study = study_of()
    values = study.students.query("objective == 'kd'")["value"] * 100
    expected = stats.t.interval(0.95, 4, loc=values.mean(), scale=values.sem())
    (axes,) = only(seeds, study).figure.axes
    assert level_bars(axes)[1.0][-1] == pytest.approx(expected)


def test_one_seed_is_a_point_without_interval():
    leaf = only(seeds, study_of(repeats=1))
    (axes,) = leaf.figure.axes
    assert [len(data(line)[0]) for line in named(axes, "seeds of")] == [1, 1, 1]
    # Only the faint lines across the panel, whose ends are shares of it.
    assert level_bars(axes) == {}
    assert "With one repeat there is no interval." in leaf.caption


def test_a_repeat_without_number_is_drawn_as_well():
    study = study_of()
    unnamed = study.students.assign(repeat=pd.Series(pd.NA, index=study.students.index, dtype="Int64"))
    study = replace(study, students=unnamed, summaries=summarise(unnamed))
    (axes,) = only(seeds, study).figure.axes
    for line in named(axes, "seeds of"):
        assert len(set(data(line)[1])) == 5


def test_the_forest_shows_both_intervals_of_each_comparison():
    study = study_of()
    line = study.comparisons.query("baseline == 'ce' and objective == 'kd'").iloc[0] * 1
    axes = only(differences, study).figure.axes[0]
    alone, together = (line["low"] * 100, line["high"] * 100), (line["low_all"] * 100, line["high_all"] * 100)
    assert together[1] - together[0] > alone[1] - alone[0]
    bars = sorted(level_bars(axes)[0.0], key=lambda ends: ends[1] - ends[0])
    assert bars == [pytest.approx(alone), pytest.approx(together)]
    (point,) = named(axes, "difference 0")
    assert data(point)[0] == pytest.approx([line["difference"] * 100])


@pytest.mark.parametrize("verdict", MARKS)
def test_each_verdict_has_its_mark_beside_the_row_and_in_the_key(verdict):
    study = study_of()
    figure = only(differences, replace(study, comparisons=study.comparisons.assign(verdict=verdict))).figure
    beside = [text.get_text() for text in figure.axes[0].texts]
    assert beside == [MARKS[verdict]] * 2
    key = [text.get_text() for text in figure.texts if text.get_label() == "key"]
    assert key == [f"{MARKS[verdict] or 'no mark:'} {verdict}"]


def test_every_mark_is_in_the_font():
    for mark in (*MARKS.values(), "†", "→", "−", "±", "–"):
        assert plain(mark) == mark
    assert plain("漢\x07\n字") == "�� �"


def test_the_margin_is_a_band_where_the_suite_has_one():
    band = named(only(differences, study_of(margin=0.005)).figure.axes[0], "margin")
    assert [(patch.get_x(), patch.get_width()) for patch in band] == [(-0.5, 1.0)]
    leaf = only(differences, study_of(margin=None))
    assert named(leaf.figure.axes[0], "margin") == [] and "margin" not in leaf.caption


def test_an_interval_that_would_squeeze_the_others_is_cut_and_says_so():
    study = study_of(names=("ce", "kd", "a", "b", "c", "d"))
    long = study.comparisons["objective"] == "o5"
    far = study.comparisons.assign(high_all=study.comparisons["high_all"].mask(long, 9.0))
    leaf = only(differences, replace(study, comparisons=far))
    assert leaf.figure.axes[0].get_xlim()[1] < 20
    assert "goes on" in leaf.caption and "goes on" not in only(differences, study).caption


def test_a_comparison_without_pairs_is_a_dash_and_no_point():
    study = study_of(lost={(2, "big", repeat): "failed" for repeat in range(5)})
    axes = only(differences, study).figure.axes[0]
    assert [text.get_text() for text in axes.texts][1] == "–"
    assert named(axes, "difference 1") == []


@pytest.mark.parametrize(
    ("times", "values", "higher", "front"),
    [
        ([1, 2, 3, 4], [10, 9, 12, 12], True, [0, 2]),
        ([1, 2, 3, 4], [10, 9, 12, 8], False, [0, 1, 3]),
        ([2, 1, 1], [5, 5, 6], True, [2]),
        ([3], [1], True, [0]),
    ],
)
def test_the_pareto_front_holds_what_nothing_beats(times, values, higher, front):
    assert cost.pareto(times, values, higher) == front


def test_the_cost_figure_draws_the_front_of_the_means_and_every_name_once():
    study = study_of()
    (axes,) = only(cost, study).figure.axes
    assert len(named(axes, "point")) == 3
    assert sorted(text.get_text() for text in named(axes, "name")) == ["cc", "ce", "kd"]
    (front,) = named(axes, "front")
    x, y = data(front)
    # Each is slower and better than the one before: level, then upright.
    assert x.tolist() == [100, 103, 103, 106, 106]
    assert np.diff(y)[[0, 2]].tolist() == [0, 0] and (np.diff(y)[[1, 3]] > 0).all()


def test_times_of_different_devices_have_no_front():
    study = study_of()
    mixed = study.costs.assign(device=["cpu", "gpu", "cpu"])
    leaf = only(cost, replace(study, costs=mixed))
    assert named(leaf.figure.axes[0], "front") == []
    assert "cannot be compared" in leaf.caption


def test_what_was_not_measured_is_no_point():
    study = study_of()
    measured = study.costs.assign(state=["measured", "missing", "measured"])
    assert len(named(only(cost, replace(study, costs=measured)).figure.axes[0], "point")) == 2
    assert absent(replace(study, costs=study.costs.assign(state="missing"))) == {"cost": "no cost was measured"}


def test_times_far_apart_stand_on_a_logarithmic_axis():
    study = study_of()
    times = study.costs.assign(step_ms=[1.0, 10.0, 100.0], step_ms_q1=np.nan, step_ms_q3=np.nan)
    (axes,) = only(cost, replace(study, costs=times)).figure.axes
    assert axes.get_xscale() == "log"
    assert {"1", "10", "100"} <= {text.get_text() for text in axes.get_xticklabels()}


def test_crowded_names_become_numbers_with_a_key(wide):
    close = wide.costs.assign(step_ms=100 + (wide.costs["step_ms"] - 100) / 100, step_ms_q1=np.nan, step_ms_q3=np.nan)
    first = (close["objective"] == "ce") | (close["objective"] == "o11")
    leaves = leaves_of(cost, replace(wide, costs=close.assign(step_ms=close["step_ms"].where(~first, close["step_ms"] * 2))))
    assert sum(len(leaf.figure.axes) for leaf in leaves) == 8
    for leaf in leaves:
        assert all(text.get_text().isdigit() for axes in leaf.figure.axes for text in named(axes, "name"))
        key = [text.get_text() for text in leaf.figure.texts if text.get_label() == "key"]
        assert key[0] == "1  ce" and f"8  {STRANGE}" in key and len(key) == 12


def test_placed_names_keep_clear_of_each_other_of_points_and_of_what_is_blocked():
    draw = np.random.default_rng(3)
    points = [(float(x), float(y)) for x, y in draw.uniform(0.8, 1.6, (14, 2))]
    names = [f"name {place}" for place in range(14)]
    blocked = [(0.0, 1.2, 3.0, 1.22)]
    puts = placed(points, names, (3.0, 2.4), blocked)
    boxes = [
        (put.corner[0], put.corner[1], put.corner[0] + width(name), put.corner[1] + 0.1) for put, name in zip(puts, names, strict=True)
    ]
    for one, other in itertools.combinations([*boxes, *blocked], 2):
        assert one[0] >= other[2] or other[0] >= one[2] or one[1] >= other[3] or other[1] >= one[3]
    for box, (x, y) in itertools.product(boxes, points):
        assert not (box[0] < x < box[2] and box[1] < y < box[3])
    assert puts == placed(points, names, (3.0, 2.4), blocked)


def test_a_name_wider_than_the_panel_has_no_place():
    assert placed([(0.5, 0.5)], ["x" * 100], (1.0, 1.0)) == [None]


def test_a_heat_box_holds_the_difference_and_its_mark():
    study = study_of()
    line = study.comparisons.query("baseline == 'ce' and objective == 'kd'").iloc[0]
    marked = study.comparisons.assign(verdict="better but below the margin")
    axes = only(heat, replace(study, comparisons=marked)).figure.axes[0]
    assert axes.texts[0].get_text() == f"{100 * line['difference']:+.2f}\n△"


def test_a_box_without_comparison_is_hatched():
    study = study_of(lost={(2, "big", repeat): "failed" for repeat in range(5)})
    leaf = only(heat, study)
    assert [patch.get_hatch() for patch in named(leaf.figure.axes[0], "missing")] == ["////"]
    assert len(named(leaf.figure.axes[0], "box")) == 1
    assert "Hatched" in leaf.caption and "Hatched" not in only(heat, study_of()).caption


def test_blue_is_better_whichever_way_the_metric_goes():
    for lower in (False, True):
        study = study_of(lower=lower)
        gain = -0.01 if lower else 0.01
        better = only(heat, replace(study, comparisons=study.comparisons.assign(difference=gain)))
        red, _, blue, _ = named(better.figure.axes[0], "box")[0].get_facecolor()
        assert blue > red


def test_text_in_a_box_is_legible_on_every_colour():
    def luminance(colour):
        return float(
            np.dot([0.2126, 0.7152, 0.0722], [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in colour])
        )

    for grey in np.linspace(0, 1, 21):
        face = (grey, grey, grey)
        text = 0.0 if heat.ink(face) == "#000000" else 1.0
        light, dark = max(luminance(face), text), min(luminance(face), text)
        assert (light + 0.05) / (dark + 0.05) >= 4.5


def test_a_box_far_from_all_others_does_not_bleach_them():
    study = study_of(names=("ce", "kd", "a", "b", "c"))
    changed = study.comparisons["difference"].mask(study.comparisons["objective"] == "o4", -0.6)
    leaf = only(heat, replace(study, comparisons=study.comparisons.assign(difference=changed)))
    assert leaf.figure.axes[1].get_ylim()[1] < 10
    assert "The colours stop" in leaf.caption


def test_a_curve_is_the_mean_of_its_runs_in_a_band_from_least_to_most():
    study = study_of()
    (axes,) = only(curves, study).figure.axes
    rows = study.histories.query("objective == 'kd' and term == 'task'").groupby("epoch")["test_top1"]
    (line,) = named(axes, "line 1")
    assert data(line)[0].tolist() == [0, 1, 2, 3, 4, 5]
    assert data(line)[1] == pytest.approx((100 * rows.mean()).to_numpy())
    band = axes.collections[1].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == pytest.approx((100 * rows.min().min(), 100 * rows.max().max()))


def test_cross_entropy_alone_stands_in_every_block():
    figure = only(curves, study_of(teachers=("big", "other"))).figure
    assert [len(named(axes, "line 0")) for axes in figure.axes] == [1, 1]


def test_a_curve_ends_where_a_run_diverged():
    leaf = only(curves, study_of(lost={(2, "big", 1): "diverged"}))
    (axes,) = leaf.figure.axes
    (line,) = named(axes, "line 2")
    assert data(line)[0].tolist() == [0, 1, 2]
    assert len(named(axes, "ends early")) == 1 and "A cross" in leaf.caption


def test_runs_that_saw_other_data_are_in_no_curve():
    study = study_of()
    study = replace(study, students=study.students.assign(mixed_data=study.students["objective"] == "kd"))
    (axes,) = only(curves, study).figure.axes
    assert named(axes, "line 1") == [] and len(named(axes, "line 0")) == 1


def test_gradients_are_shares_of_the_task_s_on_a_logarithmic_axis():
    study = study_of()
    leaf = only(gradients, study)
    (axes,) = leaf.figure.axes
    assert axes.get_yscale() == "log"
    assert [data(line)[1].tolist() for line in named(axes, "idle")] == [[1, 1]]
    assert axes.get_ylim()[0] < 1
    rows = study.histories.query("objective == 'kd' and term == 'one'").groupby("epoch")["gradient_ratio"]
    assert data(named(axes, "line 0")[0])[1] == pytest.approx((100 * rows.mean()).to_numpy())
    key = [text.get_text() for text in leaf.figure.texts if text.get_label() == "key"]
    assert key == ["kd", "cc: angle", "cc: distance"]


def test_a_gradient_of_zero_is_drawn_at_the_lower_end():
    study = study_of()
    ratio = study.histories["gradient_ratio"].mask(study.histories["term"] == "two.angle", 0.0)
    leaf = only(gradients, replace(study, histories=study.histories.assign(gradient_ratio=ratio)))
    (axes,) = leaf.figure.axes
    assert set(data(named(axes, "line 1")[0])[1]) == {axes.get_ylim()[0]}
    assert "lower end" in leaf.caption


def test_a_figure_without_data_is_not_drawn_and_says_why():
    study = replace(study_of(costs=False), histories=None)
    assert absent(study) == {"cost": "no cost was measured", "curves": "no run left a history", "gradients": "no run left a history"}
    nothing = study_of(lost={(place, teacher, repeat): "failed" for place in range(3) for teacher in (None, "big") for repeat in range(5)})
    assert set(absent(nothing)) == set(KINDS)
    assert list(figures(nothing)) == []
    once = study_of(epochs=1)
    assert absent(once)["curves"] == "top-1 was evaluated at one epoch only"


def test_a_metric_that_is_no_percentage_and_better_when_lower_says_so():
    for kind in (seeds, differences, cost, heat, curves):
        for leaf in leaves_of(kind, study_of(lower=True)):
            assert any("NLL (lower is better)" in text for text in said(leaf.figure)), kind
            assert "ower is better" in leaf.caption
            assert not any("%" in text or "points" in text for text in said(leaf.figure))


@pytest.mark.parametrize("name", KINDS)
def test_the_widest_case_is_legible(wide, name):
    for leaf in leaves_of(KINDS[name], wide):
        with applied("test"):
            figure = leaf.figure
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


@pytest.mark.parametrize("name", KINDS)
def test_a_small_suite_fits_one_column(name):
    leaf = only(KINDS[name], study_of())
    assert leaf.figure.get_figwidth() == 3.3


def test_many_blocks_go_on_in_further_figures():
    study = study_of(names=("ce", "kd"), teachers=tuple("abcdefg"), students=("one", "two"), repeats=2, epochs=2)
    pages = [[text.get_text() for text in leaf.figure.texts if "→" in text.get_text()] for leaf in leaves_of(seeds, study)]
    assert len(pages) > 1 and max(map(len, pages)) <= 12
    assert sorted(itertools.chain(*pages)) == sorted(f"{teacher} → {student}" for student in ("one", "two") for teacher in "abcdefg")


@pytest.fixture(scope="module")
def strange():
    return study_of(names=("ce", "kd", STRANGE), teachers=("r_$1$ &",), epochs=2)


@pytest.fixture(scope="module")
def written(strange):
    return list(figures(strange))


def test_the_same_data_give_the_same_bytes_tomorrow_in_any_order(strange, written, monkeypatch):
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 86_400)
    frames = ("students", "summaries", "comparisons", "costs", "histories")
    mixed = {name: getattr(strange, name).sample(frac=1, random_state=1) for name in frames}
    assert list(figures(replace(strange, **mixed))) == written
    for one in written:
        assert one.pdf.startswith(b"%PDF") and one.png.startswith(b"\x89PNG") and one.svg.startswith("<svg")
        assert b"CreationDate" not in one.pdf and b"Type3" not in one.pdf


def test_names_stay_text_and_are_no_markup(written):
    assert [one.name for one in written] == list(KINDS)
    for one in written:
        root = ElementTree.fromstring(one.svg)
        texts = ["".join(node.itertext()) for node in root.iter("{http://www.w3.org/2000/svg}text")]
        assert any("$1$" in text for text in texts)
        # Also where a name is broken over lines.
        assert {*STRANGE.split()} <= {word.rstrip(":") for text in texts for word in text.split()}
        assert "<i>" not in one.svg


def test_the_ids_of_an_svg_are_the_figure_s_own(written):
    seen = set()
    for one in written:
        ids = re.findall(r'\bid="([^"]*)"', one.svg)
        assert len(ids) == len(set(ids)) and not seen & set(ids) and not any(" " in name for name in ids)
        seen |= set(ids)
        pointed = re.findall(r'(?:url\(#|href="#)([^)"]+)', one.svg)
        assert pointed and set(pointed) <= set(ids)
        assert "http" not in one.svg.replace("http://www.w3.org/", "")


def test_drawing_leaves_no_setting_behind_and_needs_no_pyplot():
    code = """
import sys
import kdbench.report.figures.draw as draw
assert "matplotlib" not in sys.modules
import matplotlib
matplotlib.rcParams["font.size"] = 31
from kdbench.report.figures.sheet import printed, round_ticks
from kdbench.report.figures.style import applied
# To read the backend is to choose one.
settings = lambda: {name: matplotlib.rcParams[name] for name in matplotlib.rcParams if name != "backend"}
before = settings()
with applied("x"):
    assert matplotlib.rcParams["font.size"] == 7
assert settings() == before
from kdbench.report.figures.sheet import blank, write_out
write_out(blank(1, 1), "x", "x")
print("matplotlib.pyplot" in sys.modules)
"""
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "False"


def test_settings_of_the_caller_hold_between_two_figures():
    import matplotlib

    drawn = figures(study_of(repeats=2))
    with matplotlib.rc_context({"font.size": 31}):
        assert next(drawn).name == "seeds"
        assert matplotlib.rcParams["font.size"] == 31
    drawn.close()


@pytest.mark.parametrize(("low", "high"), [(70.0012, 70.0088), (-1234.5, 987.6), (0, 1), (-0.02, 0.005)])
@pytest.mark.parametrize("inches", [0.4, 0.9, 1.3, 3.0])
def test_the_numbers_on_an_axis_keep_apart(low, high, inches):
    ticks = round_ticks(low, high, inches)
    halves = [width(text) / 2 for text in printed(ticks)]
    at = [(tick - low) / (high - low) * inches for tick in ticks]
    ends = list(zip(at, halves, strict=True))
    assert ticks and all(x + half < after - other for (x, half), (after, other) in itertools.pairwise(ends))
    assert len(ticks) > 1 or inches < 2


def test_the_numbers_on_an_axis_have_the_same_decimals():
    assert printed([-0.5, 0.0, 0.25]) == ["−0.50", "0.00", "0.25"]
    assert printed([-1e-17, 10.0]) == ["0", "10"]


def test_long_words_are_broken_and_nothing_is_lost():
    text = "a_very_long_name_without_spaces and (more) → here"
    for most in (0.3, 0.6, 1.0, 5.0):
        lines = wrapped(text, most)
        assert "".join(lines).replace(" ", "") == text.replace(" ", "")
        assert all(width(line) <= most for line in lines)
    assert wrapped("", 1.0) == [""]
