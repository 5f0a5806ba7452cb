"""Overlap and surface scores."""

import tracemalloc
import warnings

import numpy as np
import pytest
from scipy import ndimage

from volsam.errors import BadInput
from volsam.evaluation.metrics import assd, dice, distances, hd, hd95, iou, nsd


def a_cube(size, at=8, shape=(32, 32, 32)):
    mask = np.zeros(shape, dtype=bool)
    mask[at : at + size, at : at + size, at : at + size] = True
    return mask


EMPTY = np.zeros((32, 32, 32), dtype=bool)


def test_a_right_mask_scores_one():
    assert dice(a_cube(8), a_cube(8)) == 1
    assert nsd(a_cube(8), a_cube(8), (1, 1, 1), 0.0) == 1


def test_dice_of_half_an_overlap_is_a_half():
    moved = np.roll(a_cube(8), 4, axis=0)
    assert dice(moved, a_cube(8)) == 0.5


def test_dice_is_that_of_monai():
    import torch
    from monai.metrics.meandice import compute_dice

    rng = np.random.default_rng(0)
    mask, target = rng.random((2, 9, 8, 7)) > 0.6
    theirs = compute_dice(torch.from_numpy(mask)[None, None], torch.from_numpy(target)[None, None])
    assert dice(mask, target) == pytest.approx(float(theirs))


@pytest.mark.parametrize("score", [dice, lambda mask, target: nsd(mask, target, (1, 1, 1), 2.0)])
def test_an_empty_mask_is_right_for_an_empty_object_only(score):
    assert score(EMPTY, EMPTY) == 1
    assert score(EMPTY, a_cube(8)) == 0
    assert score(a_cube(8), EMPTY) == 0


def test_the_surface_score_is_that_of_monai():
    import torch
    from monai.metrics.surface_dice import compute_surface_dice

    rng = np.random.default_rng(0)
    mask, target = rng.random((2, 9, 8, 7)) > 0.6
    pair = [torch.from_numpy(each)[None, None] for each in (mask, target)]
    spacing = [0.7, 1.0, 2.5]
    for tolerance in (0.5, 0.75, 1.5):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # MONAI 1.6 warns of an argument that it passes itself
            theirs = compute_surface_dice(
                *pair, [tolerance], include_background=True, spacing=spacing, use_subvoxels=True
            )
        assert nsd(mask, target, spacing, tolerance) == pytest.approx(float(theirs), abs=1e-5)


def test_surfaces_count_as_one_up_to_the_tolerance():
    target, mask = a_cube(12), np.roll(a_cube(12), 2, axis=0)
    assert nsd(mask, target, (1, 1, 1), 2.0) == 1
    # Sides along the shift keep their place; about the two faces across it are lost.
    assert 0.6 < nsd(mask, target, (1, 1, 1), 1.0) < 0.9


def test_the_tolerance_is_in_millimetres_along_each_axis():
    target = a_cube(12)
    assert nsd(np.roll(target, 2, axis=2), target, (1, 1, 0.5), 1.0) == 1
    assert nsd(np.roll(target, 2, axis=2), target, (1, 1, 5.0), 1.0) < 1


def test_a_score_does_not_depend_on_the_empty_space_around():
    target, mask = a_cube(8), a_cube(10)
    wide = [np.pad(each, 9) for each in (mask, target)]
    assert nsd(*wide, (1, 1, 2), 1.0) == nsd(mask, target, (1, 1, 2), 1.0)


def test_an_object_that_touches_the_border_is_scored():
    assert nsd(a_cube(32, at=0), a_cube(32, at=0), (1, 1, 1), 1.0) == 1


def test_masks_of_other_types_are_taken_as_true_and_false():
    assert dice(a_cube(8).astype(np.uint8) * 255, a_cube(8).astype(float)) == 1


def test_masks_of_two_shapes_are_refused():
    with pytest.raises(BadInput, match=r"\(32, 32, 32\).*\(31, 32, 32\)"):
        dice(EMPTY, EMPTY[1:])


# --- overlap and distances, by hand ----------------------------------------------------------------------------------


def a_rod(*places):
    """Single voxels along the first axis."""
    mask = np.zeros((32, 5, 5), dtype=bool)
    mask[list(places), 2, 2] = True
    return mask


