"""AP of other images than those of the test set: by weights, by leaving images out; and does its interval cover what it promises?"""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from kdbench.stats.average_precision import Matches, accumulated, influence, resampled_ap
from kdbench.stats.per_image import seed_by_image
from kdbench.tasks import _ap
from tests.detections import drawn, matched, oracle, precision


@pytest.mark.parametrize("options", [{"decimals": 7}, {"decimals": 7, "crowds": 0.4, "objects": 30}])
def test_an_image_of_weight_three_is_three_images(options):
    predictions, objects = drawn(0, **options)
    truth, draw = _ap.truth_of(objects), np.random.default_rng(1)
    found = matched(predictions, truth)
    for _ in range(3):
        weights = np.bincount(draw.integers(0, found.n_images, found.n_images), minlength=found.n_images)
        copies = np.repeat(np.arange(found.n_images), weights)
        rows = [np.flatnonzero(truth["image"] == image) for image in copies]
        copied = {name: column[np.concatenate(rows)] for name, column in truth.items() if name != "sizes"}
        copied |= {"image": np.repeat(np.arange(len(copies)), [len(one) for one in rows]), "sizes": truth["sizes"][copies]}
        evaluation = oracle({name: column[copies] for name, column in predictions.items()}, copied)
        np.testing.assert_array_equal(accumulated(found, weights), precision(evaluation))
        np.testing.assert_allclose(resampled_ap(found, weights[:, None]), evaluation.stats[0], rtol=1e-14)


def test_many_sets_at_once_are_each_what_they_are_alone(monkeypatch):
    predictions, objects = drawn(1, objects=40)
    found = matched(predictions, _ap.truth_of(objects))
    sets = np.random.default_rng(0).multinomial(found.n_images, [1 / found.n_images] * found.n_images, size=40).T
    sets[:, 0] = 0
    sets[:, 1] = found.positives[:, 0] == 0  # without the first class, which then is in no mean
    whole = resampled_ap(found, sets)
    np.testing.assert_allclose(whole[1:], [np.nanmean(accumulated(found, one)) for one in sets.T[1:]], rtol=1e-12)
    assert np.isnan(whole[0])
    monkeypatch.setattr("kdbench.stats.average_precision.AT_ONCE", 1000)
    np.testing.assert_array_equal(resampled_ap(found, sets), whole)


def test_an_image_counts_by_what_leaving_it_out_changes():
    predictions, objects = drawn(2)
    found = matched(predictions, _ap.truth_of(objects))
    n, ap = found.n_images, np.nanmean(accumulated(found))
    without = np.array([np.nanmean(accumulated(found, np.arange(n) != image)) for image in range(n)])
    parts = influence(found)
    assert parts.mean() == pytest.approx(ap, rel=1e-12)
    np.testing.assert_allclose(parts - parts.mean(), (n - 1) * (without.mean() - without), atol=1e-10)
    assert parts.std(ddof=1) / n**0.5 == pytest.approx(np.sqrt((n - 1) ** 2 / n * without.var(ddof=1)))


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda c: c | {"hits": c["hits"][:, :5]}, "the same detections"),
        (lambda c: c | {"positives": c["positives"][:-1]}, "others than the objects"),
        (lambda c: {name: column[:1] for name, column in c.items()}, "fewer than two images"),
        (lambda c: c | {"labels": c["labels"].astype(float)}, "no whole numbers"),
        (lambda c: c | {"positives": c["positives"] - 100}, "negative"),
        (lambda c: c | {"scores": c["scores"].astype("S8")}, "scores no numbers"),
        (lambda c: c | {"hits": c["hits"].astype(np.int16)}, "no whole numbers"),
        (lambda c: c | {"scores": c["scores"] * np.nan}, "not finite"),
        (lambda c: c | {"ignored": c["hits"]}, "finds an object and is ignored"),
        (lambda c: c | {"hits": c["hits"] << 3}, "a threshold that there is not"),
        (lambda c: c | {"positives": c["positives"] // 3}, "more objects of an image are found"),
    ],
)
def test_columns_that_cannot_be_matches_are_refused(spoil, told):
    predictions, objects = drawn(3)
    truth = _ap.truth_of(objects)
    columns = {**predictions, **_ap.matches(predictions, truth, 3)}
    Matches.of(columns)
    with pytest.raises(ValueError, match=told):
        Matches.of(spoil(columns))


