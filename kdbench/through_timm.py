"""timm's one door: models, optimisers and schedules come through here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from kdbench.errors import DataError, PartError, nearest

# timm's own 'sgd' is Nesterov's, and by default it spares biases and norms from weight decay: the literature's recipes want neither.
OPTIMIZERS = {"sgd": "momentum", "nesterov": "nesterov", "adamw": "adamw"}


def make_optimizer(module: nn.Module, recipe: dict[str, Any]) -> Optimizer:
    from timm.optim import create_optimizer_v2

    momentum = {} if recipe["optimizer"] == "adamw" else {"momentum": recipe["momentum"]}
    return create_optimizer_v2(
        module,
        opt=OPTIMIZERS[recipe["optimizer"]],
        lr=recipe["lr"],
        weight_decay=recipe["weight_decay"],
        filter_bias_and_bn=not recipe["decay_norms_and_biases"],
        **momentum,
    )


def make_scheduler(optimizer: Optimizer, recipe: dict[str, Any], steps_per_epoch: int) -> Any:
    """A schedule of the learning rate by update: call `step_update(number of updates done)` after each."""
    from timm.scheduler import CosineLRScheduler
    from timm.scheduler.multistep_lr import MultiStepLRScheduler

    warmup = {"warmup_t": recipe["warmup_epochs"] * steps_per_epoch, "warmup_lr_init": 0.0, "t_in_epochs": False}
    if recipe["schedule"] == "cosine":
        return CosineLRScheduler(optimizer, t_initial=recipe["epochs"] * steps_per_epoch, **warmup)
    milestones = recipe["milestones"] if recipe["schedule"] == "step" else []
    # timm applies a milestone one index early (its t + 1), and annotates whole numbers though it only bisects: a milestone may fall
    # within an epoch. Milestones count from the start, warm-up included.
    at = [milestone * steps_per_epoch + 1 for milestone in milestones]
    return MultiStepLRScheduler(optimizer, decay_t=at, decay_rate=recipe["decay_rate"], warmup_prefix=False, **warmup)


def make_model(architecture: str, inputs: tuple[int, ...], outputs: int, **arguments: Any) -> nn.Module:
    """A timm model with random weights. Raises PartError with the nearest name when timm has no such model."""
    import timm

    if not timm.is_model(architecture):
        raise PartError(f"timm has no model '{architecture}'{nearest(architecture, timm.list_models())[:200]}")
    return timm.create_model(architecture, pretrained=False, num_classes=outputs, in_chans=inputs[0], **arguments)


def small_stem(net: nn.Module) -> None:
    """Change a net for ImageNet to one for small images, in place: a ResNet's stem to a 3x3 convolution of stride 1 without pooling,
    MobileNetV2's stem and its first halving stage to stride 1.

    Raises:
        ValueError: the net is of another family.
    """
    from timm.models.resnet import ResNet

    if isinstance(net, ResNet):
        into = next(module.in_channels for module in net.conv1.modules() if isinstance(module, nn.Conv2d))
        net.conv1 = nn.Conv2d(into, net.bn1.num_features, 3, padding=1, bias=False)  # type: ignore[union-attr,arg-type]
        nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")  # as timm draws it
        net.maxpool = nn.Identity()
    elif getattr(net, "conv_stem", None) is not None and [len(stage) for stage in net.blocks] == [1, 2, 3, 4, 3, 3, 1]:  # type: ignore[arg-type,union-attr]
        net.conv_stem.stride = (1, 1)  # type: ignore[union-attr,assignment]
        net.blocks[1][0].conv_dw.stride = (1, 1)  # type: ignore[index,union-attr]
    else:
        raise ValueError("only timm's ResNets and MobileNetV2 have a stem for small images here")


def pretrained_facts(architecture: str) -> dict[str, Any]:
    """What timm knows of the pretrained weights of `name` or `name.tag`, without loading them: tag, mean, std, size, outputs.

    Raises:
        PartError: timm has no weights of that name, with those it has.
    """
    import timm

    name, _, tag = architecture.partition(".")
    known = timm.list_pretrained(f"{name}.*") + timm.list_pretrained(name)
    config = timm.get_pretrained_cfg(architecture) if not tag or architecture in known else None
    if config is None or not config.has_weights:
        listed = f"; it has {', '.join(known)}" if known else ""
        raise PartError(f"timm has no pretrained weights '{architecture}'{listed}")
    facts = {"tag": config.tag, "mean": list(config.mean), "std": list(config.std), "size": config.input_size[-1]}
    return {**facts, "outputs": config.num_classes}


def pretrained_weights(architecture: str, tag: str, channels: int) -> dict[str, Tensor]:
    """timm's weights of a tag, whole and under the names of the model as timm makes it now; another number of input channels folds
    the stem's.

    Raises:
        DataError: they cannot be had here.
    """
    import timm

    name = f"{architecture.partition('.')[0]}{'.' if tag else ''}{tag}"
    try:
        # By timm's own way: many published files need its renaming of keys.
        return timm.create_model(name, pretrained=True, in_chans=channels).state_dict()
    except Exception as error:  # the network, the hub, the cache, the keys
        raise DataError(
            f"timm's weights {name} cannot be loaded ({type(error).__name__}: {error}). Without a network, fill the cache of "
            "Hugging Face's hub (HF_HOME) on a machine that has one, or name a file: `weights: path/to/file.pth`"
        ) from error


def has_model(architecture: str) -> bool:
    import timm

    return timm.is_model(architecture)


def model_names() -> list[str]:
    import timm

    return timm.list_models()


def make_transforms(
    size: int, scale: tuple[float, ...], ratio: tuple[float, ...], flip: bool, crop_pct: float, interpolation: str
) -> tuple[Callable[[Any], Tensor], Callable[[Any], Tensor]]:
    """(what training sees, what evaluation sees) of a PIL image, as bytes of channels x size x size. Training's draws come from
    Python's and torch's global generators."""
    from timm.data import create_transform

    seen = create_transform(
        size,
        is_training=True,
        scale=scale,  # type: ignore[arg-type]
        ratio=ratio,  # type: ignore[arg-type]
        hflip=0.5 if flip else 0.0,
        color_jitter=None,  # type: ignore[arg-type]
        interpolation=interpolation,
        normalize=False,
    )
    return seen, create_transform(size, crop_pct=crop_pct, interpolation=interpolation, normalize=False)
