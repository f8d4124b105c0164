"""A trained net for those who have no kdbench."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from kdbench import parts
from kdbench.cli import main
from kdbench.errors import KdbenchError
from kdbench.plan.matrix import Plan
from kdbench.store import Store
from kdbench.train.build import load_data, make_dataset, make_model, make_task
from kdbench.train.export import export
from kdbench.train.teacher import load_weights

NETS = """
small_mobile: {widths: [4, 6]}
cifar_resnet8:
cifar_wrn_16_1:
cifar_mobilenetv2:
cifar_shufflenetv1:
cifar_shufflenetv2:
mobilenetv1: {width: 0.25}
vgg: {model: cifar_vgg8, input_size: 16}
resnet10t: {stem: small, drop_rate: 0.1, mean: [0.3], std: [0.4], input_size: 16}
vit: {model: vit_tiny_patch16_224, patch_size: 2, embed_dim: 16, depth: 1, num_heads: 2}
swin: {model: swin_tiny_patch4_window7_224, stem: small, embed_dim: 8, depths: [1, 1], num_heads: [1, 2], input_size: 16}
own: {model: "own.py:Own", width: 5}
"""

OWN = '''
import torch
from torch import Tensor, nn

from kdbench.losses._base import Taps
from kdbench.models._base import Model


class Own(Model):
    """One layer."""

    def __init__(self, *, width: int = 3):
        super().__init__()
        self.width = width

    def build(self, inputs, outputs):
        self.hidden = nn.Linear(inputs[0] * inputs[1] * inputs[2], self.width)
        self.out = nn.Linear(self.width, outputs)

    def forward(self, inputs: Tensor) -> Taps:
        pooled = torch.relu(self.hidden(inputs.flatten(1)))
        return Taps(logits=self.out(pooled), pooled=pooled)
'''

ELSEWHERE = """
import importlib.util, json, sys
import numpy as np, torch

