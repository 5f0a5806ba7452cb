import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from volsam.models.visual_sampler import VisualSampler, sampled

GRID = (3, 4, 5)


@pytest.fixture
def a_sampler() -> VisualSampler:
    torch.manual_seed(0)
    return VisualSampler(width=8, depth=2, heads=2, mlp_width=12, inner=4, queries=3)


@pytest.fixture
def some_features() -> Tensor:
    return torch.randn(1, 8, *GRID, generator=torch.Generator().manual_seed(1))


def centre(*voxel: float) -> list[float]:
    """The position of a voxel's centre in the image, 0 to 1."""
    return [(index + 0.5) / size for index, size in zip(voxel, GRID, strict=True)]


def test_a_click_on_the_centre_of_a_token_reads_its_features(some_features: Tensor) -> None:
    read = sampled(some_features, torch.tensor([[centre(2, 1, 3), centre(0, 3, 4)]]))
    assert_close(read, torch.stack([some_features[:, :, 2, 1, 3], some_features[:, :, 0, 3, 4]], dim=1))


def test_a_click_between_tokens_reads_both(some_features: Tensor) -> None:
    read = sampled(some_features, torch.tensor([[centre(1, 2, 1.25)]]))
    assert_close(read[:, 0], 0.75 * some_features[:, :, 1, 2, 1] + 0.25 * some_features[:, :, 1, 2, 2])


def test_at_the_border_features_fade(some_features: Tensor) -> None:
    read = sampled(some_features, torch.tensor([[[0.0, *centre(0, 2, 1)[1:]]]]))
    assert_close(read[:, 0], 0.5 * some_features[:, :, 0, 2, 1])


def test_clicks_have_no_order(a_sampler: VisualSampler, some_features: Tensor) -> None:
    clicks = torch.rand(1, 4, 3, generator=torch.Generator().manual_seed(2))
    assert_close(a_sampler(some_features, clicks.flip(1)), a_sampler(some_features, clicks), rtol=1e-4, atol=1e-5)


def test_another_click_changes_all_of_the_image(a_sampler: VisualSampler, some_features: Tensor) -> None:
    one, other = (a_sampler(some_features, torch.tensor([[centre(*at)]])) for at in ((0, 0, 0), (2, 3, 4)))
    assert one.shape == some_features.shape
    assert ((one - other).abs().amax(dim=1) > 1e-4).all()


def test_no_click_is_an_answer_too(a_sampler: VisualSampler, some_features: Tensor) -> None:
    assert a_sampler(some_features, torch.zeros(1, 0, 3)).shape == some_features.shape


def test_one_image_serves_several_sets_of_clicks(a_sampler: VisualSampler, some_features: Tensor) -> None:
    clicks = torch.rand(3, 2, 3, generator=torch.Generator().manual_seed(2))
    apart = torch.cat([a_sampler(some_features, some[None]) for some in clicks])
    assert_close(a_sampler(some_features, clicks), apart, rtol=1e-4, atol=1e-5)


def test_every_weight_learns(a_sampler: VisualSampler, some_features: Tensor) -> None:
    a_sampler(some_features, torch.full((1, 2, 3), 0.3)).pow(3).sum().backward()
    for name, parameter in a_sampler.named_parameters():
        # A bias that all keys share does not show in a softmax.
        assert parameter.grad is not None, name
        assert name.endswith("key.bias") or parameter.grad.abs().max() > 1e-6, name
