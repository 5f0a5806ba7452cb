import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from volsam.adapters.slices import GatedSurround, MixSlices, SliceMixer, add_gated_surround, add_slice_mixers
from volsam.errors import BadInput
from volsam.models.encoder import Encoder


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("slices", [1, 2, 5, 9])
def test_slices_are_mixed_as_a_convolution_over_the_stack_would(slices: int) -> None:
    torch.manual_seed(0)
    mix, x = MixSlices(6), drawn(2, slices, 3, 4, 6)
    x.requires_grad_()
    wanted = F.conv3d(x.movedim(-1, 1), mix.weight, mix.bias, padding=(1, 0, 0)).movedim(1, -1)
    assert_close(mix(x), wanted, atol=1e-5, rtol=0)
    learn = (x, mix.weight, mix.bias)
    gradients = [torch.autograd.grad(mixed.square().sum(), learn) for mixed in (mix(x), wanted)]
    assert_close(*gradients, atol=1e-3, rtol=1e-4)


def test_slices_are_mixed_under_mixed_precision_too() -> None:
    torch.manual_seed(0)
    mixer, x = SliceMixer(8, 6), drawn(2, 3, 4, 4, 8).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = mixer(x)
    assert_close(found, mixer(x), atol=0.05, rtol=0.05, check_dtype=False)
    found.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in mixer.parameters())


def test_a_slice_sees_its_neighbours_and_no_other_slice() -> None:
    torch.manual_seed(0)
    mixer, x = SliceMixer(8, 6).eval(), drawn(1, 5, 2, 2, 8)
    other = x.clone()
    other[:, 0] = x[:, 0].flip(-1)
    changed = (mixer(x) - mixer(other)).abs().amax(dim=(0, 2, 3, 4)) > 1e-6
    assert changed.tolist() == [True, True, False, False, False]


def test_mixing_learns_through_every_weight() -> None:
    torch.manual_seed(0)
    mixer = SliceMixer(8, 6)
    mixer(drawn(2, 3, 2, 2, 8).requires_grad_()).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in mixer.parameters())


def test_stacks_do_not_see_each_other(a_slice_encoder: Encoder, a_stack: Tensor) -> None:
    add_slice_mixers(a_slice_encoder, channels=6)
    a_slice_encoder.eval()
    with torch.no_grad():
        together, alone = a_slice_encoder(a_stack)[0], a_slice_encoder(a_stack[:1])[0]
        mixed, single = a_slice_encoder(a_stack[:1])[0], a_slice_encoder(a_stack[:1, :, 2:3])[0]
    assert_close(together[:1], alone, atol=1e-5, rtol=0)
    assert (mixed[:, :, 2:3] - single).abs().max() > 1e-3


def test_both_places_of_every_block_are_filled(a_slice_encoder: Encoder) -> None:
    add_slice_mixers(a_slice_encoder, channels=6)
    assert sum(isinstance(module, SliceMixer) for module in a_slice_encoder.modules()) == 4


class Published(nn.Module):
    """SAM-Med2D's adapter with channels first, layer by layer."""

    def __init__(self, ours: GatedSurround) -> None:
        super().__init__()
        self.ours = ours

    def forward(self, x: Tensor) -> Tensor:
        image = x.permute(0, 3, 1, 2)
        squeezed = F.relu(image.mean(dim=(2, 3)) @ self.ours.gate.layers[0].weight.T)
        gated = torch.sigmoid(squeezed @ self.ours.gate.layers[1].weight.T)[:, :, None, None] * image
        small = F.relu(F.conv2d(gated, self.ours.shrink.weight[:, :, 0], stride=2, padding=1))
        large = F.relu(F.conv_transpose2d(small, self.ours.grow.weight[:, :, 0], stride=2, padding=1))
        return self.ours.norm((image + large).permute(0, 2, 3, 1))


def test_the_gated_surround_is_the_published_one_slice_by_slice() -> None:
    torch.manual_seed(0)
    adapter, x = GatedSurround(8), drawn(2, 3, 4, 6, 8)
    wanted = torch.stack([Published(adapter)(x[:, index]) for index in range(3)], dim=1)
    assert_close(adapter(x), wanted, atol=1e-5, rtol=0)


def test_a_grid_that_cannot_be_halved_is_refused(a_slice_encoder: Encoder) -> None:
    add_gated_surround(a_slice_encoder)
    odd = Encoder(a_slice_encoder.config.model_copy(update={"image": (1, 40, 40)}))
    with pytest.raises(BadInput, match="5 × 5"):
        add_gated_surround(odd)
