import csv
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close
from torch.utils.data import default_collate

from volsam.data.dataset import read_dataset
from volsam.data.splits import Fold, read_splits
from volsam.errors import BadFile, BadInput
from volsam.recipes import trained
from volsam.recipes.methods import runs
from volsam.recipes.methods.method import load_methods
from volsam.training import packed
from volsam.training.config import TrainConfig, configured, described
from volsam.training.items import Numbers
from volsam.training.loop import State, _decayed, _save
from volsam.training.run import OWN_SPLITS

from .conftest import UNET


def run(dataset, folder, tell=None, method="unet", **settings):
    fold = runs.choose_cases(dataset, 0, None, 0)
    job = runs.start(method, dataset, folder, settings={**UNET, **settings}, fold=fold)
    return runs.train(job, tell)


class Killed(Exception):
    """Somebody pulls the plug."""


def kill_after(step):
    def tell(now):
        if now.step == step:
            raise Killed

    return tell


def test_a_run_that_was_killed_ends_with_the_weights_of_an_unbroken_one(a_dataset, tmp_path):
    whole = run(a_dataset, tmp_path / "whole")
    with pytest.raises(Killed):
        run(a_dataset, tmp_path / "broken", kill_after(4))
    assert not runs.RunFolder(tmp_path / "broken").record().done
    again = run(a_dataset, tmp_path / "broken")
    one, other = (load_file(tmp_path / name / "last.safetensors") for name in ("whole", "broken"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert (again.best, again.steps) == (whole.best, whole.steps) == (whole.best, 6)


def test_of_many_validation_cases_some_are_looked_at(tmp_path):
    from .conftest import make_dataset

    dataset = make_dataset(tmp_path / "Dataset001_Shapes", cases=6)
    fold = Fold(("case0",), ("case1", "case2", "case3", "case4"), ("case5",))
    settings = {**UNET, "max_steps": 1, "validation_cases": 2}
    job = runs.start("unet", dataset, tmp_path / "run", settings=settings, fold=fold)
    chosen = runs.RunFolder(tmp_path / "run").record().validation
    assert len(chosen) == len(set(chosen)) == 2
    assert set(chosen) < set(fold.val)
    assert [case.name for case in job.validation] == list(chosen)
    assert read_splits(tmp_path / "run" / OWN_SPLITS) == [fold], "what is left for others stays known"


def test_averaged_weights_go_on_too(a_dataset, tmp_path):
    run(a_dataset, tmp_path / "whole", average=0.5)
    with pytest.raises(Killed):
        run(a_dataset, tmp_path / "broken", kill_after(3), average=0.5)
    run(a_dataset, tmp_path / "broken", average=0.5)
    one, other = (load_file(tmp_path / name / "last.safetensors") for name in ("whole", "broken"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_log_has_each_step_once_after_a_kill(a_dataset, tmp_path):
    with pytest.raises(Killed):
        run(a_dataset, tmp_path / "run", kill_after(15), max_steps=20, save_every=4, validate_every=0.25)
    run(a_dataset, tmp_path / "run", max_steps=20, save_every=4, validate_every=0.25)
    with (tmp_path / "run/log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows if row["loss"]] == [10, 20]
    assert [int(row["step"]) for row in rows if row["validation"]] == [5, 10, 15, 20]


def test_a_batch_in_parts_teaches_what_it_teaches_at_once(a_dataset, tmp_path):
    fold = runs.choose_cases(a_dataset, 0, None, 0)
    job = runs.start("unet", a_dataset, tmp_path / "run", settings=UNET, fold=fold)
    items = [job.items[number] for number in range(2)]

    def gradients(parts):
        job.task.zero_grad()
        for part in parts:
            (job.task(default_collate(part))["loss"] / len(parts)).backward()
        return [parameter.grad.clone() for parameter in job.network.parameters()]

    # Not weights after a step: where a gradient is all but nothing, Adam makes a whole step of its rounding.
    for once, parts in zip(gradients([items]), gradients([items[:1], items[1:]]), strict=True):
        assert_close(once, parts, atol=2e-5, rtol=1e-3)


def test_a_run_of_simclr_in_parts_learns_what_one_at_once_learns(a_dataset, tmp_path):
    told = []
    for parts in (1, 2):
        settings = {"max_steps": 10, "batch_size": 4, "accumulate": parts, "validate_every": 2.0}
        run(a_dataset, tmp_path / str(parts), method="simclr", **settings)
        told.append(losses(tmp_path / str(parts)))
    # Among half as many places one is found again more easily: that would be another loss.
    assert told[0] == pytest.approx(told[1], rel=0.01)


def losses(folder):
    with (folder / "log.csv").open() as file:
        return [float(row["loss"]) for row in csv.DictReader(file) if row["loss"]]


@pytest.mark.slow
@pytest.mark.parametrize(("method", "port"), [("unet", "29511"), ("simclr", "29512")])
def test_two_processes_learn_what_one_learns_with_the_whole_batch(method, port, a_dataset, tmp_path):
    settings = {"max_steps": 20, "validate_every": 1.0, "save_every": 20, "batch_size": 4}
    run(a_dataset, tmp_path / "alone", method=method, **settings)
    words = ["train", method, str(a_dataset.folder), "-o", str(tmp_path / "together"), "--device", "cpu"]
    given = [word for key, value in {**UNET, **settings}.items() for word in ("--set", f"{key}={value}")]
    starter = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", port]
    code = tmp_path / "start.py"
    code.write_text("from volsam.cli import main\nmain()\n")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1"}
    done = subprocess.run([*starter, str(code), *words, *given], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert losses(tmp_path / "together") == pytest.approx(losses(tmp_path / "alone"), rel=0.02)
    assert len(losses(tmp_path / "alone")) == 2


def test_only_what_learns_is_stored(a_dataset, tmp_path):
    fold = runs.choose_cases(a_dataset, 0, None, 0)
    settings = {"max_steps": 1, "batch_size": 1, "edge": 32, "tune": "decoder", "augment": "none"}
    job = runs.start("adapt", a_dataset, tmp_path / "run", settings=settings, fold=fold)
    frozen = job.network.base.stem.weight.clone()
    runs.train(job)
    stored = load_file(tmp_path / "run/last.safetensors")
    buffers = {name for name, _ in job.network.named_buffers()}
    assert set(stored) - buffers == {name for name, value in job.network.named_parameters() if value.requires_grad}
    assert not any("stem" in name or "down" in name for name in stored)
    assert torch.equal(job.network.base.stem.weight, frozen)
    record = runs.RunFolder(tmp_path / "run").record()
    assert record.trained == sum(value.numel() for name, value in stored.items() if name not in buffers)
    assert record.init.name == "volsam-s"
    assert len(record.init.sha256) == 64
    assert record.licence == "Apache-2.0"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"max_steps": 7}, "a run with another setting max_steps (6, now 7)"),
        ({"method": "dynunet"}, "a run with another method (unet, now dynunet)"),
    ],
)
def test_a_folder_with_another_run_is_not_written_over(a_dataset, tmp_path, change, told):
    with pytest.raises(Killed):
        run(a_dataset, tmp_path / "run", kill_after(2))
    with pytest.raises(BadInput, match="give another folder") as refused:
        run(a_dataset, tmp_path / "run", **change)
    assert told in str(refused.value)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            {"labels": {"background": 0, "ball": 1, "lump": 2}},
            "other labels in dataset.json (background, ball, box, now background, ball, lump)",
        ),
        (
            {"labels": {"background": 0, "ball": 1, "box": 3}},
            "other values of the labels in dataset.json (0, 1, 2, now 0, 1, 3)",
        ),
        (
            {"labels": {"background": 0, "ball": 1, "box": 2, "ignore": 3}},
            "another label to ignore in dataset.json (None, now 3)",
        ),
        ({"labels": {"background": 0, "ball": 1, "left box": 2}}, "other labels in dataset.json"),
    ],
)
def test_a_run_does_not_go_on_when_its_dataset_names_other_things(a_dataset, tmp_path, change, told):
    with pytest.raises(Killed):
        run(a_dataset, tmp_path / "run", kill_after(2))
    file = a_dataset.folder / "dataset.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(BadInput, match="give another folder") as refused:
        run(read_dataset(a_dataset.folder), tmp_path / "run")
    assert told in str(refused.value)


