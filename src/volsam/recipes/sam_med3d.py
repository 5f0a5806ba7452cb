"""SAM-Med3D (Wang et al. 2023): SAM's three parts in 3D, trained from nothing on volumes."""

from __future__ import annotations

from volsam.models.original_names import from_original
from volsam.models.segmenter import Segmenter
from volsam.recipes.family import Family, families
from volsam.recipes.sam import compute, is_plain, segmenter_config

families.add(
    "sam-med3d",
    Family(
        name="sam-med3d",
        title="SAM-Med3D",
        source="Wang et al. 2023, SAM-Med3D",
        licence="Apache-2.0",
        prompts=("point", "mask"),
        recognises=lambda described: is_plain(described, rank=3),
        build=lambda described: Segmenter(segmenter_config(described, rank=3)),
        convert=lambda tensors: from_original(tensors, "sam_med3d"),
        compute=compute,
    ),
)
