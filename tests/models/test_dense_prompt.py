"""The network of volsam-s and the maps that prompts become."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from volsam.models.dense_prompt import DensePromptNet
from volsam.models.prompt_maps import FAR, NOWHERE, Prompts, difference, likeness, nearness, path_cost


@pytest.fixture(scope="module")
def a_network() -> DensePromptNet:
    torch.manual_seed(0)
    return DensePromptNet().eval()


@pytest.fixture
def an_image() -> torch.Tensor:
    return torch.randn(1, 3, 32, 32, 32, generator=torch.Generator().manual_seed(1))


def clicks(*points: tuple[float, float, float], labels: tuple[int, ...] | None = None) -> Prompts:
    return Prompts(torch.tensor([points], dtype=torch.float32), torch.tensor([labels or (1,) * len(points)]))


def test_a_part_is_refined_as_within_the_whole(a_network: DensePromptNet, an_image: torch.Tensor) -> None:
    prompts = clicks((10, 12, 20), (3, 3, 3), labels=(1, 0))
    with torch.inference_mode():
        features = a_network.encode(an_image)
        whole = a_network.decode(features, prompts).logits
        draft = a_network.draft(features, prompts)
        for part in ((slice(4, 20), slice(0, 8), slice(10, 32)), (slice(0, 2), slice(30, 32), slice(0, 32))):
            assert_close(a_network.refine(features, prompts, draft, part), whole[(..., *part)], atol=1e-5, rtol=0)


def test_absent_prompts_change_nothing(a_network: DensePromptNet, an_image: torch.Tensor) -> None:
    with torch.inference_mode():
        features = a_network.encode(an_image)
        one = a_network.decode(features, clicks((10, 12, 20))).logits
        padded = a_network.decode(features, clicks((10, 12, 20), (NOWHERE,) * 3, labels=(1, -1))).logits
    assert_close(one, padded)


def test_the_order_of_clicks_does_not_matter(a_network: DensePromptNet, an_image: torch.Tensor) -> None:
    with torch.inference_mode():
        features = a_network.encode(an_image)
        one = a_network.decode(features, clicks((10, 12, 20), (20, 4, 9), labels=(1, 0))).logits
        other = a_network.decode(features, clicks((20, 4, 9), (10, 12, 20), labels=(0, 1))).logits
    assert_close(one, other)


def test_items_of_a_batch_do_not_see_each_other(a_network: DensePromptNet, an_image: torch.Tensor) -> None:
    with torch.inference_mode():
        features = a_network.encode(an_image)
        both = Prompts(torch.tensor([[[10.0, 12, 20]], [[25.0, 5, 6]]]), torch.tensor([[1], [1]]))
        together = a_network.draft(features.repeat(2), both).half
        alone = a_network.draft(features, clicks((25, 5, 6))).half
    assert_close(together[1:], alone, atol=1e-4, rtol=1e-4)


def test_a_click_is_nearest_to_itself() -> None:
    near = nearness(torch.tensor([[[6.0, 2.0, 5.0]]]), torch.tensor([[1]]), 1, (8, 8, 8), 1, 1.0)
    assert near.flatten().argmax() == (6 * 8 + 2) * 8 + 5
    assert nearness(torch.tensor([[[6.0, 2.0, 5.0]]]), torch.tensor([[1]]), 0, (8, 8, 8), 1, 1.0).max() == 0


def test_a_coarser_grid_puts_the_click_in_the_voxel_that_holds_it() -> None:
    near = nearness(torch.tensor([[[7.0, 0.0, 12.0]]]), torch.tensor([[1]]), 1, (4, 4, 4), 4, 0.5)
    assert near.flatten().argmax() == (1 * 4 + 0) * 4 + 3


def test_path_cost_is_the_lowest_wall_on_the_way() -> None:
    gap = torch.zeros(1, 1, 8, 8, 16)
    gap[..., 6] = 2.0  # a wall across the volume
    gap[:, :, 4, 4, 6] = 0.5  # with a thin place
    gap[..., 12:] = 1.0
    seeds = torch.zeros_like(gap)
    seeds[:, :, 4, 4, 2] = 1
    cost = path_cost(gap, seeds, sweeps=30)
    assert_close(cost[0, 0, 4, 4, 3], torch.tensor(0.0))
    assert_close(cost[0, 0, 4, 4, 6], torch.tensor(0.5))
    assert_close(cost[0, 0, 1, 1, 9], torch.tensor(0.5))
    assert_close(cost[0, 0, 1, 1, 14], torch.tensor(1.0))
    assert_close(cost[0, 0, 1, 1, 6], torch.tensor(2.0))


def test_without_clicks_every_difference_is_far() -> None:
    image = torch.randn(1, 2, 8, 8, 8)
    gap = difference(image, image, torch.tensor([[[1.0, 1, 1]]]), torch.tensor([[1]]), 0, 1)
    assert (gap == FAR).all()


def test_likeness_is_highest_at_the_click_itself() -> None:
    keys = torch.nn.functional.normalize(torch.randn(1, 8, 6, 6, 6), dim=1)
    like = likeness(keys, torch.tensor([[[1.0, 2, 3]]]), torch.tensor([[1]]), 1, 1)
    assert_close(like[0, 0, 1, 2, 3], torch.tensor(1.0))
    assert like.max() <= 1 + 1e-6


def test_quality_judges_without_bending_the_mask(a_network: DensePromptNet, an_image: torch.Tensor) -> None:
    network = DensePromptNet()
    draft = network.draft(network.encode(an_image), clicks((10, 12, 20)))
    draft.quality.sum().backward()
    touched = {name.split(".")[0] for name, value in network.named_parameters() if value.grad is not None}
    assert touched == {"quality"}


@pytest.mark.parametrize(("channels", "size", "kernel", "stride"), [(16, 32, 3, 1), (96, 8, 3, 1), (8, 12, 2, 2)])
def test_a_convolution_alone_gives_what_it_gives_in_a_batch(channels: int, size: int, kernel: int, stride: int) -> None:
    from volsam.models.dense_prompt import Convolution

    layer = Convolution(channels, 8, kernel, stride, padding=(kernel - 1) // 2)
    x = torch.randn(2, channels, size, size, size)
    with torch.inference_mode():
        together = layer(x)
        alone = torch.cat([layer(x[:1]), layer(x[1:])])
    torch.testing.assert_close(alone, together, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(layer(x[:1]), together[:1], atol=1e-5, rtol=1e-5)  # with gradients


@pytest.mark.parametrize("shape", [(1, 1, 5, 6, 7), (2, 1, 2, 1, 3), (1, 1, 1, 1, 1)])
def test_the_lowest_neighbour_is_that_of_max_pooling(shape: tuple[int, ...]) -> None:
    from volsam.models.prompt_maps import _lowest_neighbour

    x = torch.randn(shape)
    assert torch.equal(_lowest_neighbour(x), -torch.nn.functional.max_pool3d(-x, 3, 1, 1))


def test_clicks_of_one_sign_mean_the_same_beside_an_absent_one() -> None:
    network = DensePromptNet().eval()
    features = network.encode(torch.randn(1, 3, 32, 32, 32))
    one = Prompts(torch.tensor([[[9.0, 12.0, 20.0]]]), torch.tensor([[1]]))
    far = Prompts(torch.tensor([[[9.0, 12.0, 20.0], [-1e4, -1e4, -1e4]]]), torch.tensor([[1, -1]]))
    with torch.inference_mode():
        maps = network._shared_maps(features.image, one)
        torch.testing.assert_close(maps, network._shared_maps(features.image, far))
    # The negative maps of nothing are those that a network with clicks of both signs computes for a far one.
    assert (maps[:, 2:4] < 1e-5).all()
