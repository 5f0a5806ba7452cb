"""Click, score, correct."""

from math import isnan

import numpy as np
import pytest

from volsam.errors import BadInput
from volsam.evaluation.protocol import clicks_protocol
from volsam.geometry import Grid
from volsam.volume import Volume


@pytest.fixture
def a_volume():
    return Volume(np.zeros((16, 16, 16), np.float32), Grid.at((16, 16, 16), (1, 1, 2)))


@pytest.fixture
def an_object():
    mask = np.zeros((16, 16, 16), dtype=bool)
    mask[3:12, 4:11, 5:9] = True
    return mask


def a_painter(volume):
    """Paints a ball of 3 mm around each positive click, rubs one out around each negative one."""
    mask = np.zeros(volume.grid.shape, dtype=bool)
    centers = volume.grid.to_world(np.moveaxis(np.indices(volume.grid.shape), 0, -1))

    def add(click):
        mask[np.linalg.norm(centers - click.position, axis=-1) <= 3] = click.positive
        return mask.copy()

    return add


def a_knower(target):
    """Knows the object at the second click."""
    seen = []

    def add(click):
        seen.append(click)
        return target if len(seen) > 1 else np.zeros_like(target)

    return add


def test_every_click_gets_a_score_and_they_rise(a_volume, an_object):
    scores = clicks_protocol(a_painter, a_volume, an_object, clicks=8)
    assert len(scores) == 8
    assert scores[0].click.positive
    assert scores[-1].dice > scores[0].dice > 0
    assert scores[-1].nsd > scores[0].nsd


def test_each_object_starts_afresh(a_volume, an_object):
    first = clicks_protocol(a_painter, a_volume, an_object, clicks=3)
    again = clicks_protocol(a_painter, a_volume, an_object, clicks=3)
    assert [score.dice for score in first] == [score.dice for score in again]
    assert [score.click for score in first] == [score.click for score in again]


def test_the_score_stays_once_nothing_is_left_to_correct(a_volume, an_object):
    scores = clicks_protocol(lambda volume: a_knower(an_object), a_volume, an_object, clicks=5)
    assert [score.dice for score in scores] == [0, 1, 1, 1, 1]
    assert [score.nsd for score in scores] == [0, 1, 1, 1, 1]
    assert [score.click is None for score in scores] == [False, False, True, True, True]
    assert all(score.seconds == 0 for score in scores[2:])


def test_the_surface_score_can_be_left_out(a_volume, an_object):
    scores = clicks_protocol(a_painter, a_volume, an_object, clicks=2, tolerance_mm=None)
    assert all(isnan(score.nsd) for score in scores)


def test_the_surface_score_can_use_another_spacing(a_volume, an_object):
    def one_slice_off(volume):
        return lambda click: np.roll(an_object, 1, axis=2)

    own = clicks_protocol(one_slice_off, a_volume, an_object, clicks=1, tolerance_mm=1.0)
    other = clicks_protocol(one_slice_off, a_volume, an_object, clicks=1, tolerance_mm=1.0, spacing=(1, 1, 1))
    assert own[0].nsd < other[0].nsd == 1


def test_an_object_of_another_shape_is_refused(a_volume, an_object):
    with pytest.raises(BadInput, match="does not lie on the grid"):
        clicks_protocol(a_painter, a_volume, an_object[1:])
