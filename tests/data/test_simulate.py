"""Where a simulated annotator clicks."""

import numpy as np
import pytest

from volsam.data import simulate
from volsam.data.simulate import bounding_box, clicks_per_slice, deepest, first_click, next_click
from volsam.errors import BadInput
from volsam.geometry import Grid

NOTHING = np.zeros((20, 20, 20), dtype=bool)


def a_box(low, high, shape=(20, 20, 20)):
    mask = np.zeros(shape, dtype=bool)
    mask[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = True
    return mask


@pytest.fixture
def a_grid():
    return Grid.at((20, 20, 20), spacing=(1, 1, 1), origin=(-5, 7, 100))


def test_the_first_click_is_the_middle_of_a_cube_in_world_millimetres(a_grid):
    click = first_click(a_box((3, 4, 5), (8, 9, 10)), a_grid)
    assert click.positive
    assert click.position == tuple(a_grid.to_world([5, 6, 7]))


def test_depth_is_measured_in_millimetres_not_in_voxels():
    # A cube of 9 voxels against a column of 7 x 7 x 15: which is the deeper depends on the size of a voxel.
    region = a_box((1, 1, 1), (10, 10, 10)) | a_box((12, 12, 3), (19, 19, 18))
    voxel, depth = deepest(region, np.array([1.0, 1.0, 1.0]))
    assert depth == 5
    assert tuple(voxel) == (5, 5, 5)
    voxel, depth = deepest(region, np.array([3.0, 3.0, 0.5]))
    assert tuple(voxel[:2]) == (15, 15)
    assert depth == 15 * 0.5 / 2 + 0.25


def test_the_outside_of_the_volume_is_outside_the_object(a_grid):
    everything = np.ones((20, 20, 20), dtype=bool)
    voxel, depth = deepest(everything, a_grid.spacing)
    assert depth == 10
    assert all(9 <= place <= 10 for place in voxel)


def test_a_missed_part_gets_a_positive_click(a_grid):
    target = a_box((2, 2, 2), (17, 9, 9))
    click = next_click(target, a_box((2, 2, 2), (10, 9, 9)), a_grid)
    assert click is not None
    assert click.positive
    assert tuple(a_grid.to_voxels(click.position).round().astype(int)) == (13, 5, 5)


def test_a_wrong_part_gets_a_negative_click(a_grid):
    target = a_box((2, 2, 2), (9, 9, 9))
    click = next_click(target, target | a_box((10, 10, 10), (17, 17, 17)), a_grid)
    assert click is not None
    assert not click.positive
    assert tuple(a_grid.to_voxels(click.position).round().astype(int)) == (13, 13, 13)


def test_the_deeper_error_wins_and_a_missed_part_wins_a_tie(a_grid):
    target, wrong = a_box((1, 1, 1), (6, 6, 6)), a_box((10, 10, 10), (15, 15, 15))
    tie = next_click(target, wrong, a_grid)
    assert tie is not None
    assert tie.positive
    deeper = next_click(target, a_box((10, 10, 10), (17, 17, 17)), a_grid)
    assert deeper is not None
    assert not deeper.positive


def test_there_is_no_click_where_the_mask_is_right(a_grid):
    target = a_box((2, 2, 2), (9, 9, 9))
    assert next_click(target, target, a_grid) is None
    assert next_click(target, target.astype(np.uint8), a_grid) is None


def test_an_empty_object_is_refused(a_grid):
    with pytest.raises(BadInput, match="nothing to click"):
        first_click(NOTHING, a_grid)


def test_of_equally_deep_voxels_the_middle_one_is_taken():
    tube = a_box((0, 8, 8), (19, 11, 11))
    voxel, _ = deepest(tube, np.ones(3))
    assert tuple(voxel) == (9, 9, 9)


def test_the_same_error_gets_the_same_click(a_grid):
    rng = np.random.default_rng(0)
    target, mask = rng.random((2, 20, 20, 20)) > 0.5
    assert next_click(target, mask, a_grid) == next_click(target.copy(order="F"), mask.copy(order="F"), a_grid)


def test_the_deepest_point_agrees_with_looking_at_every_pair_of_voxels():
    rng = np.random.default_rng(1)
    spacing = np.array([0.7, 1.3, 4.0])
    region = rng.random((7, 6, 5)) > 0.2
    outside = np.argwhere(~np.pad(region, 1)) - 1
    inside = np.argwhere(region)
    depths = np.linalg.norm((inside[:, None] - outside[None]) * spacing, axis=2).min(axis=1)
    voxel, depth = deepest(region, spacing)
    assert depth == pytest.approx(depths.max())
    assert depths[(inside == voxel).all(axis=1)] == pytest.approx(depths.max())


@pytest.mark.parametrize("thickness", [2, 40])
def test_a_large_region_is_clicked_to_within_a_block(monkeypatch, thickness):
    monkeypatch.setattr(simulate, "MOST_VOXELS", 1 << 12)
    region = a_box((4, 4, 4), (60, 60, 4 + thickness), (64, 64, 64))
    voxel, depth = deepest(region, np.ones(3))
    assert region[tuple(voxel)]
    walls = [voxel.min() - 3, 60 - voxel[:2].max(), 4 + thickness - voxel[2]]
    assert min(walls) >= thickness / 2 - 4
    assert depth == pytest.approx(thickness / 2, abs=4)


def test_a_large_thick_part_is_found_among_many_thin_ones(monkeypatch):
    region = np.random.default_rng(0).random((48, 48, 48)) > 0.1
    region[30:40, 8:18, 20:30] = True
    exact, _ = deepest(region, np.ones(3))
    monkeypatch.setattr(simulate, "MOST_VOXELS", 1 << 14)
    voxel, _ = deepest(region, np.ones(3))
    assert np.abs(voxel - exact).max() <= 3


def test_a_bounding_box_holds_the_region_and_no_more():
    region = a_box((3, 0, 7), (5, 20, 8))
    assert bounding_box(region) == (slice(3, 5), slice(0, 20), slice(7, 8))
    assert bounding_box(region, margin=2) == (slice(1, 7), slice(0, 20), slice(5, 10))
    assert bounding_box(NOTHING) is None


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("count", [1, 3, 10])
def test_every_slice_of_the_object_gets_its_own_clicks(a_grid, axis, count):
    target = a_box((3, 4, 5), (8, 9, 11))
    clicks = clicks_per_slice(target, a_grid, count, axis)
    voxels = np.round(a_grid.to_voxels([click.position for click in clicks])).astype(int)
    assert all(click.positive for click in clicks)
    assert target[tuple(voxels.T)].all()
    slices, found = np.unique(voxels[:, axis], return_counts=True)
    assert slices.tolist() == np.flatnonzero(np.moveaxis(target, axis, 0).any(axis=(1, 2))).tolist()
    assert (found == count).all()


def test_clicks_on_slices_follow_the_seed(a_grid):
    target = a_box((3, 4, 5), (12, 13, 14))
    first, again, other = (clicks_per_slice(target, a_grid, 3, seed=seed) for seed in (1, 1, 2))
    assert first == again != other


def test_an_empty_object_has_no_slices_to_click_on(a_grid):
    with pytest.raises(BadInput, match="no voxel"):
        clicks_per_slice(NOTHING, a_grid, 1)
