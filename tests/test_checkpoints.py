"""Checkpoints in the forms in which people save them: every wrapper, prefix, format and thing beside the weights; and no code of a file."""

from __future__ import annotations

import argparse
import builtins
import collections
import functools
import gzip
import importlib
import io
import os
import pickle
import re
import subprocess
import sys
import textwrap
import types
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from click.testing import CliRunner
from torch import Tensor, nn

from kdbench.cli import main
from kdbench.errors import DataError, SuiteError
from kdbench.models._base import Model
from kdbench.models.small_mobile import SmallMobile
from kdbench.plan.matrix import Plan
from kdbench.train.build import Setup
from kdbench.train.checkpoint_files import read_weights
from kdbench.train.start import fit
from kdbench.validation import given_path

State = dict[str, Any]


def built(outputs: int = 10, widths: tuple[int, ...] = (4, 6), seed: int = 0) -> Model:
    torch.manual_seed(seed)
    model = SmallMobile(widths=widths)
    model.build((1, 8, 8), outputs)
    return model


@pytest.fixture(scope="module")
def state() -> State:
    return dict(built(seed=5).plain.state_dict())


def prefixed(prefix: str, state: State, add: float = 0.0) -> State:
    return {prefix + name: value + add if value.is_floating_point() else value for name, value in state.items()}


def arrays(state: State) -> State:
    return {name: value.numpy() for name, value in state.items()}


def loaded(path: Path, *chosen: Any, new_head: bool = False) -> State:
    model = built(seed=1)
    fit(model, read_weights(path), path.name, new_head, *chosen)
    return model.plain.state_dict()


def refusal(path: Path, *chosen: Any, model: Model | None = None) -> str:
    with pytest.raises(DataError) as caught:
        fit(model or built(seed=1), read_weights(path), path.name, False, *chosen)
    return str(caught.value)


def assert_same(ours: State, state: State, what: str) -> None:
    for name, value in state.items():
        assert torch.equal(ours[name].to(value.dtype), value), f"{what}: {name}"


@pytest.fixture
def their_code() -> Iterator[types.ModuleType]:
    """A module of somebody else's that exists only while a checkpoint is saved."""
    source = """
        import dataclasses, enum
        import numpy as np
        from torch import nn
        class Config(dict):
            pass
        class Log:
            def __init__(self):
                self.losses = np.ones(3)
        class Mode(enum.Enum):
            FAST = 1
        @dataclasses.dataclass(frozen=True, slots=True)
        class Options:
            rate: float = 0.1
        class Training(nn.Module):
            def __init__(self, net):
                super().__init__()
                self.net, self.criterion = net, nn.Linear(2, 2)
                self.register_buffer("scratch", self.criterion.bias.detach(), persistent=False)
        def collate(batch):
            return batch
    """
    module = types.ModuleType("their_code")
    sys.modules["their_code"] = module
    exec(textwrap.dedent(source), module.__dict__)
    yield module
    sys.modules.pop("their_code", None)


def test_weights_are_found_under_any_wrapper_and_any_consistent_prefix(state: State, tmp_path: Path) -> None:
    forms: dict[str, Any] = {name: {name: state, "epoch": 3} for name in ("model", "ema", "model_ema", "weights", "params", "their_own")}
    forms |= {f"prefix {one}": {"state_dict": prefixed(one, state)} for one in ("_orig_mod.", "module._orig_mod.", "net.", "a.b.c.d.")}
    forms |= {
        "nested": {"checkpoint": {"run": {"model": prefixed("module.", state)}}},
        "a list": [{"epoch": 1}, state],
        "a name where others save weights": {"model": "resnet8", "state_dict": state},
        "beside another net": {"model": {**prefixed("student.", state), **prefixed("teacher.", built(widths=(8, 12)).plain.state_dict())}},
        "beside the same weights": {"model": {**prefixed("module.student.", state), **prefixed("module.teacher.", state)}},
        "beside an optimiser": {"net": state, "optimizer": torch.optim.AdamW(built().parameters()).state_dict()},
        "averaged": torch.optim.swa_utils.AveragedModel(built(seed=5).plain).state_dict(),
        "with counted operations": {**state, "total_ops": torch.zeros(1), "features.0.total_params": torch.zeros(1), "epoch": 5},
        "without counters": {name: value for name, value in state.items() if "num_batches" not in name},
        "parameters": {name: nn.Parameter(value) if value.is_floating_point() else value for name, value in state.items()},
        "in double precision": {name: value.double() if value.is_floating_point() else value for name, value in state.items()},
    }
    for name, form in forms.items():
        torch.save(form, tmp_path / "x.pth")
        assert_same(
            loaded(tmp_path / "x.pth"), {**state, **(form if name == "without counters" else {})} if name != "averaged" else state, name
        )


