"""What nobody has drawn becomes "ignore"."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

from volsam.data.dataset import read_dataset, read_image, read_label
from volsam.data.undrawn import mark_undrawn, undrawn
from volsam.errors import BadInput

# Arrays lie as P I R, so that axial slices are across the second axis.
AFFINE = np.array([[0, 0, 2.0, 0], [-1.0, 0, 0, 0], [0, -1.5, 0, 0], [0, 0, 0, 1]])
SHAPE = (9, 24, 8)


def slices(*drawn: int, axis: int = 1) -> np.ndarray:
    labels = np.zeros(SHAPE, np.uint8)
    for number in drawn:
        np.moveaxis(labels, axis, 0)[number, 2:5, 3:6] = 1
    return labels


def write(folder: Path, *labels: np.ndarray | None, **more: object) -> Path:
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
    for number, label in enumerate(labels):
        image = np.random.default_rng(number).normal(size=SHAPE).astype(np.float32)
        nibabel.save(nibabel.Nifti1Image(image, AFFINE), folder / f"imagesTr/case{number}_0000.nii.gz")
        if label is not None:
            nibabel.save(nibabel.Nifti1Image(label, AFFINE), folder / f"labelsTr/case{number}.nii.gz")
    table = {"channel_names": {"0": "MR"}, "labels": {"background": 0, "liver": 1}, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps({**table, **more}))
    return folder


@pytest.mark.parametrize(
    ("drawn", "unknown"),
    [
        ((4, 8, 12), {1, 2, 3, 5, 6, 7, 9, 10, 11, 13, 14, 15}),
        ((0, 4), {1, 2, 3, 5, 6, 7}),
        ((4, 8, 12, 20), {1, 2, 3, 5, 6, 7, 9, 10, 11, 13, 14, 15, 17, 18, 19, 21, 22, 23}),
        ((4, 5, 6, 15, 16), set()),  # two things, each drawn in all of its slices
        ((7,), set()),
        ((), set()),
    ],
)
def test_what_lies_nearer_than_the_next_drawn_slice_is_not_known(drawn: tuple[int, ...], unknown: set[int]) -> None:
    assert set(np.flatnonzero(undrawn(slices(*drawn), 1)).tolist()) == unknown


@pytest.mark.parametrize("plane", ["auto", "axial"])
def test_a_dataset_says_what_was_not_drawn(tmp_path: Path, plane: str) -> None:
    folds = [{"train": ["case0"], "val": ["case1"]}]
    source = write(tmp_path / "source", slices(4, 8, 12), slices(9, 10, 11), None)
    (source / "splits_final.json").write_text(json.dumps(folds))
    found = mark_undrawn(source, tmp_path / "marked", plane)  # type: ignore[arg-type]
    assert [(each.case, each.drawn, each.unknown) for each in found] == [("case0", 3, 12), ("case1", 3, 0)]
    marked = read_dataset(tmp_path / "marked")
    assert marked.labels == {"background": 0, "liver": 1, "ignore": 2}
    labels = read_label(marked.case("case0"), read_image(marked.case("case0")).grid)
    assert (labels[:, [1, 2, 3, 5, 6, 7, 9, 10, 11, 13, 14, 15]] == 2).all()
    rest = [0, 4, 8, 12, *range(16, 24)]
    np.testing.assert_array_equal(labels[:, rest], slices(4, 8, 12)[:, rest])
    np.testing.assert_array_equal(read_label(marked.case("case1")), slices(9, 10, 11))
    assert marked.case("case2").label is None
    assert json.loads((tmp_path / "marked/splits_final.json").read_text()) == folds
    before, after = (folder / "imagesTr/case0_0000.nii.gz" for folder in (source, tmp_path / "marked"))
    assert before.read_bytes() == after.read_bytes()


def test_regions_stay_regions(tmp_path: Path) -> None:
    source = write(tmp_path / "source", slices(4, 8), labels={"background": 0, "all": [1, 2], "core": [2]})
    mark_undrawn(source, tmp_path / "marked")
    marked = read_dataset(tmp_path / "marked")
    assert (marked.regions, marked.ignored) == ({"all": (1, 2), "core": (2,)}, 3)


def test_other_planes_are_looked_at_by_themselves_or_alone(tmp_path: Path) -> None:
    source = write(tmp_path / "source", slices(1, 4, 7, axis=0))
    assert mark_undrawn(source, tmp_path / "marked")[0].unknown == 6
    with pytest.raises(BadInput, match="every case of source is drawn in all slices"):
        mark_undrawn(source, tmp_path / "axial", "axial")
    assert not (tmp_path / "axial").exists()


def write_test(folder: Path, image: str, label: str) -> np.ndarray:
    """A test case, whose image this gives back."""
    seen = np.random.default_rng(9).normal(size=SHAPE).astype(np.float32)
    for name, values in ((image, seen), (label, slices(3, 9))):
        (folder / name).parent.mkdir(exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(values, AFFINE), folder / name)
    return seen


@pytest.mark.parametrize("layout", ["nnunet", "nii", "decathlon"])
def test_the_test_part_is_read_as_before(tmp_path: Path, layout: str) -> None:
    source = write(tmp_path / "source", slices(4, 8))
    table = json.loads((source / "dataset.json").read_text())
    image, label = "imagesTs/t_0000.nii.gz", "labelsTs/t.nii.gz"
    if layout == "decathlon":
        image = "imagesTs/t.nii.gz"
        table = {"modality": {"0": "MR"}, "labels": {"0": "background", "1": "liver"}, "test": [f"./{image}"]}
        table["training"] = [{"image": "./imagesTr/case0_0000.nii.gz", "label": "./labelsTr/case0.nii.gz"}]
    elif layout == "nii":
        for file in [*source.glob("*/*.nii.gz")]:
            nibabel.save(nibabel.load(file), file.with_suffix(""))
            file.unlink()
        table["file_ending"] = ".nii"
        image, label = image.removesuffix(".gz"), label.removesuffix(".gz")
    seen = write_test(source, image, label)
    (source / "dataset.json").write_text(json.dumps(table))
    mark_undrawn(source, tmp_path / "marked")
    case = read_dataset(tmp_path / "marked", "test").case("t")
    np.testing.assert_array_equal(read_image(case).data[0], seen)
    if layout != "decathlon":  # whose tables list no labels of test cases
        np.testing.assert_array_equal(read_label(case), slices(3, 9))
    if layout == "nnunet":
        assert (tmp_path / "marked" / label).read_bytes() == (source / label).read_bytes()


def test_a_test_part_without_files_is_none(tmp_path: Path) -> None:
    source = write(tmp_path / "source", slices(4, 8))
    (source / "imagesTs").mkdir()
    mark_undrawn(source, tmp_path / "marked")
    assert not (tmp_path / "marked/imagesTs").exists()


def test_what_is_told_already_is_not_guessed(tmp_path: Path) -> None:
    source = write(tmp_path / "source", slices(4, 8), labels={"background": 0, "liver": 1, "ignore": 2})
    with pytest.raises(BadInput, match="has a label 'ignore' already"):
        mark_undrawn(source, tmp_path / "marked")
