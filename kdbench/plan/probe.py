"""What can be known without training: shapes, costs, and which loss refuses which pair. Runs on torch's meta device, where nothing is
computed; a loss that needs values is tried on the CPU. Importing this module loads no torch; calling it does."""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from kdbench import parts
from kdbench.cell import Cell
from kdbench.choice import applied
from kdbench.errors import KdbenchError, LossError, OptionsError, RefusedError, SuiteError, nearest
from kdbench.isolation import explained, isolated
from kdbench.plan.bundle import Bundle, model_key
from kdbench.plan.matrix import Plan
from kdbench.plan.recipe_limits import first_stages, second_views_of, unmet
from kdbench.plan.schema import Net
from kdbench.plan.tuning import points
from kdbench.recipes._base import MIXING, Recipe

if TYPE_CHECKING:
    from kdbench.losses._base import Pair, Taps

PROBE_IMAGES = 4
MANY = 10**6
BACKWARD = 2.0
"""A backward pass costs about twice a forward pass."""
MOST_ELEMENTS = 2**24
"""The most numbers that a trial of a loss on the CPU may hold as its inputs."""
MOST_LABELS = 2**16
MAX_LABELS = 2**40
MAX_MODULES = 10_000
"""The largest model that is built to be looked at; the largest of timm's have about a third of it."""


@dataclass(frozen=True)
class Probed:
    """A model on the meta device: taps of a probe batch, multiply-adds count twice in `flop_per_image`."""

    taps: Taps
    model: Any
    flop_per_image: float


@dataclass(frozen=True)
class Probes:
    """What was learnt of a plan's models, by the key of their configuration. `untried` names the losses that could not be tried,
    `notes` say what losses leave out."""

    models: dict[str, Probed]
    n_train: int | None
    untried: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def work_tflop(self, plan: Plan, bundle: Bundle) -> float:
        """Estimated work of a bundle: training passes of its students and one forward pass of the teacher, of second views too where losses
        need them, without evaluation. Where the number of training images is not known it is in TFLOP for one image: bundles are still in
        the right order."""
        seconds = [second_views_of(cell.config["objective"]["terms"], cell.sources) for cell in bundle.cells]
        passes = [(1 + BACKWARD) * (2 if second else 1) for second in seconds]
        return self._tflop(bundle, zip(passes, bundle.cells, strict=True)) + self.teacher_tflop(plan, bundle)

    def teacher_tflop(self, plan: Plan, bundle: Bundle) -> float:
        """The part of the teacher in `work_tflop`."""
        seconds = {one for cell in bundle.cells for one in second_views_of(cell.config["objective"]["terms"], cell.sources)}
        return self._tflop(bundle, [(1.0 + len(seconds), plan.cells[bundle.teacher])]) if bundle.teacher else 0.0

    def _tflop(self, bundle: Bundle, nets: Iterable[tuple[float, Cell]]) -> float:
        images = (self.n_train or 1) * bundle.cells[0].config["recipe"]["epochs"]
        return images * sum(passes * self.models[model_key(cell.config["student"])].flop_per_image for passes, cell in nets) / 1e12


def probe_model(config: Mapping[str, Any], dataset: Any, outputs: int, sources: Mapping[str, str]) -> Probed:
    """Build a model without memory for its weights and look at what it gives. Raises KdbenchError: it cannot be built for these images."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with isolated(0), torch.device("meta"), _few_modules(), _shapes_only():
        model = parts.from_config("model", config, sources)
        try:
            model.build_for(dataset.input_shape, outputs, config.get("inputs", {}).get("size"))
            if "inputs" in config:
                model.adapt_inputs(config["inputs"], dataset.normalisation)
            model.eval()
            trained = [weight for weight in model.parameters() if weight.requires_grad]
            # Without gradients from the start: the counter fails where a parameter that has one is the input of a module (PiT, CaiT).
            model.requires_grad_(False)
            counter = FlopCounterMode(display=False)
            with torch.no_grad(), counter:
                taps = model(dataset.example(PROBE_IMAGES)[0])
            for weight in trained:
                weight.requires_grad_(True)
        except KdbenchError:
            raise
        except Exception as error:
            if not isinstance(dataset.example(1)[0], torch.Tensor):
                made = "build a detector on it, as `{model: fcos, body: resnet18}`"
                told = f"the model does not take the images of a dataset for {dataset.task}: {made} ({explained(error)})"
                raise KdbenchError(told) from error
            shape = tuple(dataset.input_shape)
            raise KdbenchError(f"the model cannot be run on images of shape {shape}: {explained(error)}") from error
    return Probed(taps.with_classifier(model), model, counter.get_total_flops() / PROBE_IMAGES)


@contextmanager
def _few_modules() -> Iterator[None]:
    """A context in which building a model ends with KdbenchError where it has more modules than any net that is used."""
    from torch.nn.modules.module import register_module_module_registration_hook

    count = itertools.count(1)

    def check(*_: object) -> None:
        if next(count) > MAX_MODULES:
            raise KdbenchError(f"the model has more than {MAX_MODULES:,} modules, which is the limit")

    hook = register_module_module_registration_hook(check)
    try:
        yield
    finally:
        hook.remove()


def _outputs_of_weights(model: Mapping[str, Any]) -> int | None:
    """How many outputs timm's weights have that a net is to keep whole; None where there are none."""
    from kdbench.timm_adapter import pretrained_facts

    weights = model.get("weights")
    if not weights or weights["from"] != "timm" or weights["head"] != "kept" or "into" in weights:
        return None
    return pretrained_facts(f"{model['options']['architecture']}{'.' if weights['tag'] else ''}{weights['tag']}")["outputs"]


