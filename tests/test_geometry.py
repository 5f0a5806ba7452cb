from itertools import permutations, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nibabel.orientations import apply_orientation, axcodes2ornt, io_orientation, ornt_transform
from scipy.spatial.transform import Rotation

from volsam.errors import BadInput
from volsam.geometry import Grid, resample

ORDERS = [
    "".join(pair[sign] for pair, sign in zip(order, signs, strict=True))
    for order in permutations(["RL", "AP", "SI"])
    for signs in product((0, 1), repeat=3)
]

angles = st.floats(-30, 30)
spacings = st.floats(0.3, 6)
sizes = st.integers(1, 7)


@st.composite
def grids(draw, tilted=True):
    """Any lattice: anisotropic, of either handedness, stored in any order, and oblique if `tilted`."""
    turn = Rotation.from_euler("xyz", [draw(angles) if tilted else 0.0 for _ in range(3)], degrees=True).as_matrix()
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([draw(spacings) for _ in range(3)])
    affine[:3, 3] = [draw(st.floats(-300, 300)) for _ in range(3)]
    grid = Grid((draw(sizes), draw(sizes), draw(sizes)), affine)
    return grid.reoriented(draw(st.sampled_from(ORDERS)))


def numbered(grid: Grid, dtype=np.int16) -> np.ndarray:
    return np.arange(np.prod(grid.shape), dtype=dtype).reshape(grid.shape)


# ---- Positions


@given(grids(), st.lists(st.tuples(*[st.floats(-20, 20)] * 3), min_size=1, max_size=5))
def test_voxels_and_millimetres_are_inverse(grid, voxels):
    np.testing.assert_allclose(grid.to_voxels(grid.to_world(voxels)), voxels, atol=1e-9)


def test_the_first_voxel_is_centred_on_the_origin():
    grid = Grid.at((4, 5, 6), spacing=(1, 2, 3), origin=(10, 20, 30))
    np.testing.assert_array_equal(grid.to_world([0, 0, 0]), (10, 20, 30))
    np.testing.assert_array_equal(grid.to_world([1, 1, 1]), (11, 22, 33))
    np.testing.assert_array_equal(grid.spacing, (1, 2, 3))
    assert grid.voxel_volume == 6
    assert grid.axes == "RAS"


def test_a_volume_reaches_to_the_faces_of_its_outer_voxels():
    grid = Grid.at((4, 5, 6), spacing=2)
    low, high = grid.extent()
    np.testing.assert_array_equal(low, (-1, -1, -1))
    np.testing.assert_array_equal(high, (7, 9, 11))
    assert grid.contains([low, high, (0, 0, 0)]).all()
    assert not grid.contains([(-1.01, 0, 0), (0, 9.01, 0), (0, 0, 1e9)]).any()


@given(grids())
def test_the_extent_holds_every_voxel(grid):
    low, high = grid.extent()
    centers = grid.to_world(np.stack(np.indices(grid.shape), axis=-1).reshape(-1, 3))
    assert (centers > low).all()
    assert (centers < high).all()
    assert grid.contains(centers).all()


def test_grids_are_equal_when_every_bit_is():
    grid = Grid.at((4, 5, 6), spacing=2)
    other = Grid(grid.shape, grid.affine + np.eye(4) * 1e-15)
    assert grid == Grid.at((4, 5, 6), spacing=2)
    assert hash(grid) == hash(Grid.at((4, 5, 6), spacing=2))
    assert grid != other
    assert grid != Grid.at((4, 5, 7), spacing=2)
    assert grid != "a grid"


def test_an_affine_cannot_be_changed_behind_the_back():
    affine = np.eye(4)
    grid = Grid((2, 2, 2), affine)
    affine[0, 0] = 5
    assert grid.affine[0, 0] == 1
    with pytest.raises(ValueError, match="read-only"):
        grid.affine[0, 0] = 5


def test_a_grid_says_what_it_is():
    assert repr(Grid.at((4, 5, 6), spacing=(0.5, 1, 2.25))) == "Grid(4 × 5 × 6, 0.5 × 1 × 2.25 mm, RAS)"


# ---- Signed permutations of the axes are exact


@pytest.mark.parametrize("axes", ORDERS)
def test_reordering_axes_is_indexing(axes, an_oblique_grid):
    source = an_oblique_grid.crop((5, 5, 5), (8, 9, 10))
    target = source.reoriented(axes)
    data = numbered(source)
    change = ornt_transform(io_orientation(source.affine), axcodes2ornt(tuple(axes)))
    moved = resample(data, source, target)
    assert target.axes == axes
    assert moved.dtype == data.dtype
    np.testing.assert_array_equal(moved, apply_orientation(data, change))
    np.testing.assert_array_equal(resample(moved, target, source), data)


