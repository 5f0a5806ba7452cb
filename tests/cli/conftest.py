"""A terminal to type at, a scan in a file, and a model of a few lines behind the commands."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

from volsam.cli import app
from volsam.data.io import write_volume
from volsam.geometry import Grid, resample
from volsam.inference.model import EVERYTHING, Decoded
from volsam.prompts import GridPrompts
from volsam.volume import Volume

Type = Callable[..., Result]


class BrightModel:
    """Takes what is brighter than the ball's border for the object, and remembers what it was asked."""

    name = "bright"
    edge = 32
    step = 2
    spacing = None
    axes = "RAS"
    takes = EVERYTHING

    def __init__(self) -> None:
        self.asked: list[GridPrompts] = []
        self.images: list[np.ndarray] = []

    def encode(self, volume: Volume, roi: Grid) -> np.ndarray:
        self.images.append(volume.data)
        return np.asarray(resample(volume.data[0], volume.grid, roi.coarsened(2), fill=-1000.0))

    def decode(self, encoded: np.ndarray, prompts: GridPrompts, previous: np.ndarray | None) -> Decoded:
        self.asked.append(prompts)
        low_res = np.where(encoded > 80, 6, -6).astype(np.float32)
        whole = (0, self.edge)
        logits = low_res.repeat(2, 0).repeat(2, 1).repeat(2, 2)
        return Decoded(low_res, logits, (whole, whole, whole), 0.75)

    def decode_many(
        self, encoded: np.ndarray, prompts: Sequence[GridPrompts], previous: np.ndarray | None
    ) -> np.ndarray:
        return np.stack([self.decode(encoded, asked, previous).low_res for asked in prompts])


@pytest.fixture
def type_() -> Type:
    """Type a line: `type_("segment", path, "-p", "1,2,3")`."""

    def run(*words: object) -> Result:
        return CliRunner().invoke(app, [str(word) for word in words])

    return run


@pytest.fixture
def no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take most of the time of a small report, and have tests of their own."""
    monkeypatch.setattr("volsam.evaluation.figures.available", lambda: False)


@pytest.fixture
def a_model(monkeypatch: pytest.MonkeyPatch) -> BrightModel:
    """What every name of a model stands for in a test."""
    model = BrightModel()
    monkeypatch.setattr("volsam.recipes.recipe.load_model", lambda name, *, device, engine=None: model)
    return model


@pytest.fixture
def a_scan(tmp_path: Path, a_small_ct: Volume) -> Path:
    """The small CT as a file in a folder of its own."""
    folder = tmp_path / "scans"
    folder.mkdir()
    write_volume(a_small_ct, folder / "ct.nii.gz")
    return folder / "ct.nii.gz"


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Toy sizes run fastest on one thread, and share a busy machine best."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def error_of(result: Result) -> str:
    """The one line that a refused command ends in."""
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    assert "unexpected" not in lines[0]
    return lines[0]
