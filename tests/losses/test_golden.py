"""What the losses compute, against numbers that the package did not compute."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdbench import parts
from kdbench.losses._base import Batch, Loss, Taps

from . import slow, toys
from .by_loops import LOOPS
from .toys import each
from .values import modules

STORED = Path(__file__).parents[1] / "golden" / "losses.npz"
GOLDEN: list[tuple[str, str, dict[str, Any]]] = [
    ("logits/kd/T4", "kd", {}),
    ("logits/kd/T1", "kd", {"temperature": 1.0}),
    ("logits/kd_logit_standardised/T2", "kd", {"temperature": 2.0, "transform": "zscore"}),
    ("pooled/sp", "sp", {"tap": "pooled"}),
    ("map/sp", "sp", {}),
    ("pooled/cc_taylor/gamma0.4_P2", "cc", {}),
    ("pooled/cc_consecutive_product", "cc", {"kernel": "lag1", "l2": False}),
    ("pooled/rkd_distance", "rkd", {"distance": 1.0, "angle": 0.0}),
    ("pooled/rkd_angle", "rkd", {"distance": 0.0, "angle": 1.0}),
    ("pooled/rkd/wd25_wa50", "rkd", {}),
    ("pooled/cka_linear_biased_hsic", "cka", {"tap": "pooled"}),
    ("map/cka_linear_biased_hsic_flattened", "cka", {}),
] + [
    (
        f"logits/rcka_logits_over_{side}/{key}",
        "rcka",
        {"intra": 0.0, "inter": 0.0, "feature": 0.0, part: 1.0, "centred": False, "gram_norm": norm, "feature_form": form, "negated": True},
    )
    for side, part in (("samples", "intra"), ("classes", "inter"))
    for key, norm, form in (("plain", "none", "gram"), ("l2norm", "row_half", "gram_of_gram"))
]
GOLDEN += [(key, name, options) for name, module in modules().items() for key, options in getattr(module, "FIRST", ())]
"""Key, loss, options. A stored key begins with its case; a loss may have no value in some of them."""

STEMS = ("kd/", "kd_logit", "sp/", "cc_", "rkd", "cka_", "rcka_", *(f"{name}/" for name in modules()))
"""The stored losses that the package has: each of their keys must be in `GOLDEN`."""

with np.load(STORED) as stored:
    NUMBERS = {key: stored[key] for key in stored.files}


def stored_keys() -> list[str]:
    return [key.removesuffix("/value") for key in NUMBERS if key.endswith("/value") and key.split("/", 2)[2].startswith(STEMS)]


def built(name: str, options: dict[str, Any]) -> Loss:
    part = parts.load("loss", name)
    return part.build(part.options(options))


def tap(name: str, tensor: Tensor) -> Taps:
    return Taps(**{"last" if name == "map" else name: tensor})


@each((key, *precision) for key in stored_keys() for precision in ((torch.float64, 1e-9), (torch.float32, 1e-4)))
def test_value_and_gradient_are_those_of_the_released_code(key: str, dtype: torch.dtype, tolerance: float) -> None:
    case, name = key.split("/")[:2]
    (loss, options) = {stored: (loss, options) for stored, loss, options in GOLDEN}[key.split("/", 1)[1]]
    student = torch.tensor(NUMBERS[f"{case}/input/student_{name}"], dtype=dtype, requires_grad=True)
    teacher = torch.tensor(NUMBERS[f"{case}/input/teacher_{name}"], dtype=dtype)
    target = NUMBERS.get(f"{case}/input/target")
    given = Batch(target=None if target is None else torch.tensor(target))
    value = built(loss, options)(tap(name, student), tap(name, teacher), given)
    value.backward()
    assert value.dtype == dtype
    assert toys.near(value.item(), float(NUMBERS[key + "/value"]), tolerance)
    wanted = torch.tensor(NUMBERS[key + "/grad"]).flatten(1)
    # The released PKT gives a sample of zeros a gradient of NaN: ours is finite there, and is compared for the other samples.
    finite = wanted.isfinite().all(1)
    assert student.grad.isfinite().all() and finite.sum() > len(finite) / 2
    wanted = wanted[finite]
    error = (student.grad.flatten(1)[finite] - wanted).norm(dim=1)
    # By sample, for one of them may have a gradient that dwarfs all others.
    scale = wanted.norm(dim=1).clamp_min(wanted.norm(dim=1).median())
    assert (error <= tolerance * scale).all(), error / scale


def test_every_stored_value_of_a_loss_that_we_have_is_compared() -> None:
    assert {key.split("/", 1)[1] for key in stored_keys()} == {key for key, _, _ in GOLDEN}


def wave(function: Any, rows: int, columns: int, step: float = 1.0) -> Tensor:
    return function(step * torch.arange(1, rows * columns + 1, dtype=torch.float64)).reshape(rows, columns)


INPUTS = {
    "pooled": (wave(torch.sin, 5, 3), wave(torch.cos, 5, 4)),
    "one width": (wave(torch.sin, 5, 3), wave(torch.cos, 5, 4)[:, :3]),
    "logits": (2 * wave(torch.sin, 5, 6, 0.7), 3 * wave(torch.cos, 5, 6, 0.9)),
}
FEATURES = {"intra": 0.0, "inter": 0.0, "tap": "pooled", "centred": False, "negated": True}
INTRA = {"inter": 0.0, "feature": 0.0, "intra": 1.0, "centred": False, "negated": True}
INTER = {"intra": 0.0, "feature": 0.0, "inter": 1.0, "centred": False, "negated": True}

# Computed with the released code (sp, cc, rkd, the negated rcka) or from the definition, on sines and cosines.
TABLE: list[tuple[str, dict[str, Any], str, float]] = [
    ("kd", {"temperature": 1.0}, "logits", 1.59563010065),
    ("kd", {"squared_temperature": False}, "logits", 0.176488356996),
    ("kd", {}, "logits", 2.82381371193),
    ("kd", {"temperature": 2.0, "transform": "zscore"}, "logits", 0.775824866942),
    ("sp", {"tap": "pooled"}, "pooled", 0.281225826707),
    ("sp", {"tap": "pooled", "norm": "frobenius"}, "pooled", 0.056185131206),
    ("cc", {}, "pooled", 0.153808375121),
    ("cc", {"l2": False, "reduction": "fro_over_n2"}, "pooled", 0.145330794245),
    ("cc", {"kernel": "bilinear", "l2": False, "reduction": "fro_over_n2"}, "pooled", 0.347215029932),
    ("cc", {"kernel": "rbf"}, "pooled", 0.181541193692),
    ("cc", {"kernel": "lag1", "l2": False}, "one width", 3.87331221274),
    ("rkd", {"distance": 1.0, "angle": 0.0}, "pooled", 0.216653662202),
    ("rkd", {"distance": 1.0, "angle": 0.0, "l2": "both"}, "pooled", 0.216855069823),
    ("rkd", {"distance": 0.0, "angle": 1.0}, "pooled", 0.0769951631743),
    ("rkd", {"distance": 0.0, "angle": 1.0, "l2": "both"}, "pooled", 0.0773903252759),
    ("rkd", {"distance": 0.0, "angle": 1.0, "mean": "valid"}, "pooled", 0.160406589946),
    ("rkd", {"distance": 1.0, "angle": 0.0, "eps": "released"}, "pooled", 0.216653662202),
    ("rkd", {"distance": 0.0, "angle": 1.0, "eps": "released"}, "pooled", 0.0769951631743),
    ("rkd", {"distance": 0.0, "angle": 1.0, "eps": "released", "mean": "valid"}, "pooled", 0.160406589946),
    ("cka", {"tap": "pooled"}, "pooled", 1 - 0.346197565181),
    ("cka", {"tap": "pooled", "estimator": "unbiased"}, "pooled", 1 - 0.0166897177446),
    ("cka", {"tap": "pooled", "estimator": "uncentred"}, "pooled", 1 - 0.297685859925),
    ("cka", {"tap": "pooled", "form": "sqrt"}, "pooled", 1 - 0.58838555827),
    ("cka", {"tap": "pooled", "form": "neg"}, "pooled", -0.346197565181),
    ("rcka", {**FEATURES, "gram_norm": "row_half"}, "pooled", -0.287051405949),
    ("rcka", {**FEATURES, "gram_norm": "row_half", "feature_form": "gram_of_gram"}, "pooled", -0.223521088489),
    ("rcka", {**FEATURES, "centred": True, "negated": False}, "pooled", 1 - 0.346197565181),
    ("rcka", INTRA, "logits", -0.0307395324082),
    ("rcka", INTER, "logits", -0.808979311007),
    ("rcka", {**INTRA, "gram_norm": "row_half"}, "logits", -0.0369753470331),
    ("rcka", {**INTER, "gram_norm": "row_half"}, "logits", -0.838700328235),
]


@each(TABLE)
def test_value_is_that_of_the_table(name: str, options: dict[str, Any], inputs: str, wanted: float) -> None:
    student, teacher = INPUTS[inputs]
    where = "logits" if inputs == "logits" else "pooled"
    value = built(name, options)(tap(where, student), tap(where, teacher)).item()
    # The table has twelve digits.
    assert abs(value - wanted) < 6e-12 * max(1, abs(wanted))


def kd_slowly(temperature: float, factor: float) -> Any:
    return lambda loss, s, t: factor * slow.kd(slow.rows(s.logits), slow.rows(t.logits), temperature)


def cc_with_maps(loss: Any, s: Taps, t: Taps) -> float:
    mapped = [
        slow.linear(slow.rows(x), slow.rows(part.weight), part.bias.tolist())
        for x, part in ((s.pooled, loss.student_embed), (t.pooled, loss.teacher_embed))
    ]
    return slow.neighbours(*mapped)


def rkd_slowly(distance: float, angle: float, *unit: str) -> Any:
    def compute(loss: Any, s: Taps, t: Taps) -> float:
        x, y = (slow.unit(slow.rows(z.pooled)) if side in unit else slow.rows(z.pooled) for side, z in (("s", s), ("t", t)))
        return distance * slow.rkd_distance(x, y) + angle * slow.rkd_angle(x, y)

    return compute


def rcka_slowly(loss: Any, s: Taps, t: Taps) -> float:
    def likeness(x: slow.Rows, y: slow.Rows) -> float:
        return slow.cosine(slow.double_centred(slow.gram(x)), slow.double_centred(slow.gram(y)))

    x, y = slow.rows(s.logits), slow.rows(t.logits)
    features = likeness(slow.rows(s.last), slow.rows(t.last))
    return 15 * (1 - likeness(x, y)) + 15 * (1 - likeness(slow.transposed(x), slow.transposed(y))) + 1 - features


def rcka_as_released(loss: Any, s: Taps, t: Taps) -> float:
    def likeness(x: slow.Rows, y: slow.Rows) -> float:
        return slow.cosine(slow.half_rows(slow.gram(x)), slow.half_rows(slow.gram(y)))

    def similarity(x: Tensor) -> slow.Rows:
        return slow.unit(slow.gram(slow.rows(x)))

    x, y = slow.rows(s.logits), slow.rows(t.logits)
    logits = 15 * likeness(x, y) + 15 * likeness(slow.transposed(x), slow.transposed(y))
    counted = zip(s.stages[1:], t.stages[1:], strict=True)  # there, features[1:]: the first is the stem
    return -logits - sum(likeness(similarity(a), similarity(b)) for a, b in counted)


SLOW: dict[tuple[str, str], Any] = {
    ("kd", "crd"): kd_slowly(4.0, 16.0),
    ("kd", "simkd"): kd_slowly(4.0, 16.0),
    ("kd", "zoo"): kd_slowly(4.0, 16.0),
    ("kd", "mdistiller_imagenet"): kd_slowly(1.0, 1.0),
    ("kd", "rkd_official"): kd_slowly(4.0, 1.0),
    ("sp", "crd"): lambda loss, s, t: slow.sp(slow.rows(s.last), slow.rows(t.last)),
    ("cc", "zoo"): lambda loss, s, t: slow.cc(slow.rows(s.pooled), slow.rows(t.pooled), 0.4, 2),
    ("cc", "crd"): cc_with_maps,
    ("rkd", "crd"): rkd_slowly(25.0, 50.0),
    ("rkd", "official_cls"): rkd_slowly(25.0, 50.0, "s", "t"),
    ("rkd", "official_metric"): rkd_slowly(1.0, 2.0, "t"),
    ("cka", "saha"): lambda loss, s, t: 1 - slow.cosine(*(slow.double_centred(slow.gram(slow.rows(z.last))) for z in (s, t))),
    ("cka", "uncentred"): lambda loss, s, t: 1 - slow.cosine(*(slow.gram(slow.rows(z.last)) for z in (s, t))),
    ("cka", "unnormalised"): lambda loss, s, t: (
        slow.relative_square(*(slow.double_centred(slow.gram(slow.rows(z.last))) for z in (s, t))) / 2
    ),
    ("kd", "lskd"): lambda loss, s, t: 4 * slow.kd(*(slow.standardised(slow.rows(z.logits)) for z in (s, t)), 2.0),
    ("sp", "torchdistill"): lambda loss, s, t: slow.sp(slow.rows(s.last), slow.rows(t.last)),
    ("sp", "frobenius"): lambda loss, s, t: slow.sp(slow.rows(s.last), slow.rows(t.last), slow.whole),
    ("sp", "mmd"): lambda loss, s, t: slow.sp_of_means(slow.rows(s.last), slow.rows(t.last), slow.whole),
    ("sp", "rescaled"): lambda loss, s, t: slow.sp(slow.rows(s.last), slow.rows(t.last)) * 6 / 64,
    ("rkd", "mmrazor"): rkd_slowly(25.0, 50.0, "s", "t"),
    ("rkd", "torchdistill"): lambda loss, s, t: (
        slow.rkd_distance(slow.rows(s.last), slow.rows(t.last)) + 2 * slow.rkd_angle(slow.rows(s.last), slow.rows(t.last))
    ),
    ("cka", "rbf"): lambda loss, s, t: 1 - slow.cosine(*(slow.double_centred(slow.rbf(slow.rows(z.last))) for z in (s, t))),
    ("rcka", "centred"): rcka_slowly,
    ("rcka", "released"): rcka_as_released,
}

SLOW |= {(name, case): compute for name, module in modules().items() for case, compute in getattr(module, "SLOW", {}).items()}


@each(SLOW)
def test_preset_is_what_loops_compute_from_its_definition(name: str, preset: str) -> None:
    loss, pair = toys.bound(name, preset)
    value = loss(pair.student, pair.teacher, toys.batch(6, loss)).item()
    assert toys.near(value, SLOW[name, preset](loss, pair.student, pair.teacher), 1e-10)


def test_sp_over_the_stages_is_the_sum_over_them() -> None:
    s, t = toys.taps(6, 4, 1), toys.taps(6, 6, 2)
    each = [slow.sp(slow.rows(a), slow.rows(b)) for a, b in zip(s.stages, t.stages, strict=True)]
    assert toys.near(built("sp", {"tap": "stages"})(s, t).item(), sum(each), 1e-10)


def test_cka_is_the_squared_distance_of_gram_matrices_and_the_term_of_their_means_a_lower_bound_of_it() -> None:
    s, t = toys.taps(7, 4, 1), toys.taps(7, 6, 2)
    entries, means = (7**2 / 2 * built("sp", {"norm": "frobenius", "compared": one})(s, t).item() for one in ("entries", "means"))
    assert toys.near(built("cka", {"estimator": "uncentred"})(s, t).item(), entries, 1e-10) and 0 < means < entries


def test_cka_with_the_norm_of_the_teacher_is_cka_for_gram_matrices_of_one_norm_and_not_for_others() -> None:
    s, t = toys.taps(7, 4, 1), toys.taps(7, 6, 2)
    for estimator in ("biased", "unbiased", "uncentred"):
        own, teacher = (built("cka", {"estimator": estimator, "norms": norms}) for norms in ("own", "teacher"))
        # The loss is r^2/2 - r CKA + 1/2, r the ratio of the norms: of features divided by the root of r it is 1 - CKA.
        nothing = teacher(s.map(lambda x: 0 * x), t).item()
        linear = [teacher(s.map(lambda x, by=by: by**0.5 * x), t).item() - nothing for by in (1, 2)]
        ratio = (linear[1] - 2 * linear[0]) ** 0.5
        scaled = s.map(lambda x, by=ratio: x / by**0.5)
        assert toys.near(teacher(scaled, t).item(), own(s, t).item(), 1e-9) and toys.near(nothing, 0.5, 1e-12)
        assert abs(teacher(s.map(lambda x: 3 * x), t).item() - teacher(s, t).item()) > 0.1


def test_unbiased_cka_is_the_ratio_of_printed_unbiased_hsic() -> None:
    s, t = toys.taps(7, 4, 1), toys.taps(7, 6, 2)
    k, m = (slow.gram(slow.rows(z.pooled)) for z in (s, t))
    wanted = 1 - slow.hsic1(k, m) / (slow.hsic1(k, k) * slow.hsic1(m, m)) ** 0.5
    assert toys.near(built("cka", {"tap": "pooled", "estimator": "unbiased"})(s, t).item(), wanted, 1e-10)


def test_every_variant_of_every_loss_is_held_by_a_stated_value() -> None:
    held = {(name, built(name, options).variant) for _, name, options in GOLDEN}
    held |= {(name, built(name, options).variant) for name, options, _, _ in TABLE}
    held |= {(name, built(name, dict(one.options)).variant) for name, module in modules().items() for one in module.GOLDEN}
    held |= {(name, toys.made(name, preset).variant) for name, preset in SLOW}
    held |= {(name, built(name, dict(one.options)).variant) for name, module in modules().items() for one in module.GOLDEN}
    held |= {(name, toys.made(name, case).variant) for name, case in toys.cases() if name in LOOPS}
    wanted = {(name, toys.made(name, preset).variant) for name, preset in toys.cases()}
    assert not wanted - held


def test_a_bare_target_serves_for_a_batch() -> None:
    s, t = toys.taps(6, 4, 1), toys.taps(6, 6, 2)
    target = torch.zeros(6, dtype=torch.long)
    assert built("kd", {})(s, t, target) == built("kd", {})(s, t, Batch(target=target))
