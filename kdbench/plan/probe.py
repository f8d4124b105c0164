"""What can be known of models and pairs without training: shapes, costs, and which loss refuses which pair. Runs on torch's meta
device, where nothing is computed. Importing this module loads no torch; calling it does."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kdbench import parts
from kdbench.errors import KdbenchError, SuiteError
from kdbench.plan.bundle import model_key
from kdbench.plan.matrix import Plan

if TYPE_CHECKING:
    from kdbench.losses._base import Pair, Taps

PROBE_IMAGES = 4
MANY = 10**6


@dataclass(frozen=True)
class Probed:
    """A model on the meta device: taps of a probe batch, multiply-adds count twice in `flop_per_image`."""

    taps: Taps
    model: Any
    parameters: int
    flop_per_image: float


@dataclass(frozen=True)
class Probes:
    """What was learnt of a plan's models, by the key of their configuration."""

    models: dict[str, Probed]
    n_train: int | None

    @property
    def flop_per_image(self) -> dict[str, float]:
        return {key: probed.flop_per_image for key, probed in self.models.items()}


def probe_model(config: Mapping[str, Any], dataset: Any, outputs: int, sources: Mapping[str, str]) -> Probed:
    """Build a model without memory for its weights and look at what it gives.

    Raises:
        KdbenchError: it cannot be built for these images.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        model = parts.from_config("model", config, sources)
        try:
            model.build(dataset.input_shape, outputs)
            if "inputs" in config:
                model.sees(config["inputs"], dataset.normalisation)
            model.eval()
            counter = FlopCounterMode(display=False)
            with torch.no_grad(), _shapes_only(), counter:
                taps = model(torch.empty(PROBE_IMAGES, *dataset.input_shape))
        except KdbenchError:
            raise
        except Exception as error:
            shape = tuple(dataset.input_shape)
            raise KdbenchError(f"it cannot be run on images of shape {shape}: {type(error).__name__}: {error}") from error
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Probed(taps, model, parameters, counter.get_total_flops() / PROBE_IMAGES)


def _outputs_of_weights(model: Mapping[str, Any]) -> int | None:
    """How many outputs timm's weights have that a net is to keep whole; None where there are none."""
    from kdbench.through_timm import pretrained_facts

    weights = model.get("weights")
    if not weights or weights["from"] != "timm" or weights["head"] != "kept":
        return None
    return pretrained_facts(f"{model['options']['architecture']}{'.' if weights['tag'] else ''}{weights['tag']}")["outputs"]


def _shapes_only() -> Any:
    """A context in which norms and rectifiers give back what they get: they change no shape and hold no matrix product, and on the
    meta device torch takes them apart in Python, which is most of the time of a probe."""
    import torch.nn.functional as F
    from torch.overrides import TorchFunctionMode

    class ShapesOnly(TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
            return arguments[0] if function in (F.batch_norm, F.relu) else function(*arguments, **(options or {}))

    return ShapesOnly()


def probe(plan: Plan) -> Probes:
    """Probe every model, then every loss on every pair that asks for it.

    Raises:
        SuiteError: with every pair that cannot be trained, and why.
    """
    import torch

    suite = plan.suite
    dataset = parts.from_config("dataset", suite.dataset, suite.sources)
    outputs = parts.load("task", suite.task["name"], suite.folder(suite.task["name"])).make().outputs(dataset)
    models: dict[str, Probed] = {}
    mistakes: list[str] = []
    for section, nets in (("students", suite.students), ("teachers", suite.teachers)):
        for name, net in nets.items():
            if model_key(net.model) not in models:
                try:
                    models[model_key(net.model)] = probe_model(net.model, dataset, outputs, suite.sources)
                except KdbenchError as error:
                    mistakes.append(f"{suite.source.at((section, name))}: {section}.{name}: {error}")
            if (there := _outputs_of_weights(net.model)) not in (None, outputs):
                told = f"its weights have {there} outputs, and {outputs} are needed: say `head: new`, and train it"
                mistakes.append(f"{suite.source.at((section, name))}: {section}.{name}: {told}")
            if net.recipe["drop_last"] and dataset.n_train is not None and dataset.n_train < net.recipe["batch_size"]:
                told = f"{dataset.n_train} training images make no batch of {net.recipe['batch_size']}, and drop_last drops the rest"
                mistakes.append(f"{suite.source.at(('recipe',))}: {section}.{name}: {told}")
    if mistakes:
        raise SuiteError(mistakes)
    with torch.device("meta"):
        # How many images a folder holds is not known before it is read: many, so that no loss refuses for want of them.
        labels = torch.empty(dataset.n_train or MANY, dtype=torch.int64)
        refusals: dict[str, str | None] = {}
        for student, teacher, name in plan.compared:
            objective = suite.objectives[name]
            sides = models[model_key(suite.students[student].model)], models[model_key(suite.teachers[teacher].model)]
            for term in objective.config["terms"]:
                seen = json.dumps([term["loss"], term["options"], [_shapes(side.taps) for side in sides]], sort_keys=True)
                if seen not in refusals:
                    refusals[seen] = _refusal(term, _pair(*sides, labels), suite.sources)
                if refusals[seen]:
                    mistakes.append(f"{suite.source.at(objective.where)}: objectives.{name}: {student} <- {teacher}: {refusals[seen]}")
    if mistakes:
        raise SuiteError(mistakes)
    return Probes(models, dataset.n_train)


def _pair(student: Probed, teacher: Probed, labels: Any) -> Pair:
    from kdbench.losses._base import Pair

    return Pair(student.taps, teacher.taps, labels, teacher.model.head, teacher.model)


def _shapes(taps: Taps) -> list[list[int]]:
    return [list(tensor.shape) for tensor in taps.tensors()]


def _refusal(term: Mapping[str, Any], pair: Pair, sources: Mapping[str, str]) -> str | None:
    """Why the loss cannot serve the pair; None if it can: asked, bound and run once, all on the meta device."""
    import torch

    from kdbench.losses._base import Batch

    loss = parts.from_config("loss", {**term, "name": term["loss"]}, sources)
    try:
        why = loss.missing(pair)
        if why is not None:
            return f"the loss '{term['loss']}' refuses: {why}"
        loss.bind(pair)
        n = len(pair.student.tensors()[0])
        batch = Batch(target=torch.empty(n, dtype=torch.int64), index=torch.empty(n, dtype=torch.int64))
        loss.parts(pair.student, pair.teacher, batch)
    except KdbenchError as error:
        return f"the loss '{term['loss']}' refuses: {error}"
    except Exception as error:
        return f"the loss '{term['loss']}' fails on this pair: {type(error).__name__}: {error}"
    return None
