from __future__ import annotations

import gc
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from volsam.errors import BadInput
from volsam.geometry import Grid
from volsam.inference.automatic import (
    StackModel,
    StackStyle,
    below_percentile,
    everything,
    middles,
    numbered,
    segment_slices,
    window,
)
from volsam.inference.slices import AXES
from volsam.volume import Volume

EDGE = 16


def bright(stacks: Tensor) -> Tensor:
    """Class 1 above the middle, class 2 near the top, at the size of the slices."""
    grey = stacks[:, :1]
    return torch.cat([0.5 - grey, grey - 0.5, 3 * grey - 2], dim=1)


def torch_network(classes: int = 3, seed: int = 0) -> torch.nn.Module:
    """Convolutions over neighbouring slices and pixels, so every place in a stack answers differently."""
    torch.manual_seed(seed)
    return torch.nn.Sequential(
        torch.nn.Conv3d(3, 6, 3, padding=1), torch.nn.GELU(), torch.nn.Conv3d(6, classes, 3, padding=1)
    )


def a_volume(shape: tuple[int, int, int] = (20, 22, 9), seed: int = 3) -> Volume:
    rng = np.random.default_rng(seed)
    values = rng.normal(0, 60, shape).astype(np.float32).cumsum(axis=0)
    return Volume(values.astype(np.int16), Grid.at(shape, (1.0, 1.0, 3.0), (-7, 5, 11)), "small")


# --- geometry ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("plane", ["auto", *AXES])
def test_labels_lie_on_the_very_grid_of_an_oblique_scan(a_small_ct: Volume, a_ball: np.ndarray, plane: str) -> None:
    style = StackStyle(1, window(0, 160))
    found = segment_slices(bright, a_small_ct, style, edge=44, plane=plane)
    assert found.grid == a_small_ct.grid
    assert found.header is a_small_ct.header
    assert found.data.dtype == np.uint8
    assert found.data.shape == (1, *a_small_ct.grid.shape)
    # Slices without the ball are brought to 0..1 as well, so only those through its middle can be judged.
    ball, mask = a_ball[18:27, 16:25, 11:18], found.data[0, 18:27, 16:25, 11:18] > 0
    assert (mask == ball).mean() > 0.9


@pytest.mark.parametrize("axes", ["RAS", "LPS", "SRA", "AIR", "PIL"])
def test_how_a_file_stores_its_axes_does_not_matter(axes: str) -> None:
    volume, network = a_volume(), torch_network()
    style = StackStyle(3, everything)
    wanted = segment_slices(network, volume, style, EDGE, "axial")
    grid = volume.grid.reoriented(axes)
    from volsam.geometry import resample

    turned = Volume(resample(volume.data[0], volume.grid, grid), grid)
    found = segment_slices(network, turned, style, EDGE, "axial")
    assert len(np.unique(wanted.data)) == 3
    assert (resample(found.data[0], grid, volume.grid) == wanted.data[0]).all()


def test_a_slice_is_shown_as_radiologists_see_it() -> None:
    """Axial: rows run to the back and columns to the left, slices to the head."""
    seen: list[Tensor] = []

    def look(stacks: Tensor) -> Tensor:
        seen.append(stacks[0, 0, 0])
        return stacks

    data = np.zeros((EDGE, EDGE, 3), np.float32)
    data[0, -1, 1] = 1  # left, front
    grid = Grid.at(data.shape, (1, 1, 4)).reoriented("RAS")
    segment_slices(look, Volume(data, grid), StackStyle(1, everything), EDGE, "axial")
    assert [int(picture.sum()) for picture in seen] == [0, 1, 0]
    assert seen[1][0, -1] == 1


# --- stacks --------------------------------------------------------------------------------------------------------


