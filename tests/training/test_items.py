"""What a network is shown beside an image: one object, its whole size, the rectangle of its box."""

from __future__ import annotations

from math import ceil

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from volsam.data.preparation import Preparation, Prepared
from volsam.data.preprocess import above_zero, normalise
from volsam.errors import BadInput
from volsam.recipes.methods.method import load_methods
from volsam.training.augment import Augment, Strength, blur
from volsam.training.config import configured
from volsam.training.patches import Patches
from volsam.training.run import Plan
from volsam.training.stacks import Embedded, Stacks, rectangle


@pytest.fixture
def a_case() -> Prepared:
    """A block of class 1 through slices 5 to 14, one of class 2 in slice 2."""
    label = np.zeros((20, 24, 28), np.uint8)
    label[5:15, 4:10, 6:20] = 1
    label[2, 15:20, 3:9] = 2
    image = (label > 0).astype(np.float32)[None] + np.random.default_rng(0).normal(size=(1, *label.shape)) / 20
    places = tuple(np.argwhere(label == value) for value in (1, 2))
    return Prepared("case", image.astype(np.float32), label, places)


def test_the_whole_size_of_an_object_counts_what_lies_outside_of_the_patch(a_case: Prepared) -> None:
    items = Patches([a_case], (8, 8, 8), Augment("none"), 0, one_object=True)
    wholes = {float(items[number]["whole"]) for number in range(20)}
    assert wholes == {10 * 6 * 14, 5 * 6}
    assert all(int(items[number]["label"].max()) == 1 for number in range(20))


def test_a_stack_with_a_box_is_about_one_object_and_holds_its_rectangle(a_case: Prepared) -> None:
    items = Stacks([a_case], 3, 48, Augment("none"), 0, boxed=True)
    seen = set()
    for number in range(20):
        item = items[number]
        first, last = item["box"].tolist()
        seen.add((*first, *last))
        inside = torch.zeros(item["label"].shape[1:], dtype=torch.bool)
        inside[int(first[0]) : ceil(last[0]) + 1, int(first[1]) : ceil(last[1]) + 1] = True
        assert int(item["label"].max()) == 1
        assert not item["label"][:, ~inside].any()
    rows, columns = 48 / 24, 48 / 28
    assert len(seen) == 2
    for low, high in (((4, 6), (10, 20)), ((15, 3), (20, 9))):
        wanted = (low[0] * rows, low[1] * columns, high[0] * rows - 1, high[1] * columns - 1)
        assert any(box == pytest.approx(wanted, abs=1.01) for box in seen)


def test_the_rectangle_turns_with_the_image(a_case: Prepared) -> None:
    items = Stacks([a_case], 3, 48, Augment("full"), 0, boxed=True)
    for number in range(12):
        item = items[number]
        (top, left), (bottom, right) = item["box"].tolist()
        rows, columns = np.nonzero(item["label"].numpy().any(axis=0))
        if len(rows) == 0:  # turned out of the image
            continue
        assert top - 1 <= rows.min()
        assert rows.max() <= bottom + 1
        assert left - 1 <= columns.min()
        assert columns.max() <= right + 1


def test_the_rectangle_of_nothing_is_everything() -> None:
    assert rectangle(np.zeros((4, 6), bool)).tolist() == [[0, 0], [3, 5]]


def test_the_rectangle_runs_through_the_middles_of_the_outermost_voxels(a_case: Prepared) -> None:
    """So do boxes that users give, as slices are enlarged for the network."""
    items = Stacks([a_case], 3, 240, Augment("none"), 0, boxed=True)
    boxes = {tuple(items[number]["box"].flatten().tolist()) for number in range(20)}
    for low, high in (((4, 6), (9, 19)), ((15, 3), (19, 8))):
        wanted = [(voxel + 0.5) * 240 / size - 0.5 for voxel, size in zip((*low, *high), (24, 28, 24, 28), strict=True)]
        assert any(box == pytest.approx(wanted, abs=0.6) for box in boxes)


