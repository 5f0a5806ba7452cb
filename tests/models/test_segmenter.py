import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from volsam.errors import BadInput
from volsam.models.encoder import EncoderConfig
from volsam.models.mask_head import HeadConfig
from volsam.models.prompt_encoder import PromptBatch, PromptConfig
from volsam.models.segmenter import Features, Segmenter, SegmenterConfig, enlarge

ENCODER = EncoderConfig(
    image=(16, 16, 16), patch=(4, 4, 4), width=12, depth=2, heads=2, mlp_width=24, window=(3, 3, 3), wide_blocks=(1,),
    out=12, taps=(1,),
)  # fmt: skip
CONFIG = SegmenterConfig(
    encoder=ENCODER,
    prompts=PromptConfig(image=ENCODER.image, grid=ENCODER.grid, width=12),
    head=HeadConfig(width=12, heads=2, mlp_width=16, inner=6, upscale=(6, 4), quality_width=8),
)


def a_segmenter(bias: str = "aligned", device: str = "cpu") -> Segmenter:
    torch.manual_seed(0)
    encoder = ENCODER.model_copy(update={"bias": bias})
    with torch.device(device):
        return Segmenter(CONFIG.model_copy(update={"encoder": encoder})).eval()


def an_image(batch: int = 1) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(batch, 1, 16, 16, 16)


def prompts() -> PromptBatch:
    torch.manual_seed(2)
    return PromptBatch(
        points=torch.tensor([[[3.0, 4.0, 5.0], [8.0, 8.0, 1.0]]]),
        labels=torch.tensor([[1, 0]]),
        boxes=torch.tensor([[[[1.0, 1.0, 1.0], [9.0, 9.0, 9.0]]]]),
        mask=torch.randn(1, 1, 16, 16, 16),
    )


def test_a_prediction_covers_the_image() -> None:
    segmenter = a_segmenter()
    with torch.no_grad():
        features = segmenter.encode(an_image())
        prediction = segmenter.decode(features, prompts(), "all")
    assert features.embedding.shape == (1, 12, 4, 4, 4)
    assert [tap.shape for tap in features.taps] == [(1, 4, 4, 4, 12)]
    assert prediction.logits.shape == (1, 4, 16, 16, 16)
    assert prediction.quality.shape == (1, 4)
    assert prediction.low_res.shape == (1, 4, 16, 16, 16)


def test_decoding_leaves_the_features_as_they_were() -> None:
    segmenter = a_segmenter()
    with torch.no_grad():
        features = segmenter.encode(an_image())
        kept = features.embedding.clone()
        first = segmenter.decode(features, prompts())
        segmenter.decode(features)
        again = segmenter.decode(features, prompts())
    assert torch.equal(features.embedding, kept)
    assert torch.equal(first.logits, again.logits)


def test_the_previous_answer_may_be_the_next_prompt() -> None:
    segmenter = a_segmenter()
    with torch.no_grad():
        features = segmenter.encode(an_image())
        first = segmenter.decode(features, PromptBatch(prompts().points, prompts().labels))
        next_ = segmenter.decode(features, PromptBatch(prompts().points, prompts().labels, mask=first.low_res))
    assert next_.logits.shape == first.logits.shape
    assert not torch.equal(next_.logits, first.logits)


def test_without_prompts_there_is_an_answer_too() -> None:
    segmenter = a_segmenter()
    with torch.no_grad():
        assert segmenter.decode(segmenter.encode(an_image(batch=2))).logits.shape == (2, 1, 16, 16, 16)


def test_an_image_of_another_size_is_refused() -> None:
    with pytest.raises(BadInput, match=r"\(1, 16, 16, 16\), got \(1, 16, 16, 8\)"):
        a_segmenter().encode(torch.zeros(1, 1, 16, 16, 8))


@pytest.mark.parametrize("bias", ["aligned", "published"])
def test_nothing_waits_for_the_device_or_is_made_on_the_host(bias: str) -> None:
    """Tensors of the meta device have no values: reading one, or mixing in a tensor of the host, fails."""
    segmenter = a_segmenter(bias, device="meta")
    said = prompts()
    there = PromptBatch(
        points=said.points.to("meta"),
        labels=said.labels.to("meta"),
        boxes=said.boxes.to("meta"),
        mask=said.mask.to("meta"),
    )
    features = segmenter.encode(an_image().to("meta"))
    assert segmenter.decode(features, there).logits.shape == (1, 1, 16, 16, 16)
    larger = Features(features.embedding, features.taps, torch.empty(1, 1, 20, 24, 28, device="meta"))
    assert segmenter.decode(larger, there).logits.shape == (1, 1, 20, 24, 28)


