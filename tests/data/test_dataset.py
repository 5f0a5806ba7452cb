"""A folder of images and labels as cases."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from volsam.data.check import check
from volsam.data.dataset import Case, read_dataset, read_image, read_label
from volsam.data.splits import chosen_cases
from volsam.errors import BadFile, BadInput

TABLE = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1, "spleen": 2}, "file_ending": ".nii.gz"}
AFFINE = np.diag([1.0, 1.0, 2.0, 1.0])


def save(path: Path, data: np.ndarray, affine: np.ndarray = AFFINE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(data, affine), path)


def an_image(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 1000, (6, 5, 4)).astype(np.int16)


def a_label(*values: int) -> np.ndarray:
    label = np.zeros((6, 5, 4), np.uint8)
    for place, value in enumerate(values):
        label[place, 1:3, 1:3] = value
    return label


def describe(folder: Path, **changes: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dataset.json").write_text(json.dumps({**TABLE, **changes}))


@pytest.fixture
def a_dataset(tmp_path):
    """Two labelled cases and one without a label."""
    folder = tmp_path / "abdomen"
    describe(folder)
    for seed, name in enumerate(["a_1", "a_2", "a_3"]):
        save(folder / "imagesTr" / f"{name}_0000.nii.gz", an_image(seed))
    for name in ["a_1", "a_2"]:
        save(folder / "labelsTr" / f"{name}.nii.gz", a_label(1, 2))
    return folder


def test_a_folder_is_read_as_cases(a_dataset):
    dataset = read_dataset(a_dataset)
    assert dataset.name == "abdomen"
    assert dataset.channels == ("CT",)
    assert dataset.labels == {"background": 0, "liver": 1, "spleen": 2}
    assert dataset.objects == {"liver": 1, "spleen": 2}
    assert [case.name for case in dataset.cases] == ["a_1", "a_2", "a_3"]
    images = a_dataset / "imagesTr"
    assert dataset.case("a_1") == Case("a_1", (images / "a_1_0000.nii.gz",), a_dataset / "labelsTr" / "a_1.nii.gz")
    assert dataset.case("a_3").label is None


def test_a_sound_dataset_has_no_problems(a_dataset):
    assert check(read_dataset(a_dataset)) == []


def test_image_and_label_of_a_case_are_read(a_dataset):
    case = read_dataset(a_dataset).case("a_1")
    image = read_image(case)
    assert image.data.shape == (1, 6, 5, 4)
    label = read_label(case, image.grid)
    assert label.shape == (6, 5, 4)
    assert label.dtype == np.uint8
    assert set(np.unique(label)) == {0, 1, 2}


def test_labels_stored_as_floats_are_whole_numbers_again(a_dataset):
    save(a_dataset / "labelsTr" / "a_1.nii.gz", a_label(1, 2).astype(np.float32))
    assert read_label(read_dataset(a_dataset).case("a_1")).dtype == np.uint8
    save(a_dataset / "labelsTr" / "a_1.nii.gz", a_label(1, 2) * np.float32(0.4))
    with pytest.raises(BadInput, match="not whole numbers"):
        read_label(read_dataset(a_dataset).case("a_1"))


def test_channels_are_stacked(a_dataset):
    describe(a_dataset, channel_names={"0": "FLAIR", "1": "T1"})
    save(a_dataset / "imagesTr" / "a_1_0001.nii.gz", an_image(7))
    image = read_image(read_dataset(a_dataset).case("a_1"))
    assert image.channels == 2
    assert (image.data[1] == an_image(7)).all()


def test_the_test_part_has_its_own_folders(a_dataset):
    save(a_dataset / "imagesTs" / "b_1_0000.nii.gz", an_image(9))
    dataset = read_dataset(a_dataset, "test")
    assert [case.name for case in dataset.cases] == ["b_1"]
    assert check(dataset) == ["no case has a label"]


def test_the_decathlon_form_is_read(tmp_path):
    described = {
        "name": "Spleen",
        "modality": {"0": "MRI", "1": "T1"},
        "labels": {"0": "background", "1": "spleen"},
        "training": [{"image": "./imagesTr/s_2.nii.gz", "label": "./labelsTr/s_2.nii.gz"}],
        "test": ["./imagesTs/s_9.nii.gz"],
    }
    (tmp_path / "dataset.json").write_text(json.dumps(described))
    save(tmp_path / "imagesTr" / "s_2.nii.gz", np.stack([an_image(1), an_image(2)], axis=-1))
    save(tmp_path / "labelsTr" / "s_2.nii.gz", a_label(1))
    dataset = read_dataset(tmp_path)
    assert dataset.name == "Spleen"
    assert dataset.labels == {"background": 0, "spleen": 1}
    assert [case.name for case in dataset.cases] == ["s_2"]
    assert (read_image(dataset.case("s_2")).data == np.stack([an_image(1), an_image(2)])).all()
    assert check(dataset) == ["there is one case only: none is left to validate on"]
    assert [case.name for case in read_dataset(tmp_path, "test").cases] == ["s_9"]


@pytest.mark.parametrize("listed", ["./imagesTs/b1.nii.gz", {"image": "./imagesTs/b1.nii.gz"}])
@pytest.mark.parametrize("image", ["b1.nii.gz", "b1_0000.nii.gz"])
def test_labels_of_a_listed_test_part_lie_beside_its_images(a_dataset, listed, image):
    """Lists of Decathlon and of nnU-Net v1 name images alone."""
    describe(a_dataset, test=[listed])
    save(a_dataset / "imagesTs" / image, an_image(9))
    (case,) = read_dataset(a_dataset, "test").cases
    assert (case.name, case.label) == ("b1", None)
    save(a_dataset / "labelsTs" / "b1.nii.gz", a_label(1))
    (case,) = read_dataset(a_dataset, "test").cases
    assert (case.name, case.label) == ("b1", a_dataset / "labelsTs" / "b1.nii.gz")
    assert [case.name for case in chosen_cases(a_dataset)[1]] == ["b1"]


def test_a_list_that_leaves_out_the_channel_number_means_the_file_that_is_there(a_dataset):
    listed = [{"image": "./imagesTr/a_1.nii.gz", "label": "./labelsTr/a_1.nii.gz"}]
    describe(a_dataset, training=listed)
    assert read_dataset(a_dataset).case("a_1").images == (a_dataset / "imagesTr" / "a_1_0000.nii.gz",)


def test_the_table_of_files_of_nnunet_is_read(a_dataset):
    table = {"first": {"images": ["imagesTr/a_2_0000.nii.gz"], "label": "labelsTr/a_2.nii.gz"}}
    describe(a_dataset, dataset=table)
    dataset = read_dataset(a_dataset)
    assert [case.name for case in dataset.cases] == ["first"]
    assert read_image(dataset.case("first")).grid.shape == (6, 5, 4)


def test_an_unknown_case_is_answered_with_a_known_one(a_dataset):
    with pytest.raises(BadInput, match=r"no case 'b'.*begin with a_1"):
        read_dataset(a_dataset).case("b")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": "see the text"}, '"labels" is a table .* got .see the text'),
        ({"labels": {}}, '"labels" is a table'),
        ({"labels": {"background": 0, "all": [1, "2"]}}, r"'all' joins whole numbers from 1, .* got \[1, '2'\]"),
        ({"labels": {"background": 0, "all": []}}, "'all' joins whole numbers from 1"),
        (
            {"labels": {"background": 0, "all": [1, 2], "ignore": 2}},
            r"'ignore' has one value that is in no region, got \[2\]",
        ),
        ({"labels": {"all": [1, 2], "ignore": [3, 4]}}, r"'ignore' has one value that is in no region, got \[3, 4\]"),
        ({"labels": {"label 2": [1], "all": [1, 2]}}, "'label 2' is what a part of a region is called here"),
        ({"labels": {"background": 0, "a": 1, "b": 1}}, "'a' and 'b' have the same value 1"),
        ({"labels": {"a": "1"}}, "whole number from 0, got '1'"),
        ({"channel_names": "CT"}, '"channel_names" is a table .* got .CT'),
        ({"training": [{"picture": "x"}]}, "names its image and label"),
        ({"file_ending": ".mha"}, "holds no case: .* <case>_0000.mha"),
    ],
)
def test_a_description_that_makes_no_sense_is_refused_in_one_line(a_dataset, change, message):
    describe(a_dataset, **change)
    with pytest.raises(BadInput, match=message) as refused:
        read_dataset(a_dataset)
    assert "\n" not in str(refused.value)


def test_regions_are_made_of_labels(a_dataset):
    describe(a_dataset, labels={"background": 0, "whole": [1, 3, 2], "core": [2, 3], "enhancing": 3, "ignore": 4})
    dataset = read_dataset(a_dataset)
    assert dataset.regions == {"whole": (1, 2, 3), "core": (2, 3), "enhancing": (3,)}
    assert dataset.labels == {"background": 0, "label 1": 1, "label 2": 2, "enhancing": 3, "ignore": 4}
    assert dataset.objects == {"label 1": 1, "label 2": 2, "enhancing": 3}
    assert dataset.scored == {"whole": (1, 2, 3), "core": (2, 3), "enhancing": 3}
    assert dataset.ignored == 4
    describe(a_dataset, labels={"background": 0, "core": 1})
    assert read_dataset(a_dataset).scored == {"core": 1}


def test_a_folder_that_is_no_dataset_is_refused(tmp_path):
    with pytest.raises(BadFile, match=r"no dataset\.json"):
        read_dataset(tmp_path / "nowhere")
    (tmp_path / "dataset.json").write_text("{")
    with pytest.raises(BadFile, match="cannot be read as JSON"):
        read_dataset(tmp_path)
    (tmp_path / "dataset.json").write_text("[]")
    with pytest.raises(BadFile, match="holds a list"):
        read_dataset(tmp_path)
    describe(tmp_path)
    with pytest.raises(BadFile, match="has no imagesTr"):
        read_dataset(tmp_path)


def test_a_label_that_lies_elsewhere_is_refused(a_dataset):
    save(a_dataset / "labelsTr" / "a_1.nii.gz", a_label(1)[1:])
    case = read_dataset(a_dataset).case("a_1")
    with pytest.raises(BadInput, match="its shape 5 × 5 × 4 is not the shape 6 × 5 × 4 of the image"):
        read_label(case, read_image(case).grid)


def test_every_problem_is_found_in_one_run(a_dataset):
    describe(a_dataset, numTraining=2)
    images, labels = a_dataset / "imagesTr", a_dataset / "labelsTr"
    moved = AFFINE.copy()
    moved[0, 3] = 0.5
    save(labels / "a_1.nii.gz", a_label(1, 7), moved)
    save(labels / "a_2.nii.gz", a_label())
    (images / "a_3_0000.nii.gz").write_bytes(b"damaged")
    save(images / "a_4_0000.nii.gz", an_image(0))
    save(images / "a_5_0000.nii.gz", np.zeros((6, 5, 4), np.int16))
    save(images / "a_6_0000.nii.gz", an_image(6))
    save(labels / "a_6.nii.gz", a_label(1)[:, 1:])
    save(images / "a_7.nii.gz", an_image(8))
    save(labels / "a_8.nii.gz", a_label(1))
    hollow = an_image(9).astype(np.float32)
    hollow[0, 0, :2] = np.nan, np.inf
    save(images / "a_9_0000.nii.gz", hollow)
    problems = check(read_dataset(a_dataset))
    for expected in [
        "numTraining 2, there are 7 cases",
        "imagesTr/a_7.nii.gz belongs to no case",
        "labelsTr/a_8.nii.gz belongs to no case",
        "a_1: label a_1.nii.gz: its voxels lie up to 0.5 mm away",
        "a_1: label a_1.nii.gz: the values 7 are not declared",
        "a_2: label a_2.nii.gz: no voxel is labelled",
        "a_3: a_3_0000.nii.gz",
        "a_4: the image holds the same values as that of a_1",
        "a_5: a_5_0000.nii.gz: every voxel has the value 0",
        "a_6: label a_6.nii.gz: its shape 6 × 4 × 4 is not the shape 6 × 5 × 4 of the image",
        "a_9: a_9_0000.nii.gz: 2 voxels are NaN or infinite",
        "no case has a voxel of 'spleen' (2)",
    ]:
        assert [problem for problem in problems if expected in problem], expected
    assert len(problems) == 12
    assert not any("\n" in problem for problem in problems)


def test_a_missing_channel_and_a_repeated_name_are_problems(a_dataset):
    entry = {"image": "imagesTr/a_1_0000.nii.gz", "label": "labelsTr/a_1.nii.gz"}
    describe(a_dataset, channel_names={"0": "FLAIR", "1": "T1"}, training=[entry, entry])
    problems = check(read_dataset(a_dataset))
    assert "a_1: 2 cases have this name" in problems
    assert problems.count("a_1: imagesTr/a_1_0001.nii.gz is missing") == 2


def test_labels_without_any_object_are_one_problem(a_dataset):
    for name in ("a_1", "a_2"):
        save(a_dataset / "labelsTr" / f"{name}.nii.gz", a_label())
    problems = check(read_dataset(a_dataset))
    assert "no case has a voxel of any label of dataset.json" in problems
    assert not [problem for problem in problems if "'liver'" in problem]


def test_an_image_in_both_parts_is_found(a_dataset):
    save(a_dataset / "imagesTs" / "t_1_0000.nii.gz", an_image(1))
    save(a_dataset / "labelsTs" / "t_1.nii.gz", a_label(1))
    seen = {}
    assert check(read_dataset(a_dataset), seen) == []
    assert check(read_dataset(a_dataset, "test"), seen) == ["t_1: the image holds the same values as that of a_2"]


def test_what_the_readers_warn_of_is_a_problem_and_not_said_twice(a_dataset, caplog):
    hollow = an_image(9).astype(np.float32)
    hollow[0, 0, 0] = np.nan
    save(a_dataset / "imagesTr" / "a_1_0000.nii.gz", hollow)
    problems = check(read_dataset(a_dataset))
    assert len(problems) == 1
    assert problems[0].startswith("a_1: a_1_0000.nii.gz: 1 voxels are NaN or infinite")
    assert caplog.records == []


def test_a_splits_file_that_does_not_fit_is_a_problem(a_dataset):
    names = ["a_1", "a_2"]
    splits = a_dataset / "splits_final.json"
    splits.write_text(json.dumps([{"train": names[:1], "val": names[1:]}]))
    assert check(read_dataset(a_dataset)) == []
    splits.write_text(json.dumps([{"train": names, "val": ["gone", "lost"]}, {"train": ["gone"], "val": []}]))
    assert check(read_dataset(a_dataset)) == ["splits_final.json names gone and 1 more, and there is no such case"]
    (a_dataset / "labelsTr" / f"{names[0]}.nii.gz").unlink()
    splits.write_text(json.dumps([{"train": names, "val": []}]))
    assert f"splits_final.json names {names[0]}, and there is no label of it" in check(read_dataset(a_dataset))
    splits.write_text("[]")
    assert any("holds no fold" in problem for problem in check(read_dataset(a_dataset)))
