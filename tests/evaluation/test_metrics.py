"""Overlap and surface scores."""

import warnings

import numpy as np
import pytest

from volsam.errors import BadInput
from volsam.evaluation.metrics import dice, nsd


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
