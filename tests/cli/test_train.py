import json
import shutil

import pytest
from typer.testing import CliRunner

from volsam.cli import app

from ..training.conftest import make_dataset

QUICK = ["--set", "max_steps=2", "--set", "edge=32", "--set", "width=4", "--set", "augment=none", "--device", "cpu"]


@pytest.fixture(autouse=True)
def a_home(tmp_path, monkeypatch):
    monkeypatch.setenv("VOLSAM_HOME", str(tmp_path / "home"))


@pytest.fixture
def a_dataset(tmp_path):
    return make_dataset(tmp_path / "Dataset001_Shapes").folder


def said(*words):
    done = CliRunner().invoke(app, list(map(str, words)))
    return done.exit_code, done.output


def test_a_run_is_told_before_and_after(a_dataset, tmp_path):
    code, output = said("train", "unet", a_dataset, "-o", tmp_path / "run", *QUICK)
    assert code == 0, output
    assert "2 classes (ball, box)" in output
    assert "cases: 3 to learn from, 1 to choose the best weights by, 1 left for the test" in output
    assert "learn, 0 are frozen" in output
    assert "expected: about" in output
    assert f"the model: {tmp_path / 'run'}" in output
    line = output.partition("it never saw: ")[2].strip()
    assert line == f"volsam evaluate {tmp_path / 'run'} {a_dataset} -o report"
    assert said(*line.split()[1:5], tmp_path / "report")[0] == 0, "the line that is told does what it says"
    code, output = said("models", "show", tmp_path / "run")
    assert code == 0
    assert "background (0), ball (1), box (2)" in output
    assert "max_steps=2" in output
    record = json.loads((tmp_path / "run/run.json").read_text())
    assert record["done"]
    assert record["steps"] == 2


def test_a_dry_run_trains_nothing(a_dataset, tmp_path):
    code, output = said("train", "unet", a_dataset, "-o", tmp_path / "run", "--dry-run", *QUICK)
    assert code == 0, output
    assert "expected: about" in output
    assert not (tmp_path / "run").exists()


def test_steps_that_minutes_overrule_are_not_ignored_in_silence(a_dataset, tmp_path):
    words = ("train", "unet", a_dataset, "-o", tmp_path / "run", "--dry-run", *QUICK)
    code, output = said(*words, "--set", "minutes=5")
    assert code == 0, output
    assert "warning: max_steps=2 has no effect beside minutes=5" in output
    assert "has no effect" not in said(*words)[1]


def test_regions_are_scored_of_a_run_that_has_learnt_their_labels(a_dataset, tmp_path):
    table = json.loads((a_dataset / "dataset.json").read_text())
    table["labels"] = {"background": 0, "shapes": [1, 2], "box": [2]}
    (a_dataset / "dataset.json").write_text(json.dumps(table))
    code, output = said("train", "unet", a_dataset, "-o", tmp_path / "run", *QUICK)
    assert code == 0, output
    assert "2 classes (label 1, box)" in output
    assert "has regions, shapes, box: the labels that make them up are learnt" in output
    code, output = said("evaluate", tmp_path / "run", a_dataset, "-o", tmp_path / "report")
    assert code == 0, output
    rows = json.loads((tmp_path / "report/results.json").read_text())["rows"]
    assert [row["object"] for row in rows] == ["shapes", "box"]


def test_a_stopped_run_says_how_to_go_on(a_dataset, tmp_path, monkeypatch):
    from volsam.cli import train

    words = (
        "train",
        "unet",
        a_dataset,
        "-o",
        tmp_path / "run",
        *QUICK,
        "--set",
        "max_steps=4",
        "--set",
        "save_every=1",
    )

    def stop(now):
        if now.step == stop.at:
            raise KeyboardInterrupt

    monkeypatch.setattr(train, "progress_of", lambda folder: stop)
    stop.at = 1
    code, output = said(*words)
    assert code == 130
    assert "stopped; the same command begins anew, since nothing was saved yet" in output
    stop.at = 3
    code, output = said(*words)
    assert code == 130
    assert "stopped; the same command goes on from its last save" in output
    stop.at = 0
    code, output = said(*words)
    assert code == 0
    assert "goes on where it was stopped" in output


def test_weights_may_be_read_by_others(a_dataset, tmp_path):
    said("train", "unet", a_dataset, "-o", tmp_path / "run", *QUICK)
    modes = {file.stat().st_mode for file in (tmp_path / "run").iterdir()}
    assert len(modes) == 1


