"""Which cases train and which test."""

import json
import re
import shutil

import nibabel as nib
import numpy as np
import pytest

from volsam.data.splits import Fold, chosen_cases, make_folds, patient_of, read_splits, write_splits
from volsam.errors import BadFile, BadInput


@pytest.fixture
def a_dataset(tmp_path):
    """Six training cases of which one has no label, and two labelled test cases."""
    folder = tmp_path / "liver"
    for part, names in (("Tr", "abcdef"), ("Ts", "xy")):
        for kind in ("images", "labels"):
            (folder / f"{kind}{part}").mkdir(parents=True)
        for name in names:
            data = np.zeros((2, 2, 2), np.uint8)
            nib.save(nib.Nifti1Image(data, np.eye(4)), folder / f"images{part}" / f"{name}_0000.nii.gz")
            if name != "f":
                nib.save(nib.Nifti1Image(data, np.eye(4)), folder / f"labels{part}" / f"{name}.nii.gz")
    table = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1}, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(table))
    return folder


def names_of(folder, *asked):
    return "".join(case.name for case in chosen_cases(folder, *asked)[1])


def test_splits_come_back_as_they_were_and_as_nnunet_reads_them(tmp_path):
    folds = [Fold(("a", "b"), ("c",)), Fold(("c",), ("a",), ("b",))]
    write_splits(folds, tmp_path / "splits_final.json")
    assert read_splits(tmp_path / "splits_final.json") == folds
    table = json.loads((tmp_path / "splits_final.json").read_text())
    assert table[0] == {"train": ["a", "b"], "val": ["c"]}
    assert table[1]["test"] == ["b"]


def test_without_a_splits_file_the_test_folder_tests_and_the_rest_trains(a_dataset):
    assert names_of(a_dataset) == "xy"
    assert names_of(a_dataset, "train") == "abcde"
    assert names_of(a_dataset, "all") == "abcdexy"


def test_a_splits_file_says_what_trains(a_dataset):
    write_splits([Fold(tuple("abc"), tuple("de")), Fold(tuple("cde"), ("b",), ("a",))], a_dataset / "splits_final.json")
    assert names_of(a_dataset, "train") == "abc"
    assert names_of(a_dataset, "train", 1) == "cde"
    assert names_of(a_dataset, "test", 1) == "a"
    assert names_of(a_dataset, "test", 0) == "xy"  # the fold names no test cases, the folder holds some


def test_the_validation_cases_test_where_there_is_nothing_else(a_dataset):
    for kind in ("images", "labels"):
        for file in (a_dataset / f"{kind}Ts").iterdir():
            file.unlink()
        (a_dataset / f"{kind}Ts").rmdir()
    with pytest.raises(BadInput, match="has no test part"):
        chosen_cases(a_dataset)
    write_splits([Fold(tuple("abc"), tuple("de"))], a_dataset / "splits_final.json")
    assert names_of(a_dataset) == "de"


def test_a_name_that_both_folders_have_is_that_of_the_training_case(a_dataset, tmp_path):
    """Another image goes by it in the test part, which is scored alone or not at all."""
    for kind, end in (("images", "_0000.nii.gz"), ("labels", ".nii.gz")):
        shutil.copy(a_dataset / f"{kind}Ts" / f"x{end}", a_dataset / f"{kind}Ts" / f"a{end}")
    write_splits([Fold(("a", "b"), ("c",), ("x",)), Fold(("c",), ("b",), ("a",))], a_dataset / "splits_final.json")
    (tmp_path / "list").write_text("a\nx\n")
    for asked in (("train",), ("test", 1), (str(tmp_path / "list"),)):
        assert chosen_cases(a_dataset, *asked)[1][0].images == (a_dataset / "imagesTr" / "a_0000.nii.gz",)
    (a_dataset / "splits_final.json").unlink()
    assert chosen_cases(a_dataset)[1][0].images == (a_dataset / "imagesTs" / "a_0000.nii.gz",)
    with pytest.raises(BadInput, match="has a case a in imagesTr and another in imagesTs"):
        chosen_cases(a_dataset, "all")
    (a_dataset / "labelsTr" / "a.nii.gz").unlink()
    assert names_of(a_dataset, "all") == "bcdeaxy"


