import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from volsam.models.dense_heads import ConvHead, ConvHeadConfig, LinearHead, LinearHeadConfig
from volsam.models.mask_head import HeadConfig, MaskHead

EMBEDDING = torch.randn(2, 8, 1, 3, 4, generator=torch.Generator().manual_seed(1))


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_the_last_stages_double_the_image() -> None:
    head = ConvHead(ConvHeadConfig(width=8, widths=(16, 8, 4, 2), doublings=2, classes=5))
    assert [stage.enlarge is not None for stage in head.stages] == [False, True, True]
    assert head(EMBEDDING).shape == (2, 5, 1, 12, 16)


def test_the_convolutional_head_is_the_published_sequence() -> None:
    torch.manual_seed(0)
    head = ConvHead(ConvHeadConfig(width=8, widths=(6, 3, 2), doublings=1, classes=4))

    def conv(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(x, layer.weight[:, :, 0], layer.bias, padding=layer.weight.shape[-1] // 2)

    x = EMBEDDING[:, :, 0]
    for layer in (
        *head.widen,
        head.stages[0].first,
        head.stages[0].second,
        head.stages[1].first,
        head.stages[1].second,
    ):
        x = F.relu(conv(layer, x))
    grow = head.stages[1].enlarge
    x = F.conv_transpose2d(x, grow.weight[:, :, 0], grow.bias, stride=2)
    assert_close(head(EMBEDDING)[:, :, 0], conv(head.classify, conv(head.mix, x)), atol=1e-5, rtol=0)


def test_the_linear_head_cuts_off_below_zero() -> None:
    torch.manual_seed(0)
    logits = LinearHead(LinearHeadConfig(width=8, upscale=(6, 4), classes=3))(EMBEDDING)
    assert logits.shape == (2, 3, 1, 12, 16)
    assert logits.min() == 0
    assert logits.max() > 0


def test_the_heads_have_their_published_numbers_of_parameters() -> None:
    """Four classes on SAM's embedding, as in the paper."""
    with torch.device("meta"):
        cnn = ConvHead(ConvHeadConfig(width=256, widths=(1024, 512, 256, 128, 64), classes=4))
        linear = LinearHead(LinearHeadConfig(width=256, upscale=(64, 32), classes=4))
        vit = MaskHead(HeadConfig(width=256, inner=128, masks=2, classes=4, upscale=(64, 32), step=(1, 2, 2)))
    assert (count(cnn), count(linear), count(vit)) == (20_686_340, 75_140, 3_780_002)


@pytest.mark.parametrize("batch", [1, 2])
def test_classes_are_asked_one_by_one(batch: int) -> None:
    """Each class answers as a head that knows this class alone."""
    torch.manual_seed(0)
    sizes = HeadConfig(width=8, heads=2, mlp_width=12, inner=4, masks=2, classes=3, upscale=(4, 2), step=(1, 2, 2))
    head = MaskHead(sizes).eval()
    position, prompts, dense = torch.randn(1, 3, 4, 8), torch.randn(batch, 1, 8), torch.zeros(1, 8, 1, 1, 1)
    with torch.no_grad():
        masks, quality = head(EMBEDDING[:batch], position, prompts, dense, "all")
        first, _ = head(EMBEDDING[:batch], position, prompts, dense, "one")
        assert masks.shape == (batch, 6, 1, 12, 16)
        assert_close(first, masks[:, ::2])
        for index in range(3):
            alone = MaskHead(sizes.model_copy(update={"classes": 1})).eval()
            own = head.state_dict()
            own["quality_token"] = own["quality_token"][index : index + 1]
            own["mask_tokens"] = own["mask_tokens"][2 * index : 2 * index + 2]
            alone.load_state_dict(own)
            its_masks, its_quality = alone(EMBEDDING[:batch], position, prompts, dense, "all")
            assert_close(masks[:, 2 * index : 2 * index + 2], its_masks, atol=1e-5, rtol=0)
            assert_close(quality[:, 2 * index : 2 * index + 2], its_quality, atol=1e-5, rtol=0)
