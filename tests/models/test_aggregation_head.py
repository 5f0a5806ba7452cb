import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from volsam.evaluation.published.sam_adapter_3d import AggregationDecoder
from volsam.models.aggregation_head import (
    AggregationHead,
    convolved_enlarged,
    convolved_to_few,
    enlarged_to_corners,
)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_a_convolution_of_an_enlarged_image_needs_no_enlarged_image() -> None:
    x, kernel = noise(2, 3, 4, 5, 2), noise(9, 3, 3, 3, 3, seed=1)
    enlarged = F.interpolate(x, scale_factor=2, mode="trilinear", align_corners=True)
    assert_close(convolved_enlarged(x, kernel), F.conv3d(enlarged, kernel, padding=1), rtol=0, atol=1e-12)


@pytest.mark.parametrize("channels", [1, 4])
def test_a_convolution_to_few_channels_is_one(channels: int) -> None:
    x, kernel = noise(2, 3, 4, 5, 6), noise(channels, 3, 3, 3, 3, seed=1)
    assert_close(convolved_to_few(x, kernel), F.conv3d(x, kernel, padding=1), rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", [(8, 10, 4), (5, 15, 2), (16, 3, 7)])
def test_an_image_grows_with_its_corners_in_place(size: tuple[int, int, int]) -> None:
    x = noise(2, 3, 4, 5, 2)
    wanted = F.interpolate(x, size=size, mode="trilinear", align_corners=True)
    assert_close(enlarged_to_corners(x, size), wanted, rtol=0, atol=1e-12)


@pytest.fixture
def a_head() -> AggregationHead:
    torch.manual_seed(0)
    return AggregationHead(width=6, channels=4, classes=3, levels=4).double()


def as_published(head: AggregationHead) -> AggregationDecoder:
    decoder = AggregationDecoder(width=6, channels=4, classes=3).double()
    ours = head.state_dict()
    names = {f"mlahead.head{level + 2}.{place}.weight": f"levels.{level}.{layer}.weight"
             for level in range(4) for place, layer in ((0, "first"), (3, "second"))}  # fmt: skip
    names |= {"cls.0.weight": "mix.weight", "cls.3.weight": "last.weight"}
    decoder.load_state_dict({theirs: ours[name] for theirs, name in names.items()}, strict=True)
    return decoder


def test_the_head_is_the_published_one(a_head: AggregationHead) -> None:
    levels, raw = [noise(2, 6, 3, 4, 5, seed=n) for n in range(4)], noise(2, 1, 6, 8, 10, seed=9)
    wanted = as_published(a_head)(levels, raw, (2, 1))
    assert_close(a_head(a_head.context(levels[:3], raw), levels[3]), wanted, rtol=0, atol=1e-11)


def test_every_weight_learns_as_in_the_published_one(a_head: AggregationHead) -> None:
    levels, raw = [noise(1, 6, 2, 3, 2, seed=n).requires_grad_() for n in range(4)], noise(1, 1, 4, 6, 4, seed=9)
    decoder = as_published(a_head)
    decoder(levels, raw, (2, 1)).pow(3).sum().backward()
    of_levels = [level.grad for level in levels]
    for level in levels:
        level.grad = None
    a_head(a_head.context(levels[:3], raw), levels[3]).pow(3).sum().backward()
    pairs = [(a_head.mix, decoder.cls[0]), (a_head.last, decoder.cls[3])]
    pairs += [(a_head.levels[n].first, getattr(decoder.mlahead, f"head{n + 2}")[0]) for n in range(4)]
    for ours, theirs in pairs:
        assert_close(ours.weight.grad, theirs.weight.grad, rtol=1e-7, atol=1e-8)
    for level, wanted in zip(levels, of_levels, strict=True):
        assert_close(level.grad, wanted, rtol=1e-7, atol=1e-8)


def test_one_context_serves_several_deepest_levels(a_head: AggregationHead) -> None:
    levels, raw = [noise(1, 6, 2, 3, 4, seed=n) for n in range(3)], noise(1, 1, 4, 6, 8, seed=9)
    context, deepest = a_head.context(levels, raw), noise(3, 6, 2, 3, 4, seed=3)
    apart = torch.cat([a_head(context, one[None]) for one in deepest])
    assert_close(a_head(context, deepest), apart, rtol=0, atol=1e-11)
