import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from volsam.adapters.lowrank import add_fact, fold
from volsam.adapters.slices import add_slice_mixers
from volsam.errors import BadInput
from volsam.geometry import Grid
from volsam.inference.automatic import segment_slices
from volsam.models import sizes
from volsam.models.segmenter import SegmenterConfig
from volsam.recipes.families.family import Described, built, differences, families, family_of, fill, on_no_device
from volsam.recipes.families.fixture import read_fixture
from volsam.recipes.families.ma_sam import (
    BTCV,
    BTCV_LABELS,
    PROSTATE,
    StackSegmenter,
    automatic,
    merge,
    needs_sam,
    train_tuned,
)
from volsam.recipes.families.parity import verify
from volsam.volume import Volume

from .manifests import described, manifest, needs_manifests
from .published_networks import SMALL, record_ma_sam

RECORDED = Path(__file__).parent.parent / "reference" / "ma_sam.json"
# Norms over a few channels would blow up the last bit of a float, so there are more.
OURS = SMALL | {
    "out_chans": 64,
    "num_classes_plus_background": 3,
    "slices": 5,
    "rank": 4,
    "scale": 1.0,
    "adapter_channels": 16,
}


def test_every_recorded_array_agrees() -> None:
    found = verify(RECORDED)
    assert [d.name for d in found] == ["low_res_logits", "masks", "iou"]
    assert all(d.agrees and d.max_difference < 2e-5 for d in found), found


@pytest.mark.parametrize(
    ("changes", "seed", "stacks"),
    [
        ({}, 1, 1),
        ({"slices": 3, "scale": 0.5, "num_classes_plus_background": 2}, 2, 2),
        ({"global_attn_indexes": [], "depth": 1, "rank": 2}, 3, 1),
        ({"img_size": 64, "window_size": 2, "adapter_channels": 40, "slices": 1}, 4, 3),
    ],
)
def test_other_sizes_agree_as_well(changes: dict, seed: int, stacks: int, tmp_path: Path) -> None:
    found = verify(record_ma_sam(tmp_path, OURS | changes, seed, stacks))
    assert len(found) == 3
    assert all(d.agrees for d in found), found


def test_the_factors_must_be_those_of_the_encoder(tmp_path: Path) -> None:
    """A file holds them twice; the recorded one has other values under the second name."""
    fixture = read_fixture(RECORDED)
    weights = fixture.weights()
    assert not torch.equal(weights["FacTu.weight"], weights["sam.image_encoder.FacTu.weight"])
    converted = families["ma-sam"].convert(weights)
    assert torch.equal(converted["encoder.factors.down.weight"], weights["sam.image_encoder.FacTu.weight"])


def recorded_network() -> StackSegmenter:
    fixture = read_fixture(RECORDED)
    network = built(families["ma-sam"], fixture)
    fill(network, families["ma-sam"], fixture.weights(), "the fixture")
    assert isinstance(network, StackSegmenter)
    return network


@torch.no_grad()
def test_folded_factors_give_the_recorded_masks_too() -> None:
    fixture, network = read_fixture(RECORDED), recorded_network()
    fold(network.encoder)
    found = families["ma-sam"].compute(network, fixture)
    assert_close(found["low_res_logits"], torch.from_numpy(fixture.arrays["low_res_logits"]), atol=2e-5, rtol=0)


@torch.no_grad()
def test_a_stack_is_answered_at_full_size() -> None:
    network = recorded_network()
    logits = network(torch.randn(2, 3, 5, 64, 64))
    assert logits.shape == (2, 5, 5, 64, 64)


def test_it_labels_a_volume_with_its_factors_folded() -> None:
    network = recorded_network()
    data = np.random.default_rng(0).normal(0, 100, (40, 36, 3)).astype(np.float32)
    volume = Volume(data, Grid.at(data.shape, (2, 2, 5)))
    model = families["ma-sam"].automatic(network, "mine", "cpu")
    assert not [name for name, _ in network.named_parameters() if "factors" in name or "changes" in name]
    assert model.labels == ("background", "class 1", "class 2", "class 3", "class 4")
    found = model.segment(volume)
    assert found.grid == volume.grid
    wanted = segment_slices(recorded_network(), volume, BTCV, 64)
    assert (found.data == wanted.data).mean() > 0.999
    assert len(np.unique(wanted.data)) > 1


def test_thirteen_classes_are_those_of_btcv() -> None:
    with torch.device("cpu"):
        network = built(families["ma-sam"], thirteen_classes())
    assert automatic(network, "btcv").labels == BTCV_LABELS
    assert automatic(network, "mr", style=PROSTATE, labels=[str(i) for i in range(13)]).labels[12] == "12"


def thirteen_classes() -> Described:
    shapes = {name: tuple(shape) for name, shape in json.loads(RECORDED.read_text())["state_dict"].items()}
    head = "sam.mask_decoder."
    for name in [name for name in shapes if name.startswith(f"{head}output_hypernetworks_mlps.0.")]:
        shapes |= {name.replace("mlps.0.", f"mlps.{index}."): shapes[name] for index in range(13)}
    shapes |= {f"{head}mask_tokens.weight": (13, 64), f"{head}iou_prediction_head.layers.2.weight": (13, 32)}
    return Described("here", shapes | {f"{head}iou_prediction_head.layers.2.bias": (13,)})


# --- full size -----------------------------------------------------------------------------------------------------


