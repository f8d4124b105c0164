"""The only module that uses timm: models, pretrained weights, optimisers, schedules and transforms."""

from __future__ import annotations

import inspect
import json
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import cache
from typing import Any

import timm
import torch
from timm.data.auto_augment import posterize, rand_augment_transform
from timm.data.mixup import cutmix_bbox_and_lam
from timm.data.random_erasing import RandomErasing
from timm.models import is_model_in_modules
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from timm.scheduler.multistep_lr import MultiStepLRScheduler
from torch import Tensor, nn
from torch.nn.modules.module import register_module_module_registration_hook
from torch.optim import Optimizer
from torch.overrides import TorchFunctionMode

from kdbench.errors import DataError, KdbenchError, OptionsError, PartError, RefusedError, nearest
from kdbench.isolation import isolated
from kdbench.recipes._base import MOMENTUM, Recipe
from kdbench.timm_arguments import arguments_of
from kdbench.timm_stems import NoStemError, cuts_patches, small_arguments, small_stem

# timm's 'sgd' uses Nesterov momentum, and its default excludes biases and norms from weight decay, unlike the literature's recipes.
OPTIMIZERS = {"sgd": "momentum"}
"""The names of timm that differ from the recipes'."""
FUSED = ("sgd", "nesterov", "adam", "adamw")
"""The optimisers of PyTorch itself. Their `foreach` gives the bits of their loop on the CPU, and is slower there; on a GPU it is PyTorch's
default. timm's own are left as they are: `foreach` changes the bits of its LAMB."""


def make_optimizer(trained: nn.Module, recipe: Mapping[str, Any], fused: bool = False) -> Optimizer:
    """The optimiser of a student with its objective (`trained` has both as children), or of any other module. `fused`: by one kernel for
    all weights where there is one, two to three times as fast on the CPU and with other rounding."""
    recipe = Recipe.complete(recipe)
    own = {name: recipe[name] for name in ("betas", "eps") if recipe[name] is not None}
    if recipe["optimizer"] in MOMENTUM:
        own["momentum"] = recipe["momentum"]
    if fused and recipe["optimizer"] in FUSED:
        own["fused"] = True
    grouped = recipe["layer_decay"] is not None or recipe["loss_lr_scale"] != 1 or not recipe["decay_norms_and_biases"]
    return create_optimizer_v2(
        _groups(trained, recipe) if grouped else trained,
        opt=OPTIMIZERS.get(recipe["optimizer"], recipe["optimizer"]),
        lr=recipe["lr"],
        weight_decay=recipe["weight_decay"],
        filter_bias_and_bn=False,
        **own,
    )