def test_a_full_disk_is_told_in_one_line_whatever_is_saved(a_dataset, tmp_path):
    resource = pytest.importorskip("resource")
    fold = runs.choose_cases(a_dataset, 0, None, 0)
    job = runs.start("unet", a_dataset, tmp_path / "run", settings={**UNET, "max_steps": 1}, fold=fold)
    runs.train(job)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
        with pytest.raises(BadInput, match=r"last\.safetensors cannot be written: File too large$"):
            job.folder.save("last.safetensors", job.network)
        with pytest.raises(BadInput, match=r"alone\.safetensors cannot be written: File too large$"):
            packed.write(trained.pack(job.folder.path), tmp_path / "alone.safetensors")
        more = runs.start("unet", a_dataset, tmp_path / "more", settings={**UNET, "max_steps": 1}, fold=fold)
        with pytest.raises(BadInput, match=r"\.(pt|safetensors) cannot be written: File too large$"):
            runs.train(more)
        with pytest.raises(BadInput, match=r"resume\.pt cannot be written: File too large$"):
            _save(more.folder, more.network, torch.optim.AdamW(more.network.parameters()), None, State())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert {path.suffix for path in (tmp_path / "more").iterdir()} <= {".json", ".csv"}, "nothing is left half written"


def test_a_run_that_was_refused_may_be_begun_with_other_settings(a_dataset, tmp_path):
    with pytest.raises(BadInput, match="choose a batch_size"):
        run(a_dataset, tmp_path / "run", batch_size=3, accumulate=2)
    assert run(a_dataset, tmp_path / "run", batch_size=2, accumulate=2, max_steps=1).done


