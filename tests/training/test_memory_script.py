"""What `benchmarks/adaptation/counting.py` counts without computing is what a real step holds."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from volsam.data.preparation import Preparation
from volsam.recipes.methods.method import load_methods
from volsam.training.run import Plan

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "adaptation" / "counting.py"
PLAN = Plan(
    labels=("background", "ball"), values=(0, 1), channels=1, preparation=Preparation(), patch=(32, 32, 32), flip=True
)


@pytest.fixture
def counting(monkeypatch):
    spec = importlib.util.spec_from_file_location("counting_of_memory", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


def a_step(counting, device, **how):
    method = load_methods()["unet"]
    config = method.config(width=4)
    torch.manual_seed(0)
    with torch.device(device):
        task = method.task(method.network(PLAN, config, None), PLAN, config)
        batch = {"image": torch.zeros(2, 1, *PLAN.patch), "label": torch.zeros(2, *PLAN.patch, dtype=torch.long)}
    return counting.step(task, batch, **how)


def test_a_step_without_values_holds_what_a_real_one_holds(counting):
    without, real = a_step(counting, "meta"), a_step(counting, "cpu")
    assert (without.learning, without.frozen) == (real.learning, real.frozen)
    assert without.kept == pytest.approx(real.kept, rel=0.05)
    assert without.peak == pytest.approx(real.peak, rel=0.05)
