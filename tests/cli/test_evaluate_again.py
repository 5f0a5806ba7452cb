"""`volsam evaluate` a second time, after files have changed; and comparisons of what was scored on other files."""

from __future__ import annotations

import csv
import json
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from volsam.data.io import read_volume, write_volume

from .conftest import error_of
from .lesions import write_lesions

pytestmark = pytest.mark.usefixtures("no_plots")


@pytest.fixture
def a_dataset(tmp_path: Path) -> Path:
    return write_lesions(tmp_path / "lesions")


@pytest.fixture
def predictions(a_dataset: Path, tmp_path: Path) -> Path:
    """The labels themselves."""
    shutil.copytree(a_dataset / "labelsTr", tmp_path / "predicted")
    return tmp_path / "predicted"


def dice_of(report: Path, case: str) -> set[str]:
    rows = csv.DictReader((report / "scores.csv").read_text().splitlines())
    return {row["dice"] for row in rows if (row["case"], row["object"]) == (case, "lesion")}


def moved(file: Path) -> None:
    """A file with its values two voxels on."""
    volume = read_volume(file)
    write_volume(volume.with_data(np.roll(volume.data, 2, axis=1)), file)


def test_a_prediction_that_has_changed_is_scored_anew(type_, a_dataset, predictions, tmp_path):
    out = tmp_path / "report"
    words = ("evaluate", predictions, a_dataset, "-o", out, "--split", "all", "--objects", "lesion")
    assert type_(*words).exit_code == 0
    assert dice_of(out, "case1") == {"1"}
    moved(predictions / "case1.nii.gz")
    result = type_(*words)
    assert "2/3 case1: has another prediction than before, and is scored anew" in result.stderr
    assert result.stderr.count("scored already") == 2
    assert float(*dice_of(out, "case1")) < 0.9
    pictures = sorted(file.stem.partition(" ")[2] for file in (out / "pictures").iterdir())
    assert pictures == ["case0 lesion", "case1 lesion", "case2 lesion"]
    assert "scored anew" not in type_(*words).stderr


@pytest.mark.parametrize(("what", "file"), [("label", "labelsTr/case2"), ("image", "imagesTr/case2_0000")])
def test_a_label_or_image_that_has_changed_is_scored_anew(type_, a_model, a_dataset, tmp_path, what, file):
    out = tmp_path / "report"
    words = ("evaluate", "any", a_dataset, "-o", out, "--split", "all", "--objects", "lesion", "--clicks", 1)
    assert type_(*words).exit_code == 0
    before = dice_of(out, "case2")
    moved(a_dataset / f"{file}.nii.gz")
    result = type_(*words)
    assert f"3/3 case2: has another {what} than before, and is scored anew" in result.stderr
    assert dice_of(out, "case2") != before


def test_a_case_that_cannot_be_scored_anew_keeps_no_old_score(type_, a_dataset, predictions, tmp_path):
    out = tmp_path / "report"
    words = ("evaluate", predictions, a_dataset, "-o", out, "--split", "all")
    assert type_(*words).exit_code == 0
    (predictions / "case1.nii.gz").unlink()
    assert type_(*words).exit_code == 1
    assert dice_of(out, "case1") == set()
    assert list(json.loads((out / "results.json").read_text())["failed"]) == ["case1"]
    assert not list((out / "pictures").glob("* case1 *"))


def test_scores_of_which_no_files_are_known_are_taken_anew(type_, a_dataset, predictions, tmp_path):
    out = tmp_path / "report"
    words = ("evaluate", predictions, a_dataset, "-o", out, "--split", "all")
    assert type_(*words).exit_code == 0
    kept = json.loads((out / "cases" / "case0.json").read_text())
    del kept["digests"]
    (out / "cases" / "case0.json").write_text(json.dumps(kept))
    assert "1/3 case0: was scored before files were remembered, and is scored anew" in type_(*words).stderr
    assert set(json.loads((out / "cases" / "case0.json").read_text())["digests"]) == {"image", "label", "prediction"}


@pytest.mark.parametrize(("what", "file"), [("label", "labelsTr/case2"), ("image", "imagesTr/case2_0000")])
def test_reports_on_other_files_of_the_same_names_are_not_compared(type_, a_dataset, predictions, tmp_path, what, file):
    other = tmp_path / "copy"
    shutil.copytree(a_dataset, other)
    words = ("--split", "all", "--objects", "lesion", "--name")
    assert type_("evaluate", predictions, a_dataset, "-o", tmp_path / "one", *words, "one").exit_code == 0
    assert type_("evaluate", predictions, other, "-o", tmp_path / "two", *words, "two").exit_code == 0
    compare = ("evaluate", "--compare", tmp_path / "one", tmp_path / "two", "-o", tmp_path / "both")
    assert type_(*compare).exit_code == 0
    moved(other / f"{file}.nii.gz")
    assert type_("evaluate", predictions, other, "-o", tmp_path / "two", *words, "two").exit_code == 0
    assert f"one and two were scored on different files of case2 ({what})" in error_of(type_(*compare))


def test_classes_of_a_large_file_are_found_without_a_list_of_its_voxels(tmp_path):
    from volsam.cli.scenes import source_of

    labels = np.zeros((96, 128, 128), np.uint8)
    labels[20:40, 20:40, 20:40], labels[60:80, 60:80, 60:80] = 7, 3
    np.savez(tmp_path / "a.npz", imgs=labels, gts=labels)
    source = source_of(tmp_path, None, 0, None)
    tracemalloc.start()
    scene = source.read(source.cases[0])
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert scene.objects.values_of == {"class 3": 3, "class 7": 7}
    assert [type(value) for value in scene.objects.values_of.values()] == [int, int]
    assert most < 8 * labels.size  # a list takes as much by itself


def test_files_of_the_challenge_are_known_with_their_labels(type_, a_model, a_dataset, tmp_path):
    from volsam.data.dataset import read_dataset, read_image, read_label
    from volsam.evaluation.cvpr2025 import write_task

    folder = tmp_path / "npz"
    folder.mkdir()
    case = read_dataset(a_dataset).cases[0]
    labels = (read_label(case) == 1).astype(np.uint8)
    write_task(folder / "a.npz", read_image(case), [], labels=labels)
    words = ("evaluate", "any", folder, "-o", tmp_path / "report", "--protocol", "cvpr2025")
    assert type_(*words).exit_code == 0
    assert "scored already" in type_(*words).stderr
    write_task(folder / "a.npz", read_image(case), [], labels=np.roll(labels, 1, axis=0))
    assert "label than before, and is scored anew" in type_(*words).stderr
