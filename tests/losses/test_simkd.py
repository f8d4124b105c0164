"""SimKD's student predicts with the teacher's classifier."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kdbench import parts
from kdbench.losses._base import Loss, Pair, Taps

from . import toys
from .toys import case as named
from .values import modules
from .values._stored import CASES, NUMBERS, computed


class Given(nn.Module):
    """A student whose last map is its input."""

    def forward(self, images: Tensor) -> Taps:
        return Taps(logits=images.mean((2, 3)), last=images)


def test_the_deployed_models_logits_are_those_of_the_released_code() -> None:
    part = parts.load("loss", "simkd")
    for one in modules()["simkd"].GOLDEN:
        for case in CASES:
            with named(one.key, case):
                loss, _, inputs = computed(lambda options: part.build(part.options(options)), one, case, torch.float64)
                model = loss.deployed(Given()).train()
                logits = model(inputs[one.student["last"]]).logits
                assert torch.allclose(logits, torch.tensor(NUMBERS[f"{case}/{one.key}/part/logits"]), rtol=1e-9)


def bound() -> tuple[Loss, Pair]:
    return toys.bound("simkd", "simkd")


def test_the_deployed_model_shares_the_projector_that_is_trained_and_the_classifier_is_not_trained() -> None:
    loss, pair = bound()
    model = loss.deployed(Given())
    trained = {name for name, parameter in loss.named_parameters() if parameter.requires_grad}
    assert trained and all(name.startswith("projector.") for name in trained)
    own = {id(parameter) for parameter in model.parameters()}
    assert own == {id(parameter) for parameter in loss.parameters()}
    model.eval()
    before = model(pair.student.last).logits
    with torch.no_grad():
        loss.projector[-2].bias += 1
    assert not torch.equal(model(pair.student.last).logits, before)
    assert model(pair.student.last).pooled.shape == (6, 6)


def test_a_classifier_that_does_not_take_the_last_map_is_refused() -> None:
    for name in ("simkd", "srrl"):
        pair = toys.pair()
        other = Pair(pair.student, pair.teacher, teacher_head=nn.Linear(9, 5).double())
        assert "the 6 channels of its last map" in (toys.made(name, name).missing(other) or "")
        assert "factor" not in (toys.made(name, name).missing(pair) or "")