sys.modules["kdbench"] = None  # whoever asks for it is told that there is none
torch.set_num_threads(1)
told = {}
for folder in sys.argv[2:]:
    spec = importlib.util.spec_from_file_location("net", f"{folder}/net.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    about = json.load(open(f"{folder}/about.json"))
    test = np.load(sys.argv[1])
    mean, std = (torch.tensor(about["normalisation"][key]).view(-1, 1, 1) for key in ("mean", "std"))
    images = torch.from_numpy(test["images"]).float().div_(16.0).sub_(mean).div_(std)
    net, right = module.load(), 0
    with torch.no_grad():
        for start in range(0, len(images), 256):
            said = net(images[start : start + 256])
            said = said if isinstance(said, torch.Tensor) else said.logits
            labels = torch.from_numpy(test["labels"][start : start + 256])
            right += int((said.argmax(1) == labels).sum())
    told[folder] = right / len(images)
print(json.dumps(told))
"""


SCENES = {
    "dataset": "{name: digit_scenes, images: 24, test_images: 20, sides: [72, 108]}",
    "recipe": "{name: small_detector, epochs: 3, batch_size: 4}",
    "teachers": "{big: {model: fcos_test_resnet}}",
    "objectives": "[detection]",
    "min_ap": "0",
    "repeats": "1",
    "baselines": None,
}
DETECTORS = {
    "fcos": "width: 32, extra_levels: p6p7_from_c5, fpn_norm: group, head_convs: 1, drop_path_rate: 0.1, score_threshold: 0.0",
    "retinanet": "width: 16, extra_levels: max_pool, anchor_sizes: [12, 24, 48, 96], head_norm: batch, body_norm_eps: 0.001, "
    "mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225], score_threshold: 0.0",
    "faster_rcnn": "width: 16, anchor_sizes: [8, 16, 32, 64, 128], regions: 16, head_convs: 1, head_norm: batch, head_width: 32, "
    "score_threshold: 0.0",
}

FINDS = """
import importlib.util, json, sys
import torch

sys.modules["kdbench"] = None
torch.set_num_threads(1)
spec = importlib.util.spec_from_file_location("net", "out/net.py")
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
net = module.load()
with torch.no_grad():
    found = [net([one / 255 for one in images]) for images in torch.load("images.pth")]
torch.save(found, "found.pth")
print(type(net).__module__)
"""


@pytest.mark.parametrize("kind", ["fcos", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("retinanet", "faster_rcnn"))])
def test_a_detector_reloads_without_kdbench_as_torchvisions_own_finds_the_same_to_the_last_bit_and_has_its_recorded_ap(
    kind: str, plan_of: Callable[..., Plan], train: Callable[..., int], store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(**(SCENES | {"students": f"{{small: {{model: {kind}, body: test_resnet, {DETECTORS[kind]}}}}}"}))
    (cell,) = (row.cell for row in plan.rows if row.role == "student")
    assert train(plan, [cell.id]) == 0
    record = store.record(cell.id)
    assert record
    export(store, cell.id, tmp_path / "out")

    data, task = load_data(cell, tmp_path, torch.device("cpu")), make_task(cell)
    places = [index for index, _ in data.in_order(data.size("test"))]
    batches = [data.batch("test", index)[0] for index in places]
    assert len(batches) == 2, "the images of a call are padded to the largest"
    pixels = []
    for index, inputs in zip(places, batches, strict=True):
        read = data.readers["test"].read(index, None)  # type: ignore[attr-defined]
        pixels.append([one[:, :height, :breadth] for one, (height, breadth) in zip(read, inputs.sizes, strict=True)])
    torch.save(pixels, tmp_path / "images.pth")
    done = subprocess.run([sys.executable, "-c", FINDS], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"torchvision.models.detection.{kind}"

    first = json.loads((tmp_path / "out" / "about.json").read_text())["label_of_first_class"]
    assert first == (kind == "faster_rcnn") and f"{first} to {first + 2} are the classes" in (tmp_path / "out" / "net.py").read_text()
    model, rows = make_model(cell, make_dataset(cell), task), []
    model.load_state_dict(load_weights(store, record))
    model.eval()
    for inputs, each in zip(batches, torch.load(tmp_path / "found.pth"), strict=True):
        said = [(one["boxes"], one["scores"], one["labels"] - first) for one in each]
        for mine, its in zip(model.detect(inputs), said, strict=True):  # type: ignore[operator]
            assert len(its[0]) and all(map(torch.equal, mine, its))
        rows.append(task.predict(SimpleNamespace(detect=lambda _, said=said: said, outputs=3), inputs))  # type: ignore[arg-type]
    predictions = {name: np.concatenate([row[name].numpy() for row in rows]) for name in rows[0]}
    assert task.measure(predictions, task.true_labels(data.targets("test")))["ap"] == record.result["metrics"]["ap_last"] > 0

    monkeypatch.setattr(type(model), "rows_of_classes", lambda self: {})
    with pytest.raises(KdbenchError, match="does not define `rows_of_classes`, which says whether 0 is a label of the background"):
        export(store, cell.id, tmp_path / "unclear")


@pytest.mark.slow
def test_every_kind_of_net_reloads_without_kdbench_and_gives_its_recorded_top1_exactly(
    plan_of: Callable[..., Plan], train: Callable[..., int], store: Store, tmp_path: Path
) -> None:
    (tmp_path / "own.py").write_text(OWN)
    plan = plan_of(students=NETS, objectives="[ce]", repeats="1", recipe="{name: short, epochs: 2, batch_size: 16, milestones: [1]}")
    ids = [row.cell.id for row in plan.rows if row.role == "student"]
    assert train(plan, ids) == 0
    data = load_data(plan.rows[-1].cell, tmp_path, torch.device("cpu"))
    np.savez(tmp_path / "test.npz", images=data.test.pixels.numpy(), labels=data.test.labels.numpy())  # type: ignore[attr-defined]

    for cell_id in ids:
        told = CliRunner().invoke(main, ["export", cell_id[:8], "--results", str(store.root), "--to", str(tmp_path / cell_id)])
        assert told.exit_code == 0, told.output
        assert {Path(line).name for line in told.output.split()} == {"weights.pth", "net.py", "about.json"}
    (tmp_path / "elsewhere.py").write_text(ELSEWHERE)
    command = [sys.executable, "elsewhere.py", "test.npz", *ids]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    recorded = {cell_id: store.record(cell_id).result["metrics"]["top1_last"] for cell_id in ids}  # type: ignore[union-attr]
    assert json.loads(done.stdout) == recorded
    assert len(set(recorded.values())) > len(ids) / 2, "a test of nets that all say the same would say little"
    shipped = {name for name in parts.names("model") if name != "timm"}
    assert shipped <= {plan.cells[cell_id].config["student"]["name"] for cell_id in ids} | set(DETECTORS)


def test_timm_itself_loads_the_weights_of_its_own_nets(
    plan_of: Callable[..., Plan], train: Callable[..., int], store: Store, tmp_path: Path
) -> None:
    import timm

    plan = plan_of(
        students="[resnet10t]", objectives="[ce]", repeats="1", recipe="{name: short, epochs: 1, batch_size: 16, milestones: []}"
    )
    cell_id = plan.rows[-1].cell.id
    train(plan, [cell_id])
    weights, *_ = export(store, cell_id, tmp_path / "out")

    net = timm.create_model("resnet10t", num_classes=10, in_chans=1, checkpoint_path=str(weights))
    assert torch.equal(net.state_dict()["fc.bias"], torch.load(weights, weights_only=True)["fc.bias"])


def test_what_is_not_finished_cannot_be_exported(
    plan_of: Callable[..., Plan], train: Callable[..., int], store: Store, tmp_path: Path
) -> None:
    plan = plan_of()
    train(plan, [])

    with pytest.raises(KdbenchError, match="is not finished: there is nothing to export"):
        export(store, plan.rows[-1].cell.id, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_file_that_needs_more_of_the_house_is_refused(
    plan_of: Callable[..., Plan], train: Callable[..., int], store: Store, tmp_path: Path
) -> None:
    (tmp_path / "own.py").write_text(OWN.replace("import Taps", "import Batch, Taps").replace("inputs: Tensor", "inputs: Tensor | Batch"))
    plan = plan_of(students="{own: {model: 'own.py:Own'}}", objectives="[ce]", repeats="1")
    cell_id = plan.rows[-1].cell.id
    train(plan, [cell_id])

    with pytest.raises(KdbenchError, match="takes Batch from kdbench, which an exported file cannot"):
        export(store, cell_id, tmp_path / "out")