@given(grids(), st.sampled_from(ORDERS))
def test_reordering_keeps_every_voxel_where_it_is(grid, axes):
    other = grid.reoriented(axes)
    index = np.stack(np.indices(grid.shape), axis=-1).reshape(-1, 3)
    places = resample(np.arange(len(index)).reshape(grid.shape), grid, other)
    there = other.to_world(np.stack(np.indices(other.shape), axis=-1).reshape(-1, 3))
    np.testing.assert_allclose(there, grid.to_world(index[places.ravel()]), atol=1e-9)


@given(grids(), st.sampled_from(ORDERS), st.sampled_from(["linear", "nearest", "area"]))
def test_reordering_and_back_is_the_same(grid, axes, mode):
    data = numbered(grid, np.uint16)
    other = grid.reoriented(axes)
    back = resample(resample(data, grid, other, mode=mode), other, grid, mode=mode)
    assert back.dtype == np.uint16
    np.testing.assert_array_equal(back, data)


@given(grids(), st.tuples(*[st.integers(-3, 5)] * 3), st.tuples(*[st.integers(1, 6)] * 3))
def test_a_crop_copies_voxels_and_pads_with_fill(grid, low, size):
    data = numbered(grid)
    cropped = resample(data, grid, grid.crop(low, np.add(low, size)), fill=-7)
    padded = np.pad(data, 12, constant_values=-7)
    window = tuple(slice(a + 12, a + 12 + n) for a, n in zip(low, size, strict=True))
    np.testing.assert_array_equal(cropped, padded[window])


def test_grids_that_do_not_meet_give_only_fill():
    grid = Grid.at((4, 4, 4))
    far = Grid.at((3, 3, 3), origin=(50, 0, 0))
    for mode in ("linear", "nearest", "area"):
        assert (resample(np.ones(grid.shape), grid, far, mode=mode, fill=-20) == -20).all()


# ---- A region around a point


@pytest.mark.parametrize("axes", ORDERS)
def test_the_region_around_a_point_is_the_same_whatever_the_storage_order(axes, an_oblique_grid):
    center = an_oblique_grid.to_world((20, 21, 12))
    roi = an_oblique_grid.around(center, (16, 20, 24), spacing=(1, 1.5, 2))
    other = an_oblique_grid.reoriented(axes).around(center, (16, 20, 24), spacing=(1, 1.5, 2))
    np.testing.assert_allclose(other.affine, roi.affine, atol=1e-9)
    assert other.shape == roi.shape


@given(grids(), st.sampled_from(ORDERS))
def test_a_region_has_its_middle_where_asked_and_axes_as_asked(grid, axes):
    center = grid.to_world((1, 2, 3))
    roi = grid.around(center, (8, 9, 10), 1.5, axes)
    np.testing.assert_allclose(roi.to_world((3.5, 4, 4.5)), center, atol=1e-9)
    np.testing.assert_allclose(roi.spacing, 1.5)
    assert roi.axes == axes


@given(grids(), grids())
def test_the_overlap_holds_every_voxel_that_lies_in_the_other_grid(grid, other):
    low, high = grid.overlap(other)
    index = np.stack(np.indices(grid.shape), axis=-1).reshape(-1, 3)
    inside = index[other.contains(grid.to_world(index))]
    assert (inside >= low).all()
    assert (inside < high).all()
    assert (np.array(high) <= grid.shape).all()


# ---- Values between voxels


@given(grids(), grids())
def test_a_linear_ramp_stays_a_linear_ramp(source, target):
    low, high = np.zeros(3), np.array(source.shape) - 1
    ramp = np.indices(source.shape).astype(np.float32)
    values = resample(ramp, source, target, fill=np.nan)
    expected = source.to_voxels(target.to_world(np.stack(np.indices(target.shape), axis=-1)))
    between = ((expected >= low - 1e-6) & (expected <= high + 1e-6)).all(axis=-1)
    np.testing.assert_allclose(values[:, between], expected[between].T, atol=2e-3)


@given(grids(), grids())
def test_what_lies_outside_is_fill_and_what_lies_inside_is_not(source, target):
    ones = np.ones(source.shape, np.float32)
    voxels = source.to_voxels(target.to_world(np.stack(np.indices(target.shape), axis=-1)))
    edge = np.abs(np.abs(voxels - (np.array(source.shape) - 1) / 2) - np.array(source.shape) / 2).min(axis=-1) < 1e-3
    inside = ((voxels > -0.5) & (voxels < np.array(source.shape) - 0.5)).all(axis=-1)
    for mode in ("linear", "nearest", "area"):
        values = resample(ones, source, target, mode=mode, fill=-20)
        np.testing.assert_allclose(values[inside & ~edge], 1, rtol=1e-5)
        assert (values[~inside & ~edge] == -20).all()


