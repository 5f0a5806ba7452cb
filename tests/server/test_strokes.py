"""Lassos and painted strokes become points that cover what they cover."""

import numpy as np
import pytest

from volsam.errors import BadInput
from volsam.geometry import Grid
from volsam.server.strokes import MOST_POINTS, boxed, inside, lasso, painted


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_lasso_covers_what_it_encloses_and_nothing_else(an_oblique_grid, axis):
    ring = np.array([(5, 5), (19, 5), (19, 14), (12, 14), (12, 9), (5, 9)], dtype=float)  # an L
    voxels = np.insert(ring, axis, 11, axis=1)
    stroke = lasso(an_oblique_grid.to_world(voxels), False, an_oblique_grid)
    places = an_oblique_grid.to_voxels(stroke.points)
    assert not stroke.positive
    assert np.allclose(places, np.round(places), atol=1e-6)
    assert np.allclose(places[:, axis], 11)
    x, y = np.delete(places, axis, axis=1).T
    assert (((x >= 5) & (x < 19.1) & (y >= 5) & (y < 9.1)) | ((x >= 12) & (x < 19.1) & (y >= 5) & (y < 14.1))).all()
    assert 20 < len(places) <= MOST_POINTS
    assert np.ptp(x) > 10
    assert np.ptp(y) > 6


def test_a_lasso_thinner_than_a_voxel_is_its_own_points(an_oblique_grid):
    voxels = np.array([(5.2, 5.1, 3), (15.2, 5.1, 3), (5.2, 5.3, 3)])
    stroke = lasso(an_oblique_grid.to_world(voxels), True, an_oblique_grid)
    assert np.allclose(stroke.points, an_oblique_grid.to_world(voxels))


@pytest.mark.parametrize(
    ("voxels", "said"),
    [
        ([(1, 1, 1), (5, 5, 1)], "at least three points"),
        ([(1, 1, 1), (9, 5, 9), (5, 20, 5)], "on one slice"),
        ([(1, 1, 1), (900, 5, 1), (5, 20, 1)], "leaves the volume"),
    ],
)
def test_a_lasso_that_is_none_is_refused(an_oblique_grid, voxels, said):
    with pytest.raises(BadInput, match=said):
        lasso(an_oblique_grid.to_world(voxels), True, an_oblique_grid)


def test_a_contour_encloses_by_the_even_odd_rule():
    square = np.array([(1, 1), (1, 4), (4, 4), (4, 1)], dtype=float)
    assert inside(square - 0.5, (6, 6)).sum() == 9


def test_a_painted_stroke_keeps_its_place_and_its_spread():
    grid = Grid.at((50, 60, 70))
    mask = np.ones((20, 30, 2), bool)
    stroke = painted(mask, (5, 6, 7), True, grid)
    places = grid.to_voxels(stroke.points)
    assert len(places) <= MOST_POINTS
    assert (places >= (5, 6, 7)).all()
    assert (places < (25, 36, 9)).all()
    assert (np.ptp(places, axis=0)[:2] > (12, 20)).all()
    with pytest.raises(BadInput, match="empty"):
        painted(np.zeros((2, 2, 2), bool), (0, 0, 0), True, grid)


@pytest.mark.parametrize("shape", [(1, 1, 1), (4, 4, 4), (5, 4, 4), (20, 30, 2), (33, 1, 9)])
def test_a_box_that_holds_nothing_is_like_painting_it_out(shape):
    grid = Grid.at((50, 60, 70))
    low = (5, 6, 7)
    high = tuple(a + b for a, b in zip(low, shape, strict=True))
    assert boxed((low, high), False, grid) == painted(np.ones(shape, bool), low, False, grid)


def test_a_negative_box_of_a_whole_scan_takes_no_memory_of_its_size():
    grid = Grid.at((20_000, 20_000, 20_000))
    stroke = boxed(((0, 0, 0), grid.shape), False, grid)
    assert 20 < len(stroke.points) <= MOST_POINTS


def test_very_many_painted_voxels_are_looked_at_in_part(monkeypatch):
    monkeypatch.setattr("volsam.server.strokes.MOST_VOXELS", 1000)
    grid = Grid.at((50, 60, 70))
    places = grid.to_voxels(painted(np.ones((40, 40, 40), bool), (5, 6, 7), True, grid).points)
    assert 20 < len(places) <= MOST_POINTS
    assert (np.ptp(places, axis=0) > 20).all()
    assert (places >= (5, 6, 7)).all()
    assert (places < (45, 46, 47)).all()