def full_size(sam: SegmenterConfig, classes: int = 13) -> StackSegmenter:
    encoder = sam.encoder.model_copy(update={"image": (1, 512, 512)})
    prompts = sam.prompts.model_copy(update={"image": encoder.image, "grid": encoder.grid})
    head = sam.head.model_copy(update={"masks": classes, "upscale": (64, 32, 16, 8)})
    with torch.device("meta"):
        network = StackSegmenter(SegmenterConfig(encoder=encoder, prompts=prompts, head=head))
        add_fact(network.encoder)
        add_slice_mixers(network.encoder)
    return network


def count(network: nn.Module, *marks: str) -> int:
    return sum(p.numel() for name, p in network.named_parameters() if any(mark in name for mark in marks))


@pytest.mark.parametrize(
    ("sam", "factors", "adapters"),
    [
        (sizes.SAM_B, 73_728, 24_818_688),
        (sizes.SAM_L, 114_688, 59_099_136),
        (sizes.SAM_H, 147_456, 91_414_528),
    ],
    ids=["B", "L", "H"],
)
def test_what_is_tuned_has_its_published_number_of_parameters(
    sam: SegmenterConfig, factors: int, adapters: int
) -> None:
    network = full_size(sam)
    assert count(network, "factors.", "changes.") == factors
    assert count(network, "before_attention.", "before_mlp.") == adapters
    assert count(network, "prompt_encoder.", "mask_head.") == 5_249_945
    train_tuned(network)
    assert sum(p.numel() for p in network.parameters() if p.requires_grad) == factors + adapters + 5_249_945


@needs_manifests
def test_the_released_file_with_its_sam_fits_with_nothing_missing_and_nothing_left_over() -> None:
    merged = merge(manifest("ma_sam"), manifest("sam_vit_h"))
    family = family_of(described(merged))
    assert family.name == "ma-sam"
    network = on_no_device(family, described(merged))
    assert differences(network, family.convert(merged)) == []
    assert {name: p.shape for name, p in network.named_parameters()} == {
        name: p.shape for name, p in full_size(sizes.SAM_H).named_parameters()
    }


@needs_manifests
def test_the_released_file_alone_is_known_and_asks_for_its_sam() -> None:
    alone = described(manifest("ma_sam"))
    family = family_of(alone)
    assert family.name == "ma-sam-tuned"
    assert needs_sam(alone)
    with pytest.raises(BadInput, match="give the checkpoint of sam_vit_h as well"):
        built(family, alone)


@needs_manifests
def test_another_size_of_sam_is_refused() -> None:
    with pytest.raises(BadInput, match="32 blocks and 1280 channels, the SAM checkpoint has 12 and 768"):
        merge(manifest("ma_sam"), manifest("sam_vit_b"))


# --- merging -------------------------------------------------------------------------------------------------------


def parts_of_the_recorded_network() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What MA-SAM would have saved of the recorded network, and a SAM of the same encoder on a grid twice as fine."""
    weights = {name.removeprefix("sam."): tensor for name, tensor in read_fixture(RECORDED).weights().items()}
    tuned = {
        name: tensor for name, tensor in weights.items() if ".adapter_" in name or name.startswith("image_encoder.F")
    }
    tuned |= {name: tensor for name, tensor in weights.items() if name.startswith(("prompt_encoder.", "mask_decoder."))}
    for block in range(3):
        qkv = f"image_encoder.ImageEncoderViT.blocks.{block}.Block.attn.Attention.qkv."
        tuned |= {f"{part}_FacTs_{block:03d}": weights[f"{qkv}{part}_FacTs.weight"] for part in "qv"}
    sam = {
        re.sub(r"\.(ImageEncoderViT|Block|Attention|qkv(?=\.qkv))(?=\.)", "", name): tensor
        for name, tensor in weights.items()
        if name.startswith("image_encoder.") and "FacT" not in name and ".adapter_" not in name
    }
    sam["image_encoder.pos_embed"] = torch.randn(1, 8, 8, 48)
    for axis in "hw":
        sam[f"image_encoder.blocks.1.attn.rel_pos_{axis}"] = torch.randn(15, 12)
    return tuned, sam


def test_merging_gives_back_the_network_on_its_own_grid() -> None:
    tuned, sam = parts_of_the_recorded_network()
    whole = merge(tuned, sam, image=64)
    family = family_of(described(whole))
    network = built(family, described(whole))
    fill(network, family, whole, "merged")
    ours, recorded = network.state_dict(), recorded_network().state_dict()
    resized = {"encoder.position", *(f"encoder.blocks.1.attention.tables.{axis}" for axis in "hw")}
    assert set(ours) == set(recorded)
    assert all(torch.equal(ours[name], recorded[name]) for name in recorded if name not in resized)
    position = F.interpolate(sam["image_encoder.pos_embed"].permute(0, 3, 1, 2), size=(4, 4), mode="bilinear")
    assert_close(ours["encoder.position"][:, 0], position.permute(0, 2, 3, 1))
    table = sam["image_encoder.blocks.1.attn.rel_pos_h"]
    published = F.interpolate(table[None, None], size=(7, 12), mode="bilinear", align_corners=False)[0, 0]
    assert_close(ours["encoder.blocks.1.attention.tables.h"], published)


def test_a_file_that_is_not_tuned_tensors_is_refused() -> None:
    tuned, sam = parts_of_the_recorded_network()
    with pytest.raises(BadInput, match="not MA-SAM's tuned tensors"):
        merge(sam, sam)
    del tuned["mask_decoder.mask_tokens.weight"]
    with pytest.raises(BadInput, match=r"mask_tokens\.weight is missing"):
        merge(tuned, sam)


def test_a_whole_network_needs_no_sam() -> None:
    shapes = json.loads(RECORDED.read_text())["state_dict"]
    assert not needs_sam(Described("here", {name: tuple(shape) for name, shape in shapes.items()}))