@given(grids(), grids())
def test_nearest_invents_no_label(source, target):
    labels = (numbered(source, np.int32) % 5).astype(np.uint8)
    values = resample(labels, source, target, mode="nearest", fill=255)
    assert values.dtype == np.uint8
    assert set(np.unique(values)) <= {*np.unique(labels), 255}


def test_nearest_takes_the_nearest_voxel():
    source = Grid.at((4, 1, 1))
    data = np.array([1, 2, 3, 4], np.int16).reshape(4, 1, 1)
    target = Grid.at((4, 1, 1), spacing=0.75, origin=(0.1, 0, 0))
    np.testing.assert_array_equal(resample(data, source, target, mode="nearest").ravel(), [1, 2, 3, 3])


def test_area_averages_where_the_target_is_coarser():
    source = Grid.at((8, 8, 8))
    stripes = np.indices(source.shape)[0] % 2 * 100.0
    coarse = Grid.at((4, 8, 8), spacing=(2, 1, 1), origin=(0.5, 0, 0))
    np.testing.assert_allclose(resample(stripes, source, coarse, mode="area"), 50, atol=1e-4)


def test_an_aligned_and_an_almost_aligned_grid_agree():
    source = Grid.at((20, 22, 24), spacing=(1, 1.5, 2))
    data = np.random.default_rng(0).normal(size=source.shape).astype(np.float32)
    target = Grid.at((15, 16, 17), spacing=1.3, origin=(2.2, 3.1, 4.4))
    turned = target.affine.copy()
    turned[:3, :3] = Rotation.from_euler("z", 1e-3, degrees=True).as_matrix() @ turned[:3, :3]
    along_axes = resample(data, source, target)
    anywhere = resample(data, source, Grid(target.shape, turned))
    np.testing.assert_allclose(anywhere, along_axes, atol=5e-3)


def test_each_channel_is_resampled_like_a_volume_of_its_own(an_oblique_grid):
    data = np.random.default_rng(0).normal(size=(2, *an_oblique_grid.shape)).astype(np.float32)
    roi = an_oblique_grid.around(an_oblique_grid.to_world((20, 20, 10)), (9, 10, 11), 2)
    both = resample(data, an_oblique_grid, roi)
    assert both.shape == (2, 9, 10, 11)
    np.testing.assert_array_equal(both[1], resample(data[1], an_oblique_grid, roi))


@pytest.mark.parametrize("turn", [(0, 0, 0), (20, -15, 30)])
def test_a_ball_survives_the_way_through_a_crop_of_another_spacing(an_oblique_grid, a_ball, turn):
    center = an_oblique_grid.to_world((22, 20, 14))
    roi = an_oblique_grid.around(center, (40, 40, 40), 1.5)
    affine = roi.affine.copy()
    affine[:3, :3] = Rotation.from_euler("xyz", turn, degrees=True).as_matrix() @ affine[:3, :3]
    affine[:3, 3] = center - affine[:3, :3] @ (19.5, 19.5, 19.5)
    roi = Grid(roi.shape, affine)
    inside = resample(a_ball.astype(np.float32), an_oblique_grid, roi)
    back = resample(inside, roi, an_oblique_grid, fill=-20) > 0.5
    dice = 2 * (back & a_ball).sum() / (back.sum() + a_ball.sum())
    assert dice > 0.98


# ---- Refusals


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 0), (4, 5, 6, 7), (-1, 2, 2)])
def test_a_shape_without_three_axes_is_refused(shape):
    with pytest.raises(BadInput, match="three axes"):
        Grid(shape, np.eye(4))


@pytest.mark.parametrize("affine", [np.eye(3), np.full((4, 4), np.nan), np.diag([1, np.inf, 1, 1])])
def test_an_affine_that_is_none_is_refused(affine):
    with pytest.raises(BadInput, match="4 × 4 matrix of finite numbers"):
        Grid((2, 2, 2), affine)


@pytest.mark.parametrize(
    "linear", [np.zeros((3, 3)), np.diag([1, 1, 0]), np.ones((3, 3)), [[1, 1, 0], [0, 0, 0], [0, 0, 1]]]
)
def test_axes_that_do_not_span_space_are_refused(linear):
    affine = np.eye(4)
    affine[:3, :3] = linear
    with pytest.raises(BadInput, match="do not span space"):
        Grid((2, 2, 2), affine)


def test_an_affine_whose_last_row_says_something_is_refused():
    with pytest.raises(BadInput, match="last row"):
        Grid((2, 2, 2), 1.1 * np.eye(4))


def test_data_of_another_shape_than_their_grid_are_refused():
    with pytest.raises(BadInput, match="cannot lie on a grid"):
        resample(np.zeros((3, 4, 6)), Grid.at((3, 4, 5)), Grid.at((3, 4, 5)))
