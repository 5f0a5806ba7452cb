"""`volsam evaluate`: a model on a dataset, to a report."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import save_file

from volsam.cli.asking import labels_of
from volsam.data.dataset import read_dataset
from volsam.data.digests import image_digest
from volsam.data.io import read_volume, write_volume
from volsam.evaluation.protocol import Objects
from volsam.evaluation.study import Scene
from volsam.recipes.families.fixture import read_fixture
from volsam.volume import Volume

from .conftest import error_of
from .lesions import write_lesions

RECORDED = Path(__file__).parent.parent / "reference"


pytestmark = pytest.mark.usefixtures("no_plots")


@pytest.fixture
def a_dataset(tmp_path: Path) -> Path:
    """Three scans with a bright lesion in each, and a cyst in the first."""
    return write_lesions(tmp_path / "lesions")


@pytest.fixture
def predictions(a_dataset: Path, tmp_path: Path) -> Path:
    """The labels themselves, without the third case."""
    folder = tmp_path / "predicted"
    folder.mkdir()
    for number in range(2):
        (folder / f"case{number}.nii.gz").write_bytes((a_dataset / "labelsTr" / f"case{number}.nii.gz").read_bytes())
    return folder


def rows_of(report: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((report / "scores.csv").read_text().splitlines()))


def test_clicks_are_scored_one_by_one(type_, a_model, a_dataset, tmp_path):
    out = tmp_path / "report"
    result = type_("evaluate", "any", a_dataset, "-o", out, "--split", "all", "--clicks", 2, "--objects", "lesion")
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in out.iterdir()) == [
        "cases",
        "pictures",
        "report.html",
        "report.md",
        "results.json",
        "scores.csv",
        "settings.json",
    ]
    rows = rows_of(out)
    assert [(row["case"], row["step"]) for row in rows[:2]] == [("case0", "1 click"), ("case0", "2 clicks")]
    assert len(rows) == 6
    assert float(rows[1]["dice"]) > 0.9
    assert rows[0]["hd95"] == ""
    assert float(rows[1]["hd95"]) < 4
    said = result.stdout.splitlines()
    assert said[0].startswith("Dice  0.9")
    assert any(line.startswith("HD95") and " mm (" in line for line in said)
    assert "of the last answer, after 2 clicks" in said
    assert "Scores are those of the last answer, after 2 clicks" in (out / "report.md").read_text()
    assert [line.split(":")[0] for line in result.stderr.splitlines()] == ["1/3 case0", "2/3 case1", "3/3 case2"]
    assert len(list((out / "pictures").iterdir())) == 3


def test_objects_that_a_case_lacks_are_not_clicked(type_, a_model, a_dataset, tmp_path):
    type_("evaluate", "any", a_dataset, "-o", tmp_path / "report", "--split", "all", "--clicks", 1)
    assert [(row["case"], row["object"]) for row in rows_of(tmp_path / "report")] == [
        ("case0", "lesion"),
        ("case0", "cyst"),
        ("case1", "lesion"),
        ("case2", "lesion"),
    ]


def test_a_run_goes_on_where_it_was_stopped(type_, a_model, a_dataset, tmp_path, monkeypatch):
    out = tmp_path / "report"
    words = ("evaluate", "any", a_dataset, "-o", out, "--split", "all", "--clicks", 1)
    from volsam.cli import scenes

    whole = scenes.read_image

    def stopped(case):
        if case.name == "case1":
            raise KeyboardInterrupt
        return whole(case)

    monkeypatch.setattr(scenes, "read_image", stopped)
    assert type_(*words).exit_code == 130
    assert [file.name for file in (out / "cases").iterdir()] == ["case0.json"]
    monkeypatch.setattr(scenes, "read_image", whole)
    before = (out / "cases" / "case0.json").read_bytes()
    result = type_(*words)
    assert result.exit_code == 0
    assert "1/3 case0: scored already" in result.stderr
    assert (out / "cases" / "case0.json").read_bytes() == before
    assert {row["case"] for row in rows_of(out)} == {"case0", "case1", "case2"}
    assert "another evaluation, with clicks 1 and not 3" in error_of(type_(*words[:-1], 3))
    assert type_(*words[:-1], 3, "--overwrite").exit_code == 0


def test_a_case_that_fails_does_not_end_the_others(type_, a_model, a_dataset, tmp_path):
    (a_dataset / "imagesTr" / "case1_0000.nii.gz").write_bytes(b"damaged")
    out = tmp_path / "report"
    result = type_("evaluate", "any", a_dataset, "-o", out, "--split", "all", "--clicks", 1)
    assert result.exit_code == 1
    assert "2/3 case1 error: " in result.stderr
    assert result.stderr.splitlines()[-1].startswith("error: 1 of 3 cases failed")
    assert {row["case"] for row in rows_of(out)} == {"case0", "case2"}
    assert list(json.loads((out / "results.json").read_text())["failed"]) == ["case1"]


def test_labels_in_a_folder_are_scored_without_a_model(type_, a_dataset, predictions, tmp_path):
    out = tmp_path / "report"
    result = type_("evaluate", predictions, a_dataset, "-o", out, "--split", "all")
    assert result.exit_code == 1
    assert "holds no labels for case2" in result.stderr
    assert {(row["object"], row["dice"], row["hd"]) for row in rows_of(out)} == {
        ("lesion", "1", "0"),
        ("cyst", "1", "0"),
    }
    settings = json.loads((out / "settings.json").read_text())
    assert settings["protocol"] == "automatic"


def test_an_automatic_model_is_scored(type_, a_dataset, tmp_path):
    tensors = read_fixture(RECORDED / "autosam.json").weights()
    kept = {
        key: value.contiguous() for key, value in tensors.items() if not key.startswith(("cnn_head", "linear_head"))
    }
    save_file(kept, tmp_path / "autosam.safetensors")
    out = tmp_path / "report"
    result = type_(
        "evaluate", tmp_path / "autosam.safetensors", a_dataset, "-o", out, "--split", "all", "--rule", "autosam"
    )
    assert result.exit_code == 0, result.output
    assert len(rows_of(out)) == 6
    assert json.loads((out / "settings.json").read_text())["rule"] == "autosam"
    for protocol, words in (("clicks", "automatic and takes no clicks"), ("automatic", "volsam-s takes prompts")):
        model = "volsam-s" if protocol == "automatic" else tmp_path / "autosam.safetensors"
        asked = type_("evaluate", model, a_dataset, "-o", tmp_path / "no", "--split", "all", "--protocol", protocol)
        assert words in error_of(asked)
        assert not (tmp_path / "no").exists()


@pytest.mark.parametrize("words", [("--protocol", "box"), ("--protocol", "cvpr2025")])
def test_boxes_and_the_challenge(type_, a_model, a_dataset, tmp_path, words):
    out = tmp_path / "report"
    result = type_("evaluate", "any", a_dataset, "-o", out, "--split", "all", "--objects", "lesion", *words)
    assert result.exit_code == 0, result.output
    first = a_model.asked[0]
    assert len(first.boxes) == 1
    flat = np.ptp(first.boxes[0], axis=0).min() < 1
    assert flat == ("cvpr2025" in words)
    steps = json.loads((out / "results.json").read_text())["steps"]
    assert steps[0] == "box"
    assert len(steps) == (6 if "cvpr2025" in words else 1)
    assert ("DSC_AUC" in (out / "report.md").read_text()) == ("cvpr2025" in words)


@pytest.mark.parametrize("words", [("--rule", "standard"), ("--tolerance", 3)])
def test_by_another_rule_there_are_no_figures_of_the_challenge(type_, a_model, a_dataset, tmp_path, words):
    asked = ("--protocol", "cvpr2025", "--split", "all", "--objects", "lesion")
    assert type_("evaluate", "any", a_dataset, "-o", tmp_path / "report", *asked, *words).exit_code == 0
    assert "DSC_AUC" not in (tmp_path / "report" / "report.md").read_text()
    assert json.loads((tmp_path / "report" / "results.json").read_text())["challenge"] is None


@pytest.mark.parametrize("where", ["random", "centre", "surround", "margin", "fastsam3d"])
def test_clicks_fall_where_they_are_wanted(type_, a_model, a_dataset, tmp_path, where):
    words = ("--split", "all", "--objects", "lesion", "--where", where, "--clicks", 4)
    result = type_("evaluate", "any", a_dataset, "-o", tmp_path / "report", *words)
    assert result.exit_code == 0, result.output
    steps = json.loads((tmp_path / "report" / "results.json").read_text())["steps"]
    assert steps == [f"{n} click{'s' * (n > 1)}" for n in ((1, 2, 3, 4) if where == "fastsam3d" else (1, 3, 4))]


def test_clicks_on_every_slice_are_counted(type_, a_model, a_dataset, tmp_path):
    words = ("--split", "all", "--objects", "lesion", "--per", "slice", "--clicks", 1, "--protocol", "clicks")
    assert type_("evaluate", "any", a_dataset, "-o", tmp_path / "report", *words).exit_code == 0
    row = rows_of(tmp_path / "report")[0]
    assert row["step"] == "1 click per slice"
    assert int(row["prompts"]) == 7  # a ball of 6 mm in slices of 1.5 mm


def test_by_a_rule_of_the_best_answer_that_is_what_is_said_and_drawn(type_, a_model, a_dataset, tmp_path, monkeypatch):
    """The first answer is right but for noise, all later ones hold little but the clicks."""
    from volsam.inference.model import Decoded

    decode = a_model.decode

    def worse(encoded, prompts, previous):
        found = decode(encoded, prompts, previous)
        return found if len(prompts.points) == 1 else Decoded(found.low_res - 20, found.logits - 20, found.part, 0.5)

    monkeypatch.setattr(a_model, "decode", worse)
    drawn = []
    monkeypatch.setattr(
        "volsam.evaluation.pictures.draw", lambda volume, target, mask, path: drawn.append(int(mask.sum()))
    )
    out = tmp_path / "report"
    words = ("--split", "all", "--objects", "lesion", "--clicks", 2, "--where", "random", "--rule", "fastsam3d")
    result = type_("evaluate", "any", a_dataset, "-o", out, *words)
    assert result.exit_code == 0, result.output
    rows = rows_of(out)
    assert [row["counts"] for row in rows] == ["1", "0"] * 3
    assert [row["hd95"] == "" for row in rows] == [False] * 6
    assert max(float(row["dice"]) for row in rows[1::2]) < 0.01 < 0.9 < min(float(row["dice"]) for row in rows[::2])
    for line, row in zip(result.stderr.splitlines(), rows[::2], strict=True):
        assert line.endswith(f"lesion {float(row['dice']):.3f}")
    assert f"of the best of {len(rows) // 3} answers, by Dice" in result.stdout
    assert len(drawn) == 3
    assert min(drawn) > 400
    assert all(int(file.stem[:4]) > 900 for file in (out / "pictures").iterdir())


def test_results_are_compared(type_, a_model, a_dataset, tmp_path):
    for name, clicks in (("one", 1), ("two", 2)):
        words = ("--split", "all", "--objects", "lesion", "--clicks", clicks, "--name", name)
        type_("evaluate", "any", a_dataset, "-o", tmp_path / name, *words)
    both = (tmp_path / "one" / "results.json", tmp_path / "two")
    result = type_("evaluate", "--compare", *both, "-o", tmp_path / "both")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("Dice two 0.9")
    assert (tmp_path / "both" / "comparison.html").is_file()
    assert "two or more results" in error_of(type_("evaluate", "--compare", both[0], "-o", tmp_path / "none"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--protocol", "guess"), "--protocol is automatic, clicks, box, cvpr2025, got 'guess'"),
        (("--where", "above"), "--where is deepest, "),
        (("--per", "voxel"), "--per is volume or slice"),
        (("--protocol", "box", "--where", "margin"), "belong to --protocol clicks"),
        (("--protocol", "automatic", "--clicks", 3), "leave --clicks out"),
        (("--per", "slice", "--where", "margin"), "leave --where out"),
        (("--rule", "mine"), "no rule is called 'mine'"),
        (("--objects", "heart"), "the dataset has lesion, cyst"),
        (("--split", "nowhere"), "no file nowhere"),
        (("--split", "test"), "has no test part"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_written(type_, a_model, a_dataset, tmp_path, words, said):
    split = () if "--split" in words else ("--split", "all")
    assert said in error_of(type_("evaluate", "any", a_dataset, "-o", tmp_path / "report", *split, *words))
    assert not (tmp_path / "report").exists()


def test_a_model_without_a_dataset_is_refused(type_, tmp_path):
    assert "one MODEL and one DATASET" in error_of(type_("evaluate", "any", "-o", tmp_path / "report"))


def test_models_that_take_less_are_asked_less(type_, a_model, a_dataset, tmp_path):
    a_model.takes = frozenset({"click"})
    words = ("--split", "all", "--objects", "lesion", "--clicks", 4)
    assert type_("evaluate", "any", a_dataset, "-o", tmp_path / "report", *words).exit_code == 0
    assert all(asked.labels.all() for asked in a_model.asked)
    for protocol, said in (("box", "takes no box"), ("cvpr2025", "takes no negative clicks")):
        words = ("--split", "all", "--protocol", protocol)
        assert said in error_of(type_("evaluate", "any", a_dataset, "-o", tmp_path / "other", *words))


@pytest.mark.parametrize("apart", [True, False])
def test_files_of_the_challenge_are_a_dataset(type_, a_model, a_dataset, tmp_path, apart):
    """With their own boxes; labels in the file, or in a folder beside."""
    from volsam.data.dataset import read_dataset, read_image, read_label
    from volsam.evaluation.cvpr2025 import middle_boxes, write_task
    from volsam.evaluation.protocol import Objects

    folder = tmp_path / "npz"
    (folder / "gts").mkdir(parents=True)
    for case in read_dataset(a_dataset).cases[:2]:
        image = read_image(case)
        labels = read_label(case)
        labels[labels == 2] = 0
        boxes = middle_boxes(Objects(labels, {"lesion": 1}), image.grid)
        kept = None if apart else labels
        write_task(folder / f"{case.name}.npz", image, [(boxes["lesion"],)], labels=kept)
        if apart:
            turned = np.ascontiguousarray(labels.transpose(2, 1, 0))
            np.savez_compressed(folder / "gts" / f"{case.name}.npz", gts=turned)
    out = tmp_path / "report"
    result = type_("evaluate", "any", folder, "-o", out, "--protocol", "cvpr2025", "--rule", "cvpr2025")
    assert result.exit_code == 0, result.output
    assert {(row["case"], row["object"]) for row in rows_of(out)} == {("case0", "class 1"), ("case1", "class 1")}
    assert float(rows_of(out)[0]["dice"]) > 0.9
    for words, said in ((("--objects", "lesion"), "have no names"), (("--protocol", "automatic"), "with prompts")):
        assert said in error_of(type_("evaluate", "any", folder, "-o", tmp_path / "no", *words))


@pytest.fixture
def a_run(a_dataset: Path, tmp_path: Path) -> Path:
    """What the folder of a training run says of itself: it learnt from one case, and left one out."""
    folder = tmp_path / "run"
    folder.mkdir()
    preparation = {"spacing": None, "window": None}
    record = {"method": "adapt", "training": ["case0"], "validation": ["case1"], "done": True, "steps": 1200}
    images = {case.name: image_digest(case) for case in read_dataset(a_dataset).cases[:2]}
    (folder / "record.json").write_text(json.dumps({**record, **preparation, "images": images}))
    splits = [{"train": ["case0"], "val": ["case1"], "test": ["case2"]}]
    (folder / "splits.json").write_text(json.dumps(splits))
    return folder


@pytest.fixture
def a_trained_model(a_model, a_run: Path, a_dataset: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    from types import SimpleNamespace

    record = SimpleNamespace(**json.loads((a_run / "record.json").read_text()))
    record.plan = SimpleNamespace(labels=("background", *read_dataset(a_dataset).objects))
    monkeypatch.setattr("volsam.recipes.trained.place_of", lambda path: a_run if Path(path) == a_run else None)
    monkeypatch.setattr("volsam.training.run.RunFolder.record", lambda self: record)
    return a_run


def test_a_run_is_scored_on_what_it_never_saw(type_, a_trained_model, a_dataset, tmp_path):
    out = tmp_path / "report"
    result = type_("evaluate", a_trained_model, a_dataset, "-o", out, "--clicks", 1)
    assert result.exit_code == 0, result.output
    assert {row["case"] for row in rows_of(out)} == {"case2"}
    assert "warning" not in result.stderr
    settings = json.loads((out / "settings.json").read_text())
    assert (settings["name"], settings["trained_on"]) == ("adapt", 1)
    assert "Learnt from: 1 case, 1,200 steps" in (out / "report.md").read_text()


def test_without_any_that_a_run_never_saw_those_of_its_own_fold_are_scored(type_, a_trained_model, a_dataset, tmp_path):
    theirs = [{"train": ["case1", "case2"], "val": ["case0"]}, {"train": ["case0", "case1"], "val": ["case2"]}]
    (a_dataset / "splits_final.json").write_text(json.dumps(theirs))
    (a_trained_model / "splits.json").write_text(json.dumps(theirs[1:]))  # it was trained with --fold 1
    out = tmp_path / "report"
    result = type_("evaluate", a_trained_model, a_dataset, "-o", out, "--clicks", 1)
    assert result.exit_code == 0, result.output
    assert {row["case"] for row in rows_of(out)} == {"case2"}


def test_objects_that_a_run_did_not_learn_are_not_scored(type_, a_trained_model, a_dataset, tmp_path, monkeypatch):
    from volsam.training.run import RunFolder

    record = RunFolder(a_trained_model).record()
    first, *others = read_dataset(a_dataset).objects
    assert others
    record.plan.labels = ("background", first)
    out = tmp_path / "report"
    assert type_("evaluate", a_trained_model, a_dataset, "-o", out, "--clicks", 1).exit_code == 0
    assert {row["object"] for row in rows_of(out)} == {first}


def test_a_run_on_cases_that_it_has_seen_says_so(type_, a_trained_model, a_dataset, tmp_path):
    out = tmp_path / "report"
    result = type_("evaluate", a_trained_model, a_dataset, "-o", out, "--clicks", 1, "--split", "all")
    assert "warning: cases that the model has learnt from: 1 of 3" in result.stderr
    assert "warning: cases that its weights were chosen by: 1 of 3" in result.stderr
    assert "flatter it" in (out / "report.md").read_text()


def test_what_a_run_has_seen_does_not_go_by_names(type_, a_trained_model, a_dataset, tmp_path):
    other = tmp_path / "elsewhere"
    shutil.copytree(a_dataset, other)
    table = json.loads((other / "dataset.json").read_text())
    (other / "dataset.json").write_text(json.dumps({**table, "name": "Renamed"}))
    for folder, ending in (("imagesTr", "_0000.nii.gz"), ("labelsTr", ".nii.gz")):
        for number in range(3):
            file = other / folder / f"case{number}{ending}"
            file.rename(file.with_name(f"scan{number}{ending}"))
    result = type_("evaluate", a_trained_model, other, "-o", tmp_path / "one", "--clicks", 1, "--split", "all")
    assert "learnt from: 1 of 3" in result.stderr, "a copy under other names"
    for number in range(3):  # other scans, of the same names
        file = a_dataset / "imagesTr" / f"case{number}_0000.nii.gz"
        volume = read_volume(file)
        write_volume(volume.with_data(volume.data + 1), file)
    result = type_("evaluate", a_trained_model, a_dataset, "-o", tmp_path / "two", "--clicks", 1, "--split", "all")
    assert result.exit_code == 0
    assert "warning" not in result.stderr


def test_a_training_that_is_not_finished_is_named(type_, a_trained_model, a_dataset, tmp_path):
    from volsam.training.run import RunFolder

    RunFolder(a_trained_model).record().done = False
    result = type_("evaluate", a_trained_model, a_dataset, "-o", tmp_path / "report", "--clicks", 1)
    assert "warning: the training is not finished: these are its weights so far" in result.stderr
    assert "The training is not finished" in (tmp_path / "report" / "report.md").read_text()


def test_a_class_that_is_called_otherwise_is_named(type_, a_dataset, tmp_path, monkeypatch):
    class Model:
        name = "other"
        values = (0, 1, 2)

        def __init__(self, *labels):
            self.labels = labels

        def segment(self, volume, plane="auto", *, stride=1, progress=iter):
            return volume.with_data((volume.data > 80).astype(np.uint8))

    def evaluated(out, *labels):
        monkeypatch.setattr("volsam.cli.evaluate._automatic_model", lambda model, device: Model("background", *labels))
        words = ("--protocol", "automatic", "--split", "all")
        result = type_("evaluate", "any", a_dataset, "-o", tmp_path / out, *words)
        assert result.exit_code == 0, result.output
        return result.stderr + (tmp_path / out / "report.md").read_text()

    said = evaluated("others", "anterior", "posterior")
    assert (
        said.count("o class of the model has the name of a label; by their numbers, anterior is scored as lesion") == 2
    )
    assert "has the name of a label" not in evaluated("same", "Lesion", "cyst")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--clicks", 0), "--clicks 0 asks nothing"),
        (("--clicks", 1, "--plane", "up"), "--plane is auto, axial, coronal, sagittal, got 'up'"),
        (("--objects", ","), "--objects names none of lesion, cyst"),
    ],
)
def test_what_asks_nothing_is_refused_and_leaves_nothing(type_, a_model, a_dataset, tmp_path, words, told):
    out = tmp_path / "report"
    assert told in error_of(type_("evaluate", "any", a_dataset, "-o", out, "--split", "all", *words))
    assert not out.exists()


def test_a_comparison_is_not_written_among_other_files(type_, a_model, a_dataset, tmp_path):
    for name in ("one", "two"):
        words = ("--split", "all", "--clicks", 1, "--name", name)
        assert type_("evaluate", "any", a_dataset, "-o", tmp_path / name, *words).exit_code == 0
    words = ("evaluate", "--compare", tmp_path / "one", tmp_path / "two", "-o")
    assert "is no comparison of ours" in error_of(type_(*words, a_dataset))
    for _ in range(2):
        assert type_(*words, tmp_path / "beside").exit_code == 0


def test_features_of_datasets_are_shown(type_, a_model, a_dataset, tmp_path, monkeypatch):
    import torch

    from volsam.models.features import Features

    pytest.importorskip("sklearn")

    def encode(volume, roi):
        grey = torch.full((1, 6, 2, 2, 2), float(volume.data.mean()))
        return Features(grey + torch.arange(6.0)[None, :, None, None, None] * roi.spacing[0], (), grey)

    monkeypatch.setattr(a_model, "encode", encode)
    other = tmp_path / "other"
    other.mkdir()
    for name in ("imagesTr", "labelsTr"):
        (other / name).symlink_to(a_dataset / name)
    table = json.loads((a_dataset / "dataset.json").read_text())
    (other / "dataset.json").write_text(json.dumps({**table, "name": "Other"}))
    result = type_("evaluate", "--embeddings", "any", a_dataset, other, "-o", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("6 points of 2 datasets, silhouette ")
    assert len((tmp_path / "out" / "embeddings.csv").read_text().splitlines()) == 7
    assert "takes a MODEL" in error_of(type_("evaluate", "--embeddings", "any", "-o", tmp_path / "no"))
    (other / "dataset.json").write_text(json.dumps(table))
    result = type_("evaluate", "--embeddings", "any", a_dataset, other, "-o", tmp_path / "out")
    assert result.stdout.startswith("6 points of 2 datasets, silhouette ")
    lines = csv.DictReader((tmp_path / "out" / "embeddings.csv").read_text().splitlines())
    assert [line["dataset"] for line in lines] == [f"Lesions ({a_dataset})"] * 3 + [f"Lesions ({other})"] * 3
    twice = type_("evaluate", "--embeddings", "any", a_dataset, a_dataset, "-o", tmp_path / "no")
    assert "is given twice" in error_of(twice)


def test_labels_of_a_model_with_values_of_its_own_are_told_apart(a_small_ct: Volume) -> None:
    """A model that learnt from a dataset writes that dataset's values, which may leave gaps and come in any order."""

    class Model:
        name = "gaps"
        labels = ("background", "liver", "spleen", "heart")
        values = (0, 46, 2, 1)

        def segment(self, volume: Volume, plane: str = "auto", *, stride: int = 1, progress: Any = iter) -> Volume:
            found = np.zeros(volume.grid.shape, np.uint8)
            found[0], found[1], found[2] = 46, 2, 1
            return volume.with_data(found[None])

    find = labels_of(Model(), {"spleen": 9, "liver": 300}, "auto", 1)
    found = find(Scene("one", a_small_ct, Objects(np.zeros(a_small_ct.grid.shape, np.uint8), {"spleen": 9})))
    assert [int(found[index].max()) for index in range(4)] == [300, 9, 0, 0]
    assert [int(found[index].min()) for index in range(4)] == [300, 9, 0, 0]
