"""Where clicks and boxes of a protocol fall."""

import numpy as np
import pytest
from scipy.ndimage import distance_transform_edt

from volsam.errors import BadInput
from volsam.evaluation.placement import TrainingClicks, box_around, drawn, flat_box
from volsam.geometry import Grid
from volsam.inference.model import is_flat

GRID = Grid.at((24, 24, 12), (1, 1, 2), (-3, 5, 7))


@pytest.fixture
def a_ball():
    places = np.moveaxis(np.indices(GRID.shape), 0, -1) * GRID.spacing
    return np.linalg.norm(places - np.array([12, 12, 12]), axis=-1) < 9


def voxels_of(clicks):
    return [tuple(np.rint(GRID.to_voxels(click.position)).astype(int)) for click in clicks]


@pytest.mark.parametrize(
    ("where", "low", "high"), [("centre", 2 / 3, 1), ("surround", 1 / 3, 2 / 3), ("margin", 0, 1 / 3)]
)
def test_clicks_fall_at_the_depth_that_was_asked_for(a_ball, where, low, high):
    depth = distance_transform_edt(a_ball, sampling=GRID.spacing)
    clicks = drawn(a_ball, GRID, 40, where)
    assert all(click.positive for click in clicks)
    depths = np.array([depth[voxel] for voxel in voxels_of(clicks)]) / depth.max()
    assert (depths > low).all()
    assert (depths <= high + 1e-9).all()


def test_drawn_clicks_are_the_same_for_the_same_seed_and_begin_alike(a_ball):
    assert drawn(a_ball, GRID, 5) == drawn(a_ball, GRID, 10)[:5]
    assert drawn(a_ball, GRID, 5, seed=1) != drawn(a_ball, GRID, 5)
    assert all(a_ball[voxel] for voxel in voxels_of(drawn(a_ball, GRID, 30)))


def test_an_object_of_one_voxel_can_be_clicked_anywhere():
    speck = np.zeros(GRID.shape, bool)
    speck[3, 4, 5] = True
    for where in ("random", "centre", "surround", "margin"):
        assert voxels_of(drawn(speck, GRID, 2, where)) == [(3, 4, 5)] * 2
    with pytest.raises(BadInput, match="no voxel"):
        drawn(np.zeros(GRID.shape, bool), GRID, 1)


def test_the_box_of_a_thin_object_is_not_taken_for_one_on_a_single_slice():
    thin = np.zeros(GRID.shape, bool)
    thin[4:9, 7, 2:6] = True
    box = box_around(thin, GRID)
    assert not is_flat(box, GRID)
    corners = np.sort(GRID.to_voxels([box.low, box.high]), axis=0)
    np.testing.assert_array_equal(np.rint(corners), [(4, 7, 2), (8, 7, 5)])


def test_boxes_hold_the_object_tightly(a_ball):
    corners = np.sort(GRID.to_voxels([box_around(a_ball, GRID).low, box_around(a_ball, GRID).high]), axis=0)
    inside = np.argwhere(a_ball)
    assert np.allclose(corners, [inside.min(axis=0), inside.max(axis=0)])
    flat = flat_box(a_ball, GRID, axis=2)
    low, high = np.sort(GRID.to_voxels([flat.low, flat.high]), axis=0)
    assert low[2] == pytest.approx(high[2])
    slice_ = np.argwhere(a_ball[..., round(low[2])])
    assert np.allclose([low[:2], high[:2]], [slice_.min(axis=0), slice_.max(axis=0)])
    with pytest.raises(BadInput, match="no box"):
        box_around(np.zeros(GRID.shape, bool), GRID)


def test_training_clicks_begin_deep_in_the_worse_error_and_then_fall_anywhere(a_ball):
    for seed in range(8):
        clicks = TrainingClicks(seed)
        first = clicks.next(a_ball, np.zeros_like(a_ball), GRID)
        depth = distance_transform_edt(a_ball)  # in voxels, as there
        assert first.positive
        assert depth[voxels_of([first])[0]] > depth.max() / 2
        everywhere = np.ones_like(a_ball)
        second = clicks.next(a_ball, everywhere, GRID)
        assert not second.positive
        third = clicks.next(a_ball, np.roll(a_ball, 2, axis=0), GRID)
        voxel = voxels_of([third])[0]
        assert a_ball[voxel] != np.roll(a_ball, 2, axis=0)[voxel]
        assert third.positive == a_ball[voxel]
        assert clicks.next(a_ball, a_ball, GRID) is None
