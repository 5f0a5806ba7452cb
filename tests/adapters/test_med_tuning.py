import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from volsam.adapters.med_tuning import DepthFrequencies, MedAdapter, Surround, add_med_tuning
from volsam.errors import BadInput
from volsam.models.encoder import Encoder


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


@pytest.mark.parametrize("depth", [1, 2, 5, 8])
def test_frequencies_along_depth_are_those_of_the_whole_volume(depth: int) -> None:
    branch, x = DepthFrequencies(depth).double(), drawn(2, depth, 4, 3, 6)
    nn.init.normal_(branch.weight)
    nn.init.normal_(branch.bias)
    each = (depth, 1, 1, 1)
    wave = torch.fft.fftn(x, dim=(1, 2, 3)) * branch.weight.view(each) + branch.bias.view(each)
    assert_close(branch(x), torch.fft.ifftn(wave, dim=(1, 2, 3)).abs())


def test_at_first_frequencies_give_the_magnitude_and_one_more_at_the_first_token() -> None:
    x = drawn(1, 4, 3, 3, 2)
    wanted = x.clone()
    wanted[:, 0, 0, 0] += 1
    assert_close(DepthFrequencies(4).double()(x), wanted.abs())


def test_half_precision_goes_through_single() -> None:
    x = drawn(1, 4, 3, 3, 2)
    found = DepthFrequencies(4)(x.bfloat16())
    assert found.dtype == torch.bfloat16
    assert_close(found.double(), DepthFrequencies(4).double()(x), atol=0.02, rtol=0.01)


def test_a_volume_of_another_depth_is_refused() -> None:
    with pytest.raises(BadInput, match="made for 4 tokens along depth and got 5"):
        DepthFrequencies(4)(torch.zeros(1, 5, 2, 2, 3))


@pytest.mark.parametrize("kernel", [3, 5])
def test_surroundings_are_two_convolutions_and_a_norm(kernel: int) -> None:
    torch.manual_seed(0)
    around, x = Surround(4, kernel).double(), drawn(2, 6, 5, 5, 4)
    norm = nn.BatchNorm3d(4).double()
    image, half = x.movedim(-1, 1), kernel // 2
    image = F.conv3d(image, around.plane.weight, around.plane.bias, padding=(0, half, half), groups=4)
    image = F.conv3d(image, around.depth.weight, around.depth.bias, padding=(half, 0, 0), groups=4)
    assert_close(around(x), F.relu(norm(image)).movedim(1, -1))
    assert_close(around.norm.running_mean, norm.running_mean)


def test_an_adapter_adds_its_three_views() -> None:
    torch.manual_seed(0)
    adapter, x = MedAdapter(8, 4, 3).double(), drawn(2, 3, 5, 4, 8)
    adapter.eval()
    narrow = F.gelu(adapter.down(x))
    seen = adapter.mix(adapter.near(narrow) + adapter.far(narrow) + adapter.frequencies(narrow))
    assert_close(adapter(x), x + F.gelu(adapter.up(narrow + seen)))


def test_a_linked_adapter_reads_what_the_one_before_found() -> None:
    torch.manual_seed(0)
    first = MedAdapter(8, 4, 3).double().eval()
    second = MedAdapter(8, 4, 3, first).double().eval()
    x = drawn(2, 3, 5, 4, 8)
    stream = first(x)
    found = first.found
    narrow = F.gelu(second.down(stream))
    own = second.mix(second.near(narrow) + second.far(narrow) + second.frequencies(narrow))
    own = second.join(torch.cat([own, second.link(found)], dim=-1))
    assert_close(second(stream), stream + F.gelu(second.up(narrow + own)))
    assert first.found is found, "there for a pass on the way back"
    assert second.found is None, "nobody reads it"


def test_the_ends_of_stages_are_linked(a_volume_encoder: Encoder) -> None:
    config = a_volume_encoder.config.model_copy(update={"depth": 12})
    encoder = Encoder(config)
    add_med_tuning(encoder, channels=6)
    adapters = [block.after_block for block in encoder.blocks]
    links = {i: adapters.index(a._before[0]) for i, a in enumerate(adapters) if a._before}
    assert links == {2: 0, 5: 2, 8: 5, 11: 8}
    add_med_tuning(a_volume_encoder, channels=6)
    adapters = [block.after_block for block in a_volume_encoder.blocks]
    assert [bool(adapter._before) for adapter in adapters] == [False, True, True, True]


def test_blocks_that_are_computed_again_have_the_same_gradients_and_count_a_batch_once(
    a_volume_encoder: Encoder, a_volume: Tensor
) -> None:
    add_med_tuning(a_volume_encoder, channels=6)
    told: list[dict[str, Tensor]] = []
    for again in (False, True):
        encoder = copy.deepcopy(a_volume_encoder).train()
        encoder.recompute = again
        for _ in range(2):
            encoder(a_volume)[0].square().sum().backward()
        gradients = {name: weight.grad for name, weight in encoder.named_parameters() if weight.grad is not None}
        told.append({**gradients, **dict(encoder.named_buffers())})
    assert told[0].keys() == told[1].keys()
    assert any("link" in name for name in told[0])
    for name, value in told[0].items():
        assert_close(told[1][name], value, msg=name)
    assert told[1]["blocks.0.after_block.near.norm.num_batches_tracked"] == 2


def test_copies_after_a_pass_have_links_of_their_own(a_volume_encoder: Encoder, a_volume: Tensor) -> None:
    add_med_tuning(a_volume_encoder, channels=6)
    a_volume_encoder(a_volume)[0].sum().backward()
    twin = copy.deepcopy(a_volume_encoder)
    assert twin.blocks[1].after_block._before[0] is twin.blocks[0].after_block
    with torch.no_grad():
        before = a_volume_encoder(a_volume)[0]
        twin.blocks[0].after_block.mix.weight.zero_()
        assert_close(a_volume_encoder(a_volume)[0], before, atol=0, rtol=0)
        assert (twin(a_volume)[0] - before).abs().max() > 1e-4


def test_stacks_of_slices_have_the_depth_that_was_said(a_slice_encoder: Encoder, a_stack: Tensor) -> None:
    add_med_tuning(a_slice_encoder, channels=6, depth=5)
    assert a_slice_encoder(a_stack)[0].shape == (2, 8, 5, 4, 4)
    with pytest.raises(BadInput, match="5 tokens"):
        a_slice_encoder(a_stack[:, :, :1])
