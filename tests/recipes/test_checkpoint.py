"""Files of weights are read whole or refused in a line, and nothing that is in them is run."""

from __future__ import annotations

import hashlib
import os
import pickle
import shutil
import zipfile
from argparse import Namespace
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from volsam.errors import BadInput
from volsam.recipes.checkpoint import Checkpoint, read_checkpoint, require_finite

from .files import FORMS, Malicious, of_a_training, plain, saved, weights_of

TENSORS = {"a.weight": torch.arange(3000.0).reshape(100, 30), "a.bias": torch.ones(3), "lr": torch.tensor(2.0)}
FORMATS = [{}, {"_use_new_zipfile_serialization": False}]


def refusal(path: Path) -> str:
    with pytest.raises(BadInput) as refused:
        read_checkpoint(path)
    text = str(refused.value)
    assert "\n" not in text
    assert path.name in text
    return text


def assert_same(found: Checkpoint, expected: dict[str, torch.Tensor]) -> None:
    assert set(found.tensors) == set(expected)
    for name, tensor in expected.items():
        assert found.tensors[name].dtype == tensor.dtype
        assert torch.equal(found.tensors[name], tensor)


# --- read ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", FORMATS, ids=["zip", "legacy"])
@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_every_published_form_gives_the_same_tensors(form: Any, how: dict[str, Any], tmp_path: Path) -> None:
    assert_same(read_checkpoint(saved(form(TENSORS), tmp_path / "a.pth", **how)), TENSORS)


def test_a_safetensors_file_is_read_whatever_it_is_called(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "weights.bin")
    assert_same(read_checkpoint(tmp_path / "weights.bin"), TENSORS)


def test_the_parts_of_3dsam_adapter_come_under_their_names(tmp_path: Path) -> None:
    levels = [{"x.weight": torch.full((2, 2), float(level))} for level in range(4)]
    content = {
        "epoch": 7,
        "best_val_loss": np.float64(0.25),
        "encoder_dict": OrderedDict({"module.pos_embed": TENSORS["a.bias"]}),
        "feature_dict": levels,
        "decoder_dict": {"cls.0.weight": TENSORS["a.weight"]},
        "encoder_opt": {"state": {}},
    }
    found = read_checkpoint(saved(content, tmp_path / "best.pth.tar"))
    expected = {f"feature_dict[{level}].x.weight": part["x.weight"] for level, part in enumerate(levels)}
    expected |= {"encoder_dict.pos_embed": TENSORS["a.bias"], "decoder_dict.cls.0.weight": TENSORS["a.weight"]}
    assert_same(found, expected)
    assert "left out: epoch, best_val_loss, encoder_opt" in found.note


def test_the_note_says_where_weights_were_and_what_was_left_out(tmp_path: Path) -> None:
    found = read_checkpoint(saved(of_a_training(TENSORS), tmp_path / "a.pth"))
    assert found.note.startswith("weights in model_state_dict; left out: epoch, optimizer_state_dict, losses")
    assert read_checkpoint(saved(plain(TENSORS), tmp_path / "b.pth")).note == ""


def test_the_checksum_is_that_of_the_file(tmp_path: Path) -> None:
    path = saved(TENSORS, tmp_path / "a.pth")
    assert read_checkpoint(path).sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_names_of_parallel_training_are_kept_where_not_all_have_them(tmp_path: Path) -> None:
    mixed = {"module.a": torch.ones(1), "b": torch.ones(2)}
    assert_same(read_checkpoint(saved(mixed, tmp_path / "a.pth")), mixed)


def test_parameters_come_as_tensors_without_a_history(tmp_path: Path) -> None:
    path = saved({"a": torch.nn.Parameter(torch.ones(3))}, tmp_path / "a.pth")
    tensor = read_checkpoint(path).tensors["a"]
    assert type(tensor) is torch.Tensor or not tensor.requires_grad
    assert not tensor.requires_grad


def test_what_stands_beside_the_weights_is_not_made(tmp_path: Path) -> None:
    path = saved({"a": torch.ones(1), "args": Malicious(Namespace, *range(9))}, tmp_path / "a.pth")
    assert list(read_checkpoint(path).tensors) == ["a"]
    # Nor is it allowed from now on.
    allowed = [one[1] for one in torch.serialization.get_safe_globals() if isinstance(one, tuple)]
    assert "argparse.Namespace" not in allowed