def test_half_precision_is_widened(state: State, tmp_path: Path) -> None:
    for dtype in (torch.float16, torch.bfloat16):
        halved = {name: value.to(dtype) if value.is_floating_point() else value for name, value in state.items()}
        torch.save(halved, tmp_path / "x.pth")
        assert_same({name: value.to(dtype) for name, value in loaded(tmp_path / "x.pth").items()}, prefixed("", halved), str(dtype))


def test_what_scripts_save_beside_the_weights_does_not_matter(state: State, their_code: types.ModuleType, tmp_path: Path) -> None:
    beside: dict[str, Any] = {
        "numpy scalars": [np.int64(3), np.bool_(True), np.float32(0.5), np.str_("x")],
        "numpy arrays": np.arange(6).reshape(2, 3),
        "arrays of objects": np.array([None, {}], dtype=object),
        "generators": [np.random.RandomState(0), np.random.default_rng(0), torch.get_rng_state()],
        "paths": argparse.Namespace(out=Path("x")),
        "collections": [collections.defaultdict(list, a=[1]), collections.deque([1, 2]), frozenset({1})],
        "a mapping of their own": their_code.Config(a=their_code.Config(b=1)),
        "an object of their own": their_code.Log(),
        "a member of an enumeration": their_code.Mode.FAST,
        "an object with slots": their_code.Options(),
        "functions": [their_code.collate, functools.partial(their_code.collate, 1)],
        "types": [torch.float16, int],
    }
    for legacy in (False, True):
        for name, value in beside.items():
            torch.save({"model": state, "beside": value}, tmp_path / "x.pth", _use_new_zipfile_serialization=not legacy)
            del sys.modules["their_code"]
            assert_same(loaded(tmp_path / "x.pth"), state, name)
            sys.modules["their_code"] = their_code


def test_a_whole_module_is_read_without_its_code(state: State, their_code: types.ModuleType, tmp_path: Path) -> None:
    net = built(seed=5).plain
    for name, whole in {"a net": net, "wrapped": nn.DataParallel(net), "in a training": {"module": their_code.Training(net)}}.items():
        torch.save(whole, tmp_path / "x.pth")
        their_code.Training.__setstate__ = None  # type: ignore[attr-defined]
        assert_same(loaded(tmp_path / "x.pth"), state, name)


def test_formats_are_known_by_their_content(state: State, tmp_path: Path) -> None:
    def bytes_of(write: Callable[[Any], Any]) -> bytes:
        file = io.BytesIO()
        write(file)
        return file.getvalue()

    forms = {
        "torch": bytes_of(lambda file: torch.save(state, file)),
        "torch before 1.6": bytes_of(
            lambda file: torch.save({"net": prefixed("module.", state)}, file, _use_new_zipfile_serialization=False)
        ),
        "safetensors": safetensors.torch.save(prefixed("module.", state), metadata={"epoch": "3"}),
        "npz": bytes_of(lambda file: np.savez(file, **arrays(state))),
        "compressed npz": bytes_of(lambda file: np.savez_compressed(file, **arrays(state))),
        "arrays in torch": bytes_of(lambda file: torch.save({"params": arrays(state), "epoch": np.int64(1)}, file)),
        "big-endian arrays": bytes_of(
            lambda file: torch.save({k: v.astype(v.dtype.newbyteorder(">")) for k, v in arrays(state).items()}, file)
        ),
        "pickled tensors": pickle.dumps({"model": state, "options": argparse.Namespace(rate=0.1)}),
        **{f"pickled arrays, protocol {one}": pickle.dumps({"model": arrays(state), "path": Path("x")}, protocol=one) for one in range(6)},
    }
    for name, content in forms.items():
        for file in ("x.pth", "no_suffix", "x.safetensors"):
            (tmp_path / file).write_bytes(content)
            assert_same(loaded(tmp_path / file), state, name)


