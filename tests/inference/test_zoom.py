"""Which region is looked at, and how closely."""

from __future__ import annotations

from itertools import permutations, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from volsam.geometry import Grid
from volsam.inference import zoom
from volsam.prompts import Box, Click, MaskHint, PromptSet, Scribble

ORDERS = [
    "".join(pair[sign] for pair, sign in zip(order, signs, strict=True))
    for order in permutations(["RL", "AP", "SI"])
    for signs in product((0, 1), repeat=3)
]
EDGE = 32

lengths = st.integers(1, 600)
spacings = st.floats(0.05, 12)


@st.composite
def grids(draw):
    return Grid.at(
        [draw(lengths) for _ in range(3)],
        [draw(spacings) for _ in range(3)],
        origin=[draw(st.floats(-300, 300)) for _ in range(3)],
    )


# ---- Zooms to try


@given(grids())
def test_zooms_go_from_the_closest_look_to_one_that_sees_the_whole_volume(grid):
    steps = zoom.ladder(grid, EDGE)
    assert 1 <= len(steps) <= zoom.MOST_LEVELS
    assert steps == sorted(set(steps))
    assert steps[0] == pytest.approx(zoom.CLOSEST * grid.spacing.min())
    assert steps[-1] * EDGE >= (grid.spacing * grid.shape).max() * (1 - 1e-9)


def test_neighbouring_zooms_differ_by_about_the_ratio():
    steps = np.array(zoom.ladder(Grid.at((100, 100, 60), 1.0), EDGE))
    ratios = steps[1:] / steps[:-1]
    np.testing.assert_allclose(ratios, ratios[0])
    assert 1.2 < ratios[0] < zoom.RATIO + 0.05


def test_a_very_large_volume_gets_no_more_zooms_but_wider_steps():
    steps = np.array(zoom.ladder(Grid.at((512, 512, 600), 0.75), EDGE))
    assert len(steps) == zoom.MOST_LEVELS
    np.testing.assert_allclose(steps[1:] / steps[:-1], steps[1] / steps[0])


# ---- A region around something


@given(grids(), st.lists(st.tuples(*[st.floats(0.05, 0.95)] * 3), min_size=1, max_size=6))
def test_a_fitting_region_holds_its_points_in_its_middle(grid, parts):
    points = grid.to_world(np.array(parts) * (np.array(grid.shape) - 1))
    roi = zoom.fitting(grid, points, EDGE)
    assert roi.shape == (EDGE,) * 3
    assert np.ptp(roi.spacing) < 1e-9 * roi.spacing[0]
    assert roi.contains(points).all()
    low, high = roi.to_voxels(points).min(axis=0), roi.to_voxels(points).max(axis=0)
    np.testing.assert_allclose((low + high) / 2, (EDGE - 1) / 2, atol=1e-6)
    closest = zoom.CLOSEST * grid.spacing.min()
    widest = max(closest, 1.3 * (grid.spacing * grid.shape).max() / EDGE)
    assert closest * (1 - 1e-9) <= roi.spacing[0] <= widest * (1 + 1e-9)


def test_what_it_fits_spans_the_wanted_part_of_the_edge():
    grid = Grid.at((200, 200, 200), 1.0)
    points = [(50, 60, 70), (109, 100, 90)]  # 60 voxels along the longest side, faces included
    for fill in (0.4, zoom.FILL, 0.9):
        roi = zoom.fitting(grid, points, EDGE, fill)
        assert 60 / roi.spacing[0] == pytest.approx(fill * EDGE)


@pytest.mark.parametrize("order", ORDERS)
def test_the_region_does_not_depend_on_the_order_of_axes(an_oblique_grid, order):
    turned = an_oblique_grid.reoriented(order)
    points = an_oblique_grid.to_world([(10, 12, 5), (30, 22, 20)])
    roi, same = zoom.fitting(an_oblique_grid, points, EDGE), zoom.fitting(turned, points, EDGE)
    np.testing.assert_allclose(same.affine, roi.affine, atol=1e-9)
    assert zoom.ladder(turned, EDGE) == pytest.approx(zoom.ladder(an_oblique_grid, EDGE))


# ---- What is known of the extent


def test_boxes_and_masks_tell_the_extent_clicks_and_scribbles_do_not():
    grid = Grid.at((10, 10, 10), 2.0, origin=(1, 1, 1))
    mask = np.zeros(grid.shape)
    mask[2:5, 3, 4:9] = 1
    stroke = Scribble(((1, 1, 1), (9, 9, 9)))
    assert zoom.spanning([Click((1, 2, 3)), stroke]) is None
    assert zoom.spanning([MaskHint(np.zeros(grid.shape), grid)]) is None
    corners = zoom.spanning([MaskHint(mask, grid)])
    np.testing.assert_array_equal(corners.min(axis=0), (5, 7, 9))
    np.testing.assert_array_equal(corners.max(axis=0), (9, 7, 17))
    both = zoom.spanning([Click((50, 0, 0)), Box((-3, 0, 0), (4, 5, 6)), MaskHint(mask, grid)])
    np.testing.assert_array_equal(both.min(axis=0), (-3, 0, 0))
    np.testing.assert_array_equal(both.max(axis=0), (9, 7, 17))


def test_what_is_in_the_object_is_clicks_scribbles_and_corners_of_boxes():
    prompts = PromptSet(
        [
            Click((1, 1, 1)),
            Click((2, 2, 2), positive=False),
            Scribble(((3, 3, 3), (4, 4, 4))),
            Scribble(((5, 5, 5),), positive=False),
            Box((6, 6, 6), (7, 7, 7)),
        ]
    )
    assert sorted(zoom.positive_points(prompts)[:, 0]) == [1, 3, 4, 6, 7]
    assert zoom.positive_points(PromptSet()).shape == (0, 3)


def test_the_points_of_a_mask_are_the_corners_of_its_box():
    grid = Grid.at((8, 8, 8), 3.0)
    mask = np.zeros(grid.shape, bool)
    assert zoom.object_points(mask, grid) is None
    mask[1, 2, 3] = mask[4, 2, 6] = True
    corners = zoom.object_points(mask, grid)
    np.testing.assert_array_equal(corners.min(axis=0), (3, 6, 9))
    np.testing.assert_array_equal(corners.max(axis=0), (12, 6, 18))


# ---- Whether a region still does


def test_a_region_covers_what_lies_two_voxels_from_its_border():
    roi = Grid.at((EDGE,) * 3, 1.0)
    assert zoom.covers(roi, np.zeros((0, 3)))
    assert zoom.covers(roi, np.array([[2.0, 2, 2], [29, 29, 29]]))
    assert not zoom.covers(roi, np.array([[15.0, 15, 15], [1.9, 15, 15]]))
    assert not zoom.covers(roi, np.array([[15.0, 29.1, 15]]))
    assert zoom.covers(roi, np.array([[15.0, 29.1, 15]]), margin=1)


@pytest.mark.parametrize(("ratio", "misfits"), [(0.5, True), (0.75, False), (1, False), (1.4, False), (1.5, True)])
def test_a_zoom_changes_only_where_it_pays(ratio, misfits):
    assert zoom.misfit(Grid.at((EDGE,) * 3, 2.0), Grid.at((EDGE,) * 3, 2.0 * ratio)) == misfits
