"""What the picture of a mask shows, and where."""

import numpy as np
import pytest

from volsam.geometry import Grid
from volsam.inference.preview import CONTOUR, MARGIN, OUTSIDE, TITLE, draw
from volsam.prompts import Box, Click, PromptSet, Scribble
from volsam.volume import Volume

pytestmark = pytest.mark.slow


def a_cube(grid: Grid, low: tuple[int, int, int], high: tuple[int, int, int]) -> Volume:
    mask = np.zeros(grid.shape, np.uint8)
    mask[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = 1
    return Volume(mask, grid)


def a_scan(grid: Grid) -> Volume:
    return Volume(np.random.default_rng(3).normal(100, 20, grid.shape).astype(np.int16), grid, "scan")


def places_of(picture, colour) -> np.ndarray:
    """Columns and rows (n, 2) of the pixels of about one colour."""
    apart = np.abs(np.asarray(picture).astype(int) - colour).max(axis=-1)
    return np.argwhere(apart < 40)[:, ::-1]


@pytest.mark.parametrize("axes", ["RAS", "LPS", "PIR", "SAL", "IRA"])
def test_the_patients_right_is_on_the_left_however_the_file_is_stored(axes):
    ras = Grid.at((40, 40, 40), 2.0)
    grid = ras.reoriented(axes)
    low, high = ras.to_world([(28, 12, 8), (36, 18, 14)])
    voxels = np.sort(grid.to_voxels([low, high]), axis=0).round().astype(int)
    mask = a_cube(grid, tuple(voxels[0]), tuple(voxels[1] + 1))
    picture = draw(a_scan(grid), mask, PromptSet([Click((low + high) / 2)]))
    outline = places_of(picture, CONTOUR)
    axial = outline[outline[:, 0] < picture.width / 3]
    assert len(axial) > 50
    assert axial[:, 0].max() < MARGIN + 0.35 * picture.width / 3


def test_all_planes_have_one_scale(a_small_ct, a_ball):
    """A ball is round in every plane, whatever the shape of its voxels."""
    grid = Grid.at((60, 60, 24), (1.0, 1.0, 2.5))
    voxels = np.stack(np.indices(grid.shape), axis=-1)
    center = grid.to_world((30, 30, 12))
    ball = np.linalg.norm(grid.to_world(voxels) - center, axis=-1) < 20
    picture = draw(a_scan(grid), Volume(ball.astype(np.uint8), grid), PromptSet([Click(center)]))
    outline = places_of(picture, CONTOUR)
    panels = np.split(outline[np.argsort(outline[:, 0])], np.flatnonzero(np.diff(np.sort(outline[:, 0])) > 40) + 1)
    assert len(panels) == 3
    sizes = np.array([np.ptp(panel, axis=0) for panel in panels])
    assert sizes.max() / sizes.min() < 1.15


def test_a_negative_click_has_its_own_shape_and_colour():
    grid = Grid.at((40, 40, 40))
    mask = a_cube(grid, (10, 10, 10), (30, 30, 30))
    inside = Click((20, 20, 20))
    with_one = draw(a_scan(grid), mask, PromptSet([Click((12, 20, 20), positive=False), inside]))
    without = draw(a_scan(grid), mask, PromptSet([inside]))
    assert len(places_of(with_one, OUTSIDE)) > 30
    assert len(places_of(without, OUTSIDE)) == 0


def test_boxes_and_scribbles_are_drawn():
    grid = Grid.at((40, 40, 40))
    mask = a_cube(grid, (10, 10, 10), (30, 30, 30))
    plain = draw(a_scan(grid), mask, PromptSet([Click((20, 20, 20))]))
    more = [
        Box((5, 5, 5), (35, 35, 35)),
        Scribble(((18, 20, 20), (26, 20, 20))),
        Scribble(((2, 2, 2),), positive=False),
    ]
    marked = draw(a_scan(grid), mask, PromptSet([*more, Click((20, 20, 20))]))
    assert marked.size == plain.size
    assert np.asarray(marked).tobytes() != np.asarray(plain).tobytes()


def test_an_empty_mask_still_gives_the_planes():
    grid = Grid.at((20, 20, 20))
    picture = draw(a_scan(grid), Volume(np.zeros(grid.shape, np.uint8), grid))
    assert len(places_of(picture, CONTOUR)) == 0
    assert np.asarray(picture).std() > 20


@pytest.mark.parametrize("shape", [(1, 1, 1), (30, 1, 1), (1, 30, 20), (7, 5, 3), (2, 2, 200)])
def test_small_and_thin_volumes_have_a_picture(shape):
    grid = Grid.at(shape, (0.01, 0.01, 0.02))
    picture = draw(a_scan(grid), a_cube(grid, (0, 0, 0), shape))
    assert 200 < picture.width < 2000
    assert TITLE < picture.height < 1000


def test_a_constant_volume_has_a_picture():
    grid = Grid.at((20, 20, 20))
    assert draw(Volume(np.full(grid.shape, 7, np.uint8), grid), a_cube(grid, (5, 5, 5), (9, 9, 9))).width > 0


def test_only_planes_are_read_of_a_large_volume():
    """A volume that could not be held twice: its voxels are one value seen many times over."""
    grid = Grid.at((2000, 2000, 2000), 0.3)
    data = np.broadcast_to(np.int16(50), grid.shape)
    mask = np.broadcast_to(np.uint8(0), grid.shape)
    voxels = np.zeros((1, 1, 1), np.uint8)
    assert draw(Volume(data, grid, "vast"), Volume(voxels, grid.crop((9, 9, 9), (10, 10, 10)))).width > 0
    assert mask.shape == grid.shape


def test_a_long_name_is_shortened_to_fit():
    grid = Grid.at((20, 20, 20))
    volume = a_scan(grid)
    named = Volume(volume.data, grid, "x" * 400)
    assert (
        draw(named, a_cube(grid, (5, 5, 5), (9, 9, 9))).width == draw(volume, a_cube(grid, (5, 5, 5), (9, 9, 9))).width
    )


def test_a_ct_has_the_window_of_its_tissue():
    """Soft tissue is shown from -160 to 240 HU, so 40 HU is the middle grey, even where no air is in view."""
    grid = Grid.at((300, 60, 60))
    values = np.full(grid.shape, 40, np.int16)
    values[:100] = -1000
    picture = draw(Volume(values, grid), a_cube(grid, (250, 20, 20), (260, 40, 40)))
    shade = np.asarray(picture)[TITLE + 30, MARGIN + 60]
    assert np.abs(shade.astype(int) - 128).max() <= 1


def test_bone_and_lung_have_windows_of_their_own():
    grid = Grid.at((60, 60, 60))
    for value, shade in ((300, 128), (700, 196), (-600, 128)):
        values = np.full(grid.shape, value, np.int16)
        values[:4, :4, :4] = -1000
        picture = draw(Volume(values, grid), a_cube(grid, (20, 20, 20), (40, 40, 40)))
        found = int(np.asarray(picture)[TITLE + 60, MARGIN + 100, 0])
        assert found == pytest.approx(255 if value == 300 else shade, abs=2)
