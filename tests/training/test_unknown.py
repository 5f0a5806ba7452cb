"""Voxels whose truth is not known, nnU-Net's "ignore": nothing is learnt there, and no click falls there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.losses.dice import DiceCELoss
from torch import Tensor

from volsam.data.dataset import Dataset, read_dataset, read_label
from volsam.data.io import write_volume
from volsam.data.preparation import UNKNOWN, Preparation, Prepared, prepare
from volsam.errors import BadInput
from volsam.geometry import Grid
from volsam.models.prompt_maps import NOWHERE, Prompts
from volsam.recipes.methods import runs
from volsam.training.augment import Augment
from volsam.training.clicks import clicks_on_errors
from volsam.training.dense_clicks import Targets, first_prompts, near_clicks, next_prompts, overlap
from volsam.training.items import Items, one_of
from volsam.training.losses import (
    Loss,
    auto_sam,
    dice_and_cross_entropy,
    hard_dice,
    ma_sam,
    overlap_of_masks,
    sam_adapter_3d,
)
from volsam.training.patches import Patches
from volsam.training.stacks import Embedded, Stacks
from volsam.volume import Volume

from .conftest import TINY, make_dataset

LOSSES = [dice_and_cross_entropy(), ma_sam(), sam_adapter_3d(), auto_sam()]


def some_logits(classes: int = 3) -> Tensor:
    return torch.randn(2, classes, 6, 6, 6, generator=torch.Generator().manual_seed(0)).requires_grad_()


def some_labels() -> Tensor:
    labels = torch.randint(0, 3, (2, 6, 6, 6), generator=torch.Generator().manual_seed(1))
    labels[0, :2] = UNKNOWN
    return labels


# --- losses ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", LOSSES)
def test_nothing_is_learnt_where_the_truth_is_not_known(loss: Loss) -> None:
    logits, labels = some_logits(), some_labels()
    loss(logits, labels).backward()
    assert logits.grad is not None
    assert not logits.grad[0, :, :2].any()
    assert logits.grad[0, :, 2:].abs().amin(dim=0).min() > 0


@pytest.mark.parametrize("loss", LOSSES)
def test_an_item_of_which_nothing_is_known_teaches_nothing(loss: Loss) -> None:
    logits = some_logits()
    labels = some_labels()
    labels[0] = UNKNOWN
    loss(logits, labels).backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
    assert not logits.grad[0].any()


def test_where_all_is_known_the_loss_is_the_sum_of_both_as_monai_has_it() -> None:
    logits = some_logits()
    labels = some_labels().clamp(max=2)
    known = DiceCELoss(include_background=False, to_onehot_y=True, softmax=True)(logits, labels[:, None])
    torch.testing.assert_close(dice_and_cross_entropy()(logits, labels), known)


def test_a_mask_is_judged_by_what_is_known() -> None:
    logits = some_logits(1)
    target = (some_labels() == 1)[:, None].float()
    known = (some_labels() != UNKNOWN)[:, None].float()
    overlap_of_masks(logits, target, known).sum().backward()
    assert logits.grad is not None
    assert not logits.grad[0, :, :2].any()
    torch.testing.assert_close(
        overlap_of_masks(logits[1:], target[1:], known[1:]), overlap_of_masks(logits[1:], target[1:])
    )


def test_the_log_s_dice_does_not_count_it() -> None:
    labels = torch.zeros(1, 4, 4, 4, dtype=torch.long)
    labels[:, 0], labels[:, 1] = 1, UNKNOWN
    logits = torch.zeros(1, 2, 4, 4, 4)
    logits[:, 1] = torch.where((labels == 1) | (labels == UNKNOWN), 1.0, -1.0)
    assert hard_dice(logits, labels) == 1


# --- clicks ----------------------------------------------------------------------------------------------------------


def test_no_simulated_click_falls_there() -> None:
    target, known = torch.zeros(1, 1, 8, 8, 8), torch.ones(1, 1, 8, 8, 8, dtype=torch.bool)
    target[..., 0, 0, 0] = 1
    known[..., 1:, :, :] = False
    everything = torch.ones_like(target)
    for _ in range(20):
        points, _ = clicks_on_errors(target, everything, known)
        assert points[0, 0, 0] == 0


def test_in_a_conversation_with_volsam_s_neither() -> None:
    masks, known = torch.zeros(1, 1, 16, 16, 16), torch.ones(1, 1, 16, 16, 16)
    masks[..., :8, :8, :8] = 1
    known[..., 8:, :, :] = 0
    nowhere = torch.full((1, 3), float(NOWHERE))
    targets = Targets(torch.zeros(1, 3, 16, 16, 16), masks, masks.flatten(1).sum(1), nowhere, known)
    target = targets.half
    nothing = Prompts(torch.full((1, 3, 3), float(NOWHERE)), torch.full((1, 3), -1), torch.zeros(1, 1, 16, 16, 16))
    everything = torch.ones_like(target)
    given = 0
    for seed in range(40):
        after = next_prompts(nothing, everything, targets, 1, torch.Generator().manual_seed(seed))
        if after.labels[0, 1] >= 0:
            given += 1
            assert after.points[0, 1, 0] < 8
    assert given > 30
    known = torch.nn.functional.avg_pool3d(known, 2)
    half = torch.ones_like(target).requires_grad_()
    clicked = Prompts(torch.tensor([[[7.0, 4.0, 4.0]]]), torch.ones(1, 1, dtype=torch.long), nothing.box)
    near_clicks(half, target, clicked, known).sum().backward()
    assert half.grad is not None
    assert half.grad[..., 2:4, :, :].any()
    assert not half.grad[..., 4:, :, :].any()
    perfect_where_known = torch.where((target > 0) | (known == 0), 1.0, -1.0)
    assert overlap(perfect_where_known, target, known=known) > 0.999


def test_a_single_slice_is_asked_about_and_judged_as_it_is_known() -> None:
    masks, known = torch.zeros(1, 1, 32, 32, 32), torch.zeros(1, 1, 32, 32, 32)
    known[:, :, 9] = 1
    masks[:, :, 9, 8:20, 8:20] = 1
    nowhere = torch.full((1, 3), float(NOWHERE))
    targets = Targets(torch.zeros(1, 3, 32, 32, 32), masks, masks.flatten(1).sum(1), nowhere, known)
    assert set(targets.half.unique().tolist()) == {0.0, 1.0}
    sure = torch.where(targets.half > 0.5, 20.0, -20.0)
    assert overlap_of_masks(sure, targets.half, targets.half_known) < 1e-3
    assert overlap(sure, targets.half, known=targets.half_known) > 0.999
    for seed in range(30):
        generator = torch.Generator().manual_seed(seed)
        first = first_prompts(targets, generator)
        if first.labels[0, 0] == 1:
            assert masks[(0, 0, *first.points[0, 0].long())] == 1
        after = next_prompts(first, -sure, targets, 1, generator)
        assert after.labels[0, 1] >= 0, "all of it is wrong"
        assert known[(0, 0, *after.points[0, 1].long())] == 1


# --- items -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def a_case() -> Prepared:
    """A block in slices 4 to 11 of sixteen; nothing is known from slice 8 on."""
    label = np.zeros((16, 16, 16), np.uint8)
    label[4:12, 4:10, 4:10] = 1
    label[8:] = UNKNOWN
    image = np.random.default_rng(0).normal(size=(1, *label.shape)).astype(np.float16)
    return Prepared("case", image, label, (np.argwhere(label == 1).astype(np.int32),))


MADE: list[Callable[[Prepared], Items]] = [
    lambda case: Patches([case], (16, 16, 16), Augment("strong"), 0),
    lambda case: Patches([case], (16, 16, 16), Augment("full"), 0, one_object=True),
    lambda case: Patches([case], (16, 16, 16), Augment("light"), 0, points=(40, 0)),
    lambda case: Stacks([case], 5, 16, Augment("full", turn=(0,)), 0),
    lambda case: Stacks([case], 5, 16, Augment("full", turn=(0,)), 0, boxed=True),
    lambda case: Embedded(Stacks([case], 1, 16, Augment("full", turn=(0,)), 0), lambda image: image, 2),
]


@pytest.mark.parametrize("make", MADE)
def test_items_say_what_is_not_known(make: Callable[[Prepared], Items], a_case: Prepared) -> None:
    items = make(a_case)
    seen: set[int] = set()
    for number in range(12):
        item = items[number]
        seen |= set(item["label"].unique().tolist())
        if "whole" in item:
            assert item["whole"] == (item["label"] == 1).sum()
        if "points" in item:
            assert (item["label"][tuple(item["points"].long().T)] == 1).all()
    assert seen == {0, 1, UNKNOWN}


def test_slices_without_a_known_object_are_not_taken_for_such(a_case: Prepared) -> None:
    items = Embedded(Stacks([a_case], 1, 16, Augment("none"), 0), lambda image: image, 2)
    assert len(items.made) == 16 + 4  # a second version of slices 4 to 7
    assert len(items.with_some) == 8


def test_a_coarser_voxel_takes_the_class_of_what_is_known_in_it() -> None:
    values = np.full((8, 8, 8), 9)
    values[0:2, 0, 0] = 1  # a line of the object: a quarter of one coarse voxel
    values[2:4, 0, 0] = 0
    found = Preparation(spacing=(2.0, 2.0, 2.0)).label(values, Grid.at((8, 8, 8)), (0, 1), ignored=9)
    assert sorted(np.unique(found).tolist()) == [0, 1, UNKNOWN]
    assert (found == 1).sum() == 1
    assert (found == 0).sum() == 1


def test_between_slices_nothing_is_known_that_is_not_in_the_nearest_one() -> None:
    values = np.full((4, 4, 3), 9)
    values[..., 1] = 0
    values[1:3, 1:3, 1] = 1
    grid = Grid.at((4, 4, 3), (1.0, 1.0, 5.0))
    found = Preparation(spacing=(1.0, 1.0, 1.0)).label(values, grid, (0, 1), ignored=9)
    assert found.shape == (4, 4, 15)
    assert (found[..., :5] == UNKNOWN).all()
    assert (found[..., 10:] == UNKNOWN).all()
    assert (found[1:3, 1:3, 5:10] == 1).all()
    assert (found[0, :, 5:10] == 0).all()


def test_more_classes_than_a_byte_tells_apart_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="255 labels are too many to learn together: 254 are the most"):
        prepare([], Preparation(), range(256), tmp_path)


def test_a_box_is_that_of_the_object_where_only_a_part_of_a_slice_is_known(a_case: Prepared) -> None:
    label = np.array(a_case.label)
    label[8:] = 0
    label[2:4] = UNKNOWN
    label[2:4, 5:8, 5:8] = 1
    case = Prepared("case", a_case.image, label, (np.argwhere(label == 1).astype(np.int32),))
    boxes = {tuple(items["box"].flatten().tolist()) for number in range(20) if (items := MADE[4](case)[number])}
    plain = Stacks([case], 1, 16, Augment("none"), 0, boxed=True)
    assert all(plain[number]["box"].tolist() == [[4, 4], [9, 9]] for number in range(20)), boxes
    assert any((plain[number]["label"] == UNKNOWN).any() for number in range(20))
    assert all(set(plain[number]["label"].unique().tolist()) <= {0, 1, UNKNOWN} for number in range(20))


# --- runs ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def a_dataset_with_a_rest(tmp_path: Path) -> Dataset:
    """The ball is known, and what lies beside it; the far half of each scan is not."""
    dataset = make_dataset(tmp_path / "Dataset003_Rest", labels={"background": 0, "ball": 1})
    table = (dataset.folder / "dataset.json").read_text().replace('"ball": 1', '"ball": 1, "ignore": 2')
    (dataset.folder / "dataset.json").write_text(table)
    for case in dataset.cases:
        assert case.label is not None
        label = read_label(case).astype(np.uint8)
        label[label.shape[0] // 2 :] = 2
        write_volume(Volume(label, Grid.at(label.shape, (1.0, 1.0, 1.5))), case.label)
    return read_dataset(dataset.folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "more"),
    [
        ("unet", {"edge": 32, "width": 4}),
        ("adapt-clicks", {"edge": 32}),
        ("ma-sam-box", {"edge": 64, "slices": 3, "channels": 8, "rank": 4}),
        ("autosam", {"edge": 64, "versions": 1}),
    ],
)
def test_a_method_learns_from_a_dataset_that_is_known_in_part(
    method: str, more: dict[str, object], a_dataset_with_a_rest: Dataset, tmp_path: Path
) -> None:
    fold = runs.choose_cases(a_dataset_with_a_rest, 0, 2, 0)
    settings = {**TINY, "batch_size": 1, "max_steps": 2, "validate_every": 1.0, **more}
    job = runs.start(method, a_dataset_with_a_rest, tmp_path / "run", settings=settings, fold=fold)
    assert (job.plan.labels, job.plan.ignored) == (("background", "ball"), 2)
    record = runs.train(job)
    assert record.done
    assert record.best is not None


def test_validation_does_not_count_what_is_not_known(a_dataset_with_a_rest: Dataset) -> None:
    class Marks:
        """Marks the ball, and all of the far half."""

        def segment(self, volume: Volume) -> Volume:
            case = next(case for case in a_dataset_with_a_rest.cases if case.name == volume.name.removesuffix("_0000"))
            return volume.with_data((read_label(case) > 0)[None])

    fold = runs.choose_cases(a_dataset_with_a_rest, 0, 2, 0)
    cases = [case for case in a_dataset_with_a_rest.cases if case.name in fold.val]
    plan = runs.load_methods()["unet"].plan(
        a_dataset_with_a_rest, a_dataset_with_a_rest.cases, runs.load_methods()["unet"].config(edge=32)
    )
    assert runs.mean_score(Marks(), cases, plan) == 1  # type: ignore[arg-type]


def test_the_last_class_that_a_byte_tells_apart_is_learnt() -> None:
    assert one_of(np.array([[[254, UNKNOWN, 0, 254]]], np.uint8), 254).tolist() == [[[1, UNKNOWN, 0, 1]]]
