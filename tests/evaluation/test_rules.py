"""Rules of papers: what each makes of the same masks."""

from math import inf, isnan, nan, sqrt

import numpy as np
import pytest

from volsam.errors import BadInput
from volsam.evaluation.rules import STANDARD, rules

ISOTROPIC = (1.0, 1.0, 1.0)
EMPTY = np.zeros((12, 12, 12), bool)


def a_block(*sides: tuple[int, int]) -> np.ndarray:
    mask = EMPTY.copy()
    mask[tuple(slice(*side) for side in sides)] = True
    return mask


TARGET = a_block((2, 6), (2, 6), (2, 6))
LONGER = a_block((2, 9), (2, 6), (2, 6))


def test_all_measures_of_a_mask_that_is_three_voxels_too_long():
    scores = STANDARD.score(LONGER, TARGET, (2.0, 1.0, 1.0))
    assert scores.dice == pytest.approx(2 * 64 / (64 + 112))
    assert scores.iou == pytest.approx(64 / 112)
    assert scores.hd == 6.0  # three voxels of 2 mm
    assert 0 < scores.assd < scores.hd95 <= scores.hd


def test_an_empty_mask_has_one_policy():
    for rule in (STANDARD, rules["3dsam-adapter"], rules["ma-sam"]):
        nothing = rule.score(EMPTY, EMPTY, ISOTROPIC)
        assert (nothing.dice, nothing.iou, nothing.nsd, nothing.hd, nothing.hd95, nothing.assd) == (1, 1, 1, 0, 0, 0)
        for pair in ((EMPTY, TARGET), (TARGET, EMPTY)):
            missed = rule.score(*pair, ISOTROPIC)
            assert missed.dice == pytest.approx(0, abs=1e-6)
            assert (missed.iou, missed.nsd, missed.hd, missed.hd95, missed.assd) == (0, 0, inf, inf, inf)


def test_in_the_challenge_only_objects_that_a_case_has_count():
    rule = rules["cvpr2025"]
    for mask in (EMPTY, TARGET):
        for far in (True, False):
            assert all(isnan(value) for value in rule.score(mask, EMPTY, ISOTROPIC, far=far).as_dict().values())
    missed = rule.score(EMPTY, TARGET, ISOTROPIC)
    assert (missed.dice, missed.iou, missed.nsd, missed.hd, missed.hd95, missed.assd) == (0, 0, 0, inf, inf, inf)


def test_distances_can_be_left_out():
    for mask in (LONGER, EMPTY):
        scores = STANDARD.score(mask, TARGET, ISOTROPIC, far=False)
        assert isnan(scores.hd)
        assert isnan(scores.hd95)
        assert isnan(scores.assd)
    assert isnan(STANDARD.score(EMPTY, EMPTY, ISOTROPIC, far=False).hd)


def test_3dsam_adapter_looks_at_surfaces_within_5_mm_and_smooths():
    rule = rules["3dsam-adapter"]
    assert rule.score(LONGER, TARGET, (1.6, 1, 1)).nsd == 1.0  # 4.8 mm away
    assert STANDARD.score(LONGER, TARGET, (1.6, 1, 1)).nsd < 1.0
    assert rule.score(LONGER, TARGET, (1.6, 1, 1), 2.0).nsd < 1.0
    # 1 - (2 · 64 + 1e-5) / (64 + 112 + 1e-5) is MONAI's loss.
    assert rule.score(LONGER, TARGET, ISOTROPIC).dice == pytest.approx((128 + 1e-5) / (176 + 1e-5), abs=1e-12)


def test_3dsam_adapters_dice_is_one_minus_monais_loss():
    import torch
    from monai.losses.dice import DiceLoss

    pair = [torch.from_numpy(each)[None, None].double() for each in (LONGER, TARGET)]
    loss = DiceLoss(include_background=True, smooth_nr=1e-5, smooth_dr=1e-5)(*pair)
    assert rules["3dsam-adapter"].score(LONGER, TARGET, ISOTROPIC).dice == pytest.approx(1 - float(loss), abs=1e-9)


def test_ma_sam_counts_distances_in_voxels():
    scores = rules["ma-sam"].score(LONGER, TARGET, (0.7, 0.7, 5.0))
    assert scores.hd == 3.0
    assert STANDARD.score(LONGER, TARGET, (0.7, 0.7, 5.0)).hd == pytest.approx(2.1)


def test_autosam_compares_slices_of_224_pixels_and_forgives_what_was_missed():
    rule = rules["autosam"]
    scores = rule.score(LONGER, TARGET, ISOTROPIC)
    assert scores.hd == 56.0  # three voxels of twelve, which become 224 pixels
    missed = rule.score(EMPTY, TARGET, ISOTROPIC)
    assert (missed.dice, missed.hd95) == (0, 0)


