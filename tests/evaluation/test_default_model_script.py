"""The script that writes the default model's table."""

import importlib.util
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest

import volsam
from volsam.evaluation import growing

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "default_model" / "evaluate.py"
RULES = (growing.Grow(0, 0.5), growing.Ball(4))


@pytest.fixture
def evaluate(monkeypatch):
    monkeypatch.setattr(growing, "RULES", RULES)
    spec = importlib.util.spec_from_file_location("evaluate_default_model", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def a_data_folder(tmp_path):
    """A never-seen set of one case, and an in-domain set with a case to leave out and one to score."""
    save_set(tmp_path / "left_atrium", {"background": 0, "left atrium": 1, "speck": 2}, ["LA_1"])
    save_set(tmp_path / "hippocampus", {"background": 0, "anterior": 1, "posterior": 2}, ["hippocampus_008", "new"])
    return tmp_path


def save_set(folder, labels, cases):
    label = np.zeros((20, 18, 16), np.uint8)
    label[4:12, 4:12, 4:12] = 1
    label[14:16, 14, 14] = 2
    image = label * 100 + np.random.default_rng(0).integers(0, 20, label.shape)
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    for case in cases:
        nib.save(nib.Nifti1Image(image.astype(np.int16), np.eye(4)), folder / "imagesTr" / f"{case}_0000.nii.gz")
        nib.save(nib.Nifti1Image(label, np.eye(4)), folder / "labelsTr" / f"{case}.nii.gz")
    described = {"channel_names": {"0": "MRI"}, "labels": labels, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(described))


class ASession:
    """Answers every click with a ball that grows with the number of clicks."""

    builds_on_answers = True

    def __init__(self, model, volume, *, plane, follow):
        assert model == "the default"
        assert (plane, follow) == ("auto", True)
        self.volume, self.clicks = volume, []

    def add(self, click):
        self.clicks.append(click)

    @property
    def mask(self):
        add = growing.start(growing.Ball(2 + len(self.clicks)))(self.volume)
        return self.volume.with_data(add(self.clicks[0]).astype(np.uint8))


@pytest.fixture
def a_model(monkeypatch):
    monkeypatch.setattr(volsam, "load_model", lambda name=None: "the default", raising=False)
    monkeypatch.setattr("volsam.inference.session.Session", ASession)


def run(evaluate, data, output, *more):
    status = evaluate.main(["--data", str(data), "--output", str(output), "--jobs", "1", *more])
    return SimpleNamespace(
        status=status,
        text=(output / "results.md").read_text(),
        rows=json.loads((output / "results.json").read_text())["rows"],
    )


def test_the_page_shows_the_model_beside_the_best_simple_rule(evaluate, a_model, a_data_folder, tmp_path):
    result = run(evaluate, a_data_folder, tmp_path / "out", "--clicks", "5")
    assert result.status == 0
    assert "2 cases, 3 objects, up to 5 clicks" in result.text
    assert "| 5 clicks | simple rule, 1 click | simple rule, 5 clicks |" in result.text
    assert "never seen, mean of 1 sets" in result.text
    assert "Best at 1 click: 0.5 SD, box 150 mm." in result.text
    assert "Skipped, under 20 voxels: 2." in result.text


def test_cases_that_were_trained_on_are_not_scored(evaluate, a_model, a_data_folder, tmp_path):
    result = run(evaluate, a_data_folder, tmp_path / "out", "--clicks", "1", "--without-growing")
    assert {row["case"] for row in result.rows} == {"LA_1", "new"}
    assert {row["object"] for row in result.rows if row["set"] == "hippocampus"} == {"anterior", "whole hippocampus"}


def test_every_object_is_in_the_machine_readable_results(evaluate, a_model, a_data_folder, tmp_path):
    result = run(evaluate, a_data_folder, tmp_path / "out", "--clicks", "3", "--without-growing")
    assert len(result.rows) == 3
    for row in result.rows:
        assert len(row["dice"]) == len(row["nsd"]) == len(row["spent"]) == 3
        assert row["clicks"][0][3] == 1.0
        assert row["voxels"] >= 512


def test_region_growing_can_be_taken_from_an_earlier_run(evaluate, a_model, a_data_folder, tmp_path):
    first = run(evaluate, a_data_folder, tmp_path / "first", "--without-model")
    assert {row["method"] for row in first.rows} == {str(rule) for rule in RULES}
    again = run(evaluate, a_data_folder, tmp_path / "again", "--growing-from", str(tmp_path / "first" / "results.json"))
    assert [row for row in again.rows if row["method"] != "model"] == first.rows


def test_an_unknown_set_can_be_named(evaluate, a_model, a_data_folder, tmp_path):
    save_set(tmp_path / "mine", {"background": 0, "thing": 1, "speck": 2}, ["one"])
    result = run(evaluate, a_data_folder, tmp_path / "out", "--sets", "mine", "--clicks", "1")
    assert "| mine | thing | 1 |" in result.text


def test_a_case_that_fails_is_listed_and_the_others_are_scored(evaluate, a_model, a_data_folder, tmp_path):
    (a_data_folder / "hippocampus" / "imagesTr" / "new_0000.nii.gz").write_bytes(b"damaged")
    result = run(evaluate, a_data_folder, tmp_path / "out", "--clicks", "1")
    assert result.status == 1
    assert "**Failed: 1.** hippocampus new" in result.text
    assert {row["case"] for row in result.rows} == {"LA_1"}


@pytest.mark.parametrize(
    ("curve", "words"),
    [
        ([0.5, 0.5, 0.7], "never falls from one click to the next."),
        ([0.5, 0.6, 0.55], "FALLS at click 3 (0.6000 to 0.5500)."),
    ],
)
def test_the_page_says_whether_the_curve_falls(evaluate, curve, words):
    assert evaluate.falls(curve) == words
