"""From Python: what is promised in `import kdbench`, and lazily."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

import kdbench
from kdbench.errors import PartError


def test_a_loss_made_by_name_is_called_on_taps() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(8, 5, requires_grad=True), torch.randn(8, 9)
    loss = kdbench.make_loss("rkd", distance=25, angle=50)

    value = loss(kdbench.Taps(pooled=student), kdbench.Taps(pooled=teacher))
    value.backward()
    assert value.shape == () and student.grad is not None
    parts = loss.parts(kdbench.Taps(pooled=student), kdbench.Taps(pooled=teacher))
    torch.testing.assert_close(sum(parts.values()), value)


def test_a_preset_can_be_made_by_name() -> None:
    assert kdbench.make_loss("rkd:official_cls").l2 == "both"
    with pytest.raises(PartError, match="the loss 'rkd' has no preset 'official'; did you mean 'official_cls'?"):
        kdbench.make_loss("rkd:official")


@pytest.mark.parametrize(("name", "options", "told"), [("rdk", {}, "did you mean 'rkd'"), ("rkd", {"angel": 1}, "did you mean 'angle'")])
def test_a_typing_error_is_told_with_the_nearest_name(name: str, options: dict[str, int], told: str) -> None:
    with pytest.raises(PartError, match=told):
        kdbench.make_loss(name, **options)


def test_taps_take_a_list_of_stages() -> None:
    taps = kdbench.Taps(logits=torch.zeros(2, 3), pooled=torch.zeros(2, 4), last=torch.zeros(2, 4, 1, 1), stages=[torch.zeros(2, 4, 1, 1)])

    assert taps.has("stages") and not taps.has("preact") and len(taps.tensors()) == 4


def test_importing_kdbench_imports_nothing_heavy() -> None:
    code = "import sys, kdbench; print([one for one in ('torch', 'pandas', 'numpy', 'click') if one in sys.modules])"

    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
