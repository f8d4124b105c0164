"""Does the interval for new seeds and new images cover what it promises? And does the seed interval, which does not promise it?"""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from kdbench.stats.per_image import seed_by_image

IMAGES = 200
SHARES = [
    (0.95, 0.05, 0.0),
    (0.7, 0.3, 0.0),
    (0.5, 0.5, 0.0),
    (0.1, 0.9, 0.0),
    (1 / 3, 1 / 3, 1 / 3),
    (0.1, 0.4, 0.5),
    (0.0, 0.3, 0.7),
    (0.5, 0.0, 0.5),
    (0.0, 0.0, 1.0),
]
"""How the variance of the mean difference divides among seeds, images and their interaction."""


def intervals(tables):
    """One interval for each experiment of differences [experiments, seeds, images], all of them at once."""
    experiments, n, images = tables.shape
    rows = np.arange(experiments * n)
    names = [f"s{number}" for number in range(experiments)]
    place = {
        "dataset": "d",
        "teacher": "t",
        "student": np.repeat(names, n),
        "repeat": np.tile(np.arange(n), experiments),
        "teacher_seed": 0,
    }
    runs = pd.concat(
        [pd.DataFrame({**place, "objective": "cc", "row": rows}), pd.DataFrame({**place, "objective": "kd", "row": len(rows)})]
    )
    asked = pd.DataFrame({"dataset": "d", "teacher": "t", "student": names, "baseline": "kd", "objective": "cc"})
    scores = np.vstack([tables.reshape(experiments * n, images), np.zeros((1, images))])
    return seed_by_image(scores, runs, asked, draws=1000)


def normal_differences(draw, experiments, n, shares):
    """True difference 0, and a mean whose variance is 1, divided by `shares`."""
    by_seed, by_image, by_both = shares
    found = np.sqrt(by_both * n * IMAGES) * draw.standard_normal((experiments, n, IMAGES), dtype=np.float32)
    found += np.sqrt(by_seed * n) * draw.standard_normal((experiments, n, 1), dtype=np.float32)
    return found + np.sqrt(by_image * IMAGES) * draw.standard_normal((experiments, 1, IMAGES), dtype=np.float32)


def right_or_wrong(draw, experiments, n):
    """Differences of `correct`: images are easy or hard, for one objective more than for the other, and each network errs on its own."""
    hard = 1 + draw.standard_normal((experiments, 1, IMAGES), dtype=np.float32)
    sides = []
    for _ in range(2):
        own = 0.7 * draw.standard_normal((experiments, 1, IMAGES), dtype=np.float32)
        luck = 0.05 * draw.standard_normal((experiments, n, 1), dtype=np.float32)
        sides.append(hard + own + luck + 0.8 * draw.standard_normal((experiments, n, IMAGES), dtype=np.float32) > 0)
    return sides[0].astype(np.float32) - sides[1]


def covered(found):
    return float(((found["low_images"] <= 0) & (found["high_images"] >= 0)).mean())


def covered_by_seeds(found, n):
    return float((found["difference"].abs() <= stats.t.ppf(0.975, n - 1) * found["se_seeds"]).mean())


def least(experiments):
    """95 % less three standard errors of the simulation."""
    return 0.95 - 3 * np.sqrt(0.95 * 0.05 / experiments)


@pytest.mark.parametrize("n", [3, 5, 10])
def test_the_interval_covers_the_true_difference_of_new_seeds_and_new_images(n):
    draw = np.random.default_rng(n)
    found = [covered(intervals(normal_differences(draw, 150, n, shares))) for shares in SHARES]
    assert min(found) >= least(150) and np.mean(found) >= least(150 * len(SHARES)), found


@pytest.mark.slow
@pytest.mark.parametrize("shares", SHARES, ids=lambda shares: "-".join(f"{share:.2f}" for share in shares))
@pytest.mark.parametrize("n", [3, 10])
def test_the_interval_covers_in_many_experiments(n, shares):
    draw = np.random.default_rng(n)
    found = [covered(intervals(normal_differences(draw, 1000, n, shares))) for _ in range(3)]
    assert np.mean(found) >= least(3000)


@pytest.mark.parametrize("n", [3, 5, 10])
def test_the_interval_covers_with_predictions_that_are_right_or_wrong(n):
    found = intervals(right_or_wrong(np.random.default_rng(n), 500, n))
    assert covered(found) >= least(500)
    assert covered_by_seeds(found, n) < 0.95 - 0.03


@pytest.mark.parametrize(("n", "at_most"), [(3, 0.75), (5, 0.6), (10, 0.55)])
def test_the_interval_over_the_seeds_alone_does_not_cover_new_images(n, at_most):
    found = intervals(normal_differences(np.random.default_rng(n), 300, n, (0.1, 0.9, 0.0)))
    assert covered_by_seeds(found, n) < at_most
    assert covered(found) >= least(300)


def test_where_the_images_add_nothing_the_interval_is_hardly_wider_than_that_over_the_seeds():
    found = intervals(normal_differences(np.random.default_rng(0), 300, 5, (0.5, 0.0, 0.5)))
    half = (found["high_images"] - found["low_images"]) / 2
    assert (half / (stats.t.ppf(0.975, 4) * found["se_seeds"])).median() < 1.03
    # The plain bootstrap counts the interaction three times: its standard error is sqrt(2) times too large here.
    assert np.sqrt((found["se_seeds"] ** 2 + found["se_images"] ** 2).mean()) == pytest.approx(1, abs=0.1)
