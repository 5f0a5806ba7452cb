"""Several processes that train together must do the same things after the same steps, whatever each of them sees."""

import csv
import json
import os
import subprocess
import sys

import pytest

TOGETHER = """
import json, os, sys, time
from pathlib import Path

import torch
from torch import nn

from volsam.training.config import TrainConfig
from volsam.training.items import Items
from volsam.training.loop import fit
from volsam.training.run import RunFolder

OUT = Path(sys.argv[1])


class Numbered(Items):
    def __getitem__(self, number):
        # Of two processes the first sees the even numbers. The second is slower, and never sees an object.
        time.sleep(0.02 * (number % 2))
        return {"x": torch.tensor([1.0 + number % 2]), "dice": torch.tensor([0.5, torch.nan][number % 2])}


class Task(nn.Module):
    def __init__(self):
        super().__init__()
        self.network = nn.Linear(1, 1)

    def forward(self, batch):
        return {"loss": (self.network(batch["x"]) - 3).square().mean(), "dice": batch["dice"].mean()}


scored = []


def validate(network):
    scored.append(0.5)
    time.sleep(0.2)
    return 0.5


task = Task()
config = TrainConfig(batch_size=2, validate_every=0.2, warm_up=0, **json.loads(sys.argv[2]))
state = fit(task, Numbered(0), config, RunFolder(OUT / "run"), groups=[(list(task.network.parameters()), 1.0)],
            validate=validate)
told = {"steps": state.step, "scored": len(scored), "weight": task.network.weight.tolist()}
(OUT / f"{os.environ['RANK']}.json").write_text(json.dumps(told))
"""


def together(folder, port, **settings):
    """What each of two processes ends with, and the log's lines of losses."""
    (folder / "run").mkdir()
    code = folder / "together.py"
    code.write_text(TOGETHER)
    starter = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(port)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1"}
    words = [*starter, str(code), str(folder), json.dumps(settings)]
    done = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    with (folder / "run/log.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["loss"]]
    return *(json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)), rows


@pytest.mark.slow
def test_a_budget_of_time_ends_for_all_processes_after_the_same_step(tmp_path):
    first, second, _ = together(tmp_path, 29521, minutes=0.1)
    assert first["steps"] == second["steps"] > 1
    assert first["weight"] == second["weight"]
    assert (first["scored"] > 1, second["scored"]) == (True, 0)


@pytest.mark.slow
def test_a_measure_that_one_process_has_no_value_of_is_logged_all_the_same(tmp_path):
    _, _, rows = together(tmp_path, 29522, max_steps=20)
    assert [int(row["step"]) for row in rows] == [10, 20]
    assert [float(row["dice"]) for row in rows] == [0.5, 0.5]


APART = """
import json, os, sys
from pathlib import Path

import torch
from torch import distributed, nn

from volsam.training.contrast import ContrastTask, projection

torch.manual_seed(0)
network = nn.ModuleDict({"encode": nn.Conv3d(1, 4, 3), "project": projection(4, 8)})
image = torch.randn(4, 2, 1, 6, 6, 6)


def told(parts, some):
    network.zero_grad()
    loss = ContrastTask(network, network["encode"], parts)({"image": image[some]})["loss"]
    loss.backward()
    return loss.detach(), [weight.grad.clone() for weight in network.parameters()]


loss, wanted = told(1, slice(None))
distributed.init_process_group("gloo")
rank = distributed.get_rank()
own, found = told(2, slice(2 * rank, 2 * rank + 2))
for gradient in found:
    distributed.all_reduce(gradient)
apart = max(float((gradient / 2 - one).abs().max()) for gradient, one in zip(found, wanted))
least = min(float(one.abs().max()) for one in wanted[-2:])
(Path(sys.argv[1]) / f"{rank}.json").write_text(json.dumps([float(own - loss), apart, least]))
"""


@pytest.mark.slow
def test_views_are_told_from_those_of_other_processes_as_in_one(tmp_path):
    code = tmp_path / "apart.py"
    code.write_text(APART)
    starter = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29523"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1"}
    words = [*starter, str(code), str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    for rank in (0, 1):
        loss, apart, least = json.loads((tmp_path / f"{rank}.json").read_text())
        assert (loss, apart) == pytest.approx((0, 0), abs=1e-5)
        assert least > 1e-3