class PlacesAlone(Augment):
    """Leaves values as they are."""

    def brightness(self, image: NDArray[np.float32], random: np.random.Generator) -> NDArray[np.float32]:
        """The same."""
        return image

    def values(self, image: NDArray[np.float32], random: np.random.Generator) -> NDArray[np.float32]:
        """The same."""
        return image


@pytest.mark.parametrize("strength", ["none", "light", "strong"])
def test_places_go_where_the_image_goes(a_case: Prepared, strength: Strength) -> None:
    """What is told of a voxel is its place in the volume, in a frame that is a little off."""
    slices = np.broadcast_to(np.linspace(0, 1, 20, dtype=np.float32)[:, None, None], (1, *a_case.label.shape))
    case = Prepared("case", slices, a_case.label, a_case.places)
    items = Patches([case], (16, 16, 16), PlacesAlone(strength), 3, placed=True)
    for number in range(8):
        shown = items[number]["image"].numpy()
        assert shown.shape == (4, 16, 16, 16)
        inner = shown[:, 5:11, 5:11, 5:11].reshape(4, -1)  # nearer to its faces a turned patch is filled up
        slope, start = np.polyfit(inner[0], inner[1], 1)
        np.testing.assert_allclose(inner[1], slope * inner[0] + start, atol=1e-3)
        assert abs(slope / 2 - 1) < 0.6
        assert abs(start + slope / 2) < 0.6


def test_strong_changes_keep_labels_and_stay_finite(a_case: Prepared) -> None:
    items = Patches([a_case], (16, 16, 16), Augment("strong"), 1, seen=normalise, placed=True)
    labels = set()
    for number in range(12):
        item = items[number]
        assert item["image"].shape == (6, 16, 16, 16)
        assert torch.isfinite(item["image"]).all()
        labels |= set(item["label"].unique().tolist())
    assert labels == {0, 1, 2}


@pytest.mark.parametrize("strength", ["full", "strong"])
@pytest.mark.parametrize("turn", [(0, 1, 2), (0,)])
def test_what_comes_in_from_outside_is_the_same_in_image_and_label(strength: Strength, turn: tuple[int, ...]) -> None:
    label = np.zeros((12, 24, 24), np.uint8)
    label[:, :, 10:] = 1
    changes = Augment(strength, turn=turn)
    unknown = 0
    for number in range(30):
        random = np.random.default_rng(number)
        image, turned, known = changes.places(label[None].astype(np.float32), label, np.ones(label.shape, bool), random)
        sure = np.abs(image[0] - 0.5) > 0.45
        np.testing.assert_array_equal(turned[sure], image[0][sure] > 0.5)
        unknown += np.count_nonzero(~known)
    assert unknown


@pytest.mark.parametrize("strength", ["full", "strong"])
def test_air_does_not_count_among_what_is_above_zero(a_case: Prepared, strength: Strength) -> None:
    image = np.abs(np.asarray(a_case.image)) + 1
    image[:, :, 16:] = 0
    case = Prepared("case", image, a_case.label, a_case.places)
    shown: list[NDArray[np.float32]] = []

    def seen(values: NDArray[np.float32], valid: NDArray[np.bool_]) -> NDArray[np.float32]:
        shown.append(values)
        return above_zero(values, valid)

    placed, both = (
        Patches([case], (16, 16, 16), kind(strength), 3, one_object=True, seen=seen, still=True)
        for kind in (PlacesAlone, Augment)
    )
    changed = air = 0
    for number in range(12):
        placed[number], both[number]
        before, after = shown[-2:]
        np.testing.assert_array_equal(after[before <= 0], before[before <= 0])
        changed += int((after != before).sum())
        air += int((before <= 0).sum())
    assert changed
    assert air


