"""SAM-Med3D (Wang et al. 2023): SAM's three parts in 3D, trained from nothing on volumes."""

from __future__ import annotations

from typing import Any

from volsam.inference.fast import FastSegmenter
from volsam.inference.openvino import OpenVinoSegmenter
from volsam.inference.volumes import ClickModel
from volsam.models.original_names import from_original
from volsam.models.segmenter import Segmenter
from volsam.recipes.families.family import Described, Family, families
from volsam.recipes.families.sam import compute, is_plain, segmenter_config


def attends_everywhere(described: Described) -> bool:
    """Whether the first block has attention; FastSAM3D's student has none there."""
    return "image_encoder.blocks.0.attn.qkv.weight" in described.shapes


def click_model(network: Any, name: str, device: str) -> ClickModel:
    """The network behind a session."""
    assert isinstance(network, Segmenter | OpenVinoSegmenter | FastSegmenter)
    return ClickModel(network, name, device)


families.add(
    "sam-med3d",
    Family(
        name="sam-med3d",
        title="SAM-Med3D",
        source="Wang et al. 2023, SAM-Med3D",
        licence="Apache-2.0",
        prompts=("point", "scribble", "mask"),
        recognises=lambda described: is_plain(described, rank=3) and attends_everywhere(described),
        build=lambda described: Segmenter(segmenter_config(described, rank=3)),
        convert=lambda tensors: from_original(tensors, "sam_med3d"),
        compute=compute,
        engine=click_model,
    ),
)
