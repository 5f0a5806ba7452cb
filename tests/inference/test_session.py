"""What a session promises: masks that follow from the standing prompts alone, and nothing lost."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from volsam.errors import BadFile, BadInput, PromptOutside
from volsam.geometry import Grid, resample
from volsam.inference.session import Session
from volsam.prompts import Box, Click, MaskHint, PromptSet, Scribble
from volsam.volume import Volume


@pytest.fixture
def a_session(a_model, a_bowl) -> Session:
    return Session(a_model, a_bowl.volume)


@pytest.fixture
def a_conversation(a_bowl) -> list:
    """Prompts of every kind; each changes the mask that the ones before it give."""
    coarse = Grid.at((10, 9, 8), 6.0, origin=a_bowl.grid.to_world((1.5, 1.5, 1.5)))
    hint = resample(a_bowl.berry.astype(np.float32), a_bowl.grid, coarse, mode="area") > 0.4
    return [
        a_bowl.click("stone"),
        a_bowl.click("flesh"),
        a_bowl.click("stone", positive=False),
        Scribble(tuple(a_bowl.at((14, row, 16)) for row in range(13, 20))),
        Box(a_bowl.at((4, 6, 6)), a_bowl.at((20, 26, 26))),
        MaskHint(hint, coarse),
        a_bowl.click("rind"),
    ]


def refusal(call, *arguments, kind=BadInput) -> str:
    """The one line with which a call is refused."""
    with pytest.raises(kind) as caught:
        call(*arguments)
    message = str(caught.value)
    assert message
    assert "\n" not in message
    return message


# ---- A mask


def test_a_mask_lies_on_the_grid_of_the_volume(a_model, a_small_ct, a_click, a_ball, dice):
    volume = Volume(a_small_ct.data, a_small_ct.grid, "ct", header="of the file")
    session = Session(a_model, volume, object_name="lesion")
    session.add(a_click)
    assert session.mask.grid == volume.grid
    assert session.mask.data.shape == (1, *volume.grid.shape)
    assert session.mask.data.dtype == np.uint8
    assert session.mask.header == "of the file"
    assert session.mask.name == "lesion"
    assert set(np.unique(session.mask.data)) == {0, 1}
    assert dice(session.mask.data, a_ball) > 0.8


def test_clicks_add_and_take_away(a_session, a_bowl):
    a_session.add(a_bowl.click("flesh"))
    assert a_bowl.parts(a_session.mask) == {"flesh"}
    a_session.add(a_bowl.click("stone"))
    assert a_bowl.parts(a_session.mask) == {"flesh", "stone"}
    a_session.add(a_bowl.click("stone", positive=False))
    assert a_bowl.parts(a_session.mask) == {"flesh"}


@pytest.mark.parametrize("act", ["add", "undo", "redo", "remove", "reset"])
def test_an_action_that_fails_leaves_the_session_as_it_was(a_session, a_bowl, monkeypatch, act):
    for part in ("flesh", "stone", "rind"):
        a_session.add(a_bowl.click(part))
    a_session.undo()
    before = (a_session.record(), a_session.prompts, a_session.mask.data.copy())

    def full(prompts, answer):
        raise MemoryError

    words = {"add": [a_bowl.click("rind")], "remove": [1]}.get(act, [])
    with monkeypatch.context() as patch:
        patch.setattr(type(a_session.predictor), "__call__", lambda self, prompts, answer: full(prompts, answer))
        patch.setattr(type(a_session._now), "show", lambda self, mask: full(None, None))
        with pytest.raises(MemoryError):
            getattr(a_session, act)(*words)
    assert (a_session.record(), a_session.prompts) == before[:2]
    assert np.array_equal(a_session.mask.data, before[2])
    assert getattr(a_session, act)(*words) is not None


def test_there_is_no_mask_before_the_first_prompt(a_session):
    assert not a_session.mask.data.any()
    assert not a_session.probability.data.any()
    assert a_session.quality is None
    assert a_session.prompts == ()
    assert not a_session.can_undo
    assert not a_session.can_redo
    assert "object has no mask yet: add a click" in refusal(a_session.uncertainty)


def test_a_negative_click_alone_gives_an_empty_mask(a_session, a_model, a_bowl):
    assert a_session.add(a_bowl.click("stone", positive=False)) is None
    assert not a_session.mask.data.any()
    assert not a_session.probability.data.any()
    assert a_session.quality is None
    assert a_model.encoded == []
    a_session.add(a_bowl.click("flesh"))
    assert a_bowl.parts(a_session.mask) == {"flesh"}


@pytest.mark.parametrize("logit", [-6.0, 6.0])
def test_clicked_voxels_always_get_their_label(stubborn, a_bowl, logit):
    session = Session(stubborn(logit), a_bowl.volume)
    inside = [(14, 16, 16), (0, 0, 0), (39, 35, 31), (20, 2, 30)]
    outside = [(15, 16, 16), (14, 17, 16), (39, 0, 31)]
    for voxel in inside:
        session.add(a_bowl.click(voxel))
    for voxel in outside:
        session.add(a_bowl.click(voxel, positive=False))
    mask = session.mask.data[0]
    assert all(mask[voxel] for voxel in inside)
    assert not any(mask[voxel] for voxel in outside)
    session.add(a_bowl.click(inside[0], positive=False))
    assert not session.mask.data[0][inside[0]], "the last word counts"


def test_a_click_between_voxels_labels_the_one_that_holds_it(stubborn, a_bowl):
    session = Session(stubborn(-6.0), a_bowl.volume)
    session.add(a_bowl.click((39.4, -0.4, 7.6)))
    assert np.argwhere(session.mask.data[0]).tolist() == [[39, 0, 8]]


def test_what_changed_lies_in_the_box_that_is_returned(a_session, a_conversation):
    before = a_session.mask.data[0].copy()
    for step in [*(lambda prompt=prompt: a_session.add(prompt) for prompt in a_conversation), a_session.undo]:
        low, high = step()
        changed = np.argwhere(a_session.mask.data[0] != before)
        assert (changed >= low).all()
        assert (changed < high).all()
        before = a_session.mask.data[0].copy()


def test_probability_is_between_0_and_1_on_the_grid_of_the_volume(a_session, a_bowl):
    a_session.add(a_bowl.click("stone"))
    probability = a_session.probability
    assert probability.grid == a_bowl.grid
    assert probability.data.dtype == np.float32
    assert probability.name == "object_probability"
    assert 0 <= probability.data.min() < 0.01
    assert 0.99 < probability.data.max() <= 1
    likely = probability.with_data(probability.data > 0.5)
    assert a_bowl.parts(likely) == {"stone"}
    assert (likely.data == (a_session.mask.data > 0)).mean() > 0.99


@pytest.mark.parametrize("logit", [-500.0, 500.0])
def test_a_model_may_be_as_sure_as_it_likes(stubborn, a_bowl, logit):
    session = Session(stubborn(logit), a_bowl.volume)
    session.add(a_bowl.click("stone"))
    assert session.probability.data[0][14, 16, 16] == float(logit > 0)
    assert session.uncertainty(size=2).spread.max() == 0
    assert session.next_click() is None


# ---- Undo, redo, removal


def test_undo_and_redo_are_exact_and_have_no_limit(a_session, a_conversation):
    masks = [a_session.mask.data]
    for turn in range(5):
        for prompt in a_conversation:
            a_session.add(prompt)
            masks.append(a_session.mask.data)
        if turn == 2:
            a_session.reset()
            masks.append(a_session.mask.data)
    for mask in reversed(masks[:-1]):
        assert a_session.can_undo
        a_session.undo()
        np.testing.assert_array_equal(a_session.mask.data, mask)
    assert not a_session.can_undo
    assert a_session.undo() is None
    for mask in masks[1:]:
        assert a_session.can_redo
        a_session.redo()
        np.testing.assert_array_equal(a_session.mask.data, mask)
    assert not a_session.can_redo
    assert a_session.redo() is None


def test_undo_and_redo_ask_the_model_nothing(a_session, a_model, a_conversation):
    for prompt in a_conversation:
        a_session.add(prompt)
    asked = len(a_model.asked), len(a_model.encoded)
    for _ in a_conversation:
        a_session.undo()
    for _ in a_conversation:
        a_session.redo()
    assert (len(a_model.asked), len(a_model.encoded)) == asked


def test_answers_that_were_given_away_are_made_again_and_are_the_same(a_session, a_model, a_conversation, monkeypatch):
    monkeypatch.setattr("volsam.inference.session.KEPT_ANSWERS", 2)
    seen = []
    for prompt in a_conversation:
        a_session.add(prompt)
        seen.append((a_session.mask.data.copy(), a_session.quality))
    for mask, quality in reversed(seen):
        assert len(a_session._now.answers) <= 2
        assert np.array_equal(a_session.mask.data, mask)
        assert a_session.quality == quality
        a_session.undo()
    assert not a_session.mask.data.any()


def test_answers_of_objects_that_nobody_works_on_are_few(a_session, a_conversation, monkeypatch):
    monkeypatch.setattr("volsam.inference.session.KEPT_ELSEWHERE", 1)
    for prompt in a_conversation:
        a_session.add(prompt)
    mask, quality = a_session.mask.data.copy(), a_session.quality
    first = a_session.current
    a_session.select("other")
    a_session.add(a_conversation[0])
    assert len(a_session._objects[first].answers) == 1
    a_session.select(first)
    assert a_session.quality == quality
    a_session.undo()
    a_session.redo()
    assert np.array_equal(a_session.mask.data, mask)


def test_a_new_prompt_ends_what_can_be_redone(a_session, a_bowl):
    a_session.add(a_bowl.click("stone"))
    a_session.undo()
    a_session.add(a_bowl.click("flesh"))
    assert a_session.redo() is None
    assert [prompt for _, prompt in a_session.prompts] == [a_bowl.click("flesh")]


def test_the_removal_of_any_prompt_equals_never_having_added_it(growing, a_bowl, a_conversation):
    for removed in range(len(a_conversation)):
        session = Session(growing(), a_bowl.volume)
        for prompt in a_conversation:
            session.add(prompt)
        session.remove(session.prompts[removed][0])
        never = Session(growing(), a_bowl.volume)
        for prompt in [*a_conversation[:removed], *a_conversation[removed + 1 :]]:
            never.add(prompt)
        np.testing.assert_array_equal(session.mask.data, never.mask.data)
        np.testing.assert_array_equal(session.probability.data, never.probability.data)
        assert session.quality == never.quality


def test_the_removal_of_a_prompt_given_together_with_others_equals_never_having_added_it(growing, a_bowl):
    prompts = [a_bowl.click("stone"), a_bowl.click("flesh"), a_bowl.click("berry"), a_bowl.click("air", positive=False)]
    for removed in range(len(prompts)):
        session = Session(growing(), a_bowl.volume)
        session.add_all(PromptSet(prompts))
        session.remove(session.prompts[removed][0])
        never = Session(growing(), a_bowl.volume)
        never.add_all(PromptSet([*prompts[:removed], *prompts[removed + 1 :]]))
        np.testing.assert_array_equal(session.mask.data, never.mask.data)
        np.testing.assert_array_equal(session.probability.data, never.probability.data)


def test_only_a_standing_prompt_can_be_removed(a_session, a_bowl):
    a_session.add(a_bowl.click("stone"))
    a_session.add(a_bowl.click("flesh"))
    a_session.remove(1)
    assert refusal(a_session.remove, 1) == "no standing prompt has the number 1; standing are: 2"
    a_session.reset()
    assert "standing are: none" in refusal(a_session.remove, 2)


def test_a_reset_empties_the_mask_and_can_be_undone(a_session, a_conversation):
    for prompt in a_conversation:
        a_session.add(prompt)
    full, standing = a_session.mask.data, a_session.prompts
    a_session.reset()
    assert not a_session.mask.data.any()
    assert a_session.prompts == ()
    a_session.undo()
    np.testing.assert_array_equal(a_session.mask.data, full)
    assert a_session.prompts == standing


steps = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(0, 6)),
        st.tuples(st.just("remove"), st.integers(0, 6)),
        st.tuples(st.sampled_from(["undo", "undo", "redo", "reset"]), st.just(0)),
    ),
    max_size=10,
)


def choices(bowl) -> list:
    return [
        bowl.click("stone"),
        bowl.click("flesh"),
        bowl.click("stone", positive=False),
        bowl.click("berry"),
        bowl.click("flesh", positive=False),
        Box(bowl.at((4, 6, 6)), bowl.at((24, 26, 26))),
        MaskHint(bowl.berry, bowl.grid),
    ]


@given(steps)
def test_whatever_happened_the_mask_is_that_of_the_standing_prompts(growing, a_bowl, history):
    session = Session(growing(), a_bowl.volume)
    states, at = [()], 0  # what ought to stand, told by the simplest book-keeping
    for action, which in history:
        if action == "add":
            session.add(choices(a_bowl)[which])
            after = (*states[at], which)
        elif action == "remove" and which < len(states[at]):
            session.remove(session.prompts[which][0])
            after = (*states[at][:which], *states[at][which + 1 :])
        elif action == "reset":
            session.reset()
            after = ()
        elif action in ("undo", "redo"):
            getattr(session, action)()
            at = max(at - 1, 0) if action == "undo" else min(at + 1, len(states) - 1)
            continue
        else:
            continue
        states, at = [*states[: at + 1], after], at + 1
    standing = [choices(a_bowl)[which] for which in states[at]]
    assert [prompt for _, prompt in session.prompts] == standing
    assert session.can_undo == (at > 0)
    assert session.can_redo == (at + 1 < len(states))
    fresh = Session(growing(), a_bowl.volume)
    for prompt in standing:
        fresh.add(prompt)
    np.testing.assert_array_equal(session.mask.data, fresh.mask.data)


# ---- A mask in somebody's hands


@pytest.mark.parametrize(
    "keep", [lambda mask: mask.data, lambda mask: mask.data[0, 14], lambda mask: mask.data[0].T[3:]]
)
def test_a_mask_handed_out_stays_as_it_is(a_session, a_bowl, a_conversation, keep):
    a_session.add(a_bowl.click("flesh"))
    kept = keep(a_session.mask)
    before = kept.copy()
    assert before.any()
    for prompt in a_conversation:
        a_session.add(prompt)
    a_session.reset()
    np.testing.assert_array_equal(kept, before)


def test_masks_handed_out_at_every_step_all_stay(a_session, a_conversation):
    handed, copies = [], []
    for prompt in a_conversation:
        a_session.add(prompt)
        handed.append(a_session.mask)
        copies.append(a_session.mask.data.copy())
    for mask, copy in zip(handed, copies, strict=True):
        np.testing.assert_array_equal(mask.data, copy)


def test_nobody_can_write_into_the_session_through_a_mask(a_session, a_bowl):
    a_session.add(a_bowl.click("stone"))
    with pytest.raises(ValueError, match="read-only"):
        a_session.mask.data[0, 0, 0, 0] = 1
    a_session.mask.data.copy()[0, 0, 0, 0] = 1
    a_session.add(a_bowl.click("flesh"))
    assert a_session.mask.data[0, 0, 0, 0] == 0


# ---- Several objects


def test_objects_know_nothing_of_one_another(a_session, a_bowl):
    a_session.add(a_bowl.click("stone"))
    stone = a_session.mask.data
    a_session.select("berry")
    assert not a_session.mask.data.any()
    a_session.add(a_bowl.click("berry"))
    assert a_session.objects == ["object", "berry"]
    assert a_session.current == "berry"
    assert a_session.mask.name == "berry"
    assert a_bowl.parts(a_session.mask_of("berry")) == {"berry"}
    np.testing.assert_array_equal(a_session.mask_of("object").data, stone)
    a_session.reset()
    np.testing.assert_array_equal(a_session.mask_of("object").data, stone)
    a_session.select("object")
    assert len(a_session.prompts) == 1
    a_session.undo()
    assert not a_session.mask.data.any()


def test_an_object_is_forgotten_when_deleted(a_session, a_bowl):
    a_session.add(a_bowl.click("stone"))
    a_session.select("berry")
    a_session.add(a_bowl.click("berry"))
    a_session.delete("berry")
    assert a_session.objects == ["object"]
    assert a_session.current == "object"
    assert a_session.mask.data.any()
    a_session.select("berry")
    assert not a_session.mask.data.any()
    assert a_session.prompts == ()


def test_there_is_always_an_object(a_session, a_bowl):
    a_session.add(a_bowl.click("stone"))
    a_session.delete("object")
    assert a_session.objects == ["object"]
    assert not a_session.mask.data.any()


def test_an_object_is_renamed_in_its_place(a_session, a_bowl):
    a_session.add(a_bowl.click("stone"))
    a_session.select("berry")
    a_session.rename("object", "stone")
    assert a_session.objects == ["stone", "berry"]
    assert a_session.mask_of("stone").data.any()
    a_session.rename("berry", "fruit")
    assert a_session.current == "fruit"
    with pytest.raises(BadInput, match="'stone' already"):
        a_session.rename("fruit", "stone")
    with pytest.raises(BadInput, match="empty"):
        a_session.rename("fruit", " ")


def test_clicks_in_other_objects_count_as_outside_if_the_session_minds_them(a_session, a_model, a_bowl, tmp_path):
    a_session.neighbours = True
    a_session.add(a_bowl.click("stone"))
    a_session.select("berry")
    a_session.add(a_bowl.click("berry"))
    assert a_model.asked[-1].labels.tolist() == [False, True]
    assert len(a_session.prompts) == 1  # they are not prompts of this object
    a_session.select("object")
    a_session.reset()
    a_session.select("berry")
    a_session.undo()
    a_session.redo()
    a_session.save(tmp_path / "session.json")
    again = type(a_session).load(tmp_path / "session.json", a_model, a_session.volume)
    # What stood when the click was made is kept with it, whatever became of the other object.
    assert a_model.asked[-1].labels.tolist() == [False, True]
    assert np.array_equal(again.mask_of("berry").data, a_session.mask_of("berry").data)


def test_a_click_where_another_object_was_clicked_is_this_objects(a_session, a_model, a_bowl):
    a_session.neighbours = True
    a_session.add(a_bowl.click("stone"))
    a_session.select("same")
    a_session.add(a_bowl.click("stone"))
    assert a_model.asked[-1].labels.tolist() == [True]


def test_neighbours_are_not_minded_by_a_model_without_negative_clicks(a_session, a_model, a_bowl, monkeypatch):
    monkeypatch.setattr(a_model, "takes", frozenset({"click"}), raising=False)
    a_session.neighbours = True
    a_session.add(a_bowl.click("stone"))
    a_session.select("berry")
    a_session.add(a_bowl.click("berry"))
    assert a_model.asked[-1].labels.tolist() == [True]


def test_an_unknown_object_is_refused_with_the_names_that_there_are(a_session):
    a_session.select("berry")
    for call in (a_session.mask_of, a_session.delete):
        assert refusal(call, "pear") == "no object is called 'pear'; there are: object, berry"
    assert "needs a name" in refusal(a_session.select, " ")


# ---- What is refused


def test_a_click_outside_the_volume_is_refused_with_its_extent_and_not_logged(a_session, a_bowl):
    a_session.add(a_bowl.click("stone"))
    before, standing = a_session.mask.data.copy(), a_session.prompts
    message = refusal(a_session.add, Click((400, 0, 0)), kind=PromptOutside)
    assert "click at 400,0,0 mm (RAS+)" in message
    assert "outside bowl, which spans -20.75,29.25,4.25 to 39.25,83.25,52.25 mm" in message
    assert a_session.prompts == standing
    assert len(a_session._now.log.entries) == 1
    np.testing.assert_array_equal(a_session.mask.data, before)


def test_of_prompts_given_together_none_is_logged_if_one_is_outside(a_session, a_model, a_bowl):
    prompts = PromptSet([a_bowl.click("stone"), Click((400, 0, 0))])
    assert "outside bowl" in refusal(a_session.add_all, prompts, kind=PromptOutside)
    assert a_session.prompts == ()
    assert not a_session.can_undo
    assert a_model.asked == []


# ---- Several prompts at once


def test_prompts_given_together_are_answered_once(growing, a_bowl):
    session = Session(growing(), a_bowl.volume)
    session.add(a_bowl.click("stone"))
    decoded = len(session.model.asked)
    session.add_all(PromptSet([a_bowl.click("flesh"), a_bowl.click((14, 9, 16)), a_bowl.click("stone", False)]))
    assert len(session.prompts) == 4
    # Once where the region is, and once more after the zoom that the larger mask asks for.
    assert len(session.model.asked) - decoded <= 2
    assert all(len(asked.points) == 4 for asked in session.model.asked[decoded:])
    assert a_bowl.parts(session.mask) == {"flesh"}


def test_nothing_given_together_changes_nothing(a_session, a_bowl):
    a_session.add(a_bowl.click("stone"))
    before = a_session.mask.data
    a_session.add_all(PromptSet())
    np.testing.assert_array_equal(a_session.mask.data, before)
    assert len(a_session.prompts) == 1


def test_prompts_given_together_are_taken_back_one_by_one(a_session, a_bowl):
    a_session.add_all(PromptSet([a_bowl.click("flesh"), a_bowl.click("stone")]))
    both = a_session.mask.data
    a_session.undo()
    assert [prompt for _, prompt in a_session.prompts] == [a_bowl.click("flesh")]
    a_session.redo()
    np.testing.assert_array_equal(a_session.mask.data, both)


# ---- Saved and opened again


def test_a_saved_session_opens_with_equal_masks(tmp_path, growing, a_bowl, a_conversation):
    session = Session(growing(), a_bowl.volume, object_name="peach")
    for prompt in a_conversation:
        session.add(prompt)
    session.remove(2)
    session.select("berry")
    session.add(MaskHint(a_bowl.berry, a_bowl.grid))
    session.add(a_bowl.click("stone"))
    session.undo()
    session.select("empty")
    session.select("berry")
    session.save(tmp_path / "session.json")

    opened = Session.load(tmp_path / "session.json", growing(), a_bowl.volume)
    assert opened.objects == ["peach", "berry", "empty"]
    assert opened.current == "berry"
    for name in session.objects:
        np.testing.assert_array_equal(opened.mask_of(name).data, session.mask_of(name).data)
    assert session.mask_of("berry").data.any()
    assert opened.can_redo, "the step that was taken back is there too"
    for both in (session, opened):
        both.redo()
    np.testing.assert_array_equal(opened.mask.data, session.mask.data)
    for name in session.objects:
        for both in (session, opened):
            both.select(name)
        assert opened.prompts == session.prompts
        while session.can_undo:
            for both in (session, opened):
                both.undo()
            np.testing.assert_array_equal(opened.mask.data, session.mask.data)
        assert not opened.can_undo


def test_a_real_network_gives_the_same_mask_again_and_what_came_together_stays_together(
    tmp_path, an_untrained_model, a_bowl
):
    session = Session(an_untrained_model, a_bowl.volume)
    session.add(MaskHint(a_bowl.stone, a_bowl.grid))
    session.add_all(PromptSet([a_bowl.click("flesh"), a_bowl.click("rind"), a_bowl.click("air", positive=False)]))
    session.save(tmp_path / "session.json")
    opened = Session.load(tmp_path / "session.json", an_untrained_model, a_bowl.volume)
    assert session.mask.data.any()
    np.testing.assert_array_equal(opened.probability.data, session.probability.data)
    np.testing.assert_array_equal(opened.mask.data, session.mask.data)


def test_a_saved_session_opens_with_another_model(tmp_path, a_session, stubborn, a_bowl):
    a_session.add(a_bowl.click("stone"))
    a_session.save(tmp_path / "session.json")
    opened = Session.load(tmp_path / "session.json", stubborn(-6.0), a_bowl.volume)
    assert opened.prompts == a_session.prompts
    assert opened.mask.data.sum() == 1


def test_saving_again_leaves_one_file(tmp_path, a_session, a_bowl):
    for place in ("stone", "flesh"):
        a_session.add(a_bowl.click(place))
        a_session.save(tmp_path / "session.json")
    assert [path.name for path in tmp_path.iterdir()] == ["session.json"]
    record = json.loads((tmp_path / "session.json").read_text())
    assert record["model"] == "growing"
    assert len(record["objects"][0]["log"]) == 2


def test_a_place_that_cannot_be_written_is_refused(tmp_path, a_session):
    message = refusal(a_session.save, tmp_path / "missing" / "session.json", kind=BadInput)
    assert message.endswith("session.json cannot be written: No such file or directory")


@pytest.fixture
def a_saved_session(tmp_path, a_session, a_bowl):
    a_session.add(a_bowl.click("stone"))
    a_session.add(MaskHint(a_bowl.peach, a_bowl.grid))
    a_session.save(tmp_path / "session.json")
    return tmp_path / "session.json"


@pytest.mark.parametrize(
    "other",
    [Grid.at((40, 36, 31), 1.5, (-20, 30, 5)), Grid.at((40, 36, 32), 1.5), Grid.at((40, 36, 32), 1.6, (-20, 30, 5))],
)
def test_a_session_of_another_volume_is_refused(a_saved_session, a_model, other):
    volume = Volume(np.zeros(other.shape, np.uint8), other, "plate")
    message = refusal(Session.load, a_saved_session, a_model, volume)
    assert "belongs to bowl with [40, 36, 32] voxels, not to plate" in message


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"a volume", b"\x1f\x8b\x08"])
def test_a_file_that_is_not_json_is_refused(tmp_path, a_model, a_bowl, content):
    (tmp_path / "session.json").write_bytes(content)
    assert "it is not JSON" in refusal(Session.load, tmp_path / "session.json", a_model, a_bowl.volume, kind=BadFile)


@pytest.mark.parametrize("content", ["[]", "3", "{}", '{"format": "another"}'])
def test_json_of_another_kind_is_refused(tmp_path, a_model, a_bowl, content):
    (tmp_path / "session.json").write_text(content)
    message = refusal(Session.load, tmp_path / "session.json", a_model, a_bowl.volume, kind=BadFile)
    assert "is not a session saved by volsam" in message


def test_a_session_of_a_newer_version_is_refused(a_saved_session, edited, a_model, a_bowl):
    path = edited(a_saved_session, version=2)
    assert "newer version of volsam: update volsam" in refusal(Session.load, path, a_model, a_bowl.volume, kind=BadFile)
    path = edited(a_saved_session, objects=[{"name": "object", "log": [{"op": "dream"}]}])
    assert "unknown entry 'dream'" in refusal(Session.load, path, a_model, a_bowl.volume)


@pytest.mark.parametrize(
    "change",
    [
        {"volume": None},
        {"objects": None},
        {"current": None},
        {"volume": 3},
        {"volume": {"name": "bowl", "shape": [40, 36, 32], "affine": "none"}},
        {"objects": []},
        {"objects": [{"name": "object"}]},
        {"objects": [{"name": " ", "log": []}]},
        {"objects": [{"name": "object", "log": [7]}]},
        {"objects": [{"name": "object", "log": [{"op": "add"}]}]},
        {"objects": [{"name": "object", "log": [{"op": "add", "prompt": {"type": "point"}}]}]},
        {"objects": [{"name": "object", "log": [{"op": "remove", "id": 1}]}]},
        {"objects": [{"name": "object", "log": [{"op": "add", "prompt": {"type": "mask", "shape": [2, 2, 2]}}]}]},
        {"version": "one"},
    ],
)
def test_a_session_that_was_edited_badly_is_refused(a_saved_session, edited, a_model, a_bowl, change):
    refusal(Session.load, edited(a_saved_session, **change), a_model, a_bowl.volume)


@pytest.mark.parametrize("bits", ["", "eJw=", "no base64!", "AAAA"])
def test_a_saved_mask_that_is_damaged_is_refused(a_saved_session, edited, a_model, a_bowl, bits):
    record = json.loads(a_saved_session.read_text())
    record["objects"][0]["log"][1]["prompt"]["bits"] = bits
    path = edited(a_saved_session, objects=record["objects"])
    assert "is damaged" in refusal(Session.load, path, a_model, a_bowl.volume, kind=BadFile)


def test_a_file_that_is_not_there_is_refused(tmp_path, a_model, a_bowl):
    message = refusal(Session.load, tmp_path / "session.json", a_model, a_bowl.volume, kind=BadFile)
    assert "No such file or directory" in message


# ---- Kinds of prompts


def test_a_scribble_says_as_much_as_its_points(a_session, a_bowl):
    stroke = tuple(a_bowl.at((14, row, 16)) for row in np.linspace(9, 23, 200))
    a_session.add(Scribble(stroke))
    assert a_bowl.parts(a_session.mask) == {"flesh", "stone"}
    assert a_session.mask.data[0][14, 9:24, 16].all()
    a_session.add(Scribble(tuple(a_bowl.at((14, row, 16)) for row in (14, 15, 16)), positive=False))
    assert a_bowl.parts(a_session.mask) == {"flesh"}


def test_the_mask_of_a_box_lies_within_it_save_for_a_small_slack(a_session, a_bowl):
    low, high = np.array((8, 10, 10)), np.array((20, 16, 24))  # holds half of the peach
    a_session.add(Box(a_bowl.at(tuple(high)), a_bowl.at(tuple(low))))
    places = np.argwhere(a_session.mask.data[0])
    assert len(places) > 100
    slack = 0.08 * (high - low) + 1
    assert (places >= low - slack).all()
    assert (places <= high + slack).all()
    beyond = a_session.probability.data[0] > 0.5
    assert (np.argwhere(beyond) >= low - slack - 1).all()
    assert (np.argwhere(beyond) <= high + slack + 1).all()
    a_session.add(a_bowl.click((9, 16, 12)))
    assert (np.argwhere(a_session.mask.data[0]) <= high + slack).all(), "the box holds for later clicks too"


def test_two_boxes_hold_what_lies_in_either(a_session, a_bowl):
    a_session.add(Box(a_bowl.at((4, 6, 6)), a_bowl.at((24, 26, 26))))
    a_session.add(Box(a_bowl.at((25, 16, 8)), a_bowl.at((37, 28, 20))))
    a_session.add(a_bowl.click("stone"))
    a_session.add(a_bowl.click("flesh"))
    a_session.add(a_bowl.click("berry"))
    assert a_bowl.parts(a_session.mask) == {"flesh", "stone", "berry"}


def test_a_box_on_one_slice_says_nothing_of_the_others(a_session, a_bowl):
    a_session.add(Box(a_bowl.at((24, 15, 14)), a_bowl.at((37, 29, 14))))
    assert a_bowl.parts(a_session.mask) == {"berry"}
    assert a_session.mask.data[0][:, :, 10].any()
    assert a_session.mask.data[0][:, :, 18].any()


def test_a_starting_mask_alone_is_the_mask(a_session, a_bowl):
    a_session.add(MaskHint(a_bowl.stone, a_bowl.grid))
    assert a_bowl.parts(a_session.mask) == {"stone"}


def test_a_starting_mask_is_corrected_by_clicks(a_session, a_bowl):
    given = a_bowl.peach | a_bowl.berry
    a_session.add(MaskHint(given, a_bowl.grid))
    a_session.add(a_bowl.click("berry", positive=False))
    mask = a_session.mask.data[0] > 0
    assert mask[a_bowl.berry].mean() < 0.1
    assert np.array_equal(mask[a_bowl.peach], given[a_bowl.peach]), "far from the click nothing changes"
    a_session.add(a_bowl.click("berry"))
    more = a_session.mask.data[0] > 0
    assert more[a_bowl.berry].mean() > mask[a_bowl.berry].mean() + 0.5
    a_session.undo()
    assert np.array_equal(a_session.mask.data[0] > 0, mask)


def test_of_a_starting_mask_the_model_cannot_tell_how_good_it_is_but_where_it_would_differ(a_session, a_bowl):
    a_session.add(MaskHint(a_bowl.peach, a_bowl.grid))
    assert a_session.quality is None
    doubt = a_session.uncertainty()
    assert doubt.probability.max() > 0.5
    assert np.array_equal(a_session.probability.data, a_session.mask.data)


def test_a_box_after_a_starting_mask_is_made_anew_and_the_rest_stays(a_session, a_bowl):
    wrong = a_bowl.peach.copy()
    wrong[26:30, 16:20, 10:14] = True
    a_session.add(MaskHint(wrong, a_bowl.grid))
    box = Box(a_bowl.at((24, 15, 7)), a_bowl.at((37, 29, 21)))
    a_session.add(box)
    mask = a_session.mask.data[0] > 0
    inside = np.zeros(mask.shape, bool)
    inside[24:38, 15:30, 7:22] = True
    assert a_bowl.parts(a_session.mask) == {"flesh", "stone", "berry"}
    assert np.array_equal(mask[~inside], wrong[~inside])
    assert not (mask & inside & ~a_bowl.berry)[26:30, 16:20, 10:14].all()
    a_session.add(a_bowl.click("stone", positive=False))
    assert np.array_equal(a_session.mask.data[0][inside] > 0, mask[inside]), "the box is not answered again"


def test_in_one_turn_a_mask_comes_first(a_session, a_bowl):
    a_session.add_all(PromptSet([a_bowl.click("berry"), MaskHint(a_bowl.stone, a_bowl.grid)]))
    assert a_bowl.parts(a_session.mask) == {"stone", "berry"}


def test_clicks_before_a_mask_do_not_count_and_removing_the_mask_brings_them_back(a_session, a_bowl):
    a_session.add(a_bowl.click("berry"))
    before = a_session.mask.data[0].copy()
    a_session.add(MaskHint(a_bowl.stone, a_bowl.grid))
    a_session.add(a_bowl.click("stone"))
    assert a_bowl.parts(a_session.mask) == {"stone"}
    number = next(number for number, prompt in a_session.prompts if isinstance(prompt, MaskHint))
    a_session.remove(number)
    assert a_bowl.parts(a_session.mask) == {"stone", "berry"}
    a_session.undo()
    a_session.undo()
    a_session.undo()
    assert np.array_equal(a_session.mask.data[0], before)


def test_a_corrected_mask_is_made_again_as_it_was(tmp_path, growing, a_bowl, monkeypatch):
    monkeypatch.setattr("volsam.inference.session.KEPT_ANSWERS", 1)
    session = Session(growing(), a_bowl.volume)
    session.add(MaskHint(a_bowl.peach | a_bowl.berry, a_bowl.grid))
    for prompt in (a_bowl.click("berry", positive=False), Box(a_bowl.at((24, 15, 7)), a_bowl.at((37, 29, 21)))):
        session.add(prompt)
    mask = session.mask.data[0].copy()
    session.undo()
    session.redo()
    assert np.array_equal(session.mask.data[0], mask)
    session.save(tmp_path / "session.json")
    assert np.array_equal(Session.load(tmp_path / "session.json", growing(), a_bowl.volume).mask.data[0], mask)


def test_a_starting_mask_may_come_on_a_grid_of_its_own(a_session, a_bowl, an_oblique_grid):
    frame = a_bowl.grid.around(a_bowl.at("stone"), (30, 28, 26), 1.1, axes="PIR")
    turned = Grid(frame.shape, frame.affine @ Grid.at((1, 1, 1), origin=(0.3, -0.2, 0.4)).affine)
    a_session.add(MaskHint(resample(a_bowl.peach, a_bowl.grid, turned, mode="nearest"), turned))
    assert a_bowl.parts(a_session.mask) == {"flesh", "stone"}


def test_a_starting_mask_starts_anew_even_after_clicks(a_session, a_bowl):
    a_session.add(a_bowl.click("berry"))
    a_session.add(MaskHint(a_bowl.peach, a_bowl.grid))
    assert a_bowl.parts(a_session.mask) == {"flesh", "stone"}


def test_a_starting_mask_and_a_click_far_from_it_may_come_together(a_session, a_bowl):
    a_session.add_all(PromptSet([MaskHint(a_bowl.stone, a_bowl.grid), a_bowl.click("berry")]))
    assert a_bowl.parts(a_session.mask) == {"stone", "berry"}


def test_an_empty_starting_mask_gives_an_empty_mask(a_session, a_bowl):
    a_session.add(MaskHint(np.zeros(a_bowl.grid.shape), a_bowl.grid))
    assert not a_session.mask.data.any()
    a_session.add(a_bowl.click("flesh"))
    assert a_bowl.parts(a_session.mask) == {"flesh"}


def test_a_starting_mask_that_holds_nothing_of_the_volume_is_refused(a_session, a_bowl):
    long = Grid.at((40, 36, 132), 1.5, origin=(-20, 30, 5))
    mask = np.zeros(long.shape)
    mask[10:20, 10:20, 110:120] = 1
    assert "holds no voxel of the scan" in refusal(a_session.add, MaskHint(mask, long))
    assert not a_session.prompts


# ---- Where to click next


def test_the_next_click_lies_in_the_volume(growing, a_small_ct, a_click):
    session = Session(growing(), a_small_ct)
    session.add(a_click)
    place = session.next_click()
    assert place is not None
    assert a_small_ct.grid.contains(place)


@pytest.mark.parametrize("corner", [(0, 0, 0), (39, 0, 31), (20, 35, 0)])
def test_doubt_beyond_the_border_of_the_volume_is_not_worth_a_click(stubborn, a_bowl, corner):
    session = Session(stubborn(0.1), a_bowl.volume)  # doubts everything, and the region reaches beyond the volume
    session.add(a_bowl.click(corner))
    voxel = a_bowl.grid.to_voxels(session.next_click())
    assert (voxel >= 1).all()
    assert (voxel <= np.array(a_bowl.grid.shape) - 2).all()