@pytest.mark.parametrize("bias", ["aligned", "published"])
def test_mixed_precision_gives_nearly_the_same(bias: str) -> None:
    segmenter = a_segmenter(bias)
    with torch.no_grad():
        exact = segmenter.encode(an_image()).embedding
        with torch.autocast("cpu", torch.bfloat16):
            features = segmenter.encode(an_image())
            segmenter.decode(features, prompts())
    assert (features.embedding.float() - exact).abs().max() < 0.2


def test_every_part_learns() -> None:
    segmenter = a_segmenter().train()
    prediction = segmenter.decode(segmenter.encode(an_image()), prompts(), "all")
    (prediction.logits.square().sum() + prediction.quality.sum()).backward()
    silent = {name for name, parameter in segmenter.named_parameters() if parameter.grad is None}
    assert silent == {"prompt_encoder.no_mask"}


def test_results_of_inference_mode_do_not_spoil_training() -> None:
    segmenter = a_segmenter()
    larger = torch.zeros(1, 1, 24, 24, 24)
    with torch.inference_mode():
        features = segmenter.encode(an_image())
        segmenter.decode(Features(features.embedding, features.taps, larger))
    features = segmenter.encode(an_image())
    segmenter.decode(Features(features.embedding, features.taps, larger)).logits.sum().backward()


@pytest.mark.parametrize("size", [(8, 8, 8), (4, 10, 7), (2, 5, 16), (1, 1, 1)])
def test_enlarging_is_trilinear_interpolation(size: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    image = torch.randn(2, 3, 2, 5, 4)
    expected = F.interpolate(image, size=size, mode="trilinear")
    assert_close(enlarge(image, size), expected, rtol=0, atol=1e-6)


def test_a_config_survives_json() -> None:
    assert SegmenterConfig.model_validate_json(CONFIG.model_dump_json()) == CONFIG


PARTS = [
    (slice(0, 16), slice(0, 16), slice(0, 16)),
    (slice(3, 9), slice(0, 1), slice(15, 16)),
    (slice(5, 5), slice(2, 4), slice(1, 9)),
]


@pytest.mark.parametrize("part", PARTS)
def test_a_refined_part_is_that_part_of_the_whole(part: tuple[slice, slice, slice]) -> None:
    segmenter = a_segmenter()
    with torch.no_grad():
        features = segmenter.encode(an_image())
        larger = Features(features.embedding, features.taps, torch.empty(1, 1, 16, 24, 40))
        for whole in (features, larger):
            prediction = segmenter.decode(whole, prompts(), "all")
            low_res, quality = segmenter.draft(whole, prompts(), "all")
            assert torch.equal(low_res, prediction.low_res)
            assert torch.equal(quality, prediction.quality)
            refined = segmenter.refine(whole, low_res, part)
            assert_close(refined, prediction.logits[(..., *part)], rtol=0, atol=1e-6)


def test_half_precision_interpolates_as_well() -> None:
    torch.manual_seed(0)
    image = torch.randn(1, 1, 1, 1, 300)
    coarse = enlarge(image.to(torch.bfloat16), (1, 1, 700))
    assert coarse.dtype == torch.bfloat16
    assert_close(coarse.float(), enlarge(image, (1, 1, 700)), rtol=0, atol=0.05)


@pytest.mark.parametrize("boxes", [True, False])
def test_absent_points_change_nothing(boxes: bool) -> None:
    segmenter = a_segmenter()
    torch.manual_seed(3)
    said = prompts()
    box = said.boxes if boxes else None
    alone = PromptBatch(said.points, said.labels, box, said.mask)
    points = torch.cat([16 * torch.rand(1, 3, 3), said.points], dim=1)
    labels = torch.cat([torch.full((1, 3), -1), said.labels], dim=1)
    absent = torch.tensor([[True, True, True, False, False]])
    with torch.no_grad():
        features = segmenter.encode(an_image())
        expected = segmenter.decode(features, alone, "all")
        filled = segmenter.decode(features, PromptBatch(points, labels, box, said.mask, absent), "all")
        counted = segmenter.decode(features, PromptBatch(points, labels, box, said.mask), "all")
    assert_close(filled.logits, expected.logits, rtol=0, atol=1e-5)
    assert_close(filled.quality, expected.quality, rtol=0, atol=1e-5)
    assert (counted.logits - expected.logits).abs().max() > 1e-4
