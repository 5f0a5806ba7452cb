import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from volsam.errors import BadInput, PromptOutside
from volsam.geometry import Grid
from volsam.prompts import (
    Box,
    Click,
    MaskHint,
    PromptSet,
    Scribble,
    from_record,
    positions,
    require_inside,
    shown,
    to_record,
)

points = st.tuples(*[st.floats(-500, 500)] * 3)
prompts = st.one_of(
    st.builds(Click, points, st.booleans()),
    st.builds(Box, points, points),
    st.builds(Scribble, st.lists(points, min_size=1, max_size=4).map(tuple), st.booleans()),
)


@pytest.fixture
def a_long_grid() -> Grid:
    """Unlike along its axes, so that a swapped index falls outside."""
    return Grid.at((100, 50, 20), spacing=(1, 1, 3), origin=(-40, 10, 5))


# ---- What a prompt is


def test_positions_become_plain_floats():
    click = Click(np.array([1, 2, 3], np.float32))
    assert click.position == (1.0, 2.0, 3.0)
    assert type(click.position[0]) is float
    assert hash(click) == hash(Click((1, 2, 3)))


@pytest.mark.parametrize(
    "position", [(1, 2), (1, 2, 3, 4), (1, 2, np.nan), (np.inf, 0, 0), ("a", 1, 2), 5, None, "123"]
)
def test_a_position_that_is_not_three_numbers_is_refused(position):
    with pytest.raises(BadInput, match="a position is three"):
        Click(position)


def test_a_scribble_without_points_is_refused():
    with pytest.raises(BadInput, match="at least one point"):
        Scribble(())


def test_a_mask_hint_fits_its_grid_and_counts_above_zero():
    grid = Grid.at((2, 2, 2))
    hint = MaskHint(np.array([[[0, 0.2], [-1, 3]]] * 2), grid)
    assert hint.mask.dtype == bool
    assert hint.mask.sum() == 4
    assert hint == MaskHint(hint.mask, grid)
    with pytest.raises(BadInput, match="does not fit"):
        MaskHint(np.zeros((2, 2, 3)), grid)


# ---- Spaces


def test_the_same_click_in_three_spaces(a_long_grid):
    voxel = from_record({"type": "point", "position": [10, 20, 5]}, a_long_grid, "voxel")
    ras = from_record({"type": "point", "position": [-30, 30, 20]}, a_long_grid, "ras")
    lps = from_record({"type": "point", "position": [30, -30, 20]}, a_long_grid, "lps")
    assert voxel == ras == lps == Click((-30, 30, 20))


def test_voxels_may_be_fractions_and_mean_the_order_of_the_file(an_oblique_grid):
    click = from_record({"type": "point", "position": [1.5, 2, 3]}, an_oblique_grid, "voxel")
    np.testing.assert_allclose(an_oblique_grid.to_voxels(click.position), (1.5, 2, 3), atol=1e-9)


def test_millimetres_are_ras_unless_said_otherwise(a_long_grid):
    assert from_record({"type": "point", "position": [1, 2, 3]}, a_long_grid) == Click((1, 2, 3))


@pytest.mark.parametrize("space", ["RAS", "world", "", None])
def test_an_unknown_space_is_refused(a_long_grid, space):
    with pytest.raises(BadInput, match="voxel, ras or lps"):
        from_record({"type": "point", "position": [1, 2, 3]}, a_long_grid, space)


# ---- Records


@given(prompts)
def test_a_prompt_survives_json(prompt):
    record = json.loads(json.dumps(to_record(prompt)))
    assert from_record(record, Grid.at((2, 2, 2))) == prompt


def test_a_click_is_positive_unless_said_otherwise(a_long_grid):
    assert from_record({"type": "point", "position": [1, 2, 3]}, a_long_grid).positive
    assert not from_record({"type": "point", "position": [1, 2, 3], "positive": False}, a_long_grid).positive


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"type": "circle"}, "point, box, scribble or mask, got 'circle'"),
        ({"position": [1, 2, 3]}, "got None"),
        ({"type": "point"}, "needs the field 'position'"),
        ({"type": "box", "low": [1, 2, 3]}, "needs the field 'high'"),
        ({"type": "point", "position": [1, 2]}, "three finite numbers"),
        ({"type": "point", "position": "1,2,3"}, "three numbers"),
        ({"type": "scribble", "points": 5}, "not a list of numbers"),
        ({"type": "scribble", "points": []}, "at least one point"),
        ({"type": "point", "position": [1, 2, 3], "positive": "no"}, "true or false, got 'no'"),
    ],
)
def test_a_record_that_makes_no_sense_is_refused_in_one_line(a_long_grid, record, message):
    with pytest.raises(BadInput, match=message) as refusal:
        from_record(record, a_long_grid)
    assert "\n" not in str(refusal.value)


def test_a_mask_has_no_record():
    with pytest.raises(BadInput, match="as a file"):
        to_record(MaskHint(np.zeros((2, 2, 2)), Grid.at((2, 2, 2))))


