"""Published weights come in by a command, are listed, shown, given back and deleted."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from volsam import load_model
from volsam.errors import BadInput

from ..recipes.files import Malicious, of_a_training, saved, weights_of
from .conftest import Type, error_of

pytestmark = pytest.mark.slow


@pytest.fixture
def a_sam(tmp_path: Path) -> Path:
    return saved(weights_of("sam2d"), tmp_path / "sam_vit_b.pth")


@pytest.fixture
def a_student(tmp_path: Path) -> Path:
    return saved(of_a_training(weights_of("fastsam3d_encoder")), tmp_path / "student.pth")


@pytest.fixture
def a_teacher(tmp_path: Path) -> Path:
    return saved(of_a_training(weights_of("sam_med3d")), tmp_path / "turbo.pth")


def stored_files(home: Path) -> list[str]:
    return sorted(str(path.relative_to(home)) for path in home.rglob("*") if path.is_file())


# --- import ----------------------------------------------------------------------------------------------------------


def test_a_file_is_imported_listed_and_shown(type_: Type, a_sam: Path, a_home: Path) -> None:
    result = type_("models", "import", a_sam, "--licence", "MIT", "--source", "here")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == [
        f"stored      sam_vit_b, SAM, in {a_home / 'models' / 'sam_vit_b'}",
        "prompts     point, box, scribble, mask",
        "licence     MIT",
        "size        0.8 MB, 186,308 parameters",
    ]
    listed = type_("models", "list").stdout.splitlines()
    assert [row.split()[0] for row in listed] == ["name", "sam-mini", "volsam-s", "sam_vit_b"]
    assert listed[3].split()[-4:] == ["MIT", "0.8", "MB", "yes"]
    shown = type_("models", "show", "sam_vit_b").stdout
    assert "licence    MIT\nsource     here\n" in shown
    assert f"imported   sam_vit_b.pth {hashlib.sha256(a_sam.read_bytes()).hexdigest()}\n" in shown


def test_the_list_as_json_has_stored_models_with_the_same_words(type_: Type, a_sam: Path) -> None:
    type_("models", "import", a_sam, "--name", "medsam-b")
    *_, shipped, brought = json.loads(type_("models", "list", "--json").stdout)
    assert set(shipped) <= set(brought)
    assert brought["name"] == "medsam-b"
    assert brought["prompts"] == ["box"]
    assert brought["variant"] == "medsam"
    assert brought["present"] is True
    weights = Path(brought["folder"]) / "weights.safetensors"
    assert brought["sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()


def test_a_part_is_imported_with_its_partner(type_: Type, a_student: Path, a_teacher: Path) -> None:
    assert "add --with FILE" in error_of(type_("models", "import", a_student))
    result = type_("models", "import", a_student, "--with", a_teacher, "--name", "fast")
    assert result.exit_code == 0, result.output
    assert "fast, FastSAM3D," in result.stdout


def test_weights_of_another_family_than_said_are_refused(type_: Type, a_sam: Path) -> None:
    assert "--family sam-med3d was given" in error_of(type_("models", "import", a_sam, "--family", "sam-med3d"))


@pytest.mark.parametrize("name", ["../out", "a/b", "", "Mine", ".x"])
def test_a_name_that_is_a_path_is_refused(name: str, type_: Type, a_sam: Path, a_home: Path) -> None:
    assert "cannot be called" in error_of(type_("models", "import", a_sam, "--name", name))
    assert stored_files(a_home) == []


def test_a_name_that_is_taken_is_refused_unless_forced(type_: Type, a_sam: Path, a_teacher: Path) -> None:
    assert type_("models", "import", a_sam, "--name", "mine").exit_code == 0
    assert "with --force" in error_of(type_("models", "import", a_teacher, "--name", "mine"))
    assert type_("models", "import", a_teacher, "--name", "mine", "--force").exit_code == 0
    assert "SAM-Med3D" in type_("models", "show", "mine").stdout


def test_a_malicious_file_is_refused_in_one_line_and_runs_nothing(type_: Type, a_home: Path, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    path = saved({"model": Malicious(os.system, f"touch {marker}")}, tmp_path / "sam.pth")
    assert f"needs {os.name}.system" in error_of(type_("models", "import", path))
    with pytest.raises(BadInput, match=f"needs {os.name}.system"):
        load_model(path, device="cpu")
    assert not marker.exists()
    assert stored_files(a_home) == []


def test_a_home_that_is_no_folder_is_named(
    type_: Type, a_sam: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("VOLSAM_HOME", str(tmp_path / "file"))
    assert "VOLSAM_HOME" in error_of(type_("models", "import", a_sam))
    assert type_("models", "list").exit_code == 0


# --- get -------------------------------------------------------------------------------------------------------------


def test_a_file_is_fetched_checked_and_kept(type_: Type, a_sam: Path, a_home: Path) -> None:
    sha256 = hashlib.sha256(a_sam.read_bytes()).hexdigest()
    result = type_("models", "get", a_sam.as_uri(), "--sha256", sha256)
    assert result.exit_code == 0, result.output
    assert "sha256" not in result.stdout
    record = json.loads(type_("models", "list", "--json").stdout)[-1]
    assert record["imported"] == [{"file": "sam_vit_b.pth", "sha256": sha256}]
    assert record["source"] == a_sam.as_uri()
    assert stored_files(a_home) == ["models/sam_vit_b/card.json", "models/sam_vit_b/weights.safetensors"]


def test_without_a_checksum_one_must_say_so(type_: Type, a_sam: Path, a_home: Path) -> None:
    refused = error_of(type_("models", "get", a_sam.as_uri()))
    assert "--sha256" in refused
    assert "--no-checksum" in refused
    assert "both were given" in error_of(type_("models", "get", a_sam.as_uri(), "--sha256", "0" * 64, "--no-checksum"))
    result = type_("models", "get", a_sam.as_uri(), "--no-checksum", "--source", "a friend")
    sha256 = hashlib.sha256(a_sam.read_bytes()).hexdigest()
    assert result.stdout.splitlines()[0] == f"sha256      {sha256}"
    record = json.loads(type_("models", "list", "--json").stdout)[-1]
    assert (record["imported"][0]["sha256"], record["source"]) == (sha256, "a friend")


def last_line(result: object) -> str:
    """The error; lines of progress come before it."""
    assert result.exit_code == 1  # type: ignore[attr-defined]
    line = result.stderr.splitlines()[-1]  # type: ignore[attr-defined]
    assert line.startswith("error: ")
    assert "unexpected" not in line
    return str(line)


def test_a_wrong_checksum_leaves_nothing(type_: Type, a_sam: Path, a_home: Path) -> None:
    assert "was expected" in last_line(type_("models", "get", a_sam.as_uri(), "--sha256", "0" * 64))
    assert stored_files(a_home) == []
    assert list((a_home / "models").iterdir()) == []


def test_a_fetched_file_that_is_no_checkpoint_leaves_nothing(type_: Type, a_home: Path, tmp_path: Path) -> None:
    page = tmp_path / "sam.pth"
    page.write_text("<!DOCTYPE html><title>Virus scan warning</title>")
    assert "is a web page" in last_line(type_("models", "get", page.as_uri(), "--no-checksum"))
    assert list((a_home / "models").iterdir()) == []


def test_a_name_is_checked_before_anything_is_fetched(type_: Type, a_sam: Path, a_home: Path) -> None:
    type_("models", "import", a_sam)
    assert "already" in error_of(type_("models", "get", a_sam.as_uri(), "--no-checksum"))
    assert "give a --name" in error_of(type_("models", "get", "https://host/%20.pth", "--no-checksum", "--name", "/"))


def test_an_address_that_is_not_safe_is_refused(type_: Type) -> None:
    assert "https://" in error_of(type_("models", "get", "http://host/sam.pth", "--no-checksum"))


# --- export, remove --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["safetensors", "pt", "pth"])
def test_weights_go_out_as_they_came_in(ending: str, type_: Type, a_sam: Path, tmp_path: Path) -> None:
    type_("models", "import", a_sam, "--name", "mine")
    target = tmp_path / f"out.{ending}"
    result = type_("models", "export", "mine", "-o", target)
    assert result.exit_code == 0, result.output
    assert result.stdout == f"weights    {target}, 0.8 MB\n"
    found = load_file(target) if ending == "safetensors" else torch.load(target, weights_only=True)
    original = weights_of("sam2d")
    assert set(found) == set(original)
    assert all(torch.equal(found[name], original[name]) for name in original)
    assert type_("models", "import", target, "--name", "again").exit_code == 0


def test_the_default_is_exported_and_used_from_the_file(type_: Type, tmp_path: Path) -> None:
    from volsam.recipes.volsam_s import WEIGHTS

    result = type_("models", "export", "volsam-s", "-o", tmp_path / "default.safetensors")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "default.safetensors").read_bytes() == WEIGHTS.read_bytes()
    assert type_("models", "export", "volsam-s", "-o", tmp_path / "default.pt").exit_code == 0
    assert set(torch.load(tmp_path / "default.pt", weights_only=True)) == set(load_file(WEIGHTS))
    for ending in ("safetensors", "pt"):
        assert load_model(tmp_path / f"default.{ending}", device="cpu").name == "volsam-s"


def test_the_default_needs_no_import(type_: Type, tmp_path: Path, a_home: Path) -> None:
    file = tmp_path / "vs.pt"
    assert type_("models", "export", "volsam-s", "-o", file).exit_code == 0
    said = error_of(type_("models", "import", file))
    assert "vs.pt holds weights of volsam-s, which ships with volsam" in said
    assert "give the file to --model or --init as it is" in said
    weights = torch.load(file, weights_only=True)
    name = next(name for name in weights if weights[name].ndim > 1)
    torch.save({**weights, name: weights[name][:1]}, file)
    assert "names or shapes differ" in error_of(type_("models", "import", file))
    assert stored_files(a_home) == []


def test_a_file_that_is_there_is_replaced_by_an_export_when_one_says_so(type_: Type, tmp_path: Path) -> None:
    file = tmp_path / "vs.safetensors"
    file.write_bytes(b"mine")
    assert "vs.safetensors is there already" in error_of(type_("models", "export", "volsam-s", "-o", file))
    assert file.read_bytes() == b"mine"
    assert type_("models", "export", "volsam-s", "-o", file, "--force").exit_code == 0
    assert len(load_file(file)) > 10


def test_an_export_of_nothing_or_to_nowhere_is_refused(type_: Type, tmp_path: Path) -> None:
    assert "no model is called" in error_of(type_("models", "export", "nobody", "-o", tmp_path / "a.pt"))
    assert "ends in" in error_of(type_("models", "export", "volsam-s", "-o", tmp_path / "a.onnx"))
    assert list(tmp_path.iterdir()) == []


def test_a_model_is_removed_when_one_says_yes(type_: Type, a_sam: Path, a_home: Path) -> None:
    type_("models", "import", a_sam, "--name", "mine")
    assert "add --yes" in error_of(type_("models", "remove", "mine"))
    assert len(stored_files(a_home)) == 2
    assert type_("models", "remove", "mine", "--yes").exit_code == 0
    assert stored_files(a_home) == []
    assert "no model is called 'mine'" in error_of(type_("models", "remove", "mine", "--yes"))


def test_what_ships_is_not_removed(type_: Type) -> None:
    assert "ships with volsam" in error_of(type_("models", "remove", "volsam-s", "--yes"))


# --- cost ------------------------------------------------------------------------------------------------------------

LINE = "import sys; from volsam.cli import main; sys.argv = {words!r}\ntry: main()\nexcept SystemExit: pass\n"


@pytest.mark.parametrize("words", [["list"], ["show", "mine"], ["show", "volsam-s"]], ids=" ".join)
def test_what_is_known_of_models_is_told_without_torch(words: list[str], type_: Type, a_sam: Path) -> None:
    type_("models", "import", a_sam, "--name", "mine")
    code = LINE.format(words=["volsam", "models", *words]) + "print('torch' in sys.modules, 'monai' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False False"
    assert words[-1] in done.stdout or "mine" in done.stdout
