"""`volsam evaluate` of models that look at slices."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from volsam.data.dataset import read_dataset, read_image, read_label
from volsam.data.io import write_volume
from volsam.evaluation.cvpr2025 import middle_boxes, write_task
from volsam.evaluation.protocol import Objects
from volsam.geometry import Grid
from volsam.inference.slices import SAM, SliceMask, SliceModel
from volsam.volume import Volume

from .conftest import error_of
from .lesions import SHAPE, write_lesions

pytestmark = pytest.mark.usefixtures("no_plots")


class BrightSlices(SliceModel):
    """Takes what is bright in a slice for the object, and remembers what it was asked and which slices it saw."""

    def __init__(self) -> None:
        self.name, self.style, self.takes, self.edge = "bright slices", SAM, SAM.takes, 32
        self.asked: list[tuple[int, bool, str | None]] = []
        self.shapes: set[tuple[int, int]] = set()

    def encode_slice(self, pixels):
        return pixels

    def decode_slice(self, encoded, prompts, shape, previous=None, candidates=None) -> SliceMask:
        self.asked.append((len(prompts.points), prompts.box is not None, candidates))
        self.shapes.add(shape)
        logits = np.where(encoded > 127, 5.0, -5.0).astype(np.float32)
        return SliceMask(logits, logits, 0.8)


@pytest.fixture
def a_slice_model(monkeypatch: pytest.MonkeyPatch) -> BrightSlices:
    model = BrightSlices()
    monkeypatch.setattr("volsam.recipes.recipe.load_model", lambda name, *, device, engine=None: model)
    return model


@pytest.fixture
def evaluated(type_, a_slice_model, tmp_path) -> Callable[..., list[dict[str, str]]]:
    """The lines of the scores of a dataset, once it is evaluated with some more words."""

    def run(dataset: Path, *words: object) -> list[dict[str, str]]:
        out = tmp_path / "report"
        result = type_("evaluate", "any", dataset, "-o", out, *words)
        assert result.exit_code == 0, result.output
        return list(csv.DictReader((out / "scores.csv").read_text().splitlines()))

    return run


def a_rod(folder: Path) -> Path:
    """One scan with a bright rod along its last axis, of which only the middle is the object."""
    dataset = write_lesions(folder, labels={"background": 0, "lesion": 1})
    for part in ("imagesTr", "labelsTr"):
        for file in sorted((folder / part).glob("*"))[1:]:
            file.unlink()
    grid = Grid.at(SHAPE, (1, 1, 1.5))
    bright = np.zeros(SHAPE, bool)
    bright[8:16, 8:16, 2:16] = True
    labels = bright.astype(np.uint8)
    labels[..., :6] = labels[..., 11:] = 0
    write_volume(Volume((40 + 80 * bright).astype(np.int16), grid), folder / "imagesTr" / "case0_0000.nii.gz")
    write_volume(Volume(labels, grid), folder / "labelsTr" / "case0.nii.gz")
    return dataset


def test_every_slice_is_answered_by_its_own_clicks_and_the_object_is_not_followed(evaluated, a_slice_model, tmp_path):
    dataset = a_rod(tmp_path / "rod")
    rows = evaluated(dataset, "--split", "all", "--per", "slice", "--clicks", 3)
    assert [(row["step"], row["dice"]) for row in rows] == [("1 click per slice", "1"), ("3 clicks per slice", "1")]
    # The five slices of the object, each time with the best of several masks.
    assert a_slice_model.asked == [(1, False, "several")] * 5 + [(3, False, "several")] * 5
    assert "answers each slice by its own clicks" in (tmp_path / "report" / "report.md").read_text()


def test_clicks_on_the_volume_are_followed(evaluated, tmp_path):
    rows = evaluated(a_rod(tmp_path / "rod"), "--split", "all", "--clicks", 1)
    assert float(rows[0]["dice"]) == pytest.approx(2 * 5 / (5 + 14), abs=1e-4)


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
def test_clicks_lie_on_slices_of_the_plane_that_the_model_looks_at(evaluated, a_slice_model, tmp_path, plane):
    dataset = a_rod(tmp_path / "rod")
    (row,) = evaluated(dataset, "--split", "all", "--per", "slice", "--clicks", 1, "--plane", plane)
    slices = {"axial": 5, "coronal": 8, "sagittal": 8}[plane]
    assert int(row["prompts"]) == slices
    assert a_slice_model.asked == [(1, False, "several")] * slices
    across = {"axial": 2, "coronal": 1, "sagittal": 0}[plane]
    assert {tuple(sorted(shape)) for shape in a_slice_model.shapes} == {tuple(sorted(np.delete(SHAPE, across)))}


@pytest.mark.parametrize("words", [(), ("--plane", "coronal")])
def test_the_challenges_boxes_lie_on_slices_of_the_plane_that_the_model_looks_at(
    evaluated, a_slice_model, tmp_path, words
):
    """Also where a scan was not taken in axial slices."""
    dataset = write_lesions(tmp_path / "thick", (13, 24, 26), (2, 1, 1))
    asked = ("--split", "all", "--objects", "lesion", "--protocol", "cvpr2025")
    rows = evaluated(dataset, *asked, *words)
    assert len(rows) == 3 * 6
    assert float(rows[0]["dice"]) > 0.8
    assert any(box for _, box, _ in a_slice_model.asked)


def challenge_files(folder: Path, dataset: Path) -> Path:
    """Files of the challenge with boxes across their last axis."""
    folder.mkdir()
    for case in read_dataset(dataset).cases[:2]:
        image = read_image(case)
        labels = (read_label(case) == 1).astype(np.uint8)
        box = middle_boxes(Objects(labels, {"lesion": 1}), image.grid)["lesion"]
        write_task(folder / f"{case.name}.npz", image, [(box,)], labels=labels)
    return folder


def test_boxes_of_the_challenges_files_are_axial_whatever_the_voxels(evaluated, tmp_path):
    dataset = write_lesions(tmp_path / "thick", (13, 24, 26), (2, 1, 1))
    rows = evaluated(challenge_files(tmp_path / "npz", dataset), "--protocol", "cvpr2025")
    assert {row["case"] for row in rows} == {"case0", "case1"}
    assert float(rows[0]["dice"]) > 0.8
    assert json.loads((tmp_path / "report" / "settings.json").read_text())["plane"] == "axial"


@pytest.mark.parametrize(("rule", "spacing"), [("cvpr2025", (2, 1, 1.5)), ("standard", (1.5, 1, 2))])
def test_the_challenges_rule_takes_the_spacing_of_its_files_as_its_script_does(
    evaluated, tmp_path, monkeypatch, rule, spacing
):
    from volsam.evaluation import rules

    taken = []

    def nsd(mask, target, spacing, tolerance, **more):
        taken.append(tuple(spacing))
        return 0.5

    monkeypatch.setattr(rules, "nsd", nsd)
    files = challenge_files(tmp_path / "npz", write_lesions(tmp_path / "lesions", SHAPE, (1.5, 1, 2)))
    evaluated(files, "--protocol", "cvpr2025", "--rule", rule)
    assert set(taken) == {spacing}


def test_another_plane_than_that_of_the_boxes_is_refused_at_once(type_, a_slice_model, tmp_path):
    files = challenge_files(tmp_path / "npz", write_lesions(tmp_path / "lesions"))
    words = ("--protocol", "cvpr2025", "--plane", "sagittal")
    said = error_of(type_("evaluate", "any", files, "-o", tmp_path / "report", *words))
    assert "boxes in files of the challenge lie on axial slices" in said
    assert a_slice_model.asked == []
    assert not (tmp_path / "report").exists()