# --- refused: code ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", FORMATS, ids=["zip", "legacy"])
def test_a_file_that_would_run_a_command_is_refused_and_runs_none(how: dict[str, Any], tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    evil = Malicious(os.system, f"touch {marker}")
    path = saved({"model": TENSORS, "x": evil}, tmp_path / "a.pth", **how)
    assert f"needs {os.name}.system" in refusal(path)
    assert not marker.exists()
    with path.open("rb") as file:  # the same file does harm where it is trusted
        torch.load(file, weights_only=False)
    assert marker.exists()


@pytest.mark.parametrize(
    ("function", "given", "named"),
    [
        (eval, ("1",), "builtins.eval"),
        (exec, ("1",), "builtins.exec"),
        (shutil.rmtree, ("gone",), "shutil.rmtree"),
        (getattr, (1, "real"), "builtins.getattr"),
        (torch.hub.load, ("a", "b"), "torch.hub.load"),
        (np.load, ("a",), "numpy.load"),
    ],
)
def test_the_refusal_names_what_was_wanted(function: Any, given: Any, named: str, tmp_path: Path) -> None:
    text = refusal(saved({"a": torch.ones(1), "x": Malicious(function, *given)}, tmp_path / "a.pth"))
    assert f"needs {named}," in text
    assert "nothing in it was run" in text


def test_a_whole_network_as_an_object_is_refused(tmp_path: Path) -> None:
    assert "needs torch.nn.modules.linear.Linear" in refusal(saved(torch.nn.Linear(2, 2), tmp_path / "a.pth"))


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_a_bare_pickle_runs_nothing(protocol: int, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    path = tmp_path / "a.pt"
    path.write_bytes(pickle.dumps(Malicious(os.system, f"touch {marker}"), protocol=protocol))
    refusal(path)
    assert not marker.exists()


def test_a_pickle_of_a_newer_kind_is_refused(tmp_path: Path) -> None:
    assert "of a newer kind" in refusal(saved(TENSORS, tmp_path / "a.pt", pickle_protocol=4))


# --- refused: no weights ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html><html><body>Sign in</body></html>", "is a web page"),
        (b"\n  <HTML>", "is a web page"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 3\n", "pointer of git-lfs"),
        (b"weights, as agreed\n" * 9, "neither a safetensors nor a torch file"),
        (b"\x1f\x8b\x08" + bytes(60), "is a packed archive"),
        (bytes(257) + b"ustar" + bytes(250), "is a packed archive"),
        (b"\x93NUMPY" + bytes(60), "an array of numpy"),
        (b"\x80", "cut short or damaged"),
        (b"PK\x03\x04" + bytes(60), "cut short or damaged"),
    ],
)
def test_what_is_no_checkpoint_is_called_what_it_is(content: bytes, says: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    assert says in refusal(path)


def test_a_folder_and_a_file_that_is_not_there_are_refused(tmp_path: Path) -> None:
    assert "is a folder" in refusal(tmp_path)
    assert "there is no file" in refusal(tmp_path / "gone.pth")


def test_other_archives_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", a=np.zeros(3))
    assert "not one of torch" in refusal(tmp_path / "a.npz")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_program_of_torch_is_refused(tmp_path: Path) -> None:
    torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / "a.pt")
    assert "program of TorchScript" in refusal(tmp_path / "a.pt")


@pytest.mark.parametrize(
    "content", [torch.ones(3), [torch.ones(3)], 5, {"a": 1}, {}, {"model": {}}, {"model": {"a": {}}}]
)
def test_a_file_without_named_tensors_is_refused(content: Any, tmp_path: Path) -> None:
    assert "names" in refusal(saved(content, tmp_path / "a.pth"))


def test_a_damaged_3dsam_adapter_is_refused(tmp_path: Path) -> None:
    content = {"encoder_dict": {"a": torch.ones(1)}, "feature_dict": {}, "decoder_dict": {"a": torch.ones(1)}}
    assert "must hold tensors" in refusal(saved(content, tmp_path / "a.pth.tar"))


# --- refused: damaged ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", [0.01, 0.3, 0.7, 0.99])
@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_a_file_that_is_cut_short_is_refused(kind: str, part: float, tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    if kind == "safetensors":
        save_file(TENSORS, path)
    else:
        saved(TENSORS, path, _use_new_zipfile_serialization=kind == "zip")
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * part)])
    assert "cut short or damaged" in refusal(path)


def test_a_byte_that_changed_on_the_way_is_noticed(tmp_path: Path) -> None:
    path = saved(TENSORS, tmp_path / "a.pth")
    content = bytearray(path.read_bytes())
    content[content.index(TENSORS["a.weight"].numpy().tobytes()[:400]) + 200] ^= 64
    path.write_bytes(content)
    assert "checksum" in refusal(path)


def test_an_archive_that_unpacks_to_more_than_it_is_is_refused(tmp_path: Path) -> None:
    path, packed = saved(TENSORS, tmp_path / "a.pth"), tmp_path / "b.pth"
    with zipfile.ZipFile(path) as whole, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as small:
        for part in whole.infolist():
            small.writestr(part.filename, bytes(10_000_000) if part.filename.endswith("data/0") else whole.read(part))
    assert "unpacks to more" in refusal(packed)


@pytest.mark.parametrize("how", FORMATS, ids=["zip", "legacy"])
def test_a_tensor_that_claims_more_than_is_stored_is_refused(how: dict[str, Any], tmp_path: Path) -> None:
    huge = torch.zeros(1).expand(1_000_000, 1_000_000)  # a terabyte, if it were made whole
    assert "more values than are stored" in refusal(saved({"a": huge}, tmp_path / "a.pth", **how))


@pytest.mark.parametrize("odd", [torch.eye(3).to_sparse(), torch.empty(3, device="meta")], ids=["sparse", "meta"])
def test_tensors_of_other_kinds_are_refused(odd: torch.Tensor, tmp_path: Path) -> None:
    assert "plain dense tensor" in refusal(saved({"a": odd}, tmp_path / "a.pth"))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_weights_that_are_no_numbers_are_refused(value: float, dtype: torch.dtype) -> None:
    tensors = {"a": torch.ones(3), "b": torch.tensor([[1.0, value]], dtype=dtype), "c": torch.tensor([1, 2])}
    with pytest.raises(BadInput, match=r"here: 1 of 2 values of b are NaN or infinite"):
        require_finite(Checkpoint(tensors, "here", ""))
    tensors["b"] = torch.ones(1, 2, dtype=dtype)
    require_finite(Checkpoint(tensors, "here", ""))


def test_names_and_shapes_are_described() -> None:
    tensors = weights_of("sam2d")
    described = Checkpoint(tensors, "here", "").described
    assert described.where == "here"
    assert described.shapes["image_encoder.pos_embed"] == (1, 8, 8, 48)
    assert len(described.shapes) == len(tensors)