def test_sam_med3d_s_scale_leaves_air_alone(a_case: Prepared) -> None:
    method = load_methods()["sam-med3d"]
    for scaling in ("above zero", "volume"):
        config = configured(method.config, {"scaling": scaling, "augment": "full", "edge": 32})
        preparation = Preparation(scaling="zscore" if scaling == "volume" else "above zero")
        plan = Plan(
            labels=("background", "a"),
            values=(0, 1),
            channels=1,
            preparation=preparation,
            patch=(16, 16, 16),
            flip=True,
        )
        found = method.items([a_case], plan, config, torch.nn.Identity(), "cpu", iter)
        assert isinstance(found, Patches)
        assert found.still == (found.seen is above_zero) == (scaling == "above zero")


def test_what_is_not_shown_is_no_object(a_case: Prepared) -> None:
    items = Patches([a_case], (16, 16, 16), Augment("strong"), 1, seen=normalise)
    outside = 0
    for number in range(20):
        item = items[number]
        shown = item["image"][2]
        assert set(shown.unique().tolist()) <= {0.0, 1.0}, "where the scan is is told as it is in use"
        outside += int((shown == 0).sum())
        assert not item["label"][shown == 0].any()
    assert outside


@pytest.mark.parametrize("turn", [(0, 1, 2), (0,)])
def test_an_even_image_stays_even_when_it_is_blurred(turn: tuple[int, ...]) -> None:
    even = np.full((1, 3, 9, 9), 2.0, np.float32)
    for number in range(40):
        changed = Augment("full", turn=turn).values(even, np.random.default_rng(number))
        if np.ptp(changed) > 1e-4:  # noise, which is drawn for every voxel
            assert np.abs(np.diff(changed.mean(axis=(0, 2, 3)))).max() < 0.1


def test_slices_do_not_flow_into_one_another() -> None:
    image = torch.zeros(1, 5, 9, 9)
    image[:, 2] = 1
    torch.testing.assert_close(blur(image, (1.0, 1.0)), image)
    assert blur(image, (1.0, 1.0, 1.0))[0, 1].mean() > 0.1
    torch.testing.assert_close(blur(torch.ones(2, 5, 9, 9), (1.0, 1.0, 1.0)), torch.ones(2, 5, 9, 9))


@pytest.mark.parametrize("strength", ["full", "strong"])
def test_values_of_a_slice_do_not_depend_on_other_slices(strength: Strength) -> None:
    one = np.random.default_rng(0).normal(size=(1, 5, 16, 16)).astype(np.float32)
    other = one.copy()
    other[:, 2:4] = one[:, 2:4, ::-1]  # nothing that is drawn by the lowest and the highest value differs
    for number in range(20):
        first, second = (
            Augment(strength, turn=(0,)).values(image, np.random.default_rng(number)) for image in (one, other)
        )
        np.testing.assert_allclose(first[:, :2], second[:, :2], atol=1e-5)


def test_more_slices_than_memory_holds_are_refused_before_the_first_is_encoded(
    a_case: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("volsam.data.memory.available_memory", lambda: 10_000)
    asked: list[int] = []

    def encode(image: torch.Tensor) -> torch.Tensor:
        asked.append(len(image))
        return image

    with pytest.raises(BadInput, match=r"20 encoded slices take .* of memory, and .* are free: learn from fewer"):
        Embedded(Stacks([a_case], 1, 16, Augment("none"), 0), encode, 1)
    assert len(asked) == 1


def test_brightness_wanders_smoothly_where_changes_are_strong() -> None:
    dark = np.zeros((2, 24, 32, 40), np.float32)
    random = np.random.default_rng(5)
    fields = [Augment("strong").brightness(dark, random) for _ in range(20)]
    changed = [field for field in fields if field.any()]
    assert 10 < len(changed) < 20
    for field in changed:
        assert field.shape == dark.shape
        np.testing.assert_array_equal(field[0], field[1])  # all channels of a scan alike
        assert np.ptp(field) > 4 * np.abs(np.diff(field, axis=1)).max() > 0
    assert not Augment("full").brightness(dark, random).any()
