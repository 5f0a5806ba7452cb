"""Measures of shapes that one can work out."""

import json

import numpy as np
import pytest

from volsam.geometry import Grid
from volsam.server.measure import longest, measured

GRID = Grid.at((20, 20, 10), (1.0, 1.0, 3.0), origin=(5, 6, 7))


def block(*bounds) -> np.ndarray:
    mask = np.zeros(GRID.shape, bool)
    mask[tuple(slice(*pair) for pair in bounds)] = True
    return mask


def of(mask: np.ndarray, low=(0, 0, 0)) -> dict:
    return measured(mask, np.arange(mask.size).reshape(mask.shape), GRID, low)


def test_a_block_is_as_long_as_its_diagonal():
    found = of(block((2, 10), (3, 8), (1, 4)), low=(100, 0, 50))
    assert found["voxels"] == 8 * 5 * 3
    assert found["volume_ml"] == pytest.approx(0.36)
    assert found["centre"] == pytest.approx([5 + 5.5, 6 + 5, 7 + 6])
    assert found["longest_diameter"]["mm"] == pytest.approx(np.sqrt(7**2 + 4**2 + 6**2))
    assert found["longest_in_plane"]["mm"] == pytest.approx(np.sqrt(7**2 + 4**2))
    assert found["longest_in_plane"]["axis"] == 2
    assert found["longest_in_plane"]["index"] in (51, 52, 53)
    assert found["box"] == {"low": [102, 3, 51], "high": [110, 8, 54]}


def test_measures_are_plain_data():
    corner = np.array([100, 0, 50])  # as boxes of masks have it
    json.dumps(of(block((2, 10), (3, 8), (1, 4)), low=tuple(corner)))


def test_across_is_at_a_right_angle():
    found = of(block((2, 15), (5, 8), (4, 5)))["longest_in_plane"]
    along = np.subtract(found["to"], found["from"])
    across = np.subtract(found["across"]["to"], found["across"]["from"])
    assert abs(along @ across) / np.linalg.norm(along) / np.linalg.norm(across) < 0.45  # within a voxel
    assert 1.5 < found["across"]["mm"] < 3.5


@pytest.mark.parametrize(
    ("bounds", "length"),
    [
        (((4, 5), (4, 5), (4, 5)), 0.0),
        (((4, 6), (4, 5), (4, 5)), 1.0),
        (((4, 5), (4, 5), (2, 7)), 12.0),
        (((4, 9), (4, 5), (4, 5)), 4.0),
        (((4, 8), (4, 7), (4, 5)), 5.0 * np.sqrt(13 / 25)),
    ],
)
def test_points_lines_and_planes_are_measured_too(bounds, length):
    assert of(block(*bounds))["longest_diameter"]["mm"] == pytest.approx(length)


def test_intensities_are_those_under_the_mask():
    mask = block((0, 1), (0, 1), (0, 4))
    assert of(mask)["intensity"] == {"mean": 1.5, "std": pytest.approx(np.std(range(4))), "low": 0.0, "high": 3.0}


def test_the_longest_of_many_points_is_found_in_blocks(monkeypatch):
    monkeypatch.setattr("volsam.server.measure.BLOCK", 7)
    points = np.random.default_rng(0).normal(size=(300, 3))
    apart = np.linalg.norm(points[:, None] - points[None], axis=-1).max()
    assert longest(points).length == pytest.approx(apart)
