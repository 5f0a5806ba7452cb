import numpy as np
import pytest

from volsam.errors import BadInput
from volsam.geometry import Grid
from volsam.volume import Volume


@pytest.fixture
def a_grid() -> Grid:
    return Grid.at((4, 5, 6), spacing=2)


def test_three_axes_are_one_channel(a_grid):
    volume = Volume(np.zeros((4, 5, 6), np.int16), a_grid)
    assert volume.data.shape == (1, 4, 5, 6)
    assert volume.channels == 1


def test_four_axes_are_channels_first(a_grid):
    assert Volume(np.zeros((3, 4, 5, 6)), a_grid).channels == 3


@pytest.mark.parametrize("shape", [(5, 4, 6), (4, 5, 6, 3), (4, 5), (1, 1, 4, 5, 6)])
def test_data_that_do_not_fit_the_grid_are_refused_by_name(a_grid, shape):
    with pytest.raises(BadInput, match="ct: data of shape"):
        Volume(np.zeros(shape), a_grid, "ct")


def test_the_data_are_not_copied_and_keep_their_type(a_grid):
    values = np.zeros((4, 5, 6), np.uint8)
    assert np.shares_memory(Volume(values, a_grid).data, values)
    assert Volume(values, a_grid).data.dtype == np.uint8


def test_other_values_on_the_same_grid_keep_name_and_header(a_grid):
    volume = Volume(np.zeros((4, 5, 6)), a_grid, "ct", header="what the file said")
    mask = volume.with_data(volume.data > 0)
    assert (mask.grid, mask.name, mask.header) == (a_grid, "ct", "what the file said")
    assert volume.with_data(volume.data > 0, "liver").name == "liver"


def test_a_volume_says_what_it_is(a_grid):
    volume = Volume(np.zeros((4, 5, 6), np.int16), a_grid, "ct")
    assert repr(volume) == "Volume(ct, 1 × Grid(4 × 5 × 6, 2 × 2 × 2 mm, RAS), int16)"
    assert volume.megabytes == 240 / 2**20
