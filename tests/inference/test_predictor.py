"""From prompts to a mask in a region, and from there to the voxels of the scan."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from volsam.geometry import Grid
from volsam.inference import painting
from volsam.inference import predictor as predictor_module
from volsam.inference.model import Decoded, DensePromptModel
from volsam.inference.painting import Answer, paint
from volsam.inference.predictor import Predictor, thinned
from volsam.inference.session import Session
from volsam.prompts import Box, Click, MaskHint, PromptSet, Scribble
from volsam.volume import Volume


@pytest.fixture
def a_predictor(a_model, a_bowl) -> Predictor:
    return Predictor(a_model, a_bowl.volume)


def painted(answer, prompts, grid) -> np.ndarray:
    patch = paint(answer, prompts, grid)
    mask = np.zeros(grid.shape, bool)
    mask[patch.window] = patch.mask
    return mask


# ---- Encoding, the costly step


def test_a_region_is_encoded_once(a_predictor, a_model, a_bowl):
    a_predictor(PromptSet([a_bowl.click("stone")]))
    first = len(a_model.encoded)
    assert first == len(set(a_model.encoded)) <= predictor_module.KEPT_REGIONS
    a_predictor(PromptSet([a_bowl.click("stone")]))
    assert len(a_model.encoded) == first


def test_a_later_click_in_the_same_region_encodes_nothing(a_predictor, a_model, a_bowl):
    prompts = [a_bowl.click("flesh"), a_bowl.click("stone"), a_bowl.click("stone", False), a_bowl.click("rind")]
    answer = a_predictor(PromptSet(prompts[:1]))
    encoded = len(a_model.encoded)
    for count in range(2, len(prompts) + 1):
        answer = a_predictor(PromptSet(prompts[:count]), answer)
        assert answer.roi in a_model.encoded
    assert len(a_model.encoded) == encoded


def test_only_so_many_regions_are_kept(a_predictor, a_model, a_bowl):
    regions = [a_bowl.grid.around(a_bowl.at("stone"), (32,) * 3, 1 + 0.1 * step) for step in range(10)]
    for roi in regions:
        a_predictor.encoded(roi)
    a_predictor.encoded(regions[-1])
    assert len(a_model.encoded) == 10
    a_predictor.encoded(regions[0])
    assert len(a_model.encoded) == 11


def test_prompts_without_anything_in_the_object_are_not_looked_at(a_predictor, a_model, a_bowl):
    nothing = MaskHint(np.zeros(a_bowl.grid.shape), a_bowl.grid)
    assert a_predictor(PromptSet()) is None
    assert a_predictor(PromptSet([a_bowl.click("air", positive=False), nothing])) is None
    assert a_model.encoded == []


# ---- Which region


def test_the_first_click_is_seen_at_several_zooms_and_the_best_expectation_wins(a_predictor, a_model, a_bowl):
    answer = a_predictor(PromptSet([a_bowl.click("berry")]))
    assert len(a_model.encoded) > 2
    for roi in a_model.encoded:
        np.testing.assert_allclose(roi.to_voxels(a_bowl.at("berry")), 15.5, atol=1e-6)
    assert answer.quality == max(
        a_model.decode(a_predictor.encoded(roi), PromptSet([a_bowl.click("berry")]).on(roi), None).quality
        for roi in a_model.encoded
    )


def test_several_first_clicks_are_seen_together(a_predictor, a_bowl):
    answer = a_predictor(PromptSet([a_bowl.click("flesh"), a_bowl.click("berry")]))
    assert answer.roi.contains([a_bowl.at("flesh"), a_bowl.at("berry")]).all()


def test_a_box_chooses_the_region_alone(a_predictor, a_model, a_bowl):
    answer = a_predictor(PromptSet([Box(a_bowl.at((4, 6, 6)), a_bowl.at((24, 26, 26)))]))
    assert len(a_model.encoded) == 1
    np.testing.assert_allclose(answer.roi.to_voxels(a_bowl.at((14, 16, 16))), 15.5, atol=1e-6)


def test_the_region_is_widened_when_the_object_reaches_its_border(a_predictor, a_model, a_bowl):
    first = a_predictor(PromptSet([a_bowl.click("stone")]))
    assert not first.roi.contains([a_bowl.at((5, 16, 16)), a_bowl.at((23, 16, 16))]).any(), "it sees the stone only"
    prompts = PromptSet([a_bowl.click("stone"), a_bowl.click((14, 16, 22))])
    second = a_predictor(prompts, first)
    assert second.roi.spacing[0] > 1.3 * first.roi.spacing[0]
    mask = painted(second, prompts, a_bowl.grid)
    assert a_bowl.parts(Volume(mask, a_bowl.grid)) == {"stone", "flesh"}
    assert mask[a_bowl.flesh].mean() > 0.85


def test_a_click_in_the_object_outside_the_region_moves_it(a_predictor, a_bowl):
    first = a_predictor(PromptSet([a_bowl.click("stone")]))
    assert not first.roi.contains(a_bowl.at("berry"))
    second = a_predictor(PromptSet([a_bowl.click("stone"), a_bowl.click("berry")]), first)
    assert second.roi.contains([a_bowl.at("stone"), a_bowl.at("berry")]).all()


def test_a_negative_click_outside_the_region_is_looked_at_too(a_predictor, a_model, a_bowl):
    first = a_predictor(PromptSet([a_bowl.click("stone")]))
    encoded = len(a_model.encoded)
    a_predictor(PromptSet([a_bowl.click("stone"), a_bowl.click("berry", positive=False)]), first)
    assert a_model.encoded[encoded].contains([a_bowl.at("stone"), a_bowl.at("berry")]).all()


def test_the_last_mask_goes_with_the_region(a_predictor, a_model, a_bowl):
    first = a_predictor(PromptSet([a_bowl.click("stone")]))
    a_predictor(PromptSet([a_bowl.click("stone"), a_bowl.click("air", positive=False)]), first)
    fed = a_model.fed[-1]
    assert fed.dtype == np.float32
    assert fed.shape == (16, 16, 16)
    roi = a_model.encoded[-1]
    assert roi != first.roi
    seen = roi.coarsened(2).to_world(np.argwhere(fed > 0))
    assert np.linalg.norm(seen - a_bowl.at("stone"), axis=1).max() < 1.5 * 7


# ---- Boxes


def told(a_model, monkeypatch, ask) -> list[tuple[list[bool], np.ndarray]]:
    """Signs and places of the clicks of every question that `ask` leads to."""
    seen, decode = [], a_model.decode

    def spy(encoded, prompts, previous):
        seen.append((prompts.labels.tolist(), prompts.points))
        return decode(encoded, prompts, previous)

    monkeypatch.setattr(a_model, "decode", spy)
    ask()
    return seen


def test_a_click_outside_after_a_box_does_not_leave_the_object_without_a_click_inside(
    a_predictor, a_model, a_bowl, monkeypatch
):
    box = Box(a_bowl.at((4, 6, 6)), a_bowl.at((24, 26, 26)))
    first = a_predictor(PromptSet([box]))
    away = a_bowl.click("stone", positive=False)
    (signs, points), *_ = told(a_model, monkeypatch, lambda: a_predictor(PromptSet([box, away]), first))
    assert signs == [True, False]
    inside = first.roi.to_world(points[0])
    voxel = np.round(first.low_res_grid.to_voxels(inside)).astype(int)
    assert first.decoded.low_res[tuple(voxel)] > 0, "it lies in the mask so far"
    wrong = np.round(first.low_res_grid.to_voxels(a_bowl.at("stone"))).astype(int)
    assert tuple(voxel) != tuple(wrong), "and not where it is wrong"


def test_what_a_box_alone_is_worth_is_asked_with_a_click_in_its_mask(a_predictor, a_model, a_bowl, monkeypatch):
    box = Box(a_bowl.at((4, 6, 6)), a_bowl.at((24, 26, 26)))
    answers = []
    monkeypatch.setattr(a_model, "_expectation", lambda mask: 0.9 if len(a_model.asked[-1].points) else 0.1)
    asked = told(a_model, monkeypatch, lambda: answers.append(a_predictor(PromptSet([box]))))
    assert [signs for signs, _ in asked][-1] == [True]
    assert answers[0].quality == 0.9
    inside = np.round(answers[0].low_res_grid.to_voxels(answers[0].roi.to_world(asked[-1][1][0]))).astype(int)
    assert answers[0].decoded.low_res[tuple(inside)] > 0
    before = len(a_model.asked)
    a_predictor(PromptSet([a_bowl.click("stone")]))
    assert all(len(prompts.points) == 1 for prompts in a_model.asked[before:]), "clicks are enough by themselves"


def test_a_box_and_clicks_inside_are_told_as_they_are(a_predictor, a_model, a_bowl, monkeypatch):
    box = Box(a_bowl.at((4, 6, 6)), a_bowl.at((24, 26, 26)))
    clicks = [a_bowl.click("stone", positive=False), a_bowl.click("flesh")]
    first = a_predictor(PromptSet([box]))
    for signs, _ in told(a_model, monkeypatch, lambda: a_predictor(PromptSet([box, *clicks]), first)):
        assert signs == [False, True]


def test_clicks_alone_are_told_as_they_are(a_predictor, a_model, a_bowl, monkeypatch):
    first, away = a_bowl.click("stone"), a_bowl.click("flesh", positive=False)
    answer = a_predictor(PromptSet([first]))
    for signs, _ in told(a_model, monkeypatch, lambda: a_predictor(PromptSet([first, away]), answer)):
        assert signs == [True, False]


def test_a_box_of_two_slices_is_no_flat_one(a_predictor, a_bowl):
    prompts = PromptSet([Box(a_bowl.at((24, 15, 13)), a_bowl.at((37, 29, 14)))])
    places = np.argwhere(painted(a_predictor(prompts), prompts, a_bowl.grid))
    assert len(places) > 50
    assert places[:, 2].min() >= 12
    assert places[:, 2].max() <= 15


# ---- Painting


def answer_in(roi: Grid, logits: np.ndarray, corner: tuple[int, int, int] = (0, 0, 0)) -> Answer:
    part = tuple((start, start + size) for start, size in zip(corner, logits.shape, strict=True))
    return Answer(roi, Decoded(np.zeros((2, 2, 2), np.float32), logits.astype(np.float32), part, 0.5))


def test_nothing_said_paints_nothing(a_bowl):
    assert not painted(None, PromptSet(), a_bowl.grid).any()
    assert paint(None, PromptSet([a_bowl.click("air", positive=False)]), a_bowl.grid).mask.size == 0


def test_logits_are_painted_where_their_part_lies():
    grid = Grid.at((20, 20, 20))
    logits = np.where(np.random.default_rng(0).random((4, 6, 8)) > 0.5, 3.0, -3.0)
    expected = np.zeros(grid.shape, bool)
    expected[7:11, 6:12, 5:13] = logits > 0
    answer = answer_in(grid.crop((5, 4, 3), (15, 14, 13)), logits, corner=(2, 2, 2))
    np.testing.assert_array_equal(painted(answer, PromptSet(), grid), expected)


def test_a_region_may_reach_beyond_the_scan():
    grid = Grid.at((10, 10, 10))
    answer = answer_in(grid.crop((-4, -4, -4), (4, 4, 4)), np.ones((8, 8, 8)))
    mask = painted(answer, PromptSet(), grid)
    assert mask[:4, :4, :4].all()
    assert mask.sum() == 64
    elsewhere = answer_in(grid.crop((30, 0, 0), (38, 8, 8)), np.ones((8, 8, 8)))
    assert not painted(elsewhere, PromptSet(), grid).any()
    click = PromptSet([Click((9, 9, 9))])
    assert np.argwhere(painted(elsewhere, click, grid)).tolist() == [[9, 9, 9]]


def test_a_large_mask_is_painted_slab_by_slab(monkeypatch, a_predictor, a_bowl):
    prompts = PromptSet([a_bowl.click("flesh")])
    answer = a_predictor(prompts)
    whole = painted(answer, prompts, a_bowl.grid)
    monkeypatch.setattr(painting, "SLAB", 1)
    np.testing.assert_array_equal(painted(answer, prompts, a_bowl.grid), whole)


# ---- Scribbles


def test_of_a_long_scribble_the_model_sees_points_all_along_it():
    stroke = Scribble(tuple((float(x), 0.0, 0.0) for x in range(1000)))
    points = thinned(PromptSet([stroke])).points()
    assert 40 <= len(points) <= predictor_module.MOST_POINTS
    assert points[0, 0] < 25
    assert points[-1, 0] > 975
    assert np.diff(points[:, 0]).max() < 25


def test_clicks_are_never_thinned_nor_is_any_scribble_lost():
    strokes = [Scribble(tuple((float(x), y, 0.0) for x in range(30)), positive=bool(y % 2)) for y in range(5)]
    clicks = [Click((float(x), 9.0, 9.0), positive=bool(x % 2)) for x in range(60)]
    mixed = PromptSet([*clicks[:20], *strokes, Scribble(((0.0, 0.0, 7.0),)), *clicks[20:]])
    seen = thinned(mixed)
    assert [prompt for prompt in seen if isinstance(prompt, Click)] == clicks
    assert len(seen) == len(mixed)
    assert [type(prompt) for prompt in seen] == [type(prompt) for prompt in mixed]
    assert [prompt.positive for prompt in seen] == [prompt.positive for prompt in mixed]
    assert thinned(PromptSet([strokes[0], *clicks])) == PromptSet([strokes[0], *clicks])


def test_a_negative_click_after_a_long_scribble_reaches_the_model(a_bowl, a_model):
    session = Session(a_model, a_bowl.volume)
    session.add(Scribble(tuple(a_bowl.at((14, row, 16)) for row in np.linspace(9, 23, 1000))))
    session.add(a_bowl.click("stone", positive=False))
    session.add(a_bowl.click("air", positive=False))
    assert a_model.asked[-1].labels.tolist().count(False) == 2
    assert a_model.asked[-1].labels.tolist().count(True) == predictor_module.MOST_POINTS
    assert a_bowl.parts(session.mask) == {"flesh"}


# ---- The dense prompt network behind the same interface


@pytest.fixture
def encoded(an_untrained_model, a_bowl):
    roi = a_bowl.grid.around(a_bowl.at("stone"), (32, 32, 32), 1.2)
    return roi, an_untrained_model.encode(a_bowl.volume, roi)


@pytest.fixture
def all_sorts(a_bowl) -> PromptSet:
    return PromptSet(
        [a_bowl.click("stone"), a_bowl.click("air", positive=False), Box(a_bowl.at((4, 6, 6)), a_bowl.at((24, 26, 26)))]
    )


def test_the_network_answers_in_numpy_half_and_full_size(an_untrained_model, encoded, all_sorts):
    roi, features = encoded
    decoded = an_untrained_model.decode(features, all_sorts.on(roi), None)
    assert decoded.low_res.shape == (16, 16, 16)
    assert decoded.low_res.dtype == decoded.logits.dtype == np.float32
    assert decoded.logits.shape == tuple(high - low for low, high in decoded.part)
    assert all(low % 2 == high % 2 == 0 and 0 <= low < high <= 32 for low, high in decoded.part)
    assert 0 < decoded.quality < 1


@pytest.mark.parametrize(
    "part",
    [
        (slice(0, 32), slice(0, 32), slice(0, 32)),
        (slice(4, 20), slice(0, 8), slice(10, 32)),
        (slice(30, 32), slice(14, 16), slice(0, 2)),
        (slice(2, 30), slice(2, 30), slice(2, 30)),
    ],
)
def test_a_part_is_refined_exactly_as_within_the_whole(an_untrained_model, encoded, all_sorts, part):
    roi, features = encoded
    network = an_untrained_model.network
    previous = an_untrained_model.decode(features, all_sorts.on(roi), None).low_res
    asked = an_untrained_model._prompts(features, [all_sorts.on(roi)], previous)
    with torch.inference_mode():
        whole = network.decode(features, asked).logits
        alone = network.refine(features, asked, network.draft(features, asked), part)
    # The same sums; a matrix product of another size may round its last digit otherwise.
    torch.testing.assert_close(alone, whole[(..., *part)], atol=1e-5, rtol=0)


def test_the_part_that_is_decoded_holds_all_that_may_be_object(an_untrained_model, encoded, all_sorts):
    roi, features = encoded
    decoded = an_untrained_model.decode(features, all_sorts.on(roi), None)
    asked = an_untrained_model._prompts(features, [all_sorts.on(roi)], None)
    with torch.inference_mode():
        whole = an_untrained_model.network.decode(features, asked).logits[0, 0].numpy()
    window = tuple(slice(*bounds) for bounds in decoded.part)
    np.testing.assert_array_equal(decoded.logits, whole[window])
    likely = np.argwhere(decoded.low_res > -2.5) * 2
    assert all(
        low <= places.min() and places.max() < high for (low, high), places in zip(decoded.part, likely.T, strict=True)
    )


def test_many_sets_of_prompts_are_answered_as_each_alone(an_untrained_model, a_bowl, encoded):
    roi, features = encoded
    sets = [
        PromptSet([a_bowl.click("stone")]).on(roi),
        PromptSet([a_bowl.click("flesh"), a_bowl.click("air", positive=False), a_bowl.click("rind")]).on(roi),
        PromptSet([Box(a_bowl.at((4, 6, 6)), a_bowl.at((24, 26, 26)))]).on(roi),
    ]
    previous = an_untrained_model.decode(features, sets[0], None).low_res
    for fed in (None, previous):
        many = an_untrained_model.decode_many(features, sets, fed)
        assert many.shape == (3, 16, 16, 16)
        for alone, asked in zip(many, sets, strict=True):
            np.testing.assert_allclose(alone, an_untrained_model.decode(features, asked, fed).low_res, atol=1e-4)


@pytest.mark.parametrize(
    ("low", "high", "first", "last"),
    [
        ((4, 5, 6), (9, 9, 9), (4, 5, 6), (9, 9, 9)),
        ((4.4, 5.4, 6.4), (9.4, 9.4, 8.6), (4, 5, 6), (9, 9, 9)),
        ((7, 3, 3), (7, 12, 12), (7, 3, 3), (7, 12, 12)),
        ((7.5, 3, 3), (7.5, 12, 12), (8, 3, 3), (8, 12, 12)),
        ((-9, -9, -9), (40, 40, 3), (0, 0, 0), (31, 31, 3)),
        ((28, 30, 31), (40, 40, 31.4), (28, 30, 31), (31, 31, 31)),
    ],
)
def test_a_box_becomes_the_voxels_from_corner_to_corner(an_untrained_model, encoded, low, high, first, last):
    roi, features = encoded
    prompts = PromptSet([Box(tuple(roi.to_world(low)), tuple(roi.to_world(high)))])
    box = an_untrained_model._prompts(features, [prompts.on(roi)], None).box[0, 0].numpy()
    filled = np.argwhere(box == 1)
    assert filled.min(axis=0).tolist() == list(first)
    assert filled.max(axis=0).tolist() == list(last)
    assert len(filled) == np.prod(np.subtract(last, first) + 1)


def test_a_box_outside_the_region_fills_nothing(an_untrained_model, encoded):
    roi, features = encoded
    prompts = PromptSet([Box(tuple(roi.to_world((-9, 3, 3))), tuple(roi.to_world((-4, 9, 9))))])
    assert an_untrained_model._prompts(features, [prompts.on(roi)], None).box is None


def test_clicks_beyond_the_region_say_nothing_in_it(an_untrained_model, encoded):
    roi, features = encoded
    here = [Click(tuple(roi.to_world((10, 12, 14)))), Click(tuple(roi.to_world((31.4, 0, -0.4))), positive=False)]
    beyond = [Click(tuple(roi.to_world(place)), positive=False) for place in ((-1, 5, 5), (32, 16, 16), (90, 90, 90))]
    alone = an_untrained_model.decode(features, PromptSet(here).on(roi), None)
    for prompts in ([*here, *beyond], [*beyond[:2], *here]):
        more = an_untrained_model.decode(features, PromptSet(prompts).on(roi), None)
        # Sums over more prompts, most of them without weight, may be rounded differently: processors differ there.
        np.testing.assert_allclose(more.low_res, alone.low_res, atol=2e-5)
        assert more.quality == pytest.approx(alone.quality, abs=1e-6)
    an_untrained_model.decode(features, PromptSet(beyond).on(roi), alone.low_res)


def test_the_network_looks_at_the_first_channel(an_untrained_model, a_bowl, encoded):
    roi, features = encoded
    two = Volume(np.concatenate([a_bowl.volume.data, a_bowl.volume.data[:, ::-1]]), a_bowl.grid)
    assert torch.equal(an_untrained_model.encode(two, roi).embedding, features.embedding)


def test_a_model_tells_its_name_and_the_size_of_its_region(an_untrained_model):
    assert isinstance(an_untrained_model, DensePromptModel)
    assert (an_untrained_model.name, an_untrained_model.edge) == ("untrained", 32)
    assert not an_untrained_model.network.training