def _shapes_only() -> Any:
    """A context in which norms, rectifiers and draws of weights give back what they get: they change no shape and hold no matrix product,
    and on the meta device torch takes them apart in Python, which is most of the time of a probe."""
    import torch.nn.functional as F
    from torch import Tensor
    from torch.overrides import TorchFunctionMode

    idle = (F.batch_norm, F.relu, Tensor.normal_, Tensor.uniform_)

    class ShapesOnly(TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
            return arguments[0] if function in idle and arguments else function(*arguments, **(options or {}))

    return ShapesOnly()


def probe(plan: Plan) -> Probes:
    """Probe every model, then every loss on its pairs. Raises SuiteError: with every pair that cannot be trained, and why."""
    suite = plan.suite
    dataset = parts.from_config("dataset", suite.dataset, suite.sources)
    outputs = plan.task().outputs(dataset)
    models: dict[str, Probed] = {}
    mistakes = unmet(plan, dataset)
    for section, nets in (("students", suite.students), ("teachers", suite.teachers)):
        for name, net in nets.items():
            if model_key(net.model) not in models:
                try:
                    models[model_key(net.model)] = probed = probe_model(net.model, dataset, outputs, suite.sources)
                    # An untrained teacher (a control) has no weights to begin with.
                    models.setdefault(model_key({key: value for key, value in net.model.items() if key != "weights"}), probed)
                except OptionsError as error:
                    for keys, text in error.errors:
                        where = (section, name, *keys)
                        mistakes.append(f"{suite.file.at(where)}: {'.'.join(map(str, where))}: {text}")
                except KdbenchError as error:
                    mistakes.append(f"{suite.file.at((section, name))}: {section}.{name}: {error}")
            if (there := _outputs_of_weights(net.model)) not in (None, outputs):
                message = f"its weights have {there} outputs, but the dataset needs {outputs}: write `head: new`, and train it"
                mistakes.append(f"{suite.file.at((section, name))}: {section}.{name}: {message}")
            if message := _of_layers(net, models):
                mistakes.append(f"{suite.file.at((section, name))}: {section}.{name}: {message}")
    for objective, net in first_stages(plan):
        if (message := _of_layers(net, models)) and not _of_layers(suite.students[net.name], models):
            where = (*objective.where, "two_stages", "layer_decay")
            mistakes.append(f"{suite.file.at(where)}: objectives.{objective.name}.two_stages: {net.name}: {message}")
    if suite.tuning:
        mistakes += _wrong_trials(plan, dataset.n_train)
    if mistakes:
        raise SuiteError(mistakes)
    return Probes(models, dataset.n_train, *_tried(plan, models, dataset, outputs))


def _of_layers(net: Net, models: Mapping[str, Probed]) -> str:
    """What is wrong with the `layer_decay` or the `frozen_stages` of a net; empty if nothing is."""
    probed = models.get(model_key(net.model))
    if probed and (frozen := net.recipe.get("frozen_stages", 0)) > (stages := len(probed.model.stages_in_order())):
        has = f"the model has {stages} stages" if stages else "the model does not state its stages (`stages_in_order`)"
        return f"`frozen_stages: {frozen}`, and {has}: write a smaller number"
    if "layer_decay" not in net.recipe or not probed or hasattr(probed.model.plain, "group_matcher"):
        return ""
    return "`layer_decay` needs a model that states its layers (`group_matcher`), as timm's do: leave it out here"


def _wrong_trials(plan: Plan, n_train: int | None) -> Iterator[str]:
    """What is wrong with the held-out images of trials, and with losses at the points that are tried first."""
    suite = plan.suite
    trial = next((row.cell for row in plan.rows if row.role == "trial"), None)
    where = f"{suite.file.at(('tune',))}: tune:"
    if trial is not None:
        try:
            left = parts.from_config("dataset", trial.config["dataset"], suite.sources).n_train
            if n_train is not None and left == n_train:
                yield f"{where} `validation` holds out no image of {n_train}: give a larger share"
        except KdbenchError as error:
            yield f"{where} the dataset cannot hold out images: {error}"
    for objective in suite.objectives.values():
        search = None if objective.control else objective.search
        for point in points(search) if search else ():
            chosen = applied({**objective.config, "tuned": {"terms": search.terms if search else 0}}, point)
            try:
                for term in chosen["terms"]:
                    with isolated(0):
                        parts.from_config("loss", {**term, "name": term["loss"]}, suite.sources)
            except KdbenchError as error:
                tried = ", ".join(f"{name} times {value:g}" for name, value in point.items())
                yield f"{suite.file.at(objective.where)}: objectives.{objective.name}: with {tried}: {error}"
                break


def _tried(plan: Plan, models: Mapping[str, Probed], dataset: Any, outputs: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Try every loss on its pairs. Returns the losses that could not be tried, and what losses note of pairs. Raises SuiteError: with every
    loss that refuses a pair."""
    import torch

    from kdbench.losses._base import Pair

    suite = plan.suite
    # How many images a folder holds is not known before it is read: many, so that no loss refuses for want of them.
    n_train = min(dataset.n_train or MANY, MAX_LABELS)
    labels = torch.empty(n_train, dtype=torch.int64, device="meta") if plan.task.has_classes else None
    _, plain = dataset.example(PROBE_IMAGES)
    trials: dict[str, tuple[str, str, list[str]]] = {}
    mistakes, untried, notes = [], [], []
    for student, teacher, name in plan.compared:
        objective = suite.objectives[name]
        one, other = models[model_key(suite.students[student].model)], models[model_key(suite.teachers[teacher].model)]
        own, theirs = (side.taps.with_second_view() if dataset.augments else side.taps for side in (one, other))
        shapes = [[side.taps.strides, *(list(tensor.shape) for tensor in side.taps.tensors())] for side in (one, other)]
        stages = [(objective.first.config, objective.first.recipes[student])] if objective.first else []
        stages += [(objective.config, suite.students[student].recipe)]
        if why := inherited_why_not(one.model, other.model, objective.config.get("inherits", ())):
            mistakes.append(f"{suite.file.at((*objective.where, 'inherits'))}: objectives.{name}: {student} <- {teacher}: {why}")
        for term, recipe in [(term, recipe) for config, recipe in stages for term in config["terms"]]:
            mixing = any(Recipe.complete(recipe)[option] for option in MIXING)
            targets = plan.task().mix(plain, plain.new_tensor(range(PROBE_IMAGES)).flip(0), 0.75, dataset) if mixing else plain
            key = json.dumps([term["loss"], term["options"], shapes, mixing], sort_keys=True)
            if key not in trials:
                pooled = other.taps.pooled
                features = None if pooled is None else torch.empty(n_train, pooled.shape[1], device="meta")
                pair = Pair(own, theirs, labels, other.model.head, other.model, features)
                trials[key] = _try(term, pair, targets, outputs, suite.sources)
            refusal, why_untried, noted = trials[key]
            notes += [f"{name}, {student} <- {teacher}: {text}" for text in noted]
            if refusal:
                mistakes.append(f"{suite.file.at(objective.where)}: objectives.{name}: {student} <- {teacher}: {refusal}")
            if why_untried:
                untried.append(f"{name}, {student} <- {teacher}: {why_untried}")
    if mistakes:
        raise SuiteError(mistakes)
    return tuple(untried), tuple(dict.fromkeys(notes))


def inherited_why_not(student: Any, teacher: Any, names: Iterable[str]) -> str:
    """Why a student cannot have these parts of its teacher; empty if it can."""
    for name in names:
        own, theirs = (model.parts_by_name() for model in (student, teacher))
        for whose, there in (("student", own), ("teacher", theirs)):
            if name not in there:
                return f"the {whose} has no part '{name}' that can be inherited{nearest(name, there)}"
        shapes = [{key: tuple(value.shape) for key, value in side[name].state_dict().items()} for side in (own, theirs)]
        if shapes[0] != shapes[1]:
            differ = sorted(key for key in {*shapes[0], *shapes[1]} if shapes[0].get(key) != shapes[1].get(key))
            sizes = " and ".join(str(shape.get(differ[0], "nothing")) for shape in shapes)
            what = f"the student's part '{name}' differs from the teacher's in {len(differ)} tensors (of {differ[0]} {sizes})"
            return f"{what}: give both the same options, as `width`"
    return ""


def _try(term: Mapping[str, Any], pair: Pair, targets: Any, outputs: int, sources: Mapping[str, str]) -> tuple[str, str, list[str]]:
    """(why the loss cannot be used, why it could not be tried, what it notes), the first two empty where there is no reason: bind the loss
    and run it once, on the meta device, and if that fails, since values are absent there, on random values."""
    import torch

    name = f"the loss '{term['loss']}'"
    try:
        with torch.device("meta"):
            return "", "", _run(term, pair, targets.to("meta"), sources)
    except RefusedError as error:
        return f"{name} cannot be used: {error}", "", []
    except Exception as error:
        real = _real(pair, _needs(term, sources), outputs)
        if real is None:
            return "", f"{name} cannot be tried while planning, because its inputs are too large ({explained(error)})", []
    try:
        return "", "", _run(term, real, targets, sources)
    except LossError as error:
        return str(error), "", []
    except RefusedError as error:
        return f"{name} cannot be used: {error}", "", []
    except Exception as error:
        return f"{name} fails on this pair: {explained(error)}", "", []


def _run(term: Mapping[str, Any], pair: Pair, targets: Any, sources: Mapping[str, str]) -> list[str]:
    """What the loss notes of the pair."""
    import torch

    from kdbench.losses._base import Batch

    with isolated(0):
        loss = parts.from_config("loss", {**term, "name": term["loss"]}, sources)
        loss.prepare(pair)
        loss.parts(pair.student, pair.teacher, Batch(targets, torch.arange(PROBE_IMAGES)))
        return loss.noted(pair)


def _needs(term: Mapping[str, Any], sources: Mapping[str, str]) -> frozenset[str]:
    """What the loss needs; nothing where it cannot say (running it then tells why)."""
    try:
        return parts.from_config("loss", {**term, "name": term["loss"]}, sources)._needs()
    except Exception:
        return frozenset()


def _real(pair: Pair, needs: frozenset[str], outputs: int) -> Pair | None:
    """The pair as a loss with these needs sees it, with random values for what is on the meta device; None if that is too large."""
    import torch

    from kdbench.losses._base import TAPS, Pair

    sides = [pair.student, pair.teacher]
    if needs & set(TAPS):
        sides = [taps.needed(needs, "", "", lambda tensor: tensor) for taps in sides]
    nets = [getattr(pair, name) if name in needs else None for name in ("teacher_head", "teacher_model")]
    weights = [weight for net in nets if net is not None for weight in net.state_dict().values()]
    if sum(tensor.numel() for tensor in [*sides[0].tensors(), *sides[1].tensors(), *weights]) > MOST_ELEMENTS:
        return None
    with isolated(0):
        student, teacher = (taps.map(lambda tensor: torch.rand(tensor.shape, dtype=tensor.dtype)) for taps in sides)
        labels = torch.arange(min(len(pair.labels), MOST_LABELS)) % outputs if pair.labels is not None else None
        student = student.map(lambda tensor: tensor.requires_grad_())
        if "classifier" in needs:
            student, teacher = (
                replace(taps, classifier=tuple(torch.rand(one.shape).requires_grad_(taps is student) for one in given.classifier))
                for taps, given in ((student, sides[0]), (teacher, sides[1]))
            )
        features = None
        if "teacher_features" in needs and isinstance(pair.teacher_features, torch.Tensor) and labels is not None:
            features = torch.rand(len(labels), pair.teacher_features.shape[1])
        head, model = (None if net is None else _with_values(net) for net in nets)
        return Pair(student, teacher, labels, head, model, features)


def _with_values(net: Any) -> Any:
    """A copy of a net on the meta device that computes: small random weights, statistics of one."""
    import torch

    real = copy.deepcopy(net).to_empty(device="cpu")
    with torch.no_grad():
        for weight in real.parameters():
            weight.uniform_(-0.1, 0.1)
        for buffer in real.buffers():
            buffer.fill_(1)
    return real