def test_of_several_objects_a_method_for_one_names_its_own(a_dataset, tmp_path):
    words = ("--set", "edge=32", "--set", "augment=none", "--device", "cpu", "--dry-run")
    code, output = said("train", "3dsam-adapter", a_dataset, "-o", tmp_path / "run", *words)
    assert code == 0, output
    assert "3dsam-adapter learns one object, ball; with --set object=NAME it may be box" in output


def test_a_validation_case_that_cannot_be_read_is_found_before_the_training(a_dataset, tmp_path):
    code, output = said("train", "unet", a_dataset, "-o", tmp_path / "dry", "--dry-run", *QUICK)
    from volsam.data.dataset import read_dataset
    from volsam.recipes.methods.runs import choose_cases

    dataset = read_dataset(a_dataset)
    bad = dataset.case(choose_cases(dataset, 0, None, 0).val[0])
    bad.label.write_bytes(b"nothing")
    code, output = said("train", "unet", a_dataset, "-o", tmp_path / "run", *QUICK)
    assert code == 1
    assert bad.label.name in output
    assert not (tmp_path / "run").exists()


def test_a_run_goes_on_when_its_dataset_was_copied(a_dataset, tmp_path):
    words = ("-o", tmp_path / "run", *QUICK)
    said("train", "unet", a_dataset, *words)
    other = tmp_path / "elsewhere" / "Dataset001_Shapes"
    shutil.copytree(a_dataset, other, copy_function=shutil.copyfile)
    code, output = said("train", "unet", other, *words)
    assert code == 0, output
    first, *others = sorted((other / "labelsTr").iterdir())
    for file in others:
        shutil.copyfile(first, file)
    code, output = said("train", "unet", other, *words)
    assert code == 1
    assert "other images or labels of these cases" in output


def test_a_preset_is_what_its_paper_had_and_settings_of_ones_own_win(a_dataset, tmp_path):
    small = ("--set", "edge=32", "--set", "augment=none", "--set", "max_steps=1", "--device", "cpu")
    words = ("train", "3dsam-adapter", a_dataset, "-o", tmp_path / "run", "--preset", "kits21", *small)
    code, output = said(*words)
    assert code == 1
    assert "object=tumour: the labels of" in output
    code, output = said(*words, "--set", "object=box", "--set", "spacing=2")
    assert code == 0, output
    assert "as in 3DSAM-adapter (arXiv 2306.13465): window=(-54.0, 247.0), mean=59.53867, spread=55.457336" in output
    record = json.loads((tmp_path / "run/run.json").read_text())
    seen = record["plan"]["preparation"]
    assert (seen["scaling"], seen["window"], seen["mean"], seen["spread"]) == (
        "window",
        [-54.0, 247.0],
        59.53867,
        55.457336,
    )
    assert record["config"]["spacing"] == 2


def test_a_preset_s_voxels_suit_methods_that_have_one_size_for_each_axis(a_dataset, tmp_path):
    words = ("--preset", "amos22", "--set", "max_steps=1", "--device", "cpu", "--dry-run")
    code, output = said("train", "adapt", a_dataset, "-o", tmp_path / "run", *words)
    assert code == 0, output
    assert "spacing=[1.5, 1.5, 1.5]" in output
    assert "seen in 1.50 × 1.50 × 1.50 mm" in output


def test_that_patients_are_not_told_apart_where_a_file_says_which_case_is_where_is_told(a_dataset, tmp_path):
    folds = [{"train": ["case0", "case1"], "val": ["case2"]}]
    (a_dataset / "splits_final.json").write_text(json.dumps(folds))
    words = ("train", "unet", a_dataset, "-o", tmp_path / "run", "--patient", r"case\d", "--dry-run", *QUICK)
    code, output = said(*words)
    assert code == 0, output
    assert "warning: --patient has no effect, since splits_final.json of" in output


def test_in_the_end_all_cases_are_learnt_from(a_dataset, tmp_path):
    code, output = said("train", "unet", a_dataset, "-o", tmp_path / "run", "--fold", "all", *QUICK)
    assert code == 0, output
    assert "cases: 5 to learn from, 0 to choose the best weights by" in output
    assert "it never saw" not in output
    code, output = said("evaluate", tmp_path / "run", a_dataset, "-o", tmp_path / "report")
    assert code == 1
    assert "give --split all" in output
    code, output = said("evaluate", tmp_path / "run", a_dataset, "-o", tmp_path / "report", "--split", "all")
    assert code == 0, output
    assert "cases that the model has learnt from: 5 of 5" in output


