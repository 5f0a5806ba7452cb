"""A model that somebody trained, on its way to somebody else: exported, imported, used by name."""

import json

import nibabel
import numpy as np
import pytest
from typer.testing import CliRunner

from volsam.cli import app
from volsam.recipes.methods import runs
from volsam.recipes.trained import load_run

from ..training.conftest import TINY, UNET, make_dataset

CASE = "smith_john_1961"


@pytest.fixture
def a_dataset(tmp_path):
    made = make_dataset(tmp_path / "Dataset001_Shapes")
    for file in [*made.folder.glob("*/case0*")]:
        file.rename(file.with_name(file.name.replace("case0", CASE)))
    return made.folder


@pytest.fixture
def a_run(a_dataset, tmp_path):
    """A UNet that has learnt from three cases; John Smith is among them."""
    from volsam.data.dataset import read_dataset
    from volsam.data.splits import Fold

    fold = Fold((CASE, "case1", "case2"), ("case3",), ("case4",))
    settings = {**UNET, "max_steps": 2, "validate_every": 1.0}
    runs.train(runs.start("unet", read_dataset(a_dataset), tmp_path / "runs/shapes", settings=settings, fold=fold))
    return tmp_path / "runs/shapes"


def said(*words, ends=0):
    done = CliRunner().invoke(app, list(map(str, words)))
    assert done.exit_code == ends, done.output
    return " ".join(done.output.split())


def labels_of(file):
    return np.asarray(nibabel.load(file).dataobj)


def test_a_run_goes_to_another_machine_as_one_file(a_run, a_dataset, tmp_path, monkeypatch):
    image = a_dataset / "imagesTr/case4_0000.nii.gz"
    said("predict", a_run, image, "-o", tmp_path / "before", "--device", "cpu")
    file = tmp_path / "shapes.safetensors"
    assert "shapes.safetensors" in said("models", "export", a_run, "-o", file)
    a_run.rename(tmp_path / "gone")
    monkeypatch.setenv("VOLSAM_HOME", str(tmp_path / "another"))

    said("predict", file, image, "-o", tmp_path / "file", "--device", "cpu")
    out = said("models", "import", file, "--name", "shapes")
    assert "stored shapes, U-Net, trained on Dataset001_Shapes" in out
    assert "prompts none, it is automatic" in out
    file.unlink()
    said("predict", "shapes", image, "-o", tmp_path / "name", "--device", "cpu")
    before, *after = (labels_of(tmp_path / each / "case4.nii.gz") for each in ("before", "file", "name"))
    assert before.any()
    for each in after:
        np.testing.assert_array_equal(each, before)

    assert "shapes" in said("models", "list")
    shown = said("models", "show", "shapes")
    assert "background (0), ball (1), box (2)" in shown
    assert "learnt from case 1, case 2, case 3" in shown
    again = tmp_path / "again.safetensors"
    said("models", "export", "shapes", "-o", again)
    assert "method unet" in said("models", "show", again)
    said("models", "remove", "shapes", "--yes")
    assert "no model is called 'shapes'" in said("predict", "shapes", image, "-o", tmp_path / "none", ends=1)


def test_the_file_names_no_case_and_still_knows_them(a_run, a_dataset, tmp_path):
    file = tmp_path / "shapes.safetensors"
    said("models", "export", a_run, "-o", file)
    content = file.read_bytes()
    assert CASE.encode() not in content
    assert str(tmp_path).encode() not in content
    said("evaluate", file, a_dataset, "-o", tmp_path / "report", "--split", "all", "--device", "cpu")
    settings = json.loads((tmp_path / "report/settings.json").read_text())
    assert "cases that the model has learnt from: 3 of 5; their scores flatter it" in settings["remarks"]
    assert (settings["name"], settings["trained_on"], settings["steps"]) == ("unet", 3, 2)


def test_a_run_in_one_file_is_scored_on_the_cases_that_it_never_saw(a_run, a_dataset, tmp_path):
    file = tmp_path / "shapes.safetensors"
    said("models", "export", a_run, "-o", file)
    said("evaluate", a_run, a_dataset, "-o", tmp_path / "folder", "--device", "cpu")
    said("evaluate", file, a_dataset, "-o", tmp_path / "file", "--device", "cpu")
    rows = [json.loads((tmp_path / each / "results.json").read_text())["rows"] for each in ("folder", "file")]
    assert {row["case"] for row in rows[0]} == {row["case"] for row in rows[1]}
    assert len({row["case"] for row in rows[0]}) == 1
    assert [row["scores"]["dice"] for row in rows[0]] == [row["scores"]["dice"] for row in rows[1]]


def test_a_run_is_kept_from_its_folder_and_begun_with(a_run, a_dataset, tmp_path):
    said("models", "import", a_run)
    words = ("train", "unet", a_dataset, "-o", tmp_path / "next", "--device", "cpu")
    settings = {**UNET, "max_steps": 1}
    pairs = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    assert "begins with shapes" in said(*words, "--init", "shapes", *pairs)
    load_run(tmp_path / "next", "cpu")


@pytest.mark.slow
def test_a_run_that_takes_prompts_is_kept_with_them(a_dataset, tmp_path):
    from volsam.data.dataset import read_dataset

    dataset = read_dataset(a_dataset)
    fold = runs.choose_cases(dataset, 0, 2, 0)
    settings = {**TINY, "max_steps": 1, "edge": 32}
    runs.train(runs.start("adapt-clicks", dataset, tmp_path / "run", settings=settings, fold=fold))
    out = said("models", "import", tmp_path / "run", "--name", "mine")
    assert "prompts point, box, scribble, mask" in out
    image = a_dataset / "imagesTr/case4_0000.nii.gz"
    for model in ("mine", tmp_path / "run"):
        mask = tmp_path / f"{getattr(model, 'name', model)}.nii.gz"
        said("segment", image, "-p", "8,8,8", "--model", model, "-o", mask, "--device", "cpu")
    np.testing.assert_array_equal(labels_of(tmp_path / "mine.nii.gz"), labels_of(tmp_path / "run.nii.gz"))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("export", "RUN", "-o", "OUT/run.pth"), "a run goes into a file that ends in .safetensors"),
        (("export", "RUN", "-o", "OUT/none/run.safetensors"), "does not exist: make it first"),
        (("import", "RUN", "--with", "volsam-s"), "is a training run, which holds all it needs"),
        (("import", "RUN", "--name", "volsam-s"), "is a model that ships with volsam"),
        (("show", "OUT"), "is not a training run"),
    ],
)
def test_what_cannot_be_done_is_told_in_a_line(a_run, tmp_path, words, told):
    (tmp_path / "out").mkdir()
    there = [word.replace("RUN", str(a_run)).replace("OUT", str(tmp_path / "out")) for word in words]
    assert told in said("models", *there, ends=1)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_file_that_is_cut_short_is_told_in_a_line(a_run, a_dataset, tmp_path):
    file = tmp_path / "shapes.safetensors"
    said("models", "export", a_run, "-o", file)
    file.write_bytes(file.read_bytes()[:-100])
    image = a_dataset / "imagesTr/case4_0000.nii.gz"
    assert "Traceback" not in said("predict", file, image, "-o", tmp_path / "none", "--device", "cpu", ends=1)
    (tmp_path / "runs/shapes/best.safetensors").unlink()
    (tmp_path / "runs/shapes/last.safetensors").unlink()
    again = tmp_path / "again.safetensors"
    assert "has the run saved anything yet?" in said("models", "export", a_run, "-o", again, ends=1)
