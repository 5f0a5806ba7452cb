import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from volsam.adapters.bottleneck import Bottleneck, add_houlsby, add_pro_tuning, add_st_adapter
from volsam.models.encoder import Encoder


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def channels_first(x: Tensor) -> Tensor:
    return x.movedim(-1, 1).contiguous()


def test_houlsby_adds_to_what_attention_and_mlp_give(a_volume_encoder: Encoder) -> None:
    add_houlsby(a_volume_encoder, channels=5, spread=0.5)
    block, x = a_volume_encoder.blocks[1].double(), drawn(1, 4, 4, 4, 24)
    one, two = block.after_attention, block.after_mlp
    attended = block.attention(block.norm1(x))
    stream = x + attended + one.up(F.gelu(one.down(attended)))
    changed = block.mlp(block.norm2(stream))
    assert_close(block(x), stream + changed + two.up(F.gelu(two.down(changed))))


def test_houlsby_is_nearly_neutral_at_first(a_volume_encoder: Encoder, a_volume: Tensor) -> None:
    with torch.no_grad():
        before = a_volume_encoder(a_volume)[0]
        add_houlsby(a_volume_encoder, channels=5)
        change = (a_volume_encoder(a_volume)[0] - before).abs().max()
    assert 0 < change < 0.02 * before.abs().max()


def test_houlsby_fills_no_place_behind_attention_that_is_not_there(a_volume_encoder: Encoder) -> None:
    student = Encoder(a_volume_encoder.config.model_copy(update={"blocks_without_attention": 1}))
    add_houlsby(student, channels=5)
    assert isinstance(student.blocks[0].after_attention, nn.Identity)
    assert sum(isinstance(module, Bottleneck) for module in student.modules()) == 7


def test_pro_tuning_looks_around_in_every_slice_by_itself(a_volume_encoder: Encoder) -> None:
    add_pro_tuning(a_volume_encoder, channels=6)
    adapter, x = a_volume_encoder.blocks[3].after_block.double(), drawn(2, 4, 5, 3, 24)
    mix = adapter.between[1]
    for index in range(4):
        narrow = channels_first(F.gelu(adapter.down(x[:, index])))
        looked = F.conv2d(narrow, mix.weight[:, :, 0], mix.bias, padding=1, groups=6).movedim(1, -1)
        assert_close(adapter(x)[:, index], x[:, index] + adapter.up(F.gelu(looked)))


def test_st_adapter_adds_a_convolution_over_depth(a_volume_encoder: Encoder) -> None:
    add_st_adapter(a_volume_encoder, channels=6)
    adapter, x = a_volume_encoder.blocks[0].before_attention.double(), drawn(2, 4, 3, 5, 24)
    nn.init.normal_(adapter.between.weight)
    nn.init.normal_(adapter.between.bias)
    mixed = F.conv3d(
        channels_first(adapter.down(x)), adapter.between.weight, adapter.between.bias, padding=(1, 0, 0), groups=6
    )
    assert_close(adapter(x), x + adapter.up(mixed.movedim(1, -1)))


@pytest.mark.parametrize("places", [("before_attention",), ("before_attention", "before_mlp")])
def test_an_untrained_st_adapter_changes_nothing(
    places: tuple[str, ...], a_volume_encoder: Encoder, a_volume: Tensor
) -> None:
    with torch.no_grad():
        before = a_volume_encoder(a_volume)[0]
        add_st_adapter(a_volume_encoder, 6, places)
        assert_close(a_volume_encoder(a_volume)[0], before, atol=0, rtol=0)
    assert sum(isinstance(module, Bottleneck) for module in a_volume_encoder.modules()) == 4 * len(places)
