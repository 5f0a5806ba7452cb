"""A small dataset of brighter balls and boxes in noise, and settings for networks of a few thousand weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from volsam.data.dataset import Dataset, read_dataset
from volsam.data.io import write_volume
from volsam.geometry import Grid
from volsam.volume import Volume

SHAPE = (24, 20, 18)
SPACING = (1.0, 1.0, 1.5)
# Nothing large, and nothing drawn twice: what is tested is the loop, not what is learnt.
TINY: dict[str, Any] = {"max_steps": 6, "batch_size": 2, "augment": "light", "save_every": 1, "warm_up": 2}
UNET: dict[str, Any] = {**TINY, "edge": 32, "width": 4}


@pytest.fixture(autouse=True)
def a_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Prepared cases are kept with the test."""
    home = tmp_path / "home"
    monkeypatch.setenv("VOLSAM_HOME", str(home))
    return home


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    """The same sums in the same order, run after run."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make_dataset(folder: Path, cases: int = 5, labels: dict[str, int] | None = None, channels: int = 1) -> Dataset:
    """Balls (1) and boxes (2) in noise, at random places."""
    labels = labels or {"background": 0, "ball": 1, "box": 2}
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
    values = list(labels.values())
    table = {"channel_names": {str(i): "MR" for i in range(channels)}, "labels": labels, "numTraining": cases}
    (folder / "dataset.json").write_text(json.dumps({**table, "file_ending": ".nii.gz"}))
    grid = Grid.at(SHAPE, SPACING)
    for number in range(cases):
        random = np.random.default_rng(number)
        voxels = np.stack(np.indices(SHAPE), axis=-1)
        label = np.zeros(SHAPE, np.uint8)
        ball = np.linalg.norm(voxels - random.uniform(6, 9, 3), axis=-1) < 4
        label[ball] = values[1]
        if len(values) > 2:
            low = random.integers(11, 13, 3)
            label[low[0] : low[0] + 6, low[1] : low[1] + 5, low[2] : low[2] + 4] = values[2]
        image = 40 * (label == values[1]) - 30 * (label == values[-1]) + random.normal(100, 8, SHAPE)
        for channel in range(channels):
            write_volume(Volume(image.astype(np.float32), grid), folder / f"imagesTr/case{number}_000{channel}.nii.gz")
        write_volume(Volume(label, grid), folder / f"labelsTr/case{number}.nii.gz")
    return read_dataset(folder)


@pytest.fixture
def a_dataset(tmp_path: Path) -> Dataset:
    """Five cases with two objects each."""
    return make_dataset(tmp_path / "Dataset001_Shapes")
