"""Models of a few lines whose masks one can foretell, and a toy scan to ask them about."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage

from volsam.geometry import Grid, resample
from volsam.inference.model import EVERYTHING, Decoded, DensePromptModel
from volsam.models.dense_prompt import DensePromptNet
from volsam.prompts import Click, GridPrompts
from volsam.volume import Volume


class GrowingModel:
    """Grows regions of like intensity around the clicks, on top of the last mask; a negative click takes one away.

    It expects most of a mask that fills the region and does not touch its border, and keeps count of what it was asked.
    """

    name = "growing"
    edge = 32
    step = 2
    spacing = None
    axes = "RAS"
    takes = EVERYTHING
    tolerance = 30.0  # half the step from one thing in the bowl to the next

    def __init__(self) -> None:
        self.encoded: list[Grid] = []
        self.asked: list[GridPrompts] = []
        self.fed: list[np.ndarray | None] = []

    def encode(self, volume: Volume, roi: Grid) -> np.ndarray:
        self.encoded.append(roi)
        return resample(volume.data[0], volume.grid, roi.coarsened(2), fill=-1000.0)

    def decode(self, encoded: np.ndarray, prompts: GridPrompts, previous: np.ndarray | None) -> Decoded:
        self.asked.append(prompts)
        self.fed.append(previous)
        mask = self._grown(encoded, prompts, previous)
        low_res = (12 * ndimage.gaussian_filter(mask.astype(np.float32), 0.5) - 6).astype(np.float32)
        logits = low_res.repeat(2, 0).repeat(2, 1).repeat(2, 2)
        whole = (0, self.edge)
        return Decoded(low_res, logits, (whole, whole, whole), self._expectation(mask))

    def decode_many(
        self, encoded: np.ndarray, prompts: Sequence[GridPrompts], previous: np.ndarray | None
    ) -> np.ndarray:
        return np.stack([self.decode(encoded, asked, previous).low_res for asked in prompts])

    def _grown(self, image: np.ndarray, prompts: GridPrompts, previous: np.ndarray | None) -> np.ndarray:
        mask = np.zeros(image.shape, bool) if previous is None else previous > 0
        seeds = [(box.mean(axis=0), True) for box in prompts.boxes if previous is None]
        seeds += list(zip(prompts.points, prompts.labels, strict=True))
        for point, positive in seeds:
            place = tuple(np.round((point + 0.5) / 2 - 0.5).astype(int))
            if not all(0 <= index < size for index, size in zip(place, image.shape, strict=True)):
                continue
            parts, _ = ndimage.label(np.abs(image - image[place]) < self.tolerance)
            grown = parts == parts[place]
            mask = mask | grown if positive else mask & ~grown
        return mask

    def _expectation(self, mask: np.ndarray) -> float:
        places = np.argwhere(mask)
        if len(places) == 0:
            return 0.0
        low, high = places.min(axis=0), places.max(axis=0)
        touches = low.min() == 0 or high.max() == self.edge // 2 - 1
        return float(min(1.0, (high - low).max() / (0.62 * self.edge / 2)) * (0.3 if touches else 1.0))


class StubbornModel(GrowingModel):
    """Says the same of every voxel, whatever it is asked."""

    name = "stubborn"

    def __init__(self, logit: float) -> None:
        super().__init__()
        self.logit = np.float32(logit)

    def decode(self, encoded: np.ndarray, prompts: GridPrompts, previous: np.ndarray | None) -> Decoded:
        self.asked.append(prompts)
        whole = (0, self.edge)
        return Decoded(
            np.full((self.edge // 2,) * 3, self.logit),
            np.full((self.edge,) * 3, self.logit),
            (whole, whole, whole),
            0.5,
        )


PLACES = {  # voxels of the bowl
    "stone": (14, 16, 16),
    "flesh": (21, 16, 16),
    "rind": (14, 23, 16),
    "berry": (31, 22, 14),
    "air": (3, 3, 3),
}


@dataclass(frozen=True)
class Bowl:
    """A peach (flesh and a stone in it) and a berry of the same value as the flesh, in air; masks (i, j, k)."""

    volume: Volume
    stone: np.ndarray
    flesh: np.ndarray
    berry: np.ndarray

    @property
    def grid(self) -> Grid:
        return self.volume.grid

    @property
    def peach(self) -> np.ndarray:
        return self.stone | self.flesh

    def at(self, place: str | tuple[float, float, float]) -> tuple[float, float, float]:
        """A named place, or a voxel, in mm."""
        return tuple(self.grid.to_world(PLACES[place] if isinstance(place, str) else place))

    def click(self, place: str | tuple[float, float, float], positive: bool = True) -> Click:
        return Click(self.at(place), positive)

    def parts(self, mask: Volume) -> set[str]:
        """What a mask holds: the things of which it has more than half, and "air" if it has a twentieth of that."""
        inside = mask.data[0] > 0
        held = {name for name in ("stone", "flesh", "berry") if inside[getattr(self, name)].mean() > 0.5}
        around = ~(self.stone | self.flesh | self.berry)
        return held | ({"air"} if inside[around].mean() > 0.05 else set())


def _bowl() -> Bowl:
    grid = Grid.at((40, 36, 32), 1.5, origin=(-20, 30, 5))
    where = np.stack(np.indices(grid.shape), axis=-1)

    def ball(center: tuple[int, int, int], radius: float) -> np.ndarray:
        return np.linalg.norm(where - np.array(center), axis=-1) <= radius

    stone = ball((14, 16, 16), 5)
    flesh = ball((14, 16, 16), 9) & ~stone
    berry = ball((31, 22, 14), 5)
    values = (60 * (flesh | berry) + 120 * stone).astype(np.int16)
    return Bowl(Volume(values, grid, "bowl"), stone, flesh, berry)


@pytest.fixture(scope="session")
def a_bowl() -> Bowl:
    return _bowl()


@pytest.fixture(scope="session")
def growing() -> type[GrowingModel]:
    """For tests that need many models."""
    return GrowingModel


@pytest.fixture(scope="session")
def stubborn() -> type[StubbornModel]:
    return StubbornModel


@pytest.fixture
def a_model() -> GrowingModel:
    return GrowingModel()


@pytest.fixture(scope="session")
def an_untrained_model() -> DensePromptModel:
    """The real network with weights from a fixed seed, on a small region; its masks are odd but not empty."""
    torch.manual_seed(0)
    network = DensePromptNet()
    torch.nn.init.normal_(network.coarse.weight, std=0.5)
    torch.nn.init.constant_(network.coarse.bias, 0.0)
    return DensePromptModel(network, "untrained", edge=32)


@pytest.fixture
def dice():
    """Overlap of two masks, 0 to 1; two empty ones agree."""

    def overlap(mask: np.ndarray, other: np.ndarray) -> float:
        a, b = np.asarray(mask).squeeze() > 0, np.asarray(other).squeeze() > 0
        total = a.sum() + b.sum()
        return 1.0 if total == 0 else float(2 * (a & b).sum() / total)

    return overlap


@pytest.fixture
def edited(tmp_path):
    """Changes a saved session as an editor would: `edited(path, volume=None)` drops a field, other values replace."""

    def change(path: Path, **fields) -> Path:
        record = json.loads(path.read_text())
        for name, value in fields.items():
            if value is None:
                del record[name]
            else:
                record[name] = value
        other = tmp_path / "edited.json"
        other.write_text(json.dumps(record))
        return other

    return change


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Toy sizes run fastest on one thread, and share a busy machine best."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
