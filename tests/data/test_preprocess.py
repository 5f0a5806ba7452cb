"""What a network sees of a region."""

from __future__ import annotations

import numpy as np
import pytest

from volsam.data.preprocess import inside, look, normalise
from volsam.geometry import Grid
from volsam.volume import Volume


@pytest.fixture
def a_scan() -> Volume:
    rng = np.random.default_rng(0)
    return Volume(rng.normal(100, 30, size=(24, 20, 16)).astype(np.float32), Grid.at((24, 20, 16), (1, 1, 2)))


def test_a_region_beyond_the_scan_is_marked_as_unknown(a_scan: Volume) -> None:
    roi = a_scan.grid.around(a_scan.grid.to_world((0, 10, 8)), (16, 16, 16), 1.0)
    seen = look(a_scan, roi)
    valid = seen[2] > 0.5
    assert 0.3 < valid.mean() < 0.8
    assert (seen[:2, ~valid] == 0).all()
    assert abs(seen[0][valid].mean()) < 1e-3


def test_the_look_does_not_depend_on_unit_or_offset(a_scan: Volume) -> None:
    roi = a_scan.grid.around(a_scan.grid.to_world((12, 10, 8)), (16, 16, 16), 1.0)
    other = a_scan.with_data(a_scan.data * 7.5 - 1000)
    np.testing.assert_allclose(look(a_scan, roi), look(other, roi), atol=2e-3)


def test_a_constant_region_is_flat_and_finite() -> None:
    seen = normalise(np.full((8, 8, 8), 5, np.float32), np.ones((8, 8, 8), bool))
    assert np.isfinite(seen).all()
    assert (seen[:2] == 0).all()


def test_nothing_known_gives_nothing_seen() -> None:
    assert (normalise(np.ones((4, 4, 4), np.float32), np.zeros((4, 4, 4), bool)) == 0).all()


def test_the_equalised_channel_rises_with_intensity() -> None:
    values = np.linspace(0, 1, 512, dtype=np.float32).reshape(8, 8, 8) ** 4
    ranks = normalise(values, np.ones(values.shape, bool))[1].ravel()
    assert (np.diff(ranks) >= 0).all()
    assert ranks[0] == pytest.approx(-1, abs=0.05)
    assert ranks[-1] == pytest.approx(1, abs=0.05)


def test_a_large_plateau_takes_the_middle_of_its_share() -> None:
    values = np.zeros((10, 10, 10), np.float32)
    values[5:] = np.random.default_rng(0).uniform(1, 2, size=(5, 10, 10))
    ranks = normalise(values, np.ones(values.shape, bool))[1]
    assert ranks[0, 0, 0] == pytest.approx(-0.5, abs=0.05)


def test_inside_agrees_with_the_grid(a_scan: Volume) -> None:
    roi = a_scan.grid.around(a_scan.grid.to_world((2, 3, 15)), (12, 12, 12), 1.7)
    places = roi.to_world(np.argwhere(np.ones(roi.shape)))
    np.testing.assert_array_equal(inside(a_scan.grid, roi).ravel(), a_scan.grid.contains(places))