class Runs:
    """Pickled, it calls a function when it is loaded."""

    def __init__(self, function: Any, *arguments: Any):
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def test_no_file_runs_code(state: State, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    calls = [(os.system, f"touch {mark}"), (subprocess.check_call, ["touch", str(mark)]), (eval, f"open({str(mark)!r}, 'w')")]
    calls += [(importlib.import_module, "this_is_no_module"), (builtins.__import__, "this_is_no_module"), (os.mkdir, str(mark))]
    for function, argument in calls:
        content = {"model": state, "beside": Runs(function, argument)}
        torch.save(content, tmp_path / "new.pth")
        torch.save(content, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
        (tmp_path / "plain.pkl").write_bytes(pickle.dumps({**content, "model": arrays(state)}))
        for file in ("new.pth", "old.pth", "plain.pkl"):
            assert re.search(
                rf"{file} holds a \S*{function.__name__} beside its weights, and kdbench runs no code", refusal(tmp_path / file)
            )
    # A function that is not known to be harmful is not called either.
    torch.save({"model": state, "beside": Runs(torch.hub.set_dir, str(mark))}, tmp_path / "x.pth")
    before = torch.hub.get_dir()
    assert_same(loaded(tmp_path / "x.pth"), state, "a function of a library")
    assert torch.hub.get_dir() == before and not mark.exists()


def test_a_file_that_is_no_checkpoint_is_described(state: State, tmp_path: Path) -> None:
    torch.save(state, tmp_path / "whole.pth")
    whole = (tmp_path / "whole.pth").read_bytes()
    script = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)), script)
    proto4 = io.BytesIO()
    torch.save(state, proto4, pickle_protocol=4)
    contents = {
        b"": "is damaged or not a checkpoint (it is empty)",
        whole[:5000]: "is damaged: its end is missing",
        whole[:-50].replace(b"PK\x05\x06", b"PK\x05\x07"): "is damaged: its end is missing",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a": "is a pointer of Git LFS and not the file itself: run `git lfs pull`",
        b"\n<!DOCTYPE html><html>Virus scan warning</html>": "is a web page and not a checkpoint: the download failed",
        b'{"weight_map": {}}': "is a JSON file: name the file that holds the weights",
        gzip.compress(whole): "is a packed archive: unpack it",
        script.getvalue(): "is a TorchScript program: save its weights, `torch.save(torch.jit.load(path).state_dict(), other)`",
        proto4.getvalue(): "save it again with `torch.save(weights, path)`",
        b"hello": "is damaged or not a checkpoint (UnpicklingError",
        pickle.dumps(
            {"epoch": 3, "log": [1]}
        ): "holds no state dictionary, which is a mapping from names to tensors; it holds epoch (int), log (list)",
        pickle.dumps(np.zeros(3)): "holds no state dictionary, which is a mapping from names to tensors (Array)",
    }
    for content, told in contents.items():
        (tmp_path / "x.pth").write_bytes(content)
        with pytest.raises(DataError) as caught:
            read_weights(tmp_path / "x.pth")
        assert f"x.pth {told}" in str(caught.value) or told in str(caught.value), told