def _groups(trained: nn.Module, recipe: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The parameters by learning rate and weight decay: timm's schedulers multiply the rate by a group's `lr_scale`. Without decay of norms
    and biases, parameters that the net's `no_weight_decay` names have none either, as in timm's own training."""
    sides = dict(trained.named_children()) if isinstance(trained, nn.ModuleDict) else {"student": trained, "objective": nn.Module()}
    scales = {id(one): recipe["loss_lr_scale"] for one in sides["objective"].parameters()}
    net: Any = getattr(sides["student"], "plain", sides["student"])
    patterns = ["*.bias", *(net.no_weight_decay() if hasattr(net, "no_weight_decay") else ())]  # as the embeddings of positions
    unlike = {id(one) for name, one in net.named_parameters() if any(fnmatchcase(name, pattern) for pattern in patterns)}
    if recipe["layer_decay"] is not None:
        for layer in create_optimizer_v2(net, "sgd", lr=1.0, layer_decay=recipe["layer_decay"]).param_groups:
            scales |= {id(one): layer["lr_scale"] for one in layer["params"]}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for one in trained.parameters():
        if one.requires_grad:
            spared = (one.ndim <= 1 or id(one) in unlike) and not recipe["decay_norms_and_biases"]
            groups.setdefault((scales.get(id(one), 1.0), 0.0 if spared else recipe["weight_decay"]), []).append(one)
    return [{"params": some, "lr_scale": scale, "weight_decay": decay} for (scale, decay), some in groups.items()]


def learning_rate(optimizer: Optimizer) -> float:
    """The rate of the schedule, which is that of the groups without a factor of their own."""
    first = optimizer.param_groups[0]  # all have one where parameters of losses are trained alone
    rates = (group["lr"] for group in optimizer.param_groups if group.get("lr_scale", 1.0) == 1.0)
    return next(rates, first["lr"] / first.get("lr_scale", 1.0))


def make_scheduler(optimizer: Optimizer, recipe: Mapping[str, Any], steps_per_epoch: int) -> Any:
    """A schedule of the learning rate by update: call `step_update(number of updates done)` after each."""
    recipe = Recipe.complete(recipe)
    before, whole = recipe["warmup_steps"] or recipe["warmup_epochs"] * steps_per_epoch, recipe["epochs"] * steps_per_epoch
    warmup = {"warmup_t": before, "warmup_lr_init": recipe["warmup_lr"], "t_in_epochs": False}
    if recipe["schedule"] == "cosine":
        after = recipe["cosine_after_warmup"]
        length = whole - before if after else whole
        return CosineLRScheduler(optimizer, t_initial=length, lr_min=recipe["lr_min"], warmup_prefix=after, **warmup)
    milestones = recipe["milestones"] if recipe["schedule"] == "step" else []
    # timm applies a milestone one index early (its t + 1). Milestones may be fractions, and count from the start, warm-up included.
    at = [milestone * steps_per_epoch + 1 for milestone in milestones]
    return MultiStepLRScheduler(optimizer, decay_t=at, decay_rate=recipe["decay_rate"], warmup_prefix=False, **warmup)


def learning_rates(recipe: Mapping[str, Any], steps_per_epoch: int, epochs: Iterable[float]) -> list[float]:
    """The learning rate of the first update at or after each of these moments, from the schedule that training uses."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=recipe["lr"])
    scheduler = make_scheduler(optimizer, recipe, steps_per_epoch)
    rates = []
    for epoch in epochs:
        scheduler.step_update(math.ceil(epoch * steps_per_epoch))
        rates.append(learning_rate(optimizer))
    return rates


def make_model(
    architecture: str, inputs: tuple[int, ...], outputs: int, stem: str, given: Mapping[str, Any]
) -> tuple[nn.Module, dict[str, Any]]:
    """A timm model with random weights for images of this shape, and the arguments that its factory got besides the numbers of channels
    and outputs: those given, those of the stem, and the images' size where the factory takes it. Raises PartError if timm has no such
    model or cannot build it; OptionsError for an argument that the stem sets; RefusedError if it has no such stem."""
    if not timm.is_model(architecture):
        raise PartError(f"timm has no model '{architecture}'{nearest(architecture, timm.list_models())[:200]}")
    arguments = dict(given)
    try:
        if stem == "small":
            arguments |= _arguments_of_stem(architecture, given)
        net, arguments = _sized(architecture, inputs, arguments, num_classes=outputs, in_chans=inputs[0])
        if stem == "small":
            small_stem(net)
        return net, arguments
    except KdbenchError:
        raise
    except NoStemError as error:
        sized = "patch_size" in factory_arguments(architecture) and cuts_patches(_example(architecture))
        instead = "give a smaller `patch_size`" if sized else "give `input_size: 224`, so that images are resized"
        raise RefusedError(f"timm's {architecture} has no small stem: {error}. Leave out `stem: small`, and {instead}") from error
    except Exception as error:
        how = "".join(f", {name}={value!r}" for name, value in arguments.items())
        sides = "x".join(map(str, inputs[1:]))
        raise PartError(f"timm cannot build {architecture} for images of {sides} pixels{how}: {type(error).__name__}: {error}") from error


def make_pyramid(
    architecture: str, inputs: tuple[int, ...], strides: Sequence[int], given: Mapping[str, Any]
) -> tuple[nn.Module, list[int]]:
    """A timm model with random weights that gives a list of maps, one for each of these strides, finest first, and the channels of each.
    Raises PartError if timm has no such model; RefusedError if it has no such maps, or cannot take images of this shape."""
    if not timm.is_model(architecture):
        raise PartError(f"timm has no model '{architecture}'{nearest(architecture, timm.list_models())[:200]}")
    listed = _strides_of(architecture)
    if absent := [stride for stride in strides if stride not in listed]:
        told = f"its maps have strides of {', '.join(map(str, sorted(set(listed))))} pixels" if listed else "it gives no maps of its stages"
        why = f"timm's {architecture} has no pyramid for this detector: {told}, and maps of {', '.join(map(str, absent))} are needed"
        raise RefusedError(f"{why}. Use a convolutional net, or other `strides`")
    # Of several maps of a stride the last one: the places differ from net to net.
    places = tuple(len(listed) - 1 - listed[::-1].index(stride) for stride in strides)
    arguments = {**given, "features_only": True, "in_chans": inputs[0], "out_indices": places}
    try:
        with isolated(0), torch.device("meta"), torch.no_grad():
            shapes = [tuple(one.shape) for one in _created(architecture, **arguments).eval()(torch.empty(2, *inputs))]
        net = _created(architecture, **arguments)
    except Exception as error:
        sides = "x".join(map(str, inputs[1:]))
        raise RefusedError(
            f"timm's {architecture} cannot be the body of a detector for images of {sides} pixels: {type(error).__name__}: {error}"
        ) from error
    channels = net.feature_info.channels()
    sizes = [tuple(side // stride for side in inputs[1:]) for stride in strides]
    if any({(2, many, *size), (2, *size, many)}.isdisjoint({shape}) for many, size, shape in zip(channels, sizes, shapes, strict=True)):
        raise RefusedError(f"timm's {architecture} gives maps of {shapes}, which have not the strides that it states")
    return net, channels


@cache
def _strides_of(architecture: str) -> list[int]:
    """The strides of all maps that timm lists of a model; none where it gives no maps."""
    try:
        with isolated(0), torch.device("meta"):
            return [one["reduction"] for one in _created(architecture, features_only=True).feature_info.info]
    except Exception:
        return []


def _sized(architecture: str, inputs: tuple[int, ...], arguments: Mapping[str, Any], **shapes: int) -> tuple[nn.Module, dict[str, Any]]:
    """A net and its arguments, with `img_size` where the net cannot run on these images without it, and the factory takes it."""
    own = {name: _tuples(value) for name, value in arguments.items()}
    if "img_size" not in own and _may_take_size(architecture) and not _runs(architecture, tuple(inputs), json.dumps(arguments)):
        sized = {**own, "img_size": inputs[1] if inputs[1] == inputs[2] else tuple(inputs[1:])}
        try:
            return _created(architecture, **shapes, **sized), sized
        except TypeError as error:
            if "'img_size'" not in str(error):
                raise
    return _created(architecture, **shapes, **own), own


@cache
def _runs(architecture: str, inputs: tuple[int, ...], arguments: str) -> bool:
    """Whether a net that is made with these arguments (JSON) can run on images of this shape; tried without memory for its weights."""
    own = {name: _tuples(value) for name, value in json.loads(arguments).items()}
    try:
        with isolated(0), torch.device("meta"), torch.no_grad():
            _created(architecture, in_chans=inputs[0], **own).eval()(torch.empty(2, *inputs))
    except Exception:  # the reason is told when the net is made
        return False
    return True


def _may_take_size(architecture: str) -> bool:
    """Whether a class in the module of the factory is made for a size of images: known without building a net."""
    module = sys.modules[timm.model_entrypoint(architecture.partition(".")[0]).__module__]
    classes = [one for one in vars(module).values() if isinstance(one, type) and issubclass(one, nn.Module)]
    return any("img_size" in inspect.signature(one.__init__).parameters for one in classes)


def _arguments_of_stem(architecture: str, given: Mapping[str, Any]) -> Mapping[str, Any]:
    wanted = small_arguments(_example(architecture))
    if both := [name for name in wanted if name in given]:
        problem = "`stem: small` sets it: leave out one of the two"
        raise OptionsError(f"timm's {architecture}", [((name,), problem) for name in both])
    return wanted


@cache
def _example(architecture: str) -> nn.Module:
    """A net as timm makes it, without memory for its weights. Raises PartError if timm cannot build it."""
    try:
        with isolated(0), torch.device("meta"):
            return _created(architecture)
    except Exception as error:
        raise PartError(f"timm cannot build {architecture}: {type(error).__name__}: {error}") from error


def _created(architecture: str, **arguments: Any) -> nn.Module:
    try:
        return timm.create_model(architecture, **arguments)
    except RuntimeError as error:
        if "meta" not in str(error):
            raise
        with _LinspaceOnCpu():
            return timm.create_model(architecture, **arguments)


class _LinspaceOnCpu(TorchFunctionMode):
    """On the meta device too: older releases of timm read its values while they build a net."""

    def __torch_function__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        return function(*arguments, **{**(options or {}), **({"device": "cpu"} if function is torch.linspace else {})})


@cache
def factory_arguments(architecture: str) -> dict[str, tuple[Any, Any]]:
    """The arguments of timm's factory that a suite can give: name -> (type, default). Raises PartError if timm cannot build the model."""
    taken = arguments_of(type(_example(architecture)))
    return {name: taken[name] for name in taken if not _is_fixed(architecture, name)}


def _is_fixed(architecture: str, name: str) -> bool:
    """Whether timm's factory gives an argument itself and fails if it is given twice, which it does before the net has a layer."""

    def stop(*_: object) -> None:
        raise StopIteration

    hook = register_module_module_registration_hook(stop)
    try:
        timm.create_model(architecture, **{name: ""})
    except Exception as error:
        return f"multiple values for keyword argument '{name}'" in str(error)
    finally:
        hook.remove()
    return False


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def pretrained_facts(architecture: str) -> dict[str, Any]:
    """Facts about the pretrained weights of `name` or `name.tag`, without loading them: tag, mean, std, size, crop_pct, interpolation and
    outputs. Raises PartError if timm has no such weights; the message lists those it has."""
    name, _, tag = architecture.partition(".")
    known = timm.list_pretrained(f"{name}.*") + timm.list_pretrained(name)
    config = timm.get_pretrained_cfg(architecture) if not tag or architecture in known else None
    if config is None or not config.has_weights:
        listed = f"; it has {', '.join(known)}" if known else ""
        raise PartError(f"timm has no pretrained weights '{architecture}'{listed}")
    facts = {"tag": config.tag, "mean": list(config.mean), "std": list(config.std), "size": config.input_size[-1]}
    return {**facts, "crop_pct": config.crop_pct, "interpolation": config.interpolation, "outputs": config.num_classes}


def pretrained_weights(architecture: str, tag: str, channels: int, arguments: Mapping[str, Any] | None = None) -> dict[str, Tensor]:
    """timm's weights of a tag, with the current names of timm's model; timm adapts them to the number of input channels and to these
    `arguments` of its factory (position embeddings of another `img_size`). Raises DataError if they cannot be loaded."""
    name = f"{architecture.partition('.')[0]}{'.' if tag else ''}{tag}"
    try:
        # By timm's own way: many published files need its renaming of keys.
        return timm.create_model(name, pretrained=True, in_chans=channels, **(arguments or {})).state_dict()
    except Exception as error:  # the network, the hub, the cache, the keys
        how = "".join(f", {key}={value!r}" for key, value in (arguments or {}).items())
        raise DataError(
            f"timm's weights {name}{how} cannot be loaded ({type(error).__name__}: {error}). Without a network, fill the cache of "
            "Hugging Face's hub (HF_HOME) on a machine with a network, or use a file: `weights: path/to/file.pth`"
        ) from error


def has_model(architecture: str) -> bool:
    return timm.is_model(architecture)


def of_family(architecture: str, families: Iterable[str]) -> bool:
    """Whether a model is made by one of these modules of `timm.models`."""
    return is_model_in_modules(architecture, list(families))


def model_names() -> list[str]:
    return timm.list_models()


def make_rand_augment(config: str, size: int, mean: tuple[float, ...]) -> Callable[[Any], Any]:
    """timm's RandAugment of PIL images, with the constants of timm's `create_transform`. Draws from Python's and NumPy's generators."""
    colour = tuple(min(255, round(255 * value)) for value in mean) or (128,)
    made = rand_augment_transform(config, {"translate_const": int(size * 0.45), "img_mean": colour * (3 if len(colour) == 1 else 1)})
    for operation in made.ops:
        if operation.aug_fn is posterize:
            operation.aug_fn = _posterize
    return made


def _posterize(image: Any, bits: int, **_: Any) -> Any:
    # At its largest magnitudes timm asks for 0 bits: black in older releases of Pillow, an error in newer ones.
    return posterize(image, bits) if bits > 0 else image.point(lambda _: 0)


def make_random_erasing(probability: float) -> Callable[[Tensor], Tensor]:
    """timm's random erasing of one normalised image, in place. Draws from Python's generator and torch's on the CPU."""
    return RandomErasing(probability, mode="pixel", device="cpu")


def draw_box(shape: tuple[int, ...], share: float) -> tuple[tuple[int, int, int, int], float]:
    """timm's CutMix: (top, bottom, left, right) of a box in images of this shape, and the share of the image outside of it, which differs
    from `share` where the border cuts the box. Draws from NumPy's generator."""
    box, left = cutmix_bbox_and_lam(shape, share)
    top, bottom, first, last = (int(side) for side in box)
    return (top, bottom, first, last), float(left)