def test_fastsam3d_takes_the_best_answer_and_leaves_out_empty_cases():
    rule = rules["fastsam3d"]
    assert rule.counted([0.4, 0.9, 0.7]) == 1
    assert STANDARD.counted([0.4, 0.9, 0.7]) == 2
    assert rule.counted([nan, 0.2, nan]) == 1
    assert rule.counted([nan, nan, nan]) == 2
    assert rule.counted([0.5, 0.8, 0.8]) == 1
    assert all(isnan(value) for value in rule.score(EMPTY, EMPTY, ISOTROPIC).as_dict().values())
    assert rule.score(EMPTY, TARGET, ISOTROPIC).hd95 == inf


def test_fastsam3d_does_not_look_far_from_the_object():
    target = np.zeros((300, 4, 4), bool)
    target[100:110] = True
    mask = target.copy()
    mask[250:] = True
    assert rules["fastsam3d"].score(mask, target, ISOTROPIC).dice == 1.0
    assert STANDARD.score(mask, target, ISOTROPIC).dice < 1.0


def test_pooled_and_larger_percentiles_differ_where_one_border_is_far():
    short = np.zeros((20, 20, 20), bool)
    short[2:10, 2:10, 2:10] = True
    long = short.copy()
    long[10:15, 4:6, 4:6] = True  # 20 voxels: more than 5 % of one border, and less than 5 % of both
    pooled, larger = (rule.score(long, short, ISOTROPIC).hd95 for rule in (rules["ma-sam"], STANDARD))
    assert pooled < 1 < larger


def test_an_unknown_rule_is_answered_with_a_known_one():
    with pytest.raises(BadInput, match="did you mean 'autosam'"):
        rules["auto-sam"]


def test_masks_of_two_shapes_are_refused():
    with pytest.raises(BadInput, match="cannot be compared"):
        STANDARD.score(EMPTY, EMPTY[1:], ISOTROPIC)


def test_what_ma_sam_prints_can_be_means_of_voxel_distances():
    assert (5 + sqrt(2)) / 6 == pytest.approx(1.07, abs=5e-3)


def test_autosam_s_slices_may_lie_along_any_axis_of_the_file():
    grid, turned = (1.0, 2.0, 5.0), (5.0, 1.0, 2.0)
    as_it_is = rules["autosam"].score(LONGER, TARGET, grid)
    moved = rules["autosam"].score(np.moveaxis(LONGER, 2, 0), np.moveaxis(TARGET, 2, 0), turned, across=0)
    assert moved == as_it_is


@pytest.mark.parametrize("name", sorted(rules))
def test_what_is_not_known_is_neither_right_nor_wrong_by_any_rule(name):
    rule = rules[name]
    unknown = a_block((6, 12), (0, 12), (0, 12))
    found = rule.score(LONGER, TARGET, ISOTROPIC, 0.0, unknown=unknown)
    assert (found.dice, found.iou, found.nsd, found.hd, found.hd95, found.assd) == (1, 1, 1, 0, 0, 0)
    one_less = a_block((3, 9), (2, 6), (2, 6))
    scores = [rule.score(mask, TARGET, ISOTROPIC, 0.0, unknown=unknown) for mask in (one_less, one_less & ~unknown)]
    assert scores[0] == scores[1]
    assert scores[0].nsd < 1 < rule.score(LONGER, TARGET, ISOTROPIC).hd


def test_a_mask_without_a_surface_that_is_known_is_missed_by_the_rule():
    """The object fills all that is known, so that only the mask has a surface there."""
    unknown = ~TARGET
    part = a_block((2, 4), (2, 6), (2, 6))
    for name, missed in (("standard", inf), ("ma-sam", inf), ("autosam", 0)):
        scores = rules[name].score(part, TARGET, ISOTROPIC, unknown=unknown)
        assert (scores.nsd, scores.hd, scores.hd95, scores.assd) == (0, missed, missed, missed)


def test_the_challenge_takes_the_spacing_of_its_files_along_the_axes_of_the_array():
    """Its script hands what the file has, (x, y, z), to surface-distance beside arrays (z, y, x)."""
    spacing = (1.0, 1.0, 3.0)
    challenge = rules["cvpr2025"]
    found = challenge.score(LONGER, TARGET, spacing, of_the_challenge=True)
    turned = challenge.score(LONGER, TARGET, (3.0, 1.0, 1.0))
    assert found.nsd == turned.nsd < challenge.score(LONGER, TARGET, spacing, 3.0).nsd == 1
    assert (found.hd, turned.hd) == (3, 9)
    assert STANDARD.score(LONGER, TARGET, spacing, of_the_challenge=True) == STANDARD.score(LONGER, TARGET, spacing)