# ---- Inside and outside


def test_a_click_outside_is_refused_with_the_extent_of_the_volume(a_long_grid):
    with pytest.raises(PromptOutside) as refusal:
        require_inside(Click((200, 20, 20)), a_long_grid, "ct")
    message = str(refusal.value)
    assert "click at 200,20,20 mm (RAS+), voxel 240,10,5, lies outside ct" in message
    assert "-40.5,9.5,3.5 to 59.5,59.5,63.5 mm" in message
    assert "voxels 0,0,0 to 99,49,19" in message
    assert "\n" not in message


def test_voxels_in_the_wrong_order_are_refused_with_a_hint(a_long_grid):
    click = from_record({"type": "point", "position": [5, 20, 90]}, a_long_grid, "voxel")
    with pytest.raises(PromptOutside, match="check the order of the axes and --space"):
        require_inside(click, a_long_grid, "ct")


@pytest.mark.parametrize(
    "prompt",
    [
        Box((0, 20, 20), (0, 20, 100)),
        Box((-100, 20, 20), (0, 20, 20)),
        Scribble(((0, 20, 20), (0, 20, 20), (0, 0, 20))),
        MaskHint(np.ones((2, 2, 2)), Grid.at((2, 2, 2), origin=(500, 0, 0))),
    ],
)
def test_anything_that_reaches_outside_is_refused(a_long_grid, prompt):
    with pytest.raises(PromptOutside, match="outside ct"):
        PromptSet([Click((0, 20, 20)), prompt]).require_inside(a_long_grid, "ct")


def test_the_outer_faces_are_inside(a_long_grid):
    low, high = a_long_grid.extent()
    PromptSet([Click(tuple(low)), Click(tuple(high)), Box(tuple(low), tuple(high))]).require_inside(a_long_grid, "ct")


# ---- On a grid


def test_prompts_become_voxels_only_on_a_grid(an_oblique_grid):
    where = an_oblique_grid.to_world([(1, 2, 3), (4, 5, 6), (7, 8, 9)])
    prompts = PromptSet([Click(tuple(where[0])), Scribble(tuple(map(tuple, where[1:])), positive=False)])
    on = prompts.on(an_oblique_grid)
    np.testing.assert_allclose(on.points, [(1, 2, 3), (4, 5, 6), (7, 8, 9)], atol=1e-9)
    np.testing.assert_array_equal(on.labels, [True, False, False])
    assert on.boxes.shape == (0, 2, 3)
    assert on.mask is None


def test_a_box_is_ordered_along_the_axes_of_the_grid_it_is_used_on(an_oblique_grid):
    a, b = an_oblique_grid.to_world([(10, 5, 8), (2, 9, 8)])
    on = PromptSet([Box(tuple(a), tuple(b))]).on(an_oblique_grid)
    np.testing.assert_allclose(on.boxes, [[(2, 5, 8), (10, 9, 8)]], atol=1e-9)


def test_the_last_mask_counts_and_comes_onto_the_grid():
    grid = Grid.at((4, 4, 4))
    first, last = np.zeros((4, 4, 4)), np.zeros((2, 2, 2))
    last[0] = 1
    coarse = Grid.at((2, 2, 2), spacing=2, origin=(0.5, 0.5, 0.5))
    mask = PromptSet([MaskHint(first, grid), MaskHint(last, coarse)]).on(grid).mask
    assert mask.dtype == np.float32
    assert mask.shape == (4, 4, 4)
    assert (mask[0] == 1).all()
    assert (mask[3] == 0).all()


def test_points_can_be_asked_for_by_sign():
    prompts = PromptSet([Click((1, 1, 1)), Click((2, 2, 2), positive=False), Box((0, 0, 0), (1, 1, 1))])
    np.testing.assert_array_equal(prompts.points(), [(1, 1, 1), (2, 2, 2)])
    np.testing.assert_array_equal(prompts.points(positive=False), [(2, 2, 2)])
    assert PromptSet().points().shape == (0, 3)
    assert len(prompts) == 3
    assert [len(positions(prompt)) for prompt in prompts] == [1, 1, 2]


# ---- In messages


@pytest.mark.parametrize(
    ("place", "told"),
    [
        ((10, 10, -1.721e-15), "10,10,0"),
        ((-4.038e-17, 0.1 + 0.2, 12.3456), "0,0.3,12.35"),
        ((-40.5, 239.999999999, 0.0625), "-40.5,240,0.0625"),
        ((123456.7, -99999, 9999), "123457,-99999,9999"),
    ],
)
def test_a_position_is_told_as_a_person_would_type_it(place, told):
    assert shown(place) == told


def test_rounding_shows_in_no_refusal(a_long_grid):
    with pytest.raises(PromptOutside, match=r"at -40\.3,10,-995 mm \(RAS\+\), voxel -0\.3,0,-333\.3, lies"):
        require_inside(Click((-40.1 - 0.2, 10 + 1e-15, -995)), a_long_grid, "ct")