def test_several_sets_of_weights_that_fit_are_listed_and_one_is_chosen(state: State, tmp_path: Path) -> None:
    other = prefixed("", state, 1.0)
    forms: list[tuple[Any, str, tuple[str | None, str | None]]] = [
        ({"model": other, "model_ema": state}, "`weights: {file: x.pth, key: model_ema}`", ("model_ema", None)),
        (
            {"state_dict": other, "state_dict_ema": prefixed("module.", state)},
            "key: state_dict_ema, prefix: module.}`",
            ("state_dict_ema", None),
        ),
        ({"a": {"student": other, "teacher": state}}, "key: a.teacher}`", ("a.teacher", "")),
        ({"model": {**prefixed("student.", state), **prefixed("teacher.", other)}}, "key: model, prefix: student.}`", (None, "student.")),
        ({**state, **prefixed("ema.", other)}, 'key: "", prefix: ""}`', (None, "")),
        ([other, state], 'key: "1"}`', ("1", None)),
        ({"my ema": state, "model": other}, 'key: "my ema"}`', ("my ema", None)),
    ]
    for form, line, chosen in forms:
        torch.save(form, tmp_path / "x.pth")
        told = refusal(tmp_path / "x.pth")
        assert told.startswith("x.pth holds 2 sets of weights that fit the model and differ: write `weights: {file: x.pth, ")
        assert line in told
        assert_same(loaded(tmp_path / "x.pth", *chosen), state, line)
    assert "has no tensors under the key 'modle'; did you mean 'model'?" in refusal(tmp_path / "x.pth", "modle")
    torch.save(prefixed("student.", state), tmp_path / "x.pth")
    assert "has no tensors with the prefix 'student'; did you mean 'student.'?" in refusal(tmp_path / "x.pth", None, "student")


def test_weights_that_do_not_fit_are_described_with_what_is_near(state: State, tmp_path: Path) -> None:
    def told(form: Any, model: Model | None = None) -> str:
        torch.save(form, tmp_path / "x.pth")
        return refusal(tmp_path / "x.pth", model=model)

    renamed = {name.replace("classifier", "linear"): value for name, value in state.items()}
    message = told({"net": prefixed("module.", renamed), "log": {"loss": torch.zeros(3)}})
    assert "of its keys (under the key 'net' and the prefix 'module.') 2 missing (classifier.bias, classifier.weight)" in message
    assert "the nearest to classifier.weight (10, 6) is linear.weight (10, 6)" in message
    assert "it holds tensors under 'net' (" in message and "'log' (1)" in message
    deeper = built(widths=(4, 6, 8))
    assert re.search(r"\d+ missing", told(state, deeper)) and "unknown" in told(deeper.plain.state_dict())
    assert told({name: value for name, value in state.items() if "classifier" not in name}).endswith("`head: new` would draw the head anew")
    whole_numbers = {name: value.to(torch.int8) for name, value in state.items()}
    assert "(4,) of torch.int8 for (4,)" in told(whole_numbers)
    assert "holds values that are not numbers (NaN) in classifier.bias: " in told(
        {**state, "classifier.bias": torch.full((10,), torch.nan)}
    )


def test_the_head_of_a_backbone_that_gets_a_new_one_may_be_absent_or_anything(state: State, tmp_path: Path) -> None:
    body = {name: value for name, value in state.items() if not name.startswith("classifier.")}
    for head in ({}, {"classifier.0.weight": torch.zeros(3, 3), "classifier.2.weight": torch.zeros(2, 3)}):
        torch.save({"state_dict": {**prefixed("module.encoder.", {**body, **head}), "module.queue": torch.zeros(4)}}, tmp_path / "x.pth")
        assert_same(loaded(tmp_path / "x.pth", new_head=True), body, str(list(head)))


def weights_of(plan_of: Callable[..., Plan], weights: str) -> Plan:
    return plan_of(students=f"{{small: {{model: small_mobile, widths: [4, 6], weights: {weights}}}}}")


def test_the_identity_knows_what_chooses_the_weights_and_a_plain_name_keeps_its_id(
    plan_of: Callable[..., Plan], state: State, tmp_path: Path
) -> None:
    torch.save({"model": state, "model_ema": prefixed("", state, 1.0)}, tmp_path / "a.pth")
    plain, mapping, key, prefix = (
        weights_of(plan_of, one) for one in ("a.pth", "{file: a.pth}", "{file: a.pth, key: model_ema}", "{file: a.pth, prefix: m.}")
    )
    configs = [plan.rows[-1].cell.config["student"]["weights"] for plan in (plain, mapping, key, prefix)]
    digest = configs[0]["digest"]

    assert configs[0] == configs[1] == {"from": "file", "digest": digest, "head": "kept"}
    assert [{k: v for k, v in one.items() if k in ("key", "prefix")} for one in configs[2:]] == [{"key": "model_ema"}, {"prefix": "m."}]
    assert plain.rows[-1].cell.id == mapping.rows[-1].cell.id
    assert len({plan.rows[-1].cell.id for plan in (plain, key, prefix)}) == 3
    assert f"small starts from the weights of a checkpoint (SHA-256 {digest}..., key 'model_ema')" in key.manifest().assumed
    cell = key.rows[-1].cell
    started = Setup.of(cell, tmp_path, torch.device("cpu")).student(cell)
    assert_same(started.state_dict(), prefixed("", state, 1.0), "as a student starts")


