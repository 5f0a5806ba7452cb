"""The prompt log: append-only, and everything that stands follows from it."""

from __future__ import annotations

import json

import numpy as np
import pytest

from volsam.errors import BadInput
from volsam.geometry import Grid
from volsam.inference.log import PromptLog
from volsam.prompts import Box, Click, MaskHint, Scribble

GRID = Grid.at((5, 6, 7), 1.3, origin=(-4, 2.5, 1 / 3))
A, B, C = Click((1, 2, 3)), Click((4, 5, 6), positive=False), Click((0.1, 0.2, 0.3))


def standing(log: PromptLog) -> list:
    return [prompt for _, prompt in log.active]


def a_log_of(*prompts) -> PromptLog:
    log = PromptLog()
    for prompt in prompts:
        log.add(prompt)
    return log


def reopened(log: PromptLog) -> PromptLog:
    return PromptLog.replay(json.loads(json.dumps(log.entries)), GRID)


# ---- Steps


def test_prompts_are_numbered_from_one_and_no_number_is_used_twice():
    log = PromptLog()
    assert [log.add(A), log.add(B)] == [1, 2]
    log.undo()
    log.remove(1)
    log.reset()
    assert log.add(C) == 3


def test_nothing_is_ever_taken_out_of_the_log():
    log = a_log_of(A, B)
    log.undo()
    log.redo()
    log.remove(1)
    log.reset()
    log.undo()
    assert [entry["op"] for entry in log.entries] == ["add", "add", "undo", "redo", "remove", "reset", "undo"]


def test_at_the_ends_there_is_nothing_to_undo_or_redo_and_nothing_is_logged():
    log = a_log_of(A)
    assert not log.redo()
    assert log.undo()
    assert not log.undo()
    assert (log.can_undo, log.can_redo) == (False, True)
    assert [entry["op"] for entry in log.entries] == ["add", "undo"]


def test_every_step_can_be_undone_and_redone():
    log = a_log_of(A, B, C)
    log.remove(2)
    log.reset()
    log.add(B)
    states = [[], [A], [A, B], [A, B, C], [A, C], [], [B]]
    for state in reversed(states[:-1]):
        log.undo()
        assert standing(log) == state
    for state in states[1:]:
        log.redo()
        assert standing(log) == state


def test_a_change_ends_what_can_be_redone():
    log = a_log_of(A, B)
    log.undo()
    log.add(C)
    assert not log.can_redo
    assert standing(log) == [A, C]


def test_a_removed_prompt_comes_back_in_its_place():
    log = a_log_of(A, B, C)
    log.remove(1)
    assert standing(log) == [B, C]
    log.undo()
    assert log.active == ((1, A), (2, B), (3, C))


def test_only_a_standing_prompt_can_be_removed():
    log = a_log_of(A, B)
    log.remove(1)
    entries = len(log.entries)
    for number in (1, 3, 0, -1):
        with pytest.raises(BadInput, match=f"no standing prompt has the number {number}; standing are: 2"):
            log.remove(number)
    assert len(log.entries) == entries


# ---- Turns


def test_each_prompt_is_a_turn_of_its_own():
    log = a_log_of(A, B, C)
    assert log.turns == [1, 2, 3]
    assert PromptLog().turns == []


def test_prompts_added_together_are_one_turn_whatever_is_removed_of_it():
    log = a_log_of(A)
    first = log.add(B)
    log.add(C, together_with=first)
    log.add(A, together_with=first)
    log.add(B)
    assert log.turns == [1, 4, 5]
    log.remove(first)
    assert log.turns == [1, 3, 4]
    log.remove(1)
    assert log.turns == [2, 3]
    assert reopened(log).turns == [2, 3]


# ---- Saved and read back


def a_hint(shape=(5, 6, 7)) -> MaskHint:
    affine = np.array([[0, -1.1, 0, 3], [0.9, 0, 0.1, 1 / 3], [0, 0, 2.5, -7], [0, 0, 0, 1]])
    return MaskHint(np.random.default_rng(1).random(shape) > 0.5, Grid(shape, affine))


@pytest.mark.parametrize(
    "prompt",
    [
        A,
        B,
        Click((1 / 3, np.pi, -1e-9)),
        Box((0, 1, 2), (3, 4, 5)),
        Scribble(((0, 0, 0), (1, 1 / 3, 1)), positive=False),
        a_hint(),
        a_hint((1, 1, 1)),
        a_hint((4, 2, 1)),
        MaskHint(np.zeros((2, 2, 2)), Grid.at((2, 2, 2))),
    ],
)
def test_every_kind_of_prompt_is_read_back_to_the_last_bit(prompt):
    assert standing(reopened(a_log_of(prompt))) == [prompt]


def test_a_log_read_back_goes_on_where_it_was():
    log = a_log_of(A, B, C)
    log.remove(2)
    log.undo()
    log.reset()
    log.add(a_hint())
    log.undo()
    again = reopened(log)
    assert again.entries == log.entries
    assert again.active == log.active
    for _ in range(2):
        assert (again.redo(), again.active) == (log.redo(), log.active)
    for _ in range(9):
        assert (again.undo(), again.active) == (log.undo(), log.active)
    assert again.add(A) == log.add(A)


def test_an_entry_of_a_later_version_is_refused():
    with pytest.raises(BadInput, match="unknown entry 'merge'; it was saved by a newer version"):
        PromptLog.replay([{"op": "merge"}], GRID)


def test_a_mask_whose_bits_do_not_fit_its_shape_is_refused():
    entries = a_log_of(a_hint()).entries
    entries[0]["prompt"]["shape"] = [5, 6, 9]
    with pytest.raises(ValueError, match="do not fit"):
        PromptLog.replay(entries, GRID)