def test_iou_of_half_an_overlap_is_a_third():
    assert iou(np.roll(a_cube(8), 4, axis=0), a_cube(8)) == pytest.approx(1 / 3)


def test_dice_can_be_smoothed():
    moved = np.roll(a_cube(8), 4, axis=0)
    assert dice(moved, a_cube(8), smooth=1024) == pytest.approx((512 + 1024) / (1024 + 1024))


def test_distances_are_from_border_to_border_both_ways():
    found = distances(a_rod(4, 5, 20), a_rod(4), (2.0, 1, 1))
    assert sorted(found.of_mask.tolist()) == [0, 2, 32]
    assert found.of_target.tolist() == [0]
    assert found.hd == 32
    assert found.assd == pytest.approx(34 / 4)
    # Of 0, 2 and 32 the 95th percentile lies 0.9 of the way from 2 to 32; of 0, 0, 2, 32 it lies 0.85 of it.
    assert found.hd95 == pytest.approx(2 + 0.9 * 30)
    assert found.hd95_pooled == pytest.approx(2 + 0.85 * 30)


def test_the_inside_of_an_object_has_no_distance():
    found = distances(a_cube(8), a_cube(8), (1, 1, 1))
    assert len(found.of_mask) == 8**3 - 6**3
    assert (found.hd, found.assd) == (0, 0)


def test_a_cube_that_is_one_voxel_wider_everywhere():
    """Faces are 1 mm away, edges and corners farther: the root of 2 and of 3."""
    found = distances(a_cube(10, at=7), a_cube(8, at=8), (1, 1, 1))
    assert found.hd == pytest.approx(np.sqrt(3))
    assert found.of_target.max() == 1
    counts = {1.0: 6 * 8**2, round(np.sqrt(2), 6): 12 * 8, round(np.sqrt(3), 6): 8}
    values, numbers = np.unique(found.of_mask.round(6), return_counts=True)
    assert dict(zip(values.tolist(), numbers.tolist(), strict=True)) == counts


def test_an_object_at_the_border_of_the_volume_has_a_border_there():
    whole = np.ones((6, 6, 6), dtype=bool)
    assert len(distances(whole, whole, (1, 1, 1)).of_mask) == 6**3 - 4**3


@pytest.mark.parametrize("measure", [hd, hd95, assd])
def test_distances_where_something_is_empty(measure):
    assert measure(EMPTY, EMPTY, (1, 1, 1)) == 0
    assert measure(EMPTY, a_cube(8), (1, 1, 1)) == np.inf
    assert measure(a_cube(8), EMPTY, (1, 1, 1)) == np.inf


