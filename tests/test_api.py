"""From Python: what is promised in `import kdbench`, and lazily."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import kdbench
from kdbench.errors import PartError

README = (Path(__file__).parents[1] / "README.md").read_text()


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


def test_the_readmes_own_loss_and_suite_are_planned_and_trained_as_they_stand(tmp_path: Path) -> None:
    from kdbench.plan import matrix, probe
    from kdbench.plan.suite import read

    suite = README.split("```yaml\n")[1].split("```")[0]
    source = README.split("```python\n")[1].split("```")[0]
    (tmp_path / "margin.py").write_text(source)
    (tmp_path / "mine.yaml").write_text(suite)

    plan = matrix.expand(read(tmp_path / "mine.yaml"))
    probe.probe(plan)
    assert len(plan.cells) == 1 + 5 * 11
    assert len(source.strip().splitlines()) <= 25

    loss = plan.suite.objectives["mine"].config["terms"][0]
    assert loss["loss"] == "margin.py:Margin" and loss["weight"] == 0.5
    made = kdbench.make_loss(f"{tmp_path / 'margin.py'}:Margin")
    student = torch.randn(4, 3, requires_grad=True)
    made(kdbench.Taps(logits=student), kdbench.Taps(logits=torch.randn(4, 3)), torch.tensor([0, 1, 2, 0])).backward()
    assert student.grad is not None and torch.isfinite(student.grad).all()


def test_the_readmes_models_are_planned_as_they_stand(tmp_path: Path) -> None:
    from kdbench import parts
    from kdbench.plan import matrix, probe
    from kdbench.plan.suite import read

    net = parts.load("model", "cifar_resnet").build({"depth": 110})
    net.build((3, 32, 32), 100)
    torch.save({"epoch": 240, "model": net.state_dict()}, tmp_path / "ckpt_epoch_240.pth")
    rest = "dataset: cifar100\nrecipe: crd\nobjectives: [kd]\nrepeats: 1\n"
    (tmp_path / "models.yaml").write_text(rest + README.split("```yaml\n")[2].split("```")[0])

    plan = matrix.expand(read(tmp_path / "models.yaml"))
    probe.probe(plan)
    theirs = plan.suite.teachers["theirs"]
    assert theirs.recipe["epochs"] == 0 and theirs.declared == (0.7431, 0.005)
    assert len(plan.cells) == 3 + 3 * 2


def test_the_readme_states_the_cells_of_every_suite_that_ships() -> None:
    from kdbench.plan import matrix
    from kdbench.plan.suite import read

    suites = sorted((Path(__file__).parents[1] / "suites").glob("*.yaml"))
    counts = {path.stem: len(matrix.expand(read(path)).cells) for path in suites}
    stated = {
        line.split("`")[1]: int(line.rstrip(" |").rpartition("|")[2])
        for line in README.splitlines()
        if line.startswith("| `") and line.rstrip(" |")[-1].isdigit()
    }

    assert stated == counts
