import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from volsam.adapters.spatial import SpatialAdapter, add_spatial_adapters
from volsam.models.encoder import Encoder


def test_an_adapter_adds_what_the_surroundings_are_like() -> None:
    torch.manual_seed(0)
    adapter, x = SpatialAdapter(6, 4).double(), torch.randn(2, 3, 4, 5, 6, dtype=torch.float64)
    narrow = F.relu(adapter.down(x)).movedim(-1, 1).contiguous()
    mixed = F.relu(F.conv3d(narrow, adapter.mix.weight, adapter.mix.bias, padding=1, groups=4)).movedim(1, -1)
    assert_close(adapter(x), x + F.relu(adapter.up(mixed)), rtol=0, atol=1e-12)
    assert (adapter(x) >= x).all()
    assert (adapter(x) > x).any()


def test_a_token_is_read_by_its_26_neighbours_and_by_none_beyond() -> None:
    adapter, x = SpatialAdapter(3, 3), torch.zeros(1, 5, 5, 5, 3)
    for parameter in adapter.parameters():
        nn.init.constant_(parameter, 0.1)
    changed = x.clone()
    changed[0, 2, 2, 2] = 1
    reached = ((adapter(changed) - changed) - (adapter(x) - x)).abs().amax(dim=-1)[0] > 1e-6
    assert reached[1:4, 1:4, 1:4].all()
    assert reached.sum() == 27


def test_every_block_gets_an_adapter_of_its_own(a_slice_encoder: Encoder) -> None:
    before = sum(p.numel() for p in a_slice_encoder.parameters())
    add_spatial_adapters(a_slice_encoder, channels=12)
    assert len({id(block.before_attention) for block in a_slice_encoder.blocks}) == 2
    each = 24 * 12 + 12 + 12 * 27 + 12 + 12 * 24 + 24
    assert sum(p.numel() for p in a_slice_encoder.parameters()) - before == 2 * each


def test_an_adapter_of_the_release_has_its_published_size() -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in SpatialAdapter(768, 384).parameters()) == 601_728
