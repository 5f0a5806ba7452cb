"""A mask that was given changes where clicks contradict it, and nowhere else."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from volsam.geometry import Grid
from volsam.inference import corrections
from volsam.inference.painting import Patch
from volsam.prompts import Box, Click, MaskHint, PromptSet, Scribble

GRID = Grid.at((30, 28, 26), (1.0, 1.5, 2.0))


def click(voxel, positive=True) -> Click:
    return Click(tuple(GRID.to_world(voxel)), positive)


def ball(middle, radius) -> np.ndarray:
    """A ball of a radius in mm."""
    places = np.moveaxis(np.indices(GRID.shape), 0, -1)
    return np.linalg.norm((places - middle) * GRID.spacing, axis=-1) <= radius


def whole(mask: np.ndarray) -> Patch:
    return Patch((0, 0, 0), GRID.shape, mask)


def corrected(before: np.ndarray, after: np.ndarray, *prompts) -> np.ndarray:
    found = corrections.corrected(whole(before.copy()), whole(after), PromptSet(prompts), GRID)
    return found.within((0, 0, 0), GRID.shape)


BODY = ball((12, 10, 10), 9)
LOBE = ball((22, 10, 10), 3) & ~BODY


def test_a_missing_piece_is_added_where_it_was_clicked():
    found = corrected(BODY, BODY | LOBE, click((22, 10, 10)))
    assert found[LOBE].all()
    assert np.array_equal(found & ~LOBE, BODY & ~LOBE)


def test_a_wrong_piece_is_taken_away_where_it_was_clicked():
    found = corrected(BODY | LOBE, BODY, click((22, 10, 10), positive=False))
    assert not found[LOBE].any()
    assert np.array_equal(found | LOBE, BODY | LOBE)


def test_other_pieces_of_the_difference_stay():
    elsewhere = ball((5, 22, 20), 3)
    assert not corrected(BODY, BODY | LOBE | elsewhere, click((22, 10, 10)))[elsewhere].any()


def test_a_thin_difference_around_the_whole_object_changes_little():
    shell = ball((12, 10, 10), 10.5)
    found = corrected(BODY, shell, click(np.argwhere(shell & ~BODY)[0]))
    assert 0 < (found & ~BODY).sum() < 0.1 * (shell & ~BODY).sum()


def test_a_click_of_one_sign_changes_nothing_to_the_other():
    found = corrected(
        BODY | LOBE, BODY & ball((12, 10, 10), 4), click((22, 10, 10), positive=False), click((12, 10, 10))
    )
    assert not (found & ~(BODY | LOBE)).any()
    assert found[12, 10, 10]


def test_clicks_that_agree_change_nothing():
    nothing = np.zeros(GRID.shape, bool)
    assert np.array_equal(corrected(BODY, nothing, click((12, 10, 10)), click((1, 1, 1), positive=False)), BODY)


def test_where_the_network_does_not_follow_a_click_nothing_but_its_voxel_can_change():
    assert np.array_equal(corrected(BODY, BODY, click((22, 10, 10))), BODY)


def test_a_scribble_changes_all_pieces_that_it_runs_through():
    pieces = ball((22, 10, 4), 2), ball((22, 10, 22), 2)
    stroke = Scribble(tuple(tuple(GRID.to_world((22, 10, index))) for index in range(4, 23)))
    found = corrected(BODY, BODY | pieces[0] | pieces[1], stroke)
    assert found[pieces[0]].all()
    assert found[pieces[1]].all()


def test_a_piece_larger_than_the_first_window_is_taken_whole():
    grid = Grid.at((80, 80, 80))
    places = np.moveaxis(np.indices(grid.shape), 0, -1)
    piece = np.linalg.norm(places - 40, axis=-1) <= 30
    nothing = Patch((40, 40, 40), (40, 40, 40), np.zeros((0, 0, 0), bool))
    asked = PromptSet([Click((40.0, 40.0, 40.0))])
    found = corrections.corrected(nothing, Patch((0, 0, 0), grid.shape, piece), asked, grid)
    assert np.array_equal(found.within((0, 0, 0), grid.shape), piece)


@pytest.mark.parametrize("away", [0, 20, 32, 35])
def test_a_click_beside_the_middle_of_a_large_piece_changes_most_of_it(away):
    grid = Grid.at((90, 90, 90))
    places = np.moveaxis(np.indices(grid.shape), 0, -1)
    distances = np.linalg.norm(places - 45, axis=-1)
    piece = distances <= 40
    nothing = Patch((45, 45, 45), (45, 45, 45), np.zeros((0, 0, 0), bool))
    click = PromptSet([Click((45.0 + away, 45.0, 45.0))])
    found = corrections.corrected(nothing, Patch((0, 0, 0), grid.shape, piece), click, grid)
    wanted = piece & (np.linalg.norm(places - (45 + away, 45, 45), axis=-1) <= 1.5 * 40)
    changed = found.within((0, 0, 0), grid.shape)
    assert not (changed & ~piece).any()
    assert (changed & wanted).sum() > 0.8 * wanted.sum()


def test_in_a_box_the_mask_is_made_anew_and_elsewhere_it_stays():
    box = Box(tuple(GRID.to_world((18, 4, 4))), tuple(GRID.to_world((28, 16, 16))))
    elsewhere = ball((5, 22, 20), 3)
    found = corrections.anew_within(whole(BODY | elsewhere), box, whole(LOBE), GRID).within((0, 0, 0), GRID.shape)
    inside = np.zeros(GRID.shape, bool)
    inside[18:29, 4:17, 4:17] = True
    assert np.array_equal(found[inside], LOBE[inside])
    assert np.array_equal(found[~inside], (BODY | elsewhere)[~inside])


def test_a_flat_box_adds_what_is_found_in_other_slices():
    box = Box(tuple(GRID.to_world((18, 4, 10))), tuple(GRID.to_world((28, 16, 10))))
    found = corrections.anew_within(whole(BODY), box, whole(LOBE), GRID).within((0, 0, 0), GRID.shape)
    column = np.zeros(GRID.shape, bool)
    column[18:29, 4:17] = True
    assert np.array_equal(found[18:29, 4:17, 10], LOBE[18:29, 4:17, 10])
    rest = np.ones(GRID.shape, bool)
    rest[:, :, 10] = False
    assert np.array_equal(found[rest], (BODY | (LOBE & column))[rest])


@given(st.integers(0, 2**32 - 1), st.booleans())
@settings(max_examples=40, deadline=None)
def test_only_clicked_signs_change_and_never_beyond_the_difference(seed, positive):
    random = np.random.default_rng(seed)
    before, after = (ball(random.uniform(8, 18, 3), random.uniform(3, 12)) for _ in range(2))
    voxel = random.integers(0, GRID.shape)
    found = corrected(before, after, click(voxel, positive))
    changed = found != before
    assert not (changed & (before == after)).any()
    assert (found[changed] == positive).all()
    if before[tuple(voxel)] != positive and after[tuple(voxel)] == positive:
        assert changed[tuple(voxel)]


@pytest.mark.parametrize("low", [(0, 0, 0), (5, 4, 3)])
def test_a_mask_on_a_part_of_the_grid_lies_where_it_lay(low):
    hint = MaskHint(np.ones((4, 5, 6)), GRID.crop(low, tuple(np.add(low, (4, 5, 6)))))
    patch = corrections.given(hint, GRID)
    wanted = np.zeros(GRID.shape, bool)
    wanted[tuple(slice(a, a + n) for a, n in zip(low, (4, 5, 6), strict=True))] = True
    assert np.array_equal(patch.within((0, 0, 0), GRID.shape), wanted)
