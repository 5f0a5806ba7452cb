"""Models are kept whole or not at all, found by name, and given back as they came."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import safetensors.torch
import torch
from safetensors.torch import load_file

from volsam.errors import BadFile, BadInput
from volsam.recipes import store
from volsam.recipes.store import Card, Origin

TENSORS = {"a.weight": torch.arange(12.0).reshape(3, 4), "b": torch.ones(5, dtype=torch.float16)}
CARD = Card(
    family="sam",
    title="SAM",
    prompts=("point", "box"),
    licence="Apache-2.0",
    source="a paper",
    imported=(Origin(file="sam.pth", sha256="ab" * 32),),
)


def files_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def written_half(tensors: dict[str, torch.Tensor], path: Path, error: BaseException) -> None:
    path.write_bytes(bytes(100))
    raise error


# --- where -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("platform", "variables", "expected"),
    [
        ("linux", {}, "/me/.cache/volsam"),
        ("linux", {"XDG_CACHE_HOME": "/big"}, "/big/volsam"),
        ("linux", {"XDG_CACHE_HOME": "not/whole"}, "/me/.cache/volsam"),  # as the XDG specification says
        ("darwin", {"XDG_CACHE_HOME": "/big"}, "/me/Library/Caches/volsam"),
        ("win32", {"LOCALAPPDATA": "/local"}, "/local/volsam"),
        ("win32", {}, "/me/AppData/Local/volsam"),
        ("linux", {"VOLSAM_HOME": "/mine", "XDG_CACHE_HOME": "/big"}, "/mine"),
        ("win32", {"VOLSAM_HOME": "~/models", "LOCALAPPDATA": "/local"}, "/me/models"),
    ],
)
def test_the_home_is_where_a_system_keeps_caches(
    platform: str, variables: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    for variable in ("VOLSAM_HOME", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", "/me")
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    assert PurePosixPath(store.home()) == PurePosixPath(expected)


# --- kept ------------------------------------------------------------------------------------------------------------


def test_a_model_is_kept_under_its_name_with_a_card(a_home: Path) -> None:
    model = store.put("mine", TENSORS, CARD)
    assert files_in(a_home) == ["models/mine/card.json", "models/mine/weights.safetensors"]
    kept = load_file(model.weights)
    assert {name: (tensor.dtype, tensor.tolist()) for name, tensor in kept.items()} == {
        name: (tensor.dtype, tensor.tolist()) for name, tensor in TENSORS.items()
    }
    assert model.present
    assert model.card.parameters == 17
    assert model.card.bytes == model.weights.stat().st_size
    assert model.card.sha256 == hashlib.sha256(model.weights.read_bytes()).hexdigest()
    assert model.card.imported == CARD.imported
    assert model == store.stored("mine") == store.all_stored()[0]


def test_others_may_read_what_one_has_stored(a_home: Path) -> None:
    before = os.umask(0o022)
    try:
        model = store.put("mine", TENSORS, CARD)
    finally:
        os.umask(before)
    assert model.weights.stat().st_mode & 0o777 == 0o644


def test_tensors_that_share_memory_or_have_gaps_are_kept(a_home: Path) -> None:
    whole = torch.arange(20.0).reshape(4, 5)
    tensors = {"whole": whole, "again": whole, "part": whole[1:3], "column": whole[:, 2], "turned": whole.T}
    kept = load_file(store.put("mine", tensors, CARD).weights)
    assert {name: tensor.tolist() for name, tensor in kept.items()} == {n: t.tolist() for n, t in tensors.items()}


def test_a_name_is_taken_once_unless_forced(a_home: Path) -> None:
    store.put("mine", TENSORS, CARD)
    with pytest.raises(BadInput, match=r"called mine already: give another --name, or replace it with --force"):
        store.put("mine", {"c": torch.ones(1)}, CARD)
    assert store.stored("mine").card.parameters == 17
    store.put("mine", {"c": torch.ones(1)}, CARD, force=True)
    assert store.stored("mine").card.parameters == 1
    assert files_in(a_home) == ["models/mine/card.json", "models/mine/weights.safetensors"]


BAD_NAMES = [
    "", ".", "..", "../mine", "a/b", "a\\b", "/abs", "C:mine", "Mine", "my model", ".hidden", "mine.", "-o", "aux",
    "con.v1", "com1", "a\n", "é", "a" * 65, "~",
]  # fmt: skip


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_name_that_is_no_folder_of_its_own_is_refused(name: str, a_home: Path) -> None:
    with pytest.raises(BadInput, match="cannot be called"):
        store.put(name, TENSORS, CARD)
    assert not store.is_stored(name)
    assert files_in(a_home) == []


@pytest.mark.parametrize("name", ["a", "sam-vit_b", "sam_vit_b_01ec64", "v1.2", "a+b", "0"])
def test_ordinary_names_are_taken(name: str, a_home: Path) -> None:
    assert store.put(name, TENSORS, CARD).name == name


def test_the_name_of_what_ships_is_not_given_away(a_home: Path) -> None:
    with pytest.raises(BadInput, match="ships with volsam"):
        store.put("volsam-s", TENSORS, CARD, force=True)


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("sam_vit_b_01ec64.pth", "sam_vit_b_01ec64"),
        ("Best Model (1).pth.tar", "best-model-1"),
        ("MedSAM.safetensors", "medsam"),
        ("folder/x.PT", "x"),
        ("...", ""),
        ("aux.pth", ""),
        ("é.pth", ""),
        ("a" * 90 + ".pt", "a" * 64),
    ],
)
def test_a_name_is_proposed_from_that_of_a_file(file: str, name: str) -> None:
    assert store.proposed_name(file) == name
    if name:
        store.require_name(name)


# --- nothing half ----------------------------------------------------------------------------------------------------

FULL_DISK = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("force", [False, True], ids=["new", "replaced"])
@pytest.mark.parametrize("error", [FULL_DISK, KeyboardInterrupt(), safetensors.SafetensorError("I/O error")], ids=repr)
def test_a_write_that_fails_leaves_what_was_there(
    error: BaseException, force: bool, a_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if force:
        store.put("mine", TENSORS, CARD)
    before = {name: (a_home / name).read_bytes() for name in files_in(a_home)}
    monkeypatch.setattr(safetensors.torch, "save_file", lambda t, path, metadata: written_half(t, path, error))
    expected = KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else BadInput
    with pytest.raises(expected) as refused:
        store.put("mine", {"c": torch.ones(1)}, CARD, force=force)
    if expected is BadInput:
        assert "VOLSAM_HOME" in str(refused.value)
    assert {name: (a_home / name).read_bytes() for name in files_in(a_home)} == before
    assert [path.name for path in (a_home / "models").iterdir()] == (["mine"] if force else [])


def test_the_old_model_comes_back_when_the_new_one_cannot_take_its_place(
    a_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put("mine", TENSORS, CARD)
    rename = Path.rename

    def refuse_new(path: Path, target: Path) -> Path:
        if path.name.startswith(".new."):
            raise OSError(errno.EIO, "Input/output error")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refuse_new)
    with pytest.raises(BadInput, match="Input/output error"):
        store.put("mine", {"c": torch.ones(1)}, CARD, force=True)
    assert store.stored("mine").card.parameters == 17
    assert [path.name for path in (a_home / "models").iterdir()] == ["mine"]


KILLED = """
import os, signal, safetensors.torch, torch
from volsam.recipes import store
def killed(tensors, path, metadata):
    path.write_bytes(bytes(100))
    os.kill(os.getpid(), signal.SIGKILL)
