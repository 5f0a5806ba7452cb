"""Datasets made up and checked."""

import json

import numpy as np
import pytest

from volsam.data.dataset import read_dataset, read_image, read_label
from volsam.data.io import read_volume, write_volume

from .conftest import error_of


@pytest.fixture
def a_dataset(type_, tmp_path):
    """Two small invented cases."""
    assert type_("data", "synth", "-o", tmp_path / "toy", "--cases", 2, "--shape", "24,20,16").exit_code == 0
    return tmp_path / "toy"


def test_invented_cases_are_a_sound_dataset(type_, a_dataset):
    result = type_("data", "check", a_dataset)
    assert (result.exit_code, result.stdout) == (0, f"{a_dataset} is sound: 2 cases\n")


def test_invented_cases_have_images_and_labels_of_their_own(a_dataset):
    dataset = read_dataset(a_dataset)
    first, second = dataset.cases
    image = read_image(first)
    assert image.data.shape == (1, 24, 20, 16)
    assert set(np.unique(read_label(first, image.grid))) <= set(dataset.labels.values())
    assert not np.array_equal(image.data, read_image(second).data)


def test_the_same_seed_makes_the_same_bytes(type_, tmp_path, a_dataset):
    for name, seed in (("again", 0), ("other", 1)):
        type_("data", "synth", "-o", tmp_path / name, "--cases", 1, "--shape", "24,20,16", "--seed", seed)
    first = "imagesTr/synth_0000_0000.nii.gz"
    assert (tmp_path / "again" / first).read_bytes() == (a_dataset / first).read_bytes()
    assert (tmp_path / "other" / first).read_bytes() != (a_dataset / first).read_bytes()


def test_every_problem_is_named_in_one_run(type_, a_dataset):
    (a_dataset / "labelsTr" / "synth_0000.nii.gz").write_bytes(b"")
    table = json.loads((a_dataset / "dataset.json").read_text())
    (a_dataset / "dataset.json").write_text(json.dumps({**table, "numTraining": 5}))
    result = type_("data", "check", a_dataset)
    assert result.exit_code == 1
    assert len(result.stdout.splitlines()) == 2
    assert "synth_0000" in result.stdout
    assert "numTraining 5" in result.stdout
    assert result.stderr == f"error: {a_dataset} has 2 problems in 2 cases: see above\n"


def test_a_folder_that_is_no_dataset_is_refused(type_, tmp_path):
    assert "no dataset.json" in error_of(type_("data", "check", tmp_path))


def test_a_folder_that_holds_something_is_left_alone(type_, a_dataset):
    before = sorted(path.name for path in a_dataset.iterdir())
    assert "not an empty folder" in error_of(type_("data", "synth", "-o", a_dataset))
    assert sorted(path.name for path in a_dataset.iterdir()) == before


def test_an_empty_folder_may_be_filled(type_, tmp_path):
    (tmp_path / "empty").mkdir()
    result = type_("data", "synth", "-o", tmp_path / "empty", "--cases", 1, "--shape", "16,16,16")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "empty" / "dataset.json").is_file()


def test_a_run_that_fails_leaves_no_half_dataset(type_, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device", "synth_0000")

    monkeypatch.setattr("volsam.data.io.write_volume", fail)
    assert "No space left" in error_of(type_("data", "synth", "-o", tmp_path / "toy", "--shape", "16,16,16"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("shape", ["16,16", "16,16,0", "a,b,c", "16,16,99999"])
def test_a_shape_that_makes_no_sense_is_refused(type_, tmp_path, shape):
    assert "three whole numbers" in error_of(type_("data", "synth", "-o", tmp_path / "toy", "--shape", shape))


def test_no_cases_at_all_is_wrong_usage(type_, tmp_path):
    assert type_("data", "synth", "-o", tmp_path / "toy", "--cases", 0).exit_code == 2


def test_an_image_in_both_parts_of_a_dataset_is_named(type_, a_dataset):
    (a_dataset / "imagesTs").mkdir()
    image = (a_dataset / "imagesTr" / "synth_0001_0000.nii.gz").read_bytes()
    (a_dataset / "imagesTs" / "other_0000.nii.gz").write_bytes(image)
    result = type_("data", "check", a_dataset)
    assert result.exit_code == 1
    assert "other: the image holds the same values as that of synth_0001" in result.stdout


def test_a_dataset_is_converted_there_and_back(type_, a_dataset, tmp_path):
    result = type_("data", "convert", a_dataset, "-o", tmp_path / "tasks", "--to", "sam-med3d")
    assert result.exit_code == 0, result.output
    assert f"{tmp_path / 'tasks' / 'liver' / 'CT_toy'}: 2 cases, 1 label" in result.stdout
    result = type_("data", "convert", tmp_path / "tasks", "-o", tmp_path / "back")
    assert result.stdout == f"{tmp_path / 'back'}: 2 cases, 7 labels\n"
    assert type_("data", "check", tmp_path / "back").exit_code == 0
    assert "no preset is called 'btvc'; did you mean 'btcv'" in error_of(
        type_("data", "convert", a_dataset, "-o", tmp_path / "no", "--preset", "btvc")
    )


def test_folds_are_written_once(type_, a_dataset):
    result = type_("data", "split", a_dataset, "--folds", 2)
    assert result.stdout == f"{a_dataset / 'splits_final.json'}: 2 folds, the first with 1 train, 1 val\n"
    folds = json.loads((a_dataset / "splits_final.json").read_text())
    assert folds[0] == {"train": folds[1]["val"], "val": folds[1]["train"]}
    assert "--force" in error_of(type_("data", "split", a_dataset))
    assert "5 folds were asked for, 2 patients" in error_of(type_("data", "split", a_dataset, "--force"))
    assert "test case of btcv" in error_of(type_("data", "split", a_dataset, "--force", "--preset", "btcv"))


def test_a_patient_is_told_by_a_regex(type_):
    assert any(
        line.split()[1:3] == ["--patient", "REGEX"] for line in type_("data", "split", "--help").stdout.split("\n")
    )


def test_presets_are_listed_and_shown(type_):
    listed = type_("data", "presets").stdout.splitlines()
    assert len(listed) == 10
    assert any(line.startswith("kits21") and "-54..247" in line for line in listed)
    shown = type_("data", "presets", "btcv").stdout
    assert "adrenal glands (12+13)" in shown
    assert "0035 to 0040 test" in shown
    data = json.loads(type_("data", "presets", "--json").stdout)
    assert {each["name"] for each in data} >= {"acdc", "endovis18"}
    assert data[0]["scored"]


def test_what_was_not_drawn_is_labelled_so(type_, a_dataset, tmp_path):
    for case in read_dataset(a_dataset).cases:
        volume = read_volume(case.label)
        kept = volume.data.copy()
        kept[..., np.arange(kept.shape[-1]) % 4 != 1] = 0
        write_volume(volume.with_data(kept), case.label)
    result = type_("data", "undrawn", a_dataset, "-o", tmp_path / "known")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[0].split() == ["case", "slices", "drawn", "not", "known"]
    assert len(result.stdout.splitlines()) == 3
    assert "ignore" in read_dataset(tmp_path / "known").labels
    assert "--plane is auto, axial" in error_of(
        type_("data", "undrawn", a_dataset, "-o", tmp_path / "no", "--plane", "up")
    )
