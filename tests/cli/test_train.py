import json

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
    assert "cases: 3 to learn from, 1 to choose the best weights by" in output
    assert "learn, 0 are frozen" in output
    assert "expected: about" in output
    assert f"the model: {tmp_path / 'run'}" in output
    record = json.loads((tmp_path / "run/run.json").read_text())
    assert record["done"]
    assert record["steps"] == 2


def test_a_dry_run_trains_nothing(a_dataset, tmp_path):
    code, output = said("train", "unet", a_dataset, "-o", tmp_path / "run", "--dry-run", *QUICK)
    assert code == 0, output
    assert "expected: about" in output
    assert not (tmp_path / "run/last.safetensors").exists()


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
        (["train", "unet", "{data}", "-o", "{run}", "--set", "steps"], "write KEY=VALUE"),
        (["train", "unet", "{data}", "-o", "{run}", "--set", "max_steps=0"], "max_steps=0 will not do"),
        (["train", "unet", "{data}", "-o", "{run}", "--config", "{run}.yaml"], "No such file"),
        (["train", "unet", "{data}", "-o", "{run}", "--fold", "7"], "--fold 7"),
        (["train", "unet", "{data}", "-o", "{run}", "--train-cases", "9"], "--train-cases 9"),
        (["train", "unet", "{data}", "-o", "{run}", "--patient", "("], "is no pattern"),
        (["train", "adapt", "{data}", "-o", "{run}", "--init", "gone.safetensors"], "there is no such file"),
        (["distill", "unet", "{data}", "--teacher", "volsam-s", "-o", "{run}"], "a student is trained as fastsam3d"),
        (["distill", "fastsam3d", "{data}", "--teacher", "volsam-s", "-o", "{run}"], "learns from SAM-Med3D"),
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
