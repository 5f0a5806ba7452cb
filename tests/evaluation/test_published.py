"""The published networks as written out here, against what the originals compute and what they weigh and cost."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from volsam.errors import BadInput
from volsam.evaluation.published import auto_sam, figures, ma_sam, sam, sam_adapter_3d
from volsam.evaluation.published.encoder import AdaptedBlock, Encoder, StudentBlock
from volsam.recipes.families.fixture import Fixture, read_fixture

pytestmark = pytest.mark.slow

REFERENCE = Path(__file__).parents[1] / "reference"
PARITY = Path(os.environ.get("VOLSAM_SHARED", Path(__file__).parents[3] / "shared")) / "parity"


def fixture(name: str) -> Fixture:
    path = next(
        (folder / f"{name}.json" for folder in (REFERENCE, PARITY) if (folder / f"{name}.json").is_file()), None
    )
    if path is None:
        pytest.skip(f"no recorded arrays of {name} in {REFERENCE} or {PARITY}")
    return read_fixture(path)


def filled(network: nn.Module, recorded: Fixture, prefix: str = "") -> nn.Module:
    """Weights by the rule; masks of shifted windows are computed, not given."""
    weights = {name: tensor for name, tensor in recorded.weights().items() if name.startswith(prefix)}
    weights = {name.removeprefix(prefix): tensor for name, tensor in weights.items() if "attn_mask" not in name}
    ours = {name for name in network.state_dict() if "attn_mask" not in name}
    assert ours == set(weights) or prefix == "", ours ^ set(weights)
    network.load_state_dict(network.state_dict() | {name: weights[name] for name in ours}, strict=True)
    return network.eval().requires_grad_(False)


def agrees(recorded: Fixture, **found: Tensor) -> None:
    for name, tensor in found.items():
        wanted = recorded.arrays[name.replace("__", ".")]
        got = tensor.numpy()
        if got.shape != wanted.shape:
            got = got[(slice(None), slice(None), *[slice(None, None, 2)] * (got.ndim - 2))]
        np.testing.assert_allclose(got, wanted, atol=1e-4, rtol=0, err_msg=name)


def sizes(c: dict) -> dict:
    return {
        "width": c["embed_dim"],
        "depth": c["depth"],
        "heads": c["num_heads"],
        "window": c["window_size"],
        "wide": c["global_attn_indexes"],
    }


def heads(c: dict) -> dict:
    return {"hidden": c["transformer_mlp_dim"], "quality_width": c["iou_head_hidden_dim"]}


def test_sam_med2d_computes_what_the_original_does() -> None:
    recorded = fixture("sam_med2d")
    c = dict(recorded.facts)
    network = sam.Sam(
        2, c["img_size"], width=c["out_chans"], encoder=sizes(c) | {"block": AdaptedBlock}, decoder=heads(c)
    )
    filled(network, recorded)
    embedding = network.image_encoder(recorded.input("image", (1, 3, 64, 64)))
    masks, quality = network(embedding, recorded.given("points_xy"), recorded.given("labels"))
    agrees(recorded, embedding=embedding, logits_multi=masks[:, 1:], iou_multi=quality[:, 1:])


def test_sam_med3d_computes_what_the_original_does_with_the_mask_of_a_click_before() -> None:
    recorded = fixture("sam_med3d")
    c = dict(recorded.facts)
    network = sam.Sam(3, 64, width=96, encoder=sizes(c), decoder={"quality_width": 32})
    filled(network, recorded)
    embedding = network.image_encoder(recorded.input("image", (1, 1, 64, 64, 64)))
    mask = recorded.input("mask", (1, 1, 16, 16, 16))
    masks, _ = network(embedding, recorded.given("points"), recorded.given("labels"), None, mask)
    agrees(recorded, embedding=embedding, points_mask__logits_single=masks[:, :1])


def test_the_student_of_fastsam3d_computes_what_the_original_does_at_every_stage() -> None:
    recorded = fixture("fastsam3d_encoder")
    student = dict(recorded.facts)
    network = Encoder(3, grid=4, out=96, skip=2, block=StudentBlock, **sizes(student))
    filled(network, recorded)
    *stages, embedding = network.stages(recorded.input("image", (1, 1, 64, 64, 64)))
    agrees(recorded, stage0=stages[0], stage1=stages[2], stage2=stages[4], stage3=embedding)
    assert torch.equal(network(recorded.input("image", (1, 1, 64, 64, 64))), embedding)


def test_the_3dsam_adapter_computes_what_the_original_does() -> None:
    recorded = fixture("sam_adapter3d")
    encoder = sam_adapter_3d.VolumeEncoder(
        grid=8, width=48, heads=4, extent=6, wide_extent=16, window=4, slices=2, out=64
    )
    filled(encoder, recorded, "image_encoder.")
    sampler = filled(sam_adapter_3d.VisualSampler(width=64, hidden=128), recorded, "prompt_encoder.")
    decoder = filled(sam_adapter_3d.AggregationDecoder(width=64, channels=32), recorded, "mask_decoder.")
    features = encoder(recorded.input("image", (16, 3, 128, 128)))
    prompted = sampler(features[3], recorded.given("points"), recorded.facts["patch_voxels"])
    logits = decoder([*features[:3], prompted], recorded.input("lowres_image", (1, 1, 16, 16, 16)))
    agrees(recorded, **{f"feature{level}": x for level, x in enumerate(features)})
    agrees(recorded, prompted_feature3=prompted, logits=logits)


def test_ma_sam_computes_what_the_original_does() -> None:
    recorded = fixture("ma_sam")
    c = dict(recorded.facts)
    network = ma_sam.MaSam(image=64, classes=5, rank=8, out=64, decoder=heads(c), **sizes(c))
    filled(network, recorded)
    logits, quality = network(recorded.input("image", (2, 5, 3, 64, 64)))
    agrees(recorded, low_res_logits=logits, masks=logits, iou=quality)


def test_autosam_computes_what_the_original_does_with_every_head() -> None:
    recorded = fixture("autosam")
    c = dict(recorded.facts)
    network = auto_sam.AutoSam(image=128, classes=3, out=64, decoder=heads(c), **sizes(c))
    filled(network, recorded)
    embedding = network.image_encoder(recorded.input("image", (1, 3, 128, 128)))
    logits, quality = network.decode(embedding)
    agrees(recorded, embedding=embedding, vit_logits=logits, vit_iou=quality)
    cnn = filled(auto_sam.CnnHead(width=64, top=16, depth=2, classes=3), recorded, "cnn_head.")
    linear = filled(auto_sam.LinearHead(width=64, classes=3), recorded, "linear_head.")
    agrees(recorded, cnn_logits=cnn(embedding), linear_logits=linear(embedding))


def test_ma_sam_sees_an_inner_slice_five_times_and_an_outer_one_less_often() -> None:
    stacks: list[list[float]] = []

    def predict(stack: Tensor) -> Tensor:
        stacks.append(stack[:, 0, 0, 0].tolist())
        return stack[:, :2]

    volume = torch.arange(7.0)[:, None, None, None].expand(7, 3, 2, 2)
    assert ma_sam.segment_volume(predict, volume).shape == (7, 2, 2)
    assert len(stacks) == 7
    assert stacks[:2] == [[0, 0, 0, 1, 2], [0, 0, 1, 2, 3]]
    assert [sum(index in stack for stack in stacks) for index in (0, 3, 6)] == [3, 5, 3]


def test_a_click_gives_a_mask_of_the_input_and_logits_to_feed_back() -> None:
    torch.manual_seed(0)
    network = sam.Sam(3, 32, width=48, patch=8, encoder={"width": 16, "depth": 1, "heads": 2, "window": 3, "wide": ()})
    network.eval().requires_grad_(False)
    embedding = network.image_encoder(torch.randn(1, 1, 32, 32, 32))
    point, label, previous = torch.tensor([[[3.0, 9.0, 30.0]]]), torch.ones(1, 1), torch.zeros(1, 1, 16, 16, 16)
    logits, low_res = sam.click(network, embedding, point, label, previous)
    assert low_res.shape == previous.shape
    mask = sam.mask_on_host(logits)
    assert mask.shape == (32, 32, 32)
    assert (mask == (logits[0, 0] > 0).numpy()).mean() > 0.9999


# --- weight and cost -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", figures.PUBLISHED)
def test_a_reference_weighs_and_costs_what_the_original_does(name: str) -> None:
    found = figures.check(name)
    assert found.parameters > 0
    assert found.gflop > 0


def test_a_reference_that_is_not_the_published_network_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def without_padding() -> tuple[list[nn.Module], Callable[[], object]]:
        network = sam.Sam(3, 128, encoder={"window": 8})
        return [network.image_encoder], lambda: network.image_encoder(torch.empty(1, 1, 128, 128, 128))

    monkeypatch.setitem(figures._CALLS, "sam-med3d.encoder", without_padding)
    with pytest.raises(BadInput, match=r"has 92\.\d+ M parameters, the original 92\.9|takes .* the original 368\.6"):
        figures.check("sam-med3d.encoder")


@pytest.mark.parametrize(
    ("value", "printed", "fits"), [(45.64, "45.6", True), (45.66, "45.6", False), (0.2666, "0.27", True)]
)
def test_a_printed_number_stands_for_what_rounds_to_it(value: float, printed: str, fits: bool) -> None:
    assert figures.agrees(value, printed, 0.0) is fits
