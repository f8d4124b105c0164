"""The nets of the literature for ImageNet are those of mdistiller, whose code made tests/golden/imagenet_nets.json."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch

from kdbench.datasets._base import Dataset
from kdbench.errors import KdbenchError
from tests.test_cifar_models import built, close, fill, hashed

GOLDEN = json.loads((Path(__file__).parent / "golden" / "imagenet_nets.json").read_text())["nets"]["mobilenetv1"]


def test_mobilenetv1_has_the_parameters_keys_and_shapes_of_the_literature_and_computes_what_it_computes() -> None:
    with torch.device("meta"):
        model = built("mobilenetv1", outputs=1000).double()
    # Source: convolutions, norms and classifier of Howard et al. 2017, Table 1, counted by running mdistiller's code.
    assert sum(weight.numel() for weight in model.parameters()) == 4_231_976 == GOLDEN["parameters"]
    layout = "\n".join(f"{key} {'x'.join(map(str, tensor.shape))}" for key, tensor in model.state_dict().items())
    assert hashlib.sha256(layout.encode()).hexdigest()[:16] == GOLDEN["layout"]
    model.to_empty(device="cpu")
    fill(model)
    images = (2 * hashed("input", 2 * 3 * 224 * 224) - 1).reshape(2, 3, 224, 224)
    for mode in ("eval", "train"):  # the second changes the statistics of the normalisation
        with torch.no_grad():
            taps = model.train(mode == "train")(images)
        golden = GOLDEN[mode]
        assert taps.logits is not None and taps.pooled is not None
        close(taps.logits[0, :4].tolist(), golden["logits"], taps.logits.abs().max().item(), mode)
        close([taps.pooled.sum().item()], [golden["pooled"]], 0, mode)
        for name, ours in (("stages", taps.stages), ("preact", taps.preact)):  # ours begin with the stem
            close([one.sum().item() for one in ours[1:]], golden[name], sum(one.abs().sum().item() for one in ours), mode)


def test_mobilenetv1_has_the_maps_of_its_paper_and_costs_what_the_paper_states() -> None:
    from kdbench.plan.probe import probe_model

    class Images(Dataset):
        input_shape, n_classes = (3, 224, 224), 1000

    config = {"name": "mobilenetv1", "version": 1, "options": {"width": 1.0}}
    probed = probe_model(config, Images(), 1000, {})
    taps = probed.taps

    assert [tuple(one.shape[1:]) for one in taps.stages] == [(32, 112, 112), (128, 56, 56), (256, 28, 28), (512, 14, 14), (1024, 7, 7)]
    assert taps.last is not None and taps.last.shape[1:] == (1024, 7, 7)
    # 569 million multiply-adds (Howard et al. 2017, Table 4), here counted twice.
    assert probed.flop_per_image / 2e6 == pytest.approx(569, abs=0.5)


@pytest.mark.parametrize(("width", "channels"), [(0.25, [8, 32, 64, 128, 256]), (0.75, [24, 96, 192, 384, 768])])
def test_width_multiplies_the_channels_of_mobilenetv1(width: float, channels: list[int]) -> None:
    with torch.device("meta"):
        taps = built("mobilenetv1", {"width": width})(torch.empty(2, 3, 32, 32))

    assert [one.shape[1] for one in taps.stages] == channels


def test_a_width_without_a_channel_is_refused() -> None:
    with pytest.raises(KdbenchError, match=r"at least one of its 32 channels .* and is 0.03"):
        built("mobilenetv1", {"width": 0.03})