def test_a_window_alone_is_brought_to_minus_one_to_one(a_dataset, tmp_path):
    words = ("train", "unet", a_dataset, "-o", tmp_path / "run", *QUICK)
    assert said(*words, "--set", "window=[50,150]")[0] == 0
    seen = json.loads((tmp_path / "run/run.json").read_text())["plan"]["preparation"]
    assert (seen["mean"], seen["spread"]) == (100, 50)
    for wrong in ("window=[9,3]", "mean=4"):
        code, output = said("train", "unet", a_dataset, "-o", tmp_path / "no", *QUICK, "--set", wrong)
        assert code == 1
        assert "window" in output


def test_settings_of_the_line_win_over_those_of_a_file(a_dataset, tmp_path):
    (tmp_path / "my.yaml").write_text("max_steps: 50\nlearning_rate: 0.004\n")
    code, output = said("train", "unet", a_dataset, "-o", tmp_path / "run", "--config", tmp_path / "my.yaml", *QUICK)
    assert code == 0, output
    config = json.loads((tmp_path / "run/run.json").read_text())["config"]
    assert (config["max_steps"], config["learning_rate"]) == (2, 0.004)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["train", "unett", "{data}", "-o", "{run}"], "no method is called 'unett'; did you mean 'unet'?"),
        (["train", "unet", "{data}/nothing", "-o", "{run}"], "is not a dataset"),
        (["train", "unet", "{data}", "-o", "{run}", "--set", "steps=3"], "there is no setting 'steps'"),
        (["train", "unet", "{data}", "-o", "{run}", "--set", "max_step=3"], "did you mean 'max_steps'?"),
        (["train", "unet", "{data}", "-o", "{run}", "--set", "seed=-1"], "seed=-1 is not valid"),
        (["train", "unet", "{data}", "-o", "{run}", "--set", "augment=many"], "augment='many' is not valid"),
        (
            ["train", "adapt", "{data}", "-o", "{run}", "--set", "edge=50"],
            "edge=50 is not valid: it must be a multiple of 16",
        ),
        (["train", "dynunet", "{data}", "-o", "{run}", "--set", "edge=50"], "edge=50 is not valid"),
        (["train", "adapt", "{data}", "-o", "{run}", "--init", "sam-mini"], "are not those of volsam-s"),
        (["train", "unet", "{data}", "-o", "{run}", "--patient", "nobody"], "finds no patient"),
        (["train", "unet", "{data}", "-o", "{run}", "--set", "steps"], "write KEY=VALUE"),
        (["train", "unet", "{data}", "-o", "{run}", "--set", "max_steps=0"], "max_steps=0 is not valid"),
        (["train", "unet", "{data}", "-o", "{run}", "--config", "{run}.yaml"], "No such file"),
        (["train", "unet", "{data}", "-o", "{run}", "--fold", "7"], "--fold 7"),
        (["train", "unet", "{data}", "-o", "{run}", "--fold", "x"], "--fold is a number from 0, or all"),
        (["train", "unet", "{data}", "-o", "{run}", "--train-cases", "9"], "--train-cases 9"),
        (["train", "unet", "{data}", "-o", "{run}", "--patient", "("], "is no pattern"),
        (["train", "adapt", "{data}", "-o", "{run}", "--init", "gone.safetensors"], "there is no such file"),
        (["distill", "unet", "{data}", "--teacher", "volsam-s", "-o", "{run}"], "a student is trained as fastsam3d"),
        (
            ["distill", "fastsam3d", "{data}", "--teacher", "sam-mini", "-o", "{run}"],
            "learns from SAM-Med3D and its like",
        ),
    ],
)
def test_what_will_not_do_is_told_in_one_line(a_dataset, tmp_path, words, told):
    code, output = said(*(word.format(data=a_dataset, run=tmp_path / "run") for word in words))
    assert code == 1
    lines = [line for line in output.splitlines() if line.startswith("error:")]
    assert len(lines) == 1
    assert told in lines[0]
    assert "Traceback" not in output
    assert not (tmp_path / "run").exists()


def test_recipes_and_their_settings_are_shown():
    code, output = said("train", "--list")
    assert code == 0
    assert all(name in output for name in ("adapt", "autosam", "ma-sam", "3dsam-adapter", "fastsam3d", "ux-net"))
    code, output = said("train", "--settings", "ma-sam")
    assert code == 0
    assert "Peak rate, reached after the warm-up." in output
    assert "0.0008" in output
    code, output = said("train", "--settings", "sam")
    assert code == 1
    assert "no method is called 'sam'" in output
