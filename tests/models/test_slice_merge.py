import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from volsam.errors import BadInput
from volsam.models.slice_merge import MergedSlices, enlarging

WIDTH = 5


def a_merge(patch: tuple[int, int, int], factor: tuple[int, int, int], depth: int = 2) -> MergedSlices:
    torch.manual_seed(0)
    merge = MergedSlices(WIDTH, patch, factor, depth).double()
    for parameter in merge.parameters():
        nn.init.normal_(parameter)
    return merge


def a_crop(merge: MergedSlices, grid: tuple[int, int, int] = (2, 3, 4)) -> Tensor:
    size = [n * fine // times for n, fine, times in zip(grid, merge.patch, merge.factor, strict=True)]
    return torch.randn(2, 1, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def step_by_step(merge: MergedSlices, crop: Tensor) -> Tensor:
    """Enlarged in three colours, then slice by slice, as published."""
    colours = crop.expand(-1, 3, -1, -1, -1)
    return merge(F.interpolate(colours, scale_factor=[float(n) for n in merge.factor], mode="trilinear"))


CASES = [
    # enlarged voxels of a token, how many times enlarged
    ((16, 16, 16), (4, 4, 4)),  # the release: a token is 4³ voxels
    ((16, 16, 16), (2, 2, 2)),  # its automatic mode: 8³ voxels
    ((2, 16, 16), (2, 4, 4)),
    ((6, 9, 3), (3, 3, 3)),
    ((3, 4, 2), (1, 1, 1)),  # nothing enlarged
    ((8, 4, 4), (8, 4, 4)),  # a token is one voxel
]


@pytest.mark.parametrize(("patch", "factor"), CASES)
def test_one_convolution_does_what_enlarging_embedding_and_merging_do(
    patch: tuple[int, int, int], factor: tuple[int, int, int]
) -> None:
    merge = a_merge(patch, factor)
    crop = a_crop(merge)
    wanted = step_by_step(merge, crop)
    assert wanted.shape == (2, 2, 3, 4, WIDTH)
    assert_close(merge(crop), wanted, rtol=0, atol=1e-11)
    assert_close(merge.float()(crop.float()), wanted.float(), rtol=1e-5, atol=1e-5 * float(wanted.detach().abs().max()))


@pytest.mark.parametrize(("factor", "edge"), [(4, 6), (2, 10)])
def test_the_kernel_sees_one_voxel_around_a_token(factor: int, edge: int) -> None:
    kernel, bias = a_merge((16, 16, 16), (factor, factor, factor)).folded()
    assert kernel.shape == (WIDTH, edge, edge, edge)
    assert bias.shape == (WIDTH,)


def test_every_weight_learns_as_step_by_step() -> None:
    merge = a_merge((4, 4, 4), (2, 2, 2))
    crop = a_crop(merge)
    weights = list(merge.parameters())
    assert len(weights) == 5
    ours = torch.autograd.grad(merge(crop).square().sum(), weights)
    theirs = torch.autograd.grad(step_by_step(merge, crop).square().sum(), weights)
    for one, other in zip(ours, theirs, strict=True):
        assert one.abs().max() > 0
        assert_close(one, other, rtol=1e-9, atol=1e-8)


def test_the_kernel_follows_weights_that_change() -> None:
    merge = a_merge((4, 4, 4), (2, 2, 2))
    crop = a_crop(merge)
    before = merge(crop)
    with torch.no_grad():
        merge.merge.mul_(2)
        merge.plane.weight.add_(1)
    assert (merge(crop) - before).abs().max() > 0.1
    assert_close(merge(crop), step_by_step(merge, crop), rtol=0, atol=1e-11)


def test_every_depth_has_its_code() -> None:
    merge = a_merge((4, 4, 4), (2, 2, 2), depth=3)
    codes = merge(a_crop(merge, (3, 2, 2))) - merge.of_crop(a_crop(merge, (3, 2, 2)))
    assert_close(codes, merge.depth[None, :, None, None].expand(2, -1, 2, 2, -1))


def test_enlarging_weighs_the_two_nearest_voxels() -> None:
    assert_close(
        enlarging(4, 2, torch.empty(0)),
        torch.tensor([[0.25, 0.75, 0, 0], [0, 0.75, 0.25, 0], [0, 0.25, 0.75, 0], [0, 0, 0.75, 0.25]]),
    )


def test_a_factor_that_cuts_voxels_in_two_is_refused() -> None:
    with pytest.raises(BadInput, match="divide"):
        MergedSlices(WIDTH, (2, 16, 16), (4, 4, 4), 2)