def test_distances_are_those_of_monai():
    import torch
    from monai.metrics.hausdorff_distance import compute_hausdorff_distance
    from monai.metrics.surface_distance import compute_average_surface_distance

    rng = np.random.default_rng(3)
    spacing = [0.7, 1.0, 2.5]
    for threshold in (0.5, 0.8):
        mask, target = rng.random((2, 9, 8, 7)) > threshold
        pair = [torch.from_numpy(each)[None, None] for each in (mask, target)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # as above
            largest, most = (
                compute_hausdorff_distance(*pair, include_background=True, percentile=percent, spacing=spacing)
                for percent in (None, 95)
            )
            mean = compute_average_surface_distance(*pair, include_background=True, symmetric=True, spacing=spacing)
        assert hd(mask, target, spacing) == pytest.approx(float(largest), abs=1e-5)
        assert hd95(mask, target, spacing) == pytest.approx(float(most), abs=1e-5)
        assert assd(mask, target, spacing) == pytest.approx(float(mean), abs=1e-5)


def test_in_a_large_box_distances_are_the_same(monkeypatch):
    from volsam.evaluation import metrics

    random = np.random.default_rng(3)
    mask = ndimage.gaussian_filter(random.normal(size=(30, 26, 22)), 2) > 0.02
    target = ndimage.gaussian_filter(random.normal(size=(30, 26, 22)), 2) > 0.02
    spacing = (0.7, 1.2, 3.0)
    found = distances(mask, target, spacing), nsd(mask, target, spacing, 1.5)
    monkeypatch.setattr(metrics, "LARGE", 0)
    other = distances(mask, target, spacing), nsd(mask, target, spacing, 1.5)
    np.testing.assert_allclose(other[0].of_mask, found[0].of_mask)
    np.testing.assert_allclose(other[0].of_target, found[0].of_target)
    assert other[1] == pytest.approx(found[1])


def monais_surface_score(mask, target, spacing, tolerance):
    """NSD from MONAI's pieces of surface, which it finds by a convolution."""
    import torch
    from monai.metrics.utils import get_mask_edges

    pair = [torch.from_numpy(each) for each in (mask, target)]
    edges, other, areas, other_areas = (part.numpy() for part in get_mask_edges(*pair, spacing=spacing))
    near = ndimage.distance_transform_edt(~other, sampling=spacing)[edges] <= tolerance
    other_near = ndimage.distance_transform_edt(~edges, sampling=spacing)[other] <= tolerance
    close = areas[edges][near].sum() + other_areas[other][other_near].sum()
    return float(close / (areas[edges].sum() + other_areas[other].sum()))


@pytest.mark.parametrize("spacing", [[1.0, 1.0, 1.0], [0.7, 0.7, 5.0], [2.5, 0.8, 1.3]])
def test_a_volume_that_is_known_has_monais_numbers_to_the_last_bit(spacing):
    random = np.random.default_rng(4)
    pairs = [random.random((2, 9, 8, 7)) > 0.6, ndimage.gaussian_filter(random.normal(size=(2, 20, 18, 22)), 2) > 0.02]
    for mask, target in pairs:
        for tolerance in (0.5, 1.0, 2.0):
            expected = monais_surface_score(mask, target, spacing, tolerance)
            assert nsd(mask, target, spacing, tolerance) == expected
            assert nsd(mask, target, spacing, tolerance, unknown=np.zeros_like(mask)) == pytest.approx(expected)


def test_the_surface_score_of_a_large_box_needs_little_memory(monkeypatch):
    """Two stray voxels make the box the whole scan."""

    def refused(*words, **more):
        raise AssertionError("a convolution holds 4 bytes for every voxel, several times over")

    monkeypatch.setattr("torch.nn.functional.conv3d", refused)
    mask = a_cube(30, shape=(80, 80, 80))
    mask[0, 0, 0] = mask[-1, -1, -1] = True
    nsd(a_cube(2), a_cube(3), (1, 1, 2), 1.0)  # tables are made once
    tracemalloc.start()
    nsd(mask, np.roll(mask, 3, axis=0), (1, 1, 2), 1.0)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 30 * mask.size  # 20, of which distances take 12


# --- images of one slice, and what is not known ----------------------------------------------------------------------


def discs(apart, radius=20, shape=(64, 64)):
    i, j = np.indices(shape)
    return tuple((i - 32) ** 2 + (j - middle) ** 2 <= radius**2 for middle in (32 - apart / 2, 32 + apart / 2))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_an_image_of_one_slice_is_scored_by_its_contours(axis):
    """As MONAI and surface-distance score images of two axes."""
    import torch
    from monai.metrics.surface_dice import compute_surface_dice

    random = np.random.default_rng(5)
    flat = np.delete([0.7, 1.3, 2.0], axis).tolist()
    for mask, target in (random.random((2, 9, 8)) > 0.6, discs(10), discs(6)):
        pair = [torch.from_numpy(each)[None, None] for each in (mask, target)]
        volumes = [np.expand_dims(each, axis) for each in (mask, target)]
        for tolerance in (1.0, 2.5):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # as above
                theirs = compute_surface_dice(
                    *pair, [tolerance], include_background=True, spacing=flat, use_subvoxels=True
                )
            assert nsd(*volumes, (0.7, 1.3, 2.0), tolerance) == pytest.approx(float(theirs), abs=1e-6)


def test_the_faces_of_an_image_of_one_slice_are_no_surface():
    mask, target = (each[..., None] for each in discs(10))
    assert nsd(mask, target, (1, 1, 1), 2.0) < 0.2
    found = distances(mask, target, (1, 1, 1))
    assert found.hd == 10
    assert found.assd > 5
    square = a_cube(8)[:, :, 9:10]
    assert len(distances(square, square, (1, 1, 1)).of_mask) == 8**2 - 6**2
    line = a_rod(4, 5, 6)[:, 2:3, 2:3]
    assert distances(line, np.roll(line, 1, axis=0), (2, 1, 1)).of_mask.tolist() == [2, 2]
    assert nsd(line, np.roll(line, 1, axis=0), (2, 1, 1), 1.0) == 0
    assert nsd(line, np.roll(line, 1, axis=0), (2, 1, 1), 2.0) == 1
    dot = np.ones((1, 1, 1), bool)
    assert (nsd(dot, dot, (1, 1, 1), 1.0), hd(dot, dot, (1, 1, 1))) == (1, 0)


def test_slices_that_are_not_known_are_no_surface():
    """Of two cylinders every fourth slice is known, so that all that is seen of them is contours."""
    mask, target = (np.repeat(each[..., None], 31, axis=2) for each in discs(10))
    unknown = np.ones_like(mask)
    unknown[..., 1::4] = False
    flat = [each[..., :1] for each in (mask, target)]
    assert nsd(mask, target, (1, 1, 1), 2.0, unknown=unknown) == pytest.approx(nsd(*flat, (1, 1, 1), 2.0), abs=0.01)
    found, expected = distances(mask, target, (1, 1, 1), unknown=unknown), distances(*flat, (1, 1, 1))
    assert (found.hd, found.hd95) == (expected.hd, expected.hd95)
    assert found.assd == pytest.approx(expected.assd)
    # What lies where nothing is known changes nothing, on either side.
    other = mask ^ (unknown & (np.random.default_rng(0).random(mask.shape) > 0.5))
    assert nsd(other, target, (1, 1, 1), 2.0, unknown=unknown) == nsd(mask, target, (1, 1, 1), 2.0, unknown=unknown)


def test_scattered_voxels_that_are_not_known_hardly_matter():
    mask, target = a_cube(12, at=8), a_cube(12, at=10)
    unknown = np.random.default_rng(0).random(mask.shape) < 0.1
    for tolerance in (1.0, 2.0):
        expected = nsd(mask, target, (1, 1, 1), tolerance)
        assert nsd(mask, target, (1, 1, 1), tolerance, unknown=unknown) == pytest.approx(expected, abs=0.05)
    assert hd(mask, target, (1, 1, 1)) == pytest.approx(distances(mask, target, (1, 1, 1), unknown=unknown).hd, abs=0.5)


def test_faces_towards_what_is_not_known_do_not_count():
    """Half of a block is known: five of its faces are there, and four sides of them half."""
    block = a_cube(8)
    unknown = np.zeros_like(block)
    unknown[12:] = True
    assert len(distances(block, block, (1, 1, 1), unknown=unknown).of_mask) == 4 * 8 * 8 - 3 * 6 * 6
    longer = a_cube(8)
    longer[16:20] = longer[15:16]
    assert nsd(longer, block, (1, 1, 1), 0.0, unknown=unknown) == 1
    assert distances(longer, block, (1, 1, 1), unknown=unknown).hd == 0


def test_objects_without_a_surface_that_is_known_agree_where_they_are_equal():
    unknown = ~a_cube(8)
    some = a_cube(8)
    some[8:12] = False
    for mask, score, distance in ((a_cube(8), 1, 0), (a_cube(10), 1, 0), (some, 0, np.inf), (EMPTY, 0, np.inf)):
        assert nsd(mask, a_cube(8), (1, 1, 1), 2.0, unknown=unknown) == score
        assert nsd(a_cube(8), mask, (1, 1, 1), 2.0, unknown=unknown) == score
        assert distances(mask, a_cube(8), (1, 1, 1), unknown=unknown).hd == distance
    # Two planes are known, and each of both objects fills another one.
    first, second = np.zeros((2, 5, 6, 6), bool)
    first[1, 1:5, 1:5] = second[3, 1:5, 1:5] = True
    unknown = ~(first | second)
    assert nsd(first, second, (1, 1, 1), 2.0, unknown=unknown) == 0
    assert distances(first, second, (1, 1, 1), unknown=unknown).hd == np.inf
