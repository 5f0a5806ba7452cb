"""`volsam evaluate` and the values of labels: unknown ones, voxels to ignore, classes that a case lacks."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from volsam.data.dataset import read_dataset
from volsam.data.io import read_volume, write_volume
from volsam.evaluation.metrics import distances, nsd

from .conftest import error_of
from .lesions import LABELS, write_lesions

pytestmark = pytest.mark.usefixtures("no_plots")


def rows_of(report: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((report / "scores.csv").read_text().splitlines()))


def predicted(dataset: Path, folder: Path, change) -> Path:
    """Predictions made of the labels by a change of their values (i, j, k)."""
    folder.mkdir()
    for case in read_dataset(dataset).cases:
        volume = read_volume(case.label)
        write_volume(volume.with_data(change(volume.data[0].copy())[None]), folder / f"{case.name}.nii.gz")
    return folder


# --- values ----------------------------------------------------------------------------------------------------------


def test_masks_with_no_value_of_the_dataset_are_refused(type_, tmp_path):
    dataset = write_lesions(tmp_path / "lesions")
    masks = predicted(dataset, tmp_path / "masks", lambda labels: (labels > 0).astype(np.uint8) * 255)
    result = type_("evaluate", masks, dataset, "-o", tmp_path / "report", "--split", "all")
    assert result.exit_code == 1
    said = "holds the value 255, and the dataset has 1 (lesion), 2 (cyst): write the labels with these values"
    assert result.stderr.count(said) == 3
    assert rows_of(tmp_path / "report") == []


def test_values_beyond_those_of_the_dataset_are_told(type_, tmp_path):
    dataset = write_lesions(tmp_path / "lesions")

    def more(labels):
        labels[-2:, -2:, -2:] = 7
        return labels

    masks = predicted(dataset, tmp_path / "masks", more)
    words = ("--split", "all", "--objects", "lesion")
    result = type_("evaluate", masks, dataset, "-o", tmp_path / "report", *words)
    assert result.exit_code == 0
    assert result.stderr.count("case1.nii.gz holds the value 7, and the dataset has 1 (lesion), 2 (cyst)") == 1
    assert [row["dice"] for row in rows_of(tmp_path / "report")] == ["1"] * 3


def test_values_of_the_dataset_that_are_not_scored_are_no_surprise(type_, tmp_path):
    dataset = write_lesions(tmp_path / "lesions", labels={**LABELS, "ignore": 3})
    masks = predicted(dataset, tmp_path / "masks", lambda labels: labels + 1)
    words = ("--split", "all", "--objects", "lesion")
    assert "warning" not in type_("evaluate", masks, dataset, "-o", tmp_path / "report", *words).stderr


# --- regions ---------------------------------------------------------------------------------------------------------

REGIONS = {"background": 0, "all": [1, 2], "cyst": [2]}


def test_regions_are_scored_by_the_labels_that_they_join(type_, tmp_path):
    dataset = write_lesions(tmp_path / "lesions", labels=REGIONS)

    def swapped(labels):
        return np.where(labels == 1, 2, labels)  # what is no cyst is called one: right as a whole

    masks = predicted(dataset, tmp_path / "masks", swapped)
    words = ("evaluate", masks, dataset, "-o", tmp_path / "report", "--split", "all")
    assert type_(*words).exit_code == 0
    rows = rows_of(tmp_path / "report")
    assert [row["dice"] for row in rows if row["object"] == "all"] == ["1"] * 3
    assert all(float(row["dice"]) < 0.1 for row in rows if row["object"] == "cyst")
    assert json.loads((tmp_path / "report" / "results.json").read_text())["settings"]["objects"] == {
        "all": [1, 2],
        "cyst": 2,
    }
    again = type_(*words)
    assert again.exit_code == 0, again.output
    only = type_(*words[:4], tmp_path / "labels", "--split", "all", "--objects", "label 1")
    assert only.exit_code == 0, only.output
    assert {row["object"] for row in rows_of(tmp_path / "labels")} == {"label 1"}


def test_clicks_are_given_on_a_region(type_, a_model, tmp_path):
    dataset = write_lesions(tmp_path / "lesions", labels=REGIONS)
    words = ("evaluate", a_model, dataset, "-o", tmp_path / "report", "--split", "all", "--clicks", "1")
    result = type_(*words)
    assert result.exit_code == 0, result.output
    assert [row["object"] for row in rows_of(tmp_path / "report")] == ["all", "cyst", "all", "all"]
    together = (*words[:4], tmp_path / "other", "--split", "all", "--protocol", "cvpr2025")
    said = error_of(type_(*together))
    assert "has one value for each object, and all joins several: name some of label 1, cyst with --objects" in said
    assert not (tmp_path / "other" / "scores.csv").exists()
    assert type_(*together, "--objects", "label 1,cyst").exit_code == 0


# --- voxels to ignore ------------------------------------------------------------------------------------------------


@pytest.fixture
def a_dataset_with_a_rest(tmp_path: Path) -> Path:
    """What lies beyond the lesions along the first axis is labelled "ignore"."""
    dataset = write_lesions(tmp_path / "lesions", labels={"background": 0, "lesion": 1, "ignore": 2})
    for case in read_dataset(dataset).cases:
        volume = read_volume(case.label)
        volume.data[volume.data == 2] = 0
        volume.data[:, 12:] = 2
        write_volume(volume, case.label)
    return dataset


def test_what_lies_on_voxels_to_ignore_is_neither_right_nor_wrong(type_, a_dataset_with_a_rest, tmp_path):
    def beyond(labels):
        labels[labels == 2] = 0
        labels[20:24, 4:8, 4:8] = 1
        return labels

    masks = predicted(a_dataset_with_a_rest, tmp_path / "masks", beyond)
    out = tmp_path / "report"
    assert type_("evaluate", masks, a_dataset_with_a_rest, "-o", out, "--split", "all").exit_code == 0
    assert {(row["object"], row["dice"], row["nsd"], row["hd"]) for row in rows_of(out)} == {("lesion", "1", "1", "0")}
    assert 'Voxels labelled 2, "ignore", are neither right nor wrong' in (out / "report.md").read_text()


def test_slices_to_ignore_are_no_surface(type_, tmp_path):
    """Of a pile of slices one in three is labelled: what is compared is the outlines there."""
    dataset = write_lesions(tmp_path / "lesions", labels={"background": 0, "lesion": 1, "ignore": 2})
    for case in read_dataset(dataset).cases:
        volume = read_volume(case.label)
        labels = volume.data[0] % 2
        labels[..., np.arange(labels.shape[2]) % 3 > 0] = 2
        write_volume(volume.with_data(labels[None]), case.label)
    masks = predicted(dataset, tmp_path / "masks", lambda labels: np.roll(labels, 3, axis=0) % 2)
    words = ("--split", "all", "--objects", "lesion", "--tolerance", 1)
    assert type_("evaluate", masks, dataset, "-o", tmp_path / "report", *words).exit_code == 0
    for row, case in zip(rows_of(tmp_path / "report"), read_dataset(dataset).cases, strict=True):
        labels, mask = (read_volume(file) for file in (case.label, masks / f"{case.name}.nii.gz"))
        pair, spacing, unknown = (mask.data[0] == 1, labels.data[0] == 1), labels.grid.spacing, labels.data[0] == 2
        expected = nsd(*pair, spacing, 1.0, unknown=unknown)
        assert float(row["nsd"]) == pytest.approx(expected, abs=1e-4)
        assert float(row["assd"]) == pytest.approx(distances(*pair, spacing, unknown=unknown).assd, abs=1e-3)
        assert expected < nsd(*pair, spacing, 1.0) - 0.1


@pytest.mark.parametrize(
    "words",
    [
        ("--clicks", 4),
        ("--clicks", 4, "--where", "fastsam3d"),
        ("--protocol", "box", "--clicks", 3),
        ("--protocol", "cvpr2025"),
    ],
)
def test_no_click_falls_on_voxels_to_ignore(type_, a_model, a_dataset_with_a_rest, tmp_path, words):
    """The model takes all of a lesion that is labelled by half."""
    out = tmp_path / "report"
    result = type_("evaluate", "any", a_dataset_with_a_rest, "-o", out, "--split", "all", *words)
    assert result.exit_code == 0, result.output
    records = json.loads((out / "results.json").read_text())["rows"]
    images = {case.name: read_volume(case.label) for case in read_dataset(a_dataset_with_a_rest).cases}
    values = []
    for record in records:
        labels = images[record["case"]]
        for prompt in (each for asked in record["prompts"] for each in asked if each["type"] == "point"):
            voxel = np.rint(labels.grid.to_voxels(prompt["position"])).astype(int)
            values.append(int(labels.data[0][tuple(voxel)]))
    assert values
    assert 2 not in values
    assert min(record["scores"]["dice"][-1] for record in records) > 0.9


# --- classes that a case lacks ---------------------------------------------------------------------------------------


def test_by_the_rule_of_the_challenge_only_classes_of_a_case_count(type_, tmp_path):
    dataset = write_lesions(tmp_path / "lesions")  # two of three cases have no cyst

    def halved(labels):
        labels[:12][labels[:12] == 1] = 0
        return labels

    masks = predicted(dataset, tmp_path / "masks", halved)
    out = tmp_path / "report"
    result = type_("evaluate", masks, dataset, "-o", out, "--split", "all", "--rule", "cvpr2025")
    assert result.exit_code == 0
    assert "nan" not in result.output
    found = {(row["case"], row["object"]): row["dice"] for row in rows_of(out)}
    assert found["case1", "cyst"] == found["case2", "cyst"] == ""
    lesions = [float(found[f"case{number}", "lesion"]) for number in range(3)]
    assert max(lesions) < 0.8
    mean = json.loads((out / "results.json").read_text())["summary"]["dice"]["mean"]["value"]
    assert mean == pytest.approx(((lesions[0] + 1) / 2 + lesions[1] + lesions[2]) / 3, abs=1e-4)
    assert "an object that a case lacks does not count" in (out / "report.md").read_text()


# --- parts of a dataset ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [("--split", "test"), ("--split", "train"), ("--fold", 1)])
def test_files_of_the_challenge_have_no_parts(type_, a_model, tmp_path, words):
    folder = tmp_path / "npz"
    folder.mkdir()
    np.savez(folder / "a.npz", imgs=np.zeros((4, 4, 4), np.uint8), gts=np.ones((4, 4, 4), np.uint8))
    said = error_of(type_("evaluate", "any", folder, "-o", tmp_path / "no", "--protocol", "cvpr2025", *words))
    assert "files of the challenge, which have no parts: leave --split and --fold out" in said
    out = tmp_path / "report"
    assert type_("evaluate", "any", folder, "-o", out, "--protocol", "cvpr2025").exit_code == 0
    assert json.loads((out / "settings.json").read_text())["split"] == "all"
