import pytest
import torch
from torch import nn
from torch.testing import assert_close

from volsam.errors import BadInput
from volsam.models.encoder import EncoderConfig
from volsam.models.folded import folded
from volsam.models.mask_head import HeadConfig
from volsam.models.prompt_encoder import PromptBatch, PromptConfig
from volsam.models.segmenter import Segmenter, SegmenterConfig

ENCODER = EncoderConfig(image=(16, 16, 16), patch=(4, 4, 4), width=12, depth=1, heads=2, mlp_width=24, out=12)


def a_segmenter(depth: int = 2) -> Segmenter:
    torch.manual_seed(0)
    head = HeadConfig(width=12, depth=depth, heads=2, mlp_width=16, inner=6, upscale=(6, 4), quality_width=8)
    prompts = PromptConfig(image=ENCODER.image, grid=ENCODER.grid, width=12)
    segmenter = Segmenter(SegmenterConfig(encoder=ENCODER, prompts=prompts, head=head)).eval()
    for parameter in segmenter.mask_head.parameters():  # the norms too, or a forgotten one would not show
        nn.init.normal_(parameter, std=0.5)
    return segmenter


def prompts(points: int, batch: int = 1) -> PromptBatch:
    torch.manual_seed(1)
    labels = torch.arange(points).expand(batch, -1) % 2
    return PromptBatch(16 * torch.rand(batch, points, 3), labels, mask=torch.randn(batch, 1, 16, 16, 16))


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("points", [1, 9])
@pytest.mark.parametrize("batch", [1, 3])
def test_a_folded_segmenter_answers_the_same(depth: int, points: int, batch: int) -> None:
    segmenter = a_segmenter(depth)
    with torch.no_grad():
        features = segmenter.encode(torch.randn(1, 1, 16, 16, 16))
        expected = segmenter.decode(features, prompts(points, batch), "all")
        found = folded(segmenter).decode(features, prompts(points, batch), "all")
    assert expected.logits.abs().max() > 0.1
    assert_close(found.logits, expected.logits, rtol=1e-4, atol=1e-4)
    assert_close(found.quality, expected.quality, rtol=1e-4, atol=1e-4)


def test_absent_points_are_read_by_nobody() -> None:
    segmenter = a_segmenter()
    said = prompts(points=5)
    absent = torch.tensor([[False, True, False, True, True]])
    filled = PromptBatch(said.points, said.labels, mask=said.mask, absent=absent)
    with torch.no_grad():
        features = segmenter.encode(torch.randn(1, 1, 16, 16, 16))
        found = folded(segmenter).decode(features, filled)
        expected = segmenter.decode(features, filled)
        fewer = segmenter.decode(
            features, PromptBatch(said.points[:, ::2][:, :2], said.labels[:, ::2][:, :2], mask=said.mask)
        )
    assert_close(found.logits, expected.logits, rtol=1e-4, atol=1e-4)
    assert_close(found.logits, fewer.logits, rtol=1e-4, atol=1e-4)


def test_the_given_segmenter_stays_as_it_was() -> None:
    segmenter = a_segmenter()
    transformer, names = segmenter.mask_head.transformer, set(segmenter.state_dict())
    twin = folded(segmenter)
    assert segmenter.mask_head.transformer is transformer
    assert set(segmenter.state_dict()) == names
    assert twin.encoder is segmenter.encoder


def test_changed_layers_are_refused() -> None:
    class Changed(nn.Linear):
        pass

    segmenter = a_segmenter()
    segmenter.mask_head.transformer.last_look.query = Changed(12, 6)
    with pytest.raises(BadInput, match="got Changed"):
        folded(segmenter)
