"""How much a mask depends on where one clicked."""

from __future__ import annotations

import numpy as np
import pytest

from volsam.geometry import Grid
from volsam.inference.session import Session
from volsam.inference.uncertainty import BATCH, Uncertainty
from volsam.prompts import PromptSet


def maps(probability, spread=None, spacing: float = 1.0) -> Uncertainty:
    probability = np.asarray(probability, dtype=np.float32)
    probability = probability.reshape(probability.shape + (1,) * (3 - probability.ndim))
    spread = np.zeros_like(probability) if spread is None else np.asarray(spread, np.float32).reshape(probability.shape)
    return Uncertainty(probability, spread, Grid.at(probability.shape, spacing))


@pytest.fixture
def a_session(a_model, a_bowl) -> Session:
    session = Session(a_model, a_bowl.volume)
    session.add(a_bowl.click("flesh"))
    session.add(a_bowl.click("stone"))
    session.add(a_bowl.click("air", positive=False))
    return session


# ---- Bands


def test_bands_are_tenths_of_probability():
    edges = np.arange(11) / 10
    assert maps(edges).bands().ravel().tolist() == [0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert maps(edges[:-1] + 0.05).bands().ravel().tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert maps(edges[:-1] + 0.001).bands().ravel().tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert maps(edges[1:] - 0.001).bands().ravel().tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]


def test_bands_are_small_whole_numbers_of_the_shape_of_the_map():
    bands = maps(np.random.default_rng(0).random((4, 5, 6))).bands()
    assert bands.dtype == np.uint8
    assert bands.shape == (4, 5, 6)
    assert bands.max() <= 9


# ---- Where to click


def test_the_least_certain_place_is_in_the_middle_of_the_largest_doubt():
    probability = np.zeros((20, 20, 20))
    probability[:10] = 1
    probability[12:17, 4:9, 5:10] = 0.5
    probability[2, 2, 2] = 0.5
    asked = maps(probability, spacing=2.0)
    assert asked.least_certain(asked.grid) == (28, 12, 14)


def test_where_all_is_certain_there_is_nowhere_to_click():
    probability = np.zeros((6, 6, 6))
    probability[2:4] = 0.97
    asked = maps(probability)
    assert asked.least_certain(asked.grid) is None


def test_a_spread_is_a_doubt_too():
    spread = np.zeros((9, 9, 9))
    spread[3:6, 3:6, 3:6] = 0.4
    asked = maps(np.ones((9, 9, 9)), spread)
    assert asked.least_certain(asked.grid) == (4, 4, 4)


def test_doubt_outside_the_volume_does_not_count():
    probability = np.zeros((20, 20, 20))
    probability[12:20, 2:18, 2:18] = 0.5
    probability[3:6, 3:6, 3:6] = 0.5
    asked = maps(probability)
    assert asked.least_certain(Grid.at((10, 20, 20))) == (4, 4, 4)
    assert asked.least_certain(Grid.at((2, 20, 20))) is None
    assert asked.least_certain(Grid.at((14, 20, 20)))[0] < 14


# ---- The ensemble


def test_maps_lie_on_half_the_region_and_can_be_put_on_the_volume(a_session, a_bowl):
    found = a_session.uncertainty(size=9)
    assert found.grid == a_session._answer.roi.coarsened(2)
    assert found.probability.shape == found.spread.shape == found.grid.shape == (16, 16, 16)
    assert found.probability.min() >= 0
    assert found.probability.max() <= 1
    assert found.spread.min() >= 0
    probability, spread = found.on(a_bowl.grid)
    assert probability.shape == spread.shape == a_bowl.grid.shape
    assert a_bowl.parts(a_bowl.volume.with_data(probability > 0.5)) == {"flesh", "stone"}
    assert probability[39, 35, 31] == 0, "outside the region"


def test_the_same_seed_gives_the_same_maps(an_untrained_model, a_bowl):
    session = Session(an_untrained_model, a_bowl.volume)
    session.add(a_bowl.click("flesh"))
    one, same, other = (session.uncertainty(size=5, seed=seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(one.probability, same.probability)
    np.testing.assert_array_equal(one.spread, same.spread)
    assert not np.array_equal(one.probability, other.probability)
    assert session.next_click() == session.next_click()


def test_every_member_has_one_click_in_the_mask_and_all_refusals(a_session, a_model, a_bowl):
    asked = len(a_model.asked)
    a_session.uncertainty(size=2 * BATCH + 3)
    members = a_model.asked[asked:]
    assert len(members) == 2 * BATCH + 3
    roi, mask = a_session._answer.roi, a_session._answer.decoded.low_res > 0
    for member in members:
        assert member.labels.tolist() == [False, True]
        np.testing.assert_allclose(roi.to_world(member.points[0]), a_bowl.at("air"))
        assert mask[tuple(np.round((member.points[1] - 0.5) / 2).astype(int))]
    assert len({tuple(member.points[1]) for member in members}) > 5


def test_uncertainty_changes_neither_the_mask_nor_the_log(a_session):
    before, standing = a_session.mask.data.copy(), a_session.prompts
    a_session.uncertainty(size=4)
    a_session.next_click()
    np.testing.assert_array_equal(a_session.mask.data, before)
    assert a_session.prompts == standing


def test_an_empty_mask_has_its_own_probability_and_no_spread(stubborn, a_bowl):
    session = Session(stubborn(-1.0), a_bowl.volume)
    session.add_all(PromptSet([a_bowl.click("stone"), a_bowl.click("berry")]))
    found = session.uncertainty(size=4)
    np.testing.assert_allclose(found.probability, 1 / (1 + np.e), rtol=1e-6)
    assert not found.spread.any()
