"""Conversations with volsam-s: what is asked of it, and that it learns from them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from volsam.models.dense_prompt import DensePromptNet
from volsam.models.prompt_maps import NOWHERE
from volsam.training import dense_clicks
from volsam.training.dense_clicks import DenseClickTask, Targets, deepest, first_prompts, next_prompts, overlap

pytestmark = pytest.mark.slow


def a_ball(edge: int = 32, count: int = 1) -> Tensor:
    line = torch.arange(edge) - edge / 2
    inside = line[:, None, None] ** 2 + line[:, None] ** 2 + line**2 < (edge / 4) ** 2
    return inside.float().expand(count, 1, -1, -1, -1)


def targets(masks: Tensor, clicks: Tensor | None = None) -> Targets:
    image = torch.cat([masks, masks, torch.ones_like(masks)], dim=1)
    nowhere = torch.full((len(masks), 3), NOWHERE)
    return Targets(image, masks, masks.flatten(1).sum(1), nowhere if clicks is None else clicks)


def test_the_first_click_lies_in_the_object_and_boxes_hold_it() -> None:
    masks = a_ball(count=64)
    given = first_prompts(targets(masks), torch.Generator().manual_seed(0))
    clicked = given.labels[:, 0] == 1
    places = given.points[clicked, 0].long()
    assert masks[0, 0][tuple(places.T)].mean() > 0.9  # drawn at half size, so some lie a voxel beside it
    assert given.box is not None
    boxed = given.box.flatten(1).any(dim=1)
    assert 0 < boxed.sum() < 32
    assert (boxed | clicked).all()
    held = (given.box * masks).flatten(1).sum(1)[boxed] / masks[0].sum()
    assert (held > 0.01).all()
    assert (held > 0.9).any()


def test_a_click_that_centred_the_region_is_mostly_the_one_that_is_given() -> None:
    clicks = torch.tensor([[15.0, 16.0, 17.0]]).expand(64, -1)
    given = first_prompts(targets(a_ball(count=64), clicks), torch.Generator().manual_seed(0))
    assert (given.points[:, 0] == clicks).all(dim=1).float().mean() > 0.5


def test_the_first_click_lies_in_an_object_too_thin_for_half_the_size() -> None:
    thin = torch.zeros(40, 1, 16, 16, 16)
    thin[:, :, 5] = 1
    given = first_prompts(targets(thin), torch.Generator().manual_seed(0))
    clicked = given.labels[:, 0] == 1
    assert clicked.sum() > 20
    assert (given.points[clicked, 0, 0] == 5).all()


def test_nothing_is_said_where_there_is_no_object() -> None:
    given = first_prompts(targets(torch.zeros(8, 1, 16, 16, 16)), torch.Generator().manual_seed(0))
    assert (given.labels == -1).all()
    assert given.box is not None
    assert not given.box.any()


@pytest.mark.parametrize(("found", "sign"), [(0.0, 1), (1.0, 0)])
def test_the_next_click_lies_in_the_larger_error_and_bears_its_sign(found: float, sign: int) -> None:
    masks = a_ball(count=48)
    asked = targets(masks)
    generator = torch.Generator().manual_seed(0)
    half = torch.full_like(asked.half, 5.0 if found else -5.0)
    given = next_prompts(first_prompts(asked, generator), half, asked, 1, generator)
    assert (given.labels[:, 1] == sign).float().mean() > 0.9
    places = given.points[:, 1].long()
    assert ((masks[0, 0][tuple(places.T)] > 0.5) == bool(sign)).float().mean() > 0.95  # some fall anywhere nearby


@pytest.mark.parametrize(("low", "high"), [(5, 6), (5, 7)])
def test_an_object_too_thin_for_half_the_size_is_clicked_where_it_is_missed(low: int, high: int) -> None:
    thin = torch.zeros(48, 1, 16, 16, 16)
    thin[:, :, low:high] = 1
    asked, generator = targets(thin), torch.Generator().manual_seed(0)
    given = next_prompts(first_prompts(asked, generator), torch.full_like(asked.half, -5.0), asked, 1, generator)
    places, labels = given.points[:, 1].long(), given.labels[:, 1]
    assert (labels >= 0).all()
    assert torch.equal(labels.float(), thin[0, 0][tuple(places.T)])
    assert (labels == 1).float().mean() > 0.9


def test_an_object_too_thin_for_half_the_size_is_no_error_where_it_is_covered() -> None:
    both = torch.zeros(48, 1, 16, 16, 16)
    both[:, :, 5] = 1
    both[:24, :, 8:14, 2:8, 2:8] = 1  # beside something that is seen at half size
    asked, generator = targets(both), torch.Generator().manual_seed(0)
    found = torch.where(asked.half > 0, 5.0, -5.0)
    first = first_prompts(asked, generator)
    assert (next_prompts(first, found, asked, 1, generator).labels[:, 1] == -1).all()
    found[:, :, 1, 1:3, 1:3] = 5.0
    given = next_prompts(first, found, asked, 1, generator)
    places, labels = given.points[:, 1].long(), given.labels[:, 1]
    assert torch.equal(labels.float(), both[torch.arange(48), 0, places[:, 0], places[:, 1], places[:, 2]])
    assert (labels == 0).float().mean() > 0.9


def test_nothing_is_clicked_where_nothing_is_wrong() -> None:
    asked = targets(a_ball(count=2))
    generator = torch.Generator().manual_seed(0)
    given = next_prompts(first_prompts(asked, generator), asked.half - 0.5, asked, 1, generator)
    assert (given.labels[:, 1] == -1).all()


def test_the_deepest_voxel_is_the_middle_of_the_thicker_part() -> None:
    error = torch.zeros(200, 1, 16, 16, 16)
    error[:, :, 4:11, 4:11, 4:11] = 1
    error[:, :, 14, 14, :] = 1
    places = deepest(error, torch.Generator().manual_seed(0)).float()
    middle = ((places - 14.5).abs() < 5).all(dim=1).float().mean()
    assert middle > 0.6


def test_overlap_counts_what_lies_outside_of_the_region() -> None:
    mask = torch.ones(1, 1, 4, 4, 4)
    assert overlap(mask, mask).item() == pytest.approx(1.0, abs=1e-4)
    assert overlap(mask, mask, torch.tensor([64 * 8 * 3.0])).item() == pytest.approx(0.5, abs=1e-4)


def test_volsam_s_learns_from_conversations(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(dense_clicks, "EARLY_TURNS", (0.5, 0.5, 0, 0, 0, 0, 0, 0))
    task = DenseClickTask(DensePromptNet())
    optimiser = torch.optim.AdamW(task.parameters(), lr=2e-3)
    masks = a_ball(16, count=2)
    asked = targets(masks)
    batch = {"image": asked.image, "label": masks[:, 0].long(), "whole": asked.wholes}
    dice = []
    for _ in range(25):
        told = task(batch)
        optimiser.zero_grad()
        told["loss"].backward()
        optimiser.step()
        dice.append(float(told["dice"]))
    assert max(dice[:3]) < 0.7 < min(dice[-3:])


def test_conversations_grow_longer_with_the_schedule() -> None:
    task = DenseClickTask(DensePromptNet(), early=0.4)
    task.at(0.3)
    assert task.is_early
    task.at(0.5)
    assert not task.is_early
