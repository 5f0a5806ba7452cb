import pytest
import torch
from einops import rearrange
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from volsam.models.encoder import Block, ChannelNorm, Encoder, EncoderConfig, PatchEmbedding

CONFIG = EncoderConfig(
    image=(16, 16, 16),
    patch=(4, 4, 4),
    width=12,
    depth=3,
    heads=2,
    mlp_width=24,
    window=(3, 3, 3),
    wide_blocks=(1,),
    out=8,
)
SLICES = EncoderConfig(
    image=(1, 20, 20), patch=(1, 4, 4), channels=3, width=12, depth=3, heads=2, mlp_width=24, window=(1, 3, 3),
    wide_window=(1, 0, 0), wide_blocks=(1,), bias_axes="hw", neck_kernel=(1, 3, 3), out=8,
)  # fmt: skip
PLACES = ("before_attention", "after_attention", "before_mlp", "beside_mlp", "after_mlp", "after_block")


def an_encoder(config: EncoderConfig = CONFIG, **changes: object) -> Encoder:
    torch.manual_seed(0)
    encoder = Encoder(config.model_copy(update=changes))
    for name, parameter in encoder.named_parameters():
        if "tables" in name:
            nn.init.normal_(parameter)
    return encoder.eval()


def an_image(config: EncoderConfig = CONFIG, batch: int = 1) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(batch, config.channels, *config.image)


def test_an_image_becomes_an_embedding_of_its_grid() -> None:
    embedding, taps = an_encoder()(an_image(batch=2))
    assert embedding.shape == (2, 8, 4, 4, 4)
    assert taps == ()


def test_taps_keep_tokens_on_the_way() -> None:
    encoder = an_encoder(taps=(0, 2, 3))
    embedding, taps = encoder(an_image())
    assert [tap.shape for tap in taps] == [(1, 4, 4, 4, 12)] * 3
    assert_close(taps[0], encoder.patches(an_image()) + encoder.position)
    assert_close(taps[2], encoder.blocks[2](taps[1]))
    assert_close(embedding, encoder.neck(taps[2]))


def test_taps_do_not_change_the_embedding() -> None:
    assert_close(an_encoder(taps=(1,))(an_image())[0], an_encoder()(an_image())[0])


def test_a_stack_of_slices_is_encoded_slice_by_slice() -> None:
    encoder = an_encoder(SLICES)
    stack = torch.randn(2, 3, 4, 20, 20)
    apart = torch.cat([encoder(slice_)[0] for slice_ in stack.split(1, dim=2)], dim=2)
    assert_close(encoder(stack)[0], apart, rtol=0, atol=1e-5)


def test_blocks_that_are_computed_again_have_the_same_gradients_and_keep_less() -> None:
    found = {}
    for again in (False, True):
        encoder = an_encoder()
        encoder.blocks[1].after_mlp = nn.Dropout(0.5)
        encoder.train().recompute = again
        kept: list[int] = []
        torch.manual_seed(2)
        with torch.autograd.graph.saved_tensors_hooks(lambda x, kept=kept: (kept.append(x.numel()), x)[1], lambda x: x):
            loss = encoder(an_image())[0].square().sum()
        loss.backward()
        found[again] = sum(kept), {name: weight.grad for name, weight in encoder.named_parameters()}
    assert found[True][0] < found[False][0] / 2
    for name, gradient in found[False][1].items():
        assert_close(found[True][1][name], gradient, msg=name)


def test_patches_are_a_strided_convolution() -> None:
    torch.manual_seed(0)
    patches = PatchEmbedding(3, 5, (1, 4, 2), (1, 4, 2))
    image = torch.randn(2, 3, 2, 8, 8)
    expected = F.conv3d(image, patches.weight, patches.bias, stride=(1, 4, 2))
    assert_close(patches(image), rearrange(expected, "b c d h w -> b d h w c"), rtol=0, atol=1e-5)


def test_a_channel_norm_works_at_every_voxel_for_itself() -> None:
    image = torch.randn(1, 6, 2, 3, 4) * 5 + 2
    normed = ChannelNorm(6)(image)
    assert_close(normed.mean(1), torch.zeros(1, 2, 3, 4), rtol=0, atol=1e-5)
    assert_close(normed.var(1, unbiased=False), torch.ones(1, 2, 3, 4), rtol=0, atol=1e-3)


def test_blocks_may_have_no_attention() -> None:
    encoder = an_encoder(blocks_without_attention=2)
    assert [block.attention is None for block in encoder.blocks] == [True, True, False]
    assert not [name for name in encoder.state_dict() if name.startswith(("blocks.0.norm1", "blocks.0.attention"))]
    assert encoder(an_image())[0].shape == (1, 8, 4, 4, 4)


def test_the_published_shortcut_goes_on_from_the_normed_tokens() -> None:
    x = torch.randn(1, 4, 4, 4, 12)
    for shortcut in ("stream", "normed"):
        torch.manual_seed(0)
        block = Block(CONFIG.model_copy(update={"shortcut": shortcut, "blocks_without_attention": 1}), 0)
        nn.init.normal_(block.norm2.weight)
        normed = block.norm2(x)
        assert_close(block(x), (x if shortcut == "stream" else normed) + block.mlp(normed))


def test_a_new_encoder_has_no_published_quirks() -> None:
    fields = EncoderConfig.model_fields
    assert (fields["bias"].default, fields["shortcut"].default) == ("aligned", "stream")
    assert fields["blocks_without_attention"].default == 0


@pytest.mark.parametrize("place", PLACES)
def test_an_adapter_may_move_into_every_place_and_sees_the_whole_grid(place: str) -> None:
    class Adapter(nn.Module):
        def __init__(self, scale: float) -> None:
            super().__init__()
            self.scale = scale
            self.seen: tuple[int, ...] = ()

        def forward(self, x: Tensor) -> Tensor:
            self.seen = x.shape
            return (0 if place == "beside_mlp" else x) + self.scale * x

    before = an_encoder()(an_image())[0]
    encoder = an_encoder()
    for block in encoder.blocks:
        setattr(block, place, Adapter(scale=0.0))
    assert_close(encoder(an_image())[0], before)
    assert encoder.blocks[0].get_submodule(place).seen == (1, 4, 4, 4, 12)
    for block in encoder.blocks:
        setattr(block, place, Adapter(scale=1.0))
    assert (encoder(an_image())[0] - before).abs().max() > 1e-3


def test_empty_places_hold_no_weights() -> None:
    names = {name.split(".")[2] for name in an_encoder().state_dict() if name.startswith("blocks.")}
    assert names == {"norm1", "attention", "norm2", "mlp"}


def test_an_unknown_size_is_refused() -> None:
    with pytest.raises(ValidationError):
        EncoderConfig(**CONFIG.model_dump(), windows=3)


def test_a_config_survives_json() -> None:
    assert EncoderConfig.model_validate_json(CONFIG.model_dump_json()) == CONFIG