def test_weights_lie_beside_the_suite_or_in_the_home(
    plan_of: Callable[..., Plan], state: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    for folder in (home, tmp_path / "sub", tmp_path / "elsewhere"):
        folder.mkdir()
    torch.save(state, home / "a.pth")
    (tmp_path / "sub" / "a.pth").write_bytes((home / "a.pth").read_bytes())
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(tmp_path / "elsewhere")

    forms = ["~/a.pth", "{file: ~/a.pth}", "sub/a.pth", "./sub/../sub/a.pth", str(home / "a.pth"), "'sub/a.pth'"]
    assert len({weights_of(plan_of, one).rows[-1].cell.id for one in forms}) == 1


@pytest.mark.parametrize(
    ("weights", "told"),
    [
        ("''", "students.small.weights: it is blank: write a path, or leave it out"),
        ("' '", "it is blank"),
        ("\"'a.pth'\"", "students.small.weights: the quotes are part of the path: write a.pth"),
        ("~nobody-has-this-name/a.pth", "~nobody-has-this-name/a.pth: the home of this user is not known: write the whole path"),
        ("{file: b.pth}", r"students.small.weights.file: there is no file \S*b.pth; did you mean 'a.pth'\? \(for weights of timm write"),
        ("sub", r"students.small.weights: \S*sub is a folder and no file"),
        ("{fil: a.pth}", "students.small.weights.fil: unknown key; did you mean 'file'"),
        ("{key: model}", "students.small.weights: the key 'file' is missing"),
        ("{file: a.pth, key: 1}", "students.small.weights.key: 1: expected text"),
        ("3", "students.small.weights: 3: expected text or a mapping"),
    ],
)
def test_weights_that_are_written_wrongly_are_refused(weights: str, told: str, plan_of: Callable[..., Plan], tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.pth").write_bytes(b"")
    with pytest.raises(SuiteError, match=told) as caught:
        weights_of(plan_of, weights)
    assert len(caught.value.errors) == 1, "the model is known, though another key is wrong"


def test_a_teacher_with_a_new_head_that_is_not_trained_is_refused_when_planning(
    plan_of: Callable[..., Plan], state: State, tmp_path: Path
) -> None:
    torch.save(state, tmp_path / "a.pth")
    said = "a new head that is not trained would teach at random: leave out `train: false`"
    for dataset, weights in (("digits", "model: small_mobile, weights: a.pth"), ("cifar10", "model: resnet18, weights: pretrained")):
        with pytest.raises(SuiteError, match=rf"teachers\.big\.head: {said}"):
            plan_of(dataset=dataset, teachers=f"{{big: {{{weights}, train: false, head: new}}}}")
    plan_of(teachers="{big: {model: small_mobile, widths: [4, 6], weights: a.pth, head: new}}")


def test_a_checkpoint_that_does_not_fit_is_found_by_check(write_suite: Callable[..., Path], state: State, tmp_path: Path) -> None:
    torch.save({"model": state, "ema": prefixed("", state, 1.0)}, tmp_path / "a.pth")
    teachers = "{big: {model: small_mobile, widths: [8, 12], weights: a.pth, train: false}}"
    suite = write_suite(teachers=teachers, students="{small: {model: small_mobile, widths: [4, 6], weights: a.pth}}")
    done = CliRunner().invoke(main, ["check", str(suite), "--results", str(tmp_path / "results"), "--device", "cpu"])

    assert done.exit_code == 1
    assert re.search(r"WRONG: its teacher: \S*a.pth does not fit the model: of its keys \(under the key 'model'\)", done.output)
    assert re.search(r"WRONG: \S*a.pth holds 2 sets of weights that fit .* or `weights: \{file: \S*a.pth, key: ema\}`", done.output)


def test_a_data_folder_may_be_written_with_the_home_and_is_relative_to_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Path] = []
    monkeypatch.setattr("kdbench.catalogue.downloaded", lambda name, data: str(seen.append(data)))
    monkeypatch.setenv("HOME", str(tmp_path))

    def asked(*arguments: str, **environment: str) -> tuple[int, str]:
        done = CliRunner().invoke(main, ["download", "digits", *arguments], env=environment)
        return done.exit_code, done.output

    assert asked("--data=~/d")[0] == asked("--data", "d")[0] == asked(KDBENCH_DATA="~/e")[0] == asked(KDBENCH_DATA="")[0] == 0
    assert seen == [tmp_path / "d", Path("d"), tmp_path / "e", Path("data")]
    for arguments, environment in (
        (["--data", ""], {}),
        (["--data", "'d'"], {}),
        ([], {"KDBENCH_DATA": '"~/d"'}),
        ([], {"KDBENCH_DATA": " "}),
    ):
        status, output = asked(*arguments, **environment)
        assert status == 2 and "Invalid value for '--data'" in output
        assert "the quotes are part of the path: write" in output or "it is blank: write a path, or leave it out" in output
    assert len(seen) == 4
    assert given_path("a b") == Path("a b")


def test_a_tensor_without_its_numbers_is_no_weight(state: State, tmp_path: Path) -> None:
    empty: dict[str, Tensor] = {name: value.to("meta") for name, value in state.items()}
    torch.save({"model": empty, "ema": state}, tmp_path / "x.pth")
    assert_same(loaded(tmp_path / "x.pth"), state, "beside tensors on the meta device")


def test_safetensors_are_read_whatever_byte_the_length_of_their_header_has(state: State, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    for wanted in (0x3C20, 0x5B20, 0x7B20, 0x8B1F):  # as ' <', ' [', ' {' and the mark of gzip
        longer = 0
        for _ in range(3):
            safetensors.torch.save_file(state, path, metadata={"note": "x" * longer})
            longer += wanted - int.from_bytes(path.read_bytes()[:8], "little")
        assert abs(int.from_bytes(path.read_bytes()[:8], "little") - wanted) < 8
        assert_same(loaded(path), state, hex(wanted))


def test_what_lies_beside_arrays_in_an_npz_does_not_matter(state: State, tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    swapped = {name: value.astype(value.dtype.newbyteorder(">")) for name, value in arrays(state).items()}
    np.savez(path, **swapped, arch="small", notes=np.array([{"lr": 0.1}], dtype=object))
    assert_same(loaded(path), state, "npz")


def test_one_set_of_weights_under_two_keys_is_found_under_either(state: State, tmp_path: Path) -> None:
    path, others = tmp_path / "x.pth", prefixed("", state, add=1.0)
    torch.save({"model": state, "ema": others, "best": state, "log": (log := {"best": state, "again": []})} | {"more": log}, path)
    assert_same(loaded(path, "best"), state, "best")
    assert_same(loaded(path, "ema"), others, "ema")


def test_a_pickle_changes_no_function_and_no_class_of_this_process(state: State, tmp_path: Path) -> None:
    torch.save(state, tmp_path / "sound.pth")
    before = torch._utils._rebuild_tensor_v2.__defaults__
    for name in (b"torch._utils\n_rebuild_tensor_v2", b"numpy\ndtype", b"collections\ndeque", b"their\nThing"):
        for key in (b"__defaults__", b"__doc__", b"arguments"):
            (tmp_path / "x.pkl").write_bytes(b"(lp0\nc" + name + b"\n(N}S'" + key + b"'\n)stb0.")
            with pytest.raises(DataError, match="is damaged or not a checkpoint"):
                read_weights(tmp_path / "x.pkl")
    assert torch._utils._rebuild_tensor_v2.__defaults__ == before
    assert_same(loaded(tmp_path / "sound.pth"), state, "afterwards")
