"""The table of timm's families, in timm_families.md: `python docs/timm_table.py` writes it (some minutes). One small model of each family
is compared with timm's own `forward`, `forward_head` and `forward_intermediates`."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from kdbench.errors import RefusedError
from kdbench.losses._base import Taps
from kdbench.models.timm import Timm

PAGE = Path(__file__).parent / "timm_families.md"
COLUMNS = ("family", "model", "logits", "pooled", "last", "average", "stages", "tokens", "head")
SIZES = (96, 112, 128)
"""Images of these sizes are tried before those that the model is made for."""
LARGE = 100e6
"""A net with more weights is examined with two blocks, if it can have so few."""
CLASSES = 7


def families() -> dict[str, list[str]]:
    """The models of each of timm's modules."""
    return {module: timm.list_models(module=module) for module in timm.list_modules()}


def smallest(names: list[str]) -> str:
    """The model with the fewest weights, of those with a classifier if there is one."""

    nets = {name: _on_meta(name) for name in names}
    return min(names, key=lambda name: (not hasattr(nets[name], "get_classifier"), _weights(nets[name])))


def _on_meta(name: str) -> Any:
    with torch.device("meta"):
        return timm.create_model(name)


def _weights(net: Any) -> int:
    return sum(weight.numel() for weight in net.parameters())


