"""SAM-Med2D (Cheng et al. 2023): SAM at 256 × 256 with an adapter beside the MLP of every block, tuned on 2D scans."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from volsam.adapters.slices import add_gated_surround
from volsam.inference.slices import SAM_MED2D, SliceModel
from volsam.models.original_names import from_original
from volsam.models.segmenter import Segmenter
from volsam.recipes.families.family import Described, Family, families
from volsam.recipes.families.sam import compute, is_plain, segmenter_config

MARK = ".Adapter."
"""What its weights have and SAM's have not."""


def recognises(described: Described) -> bool:
    """Whether weights are SAM's with adapters."""
    plain = {name: shape for name, shape in described.shapes.items() if MARK not in name}
    return len(plain) < len(described.shapes) and is_plain(replace(described, shapes=plain), rank=2)


def build(described: Described) -> nn.Module:
    """SAM with the adapter in every block."""
    network = Segmenter(segmenter_config(described, rank=2))
    add_gated_surround(network.encoder)
    return network


def slice_model(network: nn.Module, name: str, device: str) -> SliceModel:
    """The network behind a session."""
    assert isinstance(network, Segmenter)
    return SliceModel(network, name, SAM_MED2D, device)


families.add(
    "sam-med2d",
    Family(
        name="sam-med2d",
        title="SAM-Med2D",
        source="Cheng et al. 2023, SAM-Med2D",
        licence="Apache-2.0",
        prompts=("point", "box", "scribble", "mask"),
        recognises=recognises,
        build=build,
        convert=lambda tensors: from_original(tensors, "sam"),
        compute=compute,
        engine=slice_model,
    ),
)
