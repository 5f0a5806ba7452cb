"""Clicks through OpenVINO: the same answers as the segmenter's, from a folder that may be lost or broken."""

import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import jaxtyping
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from volsam.errors import NotSupported
from volsam.inference import openvino
from volsam.inference.openvino import OpenVinoSegmenter, fingerprint
from volsam.models.encoder import EncoderConfig
from volsam.models.mask_head import HeadConfig
from volsam.models.prompt_encoder import PromptBatch, PromptConfig
from volsam.models.segmenter import Segmenter, SegmenterConfig

pytestmark = pytest.mark.slow

pytest.importorskip("openvino")

ENCODER = EncoderConfig(
    image=(16, 16, 16), patch=(4, 4, 4), width=12, depth=2, heads=2, mlp_width=24, out=12, taps=(1,), bias="published"
)  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def _shapes_are_not_checked() -> Iterator[None]:
    """A network that is being recorded has shapes that are no numbers, which a run that checks them would refuse."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def a_segmenter(seed: int = 0) -> Segmenter:
    torch.manual_seed(seed)
    head = HeadConfig(width=12, heads=2, mlp_width=16, inner=6, upscale=(6, 4), quality_width=8)
    prompts = PromptConfig(
        image=ENCODER.image, grid=ENCODER.grid, width=12, waves=("sin", "cos", "sin"), dense_axes=(1, 0, 2)
    )
    segmenter = Segmenter(SegmenterConfig(encoder=ENCODER, prompts=prompts, head=head)).eval()
    for parameter in segmenter.parameters():
        nn.init.normal_(parameter, std=0.3)
    return segmenter


def an_image() -> torch.Tensor:
    return torch.randn(1, 1, 16, 16, 16, generator=torch.Generator().manual_seed(1))


def prompts(points: int = 1, batch: int = 1, mask: bool = False) -> PromptBatch:
    g = torch.Generator().manual_seed(2)
    return PromptBatch(
        16 * torch.rand(batch, points, 3, generator=g) if points else None,
        torch.randint(0, 2, (batch, points), generator=g) if points else None,
        mask=torch.randn(batch, 1, 16, 16, 16, generator=g) if mask else None,
    )


def same(ours: OpenVinoSegmenter, segmenter: Segmenter, said: PromptBatch) -> None:
    with torch.no_grad():
        expected = segmenter.decode(segmenter.encode(an_image()), said)
    found = ours.decode(ours.encode(an_image()), said)
    assert expected.logits.abs().max() > 0.1
    assert_close(found.logits, expected.logits, rtol=0, atol=1e-4)
    assert_close(found.low_res, expected.low_res, rtol=0, atol=1e-4)
    assert_close(found.quality, expected.quality, rtol=0, atol=1e-4)
    differ = ((found.logits > 0) != (expected.logits > 0)).sum()
    assert differ <= 1e-5 * found.logits.numel()


@pytest.fixture(scope="module")
def engine() -> OpenVinoSegmenter:
    made = OpenVinoSegmenter(a_segmenter())
    made.ready()
    return made


@pytest.fixture(scope="module")
def a_network() -> object:
    """Recorded once, since that takes seconds."""
    return openvino.recorded(a_segmenter())


@pytest.mark.parametrize("mask", [False, True])
def test_a_click_is_answered_as_the_segmenter_does(engine: OpenVinoSegmenter, mask: bool) -> None:
    same(engine, a_segmenter(), prompts(mask=mask))


def test_a_click_does_not_go_through_torch(engine: OpenVinoSegmenter, monkeypatch: pytest.MonkeyPatch) -> None:
    features = engine.encode(an_image())
    monkeypatch.setattr(Segmenter, "draft", lambda *_: pytest.fail("torch was asked"))
    engine.draft(features, prompts(mask=True))


def test_the_first_clicks_wait_for_nothing(a_network: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino, "recorded", lambda _: a_network)
    started = OpenVinoSegmenter(a_segmenter())
    for clicks in range(openvino.FIRST_CLICKS + 2):
        assert (started._request is not None) == (clicks > openvino.FIRST_CLICKS)
        same(started, a_segmenter(), prompts(mask=clicks > 0))


def test_torch_answers_where_openvino_fails(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def fail(_: Segmenter) -> None:
        raise RuntimeError("Exception from somewhere:\nno such operation")

    monkeypatch.setattr(openvino, "recorded", fail)
    monkeypatch.setattr(openvino, "FIRST_CLICKS", 0)
    failing = OpenVinoSegmenter(a_segmenter())
    with caplog.at_level(logging.WARNING):
        for mask in (False, True):
            same(failing, a_segmenter(), prompts(mask=mask))
    assert caplog.text.count("OpenVINO cannot compute the clicks of this network (no such operation)") == 1


@pytest.mark.parametrize("said", [prompts(3), prompts(0, mask=True), prompts(1, batch=3), PromptBatch()])
def test_other_prompts_are_answered_too(engine: OpenVinoSegmenter, said: PromptBatch) -> None:
    same(engine, a_segmenter(), said)


def test_results_are_values_that_later_calls_leave_alone(engine: OpenVinoSegmenter) -> None:
    features = engine.encode(an_image())
    low_res, _ = engine.draft(features, prompts())
    kept = low_res.clone()
    engine.draft(features, prompts(mask=True))
    assert torch.equal(low_res, kept)


def test_it_computes_on_as_many_threads_as_torch(engine: OpenVinoSegmenter) -> None:
    before = torch.get_num_threads()
    for threads in (2, 1):
        torch.set_num_threads(threads)
        engine.ready()
        compiled = engine._request.get_compiled_model()
        assert compiled.get_property("INFERENCE_NUM_THREADS") == threads
    torch.set_num_threads(before)


def test_what_was_recorded_is_used_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    OpenVinoSegmenter(a_segmenter(), tmp_path / "kept").ready()
    (folder,) = (tmp_path / "kept").iterdir()
    assert folder.name == fingerprint(a_segmenter())
    monkeypatch.setattr(openvino, "recorded", lambda _: pytest.fail("it was recorded again"))
    again = OpenVinoSegmenter(a_segmenter(), tmp_path / "kept")
    again.ready()
    same(again, a_segmenter(), prompts(mask=True))


def test_other_weights_are_recorded_beside_and_the_oldest_go(
    tmp_path: Path, a_network: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino, "recorded", lambda _: a_network)
    for seed in range(openvino.KEPT + 2):
        OpenVinoSegmenter(a_segmenter(seed), tmp_path).ready()
    assert len(list(tmp_path.iterdir())) == openvino.KEPT
    assert (tmp_path / fingerprint(a_segmenter(openvino.KEPT + 1))).is_dir()


def test_a_broken_recording_is_made_again(tmp_path: Path, a_network: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino, "recorded", lambda _: a_network)
    OpenVinoSegmenter(a_segmenter(), tmp_path).ready()
    file = tmp_path / fingerprint(a_segmenter()) / "click.xml"
    file.write_text("<net>")
    OpenVinoSegmenter(a_segmenter(), tmp_path).ready()
    assert file.stat().st_size > 1000


def test_a_folder_that_cannot_be_made_is_said_and_does_no_harm(
    tmp_path: Path, a_network: object, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(openvino, "recorded", lambda _: a_network)
    (tmp_path / "file").write_text("")
    with caplog.at_level(logging.WARNING):
        OpenVinoSegmenter(a_segmenter(), tmp_path / "file").ready()
    assert "cannot be kept" in caplog.text


def test_an_engine_that_is_not_installed_is_said_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(NotSupported, match=r'is not installed: pip install "volsam\[openvino\]"'):
        OpenVinoSegmenter(a_segmenter())


def test_the_name_follows_from_the_weights() -> None:
    one, other = a_segmenter(), a_segmenter()
    assert fingerprint(one) == fingerprint(other)
    with torch.no_grad():
        other.mask_head.mask_tokens[0, 0] += 1
    assert fingerprint(one) != fingerprint(other)