safetensors.torch.save_file = killed
card = store.Card(family="sam", title="SAM", prompts=(), licence="", source="", imported=())
store.put("mine", {"a": torch.ones(3)}, card)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_a_killed_import_is_no_model_and_is_swept_away_later(a_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED], capture_output=True, check=False)
    assert done.returncode == -9, done.stderr
    assert len(files_in(a_home)) == 1
    assert store.all_stored() == []
    store.put("mine", TENSORS, CARD)  # the name is free; what may still be at work is left alone
    assert len(files_in(a_home)) == 3
    monkeypatch.setattr(store, "LEFT_OVER", -1)
    store.put("other", TENSORS, CARD)
    assert files_in(a_home) == [
        f"models/{name}/{file}" for name in ("mine", "other") for file in (store.CARD, store.WEIGHTS)
    ]


def test_a_full_disk_is_foreseen(a_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(a_home)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10))
    with pytest.raises(BadInput, match=r"mine takes 0 MB, and 0 MB are free .* VOLSAM_HOME"):
        store.put("mine", TENSORS, CARD)
    assert files_in(a_home) == []


def test_a_home_that_cannot_be_made_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("VOLSAM_HOME", str(tmp_path / "file" / "home"))
    with pytest.raises(BadInput, match="cannot be changed"):
        store.put("mine", TENSORS, CARD)
    assert store.all_stored() == []


