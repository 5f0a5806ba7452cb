"""Region growing and balls as something to beat."""

import numpy as np
import pytest

from volsam.evaluation import growing
from volsam.evaluation.growing import CT_WINDOW, RULES, Ball, Grow, Scene, begin, start
from volsam.evaluation.metrics import dice
from volsam.evaluation.protocol import clicks_protocol
from volsam.geometry import Grid
from volsam.prompts import Click
from volsam.volume import Volume


def two_cubes(bridge=False, spacing=(1.0, 1.0, 1.0)):
    """Two bright cubes of 8 voxels in a dark volume, on demand joined by a bridge one voxel wide."""
    image = np.zeros((30, 16, 16), np.float32)
    image[3:11, 4:12, 4:12] = 100
    image[18:26, 4:12, 4:12] = 100
    if bridge:
        image[11:18, 8, 8] = 100
    return Volume(image, Grid.at(image.shape, spacing))


def clicked(rule, volume, *voxels, window=None):
    add = start(rule, window)(volume)
    for *voxel, positive in voxels:
        mask = add(Click(volume.grid.to_world(voxel), bool(positive)))
    return mask


def test_growing_takes_the_connected_voxels_of_like_intensity():
    volume = two_cubes()
    mask = clicked(Grow(0, 0.5), volume, (6, 7, 7, True))
    assert mask.sum() == 8**3
    assert mask[:12].sum() == 8**3


def test_opening_cuts_a_thin_bridge():
    volume = two_cubes(bridge=True)
    assert clicked(Grow(0, 0.5), volume, (6, 7, 7, True)).sum() > 2 * 8**3
    assert clicked(Grow(0, 0.5, opened=1), volume, (6, 7, 7, True))[16:].sum() == 0


def test_opening_never_loses_the_click():
    volume = two_cubes(bridge=True)
    assert clicked(Grow(0, 0.5, opened=2), volume, (14, 8, 8, True))[14, 8, 8]


def test_opening_leaves_single_thick_slices_alone():
    image = np.zeros((12, 12, 5), np.float32)
    image[3:9, 3:9, 2] = 100
    volume = Volume(image, Grid.at(image.shape, (1, 1, 10)))
    assert clicked(Grow(0, 0.5, opened=1), volume, (6, 6, 2, True)).sum() > 20


def test_growing_stays_inside_its_box():
    mask = clicked(Grow(0, 0.5, box=6), two_cubes(), (6, 7, 7, True))
    assert mask.sum() == 7 * 7 * 7


def test_ct_values_outside_the_window_are_alike():
    image = np.full((10, 10, 10), 50, np.float32)
    image[4:6] = 400
    image[6:8] = 2000
    volume = Volume(image, Grid.at(image.shape))
    assert clicked(Grow(0, 0.2), volume, (5, 5, 5, True)).sum() == 2 * 100
    assert clicked(Grow(0, 0.2), volume, (5, 5, 5, True), window=CT_WINDOW).sum() == 4 * 100


def test_a_ball_is_round_in_millimetres():
    volume = Volume(np.zeros((30, 30, 10), np.float32), Grid.at((30, 30, 10), (1, 1, 4)))
    mask = clicked(Ball(8), volume, (15, 15, 5, True))
    sizes = [np.ptp(np.flatnonzero(mask.any(axis=axes))) + 1 for axes in ((1, 2), (0, 2), (0, 1))]
    assert sizes == [17, 17, 5]


def test_a_second_positive_click_adds_its_part():
    mask = clicked(Grow(0, 0.5), two_cubes(), (6, 7, 7, True), (21, 7, 7, True))
    assert mask.sum() == 2 * 8**3


@pytest.mark.parametrize("rule", [Grow(0, 0.5), Ball(40)])
def test_a_negative_click_takes_the_voxels_nearer_to_it(rule):
    mask = clicked(rule, two_cubes(bridge=True), (6, 7, 7, True), (21, 7, 7, False))
    assert mask[3:11, 4:12, 4:12].all()
    assert not mask[18:].any()


def test_the_more_similar_click_can_win_instead():
    image = np.full((20, 9, 9), 100, np.float32)
    image[8:12] = 130
    volume = Volume(image, Grid.at(image.shape))
    rule = Grow(0, 5.0, rivals="similar")
    mask = clicked(rule, volume, (2, 4, 4, True), (9, 4, 4, False))
    assert mask[:8].all()
    assert not mask[8:12].any()
    assert mask[12:].all()


def test_the_first_mask_is_not_changed_by_the_second_click():
    add = begin(Grow(0, 0.5), Scene(two_cubes()))
    first = add(Click((6, 7, 7)))
    before = first.copy()
    add(Click((21, 7, 7)))
    assert (first == before).all()


def test_a_huge_box_is_looked_at_coarsely_and_comes_back_on_every_voxel(monkeypatch):
    fine = np.kron(two_cubes().data[0], np.ones((2, 2, 2), np.float32))
    volume = Volume(fine, Grid.at(fine.shape, 0.5))
    exact = clicked(Grow(0, 0.5), volume, (13, 15, 15, True))
    monkeypatch.setattr(growing, "MOST_VOXELS", 1 << 14)
    coarse = clicked(Grow(0, 0.5), volume, (13, 15, 15, True))
    assert coarse.shape == fine.shape
    assert dice(coarse, exact) > 0.8


def test_every_rule_has_its_own_name():
    assert len({str(rule) for rule in RULES}) == len(RULES)


def test_rules_are_evaluated_like_any_method():
    volume = two_cubes()
    target = volume.data[0] > 50
    scores = clicks_protocol(start(Grow(0, 0.5)), volume, target, clicks=3)
    assert [round(score.dice, 3) for score in scores] == [0.667, 1, 1]
