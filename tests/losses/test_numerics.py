"""How exactly, how robustly and how cheaply the six relational losses are computed; identities between them."""

from __future__ import annotations

import itertools
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from kdbench import parts
from kdbench.errors import PartError, RefusedError
from kdbench.losses import _gram
from kdbench.losses._base import Loss, Pair, Taps

from . import slow, toys
from .toys import each

FEATURES = {"intra": 0.0, "inter": 0.0, "tap": "pooled"}
RELEASED = {**FEATURES, "centred": False, "gram_norm": "row_half", "feature_form": "gram_of_gram"}
RELATIONAL: list[tuple[str, dict[str, Any]]] = [
    ("rkd", {}),
    ("rkd", {"l2": "both"}),
    ("rkd", {"squared_distances": True, "mean": "valid"}),
    ("sp", {"tap": "pooled"}),
    ("cc", {}),
    ("pkt", {}),
    ("cka", {"tap": "pooled"}),
    ("cka", {"tap": "pooled", "estimator": "unbiased"}),
    ("cka", {"tap": "pooled", "estimator": "uncentred"}),
    ("cka", {"tap": "pooled", "kernel": "rbf"}),
    ("cka", {"tap": "pooled", "form": "sqrt"}),
    ("rcka", FEATURES),
    ("rcka", RELEASED),
]


def built(name: str, options: dict[str, Any]) -> Loss:
    part = parts.load("loss", name)
    return part.build(part.options(options))


def features(n: int, d: int, seed: int, mean: float = 15.0) -> Tensor:
    """Features in clusters, with a mean of `mean` times their standard deviation; exact in float32."""
    centres = toys.random(10, d, seed=seed)[torch.arange(n) % 10]
    return (mean + (toys.random(n, d, seed=seed + 1) + centres) / 2**0.5).float().double()


def value_and_gradient(loss: Loss, x: Tensor, y: Tensor) -> tuple[float, Tensor]:
    x = x.clone().requires_grad_()
    value = loss(Taps(pooled=x), Taps(pooled=y))
    value.backward()
    return value.item(), x.grad.double()


def distance(got: Tensor, wanted: Tensor) -> float:
    return ((got - wanted).norm() / wanted.norm()).item()


@each(RELATIONAL)
def test_float32_gradient_is_that_of_float64_at_full_size(name: str, options: dict[str, Any]) -> None:
    loss, x, y = built(name, options), features(256, 2048, 1), features(256, 2048, 5)
    wanted = value_and_gradient(loss, x, y)
    got = value_and_gradient(loss, x.float(), y.float())
    assert toys.near(got[0], wanted[0], 1e-4)
    assert distance(got[1], wanted[1]) < 1e-4


TRANSLATED = [row for row in RELATIONAL if "translation" in built(*row).laws and row[1].get("l2", "none") == "none"]


@each(TRANSLATED)
def test_fifty_added_to_every_feature_changes_nothing_in_float32(name: str, options: dict[str, Any]) -> None:
    loss, x, y = built(name, options), features(256, 512, 1).float(), features(256, 512, 5).float()
    plain, moved = value_and_gradient(loss, x, y), value_and_gradient(loss, x + 50, y + 50)
    assert toys.near(moved[0], plain[0], 1e-5)
    assert distance(moved[1], plain[1]) < 1e-4