class CheapDraws(TorchFunctionMode):
    """Weights from a short table of random numbers: for a large net, drawing them takes longer than a forward pass."""

    NAMES = ("normal_", "uniform_", "trunc_normal_", "kaiming_uniform_", "kaiming_normal_", "xavier_uniform_", "xavier_normal_")

    def __init__(self) -> None:
        super().__init__()
        self.table = 2 * torch.rand(65537, generator=torch.Generator().manual_seed(0)) - 1

    def __torch_function__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        options = options or {}
        name = getattr(function, "__name__", "")
        if name == "erfinv_":
            return arguments[0]
        if name not in self.NAMES:
            return function(*arguments, **options)
        tensor = arguments[0] if arguments else options["tensor"]
        bound = 1.7 / math.sqrt(max(tensor[0].numel(), 1)) if tensor.dim() > 1 else 0.02
        with torch.no_grad():
            times = -(-tensor.numel() // len(self.table))
            return tensor.copy_((self.table * bound).repeat(times)[: tensor.numel()].view(tensor.shape))


def example(name: str) -> tuple[Any, Tensor]:
    """The net, in evaluation mode, and two images, as small as it takes."""
    config = timm.get_pretrained_cfg(name)
    own = config.input_size[1] if config else 224
    shallow = [{"depth": 2}] if _weights(_on_meta(name)) > LARGE else []
    for size in sorted({*(one for one in SIZES if one < own), own}):
        for arguments in [{"img_size": size, **one} for one in [*shallow, {}]] + [*shallow, {}]:
            images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
            try:
                with CheapDraws():
                    net = timm.create_model(name, num_classes=CLASSES, **arguments).eval()
                with torch.no_grad():
                    net(images)
                return net, images
            except Exception as error:  # whatever a net says of a size that it does not take
                wrong = error
    raise wrong


def row(family: str, name: str) -> dict[str, str]:
    """What kdbench's taps of a model are. Raises AssertionError where one is not what timm gives."""
    net, images = example(name)
    model = Timm(architecture=name)
    try:
        model.wrap(net)
        with torch.no_grad():
            taps = model(images)
    except RefusedError as error:
        return {"family": family, "model": name, "refused": str(error)}
    with torch.no_grad():
        assert torch.equal(taps.logits, net(images)), "the logits are timm's own"
        average = (
            taps.last is not None
            and taps.pooled.shape == taps.last.shape[:2]
            and torch.allclose(taps.last.mean((2, 3)), taps.pooled, atol=1e-5)
        )
        if model.head is not None:
            torch.testing.assert_close(model.head(taps.pooled), taps.logits, msg="the head makes the logits from pooled")
        _check_maps(net, images, taps)
    _check_training(model, images)
    apart = [one for one in ("class_token", "distillation_token", "registers") if taps.has(one)]
    words = {
        "logits": "yes",
        "pooled": "yes",
        "last": "yes" if taps.has("last") else "",
        "average": "yes" if average else "",
        "stages": str(len(taps.stages) or ""),
        "tokens": "yes" + "".join(f", {one.replace('_', ' ').replace(' token', '')}" for one in apart) if taps.has("tokens") else "",
        "head": "yes" if model.head is not None else "",
    }
    return {"family": family, "model": name, **words}


def _check_maps(net: Any, images: Tensor, taps: Taps) -> None:
    maps = net.forward_intermediates(images, output_fmt="NCHW", intermediates_only=True) if hasattr(net, "forward_intermediates") else None
    for one in taps.stages:
        assert one.dim() == 4
        assert maps is None or any(one.shape == each.shape and torch.equal(one, each) for each in maps), "a stage is one of timm's maps"
    assert taps.last is None or taps.last.shape[1] == net.num_features, "channels come first"
    if taps.tokens is not None:
        assert taps.last is None or torch.equal(taps.last.flatten(2).transpose(1, 2), taps.tokens), "the map is the grid of the tokens"
    if taps.tokens is not None and taps.last is not None and maps is not None and not hasattr(net, "cls_attn_blocks"):
        assert torch.equal(taps.last, _normed(net, images, maps)), "the last map is timm's, after its norm"


def _normed(net: Any, images: Tensor, maps: list[Tensor]) -> Tensor:
    """timm's last map after the net's last norm, if it has one that can be asked for."""
    try:
        return net.forward_intermediates(images, output_fmt="NCHW", intermediates_only=True, norm=True)[-1]
    except AssertionError:
        return maps[-1]


def _check_training(model: Timm, images: Tensor) -> None:
    """In training too, the logits are timm's, and every tap carries a gradient."""
    model.train()
    torch.manual_seed(0)
    taps = model(images)
    torch.manual_seed(0)
    assert torch.equal(taps.logits, model.net(images)), "the logits are timm's own in training"
    assert all(one.requires_grad for one in taps.tensors()), "every tap carries a gradient"


def line(found: Mapping[str, str]) -> str:
    if "refused" in found:
        return f"| `{found['family']}` | `{found['model']}` | refused: {found['refused']} |" + " |" * (len(COLUMNS) - 3)
    return "| " + " | ".join(f"`{found[one]}`" if one in COLUMNS[:2] else found[one] for one in COLUMNS) + " |"


def committed() -> dict[tuple[str, str], str]:
    """The rows of the page, by family and model."""
    rows = re.findall(r"^\| `(\w+)` \| `(\w+)` \|.*$", PAGE.read_text(), re.M)
    lines = [one for one in PAGE.read_text().splitlines() if one.startswith("| `")]
    return dict(zip(rows, lines, strict=True))


def version_of_page() -> str:
    found = re.search(r"^timm (\S+):", PAGE.read_text(), re.M)
    return found[1] if found else ""


def main() -> None:
    """Write the page's table anew, with the models that it has. A family without a row gets one with its smallest model."""
    known = dict(committed())
    models = {family: name for family, name in known}
    rows = [row(family, models.get(family) or smallest(names)) for family, names in families().items()]
    serving = sum("refused" not in one for one in rows)
    lines = [
        f"timm {timm.__version__}: {serving} of {len(rows)} families serve.",
        "",
        f"| {' | '.join(COLUMNS)} |",
        "|" + ":---|" * len(COLUMNS),
    ]
    text = PAGE.read_text()
    PAGE.write_text("\n".join([text[: text.index("\ntimm ")], *lines, *map(line, rows), ""]))


if __name__ == "__main__":
    main()