def naive(network: torch.nn.Module, volume: Volume, slices: int, edge: int) -> np.ndarray:
    """A stack around every slice of an axial RAS+ volume, all probabilities kept, added up slice by slice."""
    data = volume.data[0].astype(np.float32).transpose(2, 1, 0)[:, ::-1, ::-1]
    count, height, width = data.shape
    padded = np.concatenate([data[:1]] * (slices // 2) + [data] + [data[-1:]] * (slices // 2))
    total = torch.zeros(count + slices - 1, 3, height, width)
    for start in range(count):
        stack = padded[start : start + slices]
        stack = (stack - stack.min()) / (stack.max() - stack.min())
        image = torch.from_numpy(np.ascontiguousarray(stack))[:, None]
        image = F.interpolate(image, size=(edge, edge), mode="bilinear", align_corners=False)
        with torch.no_grad():
            logits = network(image.expand(-1, 3, -1, -1).transpose(0, 1)[None])[0].transpose(0, 1)
        probability = logits.softmax(dim=1)
        total[start : start + slices] += F.interpolate(
            probability, size=(height, width), mode="bilinear", align_corners=False
        )
    labels = total[slices // 2 : slices // 2 + count].argmax(dim=1).numpy()
    return labels[:, ::-1, ::-1].transpose(2, 1, 0)


@pytest.mark.parametrize("slices", [3, 5])
@pytest.mark.parametrize("count", [1, 2, 4, 9])
def test_overlapping_stacks_vote_as_a_naive_loop_lets_them(slices: int, count: int) -> None:
    volume, network = a_volume((20, 22, count)), torch_network()
    found = segment_slices(network, volume, StackStyle(slices, everything), EDGE, "axial")
    wanted = naive(network, volume, slices, EDGE)
    assert (found.data[0] == wanted).mean() > 0.999
    assert len(np.unique(wanted)) > 1


@pytest.mark.parametrize("count", [1, 2, 3, 5, 6, 7, 11, 23])
@pytest.mark.parametrize("stride", [1, 2, 3, 4, 5])
def test_every_slice_is_in_a_stack(count: int, stride: int) -> None:
    found = middles(count, reach=2, stride=stride)
    assert all(0 <= middle < count for middle in found)
    assert all(0 < b - a <= stride for a, b in pairwise(found))
    seen = {index for middle in found for index in range(middle - 2, middle + 3)}
    assert seen >= set(range(count))
    assert len(found) <= -(-count // stride) + 1
    if stride == 1:
        assert found == list(range(count))


@pytest.mark.parametrize("stride", [2, 5])
@pytest.mark.parametrize("count", [1, 6, 7, 12])
def test_a_wider_stride_asks_less_and_labels_every_slice(stride: int, count: int) -> None:
    """With brightness limits that all stacks share and a model that looks at pixels alone, the answer is the same."""
    asked: list[int] = []

    def predict(stacks: Tensor) -> Tensor:
        asked.append(len(stacks))
        return bright(stacks)

    data = np.tile(np.linspace(0, 1, 20, dtype=np.float32)[:, None, None], (1, 22, count))
    volume = Volume(data, Grid.at(data.shape, (1, 1, 3)))
    style = StackStyle(5, everything)
    wide = segment_slices(predict, volume, style, EDGE, "axial", stride=stride)
    assert len(asked) == len(middles(count, 2, stride))
    assert (wide.data == segment_slices(bright, volume, style, EDGE, "axial").data).all()


@pytest.mark.parametrize("stride", [0, 6])
def test_a_stride_that_would_leave_slices_out_is_refused(stride: int) -> None:
    with pytest.raises(BadInput, match=f"1 to 5, got {stride}"):
        segment_slices(bright, a_volume(), StackStyle(5, everything), EDGE, stride=stride)


def test_an_unknown_plane_is_refused() -> None:
    with pytest.raises(BadInput, match="got 'oblique'"):
        segment_slices(bright, a_volume(), StackStyle(1, everything), EDGE, "oblique")


def test_memory_does_not_grow_with_the_number_of_slices() -> None:
    def most_alive(count: int) -> int:
        alive: list[int] = []

        def predict(stacks: Tensor) -> Tensor:
            alive.append(sum(type(one) is Tensor and one.numel() >= EDGE * EDGE for one in gc.get_objects()))
            return bright(stacks)

        segment_slices(predict, a_volume((20, 22, count)), StackStyle(5, everything), EDGE, "axial")
        return max(alive)

    assert most_alive(40) <= most_alive(12)


def test_progress_is_told_the_stacks_one_by_one() -> None:
    passed: list[int] = []

    def progress(items):  # type: ignore[no-untyped-def]
        for item in items:
            yield item
            passed.append(item)

    segment_slices(bright, a_volume(), StackStyle(1, everything), EDGE, "axial", progress=progress)
    assert passed == list(range(9))


# --- what a model sees ---------------------------------------------------------------------------------------------


def seen_by(style: StackStyle, volume: Volume) -> list[Tensor]:
    seen: list[Tensor] = []

    def look(stacks: Tensor) -> Tensor:
        seen.append(stacks)
        return stacks

    segment_slices(look, volume, style, EDGE, "axial")
    return seen


def test_a_window_clips_and_every_stack_spans_0_to_1() -> None:
    data = np.zeros((EDGE, EDGE, 7), np.float32)
    data[0, 0], data[1, 0] = -1000, 3000
    data[2, 0, 3:] = 100
    stacks = seen_by(StackStyle(3, window(-200, 250)), Volume(data, Grid.at(data.shape, (1, 1, 3))))
    assert stacks[0].shape == (1, 3, 3, EDGE, EDGE)
    assert all(stack.min() == 0 and stack.max() == 1 for stack in stacks)
    levels = sorted(stacks[5].unique().tolist())
    assert levels == pytest.approx([0, 200 / 450, 300 / 450, 1])
    assert all((stack[:, 0] == stack[:, 2]).all() for stack in stacks)


def test_the_brightest_part_of_a_volume_is_clipped() -> None:
    data = np.arange(1000, dtype=np.int16).reshape(10, 10, 10)
    low, high = below_percentile(99)(Volume(data, Grid.at(data.shape)))
    assert low == -np.inf
    assert high == pytest.approx(np.percentile(data, 99))


def test_a_slice_of_one_value_is_all_dark() -> None:
    data = np.full((EDGE, EDGE, 2), 7, np.float32)
    assert all((stack == 0).all() for stack in seen_by(StackStyle(1, everything), Volume(data, Grid.at(data.shape))))


def test_a_model_knows_its_labels_and_segments() -> None:
    style = StackStyle(1, everything)
    model = StackModel(bright, "bright", ("background", "grey", "white"), style, EDGE)
    found = model.segment(a_volume(), "axial")
    assert (found.data == segment_slices(bright, a_volume(), style, EDGE, "axial").data).all()
    assert model.labels[int(found.data.max())] == "white"
    assert numbered(3) == ("background", "class 1", "class 2")