def test_rkd_takes_less_than_a_second_and_300_megabytes() -> None:
    code = """
import resource, time, torch
from kdbench.losses._base import Taps
from kdbench.losses.rkd import RKD
torch.set_num_threads(1)
torch.manual_seed(0)
x, y = torch.randn(256, 2048, requires_grad=True), torch.randn(256, 2048)
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
RKD()(Taps(pooled=x[:8]), Taps(pooled=y[:8])).backward()
before, took = peak(), []
for _ in range(3):
    start = time.perf_counter()
    RKD()(Taps(pooled=x), Taps(pooled=y)).backward()
    took.append(time.perf_counter() - start)
print(min(took), peak() - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, megabytes = map(float, done.stdout.split())
    assert seconds < 1
    assert megabytes < 300


def test_rkd_in_blocks_is_rkd_in_loops() -> None:
    x, y = features(9, 4, 1, mean=0.0), features(9, 5, 2, mean=0.0)
    got = built("rkd", {"distance": 0.0})(Taps(pooled=x), Taps(pooled=y)).item()
    assert toys.near(got, 50 * slow.rkd_angle(slow.rows(x), slow.rows(y)), 1e-10)
    # So many that there are several blocks, the last of them smaller.
    x, y = features(80, 4, 1, mean=0.0), features(80, 5, 2, mean=0.0)
    assert 80**3 % 2**17 and 80**3 > 2**18
    e_s, e_t = (torch.nn.functional.normalize(z[None] - z[:, None], dim=2) for z in (x, y))
    wanted = torch.nn.functional.smooth_l1_loss(e_s @ e_s.mT, e_t @ e_t.mT).item()
    assert toys.near(built("rkd", {"distance": 0.0, "angle": 1.0})(Taps(pooled=x), Taps(pooled=y)).item(), wanted, 1e-10)


def test_rkd_parts_are_named_weighted_and_left_out_at_weight_zero() -> None:
    s, t = toys.taps(6, 4, 1), toys.taps(6, 6, 2)
    both = built("rkd", {}).parts(s, t)
    assert list(both) == ["distance", "angle"]
    assert list(built("rkd", {"angle": 0.0}).parts(s, t)) == ["distance"]
    assert toys.near(built("rkd", {"distance": 1.0}).parts(s, t)["distance"].item() * 25, both["distance"].item(), 1e-12)


@each([(0.0,), (1e-9,), (1e-6,)])
def test_rkd_gradient_stays_small_when_two_samples_meet(twins: float) -> None:
    x, y = features(16, 8, 1, mean=0.0), features(16, 8, 5, mean=0.0)
    ordinary = value_and_gradient(built("rkd", {}), x, y)[1].norm()
    x[1] = x[0] + twins
    assert value_and_gradient(built("rkd", {}), x, y)[1].norm() < 10 * ordinary


def test_rkd_gradient_is_finite_where_the_original_counts_near_neighbours() -> None:
    x, y = features(16, 8, 1, mean=0.0), features(16, 8, 5, mean=0.0)
    x[1] = x[0] + 5e-3 * toys.random(8, seed=9)
    got = value_and_gradient(built("rkd", {}), x, y)[0]
    assert toys.near(got, 25 * slow.rkd_distance(slow.rows(x), slow.rows(y)) + 50 * slow.rkd_angle(slow.rows(x), slow.rows(y)), 1e-9)


@each(RELATIONAL)
def test_a_batch_of_one_is_worth_nothing(name: str, options: dict[str, Any]) -> None:
    value, gradient = value_and_gradient(built(name, options), features(1, 8, 1), features(1, 6, 2))
    assert abs(value) < 1e-12 or name == "cc" and value < 1e-3
    assert gradient.norm() < 1e-12


@each([("biased", 3), ("unbiased", 4)])
def test_cka_of_too_few_samples_is_zero_with_a_zero_gradient(estimator: str, fewest: int) -> None:
    loss = built("cka", {"tap": "pooled", "estimator": estimator})
    for n in range(1, fewest):
        value, gradient = value_and_gradient(loss, features(n, 8, 1), features(n, 6, 2))
        assert value == 0 and gradient.abs().sum() == 0
    assert value_and_gradient(loss, features(fewest, 8, 1), features(fewest, 6, 2))[1].abs().sum() > 0


@each([("biased",), ("unbiased",)])
def test_cka_of_constant_features_is_one_with_a_zero_gradient(estimator: str) -> None:
    x = torch.full((8, 5), 0.1) * torch.arange(1, 6)
    value, gradient = value_and_gradient(built("cka", {"tap": "pooled", "estimator": estimator}), x, features(8, 6, 2).float())
    assert value == 1 and gradient.abs().sum() == 0


def test_cka_is_the_same_from_samples_and_from_features() -> None:
    x, y = features(40, 5, 1), features(40, 7, 2)
    padded = [torch.cat([z, torch.zeros(40, 40, dtype=z.dtype)], 1) for z in (x, y)]
    for estimator in ("biased", "uncentred"):
        assert toys.near(_gram.CKA(estimator)(x, y).item(), _gram.CKA(estimator)(*padded).item(), 1e-12)


def test_cka_of_large_maps_does_not_overflow() -> None:
    x, y = 100 * features(64, 25088, 1, mean=0.0).relu().float(), 100 * features(64, 25088, 5, mean=0.0).relu().float()
    for estimator in ("biased", "unbiased", "uncentred"):
        loss = built("cka", {"tap": "pooled", "estimator": estimator})
        got, wanted = value_and_gradient(loss, x * 1e4, y * 1e4), value_and_gradient(loss, x.double(), y.double())
        assert toys.near(got[0], wanted[0], 1e-4)
        assert distance(got[1] * 1e4, wanted[1]) < 1e-4


def test_sp_is_one_less_the_mean_cosine_of_rows() -> None:
    x, y = features(12, 5, 1, mean=1.0), features(12, 9, 2, mean=1.0)
    cosines = torch.nn.functional.cosine_similarity(x @ x.T, y @ y.T)
    assert toys.near(built("sp", {"tap": "pooled"})(Taps(pooled=x), Taps(pooled=y)).item(), (2 / 12 * (1 - cosines.mean())).item(), 1e-12)


def test_every_loss_but_lag1_is_zero_for_a_student_that_is_its_teacher() -> None:
    same = toys.taps(8, 4, 1)
    for name, preset in (("kd", "crd"), ("sp", "crd"), ("cc", "zoo"), ("rkd", "crd"), ("cka", "saha"), ("rcka", "centred")):
        assert abs(toys.made(name, preset)(same, same).item()) < 1e-12
    assert toys.near(toys.made("rcka", "released")(same, same).item(), -32.0, 1e-12)  # 15, 15, and two of three stages
    assert built("cc", {"kernel": "lag1", "l2": False})(same, same).item() == 0


def test_lag1_of_two_widths_is_refused_unless_they_are_mapped() -> None:
    pair = toys.pair()
    assert "embed" in (built("cc", {"kernel": "lag1"}).missing(pair) or "")
    assert built("cc", {"kernel": "lag1", "embed": 8}).missing(pair) is None


def test_stages_of_different_number_are_refused() -> None:
    pair = toys.pair()
    shorter = Pair(Taps(logits=pair.student.logits, stages=pair.student.stages[1:]), pair.teacher)
    for name in ("sp", "cka"):
        assert "stage by stage" in (built(name, {"tap": "stages"}).missing(shorter) or "")
    assert "stage by stage" in (toys.made("rcka", "released").missing(shorter) or "")
    stem = [replace(side, stages=side.stages[:1]) for side in (pair.student, pair.teacher)]
    assert "no stage is left after the first 1" in (toys.made("rcka", "released").missing(Pair(*stem)) or "")


def test_maps_of_both_sides_are_trained_but_not_the_teacher() -> None:
    loss, pair = toys.bound("cc", "crd")
    teacher = toys.leaves(pair.teacher)
    loss(toys.leaves(pair.student), teacher, toys.batch(6)).backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in loss.parameters())
    assert teacher.pooled.grad is None


def test_a_missing_tap_is_named_with_its_side() -> None:
    with pytest.raises(RefusedError, match="RKD needs the student's 'pooled'"):
        built("rkd", {})(Taps(logits=torch.zeros(2, 3)), toys.taps(2, 4, 1))


def test_rkd_with_the_released_eps_is_ours_where_no_samples_meet_and_explodes_where_they_do() -> None:
    x, y = features(16, 8, 1, mean=0.0), features(16, 8, 5, mean=0.0)
    ours, released = (value_and_gradient(built("rkd", {"eps": eps}), x, y) for eps in ("ours", "released"))
    assert toys.near(ours[0], released[0], 1e-12)
    assert distance(ours[1], released[1]) < 1e-10
    x[1] = x[0]
    assert value_and_gradient(built("rkd", {"eps": "released"}), x, y)[1].norm() > 1e6 * released[1].norm()


def test_rkd_over_distinct_triplets_leaves_out_the_others_even_where_samples_meet() -> None:
    x, y = features(9, 4, 1, mean=0.0), features(9, 5, 2, mean=0.0)
    x[1] = x[0]
    got = built("rkd", {"distance": 0.0, "angle": 1.0, "mean": "valid"})(Taps(pooled=x), Taps(pooled=y)).item()
    assert toys.near(got, slow.rkd_angle(slow.rows(x), slow.rows(y), distinct=True), 1e-10)


@pytest.mark.parametrize("eps", ["ours", "released"])
@pytest.mark.parametrize("mean", ["all", "valid"])
def test_rkd_of_one_drawn_vertex_is_in_the_mean_over_all_of_them_the_whole_loss(
    eps: str, mean: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y = features(7, 4, 1, mean=0.0), features(7, 5, 2, mean=0.0)
    value, gradient = value_and_gradient(built("rkd", {"eps": eps, "mean": mean}), x, y)
    drawn = []
    for vertex in range(7):
        monkeypatch.setattr(torch, "randperm", lambda n, first=vertex: torch.arange(n).roll(-first))
        drawn.append(value_and_gradient(built("rkd", {"eps": eps, "mean": mean, "vertices": 1}), x, y))
    assert toys.near(sum(one for one, _ in drawn) / 7, value, 1e-12)
    assert distance(sum(one for _, one in drawn) / 7, gradient) < 1e-10
    assert len({round(one, 9) for one, _ in drawn}) == 7


def test_rkd_draws_its_vertices_anew_from_torchs_generator_and_all_of_them_when_there_are_no_more() -> None:
    s, t = toys.taps(8, 4, 1), toys.taps(8, 6, 2)
    loss = built("rkd", {"vertices": 3})
    torch.manual_seed(0)
    first, second = loss(s, t).item(), loss(s, t).item()
    torch.manual_seed(0)
    assert loss(s, t).item() == first != second
    assert built("rkd", {"vertices": 8})(s, t).item() == built("rkd", {})(s, t).item()


def test_rkd_draws_vertices_in_several_blocks() -> None:
    x, y = features(80, 4, 1, mean=0.0), features(80, 5, 2, mean=0.0)
    assert 70 * 80**2 > 2 * 2**17
    ours, released = (value_and_gradient(seeded_rkd(eps), x, y) for eps in ("ours", "released"))
    assert toys.near(ours[0], released[0], 1e-10)
    assert distance(ours[1], released[1]) < 1e-9


def seeded_rkd(eps: str) -> Loss:
    torch.manual_seed(0)
    return built("rkd", {"eps": eps, "vertices": 70, "distance": 0.0})


@each(itertools.product(["linear", "rbf"], ["one_minus", "sqrt"]))
def test_cka_of_constant_features_is_one_in_every_form(kernel: str, form: str) -> None:
    x = torch.full((8, 5), 0.1) * torch.arange(1, 6)
    value, gradient = value_and_gradient(built("cka", {"tap": "pooled", "kernel": kernel, "form": form}), x, features(8, 6, 2).float())
    assert value == 1 and gradient.abs().sum() == 0


def test_cka_with_rbf_where_most_samples_are_equal_is_finite() -> None:
    x = features(8, 5, 1)
    x[1:] = x[1]
    value, gradient = value_and_gradient(built("cka", {"tap": "pooled", "kernel": "rbf"}), x, features(8, 6, 2))
    assert 0 < value < 1 and gradient.isfinite().all() and gradient.abs().sum() > 0


@each([(4, 1), (4, 4), (7, 3), (2, 3)])
def test_the_average_over_a_grid_is_adaptive_pooling(size: int, fields: int) -> None:
    x = toys.random(3, 2, size, size + 1, seed=1)
    wanted = torch.nn.functional.adaptive_avg_pool2d(x, fields).flatten(1)
    assert torch.allclose(_gram.matrices(Taps(last=x), "last", fields)[0], wanted, rtol=1e-12)


def test_of_maps_for_the_student_alone_or_a_frozen_one_nothing_of_the_teachers_is_trained() -> None:
    def trained(**options: Any) -> list[str]:
        loss = built("cc", {"kernel": "lag1", **options})
        loss.bind(toys.pair())
        return [name for name, parameter in loss.named_parameters() if parameter.requires_grad]

    student, teacher = ["student_embed.weight", "student_embed.bias"], ["teacher_embed.weight", "teacher_embed.bias"]
    assert trained(embed=8) == [*student, *teacher]
    assert trained(embed=8, embedded="frozen_teacher") == student
    assert trained(embed=6, embedded="student") == student
    assert "teacher's width, 6" in (built("cc", {"kernel": "lag1", "embed": 8, "embedded": "student"}).missing(toys.pair()) or "")


def test_the_official_error_gives_inter_the_weight_of_intra() -> None:
    s, t = toys.taps(6, 4, 1), toys.taps(6, 4, 2)
    right, wrong = (built("rcka", {"intra": 2.0, "inter": 8.0, "official_bugs": bugs}).parts(s, t) for bugs in (False, True))
    assert toys.near(wrong["inter"].item() * 4, right["inter"].item(), 1e-12)
    assert wrong["intra"] == right["intra"] and wrong["feature"] == right["feature"]
    assert list(built("rcka", {"inter": 0.0, "official_bugs": True}).parts(s, t)) == ["intra", "feature"]
    assert list(built("rcka", {"intra": 0.0, "official_bugs": True}).parts(s, t)) == ["feature"]


@each(
    [
        ("cc", {"embedded": "student"}),
        ("rkd", {"vertices": 0}),
        ("cka", {"pool": 0}),
        ("cka", {"pool": "grid"}),
        ("cka", {"form": "sqrt", "estimator": "unbiased"}),
        ("rcka", {"intra": 0.0, "feature": 0.0, "official_bugs": True}),
    ]
)
def test_options_that_mean_nothing_are_refused(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(PartError, match=f"'{name}'"):
        built(name, options)
