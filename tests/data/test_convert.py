"""Datasets of other layouts."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from volsam.data.check import check
from volsam.data.convert import convert, layout_of
from volsam.data.dataset import read_dataset, read_image, read_label
from volsam.data.presets import presets
from volsam.data.splits import read_splits
from volsam.errors import BadFile, BadInput

AFFINE = np.diag([1.0, 1.5, 2.0, 1.0])


def save(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(data, AFFINE), path)


def an_image(seed=0, channels=1):
    data = np.random.default_rng(seed).integers(0, 1000, (6, 5, 4, channels)).astype(np.int16)
    return data if channels > 1 else data[..., 0]


def a_label(*values):
    label = np.zeros((6, 5, 4), np.uint8)
    for place, value in enumerate(values):
        label[place, 1:3, 1:3] = value
    return label


@pytest.fixture
def tasks(tmp_path):
    """Two structures of one dataset that overlap in a voxel, and one of another."""
    root = tmp_path / "medical"
    for seed, case in enumerate(("case_1", "case_2")):
        save(root / "liver" / "ct_AMOS" / "imagesTr" / f"{case}.nii.gz", an_image(seed))
        save(root / "liver" / "ct_AMOS" / "labelsTr" / f"{case}.nii.gz", a_label(1))
    save(root / "spleen" / "ct_AMOS" / "imagesTr" / "case_1.nii.gz", an_image(0))
    overlapping = a_label(0, 1)
    overlapping[0, 1, 1] = 1
    save(root / "spleen" / "ct_AMOS" / "labelsTr" / "case_1.nii.gz", overlapping)
    save(root / "spleen" / "ct_AMOS" / "imagesTr" / "case_3.nii.gz", an_image(3))
    save(root / "heart" / "mr_ACDC" / "imagesTr" / "p1.nii.gz", an_image(5))
    save(root / "heart" / "mr_ACDC" / "labelsTr" / "p1.nii.gz", a_label(1))
    return root


@pytest.fixture
def decathlon(tmp_path):
    folder = tmp_path / "Task07"
    table = {
        "name": "Pancreas",
        "modality": {"0": "CT"},
        "labels": {"0": "background", "1": "pancreas", "2": "cancer"},
        "training": [{"image": f"./imagesTr/p_{n}.nii.gz", "label": f"./labelsTr/p_{n}.nii.gz"} for n in (1, 2)],
        "test": ["./imagesTs/p_9.nii.gz"],
    }
    folder.mkdir()
    (folder / "dataset.json").write_text(json.dumps(table))
    for n in (1, 2):
        save(folder / "imagesTr" / f"p_{n}.nii.gz", an_image(n))
        save(folder / "labelsTr" / f"p_{n}.nii.gz", a_label(1, 2) if n == 1 else a_label(1))
    return folder


def test_layouts_are_told_apart(tasks, decathlon, tmp_path):
    assert layout_of(decathlon) == "decathlon"
    assert layout_of(tasks) == layout_of(tasks / "liver") == layout_of(tasks / "liver" / "ct_AMOS") == "sam-med3d"
    with pytest.raises(BadFile, match="no layout that is known"):
        layout_of(tmp_path / "nowhere")


def test_tasks_of_one_dataset_become_labels_of_one(tasks, tmp_path):
    made = {one.name: one for one in convert(tasks, tmp_path / "out")}
    assert set(made) == {"ct_AMOS", "mr_ACDC"}
    dataset = read_dataset(tmp_path / "out" / "ct_AMOS")
    assert dataset.objects == {"liver": 1, "spleen": 2}
    assert dataset.channels == ("CT",)
    assert read_dataset(tmp_path / "out" / "mr_ACDC").channels == ("MRI",)
    assert [case.name for case in dataset.cases] == ["case_1", "case_2"]
    label = read_label(dataset.case("case_1"))
    assert (label[0, 1, 2], label[1, 1, 1], label[0, 1, 1]) == (1, 2, 2)
    notes = " ".join(made["ct_AMOS"].notes)
    assert "1 images without a label" in notes
    assert "1 voxels are in two structures" in notes
    assert "1 cases are not in every task" in notes
    assert check(dataset) == []
    source = tasks / "liver" / "ct_AMOS" / "imagesTr" / "case_2.nii.gz"
    assert (tmp_path / "out" / "ct_AMOS" / "imagesTr" / "case_2_0000.nii.gz").read_bytes() == source.read_bytes()


def test_one_task_becomes_the_folder_itself(tasks, tmp_path):
    (made,) = convert(tasks / "liver" / "ct_AMOS", tmp_path / "out")
    assert (made.cases, made.labels) == (2, 1)
    assert check(read_dataset(tmp_path / "out")) == []


def test_decathlon_becomes_nnunet(decathlon, tmp_path):
    (made,) = convert(decathlon, tmp_path / "out")
    assert made.name == "Pancreas"
    table = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert table["labels"] == {"background": 0, "pancreas": 1, "cancer": 2}
    assert table["channel_names"] == {"0": "CT"}
    assert table["numTraining"] == 2
    assert check(read_dataset(tmp_path / "out")) == []
    assert layout_of(tmp_path / "out") == "nnunet"


def test_channels_of_one_file_become_a_file_each(decathlon, tmp_path):
    table = json.loads((decathlon / "dataset.json").read_text())
    (decathlon / "dataset.json").write_text(json.dumps({**table, "modality": {"0": "FLAIR", "1": "T1"}}))
    for n in (1, 2):
        save(decathlon / "imagesTr" / f"p_{n}.nii.gz", an_image(n, channels=2))
    convert(decathlon, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out" / "imagesTr").iterdir()) == [
        f"p_{n}_{c:04d}.nii.gz" for n in (1, 2) for c in (0, 1)
    ]
    image = read_image(read_dataset(tmp_path / "out").case("p_2"))
    assert np.array_equal(image.data, np.moveaxis(an_image(2, channels=2), -1, 0))
    assert np.array_equal(image.grid.affine, AFFINE)


def test_a_preset_keeps_the_labels_of_a_paper(decathlon, tmp_path):
    convert(decathlon, tmp_path / "out", preset=presets["msd-pancreas"])
    dataset = read_dataset(tmp_path / "out")
    assert dataset.labels == {"background": 0, "tumour": 1}
    assert np.array_equal(read_label(dataset.case("p_1")), a_label(0, 1))
    with pytest.raises(BadInput, match=r"knows the label values \[0, 1\], .* also has \[2\]"):
        convert(decathlon, tmp_path / "other", preset=presets["msd-colon"])
    assert not (tmp_path / "other").exists()


def test_a_preset_writes_the_published_split(tmp_path):
    folder = tmp_path / "btcv"
    names = list(presets["btcv"].labels)
    for number in (1, 2, 3, 21, 34, 35, 40):
        save(folder / "imagesTr" / f"img{number:04d}_0000.nii.gz", an_image(number))
        save(folder / "labelsTr" / f"img{number:04d}.nii.gz", a_label(12, 13))
    table = {"channel_names": {"0": "CT"}, "labels": {name: value for value, name in enumerate(names)}}
    (folder / "dataset.json").write_text(json.dumps(table))
    convert(folder, tmp_path / "out", preset=presets["btcv"])
    dataset = read_dataset(tmp_path / "out")
    assert dataset.objects["adrenal glands"] == 12
    assert set(np.unique(read_label(dataset.cases[0]))) == {0, 12}
    folds = read_splits(tmp_path / "out" / "splits_final.json")
    assert all(fold.test == ("img0035", "img0040") for fold in folds)
    assert sorted(name for fold in folds for name in fold.val) == [f"img{n:04d}" for n in (1, 2, 3, 21, 34)]


def test_validation_cases_with_folders_of_their_own_become_the_fold_s(decathlon, tmp_path):
    save(decathlon / "imagesVa" / "p_5.nii.gz", an_image(5))
    save(decathlon / "labelsVa" / "p_5.nii.gz", a_label(1, 2))
    (made,) = convert(decathlon, tmp_path / "out")
    assert made.cases == 3
    dataset = read_dataset(tmp_path / "out")
    assert np.array_equal(read_label(dataset.case("p_5")), a_label(1, 2))
    (fold,) = read_splits(tmp_path / "out" / "splits_final.json")
    assert (fold.train, fold.val, fold.test) == (("p_1", "p_2"), ("p_5",), ())
    assert check(dataset) == []
    (decathlon / "imagesVa" / "p_5.nii.gz").unlink()
    with pytest.raises(BadFile, match=r"p_5\.nii\.gz has no image"):
        convert(decathlon, tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_labels_become_binary_tasks_and_come_back(decathlon, tmp_path):
    made = convert(decathlon, tmp_path / "tasks", to="sam-med3d")
    assert [(one.name, one.cases) for one in made] == [("pancreas/CT_Pancreas", 2), ("cancer/CT_Pancreas", 1)]
    assert layout_of(tmp_path / "tasks") == "sam-med3d"
    convert(tmp_path / "tasks", tmp_path / "back")
    back = read_dataset(tmp_path / "back")
    assert back.objects == {"cancer": 1, "pancreas": 2}
    before = read_label(read_dataset(decathlon).case("p_1"))
    after = read_label(back.case("p_1"))
    assert np.array_equal(after, np.array([0, 2, 1])[before])


def test_an_image_of_several_tasks_takes_its_room_once(decathlon, tmp_path, monkeypatch):
    def both(folder):
        convert(decathlon, folder, to="sam-med3d")
        return [folder / task / "CT_Pancreas" / "imagesTr" / "p_1.nii.gz" for task in ("pancreas", "cancer")]

    one, other = both(tmp_path / "tasks")
    assert one.samefile(other)

    def unknown(self, target):
        raise OSError("no second names here")

    monkeypatch.setattr(Path, "hardlink_to", unknown)
    one, other = both(tmp_path / "copied")
    assert not one.samefile(other)
    assert one.read_bytes() == other.read_bytes()


def test_regions_are_kept_and_are_tasks(decathlon, tmp_path):
    (decathlon / "dataset.json").rename(tmp_path / "table.json")
    table = json.loads((tmp_path / "table.json").read_text())
    table["labels"] = {"background": 0, "whole": [1, 2], "cancer": [2], "ignore": 3}
    (decathlon / "dataset.json").write_text(json.dumps({**table, "regions_class_order": [1, 2]}))
    convert(decathlon, tmp_path / "renewed")
    assert read_dataset(tmp_path / "renewed").regions == {"whole": (1, 2), "cancer": (2,)}
    assert read_dataset(tmp_path / "renewed").ignored == 3
    assert json.loads((tmp_path / "renewed/dataset.json").read_text())["regions_class_order"] == [1, 2]
    made = convert(decathlon, tmp_path / "tasks", to="sam-med3d")
    assert [(one.name, one.cases) for one in made] == [("whole/CT_Pancreas", 2), ("cancer/CT_Pancreas", 1)]
    assert made[0].notes == ("voxels labelled ignore are background there",)
    mask = nib.load(tmp_path / "tasks/whole/CT_Pancreas/labelsTr/p_1.nii.gz").get_fdata()
    assert np.array_equal(mask > 0, a_label(1, 2) > 0)


def test_frames_become_a_volume_with_three_channels(tmp_path):
    sequence = tmp_path / "video" / "seq_1"
    colours = presets["endovis18"].colours
    for name in ("left_frames", "labels"):
        (sequence / name).mkdir(parents=True)
    for number in range(3):
        frame = np.random.default_rng(number).integers(0, 255, (4, 6, 3)).astype(np.uint8)
        label = np.zeros((4, 6, 3), np.uint8)
        label[1, 2] = colours[4]
        label[2, 5] = colours[11]
        Image.fromarray(frame).save(sequence / "left_frames" / f"frame{number:03d}.png")
        Image.fromarray(label).save(sequence / "labels" / f"frame{number:03d}.png")
    with pytest.raises(BadInput, match="add --preset endovis18"):
        convert(tmp_path / "video", tmp_path / "out")
    (made,) = convert(tmp_path / "video", tmp_path / "out", preset=presets["endovis18"])
    assert (made.cases, made.labels) == (1, 11)
    dataset = read_dataset(tmp_path / "out")
    image = read_image(dataset.case("seq_1"))
    assert image.data.shape == (3, 6, 4, 3)
    frame = np.asarray(Image.open(sequence / "left_frames" / "frame002.png"))
    assert image.data[:, 5, 3, 2].tolist() == frame[3, 5].tolist()
    label = read_label(dataset.case("seq_1"))
    assert (label[2, 1, 0], label[5, 2, 1], label[0, 0, 0]) == (4, 11, 0)
    Image.fromarray(np.full((4, 6, 3), 7, np.uint8)).save(sequence / "labels" / "frame001.png")
    with pytest.raises(BadInput, match=r"frame001\.png: the colour at column 0, row 0 is none of endovis18"):
        convert(tmp_path / "video", tmp_path / "again", preset=presets["endovis18"])


def test_a_conversion_that_fails_leaves_nothing(decathlon, tmp_path):
    (decathlon / "labelsTr" / "p_2.nii.gz").unlink()
    with pytest.raises((BadInput, OSError)):
        convert(decathlon, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["Task07"]


def test_a_folder_that_holds_something_is_left_alone(decathlon, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    with pytest.raises(BadInput, match="not an empty folder"):
        convert(decathlon, tmp_path / "out")
    with pytest.raises(BadInput, match="--to is nnunet or sam-med3d"):
        convert(decathlon, tmp_path / "new", to="dicom")