@pytest.mark.parametrize(
    "text",
    ["b\n\n# those with a lesion\nd\n", '["b", "d"]', '{"train": ["a"], "val": ["b", "d"]}', '[{"test": ["b", "d"]}]'],
)
def test_a_file_can_list_the_cases(a_dataset, tmp_path, text):
    (tmp_path / "list").write_text(text)
    assert names_of(a_dataset, str(tmp_path / "list")) == "bd"


def test_what_makes_no_sense_is_refused_in_one_line(a_dataset, tmp_path):
    with pytest.raises(BadInput, match="no file nowhere"):
        chosen_cases(a_dataset, "nowhere")
    (tmp_path / "list").write_text("b\nz\nzz\n")
    with pytest.raises(BadInput, match="has no case 'z', nor 1 others"):
        chosen_cases(a_dataset, str(tmp_path / "list"))
    (tmp_path / "list").write_text("f\n")
    with pytest.raises(BadInput, match=r"none of the 1 cases .* has a label"):
        chosen_cases(a_dataset, str(tmp_path / "list"))
    (tmp_path / "list").write_text("[1]")
    with pytest.raises(BadInput, match="a fold is a table"):
        chosen_cases(a_dataset, str(tmp_path / "list"))
    (tmp_path / "list").write_text("[")
    with pytest.raises(BadFile, match="as JSON"):
        chosen_cases(a_dataset, str(tmp_path / "list"))
    write_splits([Fold(("a",), ("b",))], a_dataset / "splits_final.json")
    with pytest.raises(BadInput, match=r"fold 3 was asked for, .* folds 0 to 0"):
        chosen_cases(a_dataset, "train", 3)
    (a_dataset / "splits_final.json").write_text('[{"train": ["a"], "val": ["a"]}]')
    with pytest.raises(BadInput, match="a is in train and in val"):
        chosen_cases(a_dataset, "train")


def test_folds_hold_every_case_once_and_keep_patients_whole():
    names = [f"patient{number:03d}_frame{frame}" for number in range(7) for frame in (1, 2)]
    folds = make_folds(names, 3, seed=1, patient=patient_of(r"patient\d+", names))
    assert sorted(name for fold in folds for name in fold.val) == sorted(names)
    for fold in folds:
        assert sorted(fold.train + fold.val) == sorted(names)
        assert not {name[:10] for name in fold.train} & {name[:10] for name in fold.val}
    assert make_folds(reversed(names), 3, seed=1, patient=patient_of(r"patient\d+", names)) == folds
    assert make_folds(names, 3, seed=2, patient=patient_of(r"patient\d+", names)) != folds


def test_more_folds_than_patients_are_refused():
    with pytest.raises(BadInput, match="4 folds were asked for, 2 patients"):
        make_folds(["a1", "a2", "b1"], 4, patient=patient_of("(.).", ["a1", "a2", "b1"]))


@pytest.mark.parametrize(
    ("pattern", "told"),
    [
        ("(", "no pattern"),
        (r"x(\d)", "finds no patient in the case name 'scan1_a'"),
        (r"\d*", "finds no patient in the case name 'scan1_a'"),
        ("scan", "says that all 3 cases are of one patient, scan"),
    ],
)
def test_a_pattern_that_does_not_tell_patients_is_refused(pattern, told):
    names = ["scan1_a", "scan1_b", "scan2_a"]
    with pytest.raises(BadInput, match=re.escape(told)):
        make_folds(names, 2, patient=patient_of(pattern, names))


def test_a_pattern_tells_patients_by_its_group():
    whose = patient_of(r"scan(\d)_", ["scan1_a", "scan2_a"])
    assert (whose("scan1_b"), whose("scan2_b")) == ("1", "2")
