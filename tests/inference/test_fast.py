from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from volsam.errors import BadInput
from volsam.inference.fast import FastSegmenter, bucket, filled_up
from volsam.models.encoder import EncoderConfig
from volsam.models.mask_head import HeadConfig
from volsam.models.prompt_encoder import PromptBatch, PromptConfig
from volsam.models.segmenter import Segmenter, SegmenterConfig

ENCODER = EncoderConfig(
    image=(16, 16, 16), patch=(4, 4, 4), width=12, depth=2, heads=2, mlp_width=24, out=12, taps=(1,)
)  # fmt: skip


def a_segmenter() -> Segmenter:
    torch.manual_seed(0)
    head = HeadConfig(width=12, heads=2, mlp_width=16, inner=6, upscale=(6, 4), quality_width=8)
    prompts = PromptConfig(image=ENCODER.image, grid=ENCODER.grid, width=12)
    segmenter = Segmenter(SegmenterConfig(encoder=ENCODER, prompts=prompts, head=head)).eval()
    for parameter in segmenter.parameters():
        nn.init.normal_(parameter, std=0.3)
    return segmenter


class Recorder:
    """Stands in for a CUDA graph: runs the step again on the memory it was recorded with, and counts."""

    def __init__(self) -> None:
        self.recorded = 0
        self.replayed = 0

    def __call__(self, step: Callable[[], None]) -> Callable[[], None]:
        self.recorded += 1

        def replay() -> None:
            self.replayed += 1
            step()

        return replay


def a_fast_one(precision: torch.dtype = torch.float32) -> tuple[Segmenter, FastSegmenter, Recorder]:
    segmenter, recorder = a_segmenter(), Recorder()
    return segmenter, FastSegmenter(segmenter, "cpu", precision, recorder), recorder


def an_image(seed: int = 1) -> torch.Tensor:
    return torch.randn(1, 1, 16, 16, 16, generator=torch.Generator().manual_seed(seed))


def prompts(points: int, seed: int = 2, mask: bool = False, boxes: int = 0) -> PromptBatch:
    g = torch.Generator().manual_seed(seed)
    return PromptBatch(
        16 * torch.rand(1, points, 3, generator=g) if points else None,
        torch.randint(0, 2, (1, points), generator=g) if points else None,
        16 * torch.rand(1, boxes, 2, 3, generator=g) if boxes else None,
        torch.randn(1, 1, 16, 16, 16, generator=g) if mask else None,
    )


def same(fast: FastSegmenter, segmenter: Segmenter, said: PromptBatch) -> None:
    with torch.no_grad():
        features = segmenter.encode(an_image())
        expected = segmenter.decode(features, said, "all")
    found = fast.decode(fast.encode(an_image()), said, "all")
    assert expected.logits.abs().max() > 0.1
    assert_close(found.logits, expected.logits, rtol=1e-4, atol=1e-4)
    assert_close(found.quality, expected.quality, rtol=1e-4, atol=1e-4)
    assert_close(found.low_res, expected.low_res, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("points", [0, 1, 2, 3, 5, 8, 9])
@pytest.mark.parametrize(("mask", "boxes"), [(False, 0), (True, 0), (True, 2)])
def test_it_answers_as_the_segmenter_does(points: int, mask: bool, boxes: int) -> None:
    segmenter, fast, _ = a_fast_one()
    same(fast, segmenter, prompts(points, mask=mask, boxes=boxes))


def test_a_shape_is_recorded_once_and_points_share_recordings() -> None:
    segmenter, fast, recorder = a_fast_one()
    features = fast.encode(an_image())
    assert recorder.recorded == 1
    for points in (5, 6, 7, 8):
        fast.decode(features, prompts(points, seed=points))
    assert (recorder.recorded, recorder.replayed) == (2, 5)
    fast.decode(features, prompts(9))
    assert recorder.recorded == 3
    for points in (6, 7):  # what an earlier call left in the memory does not show
        same(fast, segmenter, prompts(points, seed=points))


def test_results_are_values_that_later_calls_leave_alone() -> None:
    _, fast, _ = a_fast_one()
    first = fast.encode(an_image(1))
    answer = fast.decode(first, prompts(2))
    kept = first.embedding.clone(), first.taps[0].clone(), answer.logits.clone(), answer.quality.clone()
    fast.decode(fast.encode(an_image(5)), prompts(2, seed=9))
    for now, before in zip((first.embedding, first.taps[0], answer.logits, answer.quality), kept, strict=True):
        assert torch.equal(now, before)


def test_half_precision_stays_close_and_gives_single() -> None:
    segmenter, fast, _ = a_fast_one(torch.bfloat16)
    with torch.no_grad():
        features = segmenter.encode(an_image())
        expected = segmenter.decode(features, prompts(3))
    found = fast.decode(fast.encode(an_image()), prompts(3))
    assert found.logits.dtype == torch.float32
    largest = expected.logits.abs().max()
    assert 0 < (found.logits - expected.logits).abs().max() < 0.1 * largest


def test_the_segmenter_it_was_made_of_stays_as_it_was() -> None:
    segmenter = a_segmenter()
    before = {name: tensor.clone() for name, tensor in segmenter.state_dict().items()}
    FastSegmenter(segmenter, "cpu", torch.bfloat16, Recorder()).encode(an_image())
    for name, tensor in segmenter.state_dict().items():
        assert torch.equal(tensor, before[name])
        assert tensor.dtype == before[name].dtype


def test_a_part_is_refined_as_the_segmenter_does() -> None:
    segmenter, fast, _ = a_fast_one()
    features = fast.encode(an_image())
    low_res, _ = fast.draft(features, prompts(1))
    part = (slice(3, 9), slice(0, 16), slice(5, 6))
    assert_close(fast.refine(features, low_res, part), segmenter.refine(features, low_res, part))


def test_counts_are_rounded_up_to_powers_of_two() -> None:
    assert [bucket(count) for count in (0, 1, 2, 3, 4, 5, 8, 9)] == [1, 1, 2, 4, 4, 8, 8, 16]
    filled = filled_up(prompts(3))
    assert filled.labels is not None
    assert filled.absent is not None
    assert filled.labels[0, 3] == -1
    assert filled.absent.tolist() == [[False, False, False, True]]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_is_refused() -> None:
    with pytest.raises(BadInput, match="none is there"):
        FastSegmenter(a_segmenter())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_recorded_graph_answers_as_the_segmenter_does() -> None:
    segmenter = a_segmenter().cuda()
    fast = FastSegmenter(segmenter, precision=torch.float32)
    for points in (1, 3):
        said = prompts(points)
        assert said.points is not None
        assert said.labels is not None
        there = PromptBatch(said.points.cuda(), said.labels.cuda())
        with torch.no_grad():
            expected = segmenter.decode(segmenter.encode(an_image().cuda()), there)
        found = fast.decode(fast.encode(an_image().cuda()), there)
        assert_close(found.logits, expected.logits, rtol=1e-2, atol=1e-2)