def test_a_home_that_may_not_be_written_is_named(a_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(BadInput, match=r"models cannot be changed \(Permission denied\)"):
        store.put("mine", TENSORS, CARD)


# --- found -----------------------------------------------------------------------------------------------------------


def test_an_unknown_name_is_answered_with_a_near_one(a_home: Path) -> None:
    store.put("sam-vit-b", TENSORS, CARD)
    with pytest.raises(BadInput, match="did you mean 'sam-vit-b'"):
        store.stored("sam-vitb")
    with pytest.raises(BadInput, match="did you mean 'volsam-s'"):
        store.stored("volsam_s")
    with pytest.raises(BadInput, match="known are: sam-mini, sam-vit-b, volsam-s"):
        store.stored("zzz")


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"family": 3}', "\x00"])
def test_a_card_that_was_spoilt_is_named_and_hides_no_other(
    content: str, a_home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store.put("mine", TENSORS, CARD)
    store.put("other", TENSORS, CARD)
    (store.folder_of("mine") / store.CARD).write_text(content)
    with pytest.raises(BadFile, match=r"card\.json cannot be read"):
        store.stored("mine")
    assert [model.name for model in store.all_stored()] == ["other"]
    assert "card.json cannot be read" in caplog.text


def test_a_card_of_a_later_version_is_read(a_home: Path) -> None:
    store.put("mine", TENSORS, CARD)
    path = store.folder_of("mine") / store.CARD
    path.write_text(json.dumps(json.loads(path.read_text()) | {"scores": [1, 2]}))
    assert store.stored("mine").card.title == "SAM"


def test_what_is_no_model_is_not_listed(a_home: Path) -> None:
    store.put("mine", TENSORS, CARD)
    (a_home / "models" / "empty").mkdir()
    (a_home / "models" / "file").write_text("")
    (a_home / "models" / "Not A Name").mkdir()
    assert [model.name for model in store.all_stored()] == ["mine"]


def test_weights_that_are_gone_or_cut_are_noticed(a_home: Path) -> None:
    model = store.put("mine", TENSORS, CARD)
    model.weights.write_bytes(model.weights.read_bytes()[:-1])
    assert not model.present
    with pytest.raises(BadFile, match="missing or cut short"):
        store.network_of(model)
    model.weights.unlink()
    assert not store.stored("mine").present


def test_weights_that_were_overwritten_are_noticed(a_home: Path) -> None:
    model = store.put("mine", TENSORS, CARD)
    model.weights.write_bytes(bytes(model.card.bytes))
    with pytest.raises(BadFile, match="damaged"):
        store.network_of(model)


def test_a_removed_model_is_gone(a_home: Path) -> None:
    store.put("mine", TENSORS, CARD)
    store.put("other", TENSORS, CARD)
    store.remove("mine")
    assert [path.name for path in (a_home / "models").iterdir()] == ["other"]
    with pytest.raises(BadInput, match="no model is called 'mine'"):
        store.remove("mine")


# --- given back ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", [".safetensors", ".pt", ".PTH"])
def test_weights_are_exported_under_their_names(ending: str, a_home: Path, tmp_path: Path) -> None:
    model = store.put("mine", TENSORS, CARD)
    target = tmp_path / f"out{ending}"
    store.export(model.weights, target)
    found = load_file(target) if ending == ".safetensors" else torch.load(target, weights_only=True)
    assert {name: (t.dtype, t.tolist()) for name, t in found.items()} == {
        name: (t.dtype, t.tolist()) for name, t in TENSORS.items()
    }
    assert files_in(tmp_path) == [target.name]


@pytest.mark.parametrize("ending", [".safetensors", ".pt"])
def test_an_export_that_fails_leaves_nothing(
    ending: str, a_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Any, target: Any) -> None:
        target.write_bytes(bytes(9))
        raise FULL_DISK if ending == ".safetensors" else RuntimeError("PytorchStreamWriter failed writing file")

    model = store.put("mine", TENSORS, CARD)
    monkeypatch.setattr(shutil, "copyfile", fail)
    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(BadInput, match="cannot be written"):
        store.export(model.weights, tmp_path / f"out{ending}")
    assert files_in(tmp_path) == []


@pytest.mark.parametrize(("target", "says"), [("a.onnx", "ends in"), ("gone/a.pt", "make it first"), ("a", "ends in")])
def test_an_export_to_nowhere_is_refused(target: str, says: str, a_home: Path, tmp_path: Path) -> None:
    model = store.put("mine", TENSORS, CARD)
    with pytest.raises(BadInput, match=says):
        store.export(model.weights, tmp_path / target)


def test_the_store_is_not_exported_onto_itself(a_home: Path) -> None:
    model = store.put("mine", TENSORS, CARD)
    with pytest.raises(BadInput, match="the model itself"):
        store.export(model.weights, model.weights)
    assert model.present