def test_a_folder_with_something_else_in_it_is_refused(a_dataset, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/letter.txt").write_text("dear")
    with pytest.raises(BadInput, match="no training run"):
        run(a_dataset, tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["letter.txt"]


def test_a_damaged_run_is_told_in_one_line(a_dataset, tmp_path):
    run(a_dataset, tmp_path / "run", max_steps=1)
    (tmp_path / "run/best.safetensors").write_bytes(b"nothing")
    with pytest.raises(BadFile, match=r"best\.safetensors cannot be read"):
        trained.load_run(tmp_path / "run", "cpu")
    (tmp_path / "run/run.json").write_text("{}")
    with pytest.raises(BadFile, match="does not say what a run must say"):
        trained.load_run(tmp_path / "run", "cpu")


def test_a_batch_that_cannot_be_shared_is_refused(a_dataset, tmp_path):
    with pytest.raises(BadInput, match="choose a batch_size"):
        run(a_dataset, tmp_path / "run", batch_size=3, accumulate=2)


def test_a_loss_that_is_no_number_ends_the_run(a_dataset, tmp_path):
    fold = runs.choose_cases(a_dataset, 0, None, 0)
    job = runs.start("unet", a_dataset, tmp_path / "run", settings=UNET, fold=fold)
    with torch.no_grad():
        next(iter(job.network.parameters())).fill_(torch.nan)
    with pytest.raises(BadInput, match="lower learning_rate"):
        runs.train(job)


# --- schedule and order ----------------------------------------------------------------------------------------------


def test_the_rate_rises_and_falls():
    config = TrainConfig(warm_up=10, schedule="polynomial", power=7, least=0.0)
    rates = [config.rate(step / 200, step) for step in range(200)]
    assert rates[:3] == pytest.approx([0.1, 0.2, 0.3])
    assert rates[9:11] == pytest.approx([1, 1]), "the peak is all of the rate, and the fall begins there"
    assert rates[105] == pytest.approx(0.5**7)
    assert all(np.diff(rates[10:]) < 0)
    assert config.rate(1, 200) == 0
    assert TrainConfig(schedule="cosine", least=0.1).rate(1, 100) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("given", "told"),
    [({"max_step": 3}, "there is no setting 'max_step'"), ({"learning_rate": -1}, "learning_rate=-1 is not valid")],
)
def test_settings_that_will_not_do_are_refused(given, told):
    with pytest.raises(BadInput) as refused:
        configured(TrainConfig, given)
    assert told in str(refused.value)


def test_weights_of_two_or_more_axes_decay():
    network = torch.nn.ModuleDict({"table": torch.nn.Embedding(3, 4), "norm": torch.nn.LayerNorm(4)})
    decaying, still = _decayed([(list(network.parameters()), 1.0)], TrainConfig(weight_decay=0.1))
    assert decaying["weight_decay"] == 0.1
    assert decaying["params"] == [network["table"].weight]
    assert (still["weight_decay"], len(still["params"])) == (0.0, 2)
    assert "all weights of two or more axes" in described(TrainConfig)["weight_decay"][1]


def test_processes_share_the_items_of_every_step():
    def first(numbers, count):
        stream = iter(numbers)
        return [next(stream) for _ in range(count)]

    alone = first(Numbers(4, 2, 0, 1), 8)
    assert alone == list(range(8, 16))
    together = [first(Numbers(4, 2, rank, 2), 4) for rank in (0, 1)]
    assert together == [[8, 9, 12, 13], [10, 11, 14, 15]]


@pytest.mark.parametrize("name", sorted(load_methods()))
@pytest.mark.parametrize("setting", ["learning_rate", "weight_decay"])
def test_no_method_takes_a_rate_below_nothing(name: str, setting: str) -> None:
    with pytest.raises(BadInput, match=f"{setting}=-1 is not valid"):
        configured(load_methods()[name].config, {setting: -1})


@pytest.mark.parametrize(
    ("name", "setting", "value"),
    [
        ("adapt", "average", 1),
        ("adapt-clicks", "early", -0.1),
        ("fastsam3d", "imitation", 1.5),
        ("fastsam3d", "unfreeze", 2),
        ("fastsam3d", "keep", -1),
        ("sam-med3d", "spacing", 0),
    ],
)
def test_no_method_takes_a_part_that_is_none(name: str, setting: str, value: float) -> None:
    with pytest.raises(BadInput, match=f"{setting}={value} is not valid"):
        configured(load_methods()[name].config, {setting: value})