MEANS = (11.0, 1.0, 1.0)
"""Objects of each class in an image, as in BCCD."""


def detectors(draw, images, seeds=(1, 1), means=MEANS):
    """Matches of two detectors (of several seeds each) on the same images, which are easy or hard for both, and for one more than for the
    other. The score goes with the IoU; false detections are more in hard images."""
    easy = draw.normal(size=images)
    positives = draw.poisson(means, (images, len(means)))
    of_image, of_class = (np.repeat(place.ravel(), positives.ravel()) for place in np.indices(positives.shape))
    own, found = draw.normal(size=len(of_image)), []
    for slope, count in zip((1.0, 1.1), seeds, strict=True):
        found.append([])
        for _ in range(count):
            luck = 0.05 * draw.normal() if count > 1 else 0.0
            quality = 0.6 + luck + 0.5 * slope * easy[of_image] + 0.6 * own + 0.5 * draw.normal(size=len(own)) - 0.3 * of_class
            steps = np.clip(np.floor((1 / (1 + np.exp(-quality - 0.8)) - 0.5) / 0.05 + 1), 0, 10).astype(int)
            false = draw.poisson(np.array([8.0, 2.0, 3.0]) * np.exp(-0.3 * easy)[:, None])
            image, label = (np.repeat(place.ravel(), false.ravel()) for place in np.indices(false.shape))
            hits = np.r_[(1 << steps) - 1, np.zeros(len(image), int)].astype(np.uint16)
            scores = np.r_[1.5 * quality + 0.7 * draw.normal(size=len(own)), 1.2 * draw.normal(size=len(image)) - 1.5 - 0.3 * easy[image]]
            rows = np.r_[of_image, image], np.r_[of_class, label]
            found[-1].append(Matches(hits, np.zeros_like(hits), scores.astype(np.float32), *rows, positives))
    return found


@pytest.fixture(scope="module")
def population():
    """AP of the two detectors on 200,000 images."""
    ((one,), (other,)) = detectors(np.random.default_rng(99), 200_000)
    return np.array([one.metrics["hits"], other.metrics["hits"]])


@pytest.mark.slow
@pytest.mark.parametrize(("images", "sets"), [(72, 500), (300, 500)])
def test_the_interval_over_images_covers_the_ap_of_all_images_and_the_difference_of_two_detectors(images, sets, population):
    covered, wide = [], stats.t.ppf(0.975, images - 1) / images**0.5
    for number in range(sets):
        (one,), (other,) = detectors(np.random.default_rng(number), images)
        parts = np.array([one.over_images, other.over_images])
        parts, true = np.vstack([parts, parts[1] - parts[0]]), np.r_[population, population[1] - population[0]]
        covered.append(abs(parts.mean(axis=1) - true) <= wide * parts.std(axis=1, ddof=1))
    shares = np.mean(covered, axis=0)
    print(images, shares)
    assert (abs(shares - 0.95) <= 0.02).all(), shares


@pytest.mark.slow
@pytest.mark.parametrize("n", [3, 5])
def test_the_interval_over_seeds_and_images_covers_the_true_difference(n, population):
    covered, place = [], {"dataset": "d", "teacher": "t", "student": "s"}
    runs = pd.DataFrame(
        [{**place, "objective": "cc" if row < n else "kd", "repeat": row % n, "teacher_seed": 0, "row": row} for row in range(2 * n)]
    )
    asked = pd.DataFrame([{**place, "baseline": "kd", "objective": "cc"}])
    for number in range(150):
        sides = detectors(np.random.default_rng(number), 72, (n, n))
        scores = np.array([one.over_images for side in sides for one in side])
        (line,) = seed_by_image(scores, runs, asked, draws=400).to_dict(orient="records")
        covered.append(line["low_images"] <= population[0] - population[1] <= line["high_images"])
    print(n, np.mean(covered))
    assert np.mean(covered) >= 0.95 - 3 * np.sqrt(0.95 * 0.05 / len(covered))
