"""The full-size networks against the published counts, and against the names and shapes of the official checkpoints."""

import json
import os
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from volsam.models import sizes
from volsam.models.original_names import Original, from_original
from volsam.models.segmenter import Segmenter, SegmenterConfig

SHARED = Path(os.environ.get("VOLSAM_SHARED", Path(__file__).parents[3] / "shared"))
CHECKPOINTS = SHARED / "parity" / "checkpoints"
needs_manifests = pytest.mark.skipif(not CHECKPOINTS.is_dir(), reason=f"no manifests of checkpoints in {CHECKPOINTS}")


def on_no_device(config: SegmenterConfig) -> Segmenter:
    with torch.device("meta"):
        return Segmenter(config)


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("config", "encoder", "prompts", "head"),
    [
        (sizes.SAM_B, 89_670_912, 6_220, 4_058_340),
        (sizes.SAM_L, 308_278_272, 6_220, 4_058_340),
        (sizes.SAM_H, 637_026_048, 6_220, 4_058_340),
        (sizes.SAM_MED3D, 92_924_928, 8_668, 7_575_636),
        (sizes.FASTSAM3D, 45_639_936, 8_668, 7_575_636),
    ],
    ids=["SAM-B", "SAM-L", "SAM-H", "SAM-Med3D", "FastSAM3D"],
)
def test_a_published_network_has_its_published_number_of_parameters(
    config: SegmenterConfig, encoder: int, prompts: int, head: int
) -> None:
    network = on_no_device(config)
    assert (count(network.encoder), count(network.prompt_encoder), count(network.mask_head)) == (encoder, prompts, head)


def manifest(name: str) -> dict[str, Tensor]:
    shapes = json.loads((CHECKPOINTS / f"{name}.json").read_text())["state_dict"]
    return {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}


@needs_manifests
@pytest.mark.parametrize(
    ("name", "family", "config"),
    [
        ("sam_vit_b", "sam", sizes.SAM_B),
        ("sam_vit_l", "sam", sizes.SAM_L),
        ("sam_vit_h", "sam", sizes.SAM_H),
        ("sam_med3d", "sam_med3d", sizes.SAM_MED3D),
        ("fastsam3d_encoder", "fastsam3d_encoder", sizes.FASTSAM3D),
    ],
)
def test_an_official_checkpoint_fits_with_nothing_missing_and_nothing_left_over(
    name: str, family: Original, config: SegmenterConfig
) -> None:
    ours = {key: tensor.shape for key, tensor in on_no_device(config).state_dict().items()}
    if family == "fastsam3d_encoder":
        ours = {key: shape for key, shape in ours.items() if key.startswith("encoder.")}
    assert {key: tensor.shape for key, tensor in from_original(manifest(name), family).items()} == ours
